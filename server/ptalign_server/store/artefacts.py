"""Files of adapters and evaluations, in a folder or an object store."""

from __future__ import annotations

import hashlib
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, from_url

from ptalign.errors import NotReady
from ptalign_proto.v1 import resources_pb2
from ptalign_server.errors import NotFound

PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
CHUNK = 256 * 1024


class Artefacts:
    """Puts and gets the files of a resource.

    Args:
        url: ``s3://``, ``gs://`` or ``az://``; empty: the folder `root`.
        cache: Where files of an object store are brought for programs that need a folder.
    """

    def __init__(self, root: Path, url: str, cache: Path) -> None:
        self._root = None if url else root
        self._cache = cache
        self._bringing: dict[str, threading.Lock] = {}
        if url:
            self._store = from_url(url)
        else:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._store = LocalStore(prefix=root)

    def put(self, name: str, part: str, data: bytes | Path) -> resources_pb2.FileInfo:
        """Stores one file; putting it again replaces it."""
        obstore.put(self._store, self._key(name, part), data)
        if isinstance(data, Path):
            with data.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            size = data.stat().st_size
        else:
            digest, size = hashlib.sha256(data).hexdigest(), len(data)
        return resources_pb2.FileInfo(part=part, size=size, sha256=digest)

    def chunks(self, name: str, part: str, offset: int) -> Iterator[bytes]:
        """The file's bytes from `offset` on, in pieces."""
        key = self._key(name, part)
        try:
            size = int(obstore.head(self._store, key)["size"])
        except FileNotFoundError:
            raise NotFound from None
        while offset < size:
            end = min(offset + CHUNK, size)
            yield bytes(obstore.get_range(self._store, key, start=offset, end=end))
            offset = end

    def folder(self, name: str, parts: list[str]) -> Path:
        """A local folder with the files of a resource."""
        if self._root is not None:
            for left in (self._root / name).glob("*#*"):  # a put that was killed
                left.unlink(missing_ok=True)
            return self._root / name
        target = self._cache / name
        # Two operations may want one adapter at a time, and each would write the other's file.
        with self._bringing.setdefault(name, threading.Lock()):
            target.mkdir(mode=0o700, parents=True, exist_ok=True)
            for part in parts:
                if not (target / part).exists():
                    partial = target / f"{part}.partial"
                    with partial.open("wb") as stream:
                        stream.writelines(self.chunks(name, part, 0))
                    partial.replace(target / part)
        return target

    def delete(self, name: str, parts: Sequence[str]) -> None:
        """Removes the files of a resource, and what was brought here of them.

        Raises:
            NotReady: The object store does not take it now.
        """
        here = (self._root or self._cache) / name
        if self._root is None:
            try:
                for part in parts:
                    with suppress(FileNotFoundError):
                        obstore.delete(self._store, self._key(name, part))
            except (BaseError, OSError) as error:  # its words may quote a signed address
                why = type(error).__name__
                raise NotReady(f"the object store keeps the files of {name}: {why}") from None
        if here.exists():
            shutil.rmtree(here)

    def _key(self, name: str, part: str) -> str:
        if not PART.fullmatch(part):
            raise NotFound
        return f"{name}/{part}"
