"""The operator's keys: where they come from, and how they are written."""

from __future__ import annotations

import base64
import re
from abc import ABC, abstractmethod

from ptalign.errors import NotReady

KEY_BYTES = 32
_ID = re.compile(r"[!-9;-~]+")
"""Printable ASCII. A wrapped key begins with ``ID:``, so that a colon would cut an id short."""


class KeysAway(NotReady):
    """The source of the operator's keys cannot be read now, and a key is asked for that is new."""


class OperatorKeys(ABC):
    """Keys that wrap the sets' keys, the current one first.

    Older ones stay until everything is wrapped anew. Those that the source no longer holds stay
    known to this process: a row that was read before a rotation ended still needs them.

    Attributes:
        keys: Key by id. Replaced as a whole, never changed in place: other threads read it.
    """

    keys: dict[str, bytes]

    @property
    def current(self) -> tuple[str, bytes]:
        """Id and bytes of the key that the source puts first."""
        return next(iter(self.keys.items()))

    @property
    @abstractmethod
    def lacking(self) -> str:
        """End of the sentence about a key that the source does not hold, with the mend."""

    @abstractmethod
    def reload(self) -> None:
        """Reads the source again, now.

        Raises:
            KeysAway: It cannot be read; what was known stays known.
            DataDamaged: The key file is not one.
        """

    @abstractmethod
    def refresh(self) -> None:
        """Makes sure that a change of the source is noticed soon; fast enough for every wrap."""

    def _learn(self, keys: dict[str, bytes]) -> None:
        self.keys = {**keys, **{i: key for i, key in self.keys.items() if i not in keys}}


def parse_keys(text: str) -> dict[str, bytes]:
    """Keys by id, in order, from ``id base64`` lines; empty when one line is anything else.

    No word of the text goes into an error: it may be a key with a letter too many.
    """
    keys: dict[str, bytes] = {}
    for line in text.splitlines():
        if not line.strip():
            continue
        key_id, key = _parse(line)
        if len(key) != KEY_BYTES or keys.get(key_id, key) != key:
            return {}
        keys[key_id] = key
    return keys


def format_key(key_id: str, key: bytes) -> str:
    """The line of one key."""
    return f"{key_id} {base64.b64encode(key).decode()}\n"


def _parse(line: str) -> tuple[str, bytes]:
    try:
        key_id, text = line.split()
        key = base64.b64decode(text, validate=True)
    except ValueError:
        return "", b""
    return (key_id, key) if _ID.fullmatch(key_id) else ("", b"")
