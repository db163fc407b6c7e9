"""The operator's key file: one ``id base64`` per line, the current key first."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from ptalign.disk import sync
from ptalign.errors import DataDamaged, NotReady
from ptalign_server.vault.operator import KEY_BYTES, KeysAway, OperatorKeys, format_key, parse_keys


class KeyFile(OperatorKeys):
    """Operator's keys from a file that only this user can read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys = {}
        self._stamp: tuple[int, ...] = ()
        self.reload()

    @classmethod
    def create(cls, path: Path) -> KeyFile:
        """Makes a key file with one fresh key, readable by this user only.

        Raises:
            NotReady: There is one already, or none can be made; a key is never overwritten.
        """
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write_new(path, format_key(_fresh_id(), secrets.token_bytes(KEY_BYTES)))
            sync(path.parent)  # what it wraps outlives a power cut, and so must the key
        except OSError as error:
            if os.path.exists(path):
                raise NotReady(
                    f"key file {path} is there already, and no key is ever overwritten. Go on with "
                    "it, or set PTALIGN_KEY_FILE to where a new one is to be."
                ) from None
            raise NotReady(
                f"key file {path} cannot be made: {error.strerror}. Set PTALIGN_KEY_FILE to a file "
                "that this user may make, or correct what is in the way."
            ) from None
        return cls(path)

    @property
    def lacking(self) -> str:
        return f"{self.path} does not hold. Restore that file from its backup."

    def reload(self) -> None:
        """Reads the file again.

        Raises:
            KeysAway: The file is missing, or others can read it.
            DataDamaged: The file is not a key file.
        """
        stamp = self._seen()
        self._learn(self._read())
        self._stamp = stamp

    def _read(self) -> dict[str, bytes]:
        """The keys that the file holds now."""
        try:
            mode = stat.S_IMODE(self.path.stat().st_mode)
            if mode & 0o077:
                raise KeysAway(
                    f"key file {self.path} has mode {mode:04o}. Run: chmod 600 {self.path}"
                )
            text = self.path.read_text()
        except UnicodeDecodeError:
            text = ""
        except (FileNotFoundError, NotADirectoryError):
            raise KeysAway(
                f"key file {self.path} is missing. Restore it from its backup."
            ) from None
        except OSError as error:
            raise KeysAway(
                f"key file {self.path} cannot be read: {error.strerror}. It must belong to the "
                "user that the server runs as."
            ) from None
        keys = parse_keys(text)
        if not keys:
            raise DataDamaged(
                f"key file {self.path} is damaged or holds no key. Restore it from its backup."
            )
        return keys

    def refresh(self) -> None:
        """Reads the file again if it changed: a rotation may have put another key first.

        Raises:
            KeysAway, DataDamaged: See `reload`.
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
        self.refresh()  # another rotation may have ended since: its key must stay in the file
        key_id = _fresh_id()
        self._replace({key_id: secrets.token_bytes(KEY_BYTES), **self.keys})
        return key_id

    def keep_current(self) -> None:
        """Drops the keys before the current one: the second half of a rotation.

        What another rotation has put into the file since wraps everything by now, or is about to.
        """
        key_id, _ = self.current
        keys = self._read()
        if key_id not in keys:
            self.reload()  # that one has dropped ours
            return
        order = list(keys)
        self._replace({each: keys[each] for each in order[: order.index(key_id) + 1]})

    def _replace(self, keys: dict[str, bytes]) -> None:
        partial = self.path.with_name(self.path.name + ".new")
        try:
            partial.unlink(missing_ok=True)
            _write_new(partial, "".join(format_key(*item) for item in keys.items()))
            partial.replace(self.path)
            sync(self.path.parent)
        except OSError as error:
            raise NotReady(
                f"key file {self.path} cannot be changed: {error.strerror}. Of one that is mounted "
                "(PTALIGN_KEY_FILE) put the new key first where it comes from, restart, and run "
                "`ptalign-server keys rewrap`."
            ) from None
        self.keys, self._stamp = keys, self._seen()


def _fresh_id() -> str:
    return secrets.token_hex(4)


def _write_new(path: Path, text: str) -> None:
    """Makes a file that was not there; one that cannot be written whole is not left behind."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
