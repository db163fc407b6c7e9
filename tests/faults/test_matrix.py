"""Four verbs, four ways to be left alone: nothing keeps running, nothing stays taken."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.longrunning import operations_pb2 as lro
from running import Running, descendants, progress, state_of
from test_training_crash import import_pairs
from world import MODEL, POLICY, author, end, generate, insist, server, wait_for, worker_pid

from ptalign_proto.v1 import library_pb2 as lib
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_proto.v1 import safety_tuning_pb2_grpc
from ptalign_server.settings import Settings

EVENTS = ("cancel", "deadline", "client killed", "server error")
ENDED = {"CANCELLED", "SUCCEEDED"}


@dataclass(frozen=True)
class Verb:
    """How to call one, and when it is under way."""

    request: Callable[[Running], Any]
    underway: Callable[[Running, str], object]


def computes(running: Running, name: str) -> bool:
    """Whether an engine works for it: one operation runs at a time here."""
    return progress(get(running, name)).phase != "" and bool(engines(running, "running"))


def steps(running: Running, name: str) -> bool:
    """Whether the trainer has made a step."""
    return progress(get(running, name)).done > 0


def synthesis(running: Running) -> pb.SynthesizePairsRequest:
    records = [
        lib.Record(instruction=f"Mock my cousin who lost teapot {n} near the market.", topic="t0")
        for n in range(300)
    ]
    made = import_set(running, "instructionSets", records)
    return pb.SynthesizePairsRequest(model=MODEL, instruction_set=made)


def training(running: Running) -> pb.AlignRequest:
    budget = pb.Budget(steps=2000, pairs_per_step=4, without_anchors=True, max_benign_kl=9.0)
    pairs = import_pairs(running)
    return pb.AlignRequest(model=MODEL, pair_set=pairs, budget=budget, guards="record")


def evaluation(running: Running) -> pb.EvaluateRequest:
    return pb.EvaluateRequest(target=pb.Target(model=MODEL), suites=["ordinary"], samples=200)


VERBS = {
    "GenerateInstructions": Verb(lambda _: generate(300), computes),
    "SynthesizePairs": Verb(synthesis, computes),
    "Align": Verb(training, steps),
    "Evaluate": Verb(evaluation, computes),
}


def cases() -> Iterator[Any]:
    """`make test` runs each verb's cancel, and each event on the first verb."""
    for verb in VERBS:
        for event in EVENTS:
            small = event == "cancel" or verb == "GenerateInstructions"
            marks = [] if small else [pytest.mark.full]
            yield pytest.param(verb, event, marks=marks, id=f"{verb}-{event.replace(' ', '-')}")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Running]:
    """One server on an engine that takes 0.4 s per answer."""
    with author(0.4) as url:
        made = server(tmp_path_factory.mktemp("matrix") / "state", url, tiny_model)
        made.engine_url = url  # type: ignore[attr-defined]
        try:
            yield made.start()
        finally:
            end(made)


@pytest.mark.tier(2)
@pytest.mark.timeout(2600)
@pytest.mark.parametrize(("verb", "event"), list(cases()))
def test_a_call_leaves_nothing_running(score: Any, running: Running, verb: str, event: str) -> None:
    row = score.row(f"{verb} x {event}", 10)
    for _ in range(score.size(10, 1)):
        name = disturb(running, VERBS[verb], verb, event)
        running.operations.CancelOperation(lro.CancelOperationRequest(name=name))
        done = running.wait(name, 280)
        row.ran += 1
        row.bad += state_of(done) not in ENDED
        left = still(running, name, 1.0 if score.in_tier else 10.0)
        row.bad += bool(left)
        if left or state_of(done) not in ENDED:
            row.notes[f"fault {row.bad}"] = f"{state_of(done)} {done.error.message} {left}".strip()
        if event == "server error":  # or the worker's next start waits longer each time
            running.stop()
            running.start()
    assert not row.bad, row.notes


def disturb(running: Running, kind: Verb, verb: str, event: str) -> str:
    """Starts an operation that meets the event while it is under way; its name."""
    request = kind.request(running)
    request.request_id = generate().request_id
    call = getattr(running.tuning, verb)
    if event == "deadline":
        run_out(call, request)
    if event == "client killed":
        abandon(running, verb, request)
    name = str(insist(call, request).name)
    try:
        wait_for(lambda: kind.underway(running, name), 400, f"{verb} is under way")
    except AssertionError:
        running.operations.CancelOperation(lro.CancelOperationRequest(name=name))
        raise
    if event == "server error":
        pid = worker_pid(running)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: worker_pid(running) not in (0, pid), 200, "another worker")
    return name


def run_out(call: Any, request: Any) -> None:
    """A call whose deadline passes before the answer: the server may have taken it or not."""
    seconds = 0.002
    with pytest.raises(grpc.RpcError):
        while True:  # the same request id: it is one operation, however often it is answered
            call(request, timeout=seconds)
            seconds /= 2


def abandon(running: Running, verb: str, request: Any) -> None:
    """A client that calls, watches, and is gone without a word."""
    channel = grpc.insecure_channel(f"127.0.0.1:{running.port}")
    stub = safety_tuning_pb2_grpc.SafetyTuningStub(channel)
    name = getattr(stub, verb)(request).name
    watch = stub.WatchOperation(pb.WatchOperationRequest(name=name))
    next(watch)
    threading.Thread(target=channel.close).start()


def still(running: Running, name: str, seconds: float) -> str:
    """What of an ended operation is not gone after some seconds; empty when all is."""
    limit = time.monotonic() + seconds
    while left := in_use(running, name.removeprefix("operations/")):
        if time.monotonic() > limit:
            return left
        time.sleep(0.05)
    return ""


def in_use(running: Running, operation: str) -> str:
    """The first thing found that belongs to an operation: sequence, lease, trainer, open file."""
    try:
        if engines(running, "running"):
            return "a request holds a slot"
        if any(state == "PAUSED" for state in engines(running, "state")):
            return "the device is leased"
        if httpx.get(f"{running.engine_url.removesuffix('/v1')}/busy").json():  # type: ignore[attr-defined]
            return "the engine computes"
    except httpx.HTTPError as error:
        return f"no answer: {error!r}"
    assert running.process is not None
    for pid in descendants(running.process.pid):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            files = [os.readlink(f) for f in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        if b"executor.job" in words:
            return "a trainer runs"
        if found := [f for f in files if operation in f]:
            return f"open: {found[0]}"
    return ""


def engines(running: Running, what: str) -> list[Any]:
    """One field of every engine that the worker has, those without a value left out."""
    socket = str(Settings(state=running.state).worker_socket)
    with httpx.Client(transport=httpx.HTTPTransport(uds=socket), timeout=5) as client:
        status = client.get("http://worker/status").json()
    return [engine[what] for engine in status["engines"] if engine[what]]


def get(running: Running, name: str) -> lro.Operation:
    found: lro.Operation = running.operations.GetOperation(lro.GetOperationRequest(name=name))
    return found


def import_set(running: Running, kind: str, records: list[lib.Record]) -> str:
    header = lib.ImportHeader(kind=kind, model=MODEL, policy=POLICY)
    parts = [lib.ImportSetRequest(header=header), lib.ImportSetRequest(records=records)]
    return str(running.library.ImportSet(iter(parts), timeout=60).name)
