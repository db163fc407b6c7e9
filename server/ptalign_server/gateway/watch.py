"""Watching operations: one poll of the store for all watchers, fanned out in memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

from ptalign.errors import DataDamaged
from ptalign_server.store import Store
from ptalign_server.store.db import DatabaseUnavailable
from ptalign_server.store.operations import Event

log = logging.getLogger("ptalign.server")
POLL_SECONDS = 0.1
AWAY_SECONDS = 1.0


class Feed:
    """Newest sequence number of one operation, and a bell for those who wait for the next."""

    __slots__ = ("bell", "gone", "recent", "sequence", "watchers")

    def __init__(self) -> None:
        self.sequence = 0
        self.recent: list[Event] = []
        self.bell = asyncio.Event()
        self.gone = False
        self.watchers = 0

    def ring(self, sequence: int, events: list[Event]) -> None:
        self.sequence, self.recent = sequence, events
        self.bell.set()
        self.bell = asyncio.Event()


class Feeds:
    """All feeds of this gateway. A watcher costs a position and a reference."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._feeds: dict[str, Feed] = {}
        self._task: asyncio.Task[None] | None = None

    async def events(self, operation_id: str, after: int) -> AsyncIterator[Event]:
        """Events above `after`, those of the past first, until the operation is done.

        Raises:
            NotFound: The operation was deleted.
        """
        feed = self._enter(operation_id)
        try:
            while True:
                bell = feed.bell
                found = await self._since(operation_id, feed, after)
                for event in found:
                    after = event.sequence
                    yield event
                # Nothing to tell: it may be deleted, or end below `after`, which a caller brought
                # from before a backup was restored. No bell would ring for either.
                if not found and await self._ended(operation_id, after):
                    return
                if not found or feed.sequence <= after:
                    await bell.wait()
        finally:
            self._leave(operation_id, feed)

    async def wait(self, operation_id: str, sequence: int, timeout: float) -> None:
        """Returns when the operation is past `sequence` or deleted, or after `timeout` seconds."""
        feed = self._enter(operation_id)
        try:
            async with asyncio.timeout(timeout):
                # A feed that begins rings for what is no news to this caller.
                while feed.sequence <= sequence and not feed.gone:
                    await feed.bell.wait()
        except TimeoutError:
            return
        finally:
            self._leave(operation_id, feed)

    async def _ended(self, operation_id: str, after: int) -> bool:
        """Whether the operation is done, with no event above `after`."""
        row = await self._store.glances.read(lambda tables: tables.operations.get(operation_id))
        return row.done and row.sequence <= after

    async def _since(self, operation_id: str, feed: Feed, after: int) -> list[Event]:
        """From memory when the watcher is up to date, else from the store."""
        recent = feed.recent
        if recent and recent[0].sequence <= after + 1:
            return [event for event in recent if event.sequence > after]
        return await asyncio.to_thread(self._store.operations.events, operation_id, after)

    def _enter(self, operation_id: str) -> Feed:
        feed = self._feeds.setdefault(operation_id, Feed())
        feed.watchers += 1
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._poll())
        return feed

    def _leave(self, operation_id: str, feed: Feed) -> None:
        feed.watchers -= 1
        if feed.watchers == 0 and self._feeds.get(operation_id) is feed:
            del self._feeds[operation_id]

    async def _poll(self) -> None:
        """Asks for new sequence numbers while anyone watches."""
        while self._feeds:
            try:
                asked = list(self._feeds)
                known = await asyncio.to_thread(self._store.operations.sequences, asked)
                for operation_id, sequence in known.items():
                    await self._refresh(operation_id, sequence)
                for operation_id in set(asked) - known.keys():
                    self._wake(operation_id)
            except DatabaseUnavailable as error:
                log.warning("watching waits: %s", error)
                await asyncio.sleep(AWAY_SECONDS)
            except Exception:
                log.exception("watching failed; trying again")
            await asyncio.sleep(POLL_SECONDS)

    def _wake(self, operation_id: str) -> None:
        """Rings for an operation that was deleted: who looks for its row is told."""
        if feed := self._feeds.get(operation_id):
            feed.gone = True
            feed.ring(feed.sequence, feed.recent)

    async def _refresh(self, operation_id: str, sequence: int) -> None:
        feed = self._feeds.get(operation_id)
        if feed is None or sequence <= feed.sequence:
            return
        after, found = max(feed.sequence, sequence - 100), list[Event]()
        try:
            found = await asyncio.to_thread(self._store.operations.events, operation_id, after)
        except DataDamaged as error:  # its own watchers read the store and are told; others go on
            log.error("%s", error)
        feed.ring(sequence, found)
