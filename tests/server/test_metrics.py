"""Label values: a closed set that holds what the stages really say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ptalign
from ptalign.errors import DataDamaged, EngineFailed
from ptalign.progress import Progress
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server.executor.events import progress_event, progress_of
from ptalign_server.gateway.interceptor import _Watch
from ptalign_server.metrics import REASONS, RESERVED, Metrics, forget, registry, rejections
from ptalign_server.worker import perform
from ptalign_server.worker.reporter import Meter, Reporter, fill

CORE = Path(ptalign.__file__).parent
SOURCES = [*(CORE / "asking").glob("*.py"), *(CORE / "answering").glob("*.py")]
MADE = {"written": 7, "rejected.harsh": 3}
KINDS = {"counter", "histogram"}
"""Of metrics whose sums outlive the process that wrote them."""
NO_REASONS = {"operator", "twin"}
"""Strings that functions of those files return for other purposes."""


def reasons() -> set[str]:
    """Every reason in the sources of the two stages that reject."""
    found: set[str] = set()
    for source in SOURCES:
        text = source.read_text("utf-8")
        found |= set(re.findall(r'return "([a-z_]+)"', text))
        found |= set(re.findall(r'reason = "([a-z_]+)"', text))
        found |= set(re.findall(r'(?:_reject|leave_out)\(f?"(?:{[a-z.]+}_)?([a-z_]+)"', text))
    return found - NO_REASONS


def test_no_reason_is_lost_among_the_others() -> None:
    asked = {"not_apart", "anchor_malformed", "twin_given_up", "off_topic", "over_count"}
    assert asked <= reasons()
    for reason in reasons():
        for said in (reason, f"toxic_{reason}", f"positive_{reason}", f"twin_{reason}"):
            assert "other" not in rejections({f"rejected.{said}": 1}), said


def drafts(metrics: Metrics) -> dict[str, float]:
    """Pair drafts counted so far, by outcome."""
    found: dict[str, float] = {}
    for sample in next(iter(metrics.pairs.collect())).samples:
        if sample.name.endswith("_total"):
            outcome = sample.labels["outcome"]
            found[outcome] = found.get(outcome, 0) + sample.value
    return found


def test_pairs_that_were_there_are_no_accepted_drafts() -> None:
    """200 of a parent kept the alert on low yields silent."""
    metrics = Metrics()
    meter = Meter(metrics, "SynthesizePairs")
    for written, rejected in ((0, 0), (1, 10), (1, 40)):
        counts = {"accepted": 200 + written, "written": written, "rejected.harsh": rejected}
        meter.update(Progress("answering", 0, 0, counts))
    assert drafts(metrics) == {"accepted": 1, "rejected": 40}


def test_drafts_of_a_second_try_count_beside_those_of_the_first() -> None:
    """A worker that takes up what another one did counted its drafts again, or lost its own."""
    metrics = Metrics()
    for earlier, totals in (({}, (4, 7)), ({"written": 7, "rejected.toxic_harsh": 7}, (9, 12))):
        meter = Meter(metrics, "SynthesizePairs")  # another process has another one
        meter.update(Progress("waiting for device", 0, 0))
        for total in totals:
            counts = {"written": total, "rejected.toxic_harsh": total}
            meter.update(Progress("answering", 0, 0, counts, earlier=earlier))
    assert drafts(metrics) == {"accepted": 12, "rejected": 12}


def test_an_evaluations_suite_is_a_suite_or_nothing() -> None:
    """It held the phase: "measuring probabilities", "waiting for device"."""
    message = pb.EvaluateMetadata()
    fill(message, Progress("asking aligned: attack", 1, 2, suite="attack"), {}, None)
    assert (message.suite, message.progress.phase) == ("attack", "asking aligned: attack")
    fill(message, Progress("waiting for device", 0, 0), {}, None)
    assert (message.suite, message.progress.phase) == ("", "waiting for device")


def test_tokens_of_a_resumed_training_count_once() -> None:
    """They came from a checkpoint, in another process, and were counted again after each start."""
    metrics = Metrics()
    for earlier, total in (({}, 70), ({"tokens_mle": 70}, 100)):
        meter = Meter(metrics, "Align")
        said = Progress("training", 1, 9, {"tokens_mle": total}, earlier=earlier)
        meter.update(progress_of(progress_event(said)))
    [family] = metrics.train_tokens.collect()
    assert sum(s.value for s in family.samples if s.name.endswith("_total")) == 100


def test_a_try_after_a_failure_is_counted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics()
    tries = iter(({}, {"written": 7, "rejected.harsh": 3}))

    def make(job: Any) -> str:
        earlier = next(tries)
        counts = {name: earlier.get(name, 0) + n for name, n in MADE.items()}
        job.reporter._meter.update(Progress("answering", 0, 0, counts, earlier=earlier))
        if not earlier:
            raise EngineFailed("died")
        return "made"

    monkeypatch.setitem(perform.JOBS, "SynthesizePairs", SimpleNamespace(make=make))
    monkeypatch.setattr(perform, "_sleep", lambda *_: None)
    operation = SimpleNamespace(id="1", kind="SynthesizePairs", attempt=1)
    limits = SimpleNamespace(attempts=3, engine_attempts=3)
    job: Any = SimpleNamespace(
        operation=operation,
        room=SimpleNamespace(settings=SimpleNamespace(limits=limits)),
        reporter=Reporter(operation, None, metrics, lambda: False),  # type: ignore[arg-type]
        check=lambda: None,
    )
    assert perform._make(job) == "made"
    assert drafts(metrics) == {"accepted": 14, "rejected": 6}


EVERY_CALL = """
import grpc
from ptalign_server.gateway.identity import RULES
from ptalign_server.metrics import Metrics
metrics = Metrics()
for method in (*RULES, "other"):
    metrics.rpc_seconds.labels(method).observe(1)
    for code in grpc.StatusCode:
        metrics.rpcs.labels(method, code.name).inc()
