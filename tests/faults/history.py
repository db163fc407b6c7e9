"""The history checker: what was acknowledged is there once, and nothing is left hanging."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa
from google.longrunning import operations_pb2 as lro
from running import Running, progress, state_of
from world import opened, records_of, settings_of

from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server.store import Store

WITH_RECORDS = ("instructionSets", "pairSets")
"""Resources whose records are compared; an adapter or an evaluation has none."""


@dataclass
class History:
    """What a client and the disk had acknowledged before each kill."""

    operations: set[str] = field(default_factory=set)
    """Names that a call returned."""
    items: dict[str, str] = field(default_factory=dict)
    """Instruction text of a record that was on disk -> its operation."""


@dataclass
class Findings:
    """What the checker counts; all but `finished` must be zero."""

    finished: int = 0
    stuck: int = 0
    failed: int = 0
    """Counted by tests in which nothing but the kills stands against success."""
    lost_operations: int = 0
    doubled_operations: int = 0
    lost_items: int = 0
    doubled_items: int = 0
    broken_chains: int = 0
    damaged_stores: int = 0

    @property
    def bad(self) -> int:
        return sum(vars(self).values()) - self.finished


def check(server: Running, history: History, *, seconds: float = 120.0) -> Findings:
    """Waits for every operation's end and compares the library with the history."""
    found = Findings()
    for name in history.operations:
        operation = _ended(server, name, seconds)
        if operation is None:
            found.lost_operations += 1
            continue
        found.finished += operation.done
        if not operation.done:
            found.stuck += 1
            print(operation.metadata, server.worker_log())
            continue
        found.broken_chains += _gaps(server, name)
        made = progress(operation).resource.partition("/")[0]
        if state_of(operation) == "SUCCEEDED" and made in WITH_RECORDS:
            _items(server, operation, history, found)
    found.damaged_stores += not intact(server)
    return found


def intact(where: Path | Running) -> bool:
    """The database's own check, and the audit chain."""
    settings = settings_of(where)
    with opened(where) as store:
        whole = _sqlite_whole(settings.state) if settings.embedded else _postgres_whole(store)
        return whole and store.audit.first_bad() == 0


def _sqlite_whole(state: Path) -> bool:
    """SQLite's own check on both databases."""
    for name in ("ptalign.db", "jobs.db"):
        if not (state / name).exists():
            continue  # killed before the worker made it
        with sqlite3.connect(f"file:{state / name}?mode=ro", uri=True) as connection:
            if connection.execute("pragma integrity_check").fetchall() != [("ok",)]:
                return False
    return True


_HEAPS = """
select count(*) from pg_class as c, lateral verify_heapam(c.oid)
where c.relkind = 'r' and c.relnamespace::regnamespace::text in ('public', 'dbos')
"""
_INDEXES = """
select count(bt_index_check(c.oid, true)) from pg_class as c join pg_am on pg_am.oid = c.relam
where amname = 'btree' and c.relkind = 'i'
    and c.relnamespace::regnamespace::text in ('public', 'dbos')
"""
"""Raises when an index misses a row of its table."""


def _postgres_whole(store: Store) -> bool:
    """PostgreSQL's own check on every table and index, ours and the job library's."""
    with store.engine.begin() as connection:
        connection.execute(sa.text("create extension if not exists amcheck"))
        try:
            assert connection.execute(sa.text(_INDEXES)).scalar()
            return connection.execute(sa.text(_HEAPS)).scalar() == 0
        except sa.exc.DBAPIError as error:
            print(error)
            return False


def unasked(where: Path | Running, history: History) -> int:
    """Operations that no call returned: a call that was sent again made one of its own."""
    with opened(where) as store:
        found = store.operations.page("default", 10_000)
    return len({f"operations/{operation.id}" for operation in found} - history.operations)


def failures(server: Running, history: History) -> int:
    """Operations that ended otherwise than well; each is shown."""
    bad = 0
    for name in sorted(history.operations):
        operation = server.operations.GetOperation(lro.GetOperationRequest(name=name), timeout=10)
        if operation.done and state_of(operation) != "SUCCEEDED":
            print(name, state_of(operation), operation.error)
            bad += 1
    return bad


def doubles(texts: Iterable[str]) -> int:
    """Texts that come more than once."""
    return sum(n - 1 for n in Counter(texts).values())


def _ended(server: Running, name: str, seconds: float) -> lro.Operation | None:
    import grpc

    try:
        request = lro.WaitOperationRequest(name=name)
        request.timeout.FromMilliseconds(int(seconds * 1000))
        found: lro.Operation = server.operations.WaitOperation(request, timeout=seconds + 10)
        return found
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.NOT_FOUND:
            return None
        raise


def _gaps(server: Running, name: str) -> int:
    """1 when the events are not numbered 1, 2, 3, ... up to the last."""
    events = list(server.tuning.WatchOperation(pb.WatchOperationRequest(name=name), timeout=30))
    return int([e.sequence for e in events] != list(range(1, len(events) + 1)))


def _items(server: Running, operation: lro.Operation, history: History, found: Findings) -> None:
    texts = [r.instruction for r in records_of(server, progress(operation).resource)]
    wanted = [text for text, name in history.items.items() if name == operation.name]
    found.lost_items += len(set(wanted) - set(texts))
    found.doubled_items += doubles(texts)
