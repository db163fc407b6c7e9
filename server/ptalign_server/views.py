"""Records as messages and as rows of training files, in clear or masked."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from ptalign.sealed import SealedText
from ptalign_proto.v1 import library_pb2 as lib

Body = Mapping[str, Any]
Item = tuple[str, Body]
"""Field of the noun (``records``, ``pairs``, ``anchors``) and the record's content."""

TOXIC = "toxic"
SUPPRESSED = ("count", "p_before", "p_after", "neutral_before", "neutral_after")
GROUP = 5_000
"""Rows of a Parquet row group: all that an export holds in memory."""


def record(collection: str, item: Item, *, full: bool) -> lib.Record:
    """One record of a set; without `full`, harmful text shows only its length and hash."""
    field, body = item
    made = _MAKERS[collection, field](body)
    if not full:
        for name in _harmful_fields(made):
            text = getattr(made, name)
            if text:
                setattr(made, name, repr(SealedText(text)))
                made.masked.append(name)
    return made


def _harmful_fields(made: lib.Record) -> tuple[str, ...]:
    """Toxic answers, and instructions that are not benign."""
    benign = made.kind in {"twin", "anchor"}
    return (TOXIC,) if benign else ("instruction", TOXIC)


def _instruction(body: Body) -> lib.Record:
    return lib.Record(
        id=body["id"],
        kind="twin" if body["side"] == "twin" else "instruction",
        topic=body["topic"],
        domain=body["domain"],
        instruction=body["text"],
        twin_of=body["twin_of"],
        source=body["source"],
        locale=body["locale"],
    )


def _pair(body: Body) -> lib.Record:
    return lib.Record(
        id=body["id"],
        kind="twin" if body["kind"] == "twin" else "pair",
        topic=body["topic"],
        domain=body["domain"],
        instruction=body["instruction"],
        positive=body["positive"],
        toxic=body["toxic"] or "",
        round=body["round"],
        polarity=body["polarity"],
        locale=body["locale"],
        held_out=body.get("held_out", False),
    )


def _anchor(body: Body) -> lib.Record:
    return lib.Record(
        id=body["id"],
        kind="anchor",
        instruction=body["instruction"],
        positive=body["answer"],
        held_out=body.get("held_out", False),
        truncated=not body.get("ended", True),
    )


def _annotation(body: Body) -> lib.Record:
    return lib.Record(
        kind="annotation",
        topic=body["topic"],
        instruction=body["instruction"],
        positive=body["good"],
        toxic=body["bad"] or "",
    )


def _suppressed(body: Body) -> lib.Record:
    measures = {name: body.get(name) for name in SUPPRESSED}
    return lib.Record(
        kind="suppressed",
        topic=body["topic"],
        toxic=body["token"],
        measures={name: value for name, value in measures.items() if value is not None},
    )


def _collateral(body: Body) -> lib.Record:
    measures = {"change": body["change"]}
    return lib.Record(kind="collateral", toxic=body["word"], measures=measures)


_MAKERS = {
    ("instructionSets", "records"): _instruction,
    ("annotationSets", "records"): _annotation,
    ("pairSets", "pairs"): _pair,
    ("pairSets", "anchors"): _anchor,
    ("adapters", "suppressed"): _suppressed,
    ("adapters", "collateral"): _collateral,
}


def rows(collection: str, layout: str, items: Iterable[Item]) -> Iterator[dict[str, Any]]:
    """Rows that TRL reads.

    Args:
        layout: ``preference`` (prompt, chosen, rejected; pairs with both sides),
            ``conversational`` (prompt, completion; positives, twins and anchors), or ``export``:
            preference for pair sets, prompts alone for instruction sets.

    Rows of pair sets say which are held out, so that a training elsewhere can leave them out too.
    """
    for item in items:
        made = record(collection, item, full=True)
        prompt = [{"role": "user", "content": made.instruction}]
        extra: dict[str, Any] = {"id": made.id, "kind": made.kind, "topic": made.topic}
        if collection == "instructionSets":
            yield {"prompt": prompt, **extra}
            continue
        extra["held_out"] = made.held_out
        if layout == "conversational":
            yield {"prompt": prompt, "completion": _turn(made.positive), **extra}
        elif made.toxic:
            chosen, rejected = _turn(made.positive), _turn(made.toxic)
            yield {"prompt": prompt, "chosen": chosen, "rejected": rejected, **extra}


def _turn(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def as_jsonl(values: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    """One JSON object a line, UTF-8."""
    for value in values:
        yield (json.dumps(value, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def as_parquet(values: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    """The same rows as a Parquet file, made one row group at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink, groups = Drain(), _groups(values)
    table = pa.Table.from_pylist(next(groups, []))
    with pq.ParquetWriter(sink, table.schema) as writer:
        writer.write_table(table)
        yield sink.drain()
        for group in groups:
            writer.write_table(pa.Table.from_pylist(group, schema=table.schema))
            yield sink.drain()
    yield sink.drain()


def _groups(values: Iterable[Mapping[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    rest = iter(values)
    while group := [dict(value) for value in islice(rest, GROUP)]:
        yield group


class Drain(io.RawIOBase):
    """A file to write to whose bytes are taken away as they come."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._gone = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._held += data
        return len(data)

    def tell(self) -> int:
        return self._gone + len(self._held)

    def drain(self) -> bytes:
        """What was written since the last call."""
        taken = bytes(self._held)
        self._held.clear()
        self._gone += len(taken)
        return taken
