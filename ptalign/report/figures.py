"""Inline SVG: interval tracks and line charts. Words stay in HTML, so that a phone can read them.

A track is drawn in percent of its width and stretched; strokes and dots keep their size
(`vector-effect`), so the same figure fits a desktop and a phone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle, islice

from markupsafe import Markup

from ptalign.nouns import Rate

COLOURS = (
    *("#64748b", "#0f766e", "#b45309", "#6d28d9", "#be185d"),
    *("#1d4ed8", "#15803d", "#7f1d1d", "#111827", "#86198f"),
)
"""Of the baseline, the target, then the others: as many as one Evaluate takes, each dark enough for
words on white. In grey print ten colours look alike, so every list keeps the legend's order."""

_ROW = 18.0
"""Height of one interval, in CSS pixels."""


def colours_of(count: int) -> tuple[str, ...]:
    """One colour per target; the eleventh starts over."""
    return tuple(islice(cycle(COLOURS), count))


def track(rates: Sequence[Rate | None], colours: Sequence[str]) -> Markup:
    """One line per target: its interval as a bar, its share as a dot, on 0..1.

    Args:
        rates: One per target; None draws nothing.
        colours: One per target.
    """
    height = _ROW * len(rates)
    marks = [
        f'<line class="grid" x1="{x}" x2="{x}" y1="0" y2="{height:g}"/>'
        for x in (0, 25, 50, 75, 100)
    ]
    for row, (rate, colour) in enumerate(zip(rates, colours, strict=True)):
        if rate is None or rate.n == 0:
            continue
        y = _ROW * (row + 0.5)
        low, mid, high = (100 * v for v in (rate.low, rate.value, rate.high))
        marks.append(
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y:g}" y2="{y:g}" stroke="{colour}" '
            f'stroke-width="6" stroke-opacity=".28" stroke-linecap="round"/>'
            f'<line x1="{mid:.1f}" x2="{mid:.1f}" y1="{y:g}" y2="{y:g}" stroke="{colour}" '
            f'stroke-width="12" stroke-linecap="round"/>'
        )
    return Markup(
        f'<svg class="track" viewBox="-1.5 0 103 {height:g}" height="{height:g}" '
        f'preserveAspectRatio="none" aria-hidden="true">{"".join(marks)}</svg>'
    )


def lines(series: Sequence[tuple[str, str, Sequence[float]]], label: str) -> Markup:
    """A small line chart over steps 1..n.

    Args:
        series: (name, colour, one value per step); values that are not finite are left out.
        label: What it shows, for screen readers.
    """
    width, height, left, right, top, bottom = 360, 200, 40, 8, 10, 26
    values = [v for _, _, points in series for v in points if math.isfinite(v)]
    steps = max((len(points) for _, _, points in series), default=0)
    if not values or steps < 2:
        return Markup("")
    ceiling = _nice(max(values))

    def x(step: int) -> float:
        return left + (width - left - right) * step / (steps - 1)

    def y(value: float) -> float:
        return top + (height - top - bottom) * (1 - min(value, ceiling) / ceiling)

    marks = []
    for part in (0, 0.5, 1):
        at = y(ceiling * part)
        marks.append(
            f'<line class="grid" x1="{left}" x2="{width - right}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">{ceiling * part:g}</text>'
        )
    for step in sorted({0, steps // 2, steps - 1}):
        anchor = "end" if step == steps - 1 else "start" if step == 0 else "middle"
        words = f"step {step + 1}" if step == 0 else str(step + 1)
        marks.append(
            f'<text x="{x(step):.1f}" y="{height - 8}" text-anchor="{anchor}">{words}</text>'
        )
    for _, colour, points in series:
        path = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in enumerate(points) if math.isfinite(v))
        marks.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
    return Markup(
        f'<svg class="lines" viewBox="0 0 {width} {height}" role="img">'
        f"<title>{Markup.escape(label)}</title>{''.join(marks)}</svg>"
    )


def _nice(value: float) -> float:
    """The smallest of 1, 2, 5 x 10^n that is not below `value`: a readable axis end."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * m for m in (1, 2, 5, 10) if value <= power * m * (1 + 1e-9))
