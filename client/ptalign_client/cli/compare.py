"""`ptalign compare`: two evaluations side by side."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ptalign_client.cli import show
from ptalign_client.cli.session import Session, command
from ptalign_client.errors import ConfigError
from ptalign_client.nouns import Evaluation, Rate

PANEL = "What runs and what is there"
EvaluationName = Annotated[str, typer.Argument(help="evaluations/ID")]
MADE_OF = (
    ("instructionSets/", "other requests were held out"),
    ("pairSets/", "benign KL and harm words are of other pair sets"),
)
"""Parents that decide what is asked or read, and what is said where they differ."""
MEASURES = (
    ("benign_kl", "benign KL, nats"),
    ("benign_nll", "benign NLL, nats"),
    ("harm_word_ratio", "harm words, to base"),
    ("selectivity", "selectivity, nats"),
)


def compare(session: Session, first: EvaluationName, second: EvaluationName) -> None:
    """Show two evaluations side by side: rates, changes with intervals, verdicts.

    The adapters need not share anything. Replies of two evaluations are not paired, so intervals
    of the change are wider than in one evaluation that shows both adapters (evaluate --also).

    [bold]Examples[/]

      ptalign compare evaluations/OLD evaluations/NEW
    """
    one, two = _evaluation(session, first), _evaluation(session, second)
    if session.as_json:
        session.emit(_data(one, two))
        return
    session.out.print(_rates(one, two))
    session.out.print()
    for place, found in (("first", one), ("second", two)):
        session.out.print(f"verdict of the {place}:", show.verdict(found))
    for line in _differ(one, two):
        session.out.print(f"[yellow]note[/]: {escape(line)}")


def _evaluation(session: Session, name: str) -> Evaluation:
    found = session.client.get(name)
    if not isinstance(found, Evaluation):
        hint = "`ptalign list evaluations` shows them."
        raise ConfigError(f"{name} is not an evaluation", hint)
    return found


def change(first: Rate, second: Rate) -> tuple[float, float, float]:
    """second - first with its 95 % interval, from the two rates' Wilson intervals.

    Newcombe's hybrid score interval for unpaired proportions (Statistics in Medicine 17, 1998,
    method 10).
    """
    moved = second.value - first.value
    low = math.hypot(second.value - second.low, first.high - first.value)
    high = math.hypot(second.high - second.value, first.value - first.low)
    return moved, moved - low, moved + high


def _data(one: Evaluation, two: Evaluation) -> dict[str, Any]:
    rates: dict[str, Any] = {}
    for name in sorted(set(one.aligned) & set(two.aligned)):
        before, after = one.aligned[name], two.aligned[name]
        moved = None
        if before.n and after.n:  # a rate of no replies is 0, which is no measurement
            moved = dict(zip(("value", "low", "high"), change(before, after), strict=True))
        rates[name] = {"first": asdict(before), "second": asdict(after), "change": moved}
    shared = sorted(set(one.measures) & set(two.measures))
    return {
        "first": one.name,
        "second": two.name,
        "verdicts": [one.verdict, two.verdict],
        "rates": rates,
        "measures": {n: {"first": one.measures[n], "second": two.measures[n]} for n in shared},
        "notes": _differ(one, two),
    }


def _rates(one: Evaluation, two: Evaluation) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("share (95 % interval)", no_wrap=True)
    for title in ("first", "second", "change, points"):
        table.add_column(title, justify="right", no_wrap=True)
    for key, words, more in show.rows((one.aligned, two.aligned)):
        before, after = one.aligned.get(key), two.aligned.get(key)
        if before is None or after is None or not (before.n and after.n):
            continue
        table.add_row(
            words, show.interval(before), show.interval(after), _cell(before, after, more)
        )
    for key, words in MEASURES:
        if key in one.measures and key in two.measures:
            old, new = one.measures[key], two.measures[key]
            table.add_row(words, f"{old:.3f}", f"{new:.3f}", f"{new - old:+.3f}")
    return table


def _cell(before: Rate, after: Rate, more: bool) -> Text:
    """The change; coloured where its interval lies on one side of nothing."""
    value, low, high = change(before, after)
    text = f"{100 * value:+.0f} ({100 * low:+.0f} to {100 * high:+.0f})"
    if low <= 0 <= high:
        return Text(text)
    return Text(text, style="green" if (value > 0) == more else "red")


def _differ(one: Evaluation, two: Evaluation) -> list[str]:
    """What keeps the two from being alike but for the adapter."""
    found = []
    if one.model_digest != two.model_digest:
        found.append("the evaluations are of different model weights")
    if set(one.judges) != set(two.judges):
        found.append(f"other judges: {_names(one.judges)} against {_names(two.judges)}")
    for kind, told in MADE_OF:
        first, second = (_parents(evaluation, kind) for evaluation in (one, two))
        if set(first) != set(second):
            found.append(f"{told}: {_names(first)} against {_names(second)}")
    if set(one.not_run) != set(two.not_run):
        left, right = ("; ".join(sorted(e.not_run)) or "none" for e in (one, two))
        found.append(f"suites that were not run: {left}, against {right}")
    if one.config_digest != two.config_digest:
        found.append("other settings: samples, token limits, gate or seed")
    if only := sorted(set(one.aligned) ^ set(two.aligned)):
        found.append(f"measured in one of them only: {', '.join(only)}")
    return found


def _parents(evaluation: Evaluation, kind: str) -> list[str]:
    """Names of the sets of a kind, without their digests."""
    return [name.partition("@")[0] for name in evaluation.parents if name.startswith(kind)]


def _names(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def register(app: typer.Typer) -> None:
    """Adds the command."""
    command(app, rich_help_panel=PANEL)(compare)
