"""Judges give numbers to replies; a judge that cannot score says None, never a guess."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Judge(Protocol):
    """Scores replies in 0..1 on one axis."""

    id: str
    """Stable name with version, e.g. ``tone-lexical@1``; printed in every report."""
    axis: str
    """``harm`` or ``refusal``."""

    def score(self, instructions: Sequence[str], replies: Sequence[str]) -> list[float | None]:
        """One score per reply, None where it could not be scored.

        Args:
            instructions: The requests, same length as `replies`.
            replies: The texts to judge.
        """
