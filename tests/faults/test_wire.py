"""Bytes that no library sends: bombs, resets and streams that never end. Others are served."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from http2 import CANCEL, DATA, RESET, Connection, bomb, frame
from running import Running, alive
from test_stop import p99, resident
from world import generate, served

import ptalign_client as pt
from ptalign_proto.v1 import library_pb2 as lib
from ptalign_server.pool.command import free_port

GENERATE = "/ptalign.v1.SafetyTuning/GenerateInstructions"
IMPORT = "/ptalign.v1.Library/ImportSet"
GROWTH = 100e6
"""Bytes of memory that a flood may cost."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server whose engine is away: only the gateway is asked."""
    with served(tmp_path_factory.mktemp("wire") / "s", f"http://127.0.0.1:{free_port()}") as made:
        for _ in range(50):  # what it allocates once
            made.tuning.GenerateInstructions(generate(2, dry_run=True), timeout=60)
        yield made


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def healthy(running: Running, seconds: float = 30.0) -> float:
    """Seconds that a new connection's health check takes."""
    start = time.monotonic()
    with grpc.insecure_channel(f"127.0.0.1:{running.port}", [("own", start)]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        stub.Check(health_pb2.HealthCheckRequest(), timeout=seconds, wait_for_ready=True)
    return time.monotonic() - start


class Watch:
    """What the flood must leave as it was: the process, its memory, its descriptors."""

    def __init__(self, running: Running) -> None:
        assert running.process is not None
        self._running, self.pid = running, running.process.pid
        self._memory, self._files = resident(self.pid), descriptors(self.pid)

    def harm(self) -> list[str]:
        """What is not as before, after the flood's connections are closed."""
        found = [] if alive(self.pid) else ["the gateway ended"]
        end = time.monotonic() + 30
        while descriptors(self.pid) > self._files + 8 and time.monotonic() < end:
            time.sleep(0.1)
        if descriptors(self.pid) > self._files + 8:
            found.append(f"{descriptors(self.pid) - self._files} descriptors more")
        if (grown := resident(self.pid) - self._memory) > GROWTH:
            found.append(f"{grown / 1e6:.0f} MB more")
        healthy(self._running)
        return found


@pytest.mark.tier(1)
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", [GENERATE, IMPORT], ids=["one", "stream"])
def test_a_compressed_bomb_is_not_unpacked(score: Any, running: Running, path: str) -> None:
    """56 MiB of zeros in 57 KB, ten at once; what the limit allows is 16 MiB."""
    row = score.row(f"gzip bombs to {path.rpartition('/')[2]}", 500)
    watch, pieces = Watch(running), bomb(56 << 20)
    for _ in range(score.size(50, 1)):
        connections = [Connection(running.port) for _ in range(10)]
        for connection in connections:
            stream = connection.open(path, grpc_encoding="gzip")
            for piece in pieces:
                connection.send(frame(DATA, stream, piece))
        for connection in connections:
            answer = connection.answer(b"larger than max")
            row.bad += b"Decompressed message larger than max" not in answer
            connection.close()
            row.ran += 1
    harm = watch.harm()
    row.bad += len(harm)
    assert not row.bad, harm


@pytest.mark.timeout(1200)
def test_a_large_message_is_refused_with_its_limit(running: Running) -> None:
    request = generate(2)
    request.seeds.append("x" * (17 << 20))
    for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
        with pytest.raises(grpc.RpcError) as caught:
            running.tuning.GenerateInstructions(request, timeout=60, compression=compression)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.tier(1)
@pytest.mark.timeout(1200)
def test_a_flood_of_resets(score: Any, running: Running) -> None:
    """Streams opened and reset at once, as in CVE-2023-44487; another client is served.

    gRPC's server drops calls of anybody while too many wait. The client took that for a
    cancelled operation and gave up.
    """
    row = score.row("streams opened and reset at once", 50_000)
    watch, waits = Watch(running), []
    connection = Connection(running.port)
    client = pt.Client(f"127.0.0.1:{running.port}")
    for number in range(score.size(50_000, 1_500)):
        stream = connection.open(GENERATE)
        alive_still = connection.send(frame(RESET, stream, CANCEL))
        row.ran += 1
        if number % 500 == 0:
            connection.drain()
            start = time.monotonic()
            row.bad += not client.catalogue().models
            waits.append(time.monotonic() - start)
        if not alive_still:  # the server hung up on us, as it may
            connection.close()
            connection = Connection(running.port)
    connection.close()
    client.close()
    harm = watch.harm()
    row.bad += len(harm)
    row.notes["another client's p99 ms, retries included"] = f"{1000 * p99(waits):.0f}"
    assert not row.bad, harm


@pytest.mark.tier(1)
@pytest.mark.timeout(1200)
def test_streams_that_crawl(score: Any, running: Running) -> None:
    """Calls that send a byte now and then and never end; others are answered meanwhile."""
    row = score.row("streams that crawl, held at once", 1_000)
    watch, waits = Watch(running), []
    held = []
    header = lib.ImportHeader(kind="instructionSets", model="tiny", policy="faults")
    whole = lib.ImportSetRequest(header=header).SerializeToString()
    message = b"\0" + len(whole).to_bytes(4, "big") + whole
    for number in range(score.size(1_000, 60)):
        connection = Connection(running.port)
        stream = connection.open(IMPORT)
        connection.send(frame(DATA, stream, message if number % 2 else message[:3]))
        held.append((connection, stream))
        row.ran += 1
    for turn in range(5):
        for connection, stream in held:
            connection.send(frame(DATA, stream, message[3 + turn : 4 + turn]))
        waits.append(healthy(running))
        with pt.Client(f"127.0.0.1:{running.port}") as client:
            row.bad += not client.catalogue().models
    for connection, _ in held:
        connection.close()
    harm = watch.harm()
    row.bad += len(harm)
    row.notes["health p99 ms"] = f"{1000 * p99(waits):.0f}"
    assert not row.bad, harm


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\xa5\x01", bytes(4096), b"PRI * HTTP/2.0\r\n"],
    ids=["http1", "tls", "zeros", "half a preface"],
)
def test_what_is_no_http2_harms_nobody(running: Running, data: bytes) -> None:
    watch = Watch(running)
    held = [socket.create_connection(("127.0.0.1", running.port), timeout=20) for _ in range(20)]
    for connection in held:
        connection.sendall(data)
    healthy(running)
    for connection in held:
        connection.close()
    assert not watch.harm()
