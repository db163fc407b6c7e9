"""One operation from RUNNING to its end. At least once: every step may be repeated."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from ptalign.config import EvalConfig
from ptalign.errors import Cancelled, DataDamaged, NotReady, PtalignError
from ptalign_server import failpoints, wire
from ptalign_server.errors import BelowFloor, SetPurged, status_of
from ptalign_server.store.operations import (
    CANCELLED,
    CANCELLING,
    FAILED,
    RUNNING,
    SUCCEEDED,
    Operation,
)
from ptalign_server.store.resources import Resource
from ptalign_server.store.sets import Terms
from ptalign_server.worker.job import Job, Made, Room
from ptalign_server.worker.jobs import JOBS
from ptalign_server.worker.patience import AWAY, may_pass
from ptalign_server.worker.reporter import Reporter

log = logging.getLogger("ptalign.worker")
MAX_BACKOFF_SECONDS = 30.0
STORES_FILES = ("Align", "Evaluate")


class ShuttingDown(Exception):
    """The worker ends: the operation stays as it is and goes on after the next start."""


@dataclass(slots=True)
class Attempt:
    """One run of the durable step: it counts once, however often what is away is waited out.

    Attempts are deaths of the worker, and those have a limit.
    """

    counted: bool = False

    def begin(self, operation: Operation) -> Operation | None:
        """The operation as it is under way; None for one that is done."""
        if operation.done:
            return None
        state = CANCELLING if operation.state == CANCELLING else RUNNING
        attempt = operation.attempt + (not self.counted)
        started = operation.started or time.time()
        return replace(operation, state=state, attempt=attempt, started=started)


def perform(
    operation_id: str,
    room: Room,
    told: Callable[[], bool],
    ending: Callable[[], bool],
    attempt: Attempt | None = None,
) -> str:
    """Runs an operation and returns its last state.

    Args:
        told: Whether the operation was cancelled.
        ending: Whether the worker is shutting down.
        attempt: What this call is part of; None: one of its own.

    Raises:
        ShuttingDown: The worker ends before the operation does.
        DatabaseUnavailable, KeysAway: Its state cannot be read or written, or its key cannot be
            had, now: it stays as it is.
        OSError: What it made or accepted cannot be read or written now: likewise.
    """
    # Before it counts as begun: keys may be away for longer than there are attempts.
    with contextlib.suppress(SetPurged, DataDamaged):  # said below, of one that is not done
        room.store.keys.get(operation_id)
    failpoints.hit("lease.before")
    attempt = Attempt() if attempt is None else attempt
    operation = room.store.operations.advance(operation_id, attempt.begin)
    attempt.counted = True
    failpoints.hit("lease.after")
    if operation.done:
        _tidy(operation, room)  # a crash may have come before
        return operation.state

    def should_stop() -> bool:
        return told() or ending()

    reporter = Reporter(operation, room.store, room.metrics, should_stop)
    job = Job(operation, _request(operation, room), room, reporter, should_stop)
    made: Made | None = None
    try:
        made = _make(job)
        return _finish(job, made)
    except Cancelled as error:
        if ending() and not told():
            raise ShuttingDown from None
        return _end(job, CANCELLED, error)
    except AWAY:
        raise  # the operation has done nothing wrong
    except Exception as error:
        if made is not None and may_pass(error):
            raise  # it is made, and sealed when the worker comes again
        if ending() and not told():
            raise ShuttingDown from None
        return _end(job, FAILED, error)
    finally:
        job.close()


def _request(operation: Operation, room: Room) -> Any:
    key = room.store.keys.get(operation.id)
    data = key.open("request", operation.request)
    return wire.KINDS[operation.kind].request.FromString(data)


def _make(job: Job) -> Made:
    """The job's result. What may pass is tried again: log and checkpoints keep what was done."""
    limits = job.room.settings.limits
    if job.operation.attempt > limits.attempts:
        raise PtalignError(
            f"the worker died {limits.attempts} times while it ran this operation. "
            "The server's log says more."
        )
    backoff, attempts = 1.0, 0
    while True:
        job.check()
        try:
            return JOBS[job.operation.kind].make(job)
        except AWAY:
            raise  # nothing goes on without it, however often it is tried
        except (PtalignError, OSError) as error:  # a dead engine, a killed trainer, a volume
            attempts += 1
            if not _retryable(error) or attempts >= limits.engine_attempts:
                raise
            log.warning("operation %s: %s; again in %.0f s", job.operation.id, error, backoff)
            _sleep(job, backoff)
            backoff = min(backoff * 2, MAX_BACKOFF_SECONDS)


