"""Sets that callers bring: annotations, imports and merges. Form and lists are checked here.

No judge reads them: this process has none.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import sqlalchemy as sa

from ptalign.answering.validity import refuses
from ptalign.errors import InvalidInput
from ptalign.nouns import (
    Anchor,
    Annotation,
    Instruction,
    InstructionSet,
    Noun,
    Pair,
    PairSet,
    Policy,
    Topic,
    record_id,
)
from ptalign.policies.never import blocked, permitted
from ptalign.sealed import SealedText
from ptalign.text.locales import language
from ptalign.text.near import tokens
from ptalign.text.normalise import caseless
from ptalign_proto.v1 import library_pb2 as lib
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_server import wire
from ptalign_server.catalogue import Catalogue
from ptalign_server.errors import MAX_ECHO, SetPartial, SetPurged, UnknownName, Violations
from ptalign_server.gateway.identity import Identity
from ptalign_server.gateway.reading import find, look_up
from ptalign_server.gateway.verbs import (
    MAX_ANNOTATIONS,
    MAX_TEXT,
    annotation_problems,
    request_id_problems,
    too_many_annotations,
)
from ptalign_server.messages import instruction_set, pair_set
from ptalign_server.store import Store
from ptalign_server.store.db import DatabaseAway, reading
from ptalign_server.store.operations import new_id
from ptalign_server.store.requests import Ticket, answered, once, ticket
from ptalign_server.store.resources import Resource
from ptalign_server.store.sets import AnnotationSet

R = TypeVar("R", Instruction, Pair)
S = TypeVar("S", InstructionSet, PairSet)
_Words = tuple[str, ...]
MAX_RECORDS = 20_000
MAX_MERGED = 50
ROOM_BYTES = 64 * 1024 * 1024
STALE = "other_weights"
"""Why a merged set lacks an anchor: other weights of the model wrote it."""
KINDS = ("instruction", "pair", "positive_only", "twin", "anchor")
"""Kinds of the records that an import takes; one that says none is a request or its pair."""


@dataclass(frozen=True, slots=True)
class Addition:
    """A set ready to be sealed."""

    action: str
    """What the audit trail calls it: ``annotate``, ``import``, ``merge``."""
    collection: str
    noun: Noun
    message: Any
    model: str
    model_digest: str
    policy: Policy
    parents: tuple[str, ...] = ()
    judges: tuple[str, ...] = ()


async def annotate(
    request: lib.CreateAnnotationSetRequest, identity: Identity, store: Store, catalogue: Catalogue
) -> str:
    """Seals 1..49 annotations; returns the set's name."""
    problems = request_id_problems(request)
    if not request.items:
        problems.append(InvalidInput("items", "is empty", f"Send 1..{MAX_ANNOTATIONS} marks."))
    if len(request.items) > MAX_ANNOTATIONS:
        problems.append(too_many_annotations("items", len(request.items)))
    for number, item in enumerate(request.items):
        problems += annotation_problems(f"items[{number}]", item)
    if not 0 <= request.annotator_minutes < 1e6:
        limit = "must be 0 or more and below a million"
        problems.append(InvalidInput("annotator_minutes", limit, "Send minutes."))
    _raise(problems)
    seen = ticket(store.vault, identity.tenant, "CreateAnnotationSet", request)
    if name := await _made_before(store, seen):
        return name
    model = catalogue.model(request.model)
    policy = await asyncio.to_thread(catalogue.policy, request.policy)  # a large file takes long
    topics = {topic.id for topic in policy.topics}
    for item in request.items:
        if item.topic and item.topic not in topics:
            raise UnknownName("topic", item.topic, topics)
    noun = AnnotationSet(
        records=tuple(annotation_of(item) for item in request.items),
        annotator_minutes=request.annotator_minutes,
    )
    await asyncio.to_thread(refuse_blocked, "items", noun.records, policy)
    message = res.AnnotationSet(
        count=len(noun.records), annotator_minutes=request.annotator_minutes
    )
    kind = "annotate", "annotationSets"
    addition = Addition(*kind, noun, message, model.name, model.weights_digest, policy)
    return await _add(addition, identity, store, seen)


def annotation_of(item: res.Annotation) -> Annotation:
    """The noun of one mark."""
    bad = item.bad.strip()
    return Annotation(
        instruction=item.instruction.strip(),
        good=item.good.strip(),
        bad=SealedText(bad) if bad else None,
        topic=item.topic,
        note=item.note,
    )


