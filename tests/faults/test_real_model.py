"""SIGKILL to the real engine, the worker and the gateway while the real model writes."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.longrunning import operations_pb2 as lro
from history import History, check
from running import Running, alive, descendants, progress, state_of
from test_crash import merge, remember
from test_engine_death import hinted
from test_matrix import engines, get
from world import MODEL, accepted, end, generate, insist, server, wait_for, worker_pid

from ptalign.policies import load_policy
from ptalign_proto.v1 import library_pb2 as lib
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server.shepherd import shared_memory, start_ticks

REAL_POLICY = "tone-en"
VICTIMS = ("engine", "worker", "gateway", "engine core", "worker")
"""The HTTP server of vLLM and the process that computes are two: both are killed."""
START_SECONDS = 600.0
"""The engine's start takes a minute on an idle machine."""
END_SECONDS = 900.0


@dataclass
class Trail:
    """What a server started: none of it may be left when the server is gone."""

    processes: dict[int, int] = field(default_factory=dict)
    """Pid -> start time: the kernel reuses pids."""
    files: set[str] = field(default_factory=set)

    def note(self, running: Running) -> None:
        """Adds what runs now."""
        assert running.process is not None
        tree = [running.process.pid, *descendants(running.process.pid)]
        self.processes |= {pid: start_ticks(pid) for pid in tree}
        self.files |= shared_memory(tree)

    def left(self) -> list[str]:
        """Processes and shared memory that are still there."""
        pids = [pid for pid, ticks in self.processes.items() if ticks and start_ticks(pid) == ticks]
        return [f"process {pid}" for pid in pids] + [f for f in self.files if Path(f).exists()]


@dataclass
class Work:
    """One operation of each kind under way at any time."""

    running: Running
    history: History
    latest: dict[str, str] = field(default_factory=dict)
    made: int = 0

    def top_up(self) -> None:
        """Calls what has ended anew."""
        for kind in ("GenerateInstructions", "SynthesizePairs"):
            name = self.latest.get(kind)
            if name is None or insist(self._get, lro.GetOperationRequest(name=name)).done:
                self._begin(kind)

    def grown(self) -> bool:
        """Whether one that is under way has put records on disk since the last kill."""
        self.top_up()
        known = Counter(self.history.items.values())
        return writes(self.running) and any(
            len(accepted(self.running, name.partition("/")[2])) > known[name]
            for name in self.latest.values()
        )

    def ended(self) -> Iterator[lro.Operation]:
        """Every operation, as it stands."""
        for name in sorted(self.history.operations):
            yield get(self.running, name)

    def _get(self, request: lro.GetOperationRequest, timeout: float) -> lro.Operation:
        found: lro.Operation = self.running.operations.GetOperation(request, timeout=timeout)
        return found

    def _begin(self, kind: str) -> None:
        self.made += 1
        request: Any = generate(40, policy=REAL_POLICY, seed=self.made)
        if kind == "SynthesizePairs":
            made = import_requests(self.running, self.made)
            request = pb.SynthesizePairsRequest(
                model=MODEL,
                instruction_set=made,
                rounds=1,
                anchors=4,
                request_id=request.request_id,
            )
        name = insist(getattr(self.running.tuning, kind), request).name
        self.latest[kind] = name
        self.history.operations.add(name)


def import_requests(running: Running, number: int) -> str:
    """Six mild requests, other ones for each number: records are told apart by their text."""
    topic = load_policy(REAL_POLICY).topics[0].id
    header = lib.ImportHeader(kind="instructionSets", model=MODEL, policy=REAL_POLICY)
    things = ("teapot", "umbrella", "ladder", "bicycle", "notebook", "lantern")
    records = [
        lib.Record(instruction=f"Mock my cousin who lost {thing} number {number}.", topic=topic)
        for thing in things
    ]
    parts = [lib.ImportSetRequest(header=header), lib.ImportSetRequest(records=records)]
    return str(running.library.ImportSet(iter(parts), timeout=60).name)


@pytest.mark.full
@pytest.mark.tier(4)
@pytest.mark.timeout(2600)
def test_killed_while_the_real_model_writes(score: Any, tmp_path: Path, model_folder: Path) -> None:
    draw, trail = random.Random(5), Trail()
    made = server(
        tmp_path / "state",
        "",
        model_folder,
        PTALIGN_ENGINE__KIND="vllm",
        PTALIGN_ENGINE__SERVED_NAME="",
        PTALIGN_ENGINE__URLS="[]",
        PTALIGN_LIMITS__FLOOR="0",  # how much of its writing is usable is not the question here
    )
    work = Work(made.start(), History())
    kills: Counter[str] = Counter()
    try:
        for number in range(score.size(len(VICTIMS), 1)):
            wait_for(work.grown, START_SECONDS, "a record of this engine")
            time.sleep(draw.uniform(0.0, 1.0))
            trail.note(made)
            victim = VICTIMS[number % len(VICTIMS)]
            kill(made, victim)
            kills[victim] += 1
            for name in work.history.operations:
                remember(work.history, made, name)
        found = check(made, work.history, seconds=END_SECONDS)
        ended = [(o.name, outcome(o), o.error) for o in work.ended()]
        trail.note(made)
    finally:
        end(made)
    row = score.row("kills of the real model's engine, worker or gateway", len(VICTIMS))
    row.notes["records on disk before a kill"] = str(len(work.history.items))
    row.notes |= {f"killed {victim}": str(count) for victim, count in kills.items()}
    ends = Counter(how for _, how, _ in ended)
    row.notes |= {how: str(count) for how, count in ends.items()}
    left = trail.left()
    row.bad += len(left) + ends["without a hint"]
    assert not left, left
    assert not ends["without a hint"], ended
    merge(score, row.what, row.planned, sum(kills.values()), found)


def writes(running: Running) -> bool:
    """Whether a living engine has requests; a worker that is starting has no socket."""
    try:
        return "READY" in engines(running, "state") and bool(engines(running, "running"))
    except (httpx.HTTPError, OSError):
        return False


def kill(running: Running, victim: str) -> None:
    """SIGKILL to one of a server's processes; a gateway is started again, as by its operator."""
    if victim == "gateway":
        running.kill_tree()
        running.start()
        return
    pid = worker_pid(running) if victim == "worker" else engine_pid(running, victim)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not alive(pid), 30, f"the {victim} is gone")
    wait_for(lambda: not writes(running), 30, f"the {victim} is missed")


def engine_pid(running: Running, victim: str) -> int:
    """Pid of vLLM's HTTP server, or of its child that computes."""
    [pid] = engines(running, "pid")
    if victim == "engine":
        return int(pid)
    named = {p: Path(f"/proc/{p}/cmdline").read_bytes() for p in descendants(int(pid))}
    [core] = [p for p, words in named.items() if words.startswith(b"VLLM::EngineCore")]
    return core


def outcome(operation: lro.Operation) -> str:
    """How an operation ended: as it should, or with word when to come back, or neither."""
    if state_of(operation) == "SUCCEEDED" and progress(operation).resource:
        return "succeeded"
    return "told to retry" if hinted(operation) else "without a hint"
