"""Kills at every named point and at random times; the history must hold each time."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from history import Findings, History, check, failures, unasked
from running import Running, alive
from world import (
    accepted,
    end,
    generate,
    insist,
    opened,
    records_of,
    server,
    wait_for,
    worker_pid,
)

from ptalign_proto.v1 import library_pb2 as lib
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server import failpoints

IN_WORKER = [
    f"{name}.{side}"
    for name in ("lease", "generate", "filter", "write_item", "acknowledge", "state_commit")
    for side in ("before", "after")
]


Kill = Callable[[Running, History, random.Random, int], None]
"""What kills something, and remembers what it asked for meanwhile; the number counts the kills."""


def full(value: str) -> Any:
    """A case that only a whole tier runs."""
    return pytest.param(value, marks=pytest.mark.full)


FEW = ["write_item.after", "state_commit.before"]


def at(point: str, draw: random.Random) -> int:
    """Which hit of a point kills: later ones where records are under way."""
    return draw.randint(1, 3) if point.startswith(("generate", "filter", "write")) else 1


def remember(history: History, where: Path | Running, name: str) -> None:
    """Adds what lies in the operation's log, after a kill."""
    for record in accepted(where, name.removeprefix("operations/")):
        history.items[text_of(record)] = name


def text_of(record: Any) -> str:
    """What a record is told apart by: an instruction, or the one that was answered."""
    return str(getattr(record, "text", None) or record.instruction)


def merge(score: Any, what: str, planned: int, ran: int, found: Findings) -> None:
    row = score.row(what, planned)
    row.ran += ran
    row.bad += found.bad
    for name, value in vars(found).items():
        row.notes[name] = str(int(row.notes.get(name, "0")) + value)
    assert not found.bad, found


@pytest.mark.tier(1)
@pytest.mark.timeout(2600)
def test_worker_killed_at_every_point(score: Any, tmp_path: Path, author_url: str) -> None:
    points = IN_WORKER if score.in_tier else FEW
    for number in range(score.size(12, 1)):
        draw = random.Random(number)
        state, once = tmp_path / f"{number}" / "state", tmp_path / f"{number}" / "once"
        once.mkdir(parents=True)
        order = draw.sample(points, len(points))
        entries = ";".join(f"{p}=kill@{at(p, draw)}" for p in order)
        variables = {failpoints.VARIABLE: entries, failpoints.ONCE: str(once)}
        running = server(state, author_url, **variables)
        try:
            kills, found = _run(running.start(), once, draw)
        finally:
            end(running)
        merge(score, "kills of the worker at its 12 points", 144, kills, found)
        missed = set(points) - {p.name for p in once.iterdir()}
        assert not missed, f"never reached: {missed}"


def _run(running: Running, once: Path, draw: random.Random) -> tuple[int, Findings]:
    """One operation through all kills; every second kill takes the whole tree with it."""
    history = History()
    name = insist(running.tuning.GenerateInstructions, generate(40, seed=draw.randint(0, 99))).name
    history.operations.add(name)
    kills = 0
    while not _done(running, name):
        fired = len(list(once.iterdir()))
        if fired == kills:
            time.sleep(0.05)
            continue
        kills = fired
        if kills % 2:
            running.kill_tree()
            remember(history, running.state, name)
            running.start()
        else:
            remember(history, running.state, name)
    return len(list(once.iterdir())), check(running, history)


def _done(running: Running, name: str) -> bool:
    from google.longrunning import operations_pb2 as lro

    return bool(insist(running.operations.GetOperation, lro.GetOperationRequest(name=name)).done)


@pytest.mark.tier(1)
@pytest.mark.timeout(2600)
@pytest.mark.parametrize("point", [full("enqueue.before"), "enqueue.after"])
def test_gateway_killed_around_enqueue(
    score: Any, tmp_path: Path, author_url: str, point: str
) -> None:
    for number in range(score.size(12, 1)):
        state, once = tmp_path / f"{number}" / "state", tmp_path / f"{number}" / "once"
        once.mkdir(parents=True)
        variables = {failpoints.VARIABLE: f"{point}=kill", failpoints.ONCE: str(once)}
        running = server(state, author_url, **variables).start()
        try:
            request = generate(2)
            with pytest.raises(grpc.RpcError):
                running.tuning.GenerateInstructions(request, timeout=20)
            running.process.wait(10)
            running.start()
            again = running.tuning.GenerateInstructions(request)
            twice = running.tuning.GenerateInstructions(request)
            assert again.name == twice.name
            found = check(running, History(operations={again.name}))
            with opened(state) as store:
                found.doubled_items += len(store.operations.page("default", 10)) - 1
        finally:
            end(running)
        merge(score, f"kills of the gateway at {point}", 12, 1, found)


