"""Which samples a step sees: a pure function of the seed and the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ptalign.training.texts import Sample


@dataclass(frozen=True, slots=True)
class Pools:
    """Everything a run trains on. A group holds the samples of one pair."""

    pairs: Sequence[tuple[Sample, ...]]
    """(positive, toxic) of polarised pairs."""
    positives: Sequence[tuple[Sample, ...]] = ()
    """(positive,) of positive-only pairs."""
    twins: Sequence[tuple[Sample, ...]] = ()
    anchors: Sequence[tuple[Sample, ...]] = ()
    held_out: Sequence[Sample] = ()
    """Never trained on."""
    left_out: int = 0
    """Samples longer than the limit."""
    reference: Mapping[str, float] = field(default_factory=dict)
    """Sample ``part/key`` -> log p of its answer under the bare model (dpo and npo)."""


@dataclass(frozen=True, slots=True)
class Sampler:
    """Epochs of shuffled groups per pool, so that every step has a share of each.

    The state is the step number alone: a resumed run draws what it would have drawn.
    """

    pools: Pools
    pairs: int
    twins: int
    anchors: int
    seed: int

    def step(self, number: int) -> list[tuple[Sample, ...]]:
        """Groups of step `number`, counted from 0."""
        both, single = self._shares()
        return [
            *self._draw(self.pools.pairs, both, number, "pairs"),
            *self._draw(self.pools.positives, single, number, "positives"),
            *self._draw(self.pools.twins, self.twins, number, "twins"),
            *self._draw(self.pools.anchors, self.anchors, number, "anchors"),
        ]

    def _shares(self) -> tuple[int, int]:
        """Pairs and positive-only pairs per step, in the set's proportion, none left out."""
        both, single = len(self.pools.pairs), len(self.pools.positives)
        if not single or not both:
            return (self.pairs, 0) if both else (0, self.pairs)
        share = round(self.pairs * single / (both + single))
        share = min(max(share, 1), max(self.pairs - 1, 1))
        return max(self.pairs - share, 1), share

    def _draw(
        self, pool: Sequence[tuple[Sample, ...]], count: int, number: int, name: str
    ) -> list[tuple[Sample, ...]]:
        if not pool:
            return []
        count = min(count, len(pool))
        places = range(number * count, (number + 1) * count)
        return [pool[self._order(name, p // len(pool), len(pool))[p % len(pool)]] for p in places]

    def _order(self, name: str, epoch: int, size: int) -> np.ndarray:
        key = [self.seed, epoch, *name.encode()]
        return np.random.default_rng(key).permutation(size)
