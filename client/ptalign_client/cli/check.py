"""What a loop file names outside itself, checked before its first stage starts.

A name that only the last stage uses would else fail after hours of the others.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence

from ptalign_client.cli.annotations import Marks, read_annotations
from ptalign_client.cli.loopfile import BARE, Loop, Reader, meaningless
from ptalign_client.errors import ConfigError, InvalidArgument
from ptalign_client.nouns import Catalogue, CatalogueEntry, Lora, Target
from ptalign_client.sync import Client

SHARES = 0.05, 0.25
"""Limits of the flagged share, 5 to 25 % of the tokens."""
MAX_MARKS = 49
"""Annotations the service takes per policy and model."""


def read_marks(loop: Loop, reader: Reader) -> Marks | None:
    """The marks of the loop's annotation file; None when it names none.

    Raises:
        LoopError: No such file, not an annotation file, or not 1..49 marks; names the line.
    """
    if not loop.annotations:
        return None
    file = reader.file.parent / loop.annotations
    try:
        marks = read_annotations(file)
    except ConfigError as error:
        hint = error.hint if file.exists() else "The path is relative to the loop file."
        raise reader.at("annotations", error.message, hint) from None
    held = len(marks.items)
    if not held:
        raise reader.at("annotations", f"{file} holds no marks", "Add one, or drop the field.")
    if held > MAX_MARKS:
        message = f"{file} holds {held} marks; at most {MAX_MARKS} are used per policy and model"
        raise reader.at("annotations", message, "Keep the most telling ones.")
    return marks


def check_trainings(loop: Loop, reader: Reader, begun: Container[str]) -> None:
    """Whether the adapters have names of their own, and weigh tokens only where they do.

    Args:
        begun: Stages of an earlier run. An adapter among them goes on: it was accepted before this
            was refused.

    Raises:
        LoopError: They have not, or do not; names the line.
    """
    for number, training in enumerate(loop.align):
        if f"align {training.name}" in begun:
            continue
        if training.name in ("", BARE):
            message = "is the bare model's name" if training.name else "is empty"
            raise reader.at(f"align[{number}].name", message, "Give the adapter another name.")
        share = training.flagged_share
        if training.method != "pt_align":
            if share is not None:
                raise meaningless(reader, f"align[{number}].flagged_share", training)
            if training.token_weighting != "blend":  # the default's name is taken with any
                raise meaningless(reader, f"align[{number}].token_weighting", training)
        elif share is not None and not SHARES[0] <= share <= SHARES[1]:
            message = f"must be {SHARES[0]}..{SHARES[1]}, not {share:g}"
            raise reader.at(f"align[{number}].flagged_share", message)


def check_names(loop: Loop, reader: Reader, catalogue: Catalogue) -> None:
    """Whether the server knows every name that the loop uses.

    Raises:
        LoopError: It does not; names the line and those that it knows.
    """
    for path, noun, name, entries in _named(loop, catalogue):
        known = [entry.name for entry in entries]
        # A judge's version may be left out.
        if name not in known and name not in [n.partition("@")[0] for n in known]:
            hint = f"Known: {', '.join(known) or 'none is set up yet'}."
            raise reader.at(path, f"no {noun} is named {name!r}", hint)


def check_calls(loop: Loop, reader: Reader, client: Client) -> None:
    """Whether the server will take the ranks, suites, judges and gate of the loop.

    They go in dry runs without what earlier stages make: the adapters to evaluate, and the pairs
    and held-out requests, which a server names where the rest is right.

    Raises:
        LoopError: It will not; names the line, the server's limit and the mend.
        ServiceError: A dry run was refused for something else.
    """
    first: dict[int | None, int] = {}
    for number, training in enumerate(loop.align):
        first.setdefault(training.rank, number)
    for rank, number in first.items():
        at = f"align[{number}]" if rank is None else f"align[{number}].rank"
        try:
            client.align(model=loop.model, pair_set="", lora=Lora(rank=rank or 0), dry_run=True)
        except InvalidArgument as error:
            for violation in error.violations:
                if violation.field == "lora.rank":
                    raise reader.at(at, violation.description) from None
    asked = loop.evaluate
    try:
        client.evaluate(
            target=Target(model=loop.model),
            samples=asked.samples or 0,
            suites=asked.suites,
            judges=asked.judges,
            gate=asked.gate or None,
            dry_run=True,
        )
    except InvalidArgument as error:
        for violation in error.violations:
            field = violation.field
            if field != "held_out":
                at = "model" if field == "target.model" else f"evaluate.{field}"
                raise reader.at(at, violation.description) from None


def _named(
    loop: Loop, catalogue: Catalogue
) -> Iterator[tuple[str, str, str, Sequence[CatalogueEntry]]]:
    """Path in the loop file, noun, name, and what it may be."""
    yield "model", "model", loop.model, catalogue.models
    yield "policy", "policy", loop.policy, catalogue.policies
    for i, name in enumerate(loop.evaluate.suites):
        yield f"evaluate.suites[{i}]", "suite", name, catalogue.suites
    for i, name in enumerate(loop.evaluate.judges):
        yield f"evaluate.judges[{i}]", "judge", name, catalogue.judges
    if loop.evaluate.gate:
        yield "evaluate.gate", "gate", loop.evaluate.gate, catalogue.gates
