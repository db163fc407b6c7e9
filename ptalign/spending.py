"""What the drafts of a stage cost, over all attempts that share a log.

A stage that is killed begins anew in memory. What it had accepted is in its log of records; what
it had turned down, and the tokens and seconds of both, would be lost, and a set that took three
attempts would look as if the last one had made it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from ptalign.engines.base import Completion
from ptalign.nouns import Spent
from ptalign.records import RecordLog

EVERY = 32
"""Completions after which the cost so far is logged, and so what a kill loses of it at most: one
small write beside those of the records that such a batch gives."""

REJECTED = "rejected."
"""Before the reason, in `Spent.counts` as in `Progress.counts`."""


def spent_so_far(log: RecordLog[Spent]) -> Spent:
    """The newest entry, which holds those before it."""
    newest = Spent(id="0", counts={}, seconds=0.0)
    for entry in log.read():
        newest = entry
    return newest


class Spending:
    """Books the cost of drafts and goes on from what earlier attempts booked.

    What an attempt leaves out without a draft, such as an instruction that is given up, is not
    kept: the next attempt decides it anew.

    Args:
        log: Where the cost is kept.
    """

    def __init__(self, log: RecordLog[Spent]) -> None:
        self._log = log
        before = spent_so_far(log)
        self.earlier = before.counts
        """What earlier attempts had counted; empty where none got an answer."""
        self.counts = Counter(before.counts)
        self._left_out: Counter[str] = Counter()
        self._turned_down = sum(rejections(before.counts).values())
        self._entries = int(before.id)
        self._due = 0
        self._began = time.monotonic() - before.seconds

    @property
    def seconds(self) -> float:
        """Spent at work, not between attempts."""
        return time.monotonic() - self._began

    @property
    def rejected(self) -> dict[str, int]:
        """By reason: what was turned down, and what was left out by this attempt."""
        return dict(Counter(rejections(self.counts)) + self._left_out)

    @property
    def at_a_tenth(self) -> bool:
        """Whether ten more were turned down or left out: time to tell."""
        return self._turned_down % 10 == 0

    @property
    def told(self) -> dict[str, int]:
        """What `Progress.counts` says of it."""
        rejected = {f"{REJECTED}{reason}": n for reason, n in self.rejected.items()}
        return rejected | {name: self.counts[name] for name in ("tokens_generated", "written")}

    def back(self, completion: Completion) -> None:
        """A completion came back; what became of it is counted before the next one comes."""
        if self._due >= EVERY:
            self._save()
        self._due += 1
        self.counts["tokens_generated"] += completion.completion_tokens

    def reject(self, reason: str) -> None:
        """A draft, or a seed before them, was turned down."""
        self.counts[f"{REJECTED}{reason}"] += 1
        self._turned_down += 1

    def leave_out(self, reason: str) -> None:
        """Something was left out, as far as this attempt goes."""
        self._left_out[reason] += 1
        self._turned_down += 1

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Logs what the block spent, however it ends."""
        try:
            yield
        except BaseException:
            with suppress(OSError):  # a full disk: why the block ended says more
                self._save()
            raise
        self._save()

    def _save(self) -> None:
        if not self._due:
            return
        entry = Spent(id=str(self._entries + 1), counts=dict(self.counts), seconds=self.seconds)
        self._log.append(entry)
        self._entries, self._due = self._entries + 1, 0


def rejections(counts: Mapping[str, int]) -> dict[str, int]:
    """What was turned down, by reason."""
    return {k.removeprefix(REJECTED): n for k, n in counts.items() if k.startswith(REJECTED)}
