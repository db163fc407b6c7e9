"""A signed list of an adapter's files: one changed byte, and it is neither served nor trained on.

Ed25519 over the canonical JSON of name and files. The key is derived from the database's MAC key,
which the operator's key wraps; `public_key` goes into the manifest and is shown by
``ptalign-server keys signer``, so that others can check a downloaded adapter.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ptalign.errors import DataDamaged
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_server.adapter_files import check_folder
from ptalign_server.vault import Vault

PART = "manifest.json"


class Signer:
    """Signs and checks manifests.

    Args:
        vault: Holds the key that ours is derived from.
    """

    def __init__(self, vault: Vault) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(
            bytes.fromhex(vault.mac("manifest", "ed25519"))
        )

    @property
    def public_key(self) -> str:
        """32 bytes, base64."""
        raw = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return base64.b64encode(raw).decode()

    def sign(self, name: str, files: Iterable[res.FileInfo]) -> bytes:
        """The manifest of the adapter `name`."""
        listed = {f.part: {"size": f.size, "sha256": f.sha256} for f in files}
        body: dict[str, Any] = {"version": 1, "name": name, "files": listed}
        return json.dumps(self._signed(body), indent=1, sort_keys=True).encode()

    def check(self, folder: Path, name: str) -> None:
        """Checks a folder before anything reads the adapter in it.

        Raises:
            DataDamaged: The manifest is missing, is not ours, or names other bytes.
            Unsupported, NotReady: See `adapter_files.check_folder`.
        """
        check_folder(folder)
        files = self._files(folder / PART, name)
        here = {file.name for file in folder.iterdir()} - {PART}
        if here != files.keys():
            raise DataDamaged(f"{name}: its files are not those of its manifest")
        for part, known in files.items():
            with (folder / part).open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if digest != known["sha256"]:
                raise DataDamaged(f"{name}: {part} was changed. Restore it from a backup.")

    def _files(self, manifest: Path, name: str) -> dict[str, dict[str, Any]]:
        try:
            content = json.loads(manifest.read_bytes())
            body = {key: content[key] for key in ("version", "name", "files")}
            signed: dict[str, dict[str, Any]] = body["files"]
            if body["name"] != name or content != self._signed(body):
                raise ValueError("not what we signed for this adapter")
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise DataDamaged(
                f"{name}: {PART} is missing, damaged or not signed by this server. Restore the "
                "adapter from a backup."
            ) from None
        return signed

    def _signed(self, body: dict[str, Any]) -> dict[str, Any]:
        """The body with key and signature; Ed25519 signs the same body the same way each time."""
        signature = base64.b64encode(self._key.sign(_canonical(body))).decode()
        return body | {"key": self.public_key, "signature": signature}


def _canonical(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
