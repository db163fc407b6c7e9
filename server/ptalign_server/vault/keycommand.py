"""The operator's keys from a command: a KMS, a secret store. They stay in memory alone.

What the command prints is in no file, argument, environment, log or error, and neither is what
it writes to standard error: tools put tokens and answers there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import IO

from ptalign.errors import InvalidInput
from ptalign_server.vault.operator import KeysAway, OperatorKeys, parse_keys

log = logging.getLogger("ptalign.server")

SETTING = "PTALIGN_KEY_COMMAND"
TIMEOUT_SECONDS = 10.0
"""Shorter than SQLite's writers wait for each other: it may run inside a transaction."""
FRESH_SECONDS = 60.0
"""Age of the last run from which the next wrap asks for another."""
PAUSE_SECONDS = 5.0
"""After a failure. Callers that wait for one another do not wait for a timeout each."""
MAX_BYTES = 65_536


class KeyCommand(OperatorKeys):
    """Operator's keys as a command prints them, in the format of the key file.

    Args:
        command: Program and arguments, split as a shell does but run without one.

    Raises:
        InvalidInput: It cannot be split.
        KeysAway: It did not print keys.
    """

    def __init__(self, command: str) -> None:
        self._argv = _split(command)
        self.keys = {}
        self._running = threading.Lock()
        self._refreshing = threading.Lock()
        self._began = self._ended = 0.0
        self._failure = ""
        self.reload()

    @property
    def lacking(self) -> str:
        return (
            f"the command of {SETTING} does not print. Have it print that key again, after the "
            "current one."
        )

    def reload(self) -> None:
        """Runs the command. Callers that come meanwhile share the next run.

        Raises:
            KeysAway: It failed, now or less than `PAUSE_SECONDS` ago. Keys stay as they were.
        """
        asked = time.monotonic()
        with self._running:
            paused = bool(self._failure) and time.monotonic() < self._ended + PAUSE_SECONDS
            if self._began < asked and not paused:
                self._run()
            failure = self._failure
        if failure:
            raise KeysAway(
                f"the command of {SETTING} {failure}. Run it by hand as the server's user: it must "
                "print the operator's keys as 'id base64' lines, the current one first, and end "
                "with exit code 0."
            )

    def refresh(self) -> None:
        """Has the command run again in the background when its last run is old.

        Nobody waits: a wrap happens in every accepted call. A key that is wrapped meanwhile under
        a key that was replaced is wrapped anew when it is stored (see `store.keys.Keys.insert`).
        """
        old = time.monotonic() - self._began > FRESH_SECONDS
        if old and self._refreshing.acquire(blocking=False):
            threading.Thread(target=self._refresh, name="key-command", daemon=True).start()

    def _refresh(self) -> None:
        try:
            with contextlib.suppress(KeysAway):  # logged
                self.reload()
        finally:
            self._refreshing.release()

    def _run(self) -> None:
        self._began = time.monotonic()
        try:
            self._take(_output(self._argv))
            self._failure = ""
        except _Failure as error:
            self._failure = str(error)
            if self.keys:
                log.warning("the command of %s %s; known keys stay in use", SETTING, error)
        finally:
            self._ended = time.monotonic()

    def _take(self, printed: bytes) -> None:
        keys = parse_keys(printed.decode("utf-8", "replace"))
        if not keys:
            raise _Failure("printed something else than keys" if printed else "printed nothing")
        if any(self.keys.get(key_id, key) != key for key_id, key in keys.items()):
            raise _Failure("printed another key under a known id: a new key needs an id of its own")
        self._learn(keys)


class _Failure(Exception):
    """What the command did, in words that hold nothing of what it wrote."""


def _split(command: str) -> list[str]:
    try:
        argv = shlex.split(command)
    except ValueError:  # its words quote the command
        argv = []
    if not argv:
        raise InvalidInput(
            SETTING,
            "it is not a command line",
            "Give a program and its arguments, quoted as for a shell.",
        )
    return argv


def _output(argv: Sequence[str]) -> bytes:
    """What a command prints.

    Raises:
        _Failure: It could not be started, failed, took too long or printed too much.
    """
    end = time.monotonic() + TIMEOUT_SECONDS
    try:
        # A session of its own: when time is up, what it started is ended with it.
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise _Failure(f"could not be started ({error.strerror})") from None
    assert process.stdout is not None
    try:
        with process.stdout as pipe:
            printed = _drain(pipe, end)
        code = process.wait(max(0.0, end - time.monotonic()))
    except (TimeoutError, subprocess.TimeoutExpired):
        raise _Failure(f"did not end within {TIMEOUT_SECONDS:g} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code:
        raise _Failure(f"ended with {f'exit code {code}' if code > 0 else f'signal {-code}'}")
    return printed


def _drain(pipe: IO[bytes], end: float) -> bytes:
    """Reads to the end of a pipe.

    Raises:
        TimeoutError: It was not closed in time.
        _Failure: More than `MAX_BYTES` came.
    """
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    found = b""
    while len(found) <= MAX_BYTES:
        left = end - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise TimeoutError
        piece = os.read(pipe.fileno(), MAX_BYTES)
        if not piece:
            return found
        found += piece
    raise _Failure(f"printed more than {MAX_BYTES} bytes")
