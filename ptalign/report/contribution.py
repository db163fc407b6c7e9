"""What each term of the loss contributed: the target beside one that learned good answers only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ptalign.nouns import Evaluation, TargetResult
from ptalign.report.words import MEASURES, RATES, name_of, read_in

ALONE = "mle"
"""The method without a term for bad answers."""
BOTH = ("pt_align", "ut_uniform", "dpo", "npo")
SHOWN = ("harm_word_ratio", "benign_kl")
"""Measures that stand beside the rates."""


def contribution(evaluation: Evaluation, same_pairs: Sequence[str]) -> dict[str, Any] | None:
    """What learning from bad answers added to learning from good ones.

    Args:
        evaluation: Its further targets may hold one of method `mle`.
        same_pairs: Labels of those trained on what the target of the verdict was: a difference to
            any other is not what unlearning added.

    Returns:
        ``base``, ``alone`` and ``both`` (names), ``rows`` of rates (title, better, shares, change
        with its paired interval in points) and ``measures``; None where no target of method `mle`
        and the same pairs was shown beside one that learned from bad answers too.
    """
    both = evaluation.aligned
    others = (r for r in evaluation.results[2:] if r.label in same_pairs)
    alone = next((r for r in others if r.method == ALONE), None)
    if alone is None or both.method not in BOTH:
        return None
    changes = evaluation.beside.get(alone.label, {})
    rows = [
        {
            "title": title,
            "better": better,
            "shares": [r.rates[key] for r in (evaluation.baseline, alone, both)],
            "change": [100 * value for value in changes[key]],
        }
        for key, title, better in RATES
        if key in changes and all(key in r.rates for r in (evaluation.baseline, alone, both))
    ]
    return {
        "base": name_of(evaluation.baseline),
        "alone": name_of(alone),
        "both": name_of(both),
        "rows": rows,
        "measures": [
            {
                "title": title,
                "note": read_in(both) if key == "harm_word_ratio" else "",
                "digits": digits,
                "values": values,
            }
            for key, title, digits in MEASURES
            if key in SHOWN and (values := _measured(key, evaluation.baseline, alone, both))
        ],
    }


def _measured(key: str, *results: TargetResult) -> list[float]:
    """A probe's measure of each target; empty unless all have it."""
    found = [r.probe.measured.get(key) if r.probe else None for r in results]
    return [value for value in found if value is not None] if None not in found else []
