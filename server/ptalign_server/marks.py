"""A person's marks: one as a noun, what it is counted by, and which are refused."""

from __future__ import annotations

from collections.abc import Sequence

from ptalign.errors import InvalidInput
from ptalign.nouns import Annotation, Policy, record_id
from ptalign.policies.never import blocked
from ptalign.sealed import SealedText
from ptalign.text.normalise import caseless
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_server.errors import refuse


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
    refuse(problems)


def _texts_of(record: Annotation) -> list[tuple[str, str]]:
    bad = record.bad.reveal() if record.bad is not None else ""
    return [("instruction", record.instruction), ("good", record.good), ("bad", bad)]
