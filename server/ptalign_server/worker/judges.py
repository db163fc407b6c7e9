"""The judges of each stage: those that make data never grade the result."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace

from ptalign import judges
from ptalign.judges.base import Judge
from ptalign.judges.guard import GuardJudge
from ptalign.nouns import Annotation, Reply, record_id
from ptalign.progress import OnProgress, Progress
from ptalign.records import RecordLog
from ptalign_server.catalogue import Catalogue

log = logging.getLogger("ptalign.worker")
CHECKS = "checks"
"""Score of a reply by verifiable instructions, which no judge gave."""


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


@contextmanager
def evaluation_judges(
    names: Sequence[str], catalogue: Catalogue, should_stop: Callable[[], bool]
) -> Iterator[tuple[Judge, ...]]:
    """Judges that grade replies: the named ones, and the default one of an axis without any.

    Guard models are asked until `should_stop` says True; their connections are closed at the end
    of the block.

    Raises:
        PtalignError: A judge is no longer known, or its entry cannot be used any more.
    """
    catalogue.check_judges(names)
    with ExitStack() as stack:
        made: list[Judge] = []
        for name in names:
            entry = catalogue.own_judge(name)
            if entry is None:
                made.append(judges.judge(name))
            else:
                guard = entry.judge(should_stop=should_stop)
                made.append(stack.enter_context(closing(guard)))
        yield judges.with_defaults(made)


class Counting:
    """Progress whose counts say which guard model left how many replies unscored.

    Args:
        on_progress: Told what the stage tells, with those counts.
        judges: The evaluation's.
    """

    def __init__(self, on_progress: OnProgress, judges: Iterable[Judge]) -> None:
        self._on_progress = on_progress
        self._guards = [judge for judge in judges if isinstance(judge, GuardJudge)]

    def __call__(self, progress: Progress) -> None:
        silent = {
            f"unscored.{guard.id.partition('@')[0]}": guard.unscored.total()
            for guard in self._guards
            if guard.unscored
        }
        self._on_progress(replace(progress, counts={**progress.counts, **silent}))


class OfTheseJudges:
    """An evaluation's log without replies that another version of a judge has scored.

    An operator may change a judge while an evaluation waits for a restart: what was scored before
    is asked and scored again, so that all of it is by the judges that the report names. A log takes
    an id once, so ids stand in it with the judges behind them: ``ID@JUDGES``.

    Args:
        log: What the evaluation writes.
        judges: The evaluation's.
    """

    def __init__(self, log: RecordLog[Reply], judges: Iterable[Judge]) -> None:
        self._log = log
        self._ids = {judge.id for judge in judges} | {CHECKS}
        self._judges = record_id(*sorted(self._ids))

    def read(self) -> Iterator[Reply]:
        """Replies whose every score is by one of the judges."""
        for reply in self._log.read():
            name, _, judges = reply.id.partition("@")  # an earlier version wrote no judges
            if judges in ("", self._judges) and self._ids.issuperset(reply.scores):
                yield reply.model_copy(update={"id": name})

    def append(self, record: Reply) -> None:
        """Writes a reply."""
        self._log.append(record.model_copy(update={"id": f"{record.id}@{self._judges}"}))
