"""Two evaluations side by side."""

from __future__ import annotations

from typing import Any

from ptalign.nouns import Evaluation, Rate
from ptalign.stats import difference


def compare(first: Evaluation, second: Evaluation) -> dict[str, Any]:
    """Compares the aligned targets of two evaluations, rate by rate.

    Replies of different evaluations are not paired, so a change counts as `clear` only if its 95 %
    interval by Newcombe (1998, method 10) does not contain 0, as in the command ``ptalign
    compare``. Rates over different numbers of prompts are compared too; `same_suites` says whether
    the same suites were run. `change` is None if one of the two scored no reply.

    Args:
        first: The earlier one.
        second: The later one.
    """
    before, after = first.aligned, second.aligned
    names = sorted(set(before.rates) & set(after.rates))
    return {
        "verdicts": [first.verdict, second.verdict],
        "labels": [before.label, after.label],
        "same_suites": set(first.suites) == set(second.suites),
        "same_judges": set(first.judge_ids) == set(second.judge_ids),
        "only_first": sorted(set(before.rates) - set(after.rates)),
        "only_second": sorted(set(after.rates) - set(before.rates)),
        "rates": {name: _row(before.rates[name], after.rates[name]) for name in names},
        "measures": _measures(first, second),
    }


def _row(before: Rate, after: Rate) -> dict[str, Any]:
    change, low, high = difference(before, after)
    told = before.n > 0 and after.n > 0
    return {
        "first": before.model_dump(),
        "second": after.model_dump(),
        "change": change if told else None,
        "clear": told and (low > 0 or high < 0),
    }


def _measures(first: Evaluation, second: Evaluation) -> dict[str, dict[str, float]]:
    one, two = first.aligned.probe, second.aligned.probe
    if one is None or two is None:
        return {}
    before, after = one.measured, two.measured
    return {n: {"first": before[n], "second": after[n]} for n in before if n in after}
