"""The pools of a worker: one per model and weights of the catalogue that is asked for."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from ptalign.errors import Cancelled, NotReady
from ptalign.nouns import ModelSpec
from ptalign_server.catalogue import Catalogue
from ptalign_server.metrics import Metrics
from ptalign_server.pool import Pool, PoolSettings, State
from ptalign_server.pool.pool import WAITING, OnWait, say_nothing
from ptalign_server.profiles import profile
from ptalign_server.settings import Settings
from ptalign_server.worker.turns import Key, Place, Turns

POLL_SECONDS = 0.1
UP = frozenset({State.READY, State.PAUSED})


def key_of(model: ModelSpec) -> Key:
    """What an engine is started for: the name alone would go on serving replaced weights."""
    return model.name, model.weights_digest


class Pools:
    """Starts a model's pool when it is first needed.

    Local engines share one device, so there is one local pool at a time: a job of another model
    waits until the pool has no users and takes its place, in the order of `Turns`. A pool serves
    the weights it was started on: when a catalogue entry is replaced, jobs get a new one.
    """

    def __init__(self, settings: Settings, catalogue: Catalogue) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._local = settings.engine.kind == "vllm"
        self._pools: dict[Key, Pool] = {}
        self._users: Counter[Key] = Counter()
        self._jobs: Counter[Key] = Counter()
        """Of the users, those that would wait for an engine: chats do not."""
        self._turns = Turns(settings.limits.turn_seconds)
        self._leases = 0
        self._slots = threading.BoundedSemaphore(settings.limits.trainings)
        """Executor jobs beside engines elsewhere."""
        self._lock = threading.Lock()

    def start(self) -> None:
        """Starts the pool of the first model that engines serve, in the background."""
        catalogue = self._catalogue
        first = next((m for m in catalogue.models.values() if catalogue.serves(m.name)), None)
        if first is not None:
            with self._lock:
                self._open(key_of(first), first)

    def stop(self) -> None:
        """Ends every engine."""
        for pool in self._pools.values():
            pool.stop()

    @contextmanager
    def use(
        self,
        model: ModelSpec,
        should_stop: Callable[[], bool] | None = None,
        on_wait: OnWait = say_nothing,
    ) -> Iterator[Pool]:
        """The model's pool, kept running inside the block.

        An engine that must be started waits while an executor job, or another model's, has the
        device. One that runs is not given to further jobs once its model's turn is over.

        Args:
            should_stop: Asked while waiting; without it, nobody waits.
            on_wait: Told ``waiting for device`` while waiting, and ``""`` after.

        Raises:
            NotReady: Nobody waits, and an executor job has the device, or the device's engine
                serves other weights to jobs that are not done, or it is another model's turn.
            InvalidInput: The remote engines run another model.
            Cancelled: `should_stop` said so.
        """
        key = key_of(model)
        pool = self._enter(key, model, should_stop, on_wait)
        try:
            yield pool
        finally:
            with self._lock:
                self._users[key] -= 1
                self._jobs[key] -= should_stop is not None

    @contextmanager
    def lease(self, should_stop: Callable[[], bool], on_wait: OnWait) -> Iterator[None]:
        """Lends the device to an executor job; engines elsewhere go on.

        Executor jobs take turns there too: a training, and the probe of each evaluation, is a
        model of its own in the device's memory.
        """
        if not self._local:
            with self._slot(should_stop, on_wait):
                yield
            return
        with self._lock:  # from here on none is added
            if not self._leases:  # no turn passes while nobody's jobs can run
                self._turns.lend()
            self._leases += 1
            pools = list(self._pools.values())
        try:
            with ExitStack() as held:
                for pool in pools:
                    held.enter_context(pool.paused(should_stop, on_wait))
                yield
        finally:
            with self._lock:
                self._leases -= 1
                if not self._leases:
                    self._turns.take_back()

    def status(self) -> dict[str, Any]:
        """Whether any engine takes requests, and what each is doing."""
        pools = list(self._pools.items())
        engines = [(name, s) for (name, _), pool in pools for s in pool.status()]
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
        # Without the lock, which is held while an engine is stopped.
        metrics.device_wait_seconds.set(self._turns.waited)
        for pool in list(self._pools.values()):
            for status in pool.status():
                metrics.engine_up.labels(status.name).set(float(status.state in UP))
                metrics.engine_running.labels(status.name).set(status.outstanding)

    @contextmanager
    def _slot(self, should_stop: Callable[[], bool], on_wait: OnWait) -> Iterator[None]:
        if not self._slots.acquire(blocking=False):
            on_wait(WAITING)
            while not self._slots.acquire(timeout=POLL_SECONDS):
                if should_stop():
                    raise Cancelled("stopped while waiting for the device")
            on_wait("")
        try:
            yield
        finally:
            self._slots.release()

    def _enter(
        self,
        key: Key,
        model: ModelSpec,
        should_stop: Callable[[], bool] | None,
        on_wait: OnWait,
    ) -> Pool:
        with self._lock:
            taken = self._taken(key, waits=should_stop is not None)
            if not taken:
                return self._take(key, model, waits=should_stop is not None)
            if should_stop is None:
                raise NotReady(f"{taken}; {model.name} waits for it")
            place = self._turns.join(key)
        try:
            on_wait(WAITING)
            pool = self._wait(place, model, should_stop)
        finally:
            with self._lock:
                self._turns.leave(place)
        on_wait("")
        return pool

    def _wait(self, place: Place, model: ModelSpec, should_stop: Callable[[], bool]) -> Pool:
        while not should_stop():
            with self._lock:
                if not self._taken(place.key, waits=True):
                    return self._take(place.key, model, waits=True)
            time.sleep(POLL_SECONDS)
        raise Cancelled("stopped while waiting for the device")

    def _take(self, key: Key, model: ModelSpec, *, waits: bool) -> Pool:
        pool = self._open(key, model)
        self._users[key] += 1
        self._jobs[key] += waits
        return pool

    def _taken(self, wanted: Key, *, waits: bool) -> str:
        """Why these weights get no engine on the device now; empty when they do.

        Args:
            waits: Whether who asks would wait. A chat would not: it is brief, and let in while jobs
                use the engine anyway.
        """
        if not self._local:
            return ""
        if wanted in self._pools:
            due = self._turns.over(wanted)
            held = not waits and self._jobs[wanted] > 0
            return f"it is the turn of {due[0]} on the device" if due and not held else ""
        if self._leases:
            return "a training job has the device"
        busy = next((key[0] for key in self._pools if self._users[key]), "")
        if busy:
            return f"the engine serves {busy} to other jobs"
        first = self._turns.first
        if first is None or first == wanted:
            return ""
        return f"{first[0]} has waited longer for the device"

    def _open(self, key: Key, model: ModelSpec) -> Pool:
        if key in self._pools:
            return self._pools[key]
        self._catalogue.check_served(model.name)  # settings may have changed since the call
        self._make_room(key)
        pool = Pool(self._pool_settings(), model)
        pool.start()
        self._pools[key] = pool
        self._turns.begin()
        return pool

    def _make_room(self, wanted: Key) -> None:
        """Closes what stands in the way: all others on one device, else the name's old weights."""
        for key in list(self._pools):
            if not self._local and key[0] != wanted[0]:
                continue
            if not self._users[key]:
                self._pools.pop(key).stop()

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