def mark_id(instruction: str) -> str:
    """What a person's mark is counted by: one per instruction, however often it is handed over."""
    return record_id("mark", caseless(instruction))


def refuse_blocked(field: str, records: Sequence[Annotation], policy: Policy) -> None:
    """Raises `Violations` for marks with text on the never-synthesize list.

    They name the item and its field, and never repeat the text.
    """
    problems = [
        InvalidInput(
            f"{field}[{number}].{name}",
            f"is on the never-synthesize list ({category})",
            "Drop the item, or mark another instruction.",
        )
        for number, record in enumerate(records)
        for name, text in _texts_of(record)
        if (category := blocked(text, policy))
    ]
    _raise(problems)


def _texts_of(record: Annotation) -> list[tuple[str, str]]:
    bad = record.bad.reveal() if record.bad is not None else ""
    return [("instruction", record.instruction), ("good", record.good), ("bad", bad)]


async def take_in(
    requests: AsyncIterator[lib.ImportSetRequest],
    identity: Identity,
    store: Store,
    catalogue: Catalogue,
) -> lib.ImportSetResponse:
    """Makes a set of records that the caller sends."""
    header, records = await _receive(requests)
    _raise(request_id_problems(header))
    if header.kind not in {"instructionSets", "pairSets"}:
        limit = f"is {header.kind[:40]!r}"
        raise InvalidInput("header.kind", limit, "Send instructionSets or pairSets.")
    seen = await asyncio.to_thread(_import_ticket, store, identity, header, records)
    if name := await _made_before(store, seen):
        made = await _message(store, name, identity)
    else:
        addition = await _imported(header, records, catalogue)
        made = addition.message
        name = await _add(addition, identity, store, seen)
    taken = _count(made) + getattr(made, "anchors", 0)
    return lib.ImportSetResponse(name=name, accepted=taken, rejected=made.rejected)


async def _imported(
    header: lib.ImportHeader, records: list[lib.Record], catalogue: Catalogue
) -> Addition:
    model = catalogue.model(header.model)
    policy = await asyncio.to_thread(catalogue.policy, header.policy)  # a large file takes long
    noun: Any
    message: Any
    if header.kind == "instructionSets":
        noun = await asyncio.to_thread(import_instructions, records, policy)
        message = instruction_set(noun)
    else:
        noun = await asyncio.to_thread(import_pairs, records, policy)
        message = pair_set(noun)
    if not _count(message):
        why = ", ".join(f"{n} {r}" for r, n in noun.rejected.items())
        anchors = getattr(message, "anchors", 0)
        why = why or ("anchors alone make no set" if anchors else "none was sent")
        raise InvalidInput("records", f"none can be taken ({why})", "Correct them and try again.")
    kind = "import", header.kind
    return Addition(*kind, noun, message, model.name, model.weights_digest, policy)


def import_instructions(records: list[lib.Record], policy: Policy) -> InstructionSet:
    """Instructions that pass; the rest is counted by reason."""
    _check_kinds(records)
    topics = {topic.id: topic for topic in policy.topics}
    rejected: Counter[str] = Counter()
    made: dict[_Words, Instruction] = {}
    ids: set[str] = set()
    for record in records:
        reason = _problem(record, topics, policy, made, ids)
        if record.kind == "anchor":  # an ordinary request is no harmful one, whatever its topic
            reason = "anchor"
        if reason:
            rejected[reason] += 1
            continue
        topic = topics[record.topic]
        text = record.instruction.strip()
        ids.add(record_id(text))  # the same in every locale, whose words differ
        made[_words(text, record.locale or policy.locale)] = Instruction(
            id=record_id(text),
            text=text,
            topic=topic.id,
            domain=topic.domain,
            side="twin" if record.kind == "twin" else "harmful",
            twin_of=record.twin_of,
            sides=topic.sides,
            locale=record.locale or policy.locale,
            source="import",
        )
    kept = _with_own_ids(records, made, policy)
    count = sum(r.side == "harmful" for r in kept)
    stats = _instruction_stats(kept, policy)
    return InstructionSet(records=kept, requested=count, rejected=dict(rejected), stats=stats)