@pytest.mark.tier(1)
@pytest.mark.timeout(2600)
@pytest.mark.parametrize("point", [full("audit_write.before"), full("audit_write.after")])
def test_gateway_killed_around_an_audit_entry(
    score: Any, tmp_path: Path, author_url: str, point: str
) -> None:
    for number in range(score.size(12, 1)):
        state, once = tmp_path / f"{number}" / "state", tmp_path / f"{number}" / "once"
        once.mkdir(parents=True)
        running = server(
            # the second entry is the read's: the import leaves one too
            state,
            author_url,
            **{failpoints.VARIABLE: f"{point}=kill@2", failpoints.ONCE: str(once)},
        ).start()
        try:
            name = import_two(running)
            got: list[Any] = []
            with pytest.raises(grpc.RpcError):
                got += records_of(running, name)
            running.process.wait(10)
            assert not got, "text was read although no audit entry stands"
            running.start()
            assert len(records_of(running, name)) == 2
            found = check(running, History())
            with opened(state) as store:
                found.broken_chains += store.audit.count() != 2
        finally:
            end(running)
        merge(score, f"kills of the gateway at {point}", 12, 1, found)


@pytest.mark.tier(1)
@pytest.mark.timeout(2600)
@pytest.mark.parametrize("point", [full("purge.before"), "purge.after"])
def test_gateway_killed_around_a_purge(
    score: Any, tmp_path: Path, author_url: str, point: str
) -> None:
    for number in range(score.size(12, 1)):
        state, once = tmp_path / f"{number}" / "state", tmp_path / f"{number}" / "once"
        once.mkdir(parents=True)
        running = server(
            state, author_url, **{failpoints.VARIABLE: f"{point}=kill", failpoints.ONCE: str(once)}
        ).start()
        try:
            name = import_two(running)
            request = lib.PurgeSetRequest(name=name, reason="fault test")
            with pytest.raises(grpc.RpcError):
                running.library.PurgeSet(request, timeout=20)
            running.process.wait(10)
            running.start()
            folder = state / "sets" / name.partition("/")[2]
            if point == "purge.after":
                assert not folder.exists(), "a purge that was committed is finished at the start"
            running.library.PurgeSet(request, timeout=20)
            assert not folder.exists()
            with pytest.raises(grpc.RpcError) as caught:
                records_of(running, name)
            assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
            found = check(running, History())
            with opened(state) as store:
                found.doubled_items += store.audit.count() - 3  # import, purge, the refused read
        finally:
            end(running)
        merge(score, f"kills of the gateway at {point}", 12, 1, found)


def import_two(running: Running) -> str:
    """An instruction set of two records."""
    from world import MODEL, POLICY

    header = lib.ImportHeader(kind="instructionSets", model=MODEL, policy=POLICY)
    records = [
        lib.Record(instruction=f"Mock my {who} who lost the teapot near the market.", topic="t0")
        for who in ("cousin", "barista")
    ]
    messages = [lib.ImportSetRequest(header=header), lib.ImportSetRequest(records=records)]
    return str(running.library.ImportSet(iter(messages), timeout=30).name)


@pytest.mark.tier(2)
@pytest.mark.timeout(2600)
def test_killed_at_random_times(score: Any, tmp_path: Path, author_url: str) -> None:
    """SIGKILL to the gateway or the worker while several operations run."""
    running = server(tmp_path / "state", author_url).start()
    kills = score.size(112, 1)
    try:
        found = under_kills(running, random.Random(7), kills, _kill)
    finally:
        end(running)
    merge(score, "kills of gateway or worker at random times", 112, kills, found)


def under_kills(running: Running, draw: random.Random, kills: int, kill: Kill) -> Findings:
    """Several operations at any time, and something killed now and then; what the history says."""
    history = History()
    for number in range(kills):
        while len(history.operations) % 4 or not history.operations:
            history.operations.add(ask(running, small(draw)))
        time.sleep(draw.uniform(0.0, 6.0))
        kill(running, history, draw, number)
        for name in history.operations:
            remember(history, running, name)
        history.operations.add(ask(running, small(draw)))
    found = check(running, history)
    found.doubled_operations += unasked(running, history)
    found.failed += failures(running, history)
    return found


def small(draw: random.Random) -> pb.GenerateInstructionsRequest:
    """A call for a few instructions."""
    return generate(draw.randint(2, 8), seed=draw.randint(0, 999))


def ask(running: Running, request: pb.GenerateInstructionsRequest) -> str:
    """Calls until the call is taken; the operation's name."""
    return str(insist(running.tuning.GenerateInstructions, request).name)


def _kill(running: Running, _: History, draw: random.Random, __: int) -> None:
    kill_server(running, draw)


def kill_server(running: Running, draw: random.Random) -> str:
    """SIGKILL to the worker or to the gateway, which is started again; which of them."""
    pid = worker_pid(running)
    if pid and draw.random() < 0.5:
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not alive(pid), 10, "the worker is gone")
        return "worker"
    running.kill_tree()
    running.start()
    return "gateway"
