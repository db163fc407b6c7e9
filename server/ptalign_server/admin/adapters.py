"""`ptalign-server adapters`: what ResolveAdapter must not name, whatever it PASSed."""

from __future__ import annotations

import typer

from ptalign.errors import InvalidInput
from ptalign_server.admin.stored import Reason, enter, open_store

app = typer.Typer(help="Adapters taken out of service by hand.", no_args_is_help=True)


@app.command()
def withdraw(name: str, reason: Reason = "") -> None:
    """Let ResolveAdapter pass over an adapter (adapters/ID) until it is restored.

    No evaluation brings it back. It can still be evaluated, downloaded and chatted with by name.
    It holds for every server on the database, and leaves an audit entry.
    """
    enter("withdraw", name, reason, lambda store, c: store.withdrawals.add(c, name))
    typer.echo(f"withdrawn: {name}")


@app.command()
def restore(name: str, reason: Reason = "") -> None:
    """Let its evaluations decide again; leaves an audit entry."""
    if not enter("restore", name, reason, lambda store, c: store.withdrawals.remove(c, name)):
        mend = "See: ptalign-server adapters list"
        raise InvalidInput("name", f"{name[:80]!r} is not withdrawn", mend)
    typer.echo(f"restored: {name}")


@app.command("list")
def show() -> None:
    """List what is withdrawn."""
    with open_store() as store:
        for name in store.withdrawals.names():
            typer.echo(name)
