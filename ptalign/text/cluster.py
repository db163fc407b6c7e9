"""Groups of similar texts, one representative each."""

from __future__ import annotations

from collections.abc import Sequence

from ptalign.text.embed import Embedder, Vectors


def representatives(
    texts: Sequence[str], embed: Embedder, min_similarity: float = 0.6
) -> list[int]:
    """Positions of one text per cluster, largest clusters first.

    Greedy covering: the text with the most neighbours (cosine >= min_similarity) that are not
    yet covered stands for them; repeated until all are covered. Deterministic, O(n^2).
    """
    if not texts:
        return []
    vectors: Vectors = embed(texts)
    near = vectors @ vectors.T >= min_similarity  # [n, n]
    open_ = near.diagonal() | True
    chosen: list[int] = []
    while open_.any():
        gain = (near & open_[None, :]).sum(axis=1)
        gain[~open_] = 0
        best = int(gain.argmax())
        chosen.append(best)
        open_ &= ~near[best]
        open_[best] = False
    return chosen
