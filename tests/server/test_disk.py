"""What is free and what is used where the state folder lies, as /metrics shows it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from ptalign_server.gateway.disk import KINDS, publish_free, publish_used
from ptalign_server.metrics import Metrics
from ptalign_server.settings import Settings

BLOCK = 64 * 1024


def shown(gauge: Any) -> dict[str, float]:
    [family] = gauge.collect()
    return {next(iter(sample.labels.values())): sample.value for sample in family.samples}


@pytest.fixture
def state(tmp_path: Path) -> Path:
    settings = Settings(state=tmp_path / "state")
    settings.make_folders()
    return settings.state


@pytest.fixture
def elsewhere(state: Path) -> Iterator[Path]:
    """A folder on another file system."""
    with TemporaryDirectory(dir="/dev/shm") as folder:
        if os.stat(folder).st_dev == state.stat().st_dev:
            pytest.skip("needs two file systems")
        yield Path(folder)


def test_one_volume_is_shown_once(state: Path) -> None:
    metrics = Metrics()
    publish_free(metrics, state)
    free, size = shown(metrics.disk_free), shown(metrics.disk_size)
    assert free.keys() == size.keys() == {"state"}
    assert 0 < free["state"] < size["state"]


def test_the_volume_that_servers_share_is_shown_beside_it(state: Path, elsewhere: Path) -> None:
    (state / "sets").rmdir()
    (state / "sets").symlink_to(elsewhere)
    metrics = Metrics()
    publish_free(metrics, state)
    assert shown(metrics.disk_size).keys() == {"state", "sets"}


def test_what_fills_the_state_folder_is_counted_once_by_kind(state: Path) -> None:
    metrics = Metrics()
    files = ("work/a/run/checkpoint", "sets/b/noun", "artefacts/adapters/c/x", "ptalign.db-wal")
    for file in files:
        (state / file).parent.mkdir(parents=True, exist_ok=True)
        (state / file).write_bytes(os.urandom(BLOCK))
    (state / "sets" / "work").mkdir()  # in the chart checkpoints lie inside the claim of the sets
    (state / "sets" / "work" / "checkpoint").hardlink_to(state / files[0])
    publish_used(metrics, state)
    filled = dict.fromkeys(("work", "sets", "artefacts", "database"), BLOCK)
    assert shown(metrics.state_used) == dict.fromkeys(KINDS, 0) | filled
    publish_used(metrics, state, should_stop=lambda: True)  # leaves what is shown
    assert shown(metrics.state_used)["sets"] == BLOCK
    (state / files[1]).unlink()
    publish_used(metrics, state)
    assert shown(metrics.state_used)["sets"] == 0


def test_a_folder_that_may_not_be_read_hides_no_other(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the ``lost+found`` of a volume."""
    for file in ("sets/lost+found/x", "artefacts/y"):
        (state / file).parent.mkdir(parents=True, exist_ok=True)
        (state / file).write_bytes(os.urandom(BLOCK))
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if str(path).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    metrics = Metrics()
    publish_used(metrics, state)
    assert shown(metrics.state_used)["artefacts"] == BLOCK
