"""How much is free where the state folder lies, and what fills it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ptalign_server.metrics import Metrics

VOLUMES = ("state", "sets")
"""The state folder's own, and that of its sets and checkpoints where servers share one."""
KINDS = ("work", "sets", "artefacts", "cache", "engines")
"""Folders of the state folder; the databases beside them are ``database``. Checkpoints come first:
in the chart they are seen a second time, inside the claim of the sets."""


def publish_free(gauges: Metrics, state: Path) -> None:
    """Free bytes and size of each volume; a system call each."""
    devices: set[int] = set()
    for volume, folder in zip(VOLUMES, (state, state / "sets"), strict=True):
        device = folder.stat().st_dev
        if device not in devices:
            devices.add(device)
            found = shutil.disk_usage(folder)
            gauges.disk_free.labels(volume).set(found.free)
            gauges.disk_size.labels(volume).set(found.total)


def publish_used(gauges: Metrics, state: Path) -> None:
    """Bytes by kind: a walk through all files, each counted once."""
    seen: set[tuple[int, int]] = set()
    for kind in KINDS:
        gauges.state_used.labels(kind).set(_bytes(_files(state / kind), seen))
    databases = (entry for entry in _entries(state) if ".db" in entry.name)
    gauges.state_used.labels("database").set(_bytes(databases, seen))


def _bytes(files: Iterator[os.DirEntry[str]], seen: set[tuple[int, int]]) -> int:
    total = 0
    for file in files:
        try:
            found = file.stat(follow_symlinks=False)
        except FileNotFoundError:  # removed since its folder was read
            continue
        place = (found.st_dev, found.st_ino)
        if place not in seen:
            seen.add(place)
            total += found.st_blocks * 512
    return total


def _files(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    for entry in _entries(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from _files(entry.path)
        else:
            yield entry


def _entries(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except FileNotFoundError:  # never made, or removed meanwhile
        return
