"""VALIDATING: what may pass is waited for, what is wrong fails at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from dbos import DBOS
from dbos._dbos import _get_dbos_instance
from google.rpc import status_pb2
from test_retention import put_operation

from ptalign.errors import DataDamaged
from ptalign.nouns import InstructionSet
from ptalign_server import wire
from ptalign_server.errors import NotFound, reason_of
from ptalign_server.metrics import Metrics
from ptalign_server.settings import Settings
from ptalign_server.store import Store
from ptalign_server.store.operations import (
    CANCELLED,
    CANCELLING,
    FAILED,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    VALIDATING,
)
from ptalign_server.store.resources import Resource
from ptalign_server.vault import KeysAway
from ptalign_server.worker import patience, perform, run
from ptalign_server.worker.job import Made
from ptalign_server.worker.patience import Patience
from ptalign_server.worker.run import Worker

LOCKED = sa.exc.OperationalError("select 1", {}, Exception("database is locked"))


def bare_worker(store: Store) -> Worker:
    """A worker without dbos and engines."""
    worker = Worker.__new__(Worker)
    worker.room = SimpleNamespace(store=store, metrics=Metrics())  # type: ignore[assignment]
    worker.ending = threading.Event()
    worker._running, worker._unstarted = set(), set()
    return worker


class Bench:
    """A worker without dbos and engines, whose checks raise what a test says."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = store
        self.raises: list[BaseException] = []
        self.checked = 0
        self.clock = 0.0
        worker = bare_worker(store)
        worker._patience = Patience(4)
        worker._enqueue = lambda *_: None  # type: ignore[method-assign]
        self.worker = worker
        monkeypatch.setattr(run, "Reporter", lambda *_: None)
        monkeypatch.setitem(run.JOBS, "SynthesizePairs", SimpleNamespace(validate=self._check))
        monkeypatch.setattr(patience.time, "monotonic", lambda: self.clock)

    def turn(self, seconds: float = 60.0) -> None:
        self.clock += seconds
        self.worker._take_up()

    def _check(self, _: Any) -> None:
        self.checked += 1
        if self.raises:
            raise self.raises.pop(0)


def damage(metrics: Metrics) -> float:
    """What /metrics shows: a series that is not there before its first error has no increase."""
    [family] = metrics.data_damaged.collect()
    return next(s.value for s in family.samples if s.name == "ptalign_data_damaged_total")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(Settings(state=tmp_path / "state"), wire.freeze)
    yield made
    made.close()


