"""AES-256-GCM sealing. Associated data binds each ciphertext to its set and its place."""

from __future__ import annotations

import hmac
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ptalign.errors import DataDamaged
from ptalign_server.vault.keyfile import KEY_BYTES, KeyFile

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
    """Wraps and unwraps set keys, and makes the MACs of database rows."""

    def __init__(self, keyfile: KeyFile) -> None:
        self.keyfile = keyfile
        self._mac_key = b""

    def fresh_key(self, set_id: str) -> tuple[SetKey, bytes]:
        """A new key for a set, and its wrapped form to store."""
        key = os.urandom(KEY_BYTES)
        return SetKey(set_id, key), self._wrap(set_id, key)

    def unwrap(self, set_id: str, wrapped: bytes) -> SetKey:
        """The set's key.

        Raises:
            DataDamaged: The wrapped key was changed or belongs to another set or key file.
        """
        return SetKey(set_id, self._unwrap(set_id, wrapped))

    def rewrap(self, set_id: str, wrapped: bytes) -> bytes:
        """The same key under the operator's current key."""
        return self._wrap(set_id, self._unwrap(set_id, wrapped))

    def is_current(self, wrapped: bytes) -> bool:
        """Whether the operator's current key wraps it, as its file says now."""
        self.keyfile.refresh()
        return wrapped.split(b":", 1)[0].decode("ascii", "replace") == self.keyfile.current[0]

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

    def _wrap(self, set_id: str, key: bytes) -> bytes:
        self.keyfile.refresh()
        key_id, operator_key = self.keyfile.current
        return key_id.encode() + b":" + SetKey(set_id, operator_key).seal("key", key)

    def _unwrap(self, set_id: str, wrapped: bytes) -> bytes:
        head, _, blob = wrapped.partition(b":")
        key_id = head.decode("ascii", "replace")
        if key_id not in self.keyfile.keys:
            self.keyfile.reload()
        if key_id not in self.keyfile.keys:
            raise DataDamaged(
                f"the key of set {set_id} is wrapped by an operator key that {self.keyfile.path} "
                "does not hold. Restore that file from its backup."
            )
        return SetKey(set_id, self.keyfile.keys[key_id]).open("key", blob)
