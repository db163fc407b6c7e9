"""The numbers an instruction set carries."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence, Set

import numpy as np

from ptalign.nouns import Instruction
from ptalign.text.diversity import distinct_n, nearest_distances, normalised_entropy, vendi_score
from ptalign.text.embed import Embedder
from ptalign.text.locales import language
from ptalign.text.near import NearDuplicates

COVERAGE_FLOOR = 0.8
"""Share of the topics that a set should cover; one under it says so in its statistics."""

NOT_COMPUTED = "not_computed."
"""Before the name of a number that a set goes without."""

MAX_COMPARED = 500_000
"""Characters of text in which near-duplicates are looked for without a run: 1-3 s of work."""


def set_stats(
    records: Sequence[Instruction], topics: Sequence[str], embed: Embedder
) -> dict[str, float]:
    """Spread and variety of the harmful instructions, and how close the twins are.

    Returns:
        ``entropy`` (over `topics`, 1 = even), ``distinct_2``, ``vendi`` (effective number of
        different texts), ``nn_distance_p10`` and ``_p50`` (cosine distance to the
        nearest other instruction), ``twin_similarity`` (mean cosine with the twin) and
        ``twin_share`` (instructions that have one).
    """
    harmful, twins = _sides(records)
    if not harmful:
        return {"twin_share": 0.0}
    vectors = embed([r.text for r in harmful])
    nearest = nearest_distances(vectors)
    stats = _word_stats(harmful, twins, topics) | {
        "vendi": vendi_score(vectors),
        "nn_distance_p10": float(np.quantile(nearest, 0.1)),
        "nn_distance_p50": float(np.quantile(nearest, 0.5)),
    }
    if twins:
        place = {r.id: i for i, r in enumerate(harmful)}
        others = vectors[[place[r.twin_of] for r in twins]]
        stats["twin_similarity"] = float((embed([r.text for r in twins]) * others).sum(1).mean())
    return stats


def given_stats(records: Sequence[Instruction], topics: Sequence[str]) -> dict[str, float]:
    """The numbers of a set that no run made, as far as they need no embeddings.

    Args:
        records: All of the set.
        topics: Ids of the policy's topics: coverage and entropy are over these.

    Returns:
        ``entropy``, ``distinct_2`` and ``twin_share`` as in `set_stats`, `coverage_stats` with an
        even share of the set as what each topic is owed, and ``near_duplicates`` (harmful
        instructions that resemble an earlier one). A number that is left out stands as
        ``not_computed.NAME``.
    """
    harmful, twins = _sides(records)
    if not harmful:
        return {"twin_share": 0.0}
    stats = _word_stats(harmful, twins, topics)
    stats |= coverage_stats(harmful, topics, len(harmful))
    missing = ["vendi", "nn_distance_p10", "nn_distance_p50", "cell_coverage", "cell_entropy"]
    missing += ["twin_similarity"] if twins else []
    if sum(len(r.text) for r in harmful) <= MAX_COMPARED:
        stats["near_duplicates"] = float(_near_duplicates(harmful))
    else:
        missing.append("near_duplicates")
    return stats | {f"{NOT_COMPUTED}{name}": 1.0 for name in missing}


def cost_stats(counts: Mapping[str, int], seconds: float) -> dict[str, float]:
    """``drafts`` of harmful instructions that the engine answered, ``yield`` (accepted of them),
    ``tokens_generated`` and ``seconds``, from what was booked (`ptalign.spending`); where chat logs
    were given, ``excerpts`` of them and ``excerpt_clusters`` that those of a right form made."""
    drafts = counts.get("drafts", 0)
    given = {k: float(counts[k]) for k in ("excerpts", "excerpt_clusters") if k in counts}
    return given | {
        "drafts": drafts,
        "yield": counts.get("written", 0) / drafts if drafts else 0.0,
        "tokens_generated": counts.get("tokens_generated", 0),
        "seconds": seconds,
    }


def coverage_stats(
    records: Sequence[Instruction], topics: Sequence[str], wanted: int
) -> dict[str, float]:
    """``coverage`` (share of the topics with at least half of an even part of `wanted`) and
    ``coverage_met`` (1 when that is not under `COVERAGE_FLOOR`)."""
    owed = max(1, math.ceil(wanted / len(topics)))
    found = Counter(r.topic for r in records if r.side == "harmful")
    share = sum(found[topic] * 2 >= owed for topic in topics) / len(topics)
    return {"coverage": share, "coverage_met": float(share >= COVERAGE_FLOOR)}


def cell_stats(
    records: Sequence[Instruction], cells: Set[tuple[str, str]], share: float
) -> dict[str, float]:
    """``cell_coverage`` (`share`, see `Grid.cell_coverage`) and ``cell_entropy``: spread of the
    harmful instructions over the cells, 1 = as even as their number allows.

    Args:
        records: All of the set. Those of no cell do not count: an operator's seeds and excerpts
            have no tactic.
        cells: Topic and tactic ids.
        share: Cell coverage.
    """
    asked = [(r.topic, r.tactic) for r in records if r.side == "harmful"]
    labels = ["/".join(cell) for cell in asked if cell in cells]
    reach = min(len(cells), len(labels))
    return {"cell_coverage": share, "cell_entropy": normalised_entropy(labels, reach)}


def _sides(records: Sequence[Instruction]) -> tuple[list[Instruction], list[Instruction]]:
    """Harmful instructions, and the twins of those."""
    harmful = [r for r in records if r.side == "harmful"]
    ids = {r.id for r in harmful}
    return harmful, [r for r in records if r.side == "twin" and r.twin_of in ids]


def _word_stats(
    harmful: Sequence[Instruction], twins: Sequence[Instruction], topics: Sequence[str]
) -> dict[str, float]:
    return {
        "entropy": normalised_entropy((r.topic for r in harmful), len(topics)),
        "distinct_2": distinct_n([r.text for r in harmful], 2, [r.locale for r in harmful]),
        "twin_share": len({r.twin_of for r in twins}) / len(harmful),
    }


def _near_duplicates(harmful: Sequence[Instruction]) -> int:
    indexes: dict[str, NearDuplicates] = {}
    found = 0
    for record in harmful:
        index = indexes.setdefault(language(record.locale), NearDuplicates(locale=record.locale))
        found += index.find(record.text) is not None
        index.add(record.text)
    return found
