"""The gateway keeps a worker, whatever ends it or hinders its start."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from typing import Any

import pytest

from ptalign_server.gateway import workers
from ptalign_server.gateway.workers import WorkerProcess
from ptalign_server.metrics import Metrics


async def test_a_start_that_fails_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One failed fork ended the keeping of workers for good, and nothing said so."""
    gauges = Metrics()
    start, up = asyncio.create_subprocess_exec, gauges.worker_up._value.get
    tries: list[float] = []

    async def short_of_processes(*_: str, **options: Any) -> asyncio.subprocess.Process:
        tries.append(up())
        if len(tries) == 1:
            raise OSError(errno.EAGAIN, "no process to be had")
        return await start("sleep", "600", **options)

    async def started(number: int) -> int:
        async with asyncio.timeout(20):
            while len(tries) < number or not up():
                await asyncio.sleep(0.01)
        return worker.pid

    monkeypatch.setattr(asyncio, "create_subprocess_exec", short_of_processes)
    monkeypatch.setattr(workers, "FIRST_BACKOFF_SECONDS", 0.0)
    monkeypatch.setattr(workers.metrics, "forget", lambda pid: None)
    worker = WorkerProcess(gauges)
    worker.start()
    os.kill(await started(2), signal.SIGKILL)
    await started(3)
    assert tries == [0, 0, 0]
    assert gauges.worker_restarts._value.get() == 1
    await worker.stop()


async def test_what_the_worker_says_is_in_the_servers_log(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It went to a file that no container log had, and that grew for ever."""
    gauges, start = Metrics(), asyncio.create_subprocess_exec

    async def talking(*_: str, **options: Any) -> asyncio.subprocess.Process:
        return await start("sh", "-c", "echo of a library; echo of ours >&2", **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", talking)
    monkeypatch.setattr(workers.metrics, "forget", lambda pid: None)
    worker = WorkerProcess(gauges)
    worker.start()
    async with asyncio.timeout(20):
        while not gauges.worker_restarts._value.get():
            await asyncio.sleep(0.01)
    await worker.stop()
    said = capfd.readouterr()
    assert "of a library\nof ours\n" in said.err
    assert not said.out
