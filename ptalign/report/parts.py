"""The rates by topic or by language, with their changes and how certain those are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ptalign.nouns import Change, Rate, TargetResult
from ptalign.numbers import decimal, gap, rounded, signed
from ptalign.report.figures import track
from ptalign.report.words import RATES, whole_title

By = Literal["topic", "locale"]

LEAST_P = 0.001
"""Smaller p-values are printed as "under 0.001"."""


def parts(
    results: Sequence[TargetResult],
    colours: Sequence[str],
    by: By,
    titles: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """One chart per rate, with a row for each topic or locale that has it.

    Args:
        results: Baseline, target, then the others.
        colours: One per result.
        by: Whether the rows are topics or locales.
        titles: Names of topics or locales; one without a name is shown by its id.
    """
    charts = []
    for key, title, better in RATES:
        rows = [
            _row(results, colours, by, part, key, (titles or {}).get(part))
            for part in _all(results, by)
            if any(key in _rates(result, by).get(part, {}) for result in results)
        ]
        if rows:
            charts.append({"title": whole_title(key, title), "better": better, "rows": rows})
    return charts


def _rates(result: TargetResult, by: By) -> Mapping[str, Mapping[str, Rate]]:
    return result.by_topic if by == "topic" else result.by_locale


def _all(results: Sequence[TargetResult], by: By) -> list[str]:
    """Every topic or locale of any result, in the order of the alphabet."""
    return sorted({part for result in results for part in _rates(result, by)})


def _row(
    results: Sequence[TargetResult],
    colours: Sequence[str],
    by: By,
    part: str,
    key: str,
    title: str | None,
) -> dict[str, Any]:
    rates = [_rates(result, by).get(part, {}).get(key) for result in results]
    changes = results[1].topic_changes if by == "topic" else results[1].locale_changes
    change = changes.get(part, {}).get(key)
    plain = part.replace("-", " ") if by == "topic" else part
    return {
        "title": title or plain,
        "rates": rates,
        "track": track(rates, colours),
        "change": change_words(change, rates[0], rates[1]) if change else "",
    }


def change_words(change: Change, before: Rate | None, after: Rate | None) -> str:
    """``−12 points (−30 to 4), p 0.21``; the points are those of the two printed shares."""
    points = rounded(100 * change.value)
    if before is not None and after is not None and before.n == after.n == change.n:
        points = gap(before.value, after.value)
    ends = f"{signed(100 * change.low)} to {signed(100 * change.high)}"
    least = change.p_adjusted < LEAST_P
    p = (
        f"under {LEAST_P:g}"
        if least
        else decimal(change.p_adjusted, 3 if change.p_adjusted < 0.1 else 2)
    )
    return f"{signed(points)} points ({ends}), p {p}"