@pytest.fixture
def bench(store: Store, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(store, monkeypatch)


@pytest.mark.parametrize(
    "error", [LOCKED, OSError(116, "stale file handle"), TimeoutError(), KeysAway("exit code 1")]
)
def test_what_may_pass_is_tried_again(bench: Bench, error: BaseException) -> None:
    found = put_operation(bench.store, VALIDATING)
    bench.raises = [error, error]
    bench.turn()
    assert bench.store.operations.get(found).state == VALIDATING
    bench.turn(0.5)  # not yet
    assert bench.checked == 1
    bench.turn()
    bench.turn()
    assert bench.store.operations.get(found).state == QUEUED
    bench.turn()
    assert len(bench.worker._patience) == 0


def test_a_damaged_input_that_a_running_operation_meets_is_counted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set is read by the worker most of all, and no call's code says so."""
    metrics = Metrics()
    assert damage(metrics) == 0
    found = bench.store.operations.get(put_operation(bench.store, RUNNING))
    job: Any = SimpleNamespace(operation=found, room=SimpleNamespace(store=bench.store))
    job.room.metrics = metrics
    monkeypatch.setitem(perform.JOBS, "SynthesizePairs", SimpleNamespace(partial=None))
    assert perform._end(job, FAILED, DataDamaged("changed")) == FAILED
    assert damage(metrics) == 1


def test_a_worker_follows_the_newest_evaluation_of_any_server(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its gauges paged on its own last one until it restarted."""
    shown: list[Any] = []
    monkeypatch.setattr(run, "publish_newest", shown.append)
    bench.worker._watch_cancels = lambda: None  # type: ignore[method-assign]
    bench.worker._recover_now_and_then = lambda: None  # type: ignore[method-assign]
    bench.worker.room.pools = SimpleNamespace(publish=lambda _: None)  # type: ignore[assignment]
    bench.worker._shown = -run.SHOW_SECONDS
    for seconds, times in ((1.0, 1), (1.0, 1), (61.0, 2)):
        bench.clock += seconds
        bench.worker._look()
        assert len(shown) == times


def test_a_queue_longer_than_a_thousand_is_whole_after_the_job_database_was_lost(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest stayed QUEUED until another start."""
    store, count = bench.store, 1002
    first = store.operations.get(put_operation(store, QUEUED))
    rows = [replace(first, id=f"{first.id}{n:04}") for n in range(1, count)]
    store.write(lambda c: [store.operations.insert(c, row) for row in rows]).result()
    monkeypatch.setattr(run, "DBOS", SimpleNamespace(get_workflow_status=lambda _: None))
    found: list[str] = []
    bench.worker._enqueue = lambda o, _: found.append(o.id)  # type: ignore[method-assign]
    bench.worker._running = {first.id}
    bench.worker._recover()
    assert found == [row.id for row in rows]
    found.clear()
    bench.worker._recover((RUNNING, CANCELLING))
    assert found == []


@pytest.fixture
def launched(store: Store, tmp_path: Path) -> Iterator[Worker]:
    """With the job library, on a database of its own."""
    worker = bare_worker(store)
    worker.settings = Settings(state=tmp_path)
    worker._launch()
    yield worker
    DBOS.destroy(destroy_registry=True)


def test_an_operation_whose_claim_was_lost_starts_without_a_restart(
    launched: Worker, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that went away at the claim's COMMIT: claimed there, and nobody ran it."""
    started, lost = threading.Event(), threading.Event()
    monkeypatch.setattr(launched, "work", lambda name: started.set() or name)
    jobs = _get_dbos_instance()._sys_db
    claim = jobs.start_queued_workflows

    def claim_and_lose(*args: Any, **options: Any) -> Any:
        found = claim(*args, **options)
        if not found[0] or lost.is_set():
            return found
        lost.set()
        raise LOCKED

    monkeypatch.setattr(jobs, "start_queued_workflows", claim_and_lose)
    made = store.operations.get(put_operation(store, QUEUED))
    launched._enqueue(made, made.id)
    assert lost.wait(30)
    launched._enqueue_lost_claims()  # it may be on its way
    assert DBOS.get_workflow_status(made.id).status == "PENDING"
    assert not started.is_set()
    launched._enqueue_lost_claims()
    assert started.wait(30)


def test_what_runs_is_not_put_back(
    launched: Worker, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends, runs = threading.Event(), threading.Event()
    calls: list[str] = []

    def work(name: str) -> str:
        launched._running.add(name)
        calls.append(name)
        runs.set()
        ends.wait(30)
        return name

    monkeypatch.setattr(launched, "work", work)
    made = store.operations.get(put_operation(store, QUEUED))
    launched._enqueue(made, f"{made.id}.1")  # as one that was recovered
    assert runs.wait(30)
    for _ in range(3):
        launched._enqueue_lost_claims()
    assert DBOS.get_workflow_status(f"{made.id}.1").status == "PENDING"
    ends.set()
    assert DBOS.retrieve_workflow(f"{made.id}.1").get_result() == made.id
    assert calls == [made.id]


def test_the_job_library_does_not_wait_for_a_silent_database_either(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Launched(Exception): ...

    def launch(*, config: Any) -> None:
        raise Launched(config)

    monkeypatch.setattr(run, "DBOS", launch)
    for url, waits in (("", False), ("postgresql://me@h/d?connect_timeout=3", True)):
        bench.worker.settings = Settings(state=tmp_path, database=url)
        with pytest.raises(Launched) as caught:
            bench.worker._launch()
        given = caught.value.args[0].get("db_engine_kwargs", {}).get("connect_args", {})
        assert ("tcp_user_timeout" in given, "connect_timeout" in given) == (waits, False)


def test_what_never_passes_fails_in_the_end(bench: Bench) -> None:
    found = put_operation(bench.store, VALIDATING)
    bench.raises = [LOCKED] * 9
    for _ in range(9):
        bench.turn()
    assert bench.checked == 4
    assert bench.store.operations.get(found).state == FAILED


def test_keys_are_waited_for_as_long_as_they_are_away(bench: Bench) -> None:
    """After ten minutes what was accepted ended FAILED, and had done nothing wrong."""
    found = put_operation(bench.store, VALIDATING)
    bench.raises = [KeysAway("exit code 1")] * 9
    for _ in range(9):
        bench.turn()
    assert bench.store.operations.get(found).state == VALIDATING
    bench.turn()
    assert bench.store.operations.get(found).state == QUEUED


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (DataDamaged("changed"), "DATA_DAMAGED"),
        (FileNotFoundError(), "INTERNAL"),
        (KeyError("x"), "INTERNAL"),
    ],
)
def test_what_is_wrong_fails_at_once(bench: Bench, error: BaseException, reason: str) -> None:
    found = put_operation(bench.store, VALIDATING)
    bench.raises = [error]
    bench.turn()
    row = bench.store.operations.get(found)
    assert row.state == FAILED
    assert reason_of(status_pb2.Status.FromString(row.error)) == reason
    assert damage(bench.worker.room.metrics) == (reason == "DATA_DAMAGED")


@pytest.mark.parametrize("state", [QUEUED, RUNNING])
def test_a_failed_check_does_not_end_what_another_server_took(bench: Bench, state: str) -> None:
    """Servers of one database check the same operations, and one's volume may be away."""
    found = put_operation(bench.store, VALIDATING)

    def check(_: Any) -> None:
        bench.store.operations.advance(found, lambda o: replace(o, state=state))
        raise DataDamaged("changed")

    run.JOBS["SynthesizePairs"].validate = check  # type: ignore[method-assign,assignment]
    bench.turn()
    assert bench.store.operations.get(found).state == state


def test_what_comes_after_the_end_is_no_result(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stood in the library, and the operation that made it said that it had failed."""
    found = bench.store.operations.get(put_operation(bench.store, FAILED))
    job: Any = SimpleNamespace(operation=found, room=bench.worker.room)
    name = f"pairSets/{found.id}"
    row = Resource(
        name=name, collection="pairSets", tenant="default", model="", policy="", verdict="",
        adapter="", partial=False, purged=False, content="", body=b"", created=1.0,
    )  # fmt: skip
    monkeypatch.setattr(perform, "_seal", lambda *_: row)
    made = Made(noun=InstructionSet(records=(), requested=0), message=None, config=None)
    assert perform._end_with(job, SUCCEEDED, None, made) == FAILED
    with pytest.raises(NotFound):
        bench.store.resources.get(name, None)


def test_one_that_waits_holds_up_no_other_and_is_forgotten_once_cancelled(bench: Bench) -> None:
    first, second = (put_operation(bench.store, VALIDATING) for _ in range(2))
    bench.raises = [LOCKED]
    bench.turn()
    assert bench.store.operations.get(second).state == QUEUED
    bench.store.operations.advance(first, lambda o: replace(o, state=CANCELLED))
    bench.turn()
    assert (bench.checked, len(bench.worker._patience)) == (2, 0)
