"""Processes that never outlive their parent."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO

from ptalign.errors import NotReady

PR_SET_PDEATHSIG = 1


def hold(path: Path, wait_s: float) -> IO[str]:
    """Takes a file lock that ends with this process.

    Args:
        wait_s: How long the last holder may take to die.

    Raises:
        NotReady: Another process has it.
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
def alone(folder: Path) -> Iterator[None]:
    """One process at a time is in such a block of a folder: for files that are replaced whole, so
    that of two changes to what was read none is lost."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # NFS locks no folder
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def die_with_parent(parent: int) -> None:
    """Asks the kernel for SIGKILL when the parent dies; ends at once when it is dead already."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def refuse_unpickling() -> None:
    """From here on nothing in this process unpickles a class or function, for good.

    A pickle runs what it names. Nothing of ours is one; the exception is the model file that a
    library ships in its own package (`UNPICKLES`), whose bytes the lock files pin by hash.
    """
    sys.addaudithook(_audit)


UNPICKLES = ("/profanity_check/",)
"""Packages that load a pickle of their own at import."""


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if event != "pickle.find_class":
        return
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if any(package in frame.f_code.co_filename for package in UNPICKLES):
            return
        frame = frame.f_back
    raise RuntimeError(f"refused to unpickle {arguments[0]}.{arguments[1]}")