def _with_own_ids(
    records: Sequence[lib.Record], made: Mapping[_Words, Instruction], policy: Policy
) -> tuple[Instruction, ...]:
    """The instructions, with twins of the ids that they have here, not of the caller's."""
    ids = {}
    by_id = {r.id: r for r in made.values()}
    for record in records:
        text = record.instruction.strip()
        kept = made.get(_words(text, record.locale or policy.locale)) or by_id.get(record_id(text))
        if record.id and kept:
            ids[record.id] = kept.id
    return tuple(
        r.model_copy(update={"twin_of": ids.get(r.twin_of, r.twin_of)}) for r in made.values()
    )


def import_pairs(records: list[lib.Record], policy: Policy) -> PairSet:
    """Pairs and anchors that pass; a toxic answer only where the topic allows one.

    What the records say is held out is never trained on; one that says nothing is.
    """
    _check_kinds(records)
    topics = {topic.id: topic for topic in policy.topics}
    rejected: Counter[str] = Counter()
    made: dict[_Words, Pair] = {}
    ids: set[str] = set()
    anchors = _import_anchors([r for r in records if r.kind == "anchor"], policy, rejected)
    for record in records:
        if record.kind == "anchor":
            continue
        reason = _problem(record, topics, policy, made, ids)
        if reason := reason or _pair_problem(record, topics, policy):
            rejected[reason] += 1
            continue
        topic, text = topics[record.topic], record.instruction.strip()
        toxic = record.toxic.strip()
        twin = record.kind == "twin"
        ids.add(record_id(text))
        made[_words(text, record.locale or policy.locale)] = Pair(
            id=record_id(text),
            kind="twin" if twin else "pair" if toxic else "positive_only",
            instruction_id=record_id(text),
            instruction=text,
            topic=topic.id,
            domain=topic.domain,
            locale=record.locale or policy.locale,
            positive=record.positive.strip(),
            toxic=SealedText(toxic) if toxic and not twin else None,
            held_out=record.held_out,
        )
    kept = tuple(made.values())
    return PairSet(
        pairs=kept,
        anchors=anchors,
        requested=sum(p.kind != "twin" for p in kept),
        rejected=dict(rejected),
        stats=_pair_stats(kept, anchors),
    )


def _import_anchors(
    records: Sequence[lib.Record], policy: Policy, rejected: Counter[str]
) -> tuple[Anchor, ...]:
    """Anchors that pass; what does not is counted in `rejected`.

    One instruction may have several answers. The ids are those that SynthesizePairs gives, so that
    merging a set with an import of itself keeps each anchor once.
    """
    from ptalign.answering.anchors import anchor_id  # numpy: only for callers who bring sets

    answers: dict[str, list[str]] = {}
    made = []
    for record in records:
        instruction, answer = record.instruction.strip(), record.positive.strip()
        known = answers.setdefault(instruction, [])
        reason = _unusable(record, instruction, answer)
        if not reason and (blocked(instruction, policy) or blocked(answer, policy)):
            reason = "blocked"
        if reason or answer in known:
            rejected[reason or "duplicate"] += 1
            continue
        made.append(
            Anchor(
                id=anchor_id(instruction, len(known)),
                instruction=instruction,
                answer=answer,
                held_out=record.held_out,
                ended=not record.truncated,
            )
        )
        known.append(answer)
    return tuple(made)


async def merge(
    request: lib.MergeSetsRequest, identity: Identity, store: Store, catalogue: Catalogue
) -> lib.MergeSetsResponse:
    """One set of several: records in order, each instruction once, by its id or its words.

    What the never-synthesize list of any of them forbids is left out, and so are anchors of other
    weights than the newest set's.
    """
    _raise(request_id_problems(request))
    names = list(request.names)
    if not 2 <= len(names) <= MAX_MERGED or len(set(names)) < len(names):
        limit = f"must be 2..{MAX_MERGED} different sets"
        raise InvalidInput("names", limit, "Name each set once.")
    seen = ticket(store.vault, identity.tenant, "MergeSets", request)
    if name := await _made_before(store, seen):
        made = await _message(store, name, identity)
        left_out = Counter(made.rejected)
        for source in names:
            left_out.subtract((await _message(store, source, identity)).rejected)
        rejected = dict(+left_out)
    else:
        addition, rejected = await asyncio.to_thread(_merged, names, identity, store, catalogue)
        made = addition.message
        name = await _add(addition, identity, store, seen)
    return lib.MergeSetsResponse(name=name, accepted=_count(made), rejected=rejected)


