"""What runs now and how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from bench.study.plan import Unit
from ptalign.progress import Progress

EVERY_SECONDS = 30.0
PRIOR_MINUTES = 2.0
"""What the plan's own pace counts for: a first unit of a second must not promise a minute."""


class Clock:
    """Minutes that remain: the plan's own, scaled by how fast the finished ones went.

    Args:
        say: Prints a line.
        now: Seconds; for tests.
    """

    def __init__(self, say: Callable[[str], None], now: Callable[[], float] = time.monotonic):
        self._say, self._now = say, now
        self._left: dict[str, float] = {}
        self._expected = self._taken = 0.0
        self._begun = self._told = 0.0
        self._unit = ""

    def plan(self, units: Iterable[Unit], finished: set[str]) -> None:
        """Takes what is still to do."""
        self._left = {u.name: u.minutes for u in units if u.name not in finished}
        self._say(f"{len(self._left)} units to do, {len(finished)} done; {self.remaining()}")

    def begin(self, unit: Unit) -> None:
        """Says what runs now."""
        self._unit, self._begun = unit.name, self._now()
        self._told = self._begun
        self._say(f"{unit.name} ({len(self._left)} left; {self.remaining()})")

    def progress(self, at: Progress) -> None:
        """A line every half minute."""
        if self._now() - self._told < EVERY_SECONDS:
            return
        self._told = self._now()
        of = f" {at.done} of {at.total}" if at.total else f" {at.done}"
        self._say(f"  {self._unit}: {at.phase}{of}; {self.remaining()}")

    def end(self, unit: Unit) -> None:
        """Learns from a finished unit."""
        took = (self._now() - self._begun) / 60
        self._expected += unit.minutes
        self._taken += took
        self._left.pop(unit.name, None)
        self._unit = ""
        self._say(f"  {unit.name}: {60 * took:.0f} s")

    def skip(self, unit: Unit) -> None:
        """Forgets a unit that failed."""
        self._left.pop(unit.name, None)
        self._unit = ""

    def remaining(self) -> str:
        """``about 12 min remain``."""
        return f"about {self.minutes():.0f} min remain"

    def minutes(self) -> float:
        """Expected minutes of all that is left, at the speed seen so far."""
        pace = (self._taken + PRIOR_MINUTES) / (self._expected + PRIOR_MINUTES)
        running = (self._now() - self._begun) / 60 if self._unit else 0.0
        current = self._left.get(self._unit, 0.0) * pace
        others = sum(m for name, m in self._left.items() if name != self._unit) * pace
        return others + max(current - running, 0.1 * current)