"""


def test_metric_files_have_their_bytes_before_a_disk_is_full(tmp_path: Path) -> None:
    """A page of a map that the disk cannot hold is a SIGBUS: they grew with the labels, sparse."""
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", EVERY_CALL], env=environment, check=True)
    files = {file.name.rpartition("_")[0]: file.stat() for file in tmp_path.iterdir()}
    assert set(files) == {"counter", "gauge_livemostrecent", "histogram"}
    for name, stat in files.items():
        assert stat.st_size == RESERVED, name
        assert stat.st_blocks * 512 >= stat.st_size, name


A_WORKER = """
import os
from ptalign_server.metrics import Metrics
metrics = Metrics()
metrics.tokens_generated.inc(5)
metrics.step_seconds.observe(0.3)
print(os.getpid())
"""


def test_a_worker_goes_on_with_the_sums_of_the_one_that_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each left its files, half a MiB, until the server restarted."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    for died in range(3):
        worker = subprocess.run(
            [sys.executable, "-c", A_WORKER], check=True, capture_output=True, text=True
        )
        forget(int(worker.stdout))
        forget(int(worker.stdout))  # or one that died before it wrote any
        assert {file.name.partition("_")[0] for file in tmp_path.iterdir()} == KINDS
        assert len(list(tmp_path.iterdir())) == len(KINDS)
        found = registry()
        assert found.get_sample_value("ptalign_tokens_generated_total") == 5 * (died + 1)
        assert found.get_sample_value("ptalign_train_step_seconds_count") == died + 1


def test_what_callers_brought_is_no_rejected_draft() -> None:
    """Refining a large set under a stricter polarity read as a run with no yield."""
    counts = {"rejected.parent_not_apart": 400, "rejected.seed_over_count": 160}
    assert rejections(counts | {"rejected.toxic_not_apart": 2}) == {"not_apart": 2}


def test_voices_are_added_up_and_texts_never_become_labels() -> None:
    counts = {"rejected.toxic_harsh": 2, "rejected.positive_harsh": 1, "rejected.a b": 4, "x": 9}
    assert rejections(counts) == {"harsh": 3, "other": 4}
    assert all(re.fullmatch("[a-z_]+", reason) for reason in REASONS)


async def test_a_call_that_meets_damage_is_counted_where_the_alert_looks() -> None:
    """A code's series is born with its first call: the first damage was no increase."""
    metrics = Metrics()

    async def abort_with_status(_: Any) -> None:
        pass

    watch = _Watch(metrics, "/m", SimpleNamespace(abort_with_status=abort_with_status))
    for error, counted in ((None, 0), (EngineFailed("died"), 0), (DataDamaged("changed"), 1)):
        if error is not None:
            await watch.fail(error)
        [family] = metrics.data_damaged.collect()
        assert [s.value for s in family.samples if s.name.endswith("_total")] == [counted]
