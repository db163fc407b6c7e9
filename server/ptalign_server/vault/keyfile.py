"""The operator's key file: one ``id base64`` per line, the current key first."""

from __future__ import annotations

import base64
import os
import secrets
import stat
from pathlib import Path

from ptalign.errors import DataDamaged, NotReady

KEY_BYTES = 32


class KeyFile:
    """Keys that wrap the sets' keys. Older ones stay until everything is wrapped anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys: dict[str, bytes] = {}
        self._stamp: tuple[int, ...] = ()
        self.reload()

    @classmethod
    def create(cls, path: Path) -> KeyFile:
        """Makes a key file with one fresh key, readable by this user only.

        Raises:
            FileExistsError: There is one already; a key is never overwritten.
        """
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_new(path, _line(_fresh_id(), secrets.token_bytes(KEY_BYTES)))
        return cls(path)

    @property
    def current(self) -> tuple[str, bytes]:
        """Id and bytes of the key that wraps new sets."""
        return next(iter(self.keys.items()))

    def reload(self) -> None:
        """Reads the file again. Keys that it no longer holds stay known to this process.

        A row that was read before a rotation ended still needs the key from before it.

        Raises:
            NotReady: The file is missing, or others can read it.
            DataDamaged: The file is not a key file.
        """
        if not self.path.exists():
            raise NotReady(f"key file {self.path} is missing. Restore it from its backup.")
        mode = stat.S_IMODE(self.path.stat().st_mode)
        if mode & 0o077:
            raise NotReady(f"key file {self.path} has mode {mode:04o}. Run: chmod 600 {self.path}")
        stamp = self._seen()
        keys = dict(_parse(line, self.path) for line in self.path.read_text().split("\n") if line)
        if not keys:
            raise DataDamaged(f"key file {self.path} holds no key. Restore it from its backup.")
        self.keys, self._stamp = {**keys, **_without(self.keys, keys)}, stamp

    def refresh(self) -> None:
        """Reads the file again if it changed: a rotation may have put another key first.

        Raises:
            NotReady, DataDamaged: See `reload`.
        """
        if self._seen() != self._stamp:
            self.reload()

    def _seen(self) -> tuple[int, ...]:
        try:
            found = self.path.stat()
        except OSError:
            return self._stamp  # gone for a moment, or for good: the next start says so
        return (found.st_mtime_ns, found.st_size, found.st_ino)

    def add(self) -> str:
        """Puts a fresh key first and returns its id: the first half of a rotation."""
        key_id = _fresh_id()
        self._replace({key_id: secrets.token_bytes(KEY_BYTES), **self.keys})
        return key_id

    def keep_current(self) -> None:
        """Drops all keys but the first: the second half of a rotation."""
        key_id, key = self.current
        self._replace({key_id: key})

    def _replace(self, keys: dict[str, bytes]) -> None:
        partial = self.path.with_name(self.path.name + ".new")
        partial.unlink(missing_ok=True)
        _write_new(partial, "".join(_line(*item) for item in keys.items()))
        partial.replace(self.path)
        self.keys, self._stamp = keys, self._seen()


def _without(keys: dict[str, bytes], known: dict[str, bytes]) -> dict[str, bytes]:
    return {key_id: key for key_id, key in keys.items() if key_id not in known}


def _fresh_id() -> str:
    return secrets.token_hex(4)


def _line(key_id: str, key: bytes) -> str:
    return f"{key_id} {base64.b64encode(key).decode()}\n"


def _parse(line: str, path: Path) -> tuple[str, bytes]:
    try:
        key_id, text = line.split()
        key = base64.b64decode(text, validate=True)
    except ValueError:
        key_id, key = "", b""
    if len(key) != KEY_BYTES:
        raise DataDamaged(f"key file {path} is damaged. Restore it from its backup.")
    return key_id, key


def _write_new(path: Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
