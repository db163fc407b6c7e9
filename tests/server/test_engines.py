"""Which engine a job gets: one per weights, and none is started on a device that is lent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ptalign.errors import Cancelled, InvalidInput, NotReady
from ptalign.nouns import ModelSpec
from ptalign_server.catalogue import Catalogue, write_models
from ptalign_server.metrics import Metrics
from ptalign_server.pool import EngineStatus, State
from ptalign_server.settings import EngineSettings, LimitSettings, Settings
from ptalign_server.worker import engines
from ptalign_server.worker.engines import Pools, key_of
from ptalign_server.worker.turns import Turns

OLD, NEW = (ModelSpec(name="m", path="x", weights_digest=f"sha256:{d}") for d in "12")
OTHER = ModelSpec(name="other", path="x")


class FakePool:
    """Says what was done to it."""

    def __init__(self, _: object, model: ModelSpec) -> None:
        self.model = model
        self.running = self.lent = False

    def start(self) -> None:
        self.running = True

    def stop(self) -> None:
        self.running = False

    def status(self) -> list[EngineStatus]:
        return []

    @contextmanager
    def paused(self, *_: object) -> Iterator[None]:
        self.lent = True
        yield
        self.lent = False


@pytest.fixture(params=["vllm", "scripted"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def pools_of(
    kind: Any, state: Path, monkeypatch: pytest.MonkeyPatch, turn_seconds: float = 300
) -> Pools:
    monkeypatch.setattr(engines, "Pool", FakePool)
    limits = LimitSettings(turn_seconds=turn_seconds)
    settings = Settings(state=state, engine=EngineSettings(kind=kind), limits=limits)
    return Pools(settings, Catalogue(settings))


def test_replaced_weights_get_an_engine_of_their_own(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools = pools_of(kind, tmp_path, monkeypatch)
    with pools.use(OLD) as first, pools.use(OLD) as same:
        assert first is same
    with pools.use(NEW) as second:
        assert second.model == NEW
        assert (first.running, second.running) == (False, True)


def test_weights_in_use_are_not_taken_away(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools = pools_of(kind, tmp_path, monkeypatch)
    with pools.use(OLD) as first:
        if kind == "vllm":
            with pytest.raises(NotReady, match="serves m to other jobs"), pools.use(NEW):
                pass
        else:
            with pools.use(NEW) as second:
                assert second.model == NEW
        assert first.running


@pytest.mark.parametrize("wanted", [OTHER, NEW], ids=["another model", "replaced weights"])
def test_a_job_waits_until_no_other_job_uses_the_engine(
    wanted: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was tried five times in fifteen seconds, then failed, behind jobs that take hours."""
    pools = pools_of("vllm", tmp_path, monkeypatch)
    says, opened, told = threading.Event(), list[ModelSpec](), list[str]()

    def job() -> None:
        with pools.use(wanted, lambda: False, tell) as pool:
            opened.append(pool.model)

    def tell(phase: str) -> None:
        told.append(phase)
        says.set()

    waiting = threading.Thread(target=job)
    with pools.use(OLD) as first:
        with pytest.raises(Cancelled), pools.use(wanted, lambda: True):
            pass
        waiting.start()
        assert says.wait(5), "it does not say that it waits"
        assert first.running
        assert not opened
    waiting.join(5)
    assert opened == [wanted]
    assert not first.running
    assert told == ["waiting for device", ""]


