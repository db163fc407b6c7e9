"""The judges of each stage: those that make data never grade the result."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ptalign import judges
from ptalign.judges.base import Judge
from ptalign.judges.refusal import RefusalJudge
from ptalign.nouns import Annotation

log = logging.getLogger("ptalign.worker")


def load_judges() -> None:
    """Loads what the default judges and the embedder need, while the first engine starts.

    They share the embedder and the modules; a stage that meets them cold waits about 6 s with an
    idle engine.
    """
    try:
        for made in pair_judges(()):
            made.score([""], ["Thank you for asking."])
    except Exception:  # a stage that needs them says so to whoever waits for it
        log.warning("the default judges could not be loaded ahead", exc_info=True)


def pair_judges(annotations: Sequence[Annotation]) -> tuple[Judge, ...]:
    """Judges that filter pairs; those that learn see the annotations."""
    return judges.generation_judges(annotations)


def evaluation_judges(names: Sequence[str]) -> tuple[Judge, ...]:
    """Judges that grade replies: the named ones, and always one that tells refusals."""
    harm = tuple(judges.judge(name) for name in names or judges.EVALUATION_JUDGES)
    return (*harm, RefusalJudge()) if all(j.axis != "refusal" for j in harm) else harm
