"""Files and folders: what a power cut does not take, and when something changed."""

from __future__ import annotations

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Returns when a file, or what is named in a folder, would outlive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def put_in_place(partial: Path, path: Path) -> None:
    """Puts a written file in the place of another; returns when that outlives a power cut."""
    sync(partial)
    partial.replace(path)
    sync(path.parent)


def changed_at(path: Path) -> int:
    """When a file last changed, nanoseconds since the epoch; 0 where it cannot be seen.

    It may be gone, or lie in a closed folder: reading it says which.
    """
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
