"""The worker's side of a job: start, feed, listen, cancel, and say how it ended."""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ptalign.engines.openai import never
from ptalign.errors import Cancelled, TrainingFailed
from ptalign.progress import OnProgress, ignore
from ptalign_server import failpoints
from ptalign_server.executor.events import error_of, line, progress_of
from ptalign_server.processes import Child, clean_environment, spawn
from ptalign_server.profiles import TrainerBudget
from ptalign_server.redact import LogTail

POLL_S = 0.1
COMMAND = (sys.executable, "-m", "ptalign_server.executor.job")


def run_job(
    kind: str,
    payload: Mapping[str, Any],
    *,
    workdir: Path,
    on_progress: OnProgress = ignore,
    should_stop: Callable[[], bool] = never,
    budget: TrainerBudget = TrainerBudget(),  # noqa: B008 (frozen)
    grace_s: float = 60.0,
) -> dict[str, Any]:
    """Runs one executor job in a subprocess and returns its result.

    A job that died can be run again with the same arguments: it continues from the last
    checkpoint in its `out` folder.

    Args:
        kind: ``align`` or ``probe`` (see `ptalign_server.executor.job`).
        payload: Arguments as JSON-able values, record text revealed; goes through a pipe only.
        workdir: Folder of the pid file.
        on_progress: Called in this thread with each report; may raise `Cancelled`.
        should_stop: Asked every 100 ms; True cancels at the job's next report.
        budget: Threads and niceness.
        grace_s: Seconds a cancelled job has for its next report before it is killed.

    Raises:
        Cancelled: It was asked to stop and has ended.
        TrainingFailed: It broke a rule (not retryable), or was killed (retryable).
        PtalignError, OSError: What the stage raised, with its fields or errno.
    """
    child = spawn(
        [*COMMAND, str(budget.niceness)],
        name=f"job-{kind}-{time.monotonic_ns():x}",
        records=workdir,
        env=_environment(budget),
        log=LogTail(strict=True),
        pipes=True,
    )
    try:
        return _Run(child, on_progress, should_stop, grace_s).result(kind, payload)
    finally:
        child.kill()


def _environment(budget: TrainerBudget) -> dict[str, str]:
    threads = str(budget.threads)
    values = {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PTALIGN_JOB_NICENESS": str(budget.niceness),
    }
    return clean_environment(values | failpoints.environment())


class _Run:
    """One running job, seen from the worker."""

    def __init__(
        self, child: Child, on_progress: OnProgress, should_stop: Callable[[], bool], grace_s: float
    ) -> None:
        self._child = child
        self._on_progress = on_progress
        self._should_stop = should_stop
        self._grace_s = grace_s
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._kill_at = float("inf")
        self._working = False
        self._cancelled: Cancelled | None = None

    def result(self, kind: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        job = line({"kind": kind, "payload": payload})
        for work in (lambda: self._feed(job), self._listen):
            threading.Thread(target=work, name=f"job-{kind}", daemon=True).start()
        while (text := self._next_line()) is not None:
            event = json.loads(text)
            if event["event"] == "result":
                return dict(event["result"])
            if event["event"] == "error":
                raise self._cancelled or error_of(event)
            self._working = True
            self._report(event)
        if self._cancelled:
            raise self._cancelled
        raise self._killed()

    def _report(self, event: Mapping[str, Any]) -> None:
        if self._cancelled is None:
            try:
                self._on_progress(progress_of(event))
            except Cancelled as error:
                self._cancel(error)

    def _next_line(self) -> bytes | None:
        """The next event, None at the end of the pipe. Cancels and kills on the way."""
        while True:
            try:
                return self._lines.get(timeout=POLL_S) or None
            except queue.Empty:
                pass
            if self._cancelled is None and self._should_stop():
                self._cancel(Cancelled("the job was asked to stop"))
            if time.monotonic() > self._kill_at:
                self._kill_at = float("inf")
                self._child.kill()

    def _cancel(self, why: Cancelled) -> None:
        self._cancelled = why
        self._child.terminate()
        # Before its first report a job loads libraries and weights: there is nothing to keep.
        self._kill_at = time.monotonic() + (self._grace_s if self._working else 0)

    def _feed(self, job: bytes) -> None:
        try:
            with self._child.stdin as pipe:
                pipe.write(job)
        except OSError:
            pass  # it ended early; its last event or its status says why

    def _listen(self) -> None:
        try:
            for text in self._child.stdout:
                self._lines.put(text)
        finally:
            self._lines.put(b"")

    def _killed(self) -> TrainingFailed:
        self._child.wait(15)
        status = self._child.status or 0
        how = f"signal {status - 128}" if status > 128 else f"status {status}"
        hint = " (SIGKILL: often the system's out-of-memory killer)" if status == 137 else ""
        tail = " | ".join(self._child.log.last(5))
        error = TrainingFailed(
            f"the job ended with {how}{hint} before its result. Run it again: it continues from "
            f"its last checkpoint. Last log lines: {tail or 'none'}"
        )
        error.retryable = True
        return error
