"""The numbers an instruction set carries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ptalign.nouns import Instruction
from ptalign.text.diversity import distinct_n, nearest_distances, normalised_entropy, vendi_score
from ptalign.text.embed import Embedder


def set_stats(
    records: Sequence[Instruction], topics: Sequence[str], embed: Embedder
) -> dict[str, float]:
    """Spread and variety of the harmful instructions, and how close the twins are.

    Returns:
        ``entropy`` (over the topics asked for, 1 = even), ``distinct_2``, ``vendi`` (effective
        number of different texts), ``nn_distance_p10`` and ``_p50`` (cosine distance to the
        nearest other instruction), ``twin_similarity`` (mean cosine with the twin) and
        ``twin_share`` (instructions that have one).
    """
    harmful = [r for r in records if r.side == "harmful"]
    if not harmful:
        return {"twin_share": 0.0}
    texts = [r.text for r in harmful]
    vectors = embed(texts)
    nearest = nearest_distances(vectors)
    place = {r.id: i for i, r in enumerate(harmful)}
    twins = [r for r in records if r.side == "twin" and r.twin_of in place]
    stats = {
        "entropy": normalised_entropy((r.topic for r in harmful), len(topics)),
        "distinct_2": distinct_n(texts, 2, harmful[0].locale),
        "vendi": vendi_score(vectors),
        "nn_distance_p10": float(np.quantile(nearest, 0.1)),
        "nn_distance_p50": float(np.quantile(nearest, 0.5)),
        "twin_share": len(twins) / len(harmful),
    }
    if twins:
        others = vectors[[place[r.twin_of] for r in twins]]
        stats["twin_similarity"] = float((embed([r.text for r in twins]) * others).sum(1).mean())
    return stats