@pytest.mark.parametrize("probes", [False, True])
def test_jobs_that_keep_coming_do_not_keep_another_model_out(
    probes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each came before the last one ended, and the other model's operation waited for ever. So it
    did behind evaluations: the turn began anew after each one's probe."""
    pools = pools_of("vllm", tmp_path, monkeypatch, turn_seconds=0.2)
    opened, ended = threading.Event(), threading.Event()

    def keep_coming() -> None:
        while not ended.is_set():
            with pools.use(OLD, ended.is_set):
                if probes:
                    with pools.lease(lambda: False, print):
                        pass
                ended.wait(0.05)

    def other() -> None:
        with pools.use(OTHER, lambda: False) as pool:
            assert pool.model == OTHER
            opened.set()

    busy = [threading.Thread(target=ignoring(Cancelled, keep_coming)) for _ in range(4)]
    with pools.use(OLD):  # at no time is the engine free
        for thread in busy:
            thread.start()
    waiting = threading.Thread(target=other)
    waiting.start()
    try:
        assert opened.wait(10)
    finally:
        ended.set()
        for thread in (*busy, waiting):
            thread.join()


def ignoring(error: type[Exception], call: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        with suppress(error):
            call()

    return run


def test_a_chat_is_let_in_as_long_as_jobs_use_the_engine_anyway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chats that overlap would keep the other model out, too; refusing one beside a job of hours
    would help nobody."""
    pools, metrics = pools_of("vllm", tmp_path, monkeypatch, turn_seconds=0), Metrics()
    joined = threading.Event()

    def other() -> None:
        with pools.use(OTHER, lambda: False, lambda _: joined.set()):
            pass

    waiting = threading.Thread(target=other)
    with pools.use(OLD):
        with pools.use(OLD, lambda: False):
            waiting.start()
            assert joined.wait(5)
            with pools.use(OLD):
                pass
            pools.publish(metrics)
            assert metrics.device_wait_seconds._value.get() > 0
        with pytest.raises(NotReady, match="the turn of other on the device; m waits"):
            pools.use(OLD).__enter__()
    waiting.join()
    pools.publish(metrics)
    assert metrics.device_wait_seconds._value.get() == 0


def test_no_turn_passes_while_a_training_has_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next engine would be started for nothing, minutes each time."""
    pools = pools_of("vllm", tmp_path, monkeypatch, turn_seconds=0.3)
    joined, done = threading.Event(), threading.Event()

    def other() -> None:
        with suppress(Cancelled), pools.use(OTHER, done.is_set, lambda _: joined.set()):
            pass

    waiting = threading.Thread(target=other)
    with pools.use(OLD):
        waiting.start()
        assert joined.wait(5)
        with pools.lease(lambda: False, print):
            time.sleep(0.4)
        with pools.use(OLD, lambda: True):  # one that had to wait would be cancelled
            done.set()
    waiting.join()


def test_trainings_and_probes_take_turns_beside_engines_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each loaded its model at once, and the device ran out of memory."""
    pools = pools_of("scripted", tmp_path, monkeypatch)
    says, told, got = threading.Event(), list[str](), threading.Event()

    def probe() -> None:
        with pools.lease(lambda: False, tell):
            got.set()

    def tell(phase: str) -> None:
        told.append(phase)
        says.set()

    waiting = threading.Thread(target=probe)
    with pools.use(OLD) as pool, pools.lease(lambda: False, told.append):
        assert told == []
        with pytest.raises(Cancelled), pools.lease(lambda: True, print):
            pass
        waiting.start()
        assert says.wait(5)
        assert not got.wait(0.3)
        assert pool.running
        assert not pool.lent
    assert got.wait(5)
    waiting.join()
    assert told == ["waiting for device", ""]
    with suppress(ZeroDivisionError), pools.lease(lambda: True, print):
        _ = 1 / 0
    with pools.lease(lambda: True, print):  # one that had to wait would be cancelled
        pass


class Clock:
    """A time that stands until it is told to go on."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


A, B, C = (key_of(ModelSpec(name=name, path="")) for name in "abc")


def test_a_turn_lasts_its_seconds_and_then_goes_to_who_waits_longest() -> None:
    clock = Clock()
    turns = Turns(300, clock)
    clock.now = 1000
    assert (turns.over(A), turns.first, turns.waited) == (None, None, 0)
    places = [turns.join(B)]
    clock.now = 1299
    places += [turns.join(C), turns.join(B)]
    assert turns.over(A) is None  # an engine's start is not paid for each job
    clock.now = 1300
    assert (turns.over(A), turns.over(B), turns.waited) == (B, None, 300)
    turns.begin()
    turns.leave(places[0])
    clock.now = 1599
    assert (turns.first, turns.over(B)) == (C, None)  # the rest of B's need no change of engines
    clock.now = 1600
    assert (turns.over(B), turns.over(C)) == (C, B)


def test_what_a_training_takes_of_a_turn_is_not_counted_and_what_was_before_is() -> None:
    clock = Clock()
    turns = Turns(300, clock)
    place = turns.join(B)
    clock.now = 200
    turns.lend()
    clock.now = 1000
    turns.leave(place)
    turns.join(C)
    assert (turns.over(A), turns.waited) == (None, 0)
    turns.join(B)
    clock.now = 1500
    turns.take_back()
    clock.now = 1799
    assert (turns.over(A), turns.waited) == (None, 799)  # who waits knows no training's seconds
    clock.now = 1800
    assert turns.over(A) == C


@pytest.mark.parametrize("catalogue", [[OTHER], [OLD, OTHER], [OTHER, OLD]])
def test_remote_engines_get_no_pool_of_a_model_that_they_do_not_run(
    catalogue: list[ModelSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An accepted operation may meet other settings after a restart of the server."""
    monkeypatch.setattr(engines, "Pool", FakePool)
    remote = EngineSettings(kind="remote", urls=("http://x",), model="m", served_name="base")
    settings = Settings(state=tmp_path, engine=remote)
    write_models(settings.models_path, {model.name: model for model in catalogue})
    pools = Pools(settings, Catalogue(settings))
    pools.start()
    with pytest.raises(InvalidInput, match="is other, and the engines run m"), pools.use(OTHER):
        pass
    with pools.use(OLD) as pool:
        assert pool.model == OLD


def test_an_engine_that_lent_its_device_is_up(tmp_path: Path) -> None:
    """The alert on no engine goes by this alone: an Align elsewhere muted it for hours."""
    pools = Pools(Settings(state=tmp_path), Catalogue(Settings(state=tmp_path)))
    metrics, status = Metrics(), SimpleNamespace(name="0", state=State.PAUSED, outstanding=0)
    pools._pools["m", ""] = SimpleNamespace(status=lambda: [status])  # type: ignore[assignment]
    for state, up in ((State.PAUSED, 1), (State.STARTING, 0)):
        status.state = state
        pools.publish(metrics)
        assert metrics.engine_up.labels("0")._value.get() == up


def test_no_engine_starts_on_a_device_that_is_lent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools = pools_of("vllm", tmp_path, monkeypatch)
    opened, told = threading.Event(), list[str]()

    def job() -> None:
        with pools.use(OTHER, lambda: False, told.append) as pool:
            assert pool.running
            opened.set()

    with pools.use(OLD) as first:
        pass
    with pools.lease(lambda: False, print):
        assert first.lent
        with pools.use(OLD) as same:
            assert same is first  # it waits by itself
        with pytest.raises(NotReady, match="training job has the device"), pools.use(OTHER):
            pass
        with pytest.raises(Cancelled), pools.use(OTHER, lambda: True):
            pass
        waiting = threading.Thread(target=job)
        waiting.start()
        assert not opened.wait(0.3)
        assert first.running
    assert opened.wait(5)
    waiting.join()
    assert told == ["waiting for device", ""]
    assert not first.running
