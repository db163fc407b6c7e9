"""How much is free where the state folder lies, and what fills it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from ptalign_server.metrics import Metrics

VOLUMES = ("state", "sets")
"""The state folder's own, and that of its sets and checkpoints where servers share one."""
KINDS = ("work", "sets", "artefacts", "cache", "engines")
"""Folders of the state folder; the databases beside them are ``database``. Checkpoints come first:
in the chart they are seen a second time, inside the claim of the sets."""
GONE = (FileNotFoundError, PermissionError)
"""Never made or removed meanwhile; or of the volume itself, as its ``lost+found``."""


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


def publish_used(
    gauges: Metrics, state: Path, should_stop: Callable[[], bool] = lambda: False
) -> None:
    """Bytes by kind: a walk through all files, each counted once.

    Args:
        gauges: Where they are shown; those of a kind that was not walked to its end stay.
        state: The state folder.
        should_stop: Asked at each folder: a large claim takes minutes, and a server that stops has
            seconds.
    """
    walk = _Walk(should_stop)
    for kind in KINDS:
        total = walk.folder(state / kind)
        if should_stop():
            return
        gauges.state_used.labels(kind).set(total)
    databases = [entry for entry in _entries(state) if ".db" in entry.name]
    gauges.state_used.labels("database").set(sum(map(walk.bytes, databases)))


class _Walk:
    """Sizes of files; what it has met before is 0."""

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop
        self._seen: set[tuple[int, int]] = set()

    def folder(self, path: Path | str) -> int:
        """Bytes of all files below a folder."""
        total, folders = 0, [path]
        while folders and not self._should_stop():
            here = folders.pop()
            if not self._new(here):
                continue
            for entry in _entries(here):
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    total += self.bytes(entry)
        return total

    def bytes(self, file: os.DirEntry[str]) -> int:
        """What a file takes on disk."""
        found = self._new(file)
        return found.st_blocks * 512 if found else 0

    def _new(self, what: Path | str | os.DirEntry[str]) -> os.stat_result | None:
        """Its figures, the first time; None from then on, and of what is gone."""
        try:
            found = os.stat(what, follow_symlinks=isinstance(what, Path))
        except GONE:
            return None
        place = (found.st_dev, found.st_ino)
        if place in self._seen:
            return None
        self._seen.add(place)
        return found


def _entries(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except GONE:
        return
