"""What a process gives up for good: outliving its parent, and unpickling."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from types import FrameType

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Has the kernel kill this process when its parent dies; exits at once if it already has."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def refuse_unpickling() -> None:
    """Keeps this process from ever unpickling a class or function again.

    Unpickling runs what the pickle names. None of our files is a pickle; the exception is the
    model file that a library ships in its own package (`UNPICKLES`), whose bytes the lock files
    pin by hash.
    """
    sys.addaudithook(_audit)


UNPICKLES = ("/profanity_check/",)
"""Packages that load a pickle of their own when imported."""


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if event != "pickle.find_class":
        return
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if any(package in frame.f_code.co_filename for package in UNPICKLES):
            return
        frame = frame.f_back
    raise RuntimeError(f"refused to unpickle {arguments[0]}.{arguments[1]}")
