"""Waits for an operation where a person can see it, and knows what Ctrl-C means."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, NoReturn, TypeVar

import typer
from rich.console import RenderableType
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from ptalign_client.cli.session import Session
from ptalign_client.errors import Cancelled, PtalignError
from ptalign_client.nouns import Progress
from ptalign_client.sync import Operation

R = TypeVar("R")
SECOND_CHANCE = 3.0
"""Seconds in which a second Ctrl-C cancels."""
LOSSES = (
    ("loss_mle", "mle"),
    ("loss_ut", "ut"),
    ("ut_weight", "λ"),
    ("twin_weight", "τ"),
    ("retain_kl", "kl"),
)


def follow(
    session: Session,
    operation: Operation[R],
    label: str,
    *,
    cancel_on_interrupt: bool = False,
    more: str = "",
) -> R:
    """Shows progress until the end and returns what the operation made.

    Args:
        session: Where to show it.
        operation: What to wait for.
        label: Its short name on the screen.
        cancel_on_interrupt: Ctrl-C cancels at once, instead of leaving it to run.
        more: A line to say on Ctrl-C, with its line break.

    Raises:
        ServiceError: The operation failed or was cancelled.
        typer.Exit: The person pressed Ctrl-C.
    """
    try:
        watch = _watch_live if session.err.is_terminal else _watch_lines
        watch(session, operation, label)
        return operation.result()
    except KeyboardInterrupt:
        interrupted(session, operation, cancel_on_interrupt, more)


def _watch_live(session: Session, operation: Operation[Any], label: str) -> None:
    with Live(session) as live:
        task = live.add_task(label, total=None, phase="", eta="")
        for event in operation.events():
            live.show(task, event.progress)


def _watch_lines(session: Session, operation: Operation[Any], label: str) -> None:
    """One line per phase and tenth: for logs, where a bar would be noise.

    Phases may take turns, as suites of an Evaluate do: each remembers its own tenth.
    """
    told: dict[str, int] = {}
    for event in operation.events():
        p = event.progress
        tenth = 10 * p.done // p.total if p.total else 0
        if told.get(p.phase) != tenth:
            told[p.phase] = tenth
            share = f" {p.done}/{p.total}" if p.total else ""
            detail = "  ".join(d for d in (counts(p), losses(p)) if d)
            session.err.print(
                f"{label}: {p.phase or p.state}{share}  {detail}".rstrip(),
                soft_wrap=True,
                markup=False,
            )


class Live(Bars):
    """A bar, and below it what was counted and the losses."""

    def __init__(self, session: Session) -> None:
        self._detail = Text()  # rendered by super().__init__ already
        super().__init__(
            TextColumn("{task.description:<12}", style="bold cyan", markup=False),
            BarColumn(bar_width=18),
            Count(),
            Clock(),
            TextColumn("{task.fields[phase]}", style="dim", markup=False),
            console=session.err,
            transient=True,
        )

    def show(self, task: Any, progress: Progress) -> None:
        """Moves the bar to where the operation stands."""
        phase = progress.phase or str(progress.state)
        if progress.attempt > 1:
            phase += f" (attempt {progress.attempt})"
        eta = "" if progress.eta_seconds is None else clock(progress.eta_seconds)
        self.update(task, completed=progress.done, phase=phase, eta=eta)
        # `update` takes None for "as before": the last phase's total stood beside this one's count
        next(t for t in self.tasks if t.id == task).total = progress.total or None
        found = [text for text in (counts(progress), losses(progress)) if text]
        self._detail = Text("  ".join(found), style="dim", no_wrap=True, overflow="ellipsis")

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self._detail:
            yield Text(" " * 13) + self._detail


class Count(ProgressColumn):
    """Units done and expected; nothing while there are none to count."""

    def render(self, task: Task) -> Text:
        if not task.total:
            return Text("")
        return Text(f"{task.completed:.0f}/{task.total:.0f}", style="magenta")


class Clock(ProgressColumn):
    """Time gone, and time left as the server estimates it."""

    def render(self, task: Task) -> Text:
        eta = task.fields.get("eta")
        text = Text(clock(task.elapsed or 0), style="yellow")
        return text.append(f" -{eta}", style="green") if eta else text


def counts(progress: Progress) -> str:
    """``accepted 24, rejected 6 (duplicate 4, polarity 2), unscored 1, qwen-guard failed 1``."""
    rejected = {
        key.removeprefix("rejected."): n
        for key, n in progress.counts.items()
        if key.startswith("rejected.") and n
    }
    parts = []
    if "accepted" in progress.counts:
        parts.append(f"accepted {progress.counts['accepted']}")
    if rejected:
        top = sorted(rejected.items(), key=lambda item: -item[1])
        parts.append(
            f"rejected {sum(rejected.values())} ({', '.join(f'{k} {n}' for k, n in top[:3])})"
        )
    if progress.counts.get("unscored"):
        parts.append(f"unscored {progress.counts['unscored']}")
    parts += [  # NAME is a guard model that gave no score
        f"{key.removeprefix('unscored.')} failed {n}"
        for key, n in progress.counts.items()
        if key.startswith("unscored.") and n
    ]
    return ", ".join(parts)


def losses(progress: Progress) -> str:
    """``mle 1.52  ut 0.25  λ 2  τ 2  kl 0.03`` of an Align that trains."""
    if "loss_mle" not in progress.values or not progress.values["loss_mle"]:
        return ""
    shown = ((word, progress.values.get(key, 0.0)) for key, word in LOSSES)
    return "  ".join(f"{word} {value:.3g}" for word, value in shown if value)


def clock(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def interrupted(
    session: Session, operation: Operation[Any], cancel: bool, more: str = ""
) -> NoReturn:
    """Says how to attach again, or cancels the operation: at once, or at a second Ctrl-C."""
    if not cancel:
        session.note(
            f"\n[yellow]{operation.name} goes on without you.[/] Attach again:\n"
            f"  [bold]ptalign ops watch {operation.name}[/]\n"
            f"{more}Press Ctrl-C again within {SECOND_CHANCE:g} s to cancel it."
        )
        try:
            time.sleep(SECOND_CHANCE)
            raise typer.Exit(130)
        except KeyboardInterrupt:
            pass
    session.note(f"cancelling {operation.name} ...")
    try:
        operation.cancel()
        operation.result(timeout=60)
        session.note(f"{operation.name} had ended before the cancel arrived.")
    except Cancelled as error:
        kept = f" It kept {error.resource}." if error.resource else ""
        session.note(f"[yellow]cancelled.[/]{kept}")
    except PtalignError as error:
        session.note(f"[red]cancel asked for; no end seen:[/] {error}")
    raise typer.Exit(130)
