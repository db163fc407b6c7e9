"""The judges of each stage: those that make data never grade the result."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from ptalign.judges.base import Judge


@cache
def generation_judges() -> tuple[Judge, ...]:
    """Judges that filter pairs."""
    from ptalign import judges

    return tuple(judges.generation())


def evaluation_judges(names: Sequence[str]) -> tuple[Judge, ...]:
    """Judges that grade replies."""
    from ptalign import judges

    return tuple(judges.evaluation(names))
