"""Engines as one: start, wait, stream, serve adapters, lend the device."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

from ptalign.engines.base import Completion, Request
from ptalign.engines.openai import OpenAIEngine, never
from ptalign.errors import Cancelled, EngineFailed, NotReady
from ptalign.nouns import ModelSpec
from ptalign.text.controls import control_tokens
from ptalign_server.errors import CircuitOpen
from ptalign_server.pool.adapters import check_adapter
from ptalign_server.pool.router import Router
from ptalign_server.pool.settings import EngineStatus, PoolSettings, State
from ptalign_server.pool.supervisor import Supervisor
from ptalign_server.pool.transport import PoolTransport
from ptalign_server.processes import reap

T = TypeVar("T")
OnWait = Callable[[str], None]
WAITING = "waiting for device"
STARTING = "waiting for the engine to start"
KEPT = 4
"""Adapters that stay on engines of our own without a user, for the next one to find."""


def say_nothing(_: str) -> None:
    """The default `on_wait`."""


class Pool:
    """Generation engines of one model.

    Args:
        settings: Where they come from and what they may use.
        model: What they serve.
    """

    def __init__(self, settings: PoolSettings, model: ModelSpec) -> None:
        self.settings = settings
        self.model = model
        self._adapters: dict[str, Path] = {}
        self._users: Counter[str] = Counter()
        self._unused: dict[str, None] = {}
        """Adapters without a user, the newest last."""
        self._tried: dict[str, str] = {}
        """See `Supervisor`: why an engine that started does without an adapter in use."""
        self._users_lock = threading.Lock()
        # Remote engines serve other pools too: what is on their disks is known by asking anew.
        self._kept = 0 if settings.kind == "remote" else KEPT
        self._router = Router(settings.served_name or model.name)
        self._lease = threading.Lock()
        self.controls = control_tokens(Path(model.path))
        self._engines = [self._engine(i, url) for i, url in enumerate(self._urls())]
        self._router.slots = [engine.slot for engine in self._engines]

    def start(self) -> None:
        """Clears what an earlier run left and starts all engines in the background."""
        reap(self.settings.state / "children")
        for engine in self._engines:
            engine.start()

    def stop(self) -> None:
        """Ends all engines; returns when their processes are gone."""
        threads = [threading.Thread(target=engine.stop) for engine in self._engines]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def wait_ready(self, timeout_s: float) -> None:
        """Waits until one engine is READY.

        Raises:
            CircuitOpen: None can start; with the last log lines, redacted.
            NotReady: Not in this time.
        """
        deadline = time.monotonic() + timeout_s
        while not any(engine.state is State.READY for engine in self._engines):
            if self.failed:
                raise self._failure()
            if time.monotonic() > deadline:
                raise NotReady(f"no engine is ready after {timeout_s:.0f} s: {self._reasons()}")
            self._engines[0].wait(0.2)

    def status(self) -> list[EngineStatus]:
        """Every engine, as an operator sees it."""
        paused = not self._router.open
        return [engine.status(paused=paused) for engine in self._engines]

    @property
    def failed(self) -> bool:
        """Whether every engine's circuit is open."""
        return all(engine.state is State.CIRCUIT_OPEN for engine in self._engines)

    @property
    def leased(self) -> bool:
        """Whether an executor job has the device."""
        return not self._router.open

    @property
    def up(self) -> bool:
        """Whether any engine answers."""
        return any(slot.ready for slot in self._router.slots)

    def engine(
        self, should_stop: Callable[[], bool] = never, on_wait: OnWait = say_nothing
    ) -> PoolEngine:
        """An `Engine` over the whole pool.

        Args:
            should_stop: Asked every 100 ms; True aborts what is in flight and raises `Cancelled`.
            on_wait: Told ``waiting for device`` while a lease holds the device, that no engine is
                up yet, and ``""`` after.
        """
        return PoolEngine(self, self._router, should_stop, on_wait)

    def serve_adapter(self, name: str, folder: Path) -> str:
        """Loads an adapter on all engines, now and after each restart until `release_adapter`.

        Args:
            name: What it is called by people; letters, digits, dash.
            folder: PEFT folder.

        Returns:
            The name to put in `Request.adapter`: `name` and the digest. A name with another content
            is never served again, since the engine's prefix cache goes by name (vLLM #42125).

        Raises:
            NotReady, Unsupported, InvalidInput: See `adapters.check_adapter`.
            EngineFailed: An engine refused it; it is not served. Where one that is not READY
                refuses it later, `PoolEngine.stream` says so.
        """
        # The whole digest: an engine that pulls the files has nothing else to check them by.
        served = f"{name}-{check_adapter(folder, self.settings.max_lora_rank)}"
        with self._users_lock:
            if not self._users[served] and self._tried.get(served):
                del self._tried[served]  # why it was refused before: it is tried anew
            self._adapters[served] = folder.absolute()
            self._users[served] += 1
            self._unused.pop(served, None)
        try:
            for engine in self._engines:
                engine.reconcile(served)
        except EngineFailed:
            with self._users_lock:
                self._users[served] -= 1
                if not self._users[served]:
                    self._forget(served)
            raise
        return served

    def release_adapter(self, served: str) -> None:
        """Ends one use that `serve_adapter` began; the newest few unused adapters stay."""
        with self._users_lock:
            self._users[served] -= 1
            if self._users[served]:
                return
            self._unused[served] = None
            for old in list(self._unused)[: -self._kept or None]:
                self._forget(old)
        for engine in self._engines:
            engine.reconcile()

    def drop_adapter(self, served: str) -> None:
        """Stops serving an adapter, used or not; one that is not served is fine."""
        with self._users_lock:
            self._forget(served)
        for engine in self._engines:
            engine.reconcile()

    @contextmanager
    def paused(
        self, should_stop: Callable[[], bool] = never, on_wait: OnWait = say_nothing
    ) -> Iterator[None]:
        """Lends the device: no engine computes inside the block.

        Waits for the lease, closes the gate, waits for what is in flight, and with
        ``lease="stop"`` ends the engines. Streams of other jobs wait and go on afterwards.

        Args:
            should_stop: Asked while waiting.
            on_wait: Told ``waiting for device`` while waiting, and ``""`` once it has it.

        Raises:
            Cancelled: `should_stop` said so while waiting.
        """
        on_wait(WAITING)
        self._wait(lambda: self._lease.acquire(timeout=0.1), should_stop)
        try:
            self._router.change(lambda: setattr(self._router, "open", False))
            self._wait(lambda: self._router.drain(0.1), should_stop)
            if self.settings.lease == "stop":
                for engine in self._local():
                    engine.suspend()
            on_wait("")
            yield
        finally:
            for engine in self._local():
                engine.resume()
            self._router.change(lambda: setattr(self._router, "open", True))
            self._lease.release()

    def _forget(self, served: str) -> None:
        self._adapters.pop(served, None)
        self._users.pop(served, None)
        self._tried.pop(served, None)
        self._unused.pop(served, None)

    def _wait(self, done: Callable[[], bool], should_stop: Callable[[], bool]) -> None:
        while not done():
            if should_stop():
                raise Cancelled("stopped while waiting for the device")

    def _urls(self) -> Iterable[str]:
        if self.settings.kind == "remote":
            return [url.rstrip("/").removesuffix("/v1") for url in self.settings.urls]
        return [""] * self.settings.engines

    def _engine(self, index: int, url: str) -> Supervisor:
        name = f"engine-{index}"
        shared = self._adapters, self._users, self._tried
        return Supervisor(name, self.settings, self.model, self._router, *shared, url)

    def _local(self) -> list[Supervisor]:
        return [] if self.settings.kind == "remote" else self._engines

    def _reasons(self) -> str:
        return "; ".join(f"{e.slot.name} {e.state.value} {e.reason}".strip() for e in self._engines)

    def _failure(self) -> CircuitOpen:
        tail = "\n".join(self._engines[0].last_words())
        return CircuitOpen(
            f"no engine can run, each one's circuit is open: {self._reasons()}. "
            f"Last lines of its log:\n{tail}"
        )


