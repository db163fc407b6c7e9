"""Whose turn it is on a device that serves one model at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

Key = tuple[str, str]
"""Name of a model and digest of its weights."""


@dataclass(eq=False, frozen=True, slots=True)
class Place:
    """One job's place in the line."""

    key: Key
    since: float
    """When it was taken, seconds."""
    turn: float
    """The same on the clock of turns, which stands still while the device is lent."""


class Turns:
    """The line before the device: who waits longest is next.

    Jobs of the model that has the device do not stand in line, since starting another engine costs
    minutes; else two models that both have work would change places with every job. But a model
    whose jobs keep coming would never leave: its turn is over `seconds` after it got the device, or
    after the first other one began to wait if that was later, those aside in which a training had
    it: nobody's jobs could run. Jobs that run then finish, those that come then stand in line.

    So a job waits for the models before it, each at most `seconds` and what its jobs still need,
    and for trainings.
    Not for use by several threads at once, but for `waited`.

    Args:
        seconds: What a turn may last while others wait.
        clock: Tells the time in seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._line: list[Place] = []
        self._lent_at: float | None = None
        self._lent = 0.0
        """Seconds for which the device was lent, the present loan aside."""
        self._begun = self._turn

    def begin(self) -> None:
        """A model gets the device."""
        self._begun = self._turn

    def lend(self) -> None:
        """A training gets the device: from here on the turn does not pass."""
        self._lent_at = self._clock()

    def take_back(self) -> None:
        """The training is over, and the turn goes on where it was.

        From its beginning, a model whose evaluations each probe, a training to the device, would
        never leave.
        """
        if self._lent_at is not None:
            self._lent += self._clock() - self._lent_at
            self._lent_at = None

    def join(self, key: Key) -> Place:
        """A job's place, behind all others."""
        place = Place(key, self._clock(), self._turn)
        self._line.append(place)
        return place

    def leave(self, place: Place) -> None:
        """The job has its engine, or waits no longer."""
        self._line.remove(place)

    @property
    def first(self) -> Key | None:
        """Who gets the device once nobody uses it; None where nobody waits."""
        return self._line[0].key if self._line else None

    def over(self, holder: Key) -> Key | None:
        """For whom the holder's new jobs must stand back; None while its turn lasts."""
        others = (place for place in self._line if place.key != holder)
        longest = next(others, None)
        if longest is None or self._turn < max(longest.turn, self._begun) + self._seconds:
            return None
        return longest.key

    @property
    def waited(self) -> float:
        """Seconds that the first in line has waited; 0 where nobody does."""
        first = self._line[:1]
        return self._clock() - first[0].since if first else 0.0

    @property
    def _turn(self) -> float:
        """Seconds on the clock of turns."""
        return (self._clock() if self._lent_at is None else self._lent_at) - self._lent
