"""`ptalign-server keys`: the operator's key that wraps every set's key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from ptalign_server.settings import Settings
from ptalign_server.vault import KeyFile

if TYPE_CHECKING:
    from ptalign_server.store import Store

app = typer.Typer(help="The operator's key file.", no_args_is_help=True)


@app.command()
def create() -> None:
    """Make the key file (mode 0600). Back it up: without it, sealed text is lost."""
    settings = Settings()
    key_id, _ = KeyFile.create(settings.key_path).current
    typer.echo(f"{settings.key_path}: key {key_id}. Back it up now, apart from the database.")


@app.command()
def show() -> None:
    """Show the ids of the keys in the file, the current one first; never the keys."""
    settings = Settings()
    for number, key_id in enumerate(KeyFile(settings.key_path).keys):
        typer.echo(f"{key_id}{' (current)' if number == 0 else ''}")


@app.command()
def rotate() -> None:
    """Wrap every set's key under a fresh operator key. Works while servers run.

    Running servers read the file again when they meet a key they do not know.
    """
    from ptalign_server.store import Store
    from ptalign_server.wire import freeze

    settings = Settings()
    store = Store(settings, freeze)
    key_id, count = rotate_all(store)
    store.close()
    typer.echo(f"key {key_id} wraps {count} set keys now. Back up {settings.key_path}.")


def rotate_all(store: Store) -> tuple[str, int]:
    """A fresh operator key, every set's key under it, then the older ones dropped.

    Returns:
        Id of the fresh key, and how many set keys it wraps.
    """
    key_id = store.vault.keyfile.add()
    count = store.keys.rotate()
    store.vault.keyfile.keep_current()
    return key_id, count


@app.command()
def rewrap() -> None:
    """Wrap every set's key under the first key of the file, which is not changed.

    For key files that are mounted secrets: put the new key first, restart, rewrap, then drop the
    old one.
    """
    from ptalign_server.store import Store
    from ptalign_server.wire import freeze

    store = Store(Settings(), freeze)
    count, key_id = store.keys.rotate(), store.vault.keyfile.current[0]
    store.close()
    typer.echo(f"key {key_id} wraps {count} more set keys now; older keys may go.")
