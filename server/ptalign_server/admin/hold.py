"""`ptalign-server hold`: what purges and retention must leave alone."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import typer

from ptalign.errors import InvalidInput
from ptalign_server.gateway.reading import SETS
from ptalign_server.settings import Settings

if TYPE_CHECKING:
    from ptalign_server.store import Store

app = typer.Typer(
    help="Legal hold: what neither a purge nor retention destroys.", no_args_is_help=True
)


@app.command()
def add(name: str) -> None:
    """Hold a set (pairSets/ID) or a stopped operation (operations/ID) until it is released.

    It holds for every server on the database.
    """
    known = (*SETS, "operations")
    if name.partition("/")[0] not in known:
        mend = f"Name one of: {', '.join(f'{each}/ID' for each in known)}."
        raise InvalidInput("name", f"{name[:80]!r} holds no record text", mend)
    with closing(_store()) as store:
        store.write(lambda connection: store.holds.add(connection, name)).result()
    typer.echo(f"held: {name}")


@app.command()
def remove(name: str) -> None:
    """Let purges and retention have it again."""
    with closing(_store()) as store:
        held = store.write(lambda connection: store.holds.remove(connection, name)).result()
    if not held:
        raise InvalidInput("name", f"{name[:80]!r} is not held", "See: ptalign-server hold list")
    typer.echo(f"released: {name}")


@app.command("list")
def show() -> None:
    """List what is held."""
    with closing(_store()) as store:
        for name in store.holds.names():
            typer.echo(name)


def _store() -> Store:
    from ptalign_server.store import Store
    from ptalign_server.wire import freeze

    return Store(Settings(), freeze)