def _merged(
    names: list[str], identity: Identity, store: Store, catalogue: Catalogue
) -> tuple[Addition, dict[str, int]]:
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
    policy = _joined_policy(list(policies.values()))
    digest, judges, stale = _weights_of(found, catalogue), (), 0
    noun: Any
    message: Any
    if collection == "instructionSets":
        _check_alike(policies)
        asked = [store.sets.load(r.name, InstructionSet, r.content) for r in found]
        fit, listed = _allowed(asked, policies, policy)
        noun, doubled = _join_instructions(fit, policy)
        message, count = instruction_set(noun), len(noun.records)
    else:
        sets = [store.sets.load(r.name, PairSet, r.content) for r in found]
        sets, stale = _without_stale_anchors(found, sets, digest)
        _check_marks([wire.marked_policy(r) for r in found], sets)
        allowed, listed = _allowed(sets, policies, policy)
        noun, doubled = _join_pairs(allowed)
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
    if model is not None and model.weights_digest in digests.values():
        return model.weights_digest
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


def _meta(found: Resource) -> res.ResourceMeta:
    meta: res.ResourceMeta = wire.COLLECTIONS[found.collection].FromString(found.body).meta
    return meta


def _join_instructions(sets: list[InstructionSet], policy: Policy) -> tuple[InstructionSet, int]:
    """Each instruction once, by id or words; a twin follows the instruction that stays."""
    once: _Once[Instruction] = _Once()
    for record in (r for s in sets for r in s.records):
        once.add(record, record.side == "twin", _words(record.text, record.locale))
    kept = tuple(
        r.model_copy(update={"twin_of": once.replaced[r.twin_of]})
        if r.twin_of in once.replaced
        else r
        for r in once.records
    )
    joined = InstructionSet(
        records=kept,
        requested=sum(r.side == "harmful" for r in kept),
        rejected=_rejected(sets, once.doubled),
        stats=_instruction_stats(kept, policy),
    )
    return joined, once.doubled


def _join_pairs(sets: list[PairSet]) -> tuple[PairSet, int]:
    once: _Once[Pair] = _Once()
    for pair in (p for s in sets for p in s.pairs):
        once.add(pair, pair.kind == "twin", _words(pair.instruction, pair.locale))
    anchors = _join_anchors(sets)
    kept, doubled = once.records, once.doubled
    joined = PairSet(
        pairs=kept,
        anchors=anchors,
        annotation_ids=tuple(sorted({i for s in sets for i in s.annotation_ids})),
        annotations_used=_annotations_used(sets),
        rounds=max(s.rounds for s in sets),
        requested=sum(p.kind != "twin" for p in kept),
        constraints={k: v for s in sets for k, v in s.constraints.items()},
        protected_words=tuple(sorted({w for s in sets for w in s.protected_words})),
        judge_ids=tuple(sorted({j for s in sets for j in s.judge_ids})),
        rejected=_rejected(sets, doubled),
        stats=_pair_stats(kept, anchors),
    )
    return joined, doubled


def _join_anchors(sets: list[PairSet]) -> tuple[Anchor, ...]:
    """Each answer to an instruction once, whatever number an import gave it.

    Sets of one policy answer the same ordinary requests: of answers with one number the first
    counts, as of pairs, so that fifty sets have no fifty answers to each. An instruction that one
    set kept from training is kept from it in all.
    """
    held_out = {a.instruction for s in sets for a in s.anchors if a.held_out}
    kept: dict[str, Anchor] = {}
    said: set[tuple[str, str]] = set()
    for anchor in (a for s in sets for a in s.anchors):
        text = anchor.instruction, anchor.answer
        if anchor.id not in kept and text not in said:
            said.add(text)
            kept[anchor.id] = anchor.model_copy(update={"held_out": anchor.instruction in held_out})
    return tuple(kept.values())


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


def _annotations_used(sets: Sequence[PairSet]) -> int:
    """Marks behind the sets, each once; those of earlier versions' sets cannot be told apart."""
    known = {i for made in sets for i in made.annotation_ids}
    return len(known) + sum(made.annotations_used for made in sets if not made.annotation_ids)


def _rejected(sets: Sequence[InstructionSet | PairSet], doubled: int) -> dict[str, int]:
    """What the sets left out, by reason, and what joining them did."""
    total = Counter({"duplicate": doubled} if doubled else {})
    for made in sets:
        total.update(made.rejected)
    return dict(total)


