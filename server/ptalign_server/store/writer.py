"""Group commit: many small changes from many callers, one transaction, one fsync."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa

from ptalign_server.store.audit import Audit
from ptalign_server.store.db import DatabaseAway, DatabaseBusy, DatabaseUnavailable

T = TypeVar("T")
BATCH = 64
TRIES = 6


@dataclass(slots=True)
class _Task:
    change: Callable[[sa.Connection], Any]
    future: Future[Any]
    value: Any = None
    tries: int = 0


class Writer:
    """A thread that applies changes in order. A change's future is done once it is committed.

    Args:
        engine: Of the database.
        audit: Its entries of a transaction are appended together.
    """

    def __init__(self, engine: sa.Engine, audit: Audit) -> None:
        self._engine, self._audit = engine, audit
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._closed = False
        self._ends = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    def submit(self, change: Callable[[sa.Connection], T]) -> Future[T]:
        """Queues a change; an exception in it undoes that change alone.

        Raises:
            RuntimeError: After `close`: nobody would ever make it.
        """
        future: Future[T] = Future()
        with self._ends:
            if self._closed:
                raise RuntimeError("the store is closed")
            self._tasks.put(_Task(change, future))
        return future

    def close(self) -> None:
        """Finishes what is queued."""
        with self._ends:
            self._closed = True
            self._tasks.put(None)
        self._thread.join(timeout=30)

    def _run(self) -> None:
        while (first := self._tasks.get()) is not None:
            batch, last = self._gather(first)
            self._commit([t for t in batch if t.future.set_running_or_notify_cancel()])
            if last:
                return

    def _gather(self, first: _Task) -> tuple[list[_Task], bool]:
        batch = [first]
        while len(batch) < BATCH:
            try:
                task = self._tasks.get_nowait()
            except queue.Empty:
                break
            if task is None:
                return batch, True
            batch.append(task)
        return batch, False

    def _commit(self, batch: list[_Task]) -> None:
        """One transaction for all; when it cannot be committed, one for each.

        That one is made again when another server's change ended it.
        """
        try:
            with self._engine.begin() as connection, self._audit.gathering(connection) as entries:
                errors = [_apply(connection, task, entries) for task in batch]
        except DatabaseAway as error:  # all of it may stand: done again, it could stand twice
            _fail(batch, error)
            return
        except DatabaseBusy as error:
            if error.waited:  # one by one, each would wait as long again
                _fail(batch, error)
            else:
                self._again(batch, error)
            return
        except BaseException as error:
            if len(batch) > 1:
                self._again(batch, error)
            else:
                _fail(batch, error)
            return
        for task, failure in zip(batch, errors, strict=True):
            if failure is None:
                task.future.set_result(task.value)
            else:
                task.future.set_exception(failure)

    def _again(self, batch: list[_Task], error: BaseException) -> None:
        """Each change in a transaction of its own, until it was tried often enough."""
        for task in batch:
            task.tries += 1
            if task.tries < TRIES:
                self._commit([task])
            else:
                _fail([task], error)


def _fail(batch: list[_Task], error: BaseException) -> None:
    for task in batch:
        task.future.set_exception(error)


def _apply(
    connection: sa.Connection, task: _Task, entries: list[dict[str, Any]]
) -> Exception | None:
    """Runs one change in a savepoint; its failure is the caller's alone, and its `entries` go.

    Another server may have inserted the same row (a request id) meanwhile: the change is run again
    and sees it.
    """
    failure: Exception | None = None
    before = len(entries)
    for _ in range(TRIES):
        try:
            with connection.begin_nested():
                task.value = task.change(connection)
            return None
        except DatabaseUnavailable:
            raise  # for all of the batch: its connection or its locks are gone
        except Exception as error:
            if _undone(connection):
                raise  # with it went what the batch had done before, and its end would keep nothing
            failure = error
            del entries[before:]
            if not isinstance(error, sa.exc.IntegrityError):
                break
    return failure


def _undone(connection: sa.Connection) -> bool:
    """Whether the transaction is gone, savepoint and all.

    SQLite rolls it back where a statement meets a full disk, a bad one or too little memory.
    """
    driver: Any = connection.connection.dbapi_connection
    return connection.dialect.name == "sqlite" and not driver.in_transaction
