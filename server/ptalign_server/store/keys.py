"""Wrapped set keys in the database."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from ptalign.errors import DataDamaged
from ptalign_server.errors import SetPurged
from ptalign_server.store.db import exclusive, reading
from ptalign_server.store.holds import refuse_held
from ptalign_server.store.schema import set_keys
from ptalign_server.vault import SetKey, Vault
from ptalign_server.vault.seal import key_id_of

MAC = "mac"
"""Row of the key of the MACs. A rotation moves it with all others in one transaction, so the key
that wraps it is the operator's key in force, whatever a server has last read."""
_INSERT = set_keys.insert()
_IN_FORCE = sa.select(set_keys.c.wrapped).where(set_keys.c.set_id == MAC)


log = logging.getLogger("ptalign.server")
CHECKPOINT_TRIES = 50


def no_keys(engine: sa.Engine) -> bool:
    """Whether nothing was ever sealed here: only then may an operator's key be made anew."""
    with reading(engine) as connection:
        return connection.execute(sa.select(set_keys.c.set_id).limit(1)).first() is None


class Keys:
    """Makes, finds, rotates and destroys set keys.

    Args:
        begin: Called once in the life of a database, in the transaction that makes its MAC key.
    """

    def __init__(
        self, engine: sa.Engine, vault: Vault, begin: Callable[[sa.Connection], None]
    ) -> None:
        self._engine = engine
        self._vault = vault
        self._use_mac_key(begin)

    def insert(self, connection: sa.Connection, set_id: str, wrapped: bytes) -> None:
        """Stores a wrapped key, under the operator's key in force.

        A rotation may have ended since it was wrapped, or since this server read its keys. Looking
        after the insert leaves no gap: the rotation's transaction waits for this one, or is seen.

        Raises:
            KeysAway, DataDamaged: The key in force is not known here and cannot be had.
        """
        connection.execute(_INSERT, {"set_id": set_id, "wrapped": wrapped})
        found: Any = connection.execute(_IN_FORCE).scalar_one()
        if key_id_of(bytes(found)) != key_id_of(wrapped):
            self._wrap_anew(connection, set_id, wrapped, self._vault.meet(MAC, bytes(found)))

    def get(self, set_id: str) -> SetKey:
        """A set's key.

        Raises:
            SetPurged: The key was destroyed.
            KeysAway, DataDamaged: The operator's key that wraps it cannot be had.
        """
        wrapped = self._wrapped(set_id)
        if wrapped is None:
            raise SetPurged(f"the text of set {set_id} was purged; counts and digests remain.")
        try:
            return self._vault.unwrap(set_id, wrapped)
        except DataDamaged:
            now = self._wrapped(set_id)  # a rotation may have ended between row and key file
            if now is None or now == wrapped:
                raise
            return self._vault.unwrap(set_id, now)

    def destroy(self, connection: sa.Connection, set_id: str) -> None:
        """Removes a key for good.

        Looking for a hold after the row is locked leaves no gap (see `Holds.add`).

        Raises:
            OnHold: It is held.
        """
        connection.execute(set_keys.delete().where(set_keys.c.set_id == set_id))
        refuse_held(connection, set_id)

    def truncate_wal(self) -> None:
        """Leaves no old page with a destroyed key in SQLite's write-ahead log."""
        if self._engine.dialect.name != "sqlite":
            return
        raw = self._engine.raw_connection()
        try:
            for _ in range(CHECKPOINT_TRIES):
                cursor = raw.cursor()
                cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                row = cursor.fetchone()
                if row is None or not row[0]:  # the first column says whether it was busy
                    return
                time.sleep(0.1)  # a reader still needs the old pages
            log.warning("old pages stay in the write-ahead log until its next checkpoint")
        finally:
            raw.close()

    def rotate(self, enter: Callable[[sa.Connection, str, int], None] | None = None) -> int:
        """Wraps every key under the operator's current key.

        Args:
            enter: Told the key's id and how many were wrapped anew, inside the transaction, where
                there are any: for the audit trail.

        Returns:
            How many were wrapped anew.
        """
        operator, count = self._vault.operator, 0
        operator.reload()
        with self._engine.begin() as connection:
            if connection.dialect.name == "postgresql":  # waits for inserts that are under way
                connection.execute(sa.text("lock table set_keys in share row exclusive mode"))
            rows = connection.execute(sa.select(set_keys)).all()
            for row in rows:  # another rotation may have ended since: its key comes first then
                self._vault.meet(row.set_id, bytes(row.wrapped))
            key_id, _ = operator.current
            for row in rows:
                if key_id_of(bytes(row.wrapped)) != key_id:
                    self._wrap_anew(connection, row.set_id, bytes(row.wrapped), key_id)
                    count += 1
            if count and enter is not None:
                enter(connection, key_id, count)
        return count

    def in_force(self) -> str:
        """Id of the operator's key that wraps everything since the last rotation."""
        wrapped = self._wrapped(MAC)
        assert wrapped is not None
        return key_id_of(wrapped)

    def _wrap_anew(
        self, connection: sa.Connection, set_id: str, wrapped: bytes, key_id: str
    ) -> None:
        change = set_keys.update().where(set_keys.c.set_id == set_id)
        connection.execute(change.values(wrapped=self._vault.rewrap(set_id, wrapped, key_id)))

    def _use_mac_key(self, begin: Callable[[sa.Connection], None]) -> None:
        wrapped = self._wrapped(MAC)
        if wrapped is None:
            with exclusive(self._engine) as connection:
                known = connection.execute(self._query(MAC)).scalar()
                if known is None:
                    made = self._vault.fresh_mac_key()
                    self.insert(connection, MAC, made)
                    self._vault.use_mac_key(made)
                    begin(connection)
            wrapped = self._wrapped(MAC)
        assert wrapped is not None
        self._vault.use_mac_key(wrapped)

    def _wrapped(self, set_id: str) -> bytes | None:
        with reading(self._engine) as connection:
            found: Any = connection.execute(self._query(set_id)).scalar()
        return None if found is None else bytes(found)

    def _query(self, set_id: str) -> sa.Select[tuple[bytes]]:
        return sa.select(set_keys.c.wrapped).where(set_keys.c.set_id == set_id)
