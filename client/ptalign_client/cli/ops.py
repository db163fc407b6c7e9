"""`ptalign ops`: operations on the server."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from ptalign_client.cli import show
from ptalign_client.cli.follow import clock, counts, follow, interrupted, losses
from ptalign_client.cli.session import Session, command
from ptalign_client.cli.verbs import CancelOnInterrupt, RequirePass, demand_pass, show_made
from ptalign_client.errors import ServiceError
from ptalign_client.nouns import Progress, State

Name = Annotated[str, typer.Argument(help="operations/ID, or the ID alone.")]
StateName = Literal[
    "validating", "queued", "running", "cancelling", "succeeded", "failed", "cancelled"
]
STYLES = {State.SUCCEEDED: "green", State.FAILED: "red", State.CANCELLED: "yellow"}


def listing(
    session: Session,
    kind: Annotated[str, typer.Option(help="Only this verb, e.g. Align.")] = "",
    state: Annotated[
        StateName | None, typer.Option(metavar="STATE", help="Only this one, e.g. running.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", help="At most so many.", min=1)] = 20,
) -> None:
    """List operations, newest first.

    [bold]Examples[/]

      ptalign ops list --state running

      ptalign ops list --kind Align --json | jq .values
    """
    found: list[Progress] = []
    size = min(limit, 500)
    with session.client.operations(kind=kind, state=state or "", page_size=size) as items:
        for operation in items:
            found.append(operation.seen())
            if session.as_json:
                session.emit(found[-1])
            if len(found) == limit:
                break
    if session.as_json:
        return
    if not found:
        session.note("No operations." if not (kind or state) else "No operations like that.")
        return
    session.out.print(_table(found))


def get(session: Session, name: Name) -> None:
    """Show where one operation stands."""
    operation = session.client.operation(name)
    progress, why = operation.progress(), ""
    if progress.state in (State.FAILED, State.CANCELLED):
        try:
            operation.result()
        except ServiceError as error:
            why = str(error)
    if session.as_json:
        session.emit(asdict(progress) | {"error": why})
    else:
        session.out.print(_details(progress, why))


def watch(
    session: Session,
    name: Name,
    require_pass: RequirePass = False,
    cancel_on_interrupt: CancelOnInterrupt = False,
) -> None:
    """Attach to an operation and show its progress until it ends.

    [bold]Examples[/]

      ptalign ops watch operations/ID

      ptalign ops watch ID --json          # one event a line
    """
    operation = session.client.operation(name)
    if session.as_json:
        try:
            for event in operation.events():
                session.emit(event)
        except KeyboardInterrupt:
            interrupted(session, operation, cancel_on_interrupt)
        made = operation.result()
    else:
        label = operation.progress().kind
        made = follow(session, operation, _short(label), cancel_on_interrupt=cancel_on_interrupt)
        show_made(session, made)
    if require_pass:
        demand_pass(made)


def wait(
    session: Session,
    name: Name,
    seconds: Annotated[
        float | None, typer.Option("--for", help="Wait so many seconds at most.", min=0)
    ] = None,
    require_pass: RequirePass = False,
) -> None:
    """Wait for an operation in silence and print what it made."""
    made = session.client.operation(name).result(timeout=seconds)
    show_made(session, made)
    if require_pass:
        demand_pass(made)


def cancel(session: Session, name: Name) -> None:
    """Cancel an operation; what it accepted so far is kept.

    [bold]Examples[/]

      ptalign ops cancel operations/ID
    """
    operation = session.client.operation(name)
    state = before = operation.progress().state
    if not before.ended:
        operation.cancel()
        state = operation.progress().state
    session.emit({"operation": operation.name, "state": state}) if session.as_json else None
    if before.ended:
        session.note(f"{operation.name} had already ended: it {_past(before)}.")
        return
    session.note(f"{operation.name} is {state}; `ptalign ops wait {operation.name}` sees its end.")


def delete(session: Session, name: Name) -> None:
    """Forget an ended operation; what it made stays."""
    operation = session.client.operation(name)
    operation.delete()
    session.emit({"deleted": operation.name}) if session.as_json else None
    session.note(f"{operation.name} is forgotten.")


def _table(found: list[Progress]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("OPERATION", no_wrap=True)
    table.add_column("STATE", no_wrap=True)
    table.add_column("AGE", no_wrap=True, justify="right")
    table.add_column("DONE", justify="right", no_wrap=True)
    table.add_column("PHASE", overflow="fold")
    for p in found:
        state = Text(str(p.state) or "-", style=STYLES.get(p.state, "cyan"))
        share = f"{p.done}/{p.total}" if p.total else ""
        under = f"  {p.kind}, by {p.submitted_by or show.UNKNOWN}"
        name = Text(f"{p.operation}\n").append(under, style="dim")
        table.add_row(name, state, show.age(p.create_time), share, Text(p.phase))
    return table


def _details(p: Progress, why: str) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    rows: dict[str, Any] = {
        "operation": p.operation,
        "kind": p.kind,
        "state": p.state,
        "phase": p.phase,
        "done": f"{p.done}/{p.total}" if p.total else "",
        "attempt": p.attempt if p.attempt > 1 else "",
        "time left": "" if p.eta_seconds is None else clock(p.eta_seconds),
        "counts": counts(p),
        "training": losses(p),
        "suite": p.suite,
        "why": why,
        "made": p.resource,
        "submitted": _by(p.create_time, p.submitted_by),
        "cancelled": _by(p.cancel_time, p.cancelled_by) if _cancelled(p) else "",
        "ended": show.when(p.end_time) if p.end_time else "",
    }
    for key, value in rows.items():
        if value != "":
            table.add_row(key, Text(str(value)))
    return table


def _by(time: datetime | None, who: str) -> str:
    said = f"by {who or show.UNKNOWN}"
    return f"{show.when(time)} {said}" if time else said


def _cancelled(p: Progress) -> bool:
    """Somebody asked for its end, though it may have come to another one first."""
    return bool(p.cancelled_by) or p.state in (State.CANCELLING, State.CANCELLED)


def _past(state: State) -> str:
    return "was cancelled" if state is State.CANCELLED else str(state)


def _short(kind: str) -> str:
    words = {"GenerateInstructions": "instructions", "SynthesizePairs": "pairs"}
    return words.get(kind, kind.lower())


def register(app: typer.Typer) -> None:
    """Adds the group."""
    group = typer.Typer(help="List, watch, wait for and cancel operations.", no_args_is_help=True)
    command(group, "list")(listing)
    for verb in (get, watch, wait, cancel, delete):
        command(group)(verb)
    app.add_typer(group, name="ops", rich_help_panel="What runs and what is there")
