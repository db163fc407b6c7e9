"""What learning from bad answers added: the target beside one trained on good answers only."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from ptalign.nouns import Adapter, Rate, TargetResult
from ptalign.numbers import apart
from ptalign.report.inputs import ReportInput
from ptalign.report.words import MEASURES, RATES, name_of, read_in

ALONE = "mle"
"""The method that learns from good answers only."""
BOTH = ("pt_align", "ut_uniform", "dpo", "npo")
SHOWN = ("harm_word_ratio", "benign_kl")
"""Measures that are shown with the rates."""


def contribution(report: ReportInput) -> dict[str, Any] | None:
    """What learning from bad answers added to learning from good ones.

    Args:
        report: The target is compared with a further target of method `mle` that was trained on
            the same pairs; with other pairs the difference would not be what unlearning added. Of
            several, the one whose training is most like the target's is taken.

    Returns:
        ``base``, ``alone`` and ``both`` (names), ``apart`` (what else differed between the
        trainings), ``rows`` of rates (title, better, shares, change with its paired interval in
        points) and ``measures``. None if there is no such further target, or if the target did not
        learn from bad answers.
    """
    evaluation = report.evaluation
    both = evaluation.aligned
    found = [r for r in evaluation.results[2:] if r.label in report.same_pairs]
    found = [r for r in found if r.method == ALONE]
    if not found or both.method not in BOTH:
        return None
    differs = {r.label: _apart(report, r.label) for r in found}
    alone = min(found, key=lambda r: len(differs[r.label]))
    changes = evaluation.beside.get(alone.label, {})
    rows = [
        {
            "title": title,
            "better": better,
            "shares": [r.rates[key] for r in (evaluation.baseline, alone, both)],
            "change": _change(alone.rates[key], both.rates[key], changes[key]),
        }
        for key, title, better in RATES
        if key in changes and all(key in r.rates for r in (evaluation.baseline, alone, both))
    ]
    return {
        "base": name_of(evaluation.baseline),
        "alone": name_of(alone),
        "both": name_of(both),
        "apart": differs[alone.label],
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


def _change(
    alone: Rate, both: Rate, found: tuple[float, float, float]
) -> tuple[float | Decimal, float, float]:
    """A change and its interval, in points."""
    value, low, high = (100 * each for each in found)
    return apart(100 * alone.value, 100 * both.value, value), low, high


def _apart(report: ReportInput, label: str) -> list[str]:
    """What besides the method differed between a training and the target's: settings, and what
    these and the guards led to."""
    told = list(report.apart.get(label, ()))
    alone = report.adapters.get(label)
    both = report.adapters.get(report.evaluation.aligned.label)
    if alone is None or both is None:
        return told
    for what, one, other in zip(
        ("steps", "learning rate", "weight of legitimate twins at the end"),
        _course(alone),
        _course(both),
        strict=True,
    ):
        if one != other:
            told.append(f"{what} ({one} against {other})")
    if not told and _drawn(alone) != _drawn(both):
        told.append("the examples that their steps drew")
    return told


def _course(adapter: Adapter) -> tuple[str, str, str]:
    """Steps, highest learning rate, and the last weight of twins."""
    ledger = adapter.ledger
    rate = max((log.learning_rate for log in ledger), default=0.0)
    weight = ledger[-1].twin_weight if ledger else None
    return str(len(ledger)), f"{rate:g}", "none" if weight is None else f"{weight:g}"


def _drawn(adapter: Adapter) -> list[tuple[int, int]]:
    """Tokens trained on in each step, which differ with the seed."""
    return [(log.tokens_mle, log.tokens_anchor) for log in adapter.ledger]


def _measured(key: str, *results: TargetResult) -> list[float]:
    """A probe's measure of each target; empty unless all have it."""
    found = [r.probe.measured.get(key) if r.probe else None for r in results]
    return [value for value in found if value is not None] if None not in found else []
