"""Sealed record files: length-prefixed AES-256-GCM frames, one record each.

A frame is ``length u32 | crc32 u32 | id length u8 | id | sealed record``. The checksum covers
length and id, so that a flipped length is seen as damage and never as a torn tail. The sealed
record is bound to the set, the ordinal and the id.
"""

from __future__ import annotations

import json
import os
import struct
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

from ptalign.disk import sync
from ptalign.errors import DataDamaged
from ptalign.nouns import Noun
from ptalign_server import failpoints
from ptalign_server.vault import SetKey

T = TypeVar("T", bound=Noun)
HEAD = struct.Struct(">IIB")
END = "end"
"""Id of the last frame of a whole file: without it, records are missing."""
Kinds = Mapping[str, type[Noun]]


def encode(record: Noun) -> bytes:
    """JSON with the kind and the revealed content."""
    body = record.model_dump(mode="json", context={"reveal": True})
    text = json.dumps({"kind": type(record).__name__, "body": body}, ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def decode(data: bytes, kinds: Kinds) -> Noun:
    """The record; only kinds that the caller lists are made."""
    value: dict[str, Any] = json.loads(data.decode("utf-8", "surrogatepass"))
    kind = kinds.get(value["kind"])
    if kind is None:
        raise DataDamaged(f"a record of kind {value['kind']!r} does not belong in this set")
    return kind.model_validate(value["body"])


class SealedLog(Generic[T]):
    """An append-only `ptalign.records.RecordLog` on disk.

    `append` returns when the record is on disk. A record id that is already there is ignored,
    so a retried step is harmless. A frame torn by a crash was never acknowledged: it is cut off.
    """

    def __init__(self, path: Path, key: SetKey, *kinds: type[Noun]) -> None:
        self.path = path
        self._key = key
        self._kinds = {kind.__name__: kind for kind in kinds}
        self._lock = threading.Lock()
        self._ids: set[str] = set()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._file = os.fdopen(handle, "r+b", buffering=0)
        sync(path.parent)
        self._recover()

    def __len__(self) -> int:
        return len(self._ids)

    def __bool__(self) -> bool:
        return True  # an empty log is a log: `log or MemoryLog()` must not drop records

    def read(self) -> Iterator[T]:
        """Accepted records in order.

        Raises:
            DataDamaged: A frame was changed on disk.
        """
        with self.path.open("rb") as stream:
            for place, blob in frames(stream, self.path):
                yield decode(self._key.open(place, blob), self._kinds)  # type: ignore[misc]

    def append(self, record: T) -> None:
        """Accepts one record, durably."""
        record_id = str(record.id)  # type: ignore[attr-defined]
        with self._lock:
            if record_id in self._ids:
                return
            place = f"{self.path.name}/{len(self._ids)}/{record_id}"
            failpoints.hit("filter.after")
            failpoints.hit("write_item.before")
            self._write(frame(record_id, self._key.seal(place, encode(record))))
            failpoints.hit("write_item.after")
            self._ids.add(record_id)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, data: bytes) -> None:
        try:
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
            os.fdatasync(self._file.fileno())
        except OSError:
            # A full disk leaves half a frame: cut it off, so that the next append starts clean.
            self._file.truncate(self._end)
            self._file.seek(self._end)
            raise
        self._end += len(data)

    def _recover(self) -> None:
        self._end = 0
        with self.path.open("rb") as stream:
            for place, _ in frames(stream, self.path):
                self._ids.add(place.rpartition("/")[2])
                self._end = stream.tell()
        self._file.truncate(self._end)
        self._file.seek(self._end)


def frame(record_id: str, blob: bytes) -> bytes:
    """One frame."""
    name = record_id.encode()
    length = len(blob)
    check = zlib.crc32(struct.pack(">I", length) + name)
    return HEAD.pack(length, check, len(name)) + name + blob


def frames(stream: BinaryIO, path: Path) -> Iterator[tuple[str, bytes]]:
    """Place (``file/ordinal/id``) and sealed bytes of each whole frame; stops at a torn tail.

    Raises:
        DataDamaged: A frame's length or id was changed.
    """
    ordinal = 0
    while len(head := stream.read(HEAD.size)) == HEAD.size:
        length, check, name_length = HEAD.unpack(head)
        name = stream.read(name_length)
        if len(name) < name_length:
            return
        if zlib.crc32(struct.pack(">I", length) + name) != check:
            raise DataDamaged(
                f"{path.parent.name}/{path.name} was changed on disk at record {ordinal}. "
                "Restore it from a backup."
            )
        blob = stream.read(length)
        if len(blob) < length:
            return
        yield f"{path.name}/{ordinal}/{name.decode('ascii', 'replace')}", blob
        ordinal += 1


def write_sealed(path: Path, key: SetKey, items: Iterable[tuple[str, bytes]]) -> None:
    """Writes a whole sealed file at once: it is there complete, or not at all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        _write_frames(partial, path.name, key, items)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)  # a full disk needs the room
        raise
    sync(path.parent)


def _write_frames(
    partial: Path, name: str, key: SetKey, items: Iterable[tuple[str, bytes]]
) -> None:
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
        ordinal = 0
        for record_id, data in items:
            stream.write(frame(record_id, key.seal(f"{name}/{ordinal}/{record_id}", data)))
            ordinal += 1
        stream.write(frame(END, key.seal(f"{name}/{ordinal}/{END}", b"")))
        stream.flush()
        os.fsync(stream.fileno())


def read_sealed(path: Path, key: SetKey) -> Iterator[tuple[str, bytes]]:
    """Record id and content of each frame.

    Raises:
        DataDamaged: The file is missing, was changed or was cut short.
    """
    if not path.exists():
        raise DataDamaged(f"{path.parent.name}/{path.name} is missing. Restore it from a backup.")
    with path.open("rb") as stream:
        for place, blob in frames(stream, path):
            record_id, data = place.rpartition("/")[2], key.open(place, blob)
            if record_id == END:
                return
            yield record_id, data
    raise DataDamaged(f"{path.parent.name}/{path.name} was cut short. Restore it from a backup.")
