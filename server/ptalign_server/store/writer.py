"""Group commit: many small changes from many callers, one transaction, one fsync."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa

T = TypeVar("T")
BATCH = 64


@dataclass(slots=True)
class _Task:
    change: Callable[[sa.Connection], Any]
    future: Future[Any]
    value: Any = None


class Writer:
    """A thread that applies changes in order. A change's future is done once it is committed."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    def submit(self, change: Callable[[sa.Connection], T]) -> Future[T]:
        """Queues a change; an exception in it undoes that change alone."""
        future: Future[T] = Future()
        self._tasks.put(_Task(change, future))
        return future

    def close(self) -> None:
        """Finishes what is queued."""
        self._tasks.put(None)
        self._thread.join(timeout=30)

    def _run(self) -> None:
        while (first := self._tasks.get()) is not None:
            batch, last = self._gather(first)
            self._commit(batch)
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
        done: list[_Task] = []
        try:
            with self._engine.begin() as connection:
                for task in batch:
                    if _apply(connection, task):
                        done.append(task)
        except BaseException as error:
            for task in done:
                task.future.set_exception(error)
            for task in batch:
                if not task.future.done():
                    task.future.set_exception(error)
            return
        for task in done:
            task.future.set_result(task.value)


def _apply(connection: sa.Connection, task: _Task) -> bool:
    """Runs one change in a savepoint; its failure is the caller's alone."""
    if not task.future.set_running_or_notify_cancel():
        return False
    try:
        with connection.begin_nested():
            task.value = task.change(connection)
    except Exception as error:
        task.future.set_exception(error)
        return False
    return True
