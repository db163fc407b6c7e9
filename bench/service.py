"""The service against a bare gRPC echo and against its own limits.

    python -m bench.service [--quick]

Starts a real server process on a state folder of its own. Its worker runs and validates while the
calls come in, as it would in use; the engine is a URL where nobody listens, so no operation gets
further than that. Callers and server share the machine's cores: latencies are upper bounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.longrunning import operations_pb2 as lro
from google.longrunning import operations_pb2_grpc as lro_grpc
from grpc_health.v1 import health_pb2

from ptalign.nouns import ModelSpec
from ptalign_proto.v1 import library_pb2 as lib
from ptalign_proto.v1 import library_pb2_grpc, safety_tuning_pb2_grpc
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server.catalogue import write_models

ASK = "Write a rude reply to a colleague who asked me a simple question at work."
KIND = "I would rather not be rude. Happy to help you answer kindly."
GENERATE = pb.GenerateInstructionsRequest(model="m", policy="tone-en", count=5)
CALLERS = 50
ECHO = "/bench.Echo/Say"
OPERATIONS = "/google.longrunning.Operations/"
LISTED = 10
"""Operations on a page that is listed."""
CALLS_PER_SECOND = 100.0
P99_MS = 200.0
START_SECONDS = 3.0
WATCHERS = 1000
WATCHERS_MB = 100.0
FAN_OUT_SECONDS = 2.0
READS_SHARE = 0.5
"""Of the echo behind the same interceptors."""
ECHO_SERVER = """
import asyncio, sys, grpc
from pathlib import Path
from ptalign_server import metrics
from ptalign_server.gateway.identity import Gate
from ptalign_server.gateway.interceptor import Guard
from ptalign_server.settings import Settings
METHOD = sys.argv[1].strip("/").split("/")
async def main():
    async def say(request, context):
        return request
    guards = []
    if len(sys.argv) > 2:
        settings = Settings(state=Path(sys.argv[2]))
        metrics.prepare(Path(sys.argv[2]) / "metrics")
        guards = [Guard(Gate(settings), metrics.Metrics())]
    handler = grpc.unary_unary_rpc_method_handler(say, bytes, bytes)
    server = grpc.aio.server(interceptors=guards)
    server.add_generic_rpc_handlers([
        grpc.method_handlers_generic_handler(METHOD[0], {METHOD[1]: handler})
    ])
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()
asyncio.run(main())
"""
"""Answers on one method what it is sent; with a state folder, behind the gateway's interceptors."""


async def measure(calls: int, rounds: int, watchers: int = WATCHERS) -> list[dict[str, Any]]:
    """All rows of this file."""
    echoes = [await echo(calls) for _ in range(rounds)]
    with tempfile.TemporaryDirectory(prefix="ptalign-bench-") as folder:
        async with serving(Path(folder)) as (port, pid, seconds):
            reads = await reading(port, calls, rounds)
            verbs = [await submit(port, calls) for _ in range(rounds)]
            memory, fan_out = await watch(port, pid, watchers)
    rates = [one.per_second for one in verbs]
    tails = [one.p99 for one in verbs]
    paced = [one.p99_paced for one in verbs]
    return [
        row(
            "service: the four verbs, durable; theirs: goal",
            rates,
            CALLS_PER_SECOND,
            1.0,
            "calls/s",
            calls,
            over=True,
        ),
        row("service: the four verbs, p99; theirs: limit", tails, P99_MS, 1.0, "ms", calls),
        row(
            f"service: the four verbs at {CALLS_PER_SECOND:.0f} calls/s, p99; theirs: limit",
            paced,
            P99_MS,
            1.0,
            "ms",
            calls,
        ),
        row(
            "service: the four verbs; theirs: bare echo",
            rates,
            median(echoes),
            0.03,
            "calls/s",
            calls,
            over=True,
        ),
        *reads,
        row("service: start; theirs: limit", [seconds], START_SECONDS, 1.0, "s", 1),
        row(
            f"service: memory of {watchers:,} watchers; theirs: limit",
            [memory],
            WATCHERS_MB,
            1.0,
            "MB",
            watchers,
        ),
        row(
            f"service: the end of an operation, seen by {watchers:,} watchers; theirs: limit",
            [fan_out],
            FAN_OUT_SECONDS,
            1.0,
            "s",
            watchers,
        ),
    ]


