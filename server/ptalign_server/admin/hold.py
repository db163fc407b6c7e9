"""`ptalign-server hold`: what purges and retention must leave alone."""

from __future__ import annotations

import typer

from ptalign.errors import InvalidInput
from ptalign_server.admin.stored import Reason, enter, open_store

app = typer.Typer(
    help="Legal hold: what no purge, no retention and no `adapters delete` destroys.",
    no_args_is_help=True,
)


@app.command()
def add(name: str, reason: Reason = "") -> None:
    """Hold a set (pairSets/ID), an adapter or a stopped operation (operations/ID) until released.

    It holds for every server on the database, and leaves an audit entry.
    """
    from ptalign_server.gateway.reading import SETS

    known = (*SETS, "adapters", "operations")
    if name.partition("/")[0] not in known:
        mend = f"Name one of: {', '.join(f'{each}/ID' for each in known)}."
        raise InvalidInput("name", f"{name[:80]!r} is nothing that can be held", mend)
    enter("hold", name, reason, lambda store, c: store.holds.add(c, name))
    typer.echo(f"held: {name}")


@app.command()
def remove(name: str, reason: Reason = "") -> None:
    """Let it be purged or deleted again; leaves an audit entry."""
    if not enter("release", name, reason, lambda store, c: store.holds.remove(c, name)):
        raise InvalidInput("name", f"{name[:80]!r} is not held", "See: ptalign-server hold list")
    typer.echo(f"released: {name}")


@app.command("list")
def show() -> None:
    """List what is held."""
    with open_store() as store:
        for name in store.holds.names():
            typer.echo(name)
