"""A real `ptalign-server serve` process for tests, and the calls they make on it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2 as lro
from google.longrunning import operations_pb2_grpc

from ptalign_proto.v1 import library_pb2_grpc, safety_tuning_pb2_grpc
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server.pool.command import free_port

START_SECONDS = 60.0


class Running:
    """One server process on a state folder; may be killed and started again."""

    def __init__(self, state: Path, **environment: str) -> None:
        self.state = state
        self.environment = {
            **os.environ,
            "PTALIGN_STATE": str(state),
            "PTALIGN_PORT": "0",
            "PTALIGN_METRICS_PORT": str(free_port()),
            "PTALIGN_PAGE": "false",
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        self.metrics_port = int(self.environment["PTALIGN_METRICS_PORT"])
        self.process: subprocess.Popen[str] | None = None
        self.port = 0

    def start(self) -> Running:
        """Starts it and waits until it serves."""
        self.state.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ptalign_server.cli", "serve"],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=(self.state / "gateway.log").open("a"),
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        match = re.match(r"serving on [\d.]+:(\d+)", line)
        assert match, f"did not serve: {line!r}\n{(self.state / 'gateway.log').read_text()[-2000:]}"
        self.port = int(match[1])
        threading.Thread(target=self.process.stdout.read, daemon=True).start()
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port}")
        self.tuning: Any = safety_tuning_pb2_grpc.SafetyTuningStub(self.channel)
        self.library: Any = library_pb2_grpc.LibraryStub(self.channel)
        self.operations: Any = operations_pb2_grpc.OperationsStub(self.channel)
        return self

    def kill_tree(self) -> None:
        """SIGKILL to the gateway; worker, engines and executor must die with it."""
        assert self.process is not None
        tree = [self.process.pid, *descendants(self.process.pid)]
        self.channel.close()
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        end = time.monotonic() + 15
        while any(map(alive, tree)):
            assert time.monotonic() < end, "children outlived the gateway"
            time.sleep(0.05)

    def stop(self) -> int:
        """SIGTERM and wait; returns the exit status."""
        assert self.process is not None
        self.channel.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(45)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def wait(self, name: str, seconds: float = 280.0) -> lro.Operation:
        """The operation once it is done."""
        request = lro.WaitOperationRequest(name=name)
        request.timeout.FromMilliseconds(int(seconds * 1000))
        found = self.operations.WaitOperation(request, timeout=seconds + 5)
        assert found.done, f"{name} is not done: {progress(found)}\n{self.worker_log()}"
        return found

    def metrics(self) -> str:
        """What Prometheus would scrape."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics") as reply:
            return str(reply.read().decode())

    def worker_log(self) -> str:
        """The end of the log that worker and gateway share."""
        path = self.state / "gateway.log"
        return path.read_text(errors="replace")[-3000:] if path.exists() else ""


def progress(operation: lro.Operation) -> pb.OperationProgress:
    """The common part of an operation's metadata."""
    name = operation.metadata.TypeName().rpartition(".")[2]
    message = getattr(pb, name)()
    operation.metadata.Unpack(message)
    return message.progress


def state_of(operation: lro.Operation) -> str:
    """Name of the state, without its prefix."""
    return pb.OperationState.Name(progress(operation).state).removeprefix("OPERATION_STATE_")


def descendants(pid: int) -> list[int]:
    """Children of a process, and theirs. A thread that ends meanwhile has none."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in task.read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
        for child in children:
            found += [child, *descendants(child)]
    return found


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def until(true: Callable[[], object], seconds: float = 20.0) -> None:
    """Waits until `true()` is."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def answers(url: str) -> bool:
    """Whether an engine answers at this URL, which ends in /v1."""
    try:
        with urllib.request.urlopen(f"{url}/models", timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextlib.contextmanager
def author(delay: float = 0.0) -> Iterator[str]:
    """URL of an `author_engine`, each completion taking `delay` seconds."""
    port = free_port()
    program = Path(__file__).with_name("author_engine.py")
    process = subprocess.Popen([sys.executable, program, str(port), str(delay)])
    try:
        url = f"http://127.0.0.1:{port}/v1"
        until(lambda: answers(url), START_SECONDS)
        yield url
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def running(state: Path, **environment: str) -> Iterator[Running]:
    """A server for the length of the block."""
    server = Running(state, **environment).start()
    try:
        yield server
    finally:
        server.stop()


def at_once(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, reader: str, change: Callable[[str], None]
) -> None:
    """Makes the changes "a" to "d" at the same time, each slow between reading and writing."""
    read = getattr(module, reader)

    def slowly(path: Path) -> Any:
        found = read(path)
        time.sleep(0.05)
        return found

    monkeypatch.setattr(module, reader, slowly)
    with ThreadPoolExecutor() as threads:
        list(threads.map(change, "abcd"))
