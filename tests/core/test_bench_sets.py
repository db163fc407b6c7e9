"""The rivals of the near-duplicate filter decide what it decides, or the race means nothing."""

from __future__ import annotations

from bench.sets import by_index, by_matrix, instructions, one_by_one


def test_all_filters_keep_the_same_texts() -> None:
    """The matrix in blocks of 64, so that rivals lie in the same block and in earlier ones."""
    texts = instructions(400, seed=3)
    kept = by_index(texts)
    assert kept == one_by_one(texts) == by_matrix(texts, block=64)
    assert 300 < len(kept) < 400
