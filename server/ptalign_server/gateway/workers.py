"""The worker process: started, watched, restarted with backoff, stopped with the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time

from ptalign_server import metrics

log = logging.getLogger("ptalign.server")
FIRST_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 30.0
STEADY_SECONDS = 60.0
STOP_SECONDS = 25.0
STDERR = 2
"""Where its log goes, as the gateway's does; scripts read the gateway's standard output."""


class WorkerProcess:
    """Keeps one worker alive; the settings reach it as they reached the gateway, by environment.

    Args:
        gauges: Say whether there is a worker, and count restarts.
    """

    def __init__(self, gauges: metrics.Metrics) -> None:
        self._metrics = gauges
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """Process id; 0 while there is none."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else 0

    def start(self) -> None:
        """Begins to keep a worker alive."""
        self._task = asyncio.get_running_loop().create_task(self._keep())

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL to the worker's whole process group."""
        if self._task is not None:
            self._task.cancel()
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        except TimeoutError:
            log.warning("the worker did not stop in %.0f s: killing it", STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    async def _keep(self) -> None:
        backoff = FIRST_BACKOFF_SECONDS
        self._metrics.worker_up.set(0)  # a gauge that was never set is in no scrape
        while True:
            start = time.monotonic()
            try:
                code = await self._run()
            except Exception:  # no process, thread or file to be had now: that may pass
                log.exception("the worker could not be started; again in %.1f s", backoff)
            else:
                if time.monotonic() - start > STEADY_SECONDS:
                    backoff = FIRST_BACKOFF_SECONDS
                log.error("the worker ended with %s; again in %.1f s", code, backoff)
                self._metrics.worker_restarts.inc()
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, MAX_BACKOFF_SECONDS)

    async def _run(self) -> int:
        # A session of its own: killing its group takes the engines with it.
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "ptalign_server.worker",
            str(os.getpid()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=STDERR,
            start_new_session=True,
        )
        self._metrics.worker_up.set(1)
        code = await self._process.wait()
        self._metrics.worker_up.set(0)
        metrics.forget(self._process.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        return code
