"""ImportSet: records of the caller's own. Form and lists are checked; no judge reads them.

This process has none.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Container, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ptalign.answering.validity import refuses
from ptalign.errors import InvalidInput
from ptalign.nouns import (
    Anchor,
    Instruction,
    InstructionSet,
    Pair,
    PairSet,
    Policy,
    Topic,
    record_id,
)
from ptalign.policies.never import blocked
from ptalign.sealed import SealedText
from ptalign_proto.v1 import library_pb2 as lib
from ptalign_server.catalogue import Catalogue
from ptalign_server.errors import MAX_ECHO, refuse
from ptalign_server.gateway.additions import (
    Addition,
    Words,
    add,
    count_of,
    instruction_stats,
    made_before,
    message_of,
    pair_stats,
    words_of,
)
from ptalign_server.gateway.fields import MAX_TEXT, request_id_problems
from ptalign_server.gateway.identity import Identity
from ptalign_server.messages import instruction_set, pair_set
from ptalign_server.store import Store
from ptalign_server.store.requests import Ticket, ticket

MAX_RECORDS = 20_000
ROOM_BYTES = 64 * 1024 * 1024
KINDS = ("instruction", "pair", "positive_only", "twin", "anchor")
"""Kinds of the records that an import takes; one that says none is a request or its pair."""


async def take_in(
    requests: AsyncIterator[lib.ImportSetRequest],
    identity: Identity,
    store: Store,
    catalogue: Catalogue,
) -> lib.ImportSetResponse:
    """Makes a set of records that the caller sends."""
    header, records = await _receive(requests)
    refuse(request_id_problems(header))
    if header.kind not in {"instructionSets", "pairSets"}:
        limit = f"is {header.kind[:40]!r}"
        raise InvalidInput("header.kind", limit, "Send instructionSets or pairSets.")
    seen = await asyncio.to_thread(_import_ticket, store, identity, header, records)
    if name := await made_before(store, seen):
        made = await message_of(store, name, identity)
    else:
        addition = await _imported(header, records, catalogue)
        made = addition.message
        name = await add(addition, identity, store, seen)
    taken = count_of(made) + getattr(made, "anchors", 0)
    return lib.ImportSetResponse(name=name, accepted=taken, rejected=made.rejected)


async def _imported(
    header: lib.ImportHeader, records: list[lib.Record], catalogue: Catalogue
) -> Addition:
    model = catalogue.model(header.model)
    # a large file takes long
    policy = await asyncio.to_thread(catalogue.policies.find, header.policy)
    noun: Any
    message: Any
    if header.kind == "instructionSets":
        noun = await asyncio.to_thread(import_instructions, records, policy)
        message = instruction_set(noun)
    else:
        noun = await asyncio.to_thread(import_pairs, records, policy)
        message = pair_set(noun)
    if not count_of(message):
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
    made: dict[Words, Instruction] = {}
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
        made[words_of(text, record.locale or policy.locale)] = Instruction(
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
    stats = instruction_stats(kept, policy)
    return InstructionSet(records=kept, requested=count, rejected=dict(rejected), stats=stats)


def _with_own_ids(
    records: Sequence[lib.Record], made: Mapping[Words, Instruction], policy: Policy
) -> tuple[Instruction, ...]:
    """The instructions, with twins of the ids that they have here, not of the caller's."""
    ids = {}
    by_id = {r.id: r for r in made.values()}
    for record in records:
        text = record.instruction.strip()
        kept = made.get(words_of(text, record.locale or policy.locale)) or by_id.get(
            record_id(text)
        )
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
    made: dict[Words, Pair] = {}
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
        made[words_of(text, record.locale or policy.locale)] = Pair(
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
        stats=pair_stats(kept, anchors),
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
    refuse(
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
    made: Mapping[Words, Instruction | Pair],
    ids: Container[str],
) -> str:
    text = record.instruction.strip()
    if reason := _unusable(record, text):
        return reason
    if record.topic not in topics:
        return "off_topic"
    if blocked(text, policy):
        return "blocked"
    known = words_of(text, record.locale or policy.locale) in made or record_id(text) in ids
    return "duplicate" if known else ""


def _unusable(record: lib.Record, *texts: str) -> str:
    if record.masked:  # a safe view's placeholders are no texts
        return "masked"
    if not all(texts):
        return "empty"
    return "length" if any(len(text) > MAX_TEXT for text in texts) else ""


def _pair_problem(record: lib.Record, topics: dict[str, Topic], policy: Policy) -> str:
    positive, toxic = record.positive.strip(), record.toxic.strip()
    if SealedText(toxic).is_description:  # written without its text
        return "masked"
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
