"""Routing rules: least outstanding, warm prefixes, suspects alone, bare and tuned apart."""

from __future__ import annotations

import asyncio
import time

import pytest

from ptalign_server.pool import router as rules
from ptalign_server.pool.router import Router, Seat, Slot


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "SETTLE_S", 0.3)
    monkeypatch.setattr(rules, "COOL_S", 0.6)
    monkeypatch.setattr(rules, "LOOK_S", 0.02)


def router(count: int = 1, limit: int = 4, zero: str = "zero") -> Router:
    made = Router("base")
    made.slots = [Slot(f"e{i}", limit, zero_name=zero, ours=True, ready=True) for i in range(count)]
    return made


async def take(made: Router, prefix: str = "p", suspect: bool = False, tuned: bool = False) -> Seat:
    return await asyncio.wait_for(made.take(prefix, suspect=suspect, tuned=tuned), 5)


async def waits(made: Router, seconds: float = 0.1, **how: bool) -> bool:
    task = asyncio.create_task(take(made, **how))  # type: ignore[arg-type]
    done, _ = await asyncio.wait([task], timeout=seconds)
    task.cancel()
    return not done


async def test_load_spreads_and_a_prefix_stays_home_while_it_is_not_crowded() -> None:
    made = router(count=4, limit=8)
    same = [await take(made, prefix="shared") for _ in range(3)]
    assert len({seat.slot.name for seat in same}) == 1
    for _ in range(29):
        await take(made, prefix="shared")
    assert [slot.outstanding for slot in made.slots] == [8] * 4


async def test_nothing_goes_beyond_the_limit_and_a_free_seat_wakes_the_next() -> None:
    made = router(limit=2)
    first, _ = await take(made), await take(made)
    third = asyncio.create_task(take(made))
    await asyncio.sleep(0.05)
    assert not third.done()
    made.give(first)
    await asyncio.wait_for(third, 0.4)
    assert made.outstanding == 2


async def test_one_suspect_at_a_time() -> None:
    made = router()
    seat = await take(made, suspect=True)
    assert await waits(made, suspect=True)
    await take(made)
    made.give(seat)
    await take(made, suspect=True)


async def test_strikes_count_deaths_not_copies() -> None:
    made = router()
    slot = made.slots[0]
    for generation in (1, 1, 1, 2):
        made.strike("k", slot, generation)
    assert made.strikes("k") == 2
    made.acquit("k")
    assert made.strikes("k") == 0


async def test_a_closed_gate_keeps_all_waiting_and_drain_says_when_it_is_empty() -> None:
    made = router()
    seat = await take(made)
    made.change(lambda: setattr(made, "open", False))
    assert await waits(made)
    assert not made.drain(0.01)
    made.give(seat)
    assert made.drain(0.01)


async def test_who_waits_is_known_once_however_often_it_looks(quick: None) -> None:
    """Each look left an entry until a seat was given: half a MiB a second during a training."""
    made = router()
    made.change(lambda: setattr(made, "open", False))
    takes = [asyncio.create_task(take(made)) for _ in range(3)]
    await asyncio.sleep(0.2)
    assert len(made._waiting) == 3
    takes.pop().cancel()
    await asyncio.sleep(0.01)
    assert len(made._waiting) == 2
    made.change(lambda: setattr(made, "open", True))
    await asyncio.gather(*takes)
    assert not made._waiting


async def test_bare_and_tuned_are_kept_apart(quick: None) -> None:
    made = router()
    bare = await take(made)
    assert bare.bare
    tuned = asyncio.create_task(take(made, tuned=True))
    await asyncio.sleep(0.05)
    assert not (await take(made)).bare, "an adapter is wanted: bare requests must run out"
    begin = time.monotonic()
    made.give(bare)
    seat = await tuned
    assert time.monotonic() - begin > 0.3, "the engine may still compute a cancelled request"
    await asyncio.sleep(0.7)
    assert not (await take(made)).bare, "an adapter request is in flight"
    made.give(seat)
    assert not (await take(made)).bare, "the engine may still compute a cancelled request"
    await asyncio.sleep(0.7)
    for slot in made.slots:
        assert slot.goes_bare(time.monotonic())


async def test_engines_that_others_use_or_that_need_no_zero_adapter(quick: None) -> None:
    made = router()
    made.slots[0].ours = False
    assert not (await take(made)).bare
    free = router(zero="")
    assert (await take(free)).bare
    assert (await take(free, tuned=True)).tuned
