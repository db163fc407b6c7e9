"""Named places where a test can make the service fail; nothing happens unless a test asks.

``PTALIGN_FAILPOINTS`` holds ``POINT=ACTION`` entries, separated by ``;``:

    write_item.after=kill@7       SIGKILL to this process at the seventh hit
    state_commit.after=error      raise `Injected`
    audit_write.before=enospc     raise OSError(ENOSPC)
    generate.before=sleep:2       wait two seconds

``PTALIGN_FAILPOINTS_ONCE`` names a folder: an entry fires once for all processes and restarts that
share it, and leaves an empty file with its name there.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptalign.engines.base import noted

VARIABLE = "PTALIGN_FAILPOINTS"
ONCE = "PTALIGN_FAILPOINTS_ONCE"

TRANSITIONS = (
    "enqueue",
    "lease",
    "generate",
    "filter",
    "write_item",
    "acknowledge",
    "checkpoint_write",
    "checkpoint_rename",
    "adapter_publish",
    "state_commit",
    "audit_write",
    "purge",
)
POINTS = tuple(f"{name}.{side}" for name in TRANSITIONS for side in ("before", "after"))
"""Every point there is: before and after each state transition."""


class Injected(Exception):
    """The error that the action ``error`` raises."""


@dataclass(slots=True)
class _Entry:
    point: str
    action: str
    argument: str
    at: int
    hits: int = 0


def _parse(text: str) -> dict[str, _Entry]:
    entries = {}
    for part in filter(None, (p.strip() for p in text.split(";"))):
        point, _, rest = part.partition("=")
        action, _, at = rest.partition("@")
        verb, _, argument = action.partition(":")
        if point not in POINTS or verb not in _ACTIONS:
            raise ValueError(f"{VARIABLE}: {part!r} is no POINT=ACTION that there is")
        entries[point] = _Entry(point, verb, argument, int(at or 1))
    return entries


def _kill(_: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _error(_: str) -> None:
    raise Injected("a failpoint fired")


def _no_space(_: str) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _sleep(seconds: str) -> None:
    time.sleep(float(seconds))


_ACTIONS = {"kill": _kill, "error": _error, "enospc": _no_space, "sleep": _sleep}
_entries = _parse(os.environ.get(VARIABLE, ""))
_lock = threading.Lock()


def hit(point: str) -> None:
    """Says that execution is at this point."""
    if _entries:
        _hit(point)


def _hit(point: str) -> None:
    entry = _entries.get(point)
    if entry is None:
        return
    with _lock:
        entry.hits += 1
        due = entry.hits == entry.at and _first(point)
    if due:
        _ACTIONS[entry.action](entry.argument)


def _first(point: str) -> bool:
    """Whether no other process fired this entry before."""
    folder = os.environ.get(ONCE)
    if not folder:
        return True
    try:
        (Path(folder) / point).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def environment() -> dict[str, str]:
    """What a child needs to know; empty outside tests."""
    return {name: os.environ[name] for name in (VARIABLE, ONCE) if name in os.environ}


def watch_engine(engine: Any) -> Any:
    """The engine itself, or in a test one that passes the points ``generate`` and ``filter``."""
    return _Watched(engine) if _entries else engine


class _Watched:
    """An `Engine` with failpoints around each completion."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.model = engine.model

    def stream(self, requests: Iterable[Any]) -> Iterator[Any]:
        """As the engine's."""

        asked = noted(requests, lambda _: hit("generate.before"))
        for completion in self._engine.stream(asked):
            hit("generate.after")
            hit("filter.before")
            yield completion


def watch_checkpoints() -> None:
    """In a test, puts the checkpoint points into the trainer, which knows nothing of this file."""
    if not _entries:
        return
    from ptalign.training import checkpoint

    write, manifest = checkpoint._write_tensors, checkpoint._write_manifest
    publish = checkpoint._publish

    def write_tensors(file: Path, tensors: Any) -> None:
        hit("checkpoint_write.before")
        write(file, tensors)
        hit("checkpoint_write.after")

    def write_manifest(folder: Path) -> None:
        manifest(folder)
        hit("checkpoint_rename.before")

    def published(partial: Path, final: Path) -> None:
        publish(partial, final)
        hit("checkpoint_rename.after")

    checkpoint._write_tensors = write_tensors
    checkpoint._write_manifest = write_manifest
    checkpoint._publish = published
