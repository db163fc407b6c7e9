"""Killed, stopped and cancelled: what was accepted stays, once, and the operation ends."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.longrunning import operations_pb2 as lro
from running import Running, descendants, progress, state_of

from ptalign.nouns import ModelSpec
from ptalign_proto.v1 import library_pb2 as lib
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server.catalogue import write_models

pytestmark = pytest.mark.timeout(900)  # shared cores: each server loads an embedder
COUNT = 40


@pytest.fixture
def server(tmp_path: Path, tiny_model: Path) -> Iterator[Running]:
    """A server on the scripted engine: a second per completion, four at a time."""
    state = tmp_path / "state"
    state.mkdir()
    write_models(state / "models.yaml", {"tiny": ModelSpec(name="tiny", path=str(tiny_model))})
    started = Running(
        state,
        PTALIGN_ENGINE__KIND="scripted",
        PTALIGN_ENGINE__DELAY_SECONDS="1",
        PTALIGN_ENGINE__CONCURRENCY="4",
    ).start()
    yield started
    started.stop()


def begin(server: Running) -> str:
    """Starts a generation and waits until some records are accepted."""
    request = pb.GenerateInstructionsRequest(
        model="tiny", policy="tone-en", count=COUNT, request_id=str(uuid.uuid4())
    )
    name = str(server.tuning.GenerateInstructions(request).name)
    until_accepted(server, name, 4)
    return name


def until_accepted(server: Running, name: str, count: int) -> None:
    """Waits until the operation has accepted so many records."""
    for event in server.tuning.WatchOperation(pb.WatchOperationRequest(name=name), timeout=240):
        if progress(event.operation).counts["accepted"] >= count:
            return
        assert not event.operation.done, event.operation
    raise AssertionError(f"{name} ended early\n{server.worker_log()}")


def texts(server: Running, name: str) -> list[str]:
    request = lib.StreamRecordsRequest(name=name, view=lib.RECORD_VIEW_FULL, purpose="a test")
    return [r.instruction for r in server.library.StreamRecords(request)]


def test_kill_9_of_the_tree_loses_and_doubles_nothing(server: Running) -> None:
    name = begin(server)
    server.kill_tree()
    server.start()
    done = server.wait(name)
    assert state_of(done) == "SUCCEEDED", done
    assert progress(done).attempt == 2
    made = res.InstructionSet()
    done.response.Unpack(made)
    found = texts(server, made.meta.name)
    assert made.harmful == COUNT
    assert len(set(found)) == len(found) == made.harmful + made.twins
    events = list(server.tuning.WatchOperation(pb.WatchOperationRequest(name=name)))
    assert [e.sequence for e in events] == list(range(1, len(events) + 1))


def test_a_dead_worker_is_replaced_and_goes_on(server: Running) -> None:
    import os
    import signal

    name = begin(server)
    assert server.process is not None
    for child in descendants(server.process.pid):
        os.kill(child, signal.SIGKILL)
    found = server.operations.GetOperation(lro.GetOperationRequest(name=name))
    assert state_of(found) == "RUNNING"
    assert state_of(server.wait(name)) == "SUCCEEDED"
    assert "ptalign_worker_restarts_total 1.0" in server.metrics()


def test_sigterm_exits_cleanly_and_the_next_start_goes_on(server: Running) -> None:
    name = begin(server)
    start = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - start < 30
    server.start()
    assert state_of(server.wait(name)) == "SUCCEEDED"


def test_cancel_keeps_a_partial_set_that_can_be_extended(server: Running) -> None:
    name = begin(server)
    start = time.monotonic()
    server.operations.CancelOperation(lro.CancelOperationRequest(name=name))
    done = server.wait(name)
    assert state_of(done) == "CANCELLED"
    assert time.monotonic() - start < 20
    partial = progress(done).resource
    made = server.library.GetInstructionSet(lib.GetResourceRequest(name=partial))
    assert made.meta.partial
    assert 4 <= made.harmful < COUNT
    assert len(set(texts(server, partial))) == made.harmful + made.twins
    more = pb.GenerateInstructionsRequest(model="tiny", policy="tone-en", count=2, parent=partial)
    extended = server.wait(server.tuning.GenerateInstructions(more).name)
    whole = res.InstructionSet()
    assert extended.response.Unpack(whole), extended.error
    assert whole.harmful >= made.harmful + 2
    assert whole.meta.parents[0].startswith(partial + "@sha256:")
