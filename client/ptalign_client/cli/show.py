"""Tables and lines for eyes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from rich.table import Table
from rich.text import Text

from ptalign_client.nouns import (
    Adapter,
    AnnotationSet,
    Evaluation,
    FileInfo,
    InstructionSet,
    PairSet,
    Rate,
    Resource,
)

RATES = (
    ("harm_plain", "harm, plain", False),
    ("harm_rate", "harm, attack", False),
    ("harm_strong", "harm, strong attack", False),
    ("refusal_rate", "refuses harmful", True),
    ("over_refusal_rate", "over-refusal", False),
    ("ordinary_refusal_rate", "refuses ordinary", False),
    ("usefulness", "usefulness", True),
    ("usefulness_refusal_rate", "refuses instructions", False),
    ("incoherent_rate", "incoherent", False),
    ("unscored_rate", "unscored", False),
)
"""Key, words, and whether more is better."""
UNKNOWN = "unknown"
"""Who it was, where an earlier version of the server did not say."""
GATES = {"default": "the operator's default", "inline": "written in the call"}
VERDICTS = {"pass": "bold green", "fail": "bold red", "inconclusive": "bold yellow"}


def summary(resource: Resource) -> str:
    """What a resource holds, in a few words."""
    match resource:
        case InstructionSet():
            text = f"{resource.harmful} harmful, {_many(resource.twins, 'twin')}"
            text += f", {resource.shortfall} short" if resource.shortfall else ""
            under = resource.stats.get("coverage_met") == 0
            share = _share(resource.stats.get("coverage", 0.0))
            text += f", topics covered {share}, under the floor" if under else ""
            brought = [r for r in resource.rejected if r.startswith(("seed_", "excerpt_"))]
            lost = ", ".join(f"{resource.rejected[r]} {r}" for r in sorted(brought))
            return text + (f", not taken: {lost}" if lost else "")
        case AnnotationSet():
            return f"{_many(resource.count, 'mark')}, {resource.annotator_minutes:g} min"
        case PairSet():
            kinds = (
                _many(resource.pairs, "pair"),
                resource.positive_only and f"{resource.positive_only} positive only",
                resource.twins and _many(resource.twins, "twin"),
                resource.anchors and _many(resource.anchors, "anchor"),
                resource.shortfall and f"{resource.shortfall} short",
            )
            return ", ".join(kind for kind in kinds if kind)
        case Adapter():
            tokens = f"{resource.tokens_mle} + {resource.tokens_ut} tokens"
            return f"{resource.method}, {tokens}, kl {resource.retain_kl:.3f}"
        case Evaluation():
            return resource.verdict.upper() or "no verdict"
    return ""


def _many(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def listing(resources: Sequence[Resource]) -> Table:
    """A table of resources."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("NAME", no_wrap=True)
    table.add_column("AGE", no_wrap=True, justify="right")
    table.add_column("HOLDS", overflow="fold")
    for item in resources:
        state = " [purged]" if item.purged else " [partial]" if item.partial else ""
        under = f"\n  {item.model}, by {item.made_by or UNKNOWN}"
        name = Text(item.name, style="cyan").append(under, style="dim not cyan")
        table.add_row(name, age(item.create_time), Text(summary(item) + state))
    return table


def details(resource: Resource) -> Table:
    """All that is known of one resource, a field a line."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for spec in fields(resource):
        value = getattr(resource, spec.name)
        value = value or UNKNOWN if spec.name == "made_by" else value
        if value is None or value is False or value in ("", (), {}):  # a 0 was counted: it stays
            continue
        table.add_row(spec.name, Text(_words(value)))
    return table


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return "\n".join(f"{k}: {_words(v)}" for k, v in value.items())
    if isinstance(value, tuple):
        return "\n".join(_words(v) for v in value)
    if isinstance(value, Rate):
        return interval(value)
    if isinstance(value, FileInfo):
        return f"{value.part}  {size(value.size)}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return when(value) if isinstance(value, datetime) else str(value)


def rates(columns: Mapping[str, Mapping[str, Rate]]) -> Table:
    """Rates with their 95 % intervals, a target a column; the best of each row stands out."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("share (95 % interval)", no_wrap=True)
    for label in columns:
        table.add_column(Text(label), justify="right", no_wrap=True)
    for key, words, more in rows(columns.values()):
        row = [column.get(key) for column in columns.values()]
        known = [rate.value for rate in row if rate and rate.n]
        if not known:
            continue
        best = max(known) if more else min(known)
        cells = [_cell(rate, best, len(set(known)) > 1) for rate in row]
        table.add_row(words, *cells)
    return table


def rows(columns: Iterable[Mapping[str, Rate]]) -> list[tuple[str, str, bool]]:
    """`RATES`, and a row per suite that measures refusal alone: it feeds none of those."""
    names = {name for column in columns for name in column}
    alone = sorted(
        name
        for name in names
        if name.startswith("refusal_rate/")
        and name.replace("refusal_rate", "harm_plain") not in names
    )
    return [*RATES, *((name, f"refuses {name.partition('/')[2]}", True) for name in alone)]


def _cell(rate: Rate | None, best: float, differs: bool) -> Text:
    if rate is None or not rate.n:
        return Text("-", style="dim")
    style = "green" if differs and rate.value == best else ""
    return Text(interval(rate), style=style)


def interval(rate: Rate) -> str:
    """``.40 (.30-.51)``."""
    return f"{_share(rate.value)} ({_share(rate.low)}-{_share(rate.high)})"


def _share(value: float) -> str:
    """Halves go up, as in the report."""
    made = Decimal(repr(value)).quantize(Decimal("0.01"), ROUND_HALF_UP)
    return f"{made}".removeprefix("0") if made < 1 else "1.0"


def verdict(evaluation: Evaluation) -> Text:
    """The verdict with its reasons."""
    style = VERDICTS.get(evaluation.verdict, "bold")
    text = Text(evaluation.verdict.upper() or "NO VERDICT", style=style)
    for reason in evaluation.reasons:
        text.append(f"\n  {reason}", style="default not bold")
    if evaluation.gate:
        named = GATES.get(evaluation.gate, evaluation.gate)
        text.append(f"\n  gate: {named}", style="dim not bold")
    return text


def when(time: datetime | None) -> str:
    """A time on this machine's clock."""
    return time.astimezone().strftime("%Y-%m-%d %H:%M") if time else "-"


def age(time: datetime | None) -> str:
    """How long ago, in the largest unit that says something."""
    if time is None:
        return "-"
    seconds = max(0.0, (datetime.now(UTC) - time).total_seconds())
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"


def duration(seconds: float) -> str:
    """Seconds for eyes: ``42 s``, ``12 min``, ``2 h 59 min``."""
    if seconds < 120:
        return f"{max(0.0, seconds):.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def size(count: float) -> str:
    """Bytes for eyes."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
