"""Which engine a job gets: one per weights, and none is started on a device that is lent."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ptalign.errors import Cancelled, InvalidInput, NotReady
from ptalign.nouns import ModelSpec
from ptalign_server.catalogue import Catalogue, write_models
from ptalign_server.metrics import Metrics
from ptalign_server.pool import State
from ptalign_server.settings import EngineSettings, Settings
from ptalign_server.worker import engines
from ptalign_server.worker.engines import Pools

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

    @contextmanager
    def paused(self, *_: object) -> Iterator[None]:
        self.lent = True
        yield
        self.lent = False


@pytest.fixture(params=["vllm", "scripted"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def pools_of(kind: Any, state: Path, monkeypatch: pytest.MonkeyPatch) -> Pools:
    monkeypatch.setattr(engines, "Pool", FakePool)
    settings = Settings(state=state, engine=EngineSettings(kind=kind))
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
