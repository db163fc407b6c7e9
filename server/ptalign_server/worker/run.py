"""The worker process: durable jobs on dbos, the pool, and a small control socket."""

from __future__ import annotations

import json
import logging
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from dbos import DBOS, DBOSConfig, Serializer, SetWorkflowID

from ptalign.errors import DataDamaged, PtalignError
from ptalign_server import logs, wire
from ptalign_server.catalogue import Catalogue
from ptalign_server.errors import NotFound, status_of
from ptalign_server.metrics import Metrics
from ptalign_server.settings import Settings
from ptalign_server.store import Store
from ptalign_server.store.db import timeouts
from ptalign_server.store.operations import (
    CANCELLING,
    FAILED,
    QUEUED,
    RUNNING,
    UNDER_WAY,
    VALIDATING,
    Operation,
)
from ptalign_server.worker.control import serve_control
from ptalign_server.worker.engines import Pools
from ptalign_server.worker.job import Job, Room
from ptalign_server.worker.jobs import JOBS
from ptalign_server.worker.jobs.evaluate import publish_newest
from ptalign_server.worker.judges import load_judges
from ptalign_server.worker.patience import AWAY, Patience, may_pass
from ptalign_server.worker.perform import Attempt, ShuttingDown, perform
from ptalign_server.worker.reporter import Reporter

log = logging.getLogger("ptalign.worker")
POLL_SECONDS = 0.15
RETRY_SECONDS = 2.0
RECOVER_SECONDS = 10.0
SHOW_SECONDS = 60.0
DRAIN_SECONDS = 15.0
STOP_SECONDS = 5.0
"""Engines that do not end in this time are killed with this process's session."""


class Json(Serializer):  # type: ignore[misc]
    """dbos's own default is pickle; ours holds operation ids and states only."""

    def serialize(self, data: Any) -> str:
        return json.dumps(data)

    def deserialize(self, serialized_data: str) -> Any:
        return json.loads(serialized_data)

    def name(self) -> str:
        return "json"


def set_damaged_aside(database: Path) -> None:
    """Moves a job database that SQLite cannot read out of the way.

    It holds no more than which operations are under way, and those stand in our own rows too.
    """
    if not database.exists():
        return
    try:
        with closing(sqlite3.connect(database)) as connection:
            if connection.execute("pragma quick_check(1)").fetchone() == ("ok",):
                return
    except sqlite3.DatabaseError:
        pass
    stamp = time.strftime("%Y%m%dT%H%M%S")
    log.error("%s is damaged: set aside, operations go on from their own rows", database)
    for ending in ("", "-wal", "-shm"):
        file = database.with_name(database.name + ending)
        if file.exists():
            file.rename(file.with_name(f"{file.name}.damaged-{stamp}"))


