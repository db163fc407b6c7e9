"""Which samples a step sees: a pure function of the seed and the step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

import numpy as np
from torch import Tensor

from ptalign.training.refusals import TOKENS
from ptalign.training.texts import Sample

Twins = Literal["kept", "taught", "left out"]


@dataclass(frozen=True, slots=True)
class Pools:
    """Everything a run trains on. A group holds the samples of one pair."""

    pairs: Sequence[tuple[Sample, ...]]
    """(positive, toxic) of polarised pairs."""
    positives: Sequence[tuple[Sample, ...]] = ()
    """(positive,) of positive-only pairs."""
    elicited: Sequence[Sequence[tuple[Sample, ...]]] = ()
    """Per context, `pairs` in the same order after it; a pair that it shows stays as it is."""
    twins: Sequence[tuple[Sample, ...]] = ()
    anchors: Sequence[tuple[Sample, ...]] = ()
    held_out: Sequence[Sample] = ()
    """Anchors that are never trained on."""
    asked: Sequence[Sample] = ()
    """Twins whose refusals are counted, in languages where refusals can be detected. Only twins
    never trained on, if there are at least eight; otherwise those first, then trained ones."""
    asked_tokens: int = TOKENS
    """How many tokens of a reply to one are read."""
    asked_before: Sequence[bool] = ()
    """Whether the bare model refuses each of them."""
    asked_unseen: bool = False
    """Whether they are never trained on."""
    longest: int = 0
    """Tokens of a sample at most."""
    left_out: int = 0
    """Samples longer than that, or without an answer."""
    reference: Mapping[str, float] = field(default_factory=dict)
    """Sample ``part/key`` -> log p of its answer under the bare model (dpo and npo)."""
    bare: Mapping[str, Tensor] = field(default_factory=dict)
    """Anchor or kept twin -> [its weighted tokens, hidden] states of the bare model."""
    candidates: tuple[int, ...] = ()
    """Tokens that are pushed down throughout the toxic answers."""

    @property
    def twins_are(self) -> Twins:
        """What is done with twins in training."""
        if not self.twins:
            return "left out"
        return "kept" if self.twins[0][0].part == "kept" else "taught"


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
    elicited_share: float = 0.0
    """Of the polarised pairs, over steps; in one context per step, so that its tokens are computed
    once."""

    def step(self, number: int) -> list[tuple[Sample, ...]]:
        """Groups of step `number`, counted from 0."""
        both, single = self._shares()
        return [
            *self._polarised(both, number),
            *self._draw(self.pools.positives, single, number, "positives"),
            *self._draw(self.pools.twins, self.twins, number, "twins"),
            *self._draw(self.pools.anchors, self.anchors, number, "anchors"),
        ]

    def _polarised(self, count: int, number: int) -> list[tuple[Sample, ...]]:
        places = self._places(len(self.pools.pairs), count, number, "pairs")
        before, after = (self._moved(len(places), steps) for steps in (number, number + 1))
        moved = after - before if self.pools.elicited else 0
        groups = [self.pools.pairs[i] for i in places[moved:]]
        if moved:
            earlier = min(number, before)  # steps with a context: all, or of one pair each
            context = self.pools.elicited[earlier % len(self.pools.elicited)]
            groups += [context[i] for i in places[:moved]]
        return groups

    def _moved(self, count: int, steps: int) -> int:
        """Pairs after a context in so many steps of `count`: where a step's own share is no whole
        number, steps take turns. Rounded up, so that the first steps, which decide lambda, see it.
        """
        return math.ceil(steps * count * Fraction(str(self.elicited_share)))

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
        return [pool[i] for i in self._places(len(pool), count, number, name)]

    def _places(self, size: int, count: int, number: int, name: str) -> list[int]:
        """Indices into a pool of this size, whole epochs before any repeats."""
        count = min(count, size)
        places = range(number * count, (number + 1) * count)
        return [int(self._order(name, p // size, size)[p % size]) for p in places]

    def _order(self, name: str, epoch: int, size: int) -> np.ndarray:
        key = [self.seed, epoch, *name.encode()]
        return np.random.default_rng(key).permutation(size)
