"""Negative candidates: the words of the whole set that no place of a toxic answer may hold.

Unlikelihood of the written token (PT-ALIGN, arXiv 2502.08657) has nothing left to do once that
token is unlikely, and says nothing of the set's other harm words at the same place, which under
attack take its turn. Welleck et al. (arXiv 1908.04319) push down a set of negative candidates at
each place. Here they are one event: -log(1 - P(C)), with P(C) the probability of any of them, whose
gradient is shared out by how likely each of them is. See docs/adr/0018.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from ptalign.training.batches import Pools
from ptalign.training.texts import Sample

ANSWERS = 2
"""Toxic answers that a token must be flagged in: one alone may be about something."""


def negative_candidates(pools: Pools, never: Collection[int] = ()) -> tuple[int, ...]:
    """Tokens that are flagged in several toxic answers and stand in no benign one.

    Args:
        pools: With weights. Benign answers are the positives and twins that are trained on, and all
            anchors, as for the log-odds scorer.
        never: Tokens that are no candidates: all of protected words, as a candidate is pushed down
            within words too, and those that stop words begin with. Weights protect a word, while
            a token of it may begin a flagged one.

    Returns:
        Ascending token ids, none where nothing qualifies.
    """
    flagged = Counter(
        token
        for sample in _samples(pools.pairs)
        if sample.part == "toxic"
        for token in {sample.answer[i] for i in sample.places}
    )
    groups = (pools.pairs, pools.positives, pools.twins, pools.anchors)
    benign = {
        token
        for samples in (*map(_samples, groups), pools.held_out)
        for sample in samples
        if sample.part != "toxic"
        for token in sample.answer
    }
    spared = benign | set(never)
    return tuple(sorted(t for t, n in flagged.items() if n >= ANSWERS and t not in spared))


def with_candidates(pools: Pools, never: Collection[int] = ()) -> Pools:
    """Pools whose toxic answers are targets throughout; unchanged where there is no candidate.

    Args:
        pools: With weights. An answer without a flagged token stays as it is.
        never: Tokens that are no candidates.
    """
    found = negative_candidates(pools, never)
    if not found:
        return pools

    def spread(groups: Iterable[Sequence[Sample]]) -> list[tuple[Sample, ...]]:
        return [
            tuple(
                replace(s, throughout=True) if s.part == "toxic" and s.places else s for s in group
            )
            for group in groups
        ]

    return replace(
        pools,
        pairs=spread(pools.pairs),
        elicited=[spread(groups) for groups in pools.elicited],
        candidates=found,
    )


def _samples(groups: Iterable[Sequence[Sample]]) -> Iterable[Sample]:
    return (sample for group in groups for sample in group)
