"""`ptalign-server audit`: the hash-chained trail."""

from __future__ import annotations

import typer

from ptalign_server.settings import Settings

app = typer.Typer(help="The audit trail.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Keeps `verify` a subcommand."""


@app.command()
def verify() -> None:
    """Check every entry against the one before it: exit 1 names the first bad one."""
    from ptalign_server.store import Store
    from ptalign_server.wire import freeze

    store = Store(Settings(), freeze)
    bad, count = store.audit.first_bad(), store.audit.count()
    store.close()
    if bad:
        typer.echo(f"entry {bad} was edited, removed or moved", err=True)
        raise typer.Exit(1)
    typer.echo(f"{count} entries, all in order")
