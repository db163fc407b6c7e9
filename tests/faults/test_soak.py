"""Half an hour of ordinary work: memory, descriptors and threads stay where they were."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.longrunning import operations_pb2 as lro
from running import Running, descendants, state_of
from test_stop import resident
from test_wire import descriptors
from world import generate, records_of, served, worker_pid

from ptalign_proto.v1 import library_pb2 as lib
from ptalign_proto.v1 import safety_tuning_pb2 as pb

SAMPLE_SECONDS = 5.0
NOISE = {"memory": 0.05, "descriptors": 0.10, "threads": 0.10}
"""Share by which the last third may lie above the middle third."""
SLACK = {"memory": 8e6, "descriptors": 4, "threads": 3}
"""And what is noise in any case: an allocator's arena, a pool's spare connection."""


@dataclass(frozen=True)
class Sample:
    """What one process holds."""

    memory: int
    descriptors: int
    threads: int


def sample(pid: int) -> Sample:
    threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
    return Sample(resident(pid), descriptors(pid), threads)


@pytest.mark.full
@pytest.mark.tier(4)
@pytest.mark.timeout(2600)
def test_nothing_grows(score: Any, tmp_path: Path, author_url: str) -> None:
    """`--scale 0.33` runs ten minutes; the first third warms up, as minute 0 to 10 does."""
    seconds = score.size(30, 2) * 60
    row = score.row("minutes of ordinary work without growth", 30)
    with served(tmp_path / "state", author_url) as running:
        assert running.process is not None
        pids = {"gateway": running.process.pid, "worker": worker_pid(running)}
        seen: dict[str, list[Sample]] = {name: [] for name in pids}
        begin, rounds, next_sample = time.monotonic(), 0, 0.0
        for _ in work(running):
            rounds += 1
            now = time.monotonic() - begin
            if now > next_sample:
                next_sample = now + SAMPLE_SECONDS
                for name, pid in pids.items():
                    seen[name].append(sample(pid))
            if now > seconds:
                break
        assert worker_pid(running) == pids["worker"], "the worker was restarted"
        strays = len(descendants(running.process.pid)) - 1
    grown = [text for name, samples in seen.items() for text in growth(name, samples)]
    row.ran, row.bad = seconds // 60, len(grown) + strays
    row.notes = {"rounds": str(rounds), "samples": str(len(seen["worker"]))}
    for name, samples in seen.items():
        row.notes[f"{name} MB"] = " to ".join(f"{m / 1e6:.0f}" for m in thirds(samples, "memory"))
    assert not row.bad, grown


def work(running: Running) -> Iterator[None]:
    """What callers do, over and over: generate, watch, read, resend, cancel, list, purge."""
    while True:
        request = generate(4)
        name = running.tuning.GenerateInstructions(request, timeout=60).name
        assert running.tuning.GenerateInstructions(request, timeout=60).name == name
        done = running.wait(name, 120)
        assert state_of(done) == "SUCCEEDED", done.error
        for _ in running.tuning.WatchOperation(pb.WatchOperationRequest(name=name), timeout=60):
            pass
        made = name.replace("operations/", "instructionSets/")
        assert len(records_of(running, made)) == 4
        other = running.tuning.GenerateInstructions(generate(200), timeout=60).name
        running.operations.CancelOperation(lro.CancelOperationRequest(name=other))
        running.wait(other, 120)
        running.library.ListInstructionSets(lib.ListResourcesRequest(page_size=20), timeout=60)
        running.library.PurgeSet(lib.PurgeSetRequest(name=made, reason="soak"), timeout=60)
        running.metrics()
        yield


def thirds(samples: list[Sample], field: str) -> tuple[float, float]:
    """Medians of the middle and the last third."""
    values = [getattr(s, field) for s in samples]
    cut = len(values) // 3
    return statistics.median(values[cut : 2 * cut]), statistics.median(values[2 * cut :])


def growth(name: str, samples: list[Sample]) -> list[str]:
    """What lies higher in the last third than in the middle one, beyond noise."""
    found = []
    for field, share in NOISE.items():
        middle, last = thirds(samples, field)
        if last > middle * (1 + share) + SLACK[field]:
            found.append(f"{name}: {field} from {middle:.0f} to {last:.0f}")
    return found


def test_the_soak_sees_a_leak() -> None:
    """The test of the test."""
    steady = [Sample(100_000_000, 30, 20)] * 90
    assert growth("x", steady) == []
    leaking = [Sample(100_000_000 + n * 1_000_000, 30 + n, 20 + n // 3) for n in range(90)]
    assert [text.split()[1] for text in growth("x", leaking)] == [
        "memory", "descriptors", "threads",
    ]  # fmt: skip
