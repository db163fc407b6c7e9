"""The executor's protocol with jobs of its own kind: progress, results, errors, cancel, death."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from ptalign import errors
from ptalign.progress import Progress
from ptalign_server.executor import run, run_job
from ptalign_server.executor.events import error_event, error_of, line
from ptalign_server.profiles import TrainerBudget

JOB = """
import os, sys, time, threading
from ptalign import errors
from ptalign.progress import Progress
from ptalign_server.executor import job

def echo(payload, on_progress):
    print("noise on standard output")
    for i in range(payload.get("steps", 3)):
        on_progress(Progress("training", i + 1, 3, {"tokens": i}, {"loss": 0.5 * i}))
        time.sleep(payload.get("pause", 0))
    return {"got": payload, "nice": os.nice(0), "threads": os.environ["OMP_NUM_THREADS"]}

def fail(payload, on_progress):
    raise {
        "guard": lambda: errors.GuardTripped("benign_kl", 0.5, 0.25),
        "input": lambda: errors.InvalidInput("budget.steps", "is over 10", "Send less."),
        "damaged": lambda: errors.DataDamaged("checkpoint 3"),
        "full": lambda: OSError(28, "No space left on device"),
        "surprise": lambda: ValueError("heron-7431 of the lake"),
    }[payload["how"]]()

def stuck(payload, on_progress):
    on_progress(Progress("training", 1, 3))
    time.sleep(600)

def unstarted(payload, on_progress):
    time.sleep(600)

def die(payload, on_progress):
    on_progress(Progress("training", 1, 3))
    print("heron-7431 of the lake", file=sys.stderr, flush=True)
    os.kill(os.getpid(), 9)

job.KINDS.update(echo=echo, fail=fail, stuck=stuck, unstarted=unstarted, die=die)
sys.argv = ["job", *sys.argv[1:]]
sys.exit(job.main())
"""


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of pid files; jobs are the ones above."""
    script = tmp_path / "job.py"
    script.write_text(JOB)
    monkeypatch.setattr(run, "COMMAND", (sys.executable, str(script)))
    return tmp_path / "jobs"


def test_progress_and_result_come_through(records: Path) -> None:
    seen: list[Progress] = []
    text = "a – b 😀 " * 100_000  # more than a pipe holds
    budget = TrainerBudget(threads=3, niceness=7)
    found = run_job("echo", {"text": text}, workdir=records, on_progress=seen.append, budget=budget)
    assert found["got"] == {"text": text}
    assert found["nice"] == os.nice(0) + 7
    assert found["threads"] == "3"
    assert [p.done for p in seen] == [1, 2, 3]
    assert seen[-1].values == {"loss": 1.0}
    assert seen[-1].counts == {"tokens": 2}
    assert list(records.iterdir()) == []


def test_errors_keep_their_class_and_fields(records: Path) -> None:
    with pytest.raises(errors.GuardTripped) as guard:
        run_job("fail", {"how": "guard"}, workdir=records)
    assert (guard.value.guard, guard.value.value, guard.value.limit) == ("benign_kl", 0.5, 0.25)
    with pytest.raises(errors.InvalidInput, match=r"budget\.steps: is over 10\. Send less"):
        run_job("fail", {"how": "input"}, workdir=records)
    with pytest.raises(errors.DataDamaged, match="checkpoint 3"):
        run_job("fail", {"how": "damaged"}, workdir=records)


