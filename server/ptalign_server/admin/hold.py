"""`ptalign-server hold`: what purges and retention must leave alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ptalign.errors import DataDamaged, InvalidInput
from ptalign_server.admin.stored import open_store
from ptalign_server.errors import NotFound
from ptalign_server.gateway.reading import MAX_PURPOSE, SETS

if TYPE_CHECKING:
    import sqlalchemy as sa

    from ptalign_server.store import Store

app = typer.Typer(
    help="Legal hold: what neither a purge nor retention destroys.", no_args_is_help=True
)


WHO = "console"
"""Who the audit entry names: whoever may run commands beside the server, on its key."""
Reason = Annotated[str, typer.Option(help="Why, for the audit trail: a matter's number.")]


@app.command()
def add(name: str, reason: Reason = "") -> None:
    """Hold a set (pairSets/ID) or a stopped operation (operations/ID) until it is released.

    It holds for every server on the database, and leaves an audit entry.
    """
    known = (*SETS, "operations")
    if name.partition("/")[0] not in known:
        mend = f"Name one of: {', '.join(f'{each}/ID' for each in known)}."
        raise InvalidInput("name", f"{name[:80]!r} holds no record text", mend)
    _check(reason)
    with open_store() as store:

        def change(connection: sa.Connection) -> None:
            if store.holds.add(connection, name):
                _enter(store, connection, "hold", name, reason)

        store.write(change).result()
    typer.echo(f"held: {name}")


@app.command()
def remove(name: str, reason: Reason = "") -> None:
    """Let purges and retention have it again; leaves an audit entry."""
    _check(reason)
    with open_store() as store:

        def change(connection: sa.Connection) -> bool:
            held = store.holds.remove(connection, name)
            if held:
                _enter(store, connection, "release", name, reason)
            return held

        held = store.write(change).result()
    if not held:
        raise InvalidInput("name", f"{name[:80]!r} is not held", "See: ptalign-server hold list")
    typer.echo(f"released: {name}")


@app.command("list")
def show() -> None:
    """List what is held."""
    with open_store() as store:
        for name in store.holds.names():
            typer.echo(name)


def _check(reason: str) -> None:
    if len(reason) > MAX_PURPOSE:
        limit = f"must be at most {MAX_PURPOSE} characters"
        raise InvalidInput("--reason", limit, "Name the matter, not its story.")


def _enter(store: Store, connection: sa.Connection, action: str, name: str, reason: str) -> None:
    store.audit.add(connection, _tenant(store, name), WHO, action, name, {"reason": reason})


def _tenant(store: Store, name: str) -> str:
    """Whose it is; empty where its row is gone or damaged: the hold stands all the same."""
    collection, _, found = name.partition("/")
    try:
        if collection == "operations":
            return store.operations.get(found).tenant
        return store.resources.get(name, None).tenant
    except (NotFound, DataDamaged):
        return ""