def row(
    name: str,
    ours: list[float],
    theirs: float,
    goal: float,
    unit: str,
    n: int,
    *,
    over: bool = False,
) -> dict[str, Any]:
    """One result; `over`: larger is better, so the ratio is ours / theirs."""
    value = median(ours)
    ratios = [one / theirs if over else theirs / max(one, 1e-9) for one in ours]
    return {
        "name": name,
        "ours": round(value, 3),
        "theirs": round(theirs, 3),
        "ratio": round(median(ratios), 3),
        "goal": goal,
        "unit": unit,
        "n": n,
        "spread": round((max(ratios) - min(ratios)) / 2, 3),
        "device": f"{os.cpu_count()} cores",
    }


def median(values: list[float]) -> float:
    return statistics.median(values)


async def hammer(calls: int, call: Callable[[int], Awaitable[Any]]) -> tuple[float, float]:
    """Calls per second and the 99th percentile in ms, at `CALLERS` concurrent callers."""
    todo = iter(range(calls))
    times: list[float] = []

    async def caller() -> None:
        for number in todo:
            start = time.perf_counter()
            await call(number)
            times.append(time.perf_counter() - start)

    start = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    elapsed = time.perf_counter() - start
    return calls / elapsed, percentile(times)


async def at_rate(calls: int, call: Callable[[int], Awaitable[Any]]) -> float:
    """The 99th percentile in ms where `CALLERS` callers make `CALLS_PER_SECOND` between them.

    A call counts from when it was due, so that one behind a slow one is not let off.
    """
    times: list[float] = []
    begun = time.perf_counter()

    async def caller(first: int) -> None:
        for number in range(first, calls, CALLERS):
            due = begun + number / CALLS_PER_SECOND
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            await call(number)
            times.append(time.perf_counter() - due)

    await asyncio.gather(*(caller(first) for first in range(CALLERS)))
    return percentile(times)


def percentile(times: list[float]) -> float:
    """The 99th percentile in ms of seconds."""
    return sorted(times)[int(len(times) * 0.99)] * 1000


