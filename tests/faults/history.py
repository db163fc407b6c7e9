"""The history checker: what was acknowledged is there once, and nothing is left hanging."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from google.longrunning import operations_pb2 as lro
from running import Running, progress, state_of
from world import opened, records_of

from ptalign_proto.v1 import safety_tuning_pb2 as pb

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
    lost_operations: int = 0
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
    found.damaged_stores += not intact(server.state)
    return found


def intact(state: Path) -> bool:
    """SQLite's own check on both databases, and the audit chain."""
    for name in ("ptalign.db", "jobs.db"):
        if not (state / name).exists():
            continue  # killed before the worker made it
        with sqlite3.connect(f"file:{state / name}?mode=ro", uri=True) as connection:
            if connection.execute("pragma integrity_check").fetchall() != [("ok",)]:
                return False
    with opened(state) as store:
        return store.audit.first_bad() == 0


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
