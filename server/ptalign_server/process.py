"""Processes that never outlive their parent."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import time
from pathlib import Path
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


def die_with_parent(parent: int) -> None:
    """Asks the kernel for SIGKILL when the parent dies; ends at once when it is dead already."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
