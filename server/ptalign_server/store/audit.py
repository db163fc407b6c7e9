"""The audit trail: append-only, each entry's hash covers the one before it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ptalign_server import failpoints
from ptalign_server.store.db import reading, snapshot
from ptalign_server.store.schema import audit
from ptalign_server.vault import Vault

HEAD = 0
"""Sequence number of the row that is no entry but the trail's length and last hash."""

GATHERED = "ptalign.audit"
"""Of a connection's `info`: entries that wait for the end of its transaction."""

APPEND_LOCK = 70747
"""PostgreSQL advisory lock of the trail's end, held to the end of the writer's transaction."""


# Built once: making an expression costs more than running it, and every call adds an entry.
_ENDS = (
    sa.select(audit.c.sequence, audit.c.hash, audit.c.target)
    .where(
        (audit.c.sequence == HEAD)
        | (audit.c.sequence == sa.select(sa.func.max(audit.c.sequence)).scalar_subquery())
    )
    .order_by(audit.c.sequence)
)
_LOCK = sa.select(sa.func.pg_advisory_xact_lock(APPEND_LOCK))
_INSERT = audit.insert()
_MOVE_HEAD = audit.update().where(audit.c.sequence == HEAD)


@dataclass(frozen=True, slots=True)
class Entry:
    """Who did what to which resource, and with what said."""

    sequence: int
    time: float
    """Seconds since the epoch, when it was asked for: of several servers not quite in order."""
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
        connection.execute(_INSERT, self._head(0, ""))

    def add(
        self,
        connection: sa.Connection,
        tenant: str,
        identity: str,
        action: str,
        target: str,
        detail: Mapping[str, Any],
    ) -> None:
        """Appends one entry; `detail` holds counts and purposes, never text of records.

        Inside `gathering` it is appended with the others of the transaction, at its end: nothing is
        written yet when this returns, and what cannot be undone must wait for the commit.
        """
        entry = {
            "time": time.time(),
            "tenant": tenant,
            "identity": identity,
            "action": action,
            "target": target,
            "detail": json.dumps(detail, sort_keys=True),
        }
        gathered = connection.info.get(GATHERED)
        if gathered is None:
            self._append(connection, [entry])
        else:
            gathered.append(entry)

    @contextmanager
    def gathering(self, connection: sa.Connection) -> Iterator[list[dict[str, Any]]]:
        """Appends what is added to the trail meanwhile together, at the end and in one statement.

        An entry alone takes a query, an insert and an update of the head, which is a fourth of what
        a call costs. Whoever undoes a change takes its entries out of the list.
        """
        info = connection.info  # of a connection that is lost meanwhile it cannot be asked again
        gathered: list[dict[str, Any]] = []
        info[GATHERED] = gathered
        try:
            yield gathered
            if gathered:
                self._append(connection, gathered)
        finally:
            info.pop(GATHERED, None)

    def _append(self, connection: sa.Connection, entries: Sequence[dict[str, Any]]) -> None:
        if connection.dialect.name == "postgresql":
            # Locking the newest row is not enough: who waited for it would still see it as newest.
            connection.execute(_LOCK)
        newest, last, counted = self._end(connection)
        sequence = max(newest, counted)  # after a cut the gap stays, and with it the proof
        rows = []
        for entry in entries:
            sequence += 1
            values = {**entry, "sequence": sequence, "previous": last}
            last = self._hash(values)
            rows.append({**values, "hash": last})
        failpoints.hit("audit_write.before")
        connection.execute(_INSERT, rows)
        # Moved, never made anew: a trail that was wiped stays bad.
        connection.execute(_MOVE_HEAD, self._head(sequence, last))
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

    def entries(
        self, *, action: str = "", target: str = "", identity: str = "", last: int = 0
    ) -> Iterator[Entry]:
        """Entries in order, as they are: whether nobody changed them says `first_bad`.

        Args:
            action: Only these, such as ``purge``; empty: all.
            target: Only those of one resource, by its name, and of the operation that made it,
                which has its id; empty: all.
            identity: Only what this one did, in all tenants; empty: all.
            last: At most so many, the newest; 0: all.
        """
        query = sa.select(audit).where(audit.c.sequence > HEAD)
        for column, wanted in ((audit.c.action, action), (audit.c.identity, identity)):
            query = query.where(column == wanted) if wanted else query
        if target:
            made_by = f"operations/{target.partition('/')[2]}"
            query = query.where(audit.c.target.in_((target, made_by)))
        if last:
            newest = query.order_by(audit.c.sequence.desc()).limit(last).subquery()
            query = sa.select(newest)
        rows = query.order_by("sequence")
        with reading(self._engine) as connection:
            for row in connection.execute(rows).mappings():
                kept = {name: row[name] for name in row if name not in ("previous", "hash")}
                yield Entry(**kept | {"detail": _detail(row["detail"])})

    def count(self) -> int:
        """Entries in the trail."""
        with reading(self._engine) as connection:
            query = sa.select(sa.func.count()).where(audit.c.sequence > HEAD)
            return int(connection.execute(query).scalar_one())

    def _end(self, connection: sa.Connection) -> tuple[int, str, int]:
        """Sequence number and hash of the newest entry, and how many the head says there are."""
        rows = connection.execute(_ENDS).all()
        last = rows[-1] if rows and rows[-1].sequence > HEAD else None
        told = rows[0].target if rows and rows[0].sequence == HEAD else ""
        counted = int(told) if told.isdecimal() else 0
        return (0, "", counted) if last is None else (int(last.sequence), str(last.hash), counted)

    def _head(self, count: int, last: str) -> dict[str, Any]:
        """Row 0 says how long the trail is, so that a cut end is seen."""
        values = _head(count, last)
        return {**values, "hash": self._hash(values)}

    def _ends_at(self, head: Mapping[Any, Any] | None, count: int, last: str) -> bool:
        if head is None:
            return False
        values = _head(count, last)
        return all(head[k] == v for k, v in values.items()) and head["hash"] == self._hash(values)

    def _hash(self, values: Mapping[str, Any]) -> str:
        return self._vault.mac("audit", *(values[name] for name in sorted(values)))


def _detail(text: str) -> Mapping[str, Any]:
    """What an entry says; all of it where it was changed to no JSON: the trail is shown whole."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"damaged": text}


def _head(count: int, last: str) -> dict[str, Any]:
    fixed = {"time": 0.0, "tenant": "", "identity": "", "action": "head", "detail": "{}"}
    return {"sequence": HEAD, "target": str(count), "previous": last, **fixed}
