"""Keeps one command, and everything it starts, from outliving its owner.

Run by path, `python -I -S shepherd.py ...`: standard library only, 10 MB and 30 ms. It stands
between the owner and the command because PR_SET_PDEATHSIG alone is not enough: the signal fires
when the *thread* that forked ends, and it reaches the command but none of the command's own
children (vLLM's EngineCore and Worker live on). The shepherd watches the owner's pidfd, which
speaks for the whole process, is single-threaded itself, and clears the command's session.

SIGTERM to the shepherd is handed to the command; SIGUSR1 clears the session at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
SHM_PREFIXES = ("psm_", "sem.mp-", "sem.loky-", "torch_", "nccl-")
"""Shared memory that Python, torch and vLLM leave behind when they are killed."""
KERNEL_SECONDS = 60.0
"""For the kernel to end what was killed: it frees gigabytes slowly on a busy machine."""


def prctl(option: int, value: int) -> None:
    """Calls prctl(2).

    Raises:
        OSError: The kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat after the command name (state, ppid, pgrp, session, ...)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()


def start_ticks(pid: int) -> int:
    """Clock ticks from boot to the start of the process; 0 when it is gone.

    With the pid this names one process: the kernel reuses pids, not start times.
    """
    fields = stat(pid)
    return int(fields[19]) if fields and fields[0] != "Z" else 0


def boot_id() -> str:
    """Changes at every boot of the machine, so that old records are recognised."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def members(session: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for entry in os.listdir("/proc"):
        fields = stat(int(entry)) if entry.isdigit() else None
        if fields and fields[0] not in "ZX" and int(fields[3]) == session:
            found.append(int(entry))
    return found


def orphans(parent: int) -> list[int]:
    """Living direct children of `parent`: a subreaper inherits those that left a session."""
    pids = (int(e) for e in os.listdir("/proc") if e.isdigit())
    return [p for p in pids if (f := stat(p)) and f[0] not in "ZX" and int(f[1]) == parent]


def shared_memory(pids: Iterable[int]) -> set[str]:
    """Files in /dev/shm that these processes have mapped."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                path = line.partition("/dev/shm/")[2]
                if path.startswith(SHM_PREFIXES) and not path.endswith(" (deleted)"):
                    found.add("/dev/shm/" + path)
    return found


def clear(session: int, *, adopted: bool = False) -> bool:
    """SIGKILLs a session, waits until it is empty, removes the shared memory it leaves.

    Args:
        session: Session id (the pid of its leader).
        adopted: Also kill children of this process: those that left the session.

    Returns:
        Whether the session is empty.
    """
    shm: set[str] = set()
    deadline = time.monotonic() + KERNEL_SECONDS
    while pids := members(session) + (orphans(os.getpid()) if adopted else []):
        shm |= shared_memory(pids)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return False
        _reap()
        time.sleep(0.02)
    for path in shm:
        with contextlib.suppress(OSError):
            os.unlink(path)
    return True


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _start(command: list[str]) -> int:
    """Forks the command into a session of its own; it dies with this process."""
    shepherd = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == shepherd:
            os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"cannot start {command[0]}: {error.strerror}\n".encode())
    os._exit(127)


def _record(path: Path, owner: int, child: int) -> None:
    """Writes what a later start needs to find us if we are killed too."""
    content = {
        "boot": boot_id(),
        "owner": [owner, start_ticks(owner)],
        "shepherd": [os.getpid(), start_ticks(os.getpid())],
        "child": [child, start_ticks(child)],
        "folder": os.getcwd(),
    }
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content))
    partial.rename(path)


def _watch(owner_fd: int, child: int, wake: int) -> int | None:
    """Waits for the owner's death (None), SIGUSR1 (None) or the child's (its wait status)."""
    child_fd = os.pidfd_open(child)
    poll = select.poll()
    for fd in (owner_fd, child_fd, wake):
        poll.register(fd, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if child_fd in ready:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            return os.waitpid(child, 0)[1]
        if owner_fd in ready:
            return None
        if wake in ready and signal.SIGUSR1 in os.read(wake, 64):
            return None


def _listen(child: int) -> int:
    """Hands SIGTERM on to the child; returns a descriptor that reports every signal's number."""
    wake_r, wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_w)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return wake_r


def main(argv: list[str]) -> int:
    """`OWNER_PID REPORT_FD RECORD_FILE -- COMMAND...`, in the command's private folder.

    Returns:
        The command's exit status, 128 + signal when it was killed.
    """
    owner, report, record, command = int(argv[0]), int(argv[1]), Path(argv[2]), argv[4:]
    owner_fd = os.pidfd_open(owner)
    if os.getppid() != owner:  # the owner died before the pidfd was open
        return 1
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file holds text in clear
    os.set_inheritable(report, False)
    child = _start(command)
    wake = _listen(child)
    _record(record, owner, child)
    os.write(report, f"{child}\n".encode())
    os.close(report)
    for fd in (0, 1, 2):  # the command holds them; the owner must see their end with it
        os.dup2(os.open(os.devnull, os.O_RDWR), fd)
    status = _watch(owner_fd, child, wake)
    empty = clear(child, adopted=True)
    shutil.rmtree(os.getcwd(), ignore_errors=True)
    if empty:
        record.unlink(missing_ok=True)
    if status is None or os.WIFSIGNALED(status):
        return 128 + (signal.SIGKILL if status is None else os.WTERMSIG(status))
    return os.WEXITSTATUS(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
