"""`ptalign-server audit`: the hash-chained trail."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from ptalign_server.admin.stored import open_store

if TYPE_CHECKING:
    from ptalign_server.store import Store
    from ptalign_server.store.audit import Entry

app = typer.Typer(help="The audit trail.", no_args_is_help=True)


@app.command()
def verify() -> None:
    """Check every entry against the one before it: exit 1 names the first bad one."""
    with open_store() as store:
        _refuse_changed(store)
        typer.echo(f"{store.audit.count()} entries, all in order")


@app.command("list")
def show(
    action: Annotated[
        str, typer.Option(help='Only these: submit, cancel, import, "read records", purge, ...')
    ] = "",
    target: Annotated[
        str, typer.Option(help="Only of pairSets/ID or the like, and the operation that made it.")
    ] = "",
    identity: Annotated[str, typer.Option(help="Only what this token's name did.")] = "",
    last: Annotated[int, typer.Option(min=0, help="So many of the newest; 0: all.")] = 50,
    lines: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Show who did what to which resource, oldest first: number, time, tenant, who, what.

    Then the trail is verified: where it was changed, that is said and the exit status is 1.
    """
    with open_store() as store:
        asked = {"action": action, "target": target, "identity": identity}
        for entry in store.audit.entries(**asked, last=last):
            typer.echo(json.dumps(asdict(entry)) if lines else _line(entry))
        _refuse_changed(store)


def _line(entry: Entry) -> str:
    try:
        when = datetime.fromtimestamp(entry.time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError, TypeError):  # changed: the verification says so
        when = str(entry.time)
    detail = ", ".join(f"{name}: {json.dumps(value)}" for name, value in entry.detail.items())
    words = (entry.sequence, when, entry.tenant or "-", entry.identity, entry.action, entry.target)
    return "  ".join((*map(str, words), *([detail] if detail else [])))


def _refuse_changed(store: Store) -> None:
    if bad := store.audit.first_bad():
        typer.echo(f"entry {bad} was edited, removed or moved", err=True)
        raise typer.Exit(1)