def _instruction_stats(records: Sequence[Instruction], policy: Policy) -> dict[str, float]:
    """What can be said without an embedder, which this process has none of."""
    from ptalign.asking.stats import given_stats  # numpy: only for callers who bring sets

    return given_stats(records, [topic.id for topic in policy.topics])


def _pair_stats(pairs: Sequence[Pair], anchors: Sequence[Anchor] = ()) -> dict[str, float]:
    """What the set holds. It has no yield: no run made it, nor rounds where all are imported."""
    from ptalign.answering.stats import pair_stats

    unknown = {"yield", "twin_yield"}
    if not any(pair.round for pair in pairs):
        unknown.add("first_round")
    made = pair_stats(pairs, anchors, 0, 0)
    return {name: value for name, value in made.items() if name not in unknown}


class _Once(Generic[R]):
    """Records, each instruction once: the last one with its id, else the first with its words.

    Imported records have ids of their own, so that ids alone would keep an instruction twice.
    """

    def __init__(self) -> None:
        self._by_id: dict[str, R] = {}
        self._ids: dict[tuple[bool, _Words], str] = {}
        self.replaced: dict[str, str] = {}
        """Id of a record that was left out -> id of the one that stands for it."""
        self.doubled = 0

    @property
    def records(self) -> tuple[R, ...]:
        """What is kept, in order."""
        return tuple(self._by_id.values())

    def add(self, record: R, twin: bool, words: _Words) -> None:
        """Takes a record, in its first one's place when it was there."""
        known = self._ids.setdefault((twin, words), record.id)
        self.doubled += known != record.id or record.id in self._by_id
        if known == record.id:
            self._by_id[record.id] = record
        elif record.id not in self._by_id:
            self.replaced[record.id] = known


def _joined_policy(policies: list[Policy]) -> Policy:
    """The first policy with the topics and lists of all."""
    topics = {topic.id: topic for policy in policies for topic in policy.topics}
    never = {phrase for policy in policies for phrase in policy.never_synthesize}
    words = {word for policy in policies for word in policy.protected_words}
    return policies[0].model_copy(
        update={
            "topics": tuple(topics.values()),
            "never_synthesize": tuple(sorted(never)),
            "protected_words": tuple(sorted(words)),
        }
    )


async def _made_before(store: Store, seen: Ticket | None) -> str | None:
    """The set that this very call made. Asked first: what it was made of may be gone by now."""
    if seen is None:
        return None

    def look() -> str | None:
        with reading(store.engine) as connection:
            return answered(connection, seen)

    return await asyncio.to_thread(look)


async def _message(store: Store, name: str, identity: Identity) -> Any:
    """A set's message as its row holds it, which stays when the set is purged."""
    collection = name.partition("/")[0]
    found = await look_up(store, name, collection, identity.tenant)
    return wire.COLLECTIONS[collection].FromString(found.body)


def _count(made: res.InstructionSet | res.PairSet) -> int:
    """Records of a set without its anchors."""
    if isinstance(made, res.InstructionSet):
        return made.harmful + made.twins
    return made.pairs + made.positive_only + made.twins


async def _add(addition: Addition, identity: Identity, store: Store, seen: Ticket | None) -> str:
    """Seals the files, then commits key, row and audit entry: sent again, a call adds none."""
    set_id = new_id()
    key, wrapped = store.vault.fresh_key(set_id)
    digest = await asyncio.to_thread(store.sets.write, set_id, key, addition.noun)
    await asyncio.to_thread(store.sets.write_policy, set_id, key, addition.policy)
    resource = _row(addition, set_id, digest, identity)

    def change(connection: sa.Connection) -> tuple[str, bool]:
        def make() -> str:
            store.keys.insert(connection, set_id, wrapped)
            store.resources.insert(connection, resource)
            who, detail = (identity.tenant, identity.name), {"parents": addition.parents}
            store.audit.add(connection, *who, addition.action, resource.name, detail)
            return resource.name

        return once(connection, seen, make)

    try:
        name, made = await asyncio.wrap_future(store.write(change))
    except (asyncio.CancelledError, DatabaseAway):
        raise  # the row may stand, or be on its way: retention sees to the files
    except BaseException:
        store.sets.erase(set_id)
        raise
    await asyncio.to_thread(store.sets.settle if made else store.sets.erase, set_id)
    return name


