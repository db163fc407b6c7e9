"""The audit trail: append-only, each entry's hash covers the one before it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ptalign_server import failpoints
from ptalign_server.store.db import reading, snapshot
from ptalign_server.store.schema import audit
from ptalign_server.vault import Vault

HEAD = 0
"""Sequence number of the row that is no entry but the trail's length and last hash."""

APPEND_LOCK = 70747
"""PostgreSQL advisory lock of the trail's end, held to the end of the writer's transaction."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Who did what to which resource, and with what said."""

    sequence: int
    time: float
    """Seconds since the epoch."""
    tenant: str
    identity: str
    action: str
    target: str
    detail: Mapping[str, Any]


class Audit:
    """Writes and verifies the trail. A read that must be audited fails when this fails."""

    def __init__(self, engine: sa.Engine, vault: Vault) -> None:
        self._engine = engine
        self._vault = vault

    def begin(self, connection: sa.Connection) -> None:
        """Writes the head of an empty trail: one without a head was cut."""
        self._move_head(connection, 0, "")

    def add(
        self,
        connection: sa.Connection,
        tenant: str,
        identity: str,
        action: str,
        target: str,
        detail: Mapping[str, Any],
    ) -> None:
        """Appends one entry; `detail` holds counts and purposes, never text of records."""
        if connection.dialect.name == "postgresql":
            # Locking the newest row is not enough: who waited for it would still see it as newest.
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(APPEND_LOCK)))
        newest = (
            sa.select(audit.c.sequence, audit.c.hash)
            .where(audit.c.sequence > HEAD)
            .order_by(audit.c.sequence.desc())
            .limit(1)
        )
        last = connection.execute(newest).first()
        sequence = 1 if last is None else int(last.sequence) + 1
        values = {
            "sequence": sequence,
            "time": time.time(),
            "tenant": tenant,
            "identity": identity,
            "action": action,
            "target": target,
            "detail": json.dumps(detail, sort_keys=True),
            "previous": "" if last is None else str(last.hash),
        }
        failpoints.hit("audit_write.before")
        connection.execute(audit.insert().values(**values, hash=self._hash(values)))
        self._move_head(connection, sequence, self._hash(values))
        failpoints.hit("audit_write.after")

    def first_bad(self) -> int:
        """Sequence number of the first entry that was edited, dropped or moved; 0: none."""
        previous, expected = "", 1
        query = sa.select(audit).order_by(audit.c.sequence)
        with snapshot(self._engine) as connection:
            head = connection.execute(query.where(audit.c.sequence == HEAD)).mappings().first()
            for row in connection.execute(query.where(audit.c.sequence > HEAD)).mappings():
                values = {name: row[name] for name in row if name != "hash"}
                good = (
                    values["sequence"] == expected
                    and values["previous"] == previous
                    and self._hash(values) == row["hash"]
                )
                if not good:
                    return expected
                previous, expected = str(row["hash"]), expected + 1
        return 0 if self._ends_at(head, expected - 1, previous) else expected

    def entries(self, *, action: str = "", target: str = "", last: int = 0) -> Iterator[Entry]:
        """Entries in order, as they are: whether nobody changed them says `first_bad`.

        Args:
            action: Only these, such as ``purge``; empty: all.
            target: Only those of one resource, by its name; empty: all.
            last: At most so many, the newest; 0: all.
        """
        query = sa.select(audit).where(audit.c.sequence > HEAD)
        for column, wanted in ((audit.c.action, action), (audit.c.target, target)):
            query = query.where(column == wanted) if wanted else query
        if last:
            newest = query.order_by(audit.c.sequence.desc()).limit(last).subquery()
            query = sa.select(newest)
        rows = query.order_by("sequence")
        with reading(self._engine) as connection:
            for row in connection.execute(rows).mappings():
                kept = {name: row[name] for name in row if name not in ("previous", "hash")}
                yield Entry(**kept | {"detail": json.loads(row["detail"])})

    def count(self) -> int:
        """Entries in the trail."""
        with reading(self._engine) as connection:
            query = sa.select(sa.func.count()).where(audit.c.sequence > HEAD)
            return int(connection.execute(query).scalar_one())

    def _move_head(self, connection: sa.Connection, count: int, last: str) -> None:
        """Row 0 says how long the trail is, so that a cut end is seen."""
        connection.execute(audit.delete().where(audit.c.sequence == HEAD))
        values = _head(count, last)
        connection.execute(audit.insert().values(**values, hash=self._hash(values)))

    def _ends_at(self, head: Mapping[Any, Any] | None, count: int, last: str) -> bool:
        if head is None:
            return False
        values = _head(count, last)
        return all(head[k] == v for k, v in values.items()) and head["hash"] == self._hash(values)

    def _hash(self, values: Mapping[str, Any]) -> str:
        return self._vault.mac("audit", *(values[name] for name in sorted(values)))


def _head(count: int, last: str) -> dict[str, Any]:
    fixed = {"time": 0.0, "tenant": "", "identity": "", "action": "head", "detail": "{}"}
    return {"sequence": HEAD, "target": str(count), "previous": last, **fixed}
