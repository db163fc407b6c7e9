"""Legal holds: what no purge, no retention and no deletion destroys, whichever server was told."""

from __future__ import annotations

import json
from pathlib import Path

import sqlalchemy as sa

from ptalign.errors import DataDamaged, InvalidInput
from ptalign_server.errors import OnHold
from ptalign_server.store.db import exclusive, reading
from ptalign_server.store.schema import holds, resources, set_keys


class Holds:
    """Names that were told to be kept; `refuse_held` keeps their keys and files."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def names(self) -> list[str]:
        """What is held."""
        query = sa.select(holds.c.name).order_by(holds.c.name)
        with reading(self._engine) as connection:
            return [str(name) for name in connection.execute(query).scalars()]

    def add(self, connection: sa.Connection, name: str) -> bool:
        """Holds a set, an adapter or an operation until `remove`; whether it was not held yet.

        Raises:
            InvalidInput: There is nothing to hold.
        """
        purged = sa.select(resources.c.purged).where(resources.c.name == name)
        there = lock_key(connection, name.partition("/")[2])
        if not there or connection.execute(purged).scalar():
            limit = f"{name[:80]!r} has no text or files: never made, or it is purged or deleted"
            raise InvalidInput("name", limit, "Look the name up: ptalign list")
        return _insert(connection, name)

    def remove(self, connection: sa.Connection, name: str) -> bool:
        """Lets purges and retention have it again; whether it was held."""
        return connection.execute(holds.delete().where(holds.c.name == name)).rowcount > 0

    def take_over(self, file: Path) -> None:
        """Moves in the holds of a version that kept them in a file of each server's own.

        Raises:
            DataDamaged: It cannot be read, and nobody knows what must not be destroyed.
        """
        try:
            names = json.loads(file.read_text())
        except FileNotFoundError:
            return
        except ValueError:
            raise DataDamaged(
                f"{file} names what is under legal hold and cannot be read. Restore it from a "
                "backup, or remove it and hold again what it named: ptalign-server hold add"
            ) from None
        with exclusive(self._engine) as connection:
            for name in names:
                _insert(connection, name)
        file.unlink(missing_ok=True)


def lock_key(connection: sa.Connection, set_id: str) -> bool:
    """Locks what a hold and a destruction both need: one goes first, the other sees what it did.

    Returns:
        Whether the key is there.
    """
    key = sa.select(set_keys.c.set_id).where(set_keys.c.set_id == set_id).with_for_update()
    return connection.execute(key).first() is not None


def refuse_held(connection: sa.Connection, set_id: str) -> None:
    """Ends a change that destroys what belongs to a set or an operation that is held.

    Raises:
        OnHold: Under whichever name it is held.
    """
    query = sa.select(holds.c.name).where(holds.c.name.endswith(f"/{set_id}", autoescape=True))
    if name := connection.execute(query).scalar():
        raise OnHold(str(name))


def _insert(connection: sa.Connection, name: str) -> bool:
    if connection.execute(sa.select(holds.c.name).where(holds.c.name == name)).first() is not None:
        return False
    connection.execute(holds.insert().values(name=name))
    return True
