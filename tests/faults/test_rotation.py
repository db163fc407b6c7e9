"""The operator's key is replaced while sets are made and read: no read fails, nothing is lost."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import grpc
import pytest
from gate import Gate, gateway, import_two
from world import generate, opened

from ptalign_proto.v1 import library_pb2 as lib
from ptalign_server.admin.keys import rotate_all


def rotate(state: Path) -> None:
    """As ``ptalign-server keys rotate`` beside the running server."""
    with opened(state) as store:
        rotate_all(store)


@pytest.mark.tier(3)
@pytest.mark.timeout(900)
async def test_keys_rotate_under_load(score: Any, tmp_path: Path) -> None:
    row = score.row("key rotations while sets are made and read", 50)
    state = tmp_path / "state"
    made: list[str] = []
    reads = 0
    failures: list[str] = []
    async with gateway(state, limits={"max_queued": 100_000}) as gate:
        made.append(await import_two(gate))
        stop = asyncio.Event()

        async def make() -> None:
            while not stop.is_set():
                await gate.tuning.GenerateInstructions(generate(2))
                made.append(await import_two(gate))

        async def read(draw: random.Random) -> None:
            nonlocal reads
            while not stop.is_set():
                reads += 1
                failures.extend(await failed_read(gate, draw.choice(made)))

        tasks = [asyncio.create_task(make()) for _ in range(3)]
        tasks += [asyncio.create_task(read(random.Random(n))) for n in range(3)]
        for _ in range(score.size(50, 4)):
            await asyncio.to_thread(rotate, state)
            row.ran += 1
        stop.set()
        await asyncio.gather(*tasks)
    lost = unreadable(state)
    row.notes = {"sets": str(len(made)), "reads": str(reads)}
    row.bad = len(failures) + len(lost)
    assert reads > row.ran
    assert not failures
    assert not lost


async def failed_read(gate: Gate, name: str) -> list[str]:
    request = lib.StreamRecordsRequest(name=name, view=lib.RECORD_VIEW_FULL, purpose="a test")
    try:
        found = [r async for r in gate.library.StreamRecords(request)]
    except grpc.aio.AioRpcError as error:
        return [f"{error.code().name}: {error.details()}"]
    return [] if len(found) == 2 else [f"{len(found)} records"]


def unreadable(state: Path) -> list[str]:
    """Sets whose key no key of the file opens, after a restart."""
    import sqlalchemy as sa

    from ptalign_server.store.schema import set_keys

    lost = []
    with opened(state) as store:
        assert len(store.vault.keyfile.keys) == 1
        with store.engine.connect() as connection:
            ids = [row.set_id for row in connection.execute(sa.select(set_keys))]
        for set_id in ids:
            try:
                store.keys.get(set_id)
            except Exception as error:
                lost.append(f"{set_id}: {error}")
    return lost
