"""File locks: one process at a time per state folder, and per change to a folder's files."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ptalign.errors import NotReady


def hold_lock(path: Path, wait_s: float) -> IO[str]:
    """Takes an exclusive file lock, released when this process ends.

    Args:
        wait_s: How long, in seconds, the last holder may take to die.

    Raises:
        NotReady: Another process holds it.
    """
    end = time.monotonic() + wait_s
    file = path.open("a")
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() > end:
                file.close()
                raise NotReady(
                    f"another server uses the state folder ({path}). Stop it, or set "
                    "PTALIGN_STATE to another folder."
                ) from None
            time.sleep(0.05)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Locks a folder, so that concurrent read-change-replace cycles lose no update."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # NFS locks no folder
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
