"""`ptalign-server keys`: the operator's key that wraps every set's key, and the signer's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from ptalign.errors import Unsupported
from ptalign_server.admin.stored import WHO, open_store
from ptalign_server.locks import locked_folder
from ptalign_server.settings import Settings
from ptalign_server.vault import KeyFile, operator_keys

if TYPE_CHECKING:
    import sqlalchemy as sa

    from ptalign_server.store import Store

app = typer.Typer(
    help="The operator's keys, and the one that adapters are signed with.", no_args_is_help=True
)


@app.command()
def create() -> None:
    """Make the key file (mode 0600). Back it up: without it, sealed text is lost."""
    settings = Settings()
    if settings.key_command:
        raise Unsupported(
            "keys come from the command of PTALIGN_KEY_COMMAND: make them where it reads them. "
            "To make a key file, unset PTALIGN_KEY_COMMAND."
        )
    key_id, _ = KeyFile.create(settings.key_path).current
    typer.echo(f"{settings.key_path}: key {key_id}. Back it up now, apart from the database.")


@app.command()
def show() -> None:
    """Show the ids of the operator's keys, the current one first; never the keys."""
    for number, key_id in enumerate(operator_keys(Settings()).keys):
        typer.echo(f"{key_id}{' (current)' if number == 0 else ''}")


@app.command()
def signer() -> None:
    """Show the public key that adapters' manifests are signed with (Ed25519, base64).

    Give it to those who check a downloaded adapter: the `key` of its manifest.json must be this
    one. It is the database's own, and stays the same when the operator's keys are rotated.
    """
    from ptalign_server.manifest import Signer

    with open_store() as store:
        typer.echo(Signer(store.vault).public_key)


@app.command()
def rotate() -> None:
    """Wrap every set's key under a fresh operator key. Works while servers run.

    Running servers read the keys again when they meet one they do not know. With
    PTALIGN_KEY_COMMAND the fresh key is the one that you have put first: nothing is written here.
    """
    settings = Settings()
    if settings.key_command:
        rewrap()
        return
    with open_store() as store:  # of another folder's empty one, every key in use would be dropped
        key_id, count = rotate_all(store)
    typer.echo(f"key {key_id} wraps {count} set keys now. Back up {settings.key_path}.")


def rotate_all(store: Store) -> tuple[str, int]:
    """A fresh operator key, every set's key under it, then the older ones dropped.

    Returns:
        Id of the fresh key, and how many set keys it wraps.
    """
    keyfile = store.vault.keyfile
    with locked_folder(keyfile.path.parent):
        key_id = keyfile.add()
        count = rewrap_all(store)
        keyfile.keep_current()
    return key_id, count


def rewrap_all(store: Store) -> int:
    """Every set's key under the key in force, with an entry of the audit trail.

    Returns:
        How many were wrapped anew.
    """

    def enter(connection: sa.Connection, key_id: str, count: int) -> None:
        detail = {"wrapped": count}
        store.audit.add(connection, "", WHO, "rotate keys", f"keys/{key_id}", detail)

    return store.keys.rotate(enter)


@app.command()
def rewrap() -> None:
    """Wrap every set's key under the first of the operator's keys, which are not changed.

    For keys that are kept elsewhere. Mounted secrets: put the new key first, restart, rewrap, then
    drop the old one. PTALIGN_KEY_COMMAND: the same without a restart.
    """
    settings = Settings()
    with open_store() as store:
        count, key_id = rewrap_all(store), store.keys.in_force()
    typer.echo(f"key {key_id} wraps {count} more set keys now; {_older(settings, count)}")


def _older(settings: Settings, count: int) -> str:
    if not settings.key_command:
        return "older keys may go."
    if not count:
        return "put a new key before it to rotate."
    return (
        "older keys may go from what PTALIGN_KEY_COMMAND prints, once this was run on every server "
        "with a database of its own."
    )