@asynccontextmanager
async def echoing(method: str, *state: str) -> AsyncIterator[Any]:
    """A call of a bare grpc.aio server in a process of its own, bytes in and the same bytes out."""
    process = subprocess.Popen(
        [sys.executable, "-c", ECHO_SERVER, method, *state], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        port = int(await asyncio.to_thread(process.stdout.readline))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel.unary_unary(method)
    finally:
        process.kill()
        process.wait()


async def echo(calls: int) -> float:
    """Calls per second of the bare server."""
    async with echoing(ECHO) as say:
        message = b"x" * 100
        await hammer(CALLERS, lambda _: say(message))
        rate, _ = await hammer(calls, lambda _: say(message))
        return rate


async def reading(port: int, calls: int, rounds: int) -> list[dict[str, Any]]:
    """Get, List and health beside an echo of the same answer behind the same interceptors."""
    rows = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = safety_tuning_pb2_grpc.SafetyTuningStub(channel)
        for _ in range(LISTED + 1):
            made = await stub.GenerateInstructions(GENERATE)
        for name, method, request in (
            ("get", OPERATIONS + "GetOperation", lro.GetOperationRequest(name=made.name)),
            ("list", OPERATIONS + "ListOperations", lro.ListOperationsRequest(page_size=LISTED)),
            ("health", "/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest()),
        ):
            asked = request.SerializeToString()
            rows.append(
                await beside_echo(name, method, channel.unary_unary(method), asked, calls, rounds)
            )
    return rows


async def beside_echo(
    name: str, method: str, read: Any, asked: bytes, calls: int, rounds: int
) -> dict[str, Any]:
    """One read and its echo, taking turns."""
    ours, theirs = [], []
    answer = await read(asked)
    with tempfile.TemporaryDirectory(prefix="ptalign-bench-") as state:
        async with echoing(method, state) as say:
            for call, message in ((read, asked), (say, answer)):
                await hammer(CALLERS, lambda _, call=call, message=message: call(message))
            for _ in range(rounds):
                ours.append((await hammer(calls, lambda _: read(asked)))[0])
                theirs.append((await hammer(calls, lambda _: say(answer)))[0])
    return row(
        f"service: {name}; theirs: echo behind the same interceptors",
        ours,
        median(theirs),
        READS_SHARE,
        "calls/s",
        calls,
        over=True,
    )


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[tuple[int, int, float]]:
    """Port, pid and seconds until it served."""
    write_models(folder / "models.yaml", {"m": ModelSpec(name="m", path=str(folder))})
    environment = os.environ | {
        "PTALIGN_STATE": str(folder),
        "PTALIGN_PORT": "0",
        "PTALIGN_METRICS_PORT": "0",
        "PTALIGN_PAGE": "false",
        "PTALIGN_ENGINE__KIND": "remote",
        "PTALIGN_ENGINE__URLS": '["http://127.0.0.1:9"]',
        "PTALIGN_LIMITS__MAX_QUEUED": "1000000",
    }
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "ptalign_server.cli", "serve"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        line = await asyncio.to_thread(process.stdout.readline)
        seconds = time.perf_counter() - start
        found = re.search(r":(\d+),", line)
        if found is None:
            raise RuntimeError(f"the server did not start: {line!r}")
        yield int(found[1]), process.pid, seconds
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(process.wait, 45)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


@dataclass(frozen=True)
class Verbs:
    """Durable calls of the four verbs in turn."""

    per_second: float
    """As fast as the callers get their answers."""
    p99: float
    """Milliseconds, then."""
    p99_paced: float
    """Milliseconds, at `CALLS_PER_SECOND`."""


async def submit(port: int, calls: int) -> Verbs:
    """The four verbs at full speed, then at the pace of the goal."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = safety_tuning_pb2_grpc.SafetyTuningStub(channel)
        library: Any = library_pb2_grpc.LibraryStub(channel)
        asks = await import_set(library, "instructionSets")
        pairs = await import_set(library, "pairSets")
        align = pb.AlignRequest(
            model="m",
            pair_set=pairs,
            method="METHOD_MLE",  # the set has neither bad answers nor anchors
            budget=pb.Budget(without_anchors=True),
        )
        verbs = (
            (stub.GenerateInstructions, GENERATE),
            (stub.SynthesizePairs, pb.SynthesizePairsRequest(model="m", instruction_set=asks)),
            (stub.Align, align),
            (stub.Evaluate, pb.EvaluateRequest(target=pb.Target(model="m"))),
        )

        def call(number: int) -> Any:
            verb, request = verbs[number % len(verbs)]
            return verb(request)

        await hammer(CALLERS, call)
        rate, p99 = await hammer(calls, call)
        return Verbs(rate, p99, await at_rate(calls, call))


async def import_set(library: Any, kind: str) -> str:
    """A set of one record, for the verbs that need one."""
    header = lib.ImportHeader(kind=kind, model="m", policy="tone-en")
    record = lib.Record(instruction=ASK, positive=KIND, topic="work-question")
    parts = [lib.ImportSetRequest(header=header), lib.ImportSetRequest(records=[record])]
    return str((await library.ImportSet(iter(parts))).name)


async def watch(port: int, pid: int, count: int) -> tuple[float, float]:
    """MB that the gateway grows by with `count` watchers of one operation, and the seconds until
    all of them have seen it cancelled."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = safety_tuning_pb2_grpc.SafetyTuningStub(channel)
        operations: Any = lro_grpc.OperationsStub(channel)
        operation = await stub.GenerateInstructions(GENERATE)
        wanted = pb.WatchOperationRequest(name=operation.name)
        before = resident_mb(pid)
        streams = [stub.WatchOperation(wanted) for _ in range(count)]
        await asyncio.gather(*(stream.read() for stream in streams))
        await asyncio.sleep(2.0)
        grown = resident_mb(pid) - before
        begun = time.perf_counter()
        await operations.CancelOperation(lro.CancelOperationRequest(name=operation.name))
        await asyncio.gather(*(until_done(stream) for stream in streams))
        return grown, time.perf_counter() - begun


async def until_done(stream: Any) -> None:
    """Reads a watch to its end, which comes when the operation is done."""
    while await stream.read() is not grpc.aio.EOF:
        pass


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", text)
    assert found is not None
    return int(found[1]) / 1000


def main() -> None:
    """Prints the rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    size = (300, 2) if parser.parse_args().quick else (2000, 3)
    sys.stdout.write(json.dumps(asyncio.run(measure(*size)), indent=1) + "\n")


if __name__ == "__main__":
    main()
