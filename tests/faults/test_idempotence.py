"""The caller saw an error, the change was committed: sending it again must not do it twice."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import grpc
import pytest
from gate import gateway
from world import generate

RETRY = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


class Answers:
    """Lets five of a hundred commits end in an error after they stand."""

    def __init__(self, write: Any) -> None:
        self._write = write
        self._draw = random.Random(11)
        self.lost = 0

    def __call__(self, change: Any) -> Future[Any]:
        done: Future[Any] = self._write(change)
        if self._draw.random() >= 0.05:
            return done
        lied: Future[Any] = Future()
        lied.set_running_or_notify_cancel()
        self.lost += 1
        done.add_done_callback(lambda _: lied.set_exception(ConnectionError("the answer is lost")))
        return lied


@pytest.mark.tier(1)
@pytest.mark.timeout(900)
async def test_committed_but_the_caller_saw_an_error(score: Any, tmp_path: Path) -> None:
    ids = score.size(1000, 60)
    row = score.row("request ids sent 5 times at once, 5 % of answers lost", 1000)
    async with gateway(tmp_path / "state") as gate:
        lossy = Answers(gate.store.write)
        gate.store.write = lossy  # type: ignore[method-assign]
        requests = [generate(2) for _ in range(ids)]
        gaps = asyncio.Semaphore(100)

        async def call(request: Any) -> str:
            while True:
                try:
                    async with gaps:
                        return str((await gate.tuning.GenerateInstructions(request)).name)
                except grpc.aio.AioRpcError as error:
                    if error.code() not in RETRY:
                        raise

        names = await asyncio.gather(*[call(r) for r in requests for _ in range(5)])
        found = sum(gate.store.operations.counts().values())
    row.ran, row.bad = ids, abs(found - ids) + abs(len(set(names)) - ids)
    row.notes["answers lost"] = str(lossy.lost)
    assert lossy.lost > 0
    assert (found, len(set(names))) == (ids, ids)
    assert set(Counter(names).values()) == {5}
