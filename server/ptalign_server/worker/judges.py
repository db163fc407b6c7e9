"""The judges of each stage: those that make data never grade the result."""

from __future__ import annotations

from collections.abc import Sequence

from ptalign import judges
from ptalign.judges.base import Judge
from ptalign.judges.refusal import RefusalJudge
from ptalign.nouns import Annotation


def pair_judges(annotations: Sequence[Annotation]) -> tuple[Judge, ...]:
    """Judges that filter pairs; those that learn see the annotations."""
    return judges.generation_judges(annotations)


def evaluation_judges(names: Sequence[str]) -> tuple[Judge, ...]:
    """Judges that grade replies: the named ones, and always one that tells refusals."""
    harm = tuple(judges.judge(name) for name in names or judges.EVALUATION_JUDGES)
    return (*harm, RefusalJudge()) if all(j.axis != "refusal" for j in harm) else harm
