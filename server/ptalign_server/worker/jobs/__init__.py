"""One file per verb: load the inputs, call the stage, say what it made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ptalign_server.worker.job import Job, Made
from ptalign_server.worker.jobs import align, evaluate, generate, pairs


@dataclass(frozen=True, slots=True)
class Row:
    """How one verb's operations run."""

    validate: Callable[[Job], None]
    """Checks what needs reading; its errors are the operation's."""
    make: Callable[[Job], Made]
    partial: Callable[[Job], Made | None] | None = None
    """What a stopped run leaves; None where that is nothing."""
    queue: str = "generation"
    """Which operations it takes turns with. Evaluations have turns of their own: at their end they
    wait for a training to leave the device, and would keep those from the engine that need it."""


JOBS: Mapping[str, Row] = {
    "GenerateInstructions": Row(generate.validate, generate.make, generate.partial),
    "SynthesizePairs": Row(pairs.validate, pairs.make, pairs.partial),
    "Align": Row(align.validate, align.make, queue="training"),
    "Evaluate": Row(evaluate.validate, evaluate.make, queue="evaluation"),
}
