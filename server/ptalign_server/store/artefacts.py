"""Files of adapters and evaluations, in a folder or an object store."""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from ptalign.disk import sync
from ptalign.errors import InvalidInput, NotReady
from ptalign_proto.v1 import resources_pb2
from ptalign_server.errors import NotFound

PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
CHUNK = 256 * 1024
UNUSED_SECONDS = 3600.0
"""After which an adapter that no operation works with may leave the cache."""


class Artefacts:
    """Puts and gets the files of a resource.

    Args:
        url: ``s3://``, ``gs://`` or ``az://``; empty: the folder `root`.
        cache: Where files of an object store are brought for programs that need a folder.
        cache_bytes: What `trim` leaves of them.

    Raises:
        InvalidInput: There can be no object store at this URL.
    """

    def __init__(self, root: Path, url: str, cache: Path, cache_bytes: float = math.inf) -> None:
        self._root = None if url else root
        self._cache = cache
        self._cache_bytes = cache_bytes
        self._bringing: dict[str, threading.Lock] = {}
        if url:
            self._store = _at(url)
        else:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._store = LocalStore(prefix=root)

    def put(self, name: str, part: str, data: bytes | Path) -> resources_pb2.FileInfo:
        """Stores one file; putting it again replaces it. It would outlive a power cut.

        Raises:
            NotReady: Disk or object store does not take it now.
        """
        with _may_pass(f"the files of {name} cannot be stored now"):
            obstore.put(self._store, self._key(name, part), data)
            if self._root is not None:  # obstore leaves it to the system when
                file = self._root / name / part
                for path in (file, *file.parents[: len(Path(name).parts) + 1]):
                    sync(path)
        if isinstance(data, Path):
            with data.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            size = data.stat().st_size
        else:
            digest, size = hashlib.sha256(data).hexdigest(), len(data)
        return resources_pb2.FileInfo(part=part, size=size, sha256=digest)

    def chunks(self, name: str, part: str, offset: int) -> Iterator[bytes]:
        """The file's bytes from `offset` on, in pieces.

        Raises:
            NotFound: There is no such file.
            NotReady: Disk or object store does not give it now.
        """
        key, away = self._key(name, part), f"the files of {name} cannot be read now"
        with _may_pass(away):
            try:
                size = int(obstore.head(self._store, key)["size"])
            except FileNotFoundError:
                raise NotFound from None
        while offset < size:
            end = min(offset + CHUNK, size)
            with _may_pass(away):
                piece = bytes(obstore.get_range(self._store, key, start=offset, end=end))
            yield piece
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
            os.utime(target)  # `trim` goes by it
            for part in parts:
                if not (target / part).exists():
                    partial = target / f"{part}.partial"
                    with partial.open("wb") as stream:
                        stream.writelines(self.chunks(name, part, 0))
                    partial.replace(target / part)
        return target

    def drop(self, name: str) -> bool:
        """Removes what was brought here of a resource; whether `folder` can bring it again."""
        if self._root is not None:
            return False
        with self._bringing.setdefault(name, threading.Lock()):
            shutil.rmtree(self._cache / name, ignore_errors=True)
        return True

    def at_hand(self, name: str, parts: Sequence[str]) -> bool:
        """Whether `folder` has nothing to bring."""
        return self._root is not None or all((self._cache / name / part).exists() for part in parts)

    def trim(self, in_use: Callable[[], Container[str]]) -> None:
        """Removes what was brought here, the longest unused first, until the rest fits.

        What was used in the last hour stays: nobody knows of a chat under way.

        Args:
            in_use: Names that stay in any case; asked only when there is too much.
        """
        sizes = {folder: _size(folder) for folder in self._cache.glob("*/*")}
        over = sum(sizes.values()) - self._cache_bytes
        if over <= 0:
            return
        kept, now = in_use(), time.time()
        for folder in sorted(sizes, key=_used):
            if over <= 0 or now - _used(folder) < UNUSED_SECONDS:
                return
            name = folder.relative_to(self._cache).as_posix()
            if name in kept:
                continue
            # Whoever wants it next touches it under this lock, and brings it again after.
            with self._bringing.setdefault(name, threading.Lock()):
                if now - _used(folder) > UNUSED_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)
                    over -= sizes[folder]

    def delete(self, name: str, parts: Sequence[str]) -> None:
        """Removes the files of a resource, and what was brought here of them.

        Raises:
            NotReady: The object store does not take it now.
        """
        here = (self._root or self._cache) / name
        if self._root is None:
            for part in parts:
                kept = f"the object store keeps the files of {name}"
                with _may_pass(kept), suppress(FileNotFoundError):
                    obstore.delete(self._store, self._key(name, part))
        if here.exists():
            shutil.rmtree(here)

    def discard(self, name: str) -> None:
        """`delete` of whatever was put under a name that no resource bears.

        Raises:
            NotReady: The object store does not take it now.
        """
        parts: list[str] = []
        if self._root is None:
            with _may_pass(f"the object store does not list the files of {name}"):
                listed = obstore.list(self._store, prefix=name).collect()
            parts = [str(file["path"]).rpartition("/")[2] for file in listed]
        self.delete(name, parts)

    def _key(self, name: str, part: str) -> str:
        if not PART.fullmatch(part):
            raise NotFound
        return f"{name}/{part}"


@contextmanager
def _may_pass(what: str) -> Iterator[None]:
    """Says in ptalign's terms what a store answers; its own words may quote a signed address."""
    try:
        yield
    except (BaseError, OSError) as error:
        raise NotReady(f"{what}: {type(error).__name__}") from None


def _at(url: str) -> ObjectStore:
    try:
        return from_url(url)
    except (BaseError, OSError, ValueError):  # its words may quote a signed address
        raise InvalidInput(
            "PTALIGN_ARTEFACTS",
            "is no URL of an object store",
            "Write s3://BUCKET, gs://BUCKET or az://CONTAINER, with a folder behind it if you "
            "like, or unset it for a folder in the state folder.",
        ) from None


def _used(folder: Path) -> float:
    """When it was last wanted; long ago where it is gone."""
    with suppress(FileNotFoundError):
        return folder.stat().st_mtime
    return 0.0


def _size(folder: Path) -> int:
    total = 0
    with suppress(FileNotFoundError):  # removed, or brought, at this moment
        for file in folder.iterdir():
            total += file.stat().st_size
    return total