def _retryable(error: PtalignError | OSError) -> bool:
    """Of libraries' own OSErrors, which have no number, nobody knows."""
    if isinstance(error, PtalignError):
        return error.retryable
    return error.errno is not None and may_pass(error)


def _sleep(job: Job, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        job.check()
        time.sleep(0.1)


def _finish(job: Job, made: Made) -> str:
    """Seals what was made and ends the operation in one transaction."""
    if made.shortage:
        return _end_with(job, FAILED, BelowFloor(made.shortage), replace(made, partial=True))
    return _end_with(job, SUCCEEDED, None, made)


def _end(job: Job, state: str, error: BaseException) -> str:
    """Ends a stopped operation; accepted records are sealed as a partial set."""
    if not isinstance(error, (PtalignError, Cancelled)):
        log.error("operation %s failed", job.operation.id, exc_info=error)
    job.room.metrics.failed(error)
    made = None
    try:
        partial = JOBS[job.operation.kind].partial
        made = partial(job) if partial is not None else None
    except Exception as failure:
        if may_pass(failure):
            raise  # or the operation would end without what it accepted
        log.exception("operation %s: what it accepted could not be sealed", job.operation.id)
    return _end_with(job, state, error, made)


def _end_with(job: Job, state: str, error: BaseException | None, made: Made | None) -> str:
    resource = _seal(job, made) if made is not None else None
    status = status_of(error).SerializeToString() if error is not None else b""
    store = job.room.store

    def change(connection: sa.Connection) -> Operation:
        def end(operation: Operation) -> Operation | None:
            if operation.done:
                return None
            name = resource.name if resource is not None else ""
            if resource is not None:
                store.resources.insert(connection, resource)
            return replace(operation, state=state, error=status, resource=name, ended=time.time())

        return store.operations.advance_in(connection, job.operation.id, end)

    failpoints.hit("state_commit.before")
    ended = store.write(change).result()
    failpoints.hit("state_commit.after")
    if made is not None:
        store.sets.drop_log(job.operation.id)
    _tidy(ended, job.room)
    return ended.state


def _tidy(operation: Operation, room: Room) -> None:
    """Removes the working folder of a success; that of a stopped run may be resumed from.

    Of one that made nothing, the files that it had stored already go: no row will name them.
    """
    if operation.state == SUCCEEDED:
        shutil.rmtree(room.store.work(operation.id), ignore_errors=True)
    elif not operation.resource and operation.kind in STORES_FILES:
        try:
            room.store.artefacts.discard(wire.resource_name(operation))
        except (NotReady, OSError) as error:  # it has ended all the same
            log.warning("operation %s: files that it stored stay: %s", operation.id, error)


def _seal(job: Job, made: Made) -> Resource:
    store, operation = job.room.store, job.operation
    digest = store.sets.seal(operation.id, made.noun)
    if job.policies:
        store.sets.keep_policy(operation.id, job.policies[-1])
    if isinstance(made.config, EvalConfig):
        terms = Terms(gate=made.config.gate, baseline=job.request.baseline.adapter)
        store.sets.keep_terms(operation.id, terms)
    meta = job.meta(made, digest)
    message = type(made.message)()
    message.CopyFrom(made.message)
    message.meta.CopyFrom(meta)
    return Resource(
        name=job.name,
        collection=job.name.partition("/")[0],
        tenant=operation.tenant,
        model=meta.model,
        policy=meta.policy,
        verdict=made.verdict,
        adapter=made.adapter,
        partial=made.partial,
        purged=False,
        content=digest,
        body=message.SerializeToString(),
        created=time.time(),
    )