def test_a_full_disk_keeps_its_errno(records: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        run_job("fail", {"how": "full"}, workdir=records)
    assert caught.value.errno == errno.ENOSPC


def test_an_unexpected_error_names_its_place_and_keeps_its_words(records: Path) -> None:
    with pytest.raises(errors.TrainingFailed, match=r"unexpected ValueError at job\.py:") as caught:
        run_job("fail", {"how": "surprise"}, workdir=records)
    assert "heron" not in str(caught.value)
    assert not caught.value.retryable


def too_large_a_tensor() -> RuntimeError:
    """As torch says it on a CPU."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("heron-7431 of the lake"),
        torch.OutOfMemoryError("heron-7431 of the lake"),
        too_large_a_tensor(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory_says_what_to_lower(error: Exception) -> None:
    """It was an unexpected error of a line, which names no setting."""
    crossed = json.loads(line(error_event(error)))
    with pytest.raises(errors.TrainingFailed, match=r"budget\.pairs_per_step") as caught:
        raise error_of(crossed)
    assert "bfloat16" in str(caught.value)
    assert "heron" not in str(caught.value)


def test_an_unknown_kind_is_refused(records: Path) -> None:
    with pytest.raises(errors.Unsupported, match="known are align"):
        run_job("other", {}, workdir=records)


def test_cancel_ends_it_at_its_next_report(records: Path) -> None:
    stop = threading.Event()
    seen: list[Progress] = []

    def on_progress(progress: Progress) -> None:
        seen.append(progress)
        if progress.done == 2:
            stop.set()

    with pytest.raises(errors.Cancelled):
        run_job(
            "echo",
            {"steps": 1000, "pause": 0.3},
            workdir=records,
            on_progress=on_progress,
            should_stop=stop.is_set,
        )
    assert len(seen) <= 3


def test_on_progress_may_cancel(records: Path) -> None:
    def on_progress(progress: Progress) -> None:
        raise errors.Cancelled("by the reporter")

    with pytest.raises(errors.Cancelled, match="by the reporter"):
        run_job("echo", {"steps": 1000, "pause": 0.1}, workdir=records, on_progress=on_progress)


@pytest.mark.parametrize("kind", ["stuck", "unstarted"])
def test_a_job_that_does_not_report_is_killed(records: Path, kind: str) -> None:
    stop = threading.Event()
    threading.Timer(2.0, stop.set).start()
    begin = time.monotonic()
    with pytest.raises(errors.Cancelled):
        run_job(kind, {}, workdir=records, should_stop=stop.is_set, grace_s=1.0)
    assert time.monotonic() - begin < 6
    assert list(records.iterdir()) == []


def test_a_killed_job_can_be_run_again_and_says_so(records: Path) -> None:
    with pytest.raises(errors.TrainingFailed, match=r"signal 9 .*out-of-memory") as caught:
        run_job("die", {}, workdir=records)
    assert caught.value.retryable
    assert "last checkpoint" in str(caught.value)
    assert "heron" not in str(caught.value)
    assert "<line of 22 chars>" in str(caught.value)


def test_the_payload_is_nowhere_but_in_the_pipe(records: Path) -> None:
    """Neither in argv, nor in the environment, nor in a file the job could have open."""
    canary = "heron-7431"
    found: list[bytes] = []

    def on_progress(_: Progress) -> None:
        record = next(records.iterdir())
        pid = int(record.read_text().split('"child": [')[1].split(",")[0])
        found.append(Path(f"/proc/{pid}/cmdline").read_bytes())
        found.append(Path(f"/proc/{pid}/environ").read_bytes())
        folder = Path(os.readlink(f"/proc/{pid}/cwd"))
        found.extend(p.read_bytes() for p in folder.rglob("*") if p.is_file())

    run_job(
        "echo", {"text": canary, "steps": 1, "pause": 0.5}, workdir=records, on_progress=on_progress
    )
    assert len(found) >= 2
    assert not any(canary.encode() in part for part in found)


def test_kill_9_of_the_job_from_outside(records: Path) -> None:
    def kill(_: Progress) -> None:
        record = next(records.iterdir())
        os.kill(int(record.read_text().split('"child": [')[1].split(",")[0]), signal.SIGKILL)

    with pytest.raises(errors.TrainingFailed) as caught:
        run_job("echo", {"steps": 50, "pause": 0.5}, workdir=records, on_progress=kill)
    assert caught.value.retryable
    assert list(records.iterdir()) == []
