"""Reads of a few rows, in place where the database is a file of this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import sqlalchemy as sa

from ptalign_server.store.db import HeavyRow, connect_to_glance
from ptalign_server.store.operations import Freeze, Operations
from ptalign_server.store.resources import Resources
from ptalign_server.vault import Vault

T = TypeVar("T")
FEW = 50
"""Rows that may be read in place: about a millisecond, for none of them is large."""


@dataclass(frozen=True, slots=True)
class Tables:
    """What a glance may look at."""

    operations: Operations
    resources: Resources


class Glances:
    """Runs short reads for the event loop (docs/adr/0012).

    A SQLite row is read and checked in less time than it takes to hand the read to a thread and
    wait for the interpreter's lock twice, and its readers never wait for a writer. So it is read
    on the loop's own thread, by a connection that does not wait: in the rare moment when the file
    is locked as a whole (another process recovers its log), the read goes to a thread, which
    waits. So does a read that meets a large row, and every read of PostgreSQL.
    """

    def __init__(self, url: str, vault: Vault, freeze: Freeze, far: Tables) -> None:
        self._far = far
        self._engine = connect_to_glance(url)
        self._near: Tables | None = None
        if self._engine is not None:
            self._near = Tables(
                Operations(self._engine, vault, freeze, light=True),
                Resources(self._engine, vault, light=True),
            )

    async def read(self, what: Callable[[Tables], T], rows: int = 1) -> T:
        """What `what` finds; `rows` is how many it may read."""
        if self._near is not None and rows <= FEW:
            try:
                return what(self._near)
            except (HeavyRow, sa.exc.OperationalError):  # locked, or worse: a thread says which
                pass
        return await asyncio.to_thread(what, self._far)

    def close(self) -> None:
        """Closes the loop's own connection."""
        if self._engine is not None:
            self._engine.dispose()
