"""AES-256-GCM sealing. Associated data binds each ciphertext to its set and its place."""

from __future__ import annotations

import hmac
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ptalign.errors import DataDamaged, Unsupported
from ptalign_server.vault.keyfile import KeyFile
from ptalign_server.vault.operator import KEY_BYTES, OperatorKeys

NONCE_BYTES = 12


class SetKey:
    """The key of one set, unwrapped, in memory only."""

    __slots__ = ("_cipher", "set_id")

    def __init__(self, set_id: str, key: bytes) -> None:
        self.set_id = set_id
        self._cipher = AESGCM(key)

    def seal(self, place: str, data: bytes) -> bytes:
        """Nonce and ciphertext of `data`, readable only at `place` of this set."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, data, self._bind(place))

    def open(self, place: str, blob: bytes) -> bytes:
        """What was sealed at `place`.

        Raises:
            DataDamaged: A byte changed, or the ciphertext was moved from another place.
        """
        try:
            return self._cipher.decrypt(blob[:NONCE_BYTES], blob[NONCE_BYTES:], self._bind(place))
        except (InvalidTag, ValueError):
            raise DataDamaged(
                f"set {self.set_id} was changed on disk at {place}. Restore it from a backup."
            ) from None

    def _bind(self, place: str) -> bytes:
        return f"{self.set_id}\x1f{place}".encode()


class Vault:
    """Wraps and unwraps set keys, and makes the MACs of database rows.

    Args:
        operator: The operator's keys, from wherever they come.
    """

    def __init__(self, operator: OperatorKeys) -> None:
        self.operator = operator
        self._mac_key = b""

    @property
    def keyfile(self) -> KeyFile:
        """The operator's keys where they can be changed.

        Raises:
            Unsupported: They come from elsewhere and are changed there.
        """
        if not isinstance(self.operator, KeyFile):
            raise Unsupported("the operator's keys are not in a file: change them at their source.")
        return self.operator

    def fresh_key(self, set_id: str) -> tuple[SetKey, bytes]:
        """A new key for a set, and its wrapped form to store."""
        key = os.urandom(KEY_BYTES)
        return SetKey(set_id, key), self._wrap(set_id, key)

    def unwrap(self, set_id: str, wrapped: bytes) -> SetKey:
        """The set's key.

        Raises:
            DataDamaged: The wrapped key was changed or belongs to another set or operator.
            KeysAway: Its operator's key is not known and the source of keys cannot be read.
        """
        return SetKey(set_id, self._unwrap(set_id, wrapped))

    def rewrap(self, set_id: str, wrapped: bytes, key_id: str) -> bytes:
        """The same key under another of the operator's keys, which must be known."""
        return self._wrap(set_id, self._unwrap(set_id, wrapped), key_id)

    def meet(self, set_id: str, wrapped: bytes) -> str:
        """Id of the operator's key that wraps it; the source is read again if that is not known.

        Raises:
            DataDamaged, KeysAway: See `unwrap`.
        """
        key_id = key_id_of(wrapped)
        if key_id not in self.operator.keys:
            self.operator.reload()
        if key_id not in self.operator.keys:
            raise DataDamaged(
                f"the key of set {set_id} is wrapped by an operator key that "
                f"{self.operator.lacking}"
            )
        return key_id

    def fresh_mac_key(self) -> bytes:
        """A wrapped MAC key to store once per database."""
        return self._wrap("mac", os.urandom(KEY_BYTES))

    def use_mac_key(self, wrapped: bytes) -> None:
        """Makes `mac` ready."""
        self._mac_key = self._unwrap("mac", wrapped)

    def mac(self, *parts: str | bytes | int | float | bool | None) -> str:
        """HMAC-SHA256 over length-prefixed parts, as 64 hex digits."""
        whole = bytearray()
        for part in parts:
            data = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")
            whole += len(data).to_bytes(8, "big")
            whole += data
        return hmac.digest(self._mac_key, whole, "sha256").hex()

    def _wrap(self, set_id: str, key: bytes, key_id: str = "") -> bytes:
        """Wraps under the key that the source puts first, unless another is named."""
        if not key_id:
            self.operator.refresh()
            key_id, _ = self.operator.current
        return key_id.encode() + b":" + SetKey(set_id, self.operator.keys[key_id]).seal("key", key)

    def _unwrap(self, set_id: str, wrapped: bytes) -> bytes:
        key_id = self.meet(set_id, wrapped)
        blob = wrapped.partition(b":")[2]
        return SetKey(set_id, self.operator.keys[key_id]).open("key", blob)


def key_id_of(wrapped: bytes) -> str:
    """Id of the operator's key that wraps a key."""
    return wrapped.partition(b":")[0].decode("ascii", "replace")
