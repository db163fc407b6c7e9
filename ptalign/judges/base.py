"""Judges give numbers to replies; a judge that cannot score says None, never a guess."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from ptalign.nouns import Annotation


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


@runtime_checkable
class Learner(Protocol):
    """A judge that was trained on annotations, or on sentences that may stand in them."""

    annotations: tuple[Annotation, ...]

    def cross_fitted(self) -> list[tuple[float | None, float | None]]:
        """Scores of the good and the bad answer per annotation, by heads that never saw it."""


@runtime_checkable
class Remote(Protocol):
    """A judge behind a network: each text costs a request, and what fails is counted."""

    def uncounted(self) -> AbstractContextManager[None]:
        """A block whose texts are no replies of a target: its failures are not counted."""
