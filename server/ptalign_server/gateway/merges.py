"""MergeSets: which sets may be one, under which policy and of which weights."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from ptalign.errors import InvalidInput
from ptalign.nouns import MAX_ANNOTATIONS, InstructionSet, PairSet, Policy
from ptalign.policies.never import permitted
from ptalign.text.locales import language
from ptalign_proto.v1 import library_pb2 as lib
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_server import wire
from ptalign_server.catalogue import Catalogue
from ptalign_server.errors import SetPartial, SetPurged, refuse
from ptalign_server.gateway.additions import Addition, add, count_of, made_before, message_of
from ptalign_server.gateway.fields import request_id_problems
from ptalign_server.gateway.identity import Identity
from ptalign_server.gateway.joins import join_instructions, join_pairs, joined_policy
from ptalign_server.gateway.reading import find
from ptalign_server.messages import instruction_set, pair_set
from ptalign_server.store import Store
from ptalign_server.store.requests import ticket
from ptalign_server.store.resources import Resource

S = TypeVar("S", InstructionSet, PairSet)
MAX_MERGED = 50
STALE = "other_weights"
"""Why a merged set lacks an anchor: other weights of the model wrote it."""


async def merge(
    request: lib.MergeSetsRequest, identity: Identity, store: Store, catalogue: Catalogue
) -> lib.MergeSetsResponse:
    """One set of several: records in order, each instruction once, by its id or its words.

    What the never-synthesize list of any of them forbids is left out, and so are anchors of other
    weights than the newest set's.
    """
    refuse(request_id_problems(request))
    names = list(request.names)
    if not 2 <= len(names) <= MAX_MERGED or len(set(names)) < len(names):
        limit = f"must be 2..{MAX_MERGED} different sets"
        raise InvalidInput("names", limit, "Name each set once.")
    seen = ticket(store.vault, identity.tenant, "MergeSets", request)
    if name := await made_before(store, seen):
        made = await message_of(store, name, identity)
        left_out = Counter(made.rejected)
        for source in names:
            left_out.subtract((await message_of(store, source, identity)).rejected)
        rejected = dict(+left_out)
    else:
        addition, rejected = await asyncio.to_thread(merged, names, identity, store, catalogue)
        made = addition.message
        name = await add(addition, identity, store, seen)
    return lib.MergeSetsResponse(name=name, accepted=count_of(made), rejected=rejected)


def merged(
    names: list[str], identity: Identity, store: Store, catalogue: Catalogue
) -> tuple[Addition, dict[str, int]]:
    """The sets of these names as one, and what of them was left out, by reason.

    Raises:
        InvalidInput: They are of other kinds, models, languages or sides, hold too many marks, or
            nothing that all their never-synthesize lists allow.
        SetPurged, SetPartial: One of them is.
    """
    collection = names[0].partition("/")[0]
    if collection not in {"instructionSets", "pairSets"}:
        raise InvalidInput("names", "are no sets that merge", "Name instruction or pair sets.")
    found = [find(store.resources, name, collection, identity.tenant) for name in names]
    for resource in found:
        if resource.purged:
            raise SetPurged(f"{resource.name} was purged: its text is gone.")
        if resource.partial:
            raise SetPartial(f"{resource.name} is partial. Extend it with parent= first.")
        if resource.model != found[0].model:
            limit = f"{resource.name} is of model {resource.model}, not {found[0].model}"
            raise InvalidInput("names", limit, "Merge sets of one model.")
    policies = {name: store.sets.load_policy(name) for name in names}
    policy = joined_policy(list(policies.values()))
    digest, judges, stale = _weights_of(found, catalogue), (), 0
    noun: Any
    message: Any
    if collection == "instructionSets":
        _check_alike(policies)
        asked = [store.sets.load(r.name, InstructionSet, r.content) for r in found]
        fit, listed = _allowed(asked, policies, policy)
        noun, doubled = join_instructions(fit, policy)
        message, count = instruction_set(noun), len(noun.records)
    else:
        sets = [store.sets.load(r.name, PairSet, r.content) for r in found]
        sets, stale = _without_stale_anchors(found, sets, digest)
        _check_marks([wire.marked_policy(r) for r in found], sets)
        allowed, listed = _allowed(sets, policies, policy)
        noun, doubled = join_pairs(allowed)
        message, count, judges = pair_set(noun), len(noun.pairs), noun.judge_ids
    if not count:
        limit = "hold nothing that the never-synthesize lists of all of them allow"
        raise InvalidInput("names", limit, "Merge sets of policies that agree.")
    parents = tuple(f"{r.name}@{r.content}" for r in found)
    kind, left_out = ("merge", collection), {"duplicate": doubled, "blocked": listed, STALE: stale}
    return (
        Addition(*kind, noun, message, found[0].model, digest, policy, parents, judges),
        {reason: n for reason, n in left_out.items() if n},
    )


def _weights_of(found: Sequence[Resource], catalogue: Catalogue) -> str:
    """Digest of the weights that a merged set is of: the model's own, or the newest set's.

    A merged set is younger than those it was made of, and tells nothing of the model's weights.
    """
    digests = {made.name: _meta(made).model_digest for made in found}
    model = catalogue.models.get(found[0].model)
    own = model.weights_digest if model is not None else ""
    if own and own in digests.values():
        return own
    known = [made for made in found if digests[made.name]]
    return digests[max(known, key=lambda made: made.created).name] if known else ""


def _without_stale_anchors(
    found: Sequence[Resource], sets: Sequence[PairSet], digest: str
) -> tuple[list[PairSet], int]:
    """The sets without anchors of other weights, and how many those are.

    An anchor is what the model itself says (ADR 0009).
    """
    kept, stale = [], 0
    for resource, made in zip(found, sets, strict=True):
        count = len(made.anchors) if _meta(resource).model_digest not in ("", digest) else 0
        if count:
            rejected = {**made.rejected, STALE: made.rejected.get(STALE, 0) + count}
            made = made.model_copy(update={"anchors": (), "rejected": rejected})
        kept.append(made)
        stale += count
    return kept, stale


def _allowed(sets: list[S], policies: Mapping[str, Policy], joined: Policy) -> tuple[list[S], int]:
    """The sets without what another's never-synthesize list forbids, and how much that is.

    Each keeps to its own list, and reading a text takes a millisecond: without a new phrase, none
    is read.
    """
    listed = set(joined.never_synthesize)
    kept = [
        permitted(made, joined) if listed - set(own.never_synthesize) else made
        for made, own in zip(sets, policies.values(), strict=True)
    ]
    blocked_in = [sum(made.rejected.get("blocked", 0) for made in of) for of in (kept, sets)]
    return kept, blocked_in[0] - blocked_in[1]


def _check_alike(policies: Mapping[str, Policy]) -> None:
    """Requests are answered in their policy's language, with the sides that it gives their topic.

    Pairs have been answered: sets of several languages or sides merge as those.
    """
    first, *_ = policies
    locale = policies[first].locale
    sides: dict[str, str] = {}
    mend = "Make pairs of each set and merge those."
    for name, policy in policies.items():
        if language(policy.locale) != language(locale):
            limit = f"{name} is written in {policy.locale}, and {first} in {locale}"
            raise InvalidInput("names", limit, mend)
        for topic in policy.topics:
            if (before := sides.setdefault(topic.id, topic.sides)) != topic.sides:
                limit = f"topic {topic.id} is {topic.sides} in {name}, and {before} in another"
                raise InvalidInput("names", limit, mend)


def _check_marks(policies: Sequence[str], sets: Sequence[PairSet]) -> None:
    """Refuses more marks than one policy and model use; of earlier versions' sets none is known.

    A set that was merged of several policies' holds the marks of each, and no others here.
    """
    for policy in dict.fromkeys(policies):
        same = [set(s.annotation_ids) for p, s in zip(policies, sets, strict=True) if p == policy]
        count = len(set().union(*same))
        if count > max(MAX_ANNOTATIONS, *map(len, same)):
            raise InvalidInput(
                "names",
                f"are sets made with {count} annotations on {policy}; "
                f"at most {MAX_ANNOTATIONS} are used per policy and model",
                "Merge sets that were made with the same marks, or with fewer.",
            )


def _meta(found: Resource) -> res.ResourceMeta:
    meta: res.ResourceMeta = wire.COLLECTIONS[found.collection].FromString(found.body).meta
    return meta
