"""The coverage grid: which topic and tactic the next draft is for.

A cell is a topic asked about with a tactic in a locale. The locale is the run's own, since a policy
is written in one: several locales are several runs, whose pair sets are merged.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ptalign.errors import InvalidInput
from ptalign.nouns import Policy, Tactic, Topic

PLAIN = Tactic(id="plain", openers=("",))
"""A request that starts as the model likes: used where a policy names no tactic."""

FAILED_WEIGHT = 0.5
"""What a draft that was not accepted counts for its cell, so that a tactic which yields nothing
does not take all drafts of a topic."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One topic asked about in one way."""

    topic: Topic
    tactic: Tactic
    opener: str


class Grid:
    """Quotas over topic x tactic, and the neediest cell.

    Each topic is owed the same number of instructions, and in a topic each tactic: the one with the
    fewest accepted, and in flight, comes first. A topic whose drafts keep failing is given up after
    `max_drafts` per owed instruction, so that one bad topic cannot hold up a set.

    A set that is extended has some already: topics with fewer come first. Each may get its even
    part of what is added all the same, or the set would wait for topics that never yield.

    Args:
        policy: Topics and tactics.
        count: Instructions wanted, beside those given.
        topics: Topic ids to use; all when empty.
        max_drafts: Drafts per owed instruction before a topic is given up.
        seed: Order of ties and of openers.
        given: Instructions by topic id that are there already; `accept` books them like others.

    Raises:
        InvalidInput: An unknown topic id.
    """

    def __init__(
        self,
        policy: Policy,
        count: int,
        *,
        topics: Sequence[str],
        max_drafts: float,
        seed: int,
        given: Mapping[str, int] | None = None,
    ) -> None:
        known = {t.id: t for t in policy.topics}
        for i, topic in enumerate(topics):
            if topic not in known:
                raise InvalidInput(
                    f"topics[{i}]", f"topics of {policy.name}: {', '.join(known)}", "Use these."
                )
        self.topics = [known[t] for t in topics] if topics else list(policy.topics)
        self._given = Counter({t.id: (given or {}).get(t.id, 0) for t in self.topics})
        self._added = max(1, math.ceil(count / len(self.topics)))
        self.quota = max(1, math.ceil((count + self._given.total()) / len(self.topics)))
        self._limit = max(8, round(max_drafts * self._added))
        self._tactics = {
            sides: [t for t in policy.tactics if t.sides == sides] or [PLAIN]
            for sides in ("both", "positive_only")
        }
        self._random = random.Random(seed)
        self._order = {t.id: self._random.random() for t in self.topics}
        self.accepted: Counter[str] = Counter()
        self._cells: Counter[tuple[str, str]] = Counter()
        self._tried: Counter[tuple[str, str]] = Counter()
        self._flying: Counter[tuple[str, str]] = Counter()
        self._drafts: Counter[str] = Counter()
        self._open: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()

    def next(self) -> Cell | None:
        """The neediest cell, counted as a draft in flight; None when every topic is done."""
        able = [t for t in self.topics if not self.full(t.id) and self._drafts[t.id] < self._limit]
        if not able:
            return None
        topic = min(able, key=lambda t: (self._need(t.id), self._order[t.id]))
        tactics = self._tactics[topic.sides]
        tactic = min(
            tactics, key=lambda t: (self._cell_need(topic.id, t.id), self._random.random())
        )
        self._tried[topic.id, tactic.id] += 1
        self._flying[topic.id, tactic.id] += 1
        self._drafts[topic.id] += 1
        self._open[topic.id] += 1
        return Cell(topic, tactic, self._random.choice(tactic.openers))

    def back(self, cell: Cell, *, failed: bool = False) -> None:
        """A draft for this cell came back, whatever became of it.

        Args:
            failed: The engine gave none. Others come first then: a prompt that the engine pool has
                set aside would fail at once, over and over.
        """
        self._open[cell.topic.id] -= 1
        self._flying[cell.topic.id, cell.tactic.id] -= 1
        self._failed[cell.topic.id] += failed

    def full(self, topic_id: str) -> bool:
        """Whether a topic has a quarter more than it is owed, at least one."""
        owed = max(self.quota, self._given[topic_id] + self._added)
        return self.accepted[topic_id] >= owed + max(1, self._added // 4)

    def accept(self, topic_id: str, tactic_id: str) -> bool:
        """Books an instruction under a topic and a tactic; False when the topic is full."""
        if self.full(topic_id):
            return False
        self.accepted[topic_id] += 1
        self._cells[topic_id, tactic_id] += 1
        return True

    @property
    def cells(self) -> frozenset[tuple[str, str]]:
        """Topic and tactic ids of all cells."""
        return frozenset((t.id, way.id) for t in self.topics for way in self._tactics[t.sides])

    @property
    def cell_coverage(self) -> float:
        """Share of the cells owed with at least half of an even part of their topic's quota.

        A topic that is owed fewer instructions than it has tactics is owed that many cells.
        """
        met = owed = 0
        for topic in self.topics:
            tactics = self._tactics[topic.sides]
            each, due = max(1, self.quota // len(tactics)), min(self.quota, len(tactics))
            met += min(due, sum(self._cells[topic.id, t.id] * 2 >= each for t in tactics))
            owed += due
        return met / owed

    def _cell_need(self, topic_id: str, tactic_id: str) -> float:
        """Accepted instructions of a cell and drafts in flight, failed ones counted in part."""
        cell = topic_id, tactic_id
        failed = max(0, self._tried[cell] - self._flying[cell] - self._cells[cell])
        return self._cells[cell] + self._flying[cell] + FAILED_WEIGHT * failed

    def _need(self, topic_id: str) -> float:
        """Accepted and expected instructions; a draft in flight counts by the topic's yield."""
        finished = self._drafts[topic_id] - self._open[topic_id]
        share = (self.accepted[topic_id] + 1) / (finished + 2)
        settled = self.accepted[topic_id] + self._failed[topic_id]
        return settled + self._open[topic_id] * min(1.0, max(share, 0.25))
