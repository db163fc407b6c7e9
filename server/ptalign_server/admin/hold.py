"""`ptalign-server hold`: what retention must leave alone."""

from __future__ import annotations

import typer

from ptalign.errors import InvalidInput
from ptalign_server.gateway.reading import SETS
from ptalign_server.gateway.retention import Holds
from ptalign_server.settings import Settings

app = typer.Typer(help="Legal hold: sets that retention leaves alone.", no_args_is_help=True)


@app.command()
def add(name: str) -> None:
    """Hold a set (pairSets/ID) or a stopped operation (operations/ID) until it is released."""
    known = (*SETS, "operations")
    if name.partition("/")[0] not in known:
        mend = f"Name one of: {', '.join(f'{each}/ID' for each in known)}."
        raise InvalidInput("name", f"{name[:80]!r} holds no record text", mend)
    settings = Settings()
    settings.make_folders()
    Holds(settings.state).add(name)
    typer.echo(f"held: {name}")


@app.command()
def remove(name: str) -> None:
    """Let retention have it again."""
    if not Holds(Settings().state).remove(name):
        raise InvalidInput("name", f"{name[:80]!r} is not held", "See: ptalign-server hold list")
    typer.echo(f"released: {name}")


@app.command("list")
def show() -> None:
    """List what is held."""
    for name in Holds(Settings().state).names():
        typer.echo(name)
