"""Stand-alone SVG files from the report's own figures, so that a Markdown page can show them."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape

from bench.study.evidence import Estimate, Evidence
from bench.study.form import BASE, Run
from ptalign.nouns import Rate
from ptalign.report.figures import COLOURS, lines, track
from ptalign.report.words import METHODS

STYLE = (
    "<style>text{font:12px sans-serif;fill:#334155}.grid{stroke:#cbd5e1;stroke-width:1}"
    ".track line{vector-effect:non-scaling-stroke}</style>"
)
WIDTH, LEFT, ROW = 720, 250, 18.0
TRACK = WIDTH - LEFT - 20
SHOWN = (
    ("harm_rate", "rude or harmful under attack"),
    ("harm_strong", "… first words forced"),
    ("harm_plain", "… asked plainly"),
    ("refusal_rate", "harmful requests declined"),
    ("over_refusal_rate/twins", "their legitimate twins refused"),
    ("ordinary_refusal_rate", "everyday requests refused"),
    ("usefulness", "verifiable instructions kept"),
)


def rates(evidence: Evidence, methods: Sequence[str]) -> str:
    """Interval tracks of the methods that were asked, rate by rate."""
    methods = [m for m in methods if m == BASE or any(map(evidence.asked, evidence.compared(m)))]
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(methods))]
    parts: list[str] = []
    y = 34.0
    for colour, method, x in zip(colours, methods, range(10, WIDTH, 118), strict=False):
        name = escape(METHODS.get(method.replace(BASE, ""), method))
        parts.append(f'<rect x="{x}" y="8" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{x + 14}" y="17">{name if len(name) < 17 else method}</text>')
    for key, title in SHOWN:
        found = [as_rate(evidence.mean(method, key)) for method in methods]
        if not any(found):
            continue
        height = ROW * len(methods)
        parts.append(f'<text x="10" y="{y + height / 2 + 4:g}">{escape(title)}</text>')
        parts.append(_placed(track(found, colours), "track", LEFT, y, TRACK))
        y += height + 12.0
    for part in (0, 25, 50, 75, 100):
        middle = LEFT + TRACK * (part + 1.5) / 103
        parts.append(f'<text x="{middle:.0f}" y="{y + 6:g}" text-anchor="middle">{part} %</text>')
    return _svg(y + 16, parts)


def training(evidence: Evidence, runs: Sequence[Run]) -> str:
    """L_MLE and L_UT over the steps, one colour a run."""
    ledgers = [(run, a.ledger) for run in runs if (a := evidence.adapter(run)) and a.ledger]
    if not ledgers:
        return ""
    colours = [COLOURS[(i + 1) % len(COLOURS)] for i in range(len(ledgers))]
    parts: list[str] = []
    for side, (name, title) in enumerate((("loss_mle", "L_MLE"), ("loss_ut", "L_UT"))):
        series = [
            (run.label, colour, [float(getattr(step, name)) for step in ledger])
            for colour, (run, ledger) in zip(colours, ledgers, strict=True)
            if any(getattr(step, name) for step in ledger)
        ]
        x = 360 * side
        parts.append(f'<text x="{x + 40}" y="14">{title}</text>')
        parts.append(_placed(lines(series, f"{title} per step"), "lines", x, 20, 360))
    for i, (colour, (run, _)) in enumerate(zip(colours, ledgers, strict=True)):
        parts.append(f'<rect x="{10 + 110 * i}" y="226" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{24 + 110 * i}" y="235">{escape(run.label)}</text>')
    return _svg(244, parts)


def xstest(points: Sequence[tuple[str, Rate, Rate]]) -> str:
    """Unsafe against safe refusal, a cross of intervals per run."""
    size, edge = 360, 40

    def at(share: float, *, up: bool = False) -> float:
        return edge + size * (1 - share if up else share)

    parts = [
        f'<rect x="{edge}" y="{edge}" width="{size}" height="{size}" fill="none" class="grid"/>',
        f'<line class="grid" x1="{edge}" y1="{edge + size}" x2="{edge + size}" y2="{edge}"/>',
        f'<text x="{edge}" y="{edge + size + 28}">refused of XSTest safe, 0 to 1</text>',
        f'<text x="{edge}" y="{edge - 12}">refused of XSTest unsafe, 0 to 1</text>',
    ]
    for i, (label, safe, unsafe) in enumerate(points):
        colour = COLOURS[i % len(COLOURS)]
        x, y = at(safe.value), at(unsafe.value, up=True)
        parts.append(
            f'<line x1="{at(safe.low):.1f}" x2="{at(safe.high):.1f}" y1="{y:.1f}" y2="{y:.1f}" '
            f'stroke="{colour}" stroke-opacity=".4"/>'
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{at(unsafe.low, up=True):.1f}" '
            f'y2="{at(unsafe.high, up=True):.1f}" stroke="{colour}" stroke-opacity=".4"/>'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'
            f'<rect x="{edge + size + 20}" y="{edge + 22 * i}" width="10" height="10" '
            f'fill="{colour}"/><text x="{edge + size + 36}" y="{edge + 9 + 22 * i}">'
            f"{escape(label)}</text>"
        )
    return _svg(edge * 2 + size, parts)


def as_rate(found: Estimate | None) -> Rate | None:
    """An estimate as the figures take it."""
    if found is None:
        return None
    return Rate(value=found.value, low=found.low, high=found.high, n=found.n)


def _placed(figure: Markup, kind: str, x: float, y: float, width: float) -> str:
    """A figure of the report, inside another picture."""
    where = f'<svg class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}"'
    where += ' height="200"' if kind == "lines" else ""  # a track brings its own
    return str(figure).replace(f'<svg class="{kind}"', where, 1)


def _svg(height: float, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" '
        f'width="{WIDTH}" height="{height:g}">{STYLE}'
        f'<rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>\n'
    )
