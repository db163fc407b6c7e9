"""What a stage says while it works."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Progress:
    """One progress report of a stage.

    A stage calls `on_progress` at least once per accepted record, training step or scored reply.
    The callee may raise `Cancelled`: the stage lets it through after closing what it opened.
    """

    phase: str
    """A few words a person understands, e.g. ``answering, round 2``."""

    done: int
    """Units finished in this phase."""

    total: int
    """Units expected in this phase; 0 when unknown."""

    counts: Mapping[str, int] = field(default_factory=dict)
    """Running totals: ``accepted``, ``rejected.<reason>``, ``unscored``, ``unscored.<judge>``,
    ``tokens_generated``. Of ``accepted``, ``written`` came of drafts, not of a parent, seeds or
    marks. They go on from those of stopped attempts that share the call's logs."""

    values: Mapping[str, float] = field(default_factory=dict)
    """Live measurements: ``loss_mle``, ``loss_ut``, ``ut_weight``, ``step_seconds``, ..."""

    earlier: Mapping[str, int] = field(default_factory=dict)
    """The part of `counts` that earlier attempts had already reached; subtract it when adding up
    attempts."""

    suite: str = ""
    """Of an evaluation: the suite whose reply was judged."""


OnProgress = Callable[[Progress], None]


def ignore(_: Progress) -> None:
    """The default `on_progress`."""
