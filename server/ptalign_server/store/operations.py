"""Operations and their events: one row each, changed together in one transaction."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import sqlalchemy as sa

from ptalign.errors import DataDamaged
from ptalign_server.errors import NotFound
from ptalign_server.store.db import HeavyRow, kinds_of, of_their_kinds, reading
from ptalign_server.store.schema import events, operations, set_keys
from ptalign_server.vault import Vault

log = logging.getLogger("ptalign.server")
VALIDATING = "VALIDATING"
QUEUED = "QUEUED"
RUNNING = "RUNNING"
CANCELLING = "CANCELLING"
SUCCEEDED = "SUCCEEDED"
FAILED = "FAILED"
CANCELLED = "CANCELLED"
WAITING = (VALIDATING, QUEUED)
TERMINAL = (SUCCEEDED, FAILED, CANCELLED)
UNDER_WAY = (VALIDATING, QUEUED, RUNNING, CANCELLING)
STATES = (*UNDER_WAY, *TERMINAL)
REMEMBERED_BYTES = 4096
"""Of a row's call; a larger one is checked each time, and not read on the event loop."""
MAX_REMEMBERED = 1024
"""Rows of one `Operations`: 8 MB at most."""
DROPPED_AT_ONCE = 5000
"""Events removed in one transaction: some 20 ms of the one writer."""
READ_AT_ONCE = 500
"""Events read by one query."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of `operations`. Times are seconds since the epoch, 0 where not yet."""

    id: str
    tenant: str
    identity: str
    kind: str
    state: str
    sequence: int
    attempt: int
    request: bytes
    """The call, sealed under the key of what it makes."""
    metadata: bytes
    """Typed metadata message of the verb, serialised."""
    error: bytes
    resource: str
    created: float
    started: float
    updated: float
    ended: float

    @property
    def done(self) -> bool:
        return self.state in TERMINAL


_KINDS = kinds_of(Operation)


@dataclass(frozen=True, slots=True)
class Event:
    """One change of an operation, as watchers see it."""

    sequence: int
    body: bytes
    """The operation after the change, as `Operations.freeze` wrote it."""


# Built once: making an expression costs more than running it.
_INSERT = operations.insert()
_EMIT = events.insert()


def _rows(light: bool) -> sa.Select[Any]:
    """All columns; `light`: without a call that is large, which is not even read then."""
    call = operations.c.request
    if not light:
        return sa.select(operations)
    small = sa.case((sa.func.length(call) <= REMEMBERED_BYTES, call)).label("request")
    return sa.select(*(small if column is call else column for column in operations.c))


_GET = {
    light: _rows(light).where(operations.c.id == sa.bindparam("wanted")) for light in (False, True)
}
COUNTED = "ptalign.waiting"
"""Of a connection's `info`: a transaction and how many operations waited in it."""
LATELY = 0.1
"""Seconds that a count of the queue may be old, where the writer counts again."""
_WAITING = sa.select(sa.func.count()).where(operations.c.state.in_(WAITING))


@cache
def _page(before: bool, kind: bool, states: bool, light: bool) -> sa.Select[Any]:
    """A page of a tenant's operations, newest first, under the conditions that are given."""
    columns, wanted = operations.c, sa.bindparam
    query = _rows(light).where(columns.tenant == wanted("tenant"))
    if before:
        query = query.where(columns.id < wanted("before"))
    if kind:
        query = query.where(columns.kind == wanted("kind"))
    if states:
        query = query.where(columns.state.in_(wanted("states", expanding=True)))
    return query.order_by(columns.id.desc()).limit(wanted("size"))


Freeze = Callable[[Operation], bytes]
Change = Callable[[Operation], Operation | None]
Damaged = Callable[[str], None]


ID = re.compile(r"[0-9a-f]{24}")


def new_id() -> str:
    """An id that sorts by time: 12 hex digits of milliseconds, 12 random ones."""
    return f"{int(time.time() * 1000):012x}{secrets.token_hex(6)}"


