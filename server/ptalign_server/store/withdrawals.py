"""Adapters that the operator took out of service, whatever their evaluations say."""

from __future__ import annotations

import sqlalchemy as sa

from ptalign.errors import InvalidInput
from ptalign_server.store.db import reading
from ptalign_server.store.schema import resources, withdrawals


class Withdrawals:
    """Names of adapters that `newest_released` passes over."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def names(self) -> list[str]:
        """What is withdrawn."""
        query = sa.select(withdrawals.c.name).order_by(withdrawals.c.name)
        with reading(self._engine) as connection:
            return [str(name) for name in connection.execute(query).scalars()]

    def add(self, connection: sa.Connection, name: str) -> bool:
        """Withdraws an adapter until `remove`; whether it was not withdrawn yet.

        Its row must be there and is not read: a damaged one can be withdrawn too.

        Raises:
            InvalidInput: There is no such adapter.
        """
        columns = resources.c
        known = sa.select(columns.name).where(
            columns.name == name, columns.collection == "adapters"
        )
        if connection.execute(known).first() is None:
            limit = f"{name[:80]!r} is no adapter"
            raise InvalidInput("name", limit, "Look the name up: ptalign list adapters")
        found = sa.select(withdrawals.c.name).where(withdrawals.c.name == name)
        if connection.execute(found).first() is not None:
            return False
        connection.execute(withdrawals.insert().values(name=name))
        return True

    def remove(self, connection: sa.Connection, name: str) -> bool:
        """Lets its evaluations decide again; whether it was withdrawn."""
        gone = connection.execute(withdrawals.delete().where(withdrawals.c.name == name))
        return gone.rowcount > 0
