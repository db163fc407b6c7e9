"""Ending things: SIGTERM under load, cancelled and abandoned calls, and more work than fits."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2 as lro
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from history import History, check
from running import Running, alive, descendants
from world import accepted, author, generate, insist, served, server, wait_for

from ptalign_proto.v1 import safety_tuning_pb2_grpc


@pytest.fixture(scope="module")
def slow_url() -> Iterator[str]:
    with author(0.4) as url:
        yield url


@pytest.mark.tier(2)
@pytest.mark.timeout(2600)
def test_sigterm_under_load(score: Any, tmp_path: Path, slow_url: str) -> None:
    row = score.row("SIGTERM under load", 20)
    running = server(tmp_path / "state", slow_url).start()
    history = History()
    try:
        for _ in range(score.size(20, 1)):
            made = insist(running.tuning.GenerateInstructions, generate(40))
            history.operations.add(made.name)
            operation = made.name.removeprefix("operations/")
            wait_for(lambda o=operation: len(accepted(running.state, o)) > 2, 200, "records")
            row.bad += not _ends_well(running, made.name, 0.5 if score.in_tier else 5.0)
            row.ran += 1
            for record in accepted(running.state, operation):
                history.items[record.text] = made.name
            running.start()
        found = check(running, history, seconds=200)
        row.bad += found.bad
    finally:
        if running.process is not None and running.process.poll() is None:
            running.stop()
    assert not row.bad, (row, found)


def _ends_well(running: Running, name: str, told_s: float) -> bool:
    """Not serving in `told_s`, a call in flight answered, status 0 in 30 s, no child left."""
    assert running.process is not None
    tree = [running.process.pid, *descendants(running.process.pid)]
    stub = health_pb2_grpc.HealthStub(running.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest())
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    request = lro.WaitOperationRequest(name=name)
    request.timeout.FromMilliseconds(3000)
    flight = running.operations.WaitOperation.future(request)
    time.sleep(0.3)
    start = time.monotonic()
    running.process.send_signal(signal.SIGTERM)
    status = next(watch).status
    told = time.monotonic() - start
    answered = flight.result(timeout=20)
    code = running.process.wait(35)
    took = time.monotonic() - start
    gone = not any(alive(pid) for pid in tree)
    not_serving = status == health_pb2.HealthCheckResponse.NOT_SERVING
    good = not_serving and told < told_s and not answered.done and code == 0 and took < 30 and gone
    if not good:
        print(not_serving, told, answered.done, code, took, gone)
    return good


@pytest.mark.tier(2)
@pytest.mark.timeout(1200)
async def test_overload(score: Any, tmp_path: Path, slow_url: str) -> None:
    """Ten times what may queue, for a minute in the full tier."""
    seconds = score.size(60, 3)
    row = score.row("seconds of 10 times the capacity", 60)
    state = tmp_path / "state"
    with served(state, slow_url, PTALIGN_LIMITS__MAX_QUEUED="20") as running:
        pid = running.process.pid
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
            flood = Flood(channel)
            await flood.run(1.0)
            before = resident(pid)
            await flood.run(seconds)
            grown = resident(pid) - before
        for name in flood.accepted:
            running.operations.CancelOperation(lro.CancelOperationRequest(name=name))
        found = check(running, History(operations=set(flood.accepted)))
    row.ran = seconds
    row.notes = {
        "refused": str(len(flood.refusals)),
        "accepted": str(len(flood.accepted)),
        "refusal p99 ms": f"{1000 * p99(flood.refusals):.0f}",
        "health p99 ms": f"{1000 * p99(flood.health):.0f}",
        "memory MB": f"{grown / 1e6:.0f}",
        "load": f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
    }
    late = [p99(flood.refusals) > 0.05, p99(flood.health) > 0.2]
    row.bad = found.bad + len(flood.odd) + (grown > 100e6)
    row.bad += sum(late) if score.in_tier else 0  # `make test` runs beside others
    assert not flood.odd, flood.odd
    assert flood.refusals
    assert flood.accepted
    assert not row.bad, (found, row.notes)


class Flood:
    """Callers that send as fast as a rate allows, and one that asks for health."""

    CALLERS = 10
    PAUSE_SECONDS = 0.05

    def __init__(self, channel: Any) -> None:
        self._tuning = safety_tuning_pb2_grpc.SafetyTuningStub(channel)
        self._health = health_pb2_grpc.HealthStub(channel)
        self.refusals: list[float] = []
        self.health: list[float] = []
        self.accepted: list[str] = []
        self.odd: Counter[str] = Counter()

    async def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        await asyncio.gather(self._ask(end), *[self._call(end) for _ in range(self.CALLERS)])

    async def _call(self, end: float) -> None:
        while time.monotonic() < end:
            start = time.monotonic()
            try:
                made = await self._tuning.GenerateInstructions(generate(500), timeout=60)
                self.accepted.append(made.name)
            except grpc.aio.AioRpcError as error:
                self.refusals.append(time.monotonic() - start)
                if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED or not retry_info(error):
                    self.odd[error.code().name] += 1
            await asyncio.sleep(self.PAUSE_SECONDS)

    async def _ask(self, end: float) -> None:
        while time.monotonic() < end:
            start = time.monotonic()
            await self._health.Check(health_pb2.HealthCheckRequest(), timeout=60)
            self.health.append(time.monotonic() - start)
            await asyncio.sleep(0.1)


def retry_info(error: Any) -> bool:
    status = rpc_status.from_call(error)
    kinds = {detail.TypeName() for detail in status.details} if status else set()
    return error_details_pb2.RetryInfo.DESCRIPTOR.full_name in kinds


def p99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * (len(values) - 1))] if values else 0.0


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