class Operations:
    """Reads and changes operations.

    Args:
        freeze: Turns a row into the event body that watchers receive.
        light: Refuse to read a large row in `get` and `page`: `HeavyRow`.
    """

    def __init__(
        self, engine: sa.Engine, vault: Vault, freeze: Freeze, *, light: bool = False
    ) -> None:
        self._engine = engine
        self._vault = vault
        self._freeze = freeze
        self._light = light
        self._lately = 0, -LATELY
        self._intact_rows: dict[str, tuple[tuple[Any, ...], Operation]] = {}

    def insert(self, connection: sa.Connection, operation: Operation) -> Operation:
        """Adds a new operation with its first event."""
        connection.execute(_INSERT, self._signed(operation))
        self._emit(connection, operation)
        if operation.state in WAITING:
            if known := connection.info.get(COUNTED):
                connection.info[COUNTED] = known[0], known[1] + 1
            counted, at = self._lately
            self._lately = counted + 1, at
        return operation

    def advance(self, operation_id: str, change: Change) -> Operation:
        """Changes an operation and adds an event, or leaves it when `change` returns None.

        Returns:
            The operation after the change.
        """
        with self._engine.begin() as connection:
            return self.advance_in(connection, operation_id, change)

    def advance_in(self, connection: sa.Connection, operation_id: str, change: Change) -> Operation:
        """`advance` inside a transaction of the caller."""
        query = sa.select(operations).where(operations.c.id == operation_id).with_for_update()
        before = self._checked(connection.execute(query).mappings().first())
        after = change(before)
        if after is None:
            return before
        after = replace(after, sequence=before.sequence + 1, updated=time.time())
        values = self._signed(after)
        connection.execute(
            operations.update().where(operations.c.id == operation_id).values(**values)
        )
        self._emit(connection, after)
        return after

    def get(self, operation_id: str, tenant: str | None = None) -> Operation:
        """One operation.

        Raises:
            NotFound: There is none, or it is another tenant's.
        """
        with reading(self._engine) as connection:
            row = connection.execute(_GET[self._light], {"wanted": operation_id}).mappings().first()
        found = self._checked(row)
        if tenant is not None and found.tenant != tenant:
            raise NotFound
        return found

    def page(
        self,
        tenant: str,
        size: int,
        *,
        before: str = "",
        kind: str = "",
        states: Sequence[str] = (),
    ) -> list[Operation]:
        """At most `size` operations, newest first, older than the id `before`."""
        query = _page(bool(before), bool(kind), bool(states), self._light)
        values = {"tenant": tenant, "size": size, "before": before, "kind": kind, "states": states}
        with reading(self._engine) as connection:
            rows = connection.execute(query, values).mappings().all()
        return [self._checked(row) for row in rows]

    def in_states(self, states: Iterable[str], limit: int = 1000) -> list[Operation]:
        """Operations of all tenants in these states, oldest first.

        A row that was changed on disk is left out: it must not hold up the others.
        """
        query = sa.select(operations).where(operations.c.state.in_(tuple(states)))
        with reading(self._engine) as connection:
            rows = connection.execute(query.order_by(operations.c.id).limit(limit)).mappings().all()
        return [found for row in rows if (found := self._intact(row)) is not None]

    def under_way(
        self, damaged: Damaged, size: int = 500, states: Iterable[str] = UNDER_WAY
    ) -> Iterator[Operation]:
        """Every operation of all tenants that is not done, oldest first, `size` rows at a time.

        Args:
            damaged: Told the name of each row that was changed on disk; it is left out.
            states: Those alone that are in one of these.
        """
        query = sa.select(operations).where(operations.c.state.in_(tuple(states)))
        return self._in_pages(query, damaged, size)

    def ended_before(self, cutoff: float, damaged: Damaged) -> list[Operation]:
        """Operations that made nothing, ended before `cutoff`, and whose key is still there.

        Args:
            damaged: Told the name of each row that was changed on disk; it is left out.
        """
        query = sa.select(operations).where(
            operations.c.state.in_(TERMINAL),
            operations.c.ended < cutoff,
            operations.c.resource == "",
            operations.c.id.in_(sa.select(set_keys.c.set_id)),
        )
        with reading(self._engine) as connection:
            rows = connection.execute(query).mappings().all()
        return list(self._intact_ones(rows, damaged))

    def with_history(self, cutoff: float, damaged: Damaged, size: int = 500) -> Iterator[Operation]:
        """Operations that ended before `cutoff` and have events before their last, oldest first.

        Args:
            damaged: Told the name of each row that was changed on disk; it is left out.
        """
        earlier = sa.exists().where(
            events.c.operation == operations.c.id, events.c.sequence < operations.c.sequence
        )
        query = sa.select(operations).where(
            operations.c.state.in_(TERMINAL), operations.c.ended < cutoff, earlier
        )
        return self._in_pages(query, damaged, size)

    def drop_history(self, connection: sa.Connection, operation: Operation) -> bool:
        """Removes the oldest events of an operation that has ended, never the last.

        Returns:
            Whether any were there. At most `DROPPED_AT_ONCE` go, or callers' commits would wait.
        """
        own, number = events.c.operation == operation.id, events.c.sequence
        first = connection.execute(sa.select(sa.func.min(number)).where(own)).scalar()
        if first is None or first >= operation.sequence:
            return False
        end = min(first + DROPPED_AT_ONCE, operation.sequence)
        connection.execute(events.delete().where(own, number < end))
        return True

    def ids_in(self, states: Iterable[str]) -> list[str]:
        """Ids alone, for polling."""
        query = sa.select(operations.c.id).where(operations.c.state.in_(tuple(states)))
        with reading(self._engine) as connection:
            return [str(row[0]) for row in connection.execute(query)]

    def counts(self) -> dict[tuple[str, str], int]:
        """Operations by kind and state."""
        columns = (operations.c.kind, operations.c.state)
        query = sa.select(*columns, sa.func.count()).group_by(*columns)
        with reading(self._engine) as connection:
            return {(str(k), str(s)): int(n) for k, s, n in connection.execute(query)}

    def waiting(self, connection: sa.Connection) -> int:
        """How many operations wait to run.

        Counting takes as long as the queue is, so it is done once a transaction; what the
        transaction inserts is added, and stays in the count where it was undone.
        """
        transaction, known = connection.get_transaction(), connection.info.get(COUNTED)
        if transaction is not None and known is not None and known[0] is transaction:
            return int(known[1])
        counted = int(connection.execute(_WAITING).scalar_one())
        if transaction is not None:  # a read has none
            connection.info[COUNTED] = transaction, counted
        return counted

    def waited_lately(self) -> int:
        """The same, `LATELY` seconds old at most: for what the writer looks at again."""
        counted, at = self._lately
        if time.monotonic() - at > LATELY:
            with reading(self._engine) as connection:
                counted = self.waiting(connection)
            self._lately = counted, time.monotonic()
        return counted

    def delete(self, connection: sa.Connection, operation_id: str) -> None:
        """Removes an operation and its events; what it made stays."""
        connection.execute(events.delete().where(events.c.operation == operation_id))
        connection.execute(operations.delete().where(operations.c.id == operation_id))

    def sequences(self, ids: Iterable[str]) -> dict[str, int]:
        """Newest sequence number per operation."""
        query = sa.select(operations.c.id, operations.c.sequence).where(
            operations.c.id.in_(tuple(ids))
        )
        with reading(self._engine) as connection:
            return {str(i): int(s) for i, s in connection.execute(query)}

    def events(self, operation_id: str, after: int) -> list[Event]:
        """The first `READ_AT_ONCE` events with a sequence number above `after`, in order."""
        query = (
            sa.select(events)
            .where(events.c.operation == operation_id, events.c.sequence > after)
            .order_by(events.c.sequence)
            .limit(READ_AT_ONCE)
        )
        with reading(self._engine) as connection:
            return [self._event(row) for row in connection.execute(query).mappings()]

    def _event(self, row: Mapping[Any, Any]) -> Event:
        mac = self._vault.mac("event", row["operation"], row["sequence"], row["body"])
        if mac != row["mac"] or not isinstance(row["body"], bytes):
            raise DataDamaged(f"event {row['sequence']} of operation {row['operation']} changed")
        return Event(int(row["sequence"]), row["body"])

    def _emit(self, connection: sa.Connection, operation: Operation) -> None:
        body = self._freeze(operation)
        mac = self._vault.mac("event", operation.id, operation.sequence, body)
        values = {
            "operation": operation.id,
            "sequence": operation.sequence,
            "time": operation.updated,
            "body": body,
            "mac": mac,
        }
        connection.execute(_EMIT, values)

    def _signed(self, operation: Operation) -> dict[str, Any]:
        values = asdict(operation)
        return {**values, "mac": self._mac(values)}

    def _mac(self, values: Mapping[str, Any]) -> str:
        return self._vault.mac("operation", *(values[f] for f in Operation.__slots__))

    def _in_pages(self, query: sa.Select[Any], damaged: Damaged, size: int) -> Iterator[Operation]:
        last = ""
        while True:
            page = query.where(operations.c.id > last).order_by(operations.c.id).limit(size)
            with reading(self._engine) as connection:
                rows = connection.execute(page).mappings().all()
            yield from self._intact_ones(rows, damaged)
            if len(rows) < size:
                return
            last = str(rows[-1]["id"])

    def _intact_ones(
        self, rows: Iterable[Mapping[Any, Any]], damaged: Damaged
    ) -> Iterator[Operation]:
        for row in rows:
            found = self._intact(row)
            if found is None:
                damaged(f"operations/{row['id']}")
            else:
                yield found

    def _intact(self, row: Mapping[Any, Any]) -> Operation | None:
        try:
            return self._checked(row)
        except DataDamaged as error:
            log.error("%s", error)
            return None

    def _checked(self, row: Mapping[Any, Any] | None) -> Operation:
        if row is None:
            raise NotFound
        if row["request"] is None:
            raise HeavyRow
        # The same bytes under the same MAC need no second look, and most reads are of rows that
        # somebody asks for again and again.
        whole = tuple(row.values())
        known = self._intact_rows.get(row["id"])
        if known is not None and known[0] == whole:
            return known[1]
        values = {name: row[name] for name in Operation.__slots__}
        if not of_their_kinds(values, _KINDS) or self._mac(values) != row["mac"]:
            raise DataDamaged(
                f"operation {values['id']} was changed in the database. Restore it from a backup."
            )
        found = Operation(**values)
        if len(found.request) <= REMEMBERED_BYTES:
            if len(self._intact_rows) >= MAX_REMEMBERED:
                self._intact_rows.clear()
            self._intact_rows[found.id] = whole, found
        return found
