"""Short reads: in place on SQLite, never at the price of a loop that stands still."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import Engine

from ptalign.errors import DataDamaged
from ptalign_server import wire
from ptalign_server.settings import Settings
from ptalign_server.store import Store
from ptalign_server.store.db import connect
from ptalign_server.store.glance import FEW, Glances, Tables
from ptalign_server.store.operations import REMEMBERED_BYTES, VALIDATING, Operation, Operations
from ptalign_server.store.resources import Resources


def _operation(store: Store, request: bytes = b"call") -> str:
    """A stored operation; its id."""
    now = time.time()
    who = "0001", "default", "me"
    made = Operation(*who, "Align", VALIDATING, 1, 0, request, b"", b"", "", now, 0.0, now, 0.0)
    store.write(lambda connection: store.operations.insert(connection, made)).result()
    return made.id


def _where(tables: Tables) -> int:
    tables.operations.get("0001")
    return threading.get_ident()


def _where_listed(tables: Tables) -> int:
    assert len(tables.operations.page("default", 5)) == 1
    return threading.get_ident()


async def test_a_few_rows_are_read_in_place_and_many_are_not(tmp_path: Path) -> None:
    store = Store(Settings(state=tmp_path), wire.freeze)
    _operation(store)
    here = threading.get_ident()
    assert await store.glances.read(_where) == here
    assert await store.glances.read(_where, FEW) == here
    assert await store.glances.read(_where, FEW + 1) != here
    store.close()


async def test_a_large_row_is_read_in_a_thread(tmp_path: Path) -> None:
    """A list of calls of 3 MB held the loop, and everybody's health checks, for 0.2 s."""
    store = Store(Settings(state=tmp_path), wire.freeze)
    _operation(store, bytes(REMEMBERED_BYTES + 1))
    for read in (_where, _where_listed):
        assert await store.glances.read(read) != threading.get_ident()
    store.close()


async def test_a_locked_file_keeps_a_thread_waiting_and_not_the_loop(tmp_path: Path) -> None:
    settings = Settings(state=tmp_path)
    store = Store(settings, wire.freeze)
    _operation(store)
    store.close()
    lock = sqlite3.connect(tmp_path / "ptalign.db", isolation_level=None, check_same_thread=False)
    lock.execute("PRAGMA locking_mode=EXCLUSIVE")
    lock.execute("BEGIN IMMEDIATE")  # as a process that recovers the log: nobody may read
    engine: Engine = connect(settings.database_url)
    far = Tables(Operations(engine, store.vault, wire.freeze), Resources(engine, store.vault))
    glances = Glances(settings.database_url, store.vault, wire.freeze, far)
    reading = asyncio.create_task(glances.read(_where))
    longest, end = 0.0, time.monotonic() + 0.6
    while time.monotonic() < end:
        start = time.monotonic()
        await asyncio.sleep(0.01)
        longest = max(longest, time.monotonic() - start)
    assert not reading.done()
    lock.close()
    assert await reading != threading.get_ident()
    assert longest < 0.5, "the loop stood still"
    glances.close()
    engine.dispose()


@pytest.mark.parametrize("request_bytes", [b"call", bytes(5000)], ids=["remembered", "not"])
def test_a_row_that_was_read_before_is_checked_when_it_changes(
    tmp_path: Path, request_bytes: bytes
) -> None:
    store = Store(Settings(state=tmp_path), wire.freeze)
    found = _operation(store, request_bytes)
    first = store.operations.get(found)
    assert store.operations.get(found) == first
    with sqlite3.connect(tmp_path / "ptalign.db") as other:
        other.execute("UPDATE operations SET tenant = 'mallory'")
    other.close()
    with pytest.raises(DataDamaged):
        store.operations.get(found)
    store.close()
