"""Child processes: started in a session of their own, never outliving this process.

`spawn` puts a shepherd (see `ptalign_server.shepherd`) between us and the command. `reap` clears
what an earlier run left when even its shepherds were killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from ptalign_server import shepherd
from ptalign_server.redact import LogTail

KEPT_VARIABLES = frozenset(
    {"PATH", "HOME", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "VIRTUAL_ENV"}
    | {"LD_LIBRARY_PATH", "LD_PRELOAD", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "TORCH_HOME"}
    | {"PTALIGN_CACHE", "PTALIGN_EVAL_DATA"}
    | {"CUDA_HOME", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"}
)
"""Variables a child inherits. Others stay here: keys and tokens live in our environment."""


def clean_environment(extra: Mapping[str, str] = {}) -> dict[str, str]:
    """Environment of a child: the kept variables and `extra`."""
    return {k: v for k, v in os.environ.items() if k in KEPT_VARIABLES} | dict(extra)


class Child:
    """A running command. Made by `spawn`."""

    def __init__(
        self,
        name: str,
        process: subprocess.Popen[bytes],
        pid: int,
        record: Path,
        output: IO[bytes],
        log: LogTail,
    ) -> None:
        self.name = name
        self.pid = pid
        """Pid of the command, which leads its session."""
        self.log = log
        self._process = process
        self._record = record
        self._output = output
        self._drain = threading.Thread(target=self._read_log, name=f"log-{name}", daemon=True)
        self._drain.start()

    @property
    def stdin(self) -> IO[bytes]:
        """The command's standard input, when spawned with `pipes`."""
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def stdout(self) -> IO[bytes]:
        """The command's standard output, when spawned with `pipes`."""
        assert self._process.stdout is not None
        return self._process.stdout

    @property
    def status(self) -> int | None:
        """None while it runs; then its exit status, 128 + signal when it was killed."""
        status = self._process.poll()
        if status is not None and status < 0:  # the shepherd itself was killed
            return 128 - status
        return status

    @property
    def running(self) -> bool:
        return self.status is None

    def terminate(self) -> None:
        """Asks the command to end (SIGTERM)."""
        self._signal(signal.SIGTERM)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits for the end of the command and of all it started; False on timeout."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        if self._record.exists():  # the shepherd was killed before it could clear the session
            clear_record(self._record)
        self._drain.join(timeout=1)
        return True

    def kill(self) -> None:
        """Ends the command and all it started, now."""
        self._signal(signal.SIGUSR1)
        if not self.wait(shepherd.KERNEL_SECONDS + 5):
            self._process.kill()
            self.wait()

    def stop(self, grace_s: float) -> None:
        """SIGTERM, then SIGKILL after `grace_s` seconds."""
        self.terminate()
        if not self.wait(grace_s):
            self.kill()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def _read_log(self) -> None:
        with self._output as stream, contextlib.suppress(ValueError, OSError):
            for line in iter(lambda: stream.readline(16_384), b""):
                self.log.add(line.decode("utf-8", "replace").strip("\r\n"))


def spawn(
    command: Sequence[str],
    *,
    name: str,
    records: Path,
    env: Mapping[str, str],
    log: LogTail,
    pipes: bool = False,
) -> Child:
    """Starts `command` under a shepherd, in a private 0700 folder that goes when it ends.

    The folder is the command's working directory and its TMPDIR; a ``{folder}`` in a value of
    `env` becomes its path. Standard error, and without `pipes` standard output, goes to `log`.

    Args:
        command: Program and arguments. Other users can read them: no text, no secrets.
        name: File-safe name, for threads and pid files.
        records: Folder of the pid files that `reap` reads.
        env: Whole environment of the command (see `clean_environment`).
        log: Where its output goes, redacted.
        pipes: Whether to keep pipes to its standard input and output.

    Raises:
        OSError: The command could not be started.
    """
    records.mkdir(parents=True, exist_ok=True, mode=0o700)
    record = records / f"{name}.{os.getpid()}.{secrets.token_hex(4)}.json"
    folder = tempfile.mkdtemp(prefix="ptalign-")  # short: socket paths end at 107 characters
    report_r, report_w = os.pipe()
    output_r, output_w = os.pipe()
    guard = [sys.executable, "-I", "-S", shepherd.__file__, str(os.getpid()), str(report_w)]
    filled = {k: v.replace("{folder}", folder) for k, v in env.items()} | {"TMPDIR": folder}
    try:
        process = subprocess.Popen(
            [*guard, str(record.absolute()), "--", *command],
            stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipes else output_w,
            stderr=output_w,
            env=filled,
            cwd=folder,
            pass_fds=(report_w,),
            start_new_session=True,
        )
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(report_r)
        os.close(output_r)
        raise
    finally:
        os.close(report_w)
        os.close(output_w)
    with os.fdopen(report_r) as report:
        pid = report.readline().strip()
    output = os.fdopen(output_r, "rb")
    if not pid:
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)
        with output:
            raise OSError(f"{name} did not start: {output.read()[-400:].decode(errors='replace')}")
    return Child(name, process, int(pid), record, output, log)


def reap(records: Path) -> int:
    """Clears children of owners that are gone. Call at start, before spawning.

    Returns:
        Number of records cleared.
    """
    if not records.is_dir():
        return 0
    return sum(clear_record(record) for record in sorted(records.glob("*.json")))


def clear_record(record: Path) -> bool:
    """Kills what a pid file names, if it is still that process and its owner is not alive.

    A pid alone may have been given to a stranger since, so the leader's start time must match;
    where the leader is gone, a member must stand in the private folder of the record.

    Returns:
        Whether the record was cleared; False where its owner or its shepherd still does that.
    """
    try:
        content = json.loads(record.read_text())
        owner, guard, child = content["owner"], content["shepherd"], content["child"]
        folder = Path(content["folder"])
    except (OSError, ValueError, KeyError):
        record.unlink(missing_ok=True)
        return False
    if content["boot"] == shepherd.boot_id():
        if _alive(owner) and owner[0] != os.getpid():
            return False
        if _alive(guard):
            return False
        if _is_ours(child, folder) and not shepherd.clear(child[0]):
            return False
    if folder.name.startswith("ptalign-"):
        shutil.rmtree(folder, ignore_errors=True)
    record.unlink(missing_ok=True)
    return True


def _alive(process: Sequence[int]) -> bool:
    return process[1] > 0 and shepherd.start_ticks(process[0]) == process[1]


def _is_ours(child: Sequence[int], folder: Path) -> bool:
    leader = shepherd.start_ticks(child[0])
    if leader:
        return leader == child[1]
    return any(_stands_in(pid, folder) for pid in shepherd.members(child[0]))


def _stands_in(pid: int, folder: Path) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/cwd").removesuffix(" (deleted)") == str(folder)
    except OSError:
        return False
