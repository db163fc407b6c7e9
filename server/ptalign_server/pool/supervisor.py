"""Starts one engine, proves it, watches it, starts it again."""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Collection, Mapping, MutableMapping
from pathlib import Path

from ptalign.errors import EngineFailed, PtalignError
from ptalign.nouns import ModelSpec
from ptalign_server.pool import canary
from ptalign_server.pool.adapters import make_adapter
from ptalign_server.pool.client import EngineClient
from ptalign_server.pool.command import EngineCommand, command_for
from ptalign_server.pool.router import Router, Slot
from ptalign_server.pool.settings import EngineStatus, PoolSettings, State
from ptalign_server.processes import Child, spawn
from ptalign_server.redact import LogTail

ZERO = "ptalign-zero"
MISSES = 3
"""Failed health checks in a row that count as a death."""
TICK_S = 0.1

log = logging.getLogger(__name__)


class Supervisor:
    """Keeps one engine up, in a thread of its own.

    Args:
        name: Name in status and pid files.
        settings: The pool's.
        model: What the engine serves.
        router: Where the engine is announced while it is READY.
        adapters: Desired adapters by served name; read at each start and by `reconcile`.
        users: How many use each; an engine that lacks one in use would fail its requests at once,
            and draw more of them than engines that answer.
        tried: What came of loading each, on all engines of the pool together: empty once one has
            loaded it, else why a starting engine did not.
        url: Address of a remote engine; empty for one that is started here.
    """

    def __init__(
        self,
        name: str,
        settings: PoolSettings,
        model: ModelSpec,
        router: Router,
        adapters: Mapping[str, Path],
        users: Mapping[str, int],
        tried: MutableMapping[str, str],
        url: str = "",
    ) -> None:
        self.slot = Slot(name, settings.in_flight, url=url, ours=not url)
        self.state = State.STARTING
        self.reason = ""
        """Why it is not READY, in words for an operator."""
        self.log = LogTail()
        self._settings, self._model, self._router = settings, model, router
        self._desired, self._users, self._tried = adapters, users, tried
        self._loaded = set[str]()
        self._remote = bool(url)
        self._child: Child | None = None
        self._client: EngineClient | None = None
        self._deaths: deque[float] = deque()
        self._failed_starts = 0
        self._restarts = 0
        self._last_words: tuple[str, ...] = ()
        self._canary = f"ptalign-canary-{secrets.token_hex(4)}"  # others may probe it too
        self._adapter_lock = threading.Lock()
        self._suspended = threading.Event()
        self._stopping = threading.Event()
        self._moved = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"engine-{name}", daemon=True)

    def start(self) -> None:
        """Begins; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the engine and the thread."""
        self._stopping.set()
        self._hurry()
        if self._thread.is_alive():
            self._thread.join(self._settings.stop_grace_s + 20)

    def suspend(self) -> None:
        """Ends the engine's process until `resume`; returns when it is gone.

        Raises:
            EngineFailed: It does not end.
        """
        self._suspended.set()
        self._hurry()
        with self._moved:
            ended = self._moved.wait_for(
                lambda: self.state in (State.PAUSED, State.DOWN), self._settings.stop_grace_s + 20
            )
        if not ended:
            raise EngineFailed(f"engine {self.slot.name} did not end for the lease")

    def resume(self) -> None:
        """Lets the engine start again."""
        self._suspended.clear()

    def wait(self, timeout_s: float) -> State:
        """Waits for the next of READY, CIRCUIT_OPEN, DOWN, or the timeout."""
        settled = (State.READY, State.CIRCUIT_OPEN, State.DOWN)
        with self._moved:
            self._moved.wait_for(lambda: self.state in settled, timeout_s)
        return self.state

    def status(self, *, paused: bool) -> EngineStatus:
        """What an operator sees. `paused`: a lease holds the device."""
        state = State.PAUSED if paused and self.state is State.READY else self.state
        child = self._child
        return EngineStatus(
            name=self.slot.name,
            url=self.slot.url,
            state=state,
            pid=child.pid if child is not None and child.running else 0,
            restarts=self._restarts,
            outstanding=self.slot.outstanding,
            adapters=tuple(sorted(self._loaded)),
            log=self.last_words() if self.reason else self.log.last(20),
        )

    def last_words(self) -> tuple[str, ...]:
        """Why it is not READY and the last lines of the process that ended, redacted."""
        return ((self.reason,) if self.reason else ()) + (self._last_words or self.log.last(12))

    def reconcile(self, wanted: str = "") -> None:
        """Loads what is desired and missing, unloads what is no longer desired.

        Args:
            wanted: The adapter that the caller is about to use.

        Raises:
            EngineFailed: The engine refused `wanted`; what befalls others is in the log.
        """
        with self._adapter_lock:
            client = self._client
            if client is None or not self.slot.ready:
                return  # its next start reads the same desired state
            self._load_desired(client, {wanted})

    def _load_in_use(self, client: EngineClient) -> None:
        """Loads what is desired, of which what is in use must be there before requests are taken.

        But for what no engine has loaded yet: it fails its users alone, who are told by the pool.
        """
        in_use = [name for name, users in dict(self._users).items() if users]
        self._load_desired(client, in_use, [n for n in in_use if self._tried.get(n) != ""])

    def _load_desired(
        self, client: EngineClient, needed: Collection[str], new: Collection[str] = ()
    ) -> None:
        desired = dict(self._desired)
        for name in self._loaded - desired.keys():
            self._loaded.discard(name)
            if not self._remote:  # there, other servers' jobs may use it
                with contextlib.suppress(EngineFailed):  # a dead engine has no adapters
                    client.unload(name)
        for name in desired.keys() - self._loaded:
            if name not in needed and not self._remote and not desired[name].exists():
                continue  # unused, and trimmed from the cache or deleted meanwhile
            try:
                self._load(client, name, desired[name])
            except EngineFailed as error:
                if name in needed and (name not in new or client.sickness()):
                    raise
                if name in new:
                    self._tried[name] = str(error)
                log.warning("engine %s: %s; it serves the others", self.slot.name, error)

    def _load(self, client: EngineClient, name: str, folder: Path) -> None:
        if not client.load(name, folder):
            raise EngineFailed(f"engine {self.slot.name} does not load adapters at run time")
        self._loaded.add(name)
        self._tried.setdefault(name, "")

    def _hurry(self) -> None:
        """Ends a process that is still being proved: its thread waits for answers."""
        child = self._child
        if child is not None:
            child.terminate()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                if self._suspended.is_set():
                    self._move(State.PAUSED)
                    self._sleep(TICK_S)
                    continue
                self._live()
            except PtalignError as error:
                if not self._leave():
                    self._died(str(error))
            except Exception as error:  # the watch itself must not die
                log.exception("engine %s: supervisor error", self.slot.name)
                self._died(f"supervisor error: {type(error).__name__}")
        self._clear()
        self._move(State.DOWN)

    def _live(self) -> None:
        """One life of the engine: start, prove, watch. Returns when told to stop or pause.

        Raises:
            EngineFailed: It died or would not start.
        """
        self._move(State.RESTARTING if self._restarts or self._deaths else State.STARTING)
        try:
            client = self._start(time.monotonic() + self._settings.start_timeout_s)
            if client is None:
                return
            self._prove(client)
            self._announce(client)
            self._watch(client)
        finally:
            self._clear()

    def _start(self, deadline: float) -> EngineClient | None:
        """Starts the process and waits until it answers; None when told to stop meanwhile."""
        command = None if self._remote else command_for(self._settings, self._model)
        if command is not None:
            self._spawn(command)
        client = EngineClient(self.slot.url, self.slot.api_key, self._settings.start_timeout_s)
        self._client = client
        while not self._leave():
            if self._child is not None and not self._child.running:
                raise EngineFailed(f"the engine ended with status {self._child.status} at start")
            if not client.sickness(timeout_s=5):
                return client
            if time.monotonic() > deadline:
                raise EngineFailed(f"no answer in {self._settings.start_timeout_s:.0f} s")
            self._sleep(0.25)
        return None

    def _spawn(self, command: EngineCommand) -> None:
        self.log = LogTail()
        self.slot.url, self.slot.api_key = command.url, command.api_key
        self._child = spawn(
            command.argv,
            name=self.slot.name,
            records=self._settings.state / "children",
            env=command.env,
            log=self.log,
        )

    def _prove(self, client: EngineClient) -> None:
        """Warm-up, zero adapter, mixed-batch canary, desired adapters."""
        name = self._settings.served_name or self._model.name
        if name not in (served := client.models()):
            raise EngineFailed(f"it serves {', '.join(served[:4])}, not {name}: set served_name")
        self.slot.zero_name = ""
        if self._settings.kind != "scripted":
            self._prove_adapters(client, name)
        self._loaded = set()
        self._load_in_use(client)
        self.log.strict = True  # from here on it holds record text

    def _prove_adapters(self, client: EngineClient, name: str) -> None:
        """Finds out whether adapters work beside base requests, and if those need the zero one."""
        folder = self._settings.state.absolute() / "builtin-adapters" / self._tag()
        model, dtype = Path(self._model.path), self._settings.dtype
        loud = make_adapter(model, folder / "canary", scale=4.0)
        if not client.load(self._canary, loud):
            log.warning(
                "engine %s cannot load adapters at run time, or not from %s: it serves the bare "
                "model only",
                self.slot.name,
                folder,
            )
            return
        cpu = self._settings.device == "cpu"  # only the CPU build mixes adapters up
        bare = "" if self._remote else name  # another client's batch would blur the bare model
        if not cpu:
            canary.check(client, base=name, canary=self._canary, dtype=dtype, bare=bare)
        elif self._remote or self._mixes(client, name, loud):
            client.load(ZERO, make_adapter(model, folder / "zero", scale=0.0))
            canary.check(client, base=ZERO, canary=self._canary, dtype=dtype, bare=bare)
            self.slot.zero_name = ZERO
        client.unload(self._canary)

    def _mixes(self, client: EngineClient, name: str, loud: Path) -> bool:
        """Whether bare requests get the adapter of their batch: so on the CPU without `lora_cpu`.

        The adapter that they would get is the one in the last slot, so every slot is filled.
        """
        names = [f"{self._canary}-{i}" for i in range(self._settings.max_loras + 1)]
        for each in names:
            client.load(each, loud)
        try:
            for each in names:
                client.sample(each, "Once", 1)
            canary.check(client, base=name, canary=names[-1], dtype=self._settings.dtype)
        except EngineFailed as error:
            log.warning("engine %s: %s; base requests take zeros", self.slot.name, error)
            return True
        finally:
            for each in names:
                client.unload(each)
        return False

    def _tag(self) -> str:
        return self._model.weights_digest.removeprefix("sha256:")[:16] or self._model.name

    def _announce(self, client: EngineClient) -> None:
        def ready() -> None:
            self.slot.ready = True
            self.slot.generation += 1

        with self._adapter_lock:
            # Again: who asked for one while it was proved was told that its start loads it, and an
            # engine without it answers 404, which nobody tries again.
            self._load_in_use(client)
            self._failed_starts = 0
            self.reason = ""
            self._router.change(ready)
        self._move(State.READY)

    def _watch(self, client: EngineClient) -> None:
        misses, next_check = 0, 0.0
        while not self._leave():
            if self._child is not None and not self._child.running:
                raise EngineFailed(f"the engine ended with status {self._child.status}")
            if time.monotonic() >= next_check:
                misses = misses + 1 if (sick := client.sickness()) else 0
                if misses >= MISSES:
                    raise EngineFailed(f"{misses} health checks in a row failed: {sick}")
                next_check = time.monotonic() + self._settings.health_every_s
            self._sleep(TICK_S)

    def _clear(self) -> None:
        """Takes the engine out of routing and ends its process."""

        def gone() -> None:
            self.slot.ready = False

        self._router.change(gone)
        child, self._child = self._child, None
        if child is not None:
            child.stop(self._settings.stop_grace_s)
        if self._client is not None:
            self._client.close()
            self._client = None

    def _died(self, why: str) -> None:
        """Books a death, then waits out the backoff or the open circuit."""
        now = time.monotonic()
        never_ready = self.slot.generation == 0
        self._failed_starts += 1
        self._restarts += 1
        self._deaths.append(now)
        self._forget_old_deaths(now)
        self.reason = why
        self._last_words = self.log.last(12)  # the next start has a log of its own
        last = "\n".join(self._last_words)
        log.warning("engine %s: %s (death %d)\n%s", self.slot.name, why, len(self._deaths), last)
        give_up = never_ready and self._failed_starts >= self._settings.start_attempts
        if give_up or len(self._deaths) >= self._settings.max_deaths:
            self._move(State.CIRCUIT_OPEN)
            self._wait_for_circuit()
            return
        self._move(State.RESTARTING)
        self._sleep(min(60.0, self._settings.backoff_s * 2 ** (len(self._deaths) - 1)))

    def _wait_for_circuit(self) -> None:
        """The circuit closes by itself when the oldest death has left the window."""
        while self._deaths and not self._stopping.is_set() and not self._suspended.is_set():
            self._sleep(TICK_S)
            if self._deaths[0] < time.monotonic() - self._settings.death_window_s:
                break
        self._forget_old_deaths(time.monotonic())

    def _forget_old_deaths(self, now: float) -> None:
        while self._deaths and self._deaths[0] < now - self._settings.death_window_s:
            self._deaths.popleft()

    def _leave(self) -> bool:
        return self._stopping.is_set() or self._suspended.is_set()

    def _sleep(self, seconds: float) -> None:
        self._stopping.wait(seconds)

    def _move(self, state: State) -> None:
        with self._moved:
            self.state = state
            self._moved.notify_all()