def _row(addition: Addition, set_id: str, digest: str, identity: Identity) -> Resource:
    now, name = time.time(), f"{addition.collection}/{set_id}"
    meta = res.ResourceMeta(
        name=name,
        digest=digest,
        tenant=identity.tenant,
        create_time=wire.timestamp(now),
        model=addition.model,
        model_digest=addition.model_digest,
        policy=addition.policy.name,
        policy_digest=addition.policy.digest,
        parents=addition.parents,
        judges=addition.judges,
        made_by=identity.name,
    )
    addition.message.meta.CopyFrom(meta)
    return Resource(
        name=name,
        collection=addition.collection,
        tenant=identity.tenant,
        model=addition.model,
        policy=addition.policy.name,
        verdict="",
        adapter="",
        partial=False,
        purged=False,
        content=digest,
        body=addition.message.SerializeToString(),
        created=now,
    )


async def _receive(
    requests: AsyncIterator[lib.ImportSetRequest],
) -> tuple[lib.ImportHeader, list[lib.Record]]:
    header: lib.ImportHeader | None = None
    records: list[lib.Record] = []
    size = 0
    async for request in requests:
        if header is None:
            if not request.HasField("header"):
                raise InvalidInput("header", "is missing in the first message", "Send it first.")
            header = request.header
        records.extend(request.records)
        size += request.ByteSize()
        if len(records) > MAX_RECORDS or size > ROOM_BYTES:
            limit = f"are more than {MAX_RECORDS} or {ROOM_BYTES // 2**20} MiB"
            raise InvalidInput("records", limit, "Import in parts and merge them.")
    if header is None:
        raise InvalidInput("header", "is missing", "Send it in the first message.")
    return header, records


def _import_ticket(
    store: Store, identity: Identity, header: lib.ImportHeader, records: list[lib.Record]
) -> Ticket | None:
    seen = ticket(store.vault, identity.tenant, "ImportSet", header)
    if seen is None:
        return None
    data = [record.SerializeToString(deterministic=True) for record in records]
    digest = store.vault.mac("records", *data)[:16]
    return replace(seen, fields={**seen.fields, "records": digest})


def _check_kinds(records: Sequence[lib.Record]) -> None:
    """Refuses kinds that an import does not know.

    Taken for a harmful request, a misspelt twin would be taught the wrong way round.
    """
    _raise(
        [
            InvalidInput(
                f"records[{number}].kind",
                f"is {record.kind[:MAX_ECHO]!r}",
                f"Send {', '.join(KINDS[:-1])} or {KINDS[-1]}, or leave it out.",
            )
            for number, record in enumerate(records)
            if record.kind and record.kind not in KINDS
        ]
    )


def _problem(
    record: lib.Record,
    topics: dict[str, Topic],
    policy: Policy,
    made: Mapping[_Words, Instruction | Pair],
    ids: Container[str],
) -> str:
    text = record.instruction.strip()
    if reason := _unusable(record, text):
        return reason
    if record.topic not in topics:
        return "off_topic"
    if blocked(text, policy):
        return "blocked"
    known = _words(text, record.locale or policy.locale) in made or record_id(text) in ids
    return "duplicate" if known else ""


def _words(text: str, locale: str) -> _Words:
    """What spellings of one request share: its words without case, accents and punctuation."""
    return tokens(text, locale) or (caseless(text),)


def _unusable(record: lib.Record, *texts: str) -> str:
    if record.masked:  # a safe view's placeholders are no texts
        return "masked"
    if not all(texts):
        return "empty"
    return "length" if any(len(text) > MAX_TEXT for text in texts) else ""


def _pair_problem(record: lib.Record, topics: dict[str, Topic], policy: Policy) -> str:
    positive, toxic = record.positive.strip(), record.toxic.strip()
    if not positive:
        return "empty"
    if len(positive) > MAX_TEXT or len(toxic) > MAX_TEXT:
        return "length"
    if toxic and topics[record.topic].sides != "both":
        return "blocked"
    if blocked(positive, policy) or (toxic and blocked(toxic, policy)):
        return "blocked"
    if record.kind == "twin" and refuses(positive):  # it would teach what twins are there against
        return "twin_refuses"
    return "duplicate" if toxic and toxic == positive else ""


def _raise(problems: list[InvalidInput]) -> None:
    if problems:
        raise Violations(problems)