class Worker:
    """Takes up operations, runs them, and ends cleanly."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        metrics = Metrics()
        store = Store(settings, wire.freeze)
        catalogue = Catalogue(settings)
        self.room = Room(settings, store, catalogue, Pools(settings, catalogue), metrics)
        self.ending = threading.Event()
        self._told: set[str] = set()
        self._running: set[str] = set()
        self._claims = threading.Lock()
        self._patience = Patience(settings.limits.attempts)
        self._recovered = 0.0
        self._unstarted: set[str] = set()
        self._shown = -SHOW_SECONDS

    def run(self) -> None:
        """Runs until SIGTERM; operations in flight stop at their next record or step."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.ending.set())
        self.room.pools.start()
        if self.settings.engine.kind == "vllm":  # nobody waits for other kinds to start
            threading.Thread(target=load_judges, name="load judges", daemon=True).start()
        serve_control(self.room)
        self._watch_cancels()
        self._launch()
        self._recover()
        # Reading inputs may take seconds; a cancel must not wait for it.
        threading.Thread(target=self._repeat, args=(self._look,), name="look", daemon=True).start()
        self._repeat(self._take_up)
        self._drain()

    def _repeat(self, turn: Callable[[], None]) -> None:
        """Does something a few times a second until the worker ends."""
        while not self.ending.wait(POLL_SECONDS):
            try:
                turn()
            except Exception:
                log.exception("%s failed; trying again", turn.__name__)
                time.sleep(1.0)

    def _look(self) -> None:
        self._watch_cancels()
        self._recover_now_and_then()
        self.room.pools.publish(self.room.metrics)
        self._show_newest_now_and_then()

    def work(self, operation_id: str) -> str:
        """The durable step. It ends when the operation does, or when another run has it."""
        with self._claims:
            if operation_id in self._running:
                return "elsewhere"  # enqueued twice by a recovery: one run is enough
            self._running.add(operation_id)
        try:
            return self._persist(operation_id)
        except ShuttingDown:
            self._running.discard(operation_id)
            # Neither a result nor an error: the workflow stays pending and goes on after a start.
            threading.Event().wait()
            raise
        finally:
            self._running.discard(operation_id)

    def _persist(self, operation_id: str) -> str:
        """Runs an operation until its end is on disk: what may pass there is waited out.

        A full or locked disk, a database or a source of keys that is away.
        """
        attempt = Attempt()
        while True:
            try:
                return perform(
                    operation_id,
                    self.room,
                    lambda: operation_id in self._told,
                    self.ending.is_set,
                    attempt,
                )
            except ShuttingDown:
                raise
            except Exception as error:
                if isinstance(error, PtalignError) and not isinstance(error, AWAY):
                    return self._fail(operation_id, error)  # its row or its key is gone or damaged
                log.error(
                    "operation %s: its state cannot be written now", operation_id, exc_info=error
                )
            if self.ending.wait(RETRY_SECONDS):
                raise ShuttingDown

    def _launch(self) -> None:
        settings = self.settings
        if settings.embedded:
            set_damaged_aside(settings.state / "jobs.db")
        config: DBOSConfig = {
            "name": "ptalign",
            "system_database_url": settings.jobs_url,
            "application_version": settings.application_version,
            "executor_id": settings.executor_id,
            "serializer": Json(),
            "log_level": "WARNING",
            "enable_otlp": False,
            "use_listen_notify": not settings.embedded,
        }
        if not settings.embedded:
            known = {"application_name": "dbos_transact", **timeouts(settings.jobs_url)}
            config["db_engine_kwargs"] = {"connect_args": known}
        DBOS(config=config)

        @DBOS.step(name="work")
        def work(operation_id: str) -> str:
            return self.work(operation_id)

        @DBOS.workflow(name="operation", max_recovery_attempts=1000)
        def operation(operation_id: str) -> str:
            return work(operation_id)

        self._workflow = operation
        for handler in logging.getLogger("dbos").handlers:
            handler.setFormatter(logs.Formatter(logs.FORMAT))
        DBOS.launch()
        limits = settings.limits
        slots_of = {
            "generation": limits.generations,
            "evaluation": limits.generations,
            "training": limits.trainings,
        }
        for name, slots in slots_of.items():
            DBOS.register_queue(
                name,
                worker_concurrency=slots,
                polling_interval_sec=0.2,
                on_conflict="always_update",
            )

    def _recover_now_and_then(self) -> None:
        if time.monotonic() - self._recovered > RECOVER_SECONDS:
            self._recover((RUNNING, CANCELLING))
            self._enqueue_lost_claims()

    def _show_newest_now_and_then(self) -> None:
        """The newest evaluation may be another server's: an alert on ours must not outlive it."""
        if time.monotonic() - self._shown > SHOW_SECONDS:
            self._shown = time.monotonic()
            publish_newest(self.room)

    def _recover(self, states: Iterable[str] = (QUEUED, RUNNING, CANCELLING)) -> None:
        """Operations that dbos has no living workflow for are enqueued again."""
        self._recovered = time.monotonic()
        # Each damaged row is in the log already.
        for operation in self.room.store.operations.under_way(lambda _: None, states=states):
            if operation.id in self._running:
                continue
            status = DBOS.get_workflow_status(operation.id)
            if status is None or status.status not in {"PENDING", "ENQUEUED", "DELAYED"}:
                self._enqueue(operation, f"{operation.id}.{operation.attempt + 1}")

    def _enqueue_lost_claims(self) -> None:
        """Puts back what dbos claimed for this worker and never started.

        Its database went away while the claim was committed: the claim stands, dbos took it for
        failed, and would start the operation only with this process. A claim that is merely on its
        way is started within moments, so only what two looks in a row find is put back.
        """
        claimed = DBOS.list_workflows(
            status="PENDING",
            executor_id=self.settings.executor_id,
            load_input=False,
            load_output=False,
        )
        queues = {
            found.workflow_id: found.queue_name
            for found in claimed
            if found.workflow_id.partition(".")[0] not in self._running
        }
        for lost in self._unstarted & queues.keys():
            log.warning("operation %s was claimed and not started: queued again", lost)
            DBOS.resume_workflow(lost, queue_name=queues.pop(lost))
        self._unstarted = set(queues)

    def _watch_cancels(self) -> None:
        self._told = set(self.room.store.operations.ids_in((CANCELLING,)))

    def _take_up(self) -> None:
        """VALIDATING -> QUEUED, many in one commit, so that callers' commits are not held up."""
        queued = []
        limit = 50 + len(self._patience)  # those that wait must not keep others out
        found = self.room.store.operations.in_states((VALIDATING,), limit=limit)
        self._patience.keep_only(operation.id for operation in found)
        for operation in found:
            if self.ending.is_set():
                break
            if self._patience.is_due(operation.id) and self._valid(operation):
                self._enqueue(operation, operation.id)
                queued.append(self.room.store.write(partial(self._queue, operation.id)))
        for future in queued:
            future.result()

    def _queue(self, operation_id: str, connection: sa.Connection) -> None:
        self.room.store.operations.advance_in(
            connection,
            operation_id,
            lambda o: replace(o, state=QUEUED) if o.state == VALIDATING else None,
        )

    def _valid(self, operation: Operation) -> bool:
        """Checks what needs reading; an operation whose inputs do not hold FAILS here.

        What may pass leaves it VALIDATING, to be looked at again.
        """
        store = self.room.store
        try:
            key = store.keys.get(operation.id)
            request = wire.KINDS[operation.kind].request.FromString(
                key.open("request", operation.request)
            )
            reporter = Reporter(operation, store, self.room.metrics, lambda: False)
            JOBS[operation.kind].validate(
                Job(operation, request, self.room, reporter, lambda: False)
            )
        except Exception as error:
            if isinstance(error, AWAY):
                self._patience.wait(operation.id)
                log.warning("operation %s waits: %s", operation.id, error)
            elif may_pass(error) and self._patience.put_off(operation.id):
                what = type(error).__name__
                log.warning("operation %s: its inputs cannot be read now: %s", operation.id, what)
            else:
                self._fail(operation.id, error, (VALIDATING,))
            return False
        return True

    def _fail(
        self, operation_id: str, error: Exception, states: Collection[str] = UNDER_WAY
    ) -> str:
        """Ends an operation that cannot run; one whose own row is damaged says so when read.

        Args:
            states: One in another is left alone: a server that checked it too may have taken it.
        """
        self.room.metrics.failed(error)
        status = status_of(error).SerializeToString()

        def end(operation: Operation) -> Operation | None:
            if operation.state not in states:
                return None
            return replace(operation, state=FAILED, error=status, ended=time.time())

        try:
            return self.room.store.operations.advance(operation_id, end).state
        except (NotFound, DataDamaged) as damage:
            log.error("operation %s cannot be ended: %s", operation_id, damage)
            return FAILED

    def _enqueue(self, operation: Operation, workflow_id: str) -> None:
        with SetWorkflowID(workflow_id):
            DBOS.enqueue_workflow(JOBS[operation.kind].queue, self._workflow, operation.id)

    def _drain(self) -> None:
        """Waits for running operations to reach a place to stop, then ends the process."""
        end = time.monotonic() + DRAIN_SECONDS
        while self._running and time.monotonic() < end:
            time.sleep(0.05)
        stopping = threading.Thread(target=self.room.pools.stop, daemon=True)
        stopping.start()
        stopping.join(STOP_SECONDS)
        self.room.store.close()
        os._exit(0)
