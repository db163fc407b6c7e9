"""Files of a resource, fetched in chunks that survive a dropped connection or a killed client."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

from ptalign_client import wire
from ptalign_client.errors import DownloadDamaged, OutOfRange
from ptalign_client.nouns import FileInfo
from ptalign_proto.v1 import library_pb2

if TYPE_CHECKING:
    from ptalign_client.base import Base

OnBytes = Callable[[int, int], None]
"""Called with bytes here and bytes in all."""
SETS = ("instructionSets", "annotationSets", "pairSets")


async def fetch(
    client: Base, name: str, part: str, target: Path, purpose: str, on_bytes: OnBytes | None
) -> Path:
    """Fetches one file to `target`; what is there of it already is not sent again.

    Bytes gather in ``TARGET.partial`` until their sha256 is the one the server named. A partial
    file of another version is found out by that digest and fetched anew, once. Where nothing
    arrived, no partial file is left.

    Raises:
        DownloadDamaged: The bytes differ twice.
        NotFound: No such resource or part; the message lists its parts.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    if target.exists() and await _is_there(client, name, part, target, purpose):
        return target
    try:
        return await _gather(client, name, part, target, partial, purpose, on_bytes)
    finally:
        if partial.exists() and not partial.stat().st_size:
            partial.unlink()


async def _gather(
    client: Base,
    name: str,
    part: str,
    target: Path,
    partial: Path,
    purpose: str,
    on_bytes: OnBytes | None,
) -> Path:
    """Pulls until the bytes are whole, and puts them where the target is."""
    for _ in range(2):
        resumed = partial.exists() and partial.stat().st_size > 0
        info, before = await _pull(client, name, part, partial, purpose, on_bytes), -1
        while info and before < (here := partial.stat().st_size) < info.size:
            before = here  # the stream ended early without an error: go on while it moves
            info = await _pull(client, name, part, partial, purpose, on_bytes)
        if info is not None and await asyncio.to_thread(_matches, partial, info):
            os.replace(partial, target)
            return target
        partial.unlink(missing_ok=True)
        if not resumed:
            break
    raise DownloadDamaged(f"{part} of {name}: the bytes do not have the sha256 the server named")


def inside(folder: Path, part: str) -> Path:
    """Where a part goes in a folder.

    Raises:
        DownloadDamaged: The server names a part that would land outside of it.
    """
    if Path(part).is_absolute() or ".." in Path(part).parts or not Path(part).name:
        raise DownloadDamaged(f"the server names a file outside the folder: {part!r}")
    return folder / part


async def _is_there(client: Base, name: str, part: str, target: Path, purpose: str) -> bool:
    """Whether `target` already has the bytes; asks for the first message alone."""
    request = library_pb2.DownloadRequest(name=name, part=part, purpose=purpose)
    async with aclosing(client._stream("library", "Download", lambda: request)) as chunks:
        first = await anext(chunks)
    info = wire.to_noun(FileInfo, first.info)
    return await asyncio.to_thread(_matches, target, info)


async def _pull(
    client: Base, name: str, part: str, partial: Path, purpose: str, on_bytes: OnBytes | None
) -> FileInfo | None:
    """Appends what is missing; None when the partial file cannot be of this version."""
    info: FileInfo | None = None
    if name.partition("/")[0] in SETS:  # may hold harmful text: for its owner alone
        partial.touch(mode=0o600)
        partial.chmod(0o600)  # one that was there has the mode of its maker
    with partial.open("ab") as file:

        def rest() -> library_pb2.DownloadRequest:
            return library_pb2.DownloadRequest(
                name=name, part=part, offset=file.tell(), purpose=purpose
            )

        try:
            async with aclosing(client._stream("library", "Download", rest)) as chunks:
                async for chunk in chunks:
                    if chunk.HasField("info"):
                        info = wire.to_noun(FileInfo, chunk.info)
                    if chunk.data and chunk.offset != file.tell():
                        return None
                    file.write(chunk.data)
                    if on_bytes and info:
                        on_bytes(file.tell(), info.size)
        except OutOfRange:
            return None  # longer than the file on the server
    return info


def _matches(file: Path, info: FileInfo) -> bool:
    if file.stat().st_size != info.size:
        return False
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == info.sha256.removeprefix(
            "sha256:"
        )
