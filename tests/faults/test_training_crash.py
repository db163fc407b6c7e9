"""Trainer and worker killed around checkpoints and publishing: the same adapter to the bit."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from google.longrunning import operations_pb2 as lro
from history import History, check
from running import Running, descendants, progress, state_of
from world import MODEL, POLICY, end, load, server, wait_for

from ptalign_proto.v1 import library_pb2 as lib
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server import failpoints

POINTS = [
    f"{name}.{side}"
    for name in ("checkpoint_write", "checkpoint_rename", "adapter_publish")
    for side in ("before", "after")
]
FEW = ["checkpoint_rename.before", "adapter_publish.after"]
STEPS = 6
KILLED_STEPS = 28
"""Seven checkpoints: of four kills each comes at the second of its process at the latest."""


def import_pairs(running: Running) -> str:
    """The mild pairs of the core tests as a set of this server."""
    pairs = load("core/conftest.py").make_pairs()
    header = lib.ImportHeader(kind="pairSets", model=MODEL, policy=POLICY)
    records = [
        lib.Record(
            instruction=p.instruction,
            positive=p.positive,
            toxic=p.toxic.reveal() if p.toxic else "",
            kind=p.kind,
            topic="t0",
        )
        for p in pairs.pairs
    ]
    parts = [lib.ImportSetRequest(header=header), lib.ImportSetRequest(records=records)]
    return str(running.library.ImportSet(iter(parts), timeout=60).name)


def align(running: Running, pairs: str, steps: int = STEPS, **more: Any) -> str:
    budget = pb.Budget(steps=steps, pairs_per_step=4, without_anchors=True, max_benign_kl=9.0)
    values = {"model": MODEL, "pair_set": pairs, "budget": budget, "guards": "record", "seed": 3}
    return str(running.tuning.Align(pb.AlignRequest(**(values | more)), timeout=60).name)


def weights(running: Running, name: str) -> str:
    """SHA-256 of the adapter that an operation made."""
    done = running.wait(name, 600)
    assert state_of(done) == "SUCCEEDED", f"{done.error}\n{running.worker_log()}"
    made = res.Adapter()
    done.response.Unpack(made)
    sums = {f.part: f.sha256 for f in made.files}
    assert sums["adapter_model.safetensors"] == made.weights_sha256.removeprefix("sha256:")
    return made.weights_sha256


@pytest.mark.tier(3)
@pytest.mark.timeout(2600)
def test_killed_around_checkpoints(
    score: Any, tmp_path: Path, author_url: str, tiny_model: Path
) -> None:
    row = score.row("kills of trainer or worker at 6 points, adapter equal to the bit", 72)
    state, once = tmp_path / "state", tmp_path / "once"
    once.mkdir()
    running = server(state, author_url, tiny_model).start()
    try:
        pairs = import_pairs(running)
        truth = weights(running, align(running, pairs, KILLED_STEPS))
    finally:
        end(running)
    draw = random.Random(4)
    for _ in range(score.size(12, 1)):
        for entry in once.iterdir():
            entry.unlink()
        points = POINTS if score.in_tier else FEW
        spec = ";".join(f"{p}=kill@{draw.randint(1, 2)}" for p in points if "publish" not in p)
        spec += ";" + ";".join(f"{p}=kill" for p in points if "publish" in p)
        variables = {failpoints.VARIABLE: spec, failpoints.ONCE: str(once)}
        running = server(state, author_url, tiny_model, **variables).start()
        try:
            name = align(running, pairs, KILLED_STEPS)
            same = weights(running, name) == truth
            found = check(running, History(operations={name}))
        finally:
            end(running)
        fired = {p.name for p in once.iterdir()}
        assert fired == set(points), f"never reached: {set(points) - fired}"
        row.ran += len(fired)
        row.bad += found.bad + (not same)
    assert not row.bad


@pytest.mark.full
@pytest.mark.tier(3)
@pytest.mark.timeout(2600)
def test_killed_at_random_steps(
    score: Any, tmp_path: Path, author_url: str, tiny_model: Path
) -> None:
    row = score.row("SIGKILL of the trainer at random steps, adapter equal to the bit", 20)
    draw = random.Random(9)
    running = server(tmp_path / "state", author_url, tiny_model).start()
    try:
        pairs = import_pairs(running)
        truth = weights(running, align(running, pairs))
        for _ in range(score.size(20, 1)):
            name = align(running, pairs)
            wanted = draw.randint(1, STEPS - 1)
            wait_for(lambda n=name, w=wanted: _steps(running, n) >= w, 600, "some steps")
            kill_trainer(running)
            row.ran += 1
            row.bad += weights(running, name) != truth
    finally:
        end(running)
    assert not row.bad


def _steps(running: Running, name: str) -> int:
    found = running.operations.GetOperation(lro.GetOperationRequest(name=name))
    assert not found.done, "it was too quick to be killed"
    return int(progress(found).done)


def kill_trainer(running: Running) -> None:
    """SIGKILL to the executor's process, if it still runs."""
    assert running.process is not None
    for pid in descendants(running.process.pid):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"ptalign_server.executor.job" in words and b"-m" in words[:3]:
            os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)
            return
