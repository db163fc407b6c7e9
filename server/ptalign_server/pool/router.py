"""Which engine takes a request: least outstanding, with a preference for a warm prefix."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Condition

from ptalign.errors import NotReady


@dataclass(eq=False)
class Slot:
    """One engine as the router sees it."""

    name: str
    limit: int
    """Requests it is given at most."""
    url: str = ""
    api_key: str = field(default="", repr=False)
    base_name: str = ""
    """Model name that base requests are sent under (the zero adapter's)."""
    ready: bool = False
    generation: int = 0
    """Grows with each start: a request that sees another number outlived its engine."""
    outstanding: int = 0
    suspects: int = 0
    """In-flight requests that were aboard when an engine died."""


class Router:
    """Slots and the requests that wait for one. Thread-safe; waits belong to an event loop."""

    def __init__(self, model: str) -> None:
        self.model = model
        """Name that stands for the bare model in request bodies."""
        self.slots: list[Slot] = []
        self.open = True
        """False while a lease holds the device: nothing is sent, what is in flight finishes."""
        self._changed = Condition()
        self._waiting: deque[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = deque()
        self._strikes: OrderedDict[str, frozenset[tuple[str, int]]] = OrderedDict()

    async def take(self, prefix: str, *, suspect: bool) -> Slot:
        """Waits for an engine with room.

        Args:
            prefix: What requests with a common beginning share.
            suspect: An engine died with this request aboard; one such at a time per engine, so
                that the next death says which it was.
        """
        while True:
            event = asyncio.Event()
            with self._changed:
                if slot := self._pick(prefix, suspect):
                    slot.outstanding += 1
                    slot.suspects += suspect
                    return slot
                self._waiting.append((asyncio.get_running_loop(), event))
            await event.wait()

    def give(self, slot: Slot, *, suspect: bool) -> None:
        """Returns what `take` took."""
        with self._changed:
            slot.outstanding -= 1
            slot.suspects -= suspect
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

    def first_ready(self) -> Slot:
        """Any engine that is up.

        Raises:
            NotReady: None is.
        """
        for slot in self.slots:
            if slot.ready:
                return slot
        raise NotReady("no engine is ready")

    def _pick(self, prefix: str, suspect: bool) -> Slot | None:
        if not self.open:
            return None
        free = [s for s in self.slots if s.ready and s.outstanding < s.limit]
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
        waiting, self._waiting = self._waiting, deque()
        for loop, event in waiting:
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)


def _rendezvous(name: str, prefix: str) -> bytes:
    """Highest-random-weight hashing: an engine that leaves moves only its own prefixes."""
    return hashlib.blake2b(f"{name}\x00{prefix}".encode(), digest_size=8).digest()
