"""A server's name, which one server of a database has at a time.

Durable jobs belong to the name of the server that runs them: a start takes up whatever is under
its name, and two servers of one name would run the same operations at once.
"""

from __future__ import annotations

import logging
import time

import sqlalchemy as sa

from ptalign.errors import NotReady
from ptalign_server.store.db import DatabaseUnavailable

log = logging.getLogger("ptalign.server")
KEEP_SECONDS = 30.0
LOST_AFTER = 3
"""Looks in a row that find the name taken, after which it is: PostgreSQL has let go of a connection
of our own that was lost by then."""
POLL_SECONDS = 0.2
# A machine that is cut off says no goodbye: PostgreSQL finds out in 25 s.
_LASTING = (
    "set local idle_in_transaction_session_timeout = 0",
    "set local tcp_keepalives_idle = 10",
    "set local tcp_keepalives_interval = 5",
    "set local tcp_keepalives_count = 3",
)
_TAKE = sa.text("select pg_try_advisory_xact_lock(70746, hashtext(:name))")


class Name:
    """Holds a name by a lock that ends with this process; on SQLite the folder's lock does.

    The lock is a transaction's, which stays open and reads nothing, so that it holds up no vacuum:
    a session's would outlive us behind a pooler of connections.
    """

    def __init__(self, engine: sa.Engine, name: str) -> None:
        self._engine, self._name = engine, name
        self._connection: sa.Connection | None = None
        self._refused = 0

    def take(self, wait_s: float) -> None:
        """Takes the name.

        Args:
            wait_s: How long the last holder's connection may take to be gone.

        Raises:
            NotReady: Another server has it.
        """
        if self._engine.dialect.name != "postgresql":
            return
        end = time.monotonic() + wait_s
        while not self._taken():
            if time.monotonic() > end:
                self.close()
                raise NotReady(
                    f"another server of this database is called {self._name!r}: they would run "
                    "each other's jobs. Give each server a PTALIGN_EXECUTOR_ID of its own, and the "
                    "same one at each start."
                )
            time.sleep(POLL_SECONDS)

    def keep(self) -> bool:
        """Takes the name again where its connection was lost, as by a restart of the database.

        Returns:
            Whether it may still be ours. Where it is not, this server has to end: another runs
            what stands under it.
        """
        try:
            if self._connection is not None:
                self._connection.execute(sa.text("select 1"))
                return True
        except DatabaseUnavailable:
            self.close()
        try:
            self.take(0)
            self._refused = 0
        except DatabaseUnavailable:
            self.close()  # the log says so elsewhere; tried again
        except NotReady as error:
            log.error("%s", error)
            self._refused += 1
        return self._refused < LOST_AFTER

    def close(self) -> None:
        """Gives the name back."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _taken(self) -> bool:
        if self._connection is None:
            self._connection = self._engine.connect()
            self._connection.detach()  # the pool's connections are for calls
            for statement in _LASTING:
                self._connection.execute(sa.text(statement))
        return bool(self._connection.execute(_TAKE, {"name": self._name}).scalar_one())
