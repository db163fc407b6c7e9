"""The pools of a worker: one per model of the catalogue that is asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from ptalign.errors import NotReady
from ptalign.nouns import ModelSpec
from ptalign_server.catalogue import Catalogue
from ptalign_server.metrics import Metrics
from ptalign_server.pool import Pool, PoolSettings, State
from ptalign_server.pool.pool import OnWait
from ptalign_server.profiles import profile
from ptalign_server.settings import Settings

UP = frozenset({State.READY, State.PAUSED})


class Pools:
    """Starts a model's pool when it is first needed.

    Local engines share one device, so there is one local pool at a time: a job of another model
    waits until the pool has no users and takes its place.
    """

    def __init__(self, settings: Settings, catalogue: Catalogue) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._local = settings.engine.kind == "vllm"
        self._pools: dict[str, Pool] = {}
        self._users: dict[str, int] = {}
        self._lock = threading.Lock()

    def start(self) -> None:
        """Starts the pool of the catalogue's first model, in the background."""
        first = next(iter(self._catalogue.models.values()), None)
        if first is not None:
            with self._lock:
                self._open(first)

    def stop(self) -> None:
        """Ends every engine."""
        for pool in self._pools.values():
            pool.stop()

    @contextmanager
    def use(self, model: ModelSpec) -> Iterator[Pool]:
        """The model's pool, kept running inside the block.

        Raises:
            NotReady: The device's engine serves another model to jobs that are not done.
        """
        with self._lock:
            pool = self._open(model)
            self._users[model.name] = self._users.get(model.name, 0) + 1
        try:
            yield pool
        finally:
            with self._lock:
                self._users[model.name] -= 1

    @contextmanager
    def lease(self, should_stop: Callable[[], bool], on_wait: OnWait) -> Iterator[None]:
        """Lends the device to an executor job; engines elsewhere go on."""
        with ExitStack() as held:
            if self._local:
                for pool in list(self._pools.values()):
                    held.enter_context(pool.paused(should_stop, on_wait))
            yield

    def status(self) -> dict[str, Any]:
        """Whether any engine takes requests, and what each is doing."""
        engines = [(model, s) for model, pool in self._pools.items() for s in pool.status()]
        return {
            "ready": any(s.state in UP for _, s in engines),
            "engines": [
                {
                    "model": model,
                    "name": s.name,
                    "state": s.state.value,
                    "pid": s.pid,
                    "restarts": s.restarts,
                    "running": s.outstanding,
                    "adapters": list(s.adapters),
                }
                for model, s in engines
            ],
        }

    def publish(self, metrics: Metrics) -> None:
        """Moves the engine gauges."""
        for pool in list(self._pools.values()):
            for status in pool.status():
                metrics.engine_up.labels(status.name).set(float(status.state in UP))
                metrics.engine_running.labels(status.name).set(status.outstanding)

    def _open(self, model: ModelSpec) -> Pool:
        if model.name in self._pools:
            return self._pools[model.name]
        if self._local:
            self._close_others(model.name)
        pool = Pool(self._pool_settings(), model)
        pool.start()
        self._pools[model.name] = pool
        return pool

    def _close_others(self, wanted: str) -> None:
        for name in list(self._pools):
            if self._users.get(name, 0):
                raise NotReady(f"the engine serves {name} to other jobs; {wanted} waits for them")
            self._pools.pop(name).stop()

    def _pool_settings(self) -> PoolSettings:
        settings, engine = self._settings, self._settings.engine
        values: dict[str, object] = {
            "kind": engine.kind,
            "state": settings.state / "engines",
            "urls": engine.urls,
            "served_name": engine.served_name,
            "delay_seconds": engine.delay_seconds,
        }
        values["max_lora_rank"] = engine.max_lora_rank
        if engine.concurrency:
            values["max_sequences"] = engine.concurrency
        return PoolSettings.of(profile(settings.profile), **values)
