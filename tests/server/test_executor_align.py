"""Real training and probing in the executor's subprocess: killed, cancelled, continued, equal."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ptalign.config import AlignConfig
from ptalign.errors import Cancelled, TrainingFailed
from ptalign.nouns import Adapter, ModelSpec, Probe
from ptalign.progress import Progress
from ptalign_server.executor import run_job

pytestmark = pytest.mark.timeout(900)  # each start of a job imports torch, slow on a busy machine

REVEAL = {"reveal": True}


@pytest.fixture(scope="module")
def world() -> ModuleType:
    """The tiny model and the mild pairs of the core's tests."""
    path = Path(__file__).parents[1] / "core" / "conftest.py"
    spec = importlib.util.spec_from_file_location("core_world", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def payload(world: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pairs = world.make_pairs()
    model: ModelSpec = world.tiny_model.__wrapped__(tmp_path_factory, pairs)
    config = AlignConfig(
        steps=5, checkpoint_every=1, pairs_per_step=2, anchors_per_step=1, twins_per_step=1,
        guards="record", scorer="log_odds", max_length=256,
    )  # fmt: skip
    return {
        "pairs": pairs.model_dump(mode="json", context=REVEAL),
        "model": model.model_dump(mode="json"),
        "config": config.model_dump(mode="json"),
    }


@pytest.fixture(scope="module")
def whole(payload: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    """The run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    found = run_job("align", payload | {"out": str(folder / "run")}, workdir=folder / "jobs")
    return Adapter.model_validate(found)


def child(workdir: Path) -> int:
    record = next(workdir.glob("*.json")).read_text()
    return int(record.split('"child": [')[1].split(",")[0])


def is_step(progress: Progress, step: int) -> bool:
    return progress.done == step and "loss_mle" in progress.values


def test_cancelled_then_killed_it_continues_to_the_same_adapter(
    payload: dict[str, Any], whole: Adapter, tmp_path: Path
) -> None:
    job, jobs = payload | {"out": str(tmp_path / "run")}, tmp_path / "jobs"
    steps: list[int] = []

    def interrupt(progress: Progress) -> None:
        steps.extend([progress.done] if "loss_mle" in progress.values else [])
        if is_step(progress, 2):
            raise Cancelled("enough")
        if is_step(progress, 4):
            os.kill(child(jobs), signal.SIGKILL)

    with pytest.raises(Cancelled, match="enough"):
        run_job("align", job, workdir=jobs, on_progress=interrupt)
    with pytest.raises(TrainingFailed) as caught:
        run_job("align", job, workdir=jobs, on_progress=interrupt)
    assert caught.value.retryable
    assert list(jobs.iterdir()) == []
    found = run_job("align", job, workdir=jobs)
    assert Adapter.model_validate(found).weights_sha256 == whole.weights_sha256
    assert steps[:2] == [1, 2]
    assert steps.count(1) == 1, "it began anew"


def test_probe_runs_in_the_executor(
    payload: dict[str, Any], whole: Adapter, tmp_path: Path
) -> None:
    job = {"pairs": payload["pairs"], "model": payload["model"], "samples": 3}
    job["adapters"] = {"baseline": "", "aligned": whole.path}
    found = run_job("probe", job, workdir=tmp_path / "jobs")
    probes = {label: Probe.model_validate(p) for label, p in found.items()}
    assert list(probes) == ["baseline", "aligned"]
    assert probes["baseline"].benign_kl == pytest.approx(0, abs=1e-6)
    assert probes["aligned"].benign_kl > 1e-6
    assert probes["aligned"].toxic_answers == 3


def test_the_run_leaves_no_text_on_disk(payload: dict[str, Any], whole: Adapter) -> None:
    texts = [p["toxic"].encode() for p in payload["pairs"]["pairs"] if p["toxic"]]
    files = [p for p in Path(whole.path).parent.rglob("*") if p.is_file()]
    assert len(files) >= 3
    assert len(texts) == 10
    for file in files:
        content = file.read_bytes()
        assert not any(text in content for text in texts), file.name