class PoolEngine:
    """An `Engine` (see `ptalign.engines.base`) that spreads requests over a pool."""

    def __init__(
        self, pool: Pool, router: Router, should_stop: Callable[[], bool], on_wait: OnWait
    ) -> None:
        self.model = pool.model.name
        self._pool = pool
        self._should_stop = should_stop
        self._on_wait = on_wait
        self._told = ""
        self._inner = OpenAIEngine(
            "http://pool",
            pool.model.name,
            served_name=router.model,
            concurrency=sum(slot.limit for slot in router.slots),
            should_stop=self._look,
            template_options=pool.model.template_options,
            attempts=2,  # the transport has its own, which know of deaths and restarts
            transport=PoolTransport(router, pool.controls),
        )

    def stream(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Completions in the order they finish; see `Engine.stream`.

        Raises:
            CircuitOpen: Every engine failed too often.
            EngineFailed: An engine has started without an adapter of the requests, which it
                refused; it would answer each of them HTTP 404.
            Cancelled: `should_stop` said so.
        """
        asked: set[str] = set()

        def noted(request: Request) -> Request:
            asked.add(request.adapter)
            return request

        with closing(self._explained(self._inner.stream(map(noted, requests)))) as made:
            for completion in made:
                for why in filter(None, map(self._pool._tried.get, asked)):
                    raise EngineFailed(why)
                yield completion

    def pieces(self, request: Request) -> Iterator[str]:
        """The text of one chat completion as it is made; see `OpenAIEngine.pieces`.

        Raises:
            InvalidInput: An engine found fault with `messages`.
            EngineFailed: The engine failed or died.
            CircuitOpen: Every engine failed too often.
            Cancelled: `should_stop` said so.
        """
        return self._explained(self._inner.pieces(request))

    def _explained(self, made: Iterator[T]) -> Generator[T, None, None]:
        try:
            yield from made
        except Cancelled:
            if self._pool.failed and not self._should_stop():
                raise self._pool._failure() from None
            raise

    def _look(self) -> bool:
        """Asked by the stream every 100 ms, in the stage's thread."""
        wait = WAITING if self._pool.leased else "" if self._pool.up else STARTING
        if wait != self._told:
            self._told = wait
            self._on_wait(wait)
        return self._should_stop() or self._pool.failed
