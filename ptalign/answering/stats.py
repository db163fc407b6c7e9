"""The numbers a pair set carries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, median

from ptalign.answering.validity import opener_share
from ptalign.nouns import Anchor, Pair
from ptalign.text.near import written_words


def pair_stats(
    pairs: Sequence[Pair], anchors: Sequence[Anchor], harmful: int, twins: int
) -> dict[str, float]:
    """Yields, polarity and variety.

    Returns:
        ``yield`` (accepted of the harmful instructions), ``twin_yield``, ``opener_share`` (share
        of positives with the most common start), ``polarity.<judge>`` (median),
        ``first_round`` (share of pairs accepted without refinement), mean words per side (character
        pairs in languages without spaces),
        ``anchors`` and ``held_out`` of them, ``held_out_pairs`` and ``held_out_twins``.
    """
    main = [p for p in pairs if p.kind != "twin"]
    kind = [p for p in pairs if p.kind == "twin"]
    stats = {
        "yield": len(main) / harmful if harmful else 0.0,
        "twin_yield": len(kind) / twins if twins else 0.0,
        "opener_share": opener_share([p.positive for p in main], [p.locale for p in main]),
        "anchors": float(len(anchors)),
        "held_out": float(sum(a.held_out for a in anchors)),
        "held_out_pairs": float(sum(p.held_out for p in main)),
        "held_out_twins": float(sum(p.held_out for p in kind)),
    }
    if main:
        stats["first_round"] = sum(p.round <= 1 for p in main) / len(main)
        stats["words_positive"] = mean(len(written_words(p.positive, p.locale)) for p in main)
    toxic = [(p.toxic.reveal(), p.locale) for p in main if p.toxic is not None]
    if toxic:
        stats["words_toxic"] = mean(len(written_words(*said)) for said in toxic)
    for judge in sorted({j for p in main for j in p.polarity}):
        stats[f"polarity.{judge}"] = median(p.polarity[judge] for p in main if judge in p.polarity)
    return stats


def last_round(pairs: Iterable[Pair], inherited: Mapping[str, Pair]) -> int:
    """The last round that wrote a pair, at least 1; what a parent handed on as it was is passed
    over.

    Args:
        pairs: Of the set.
        inherited: The parent's, by id.
    """
    return max((p.round for p in pairs if inherited.get(p.id) != p), default=1) or 1


def cost_stats(counts: Mapping[str, int], seconds: float) -> dict[str, float]:
    """``tokens_generated``, ``seconds``, ``tokens_per_second``, ``tokens_per_pair`` where one was
    written and ``drafts_<voice>``, from what was booked (`ptalign.spending`)."""
    generated = counts.get("tokens_generated", 0)
    stats = {
        "tokens_generated": generated,
        "seconds": seconds,
        "tokens_per_second": generated / seconds if seconds else 0.0,
    }
    if written := counts.get("written", 0) - counts.get("written_twins", 0):
        stats["tokens_per_pair"] = generated / written
    return stats | {name: n for name, n in counts.items() if name.startswith("drafts_")}
