"""Reading records and files. Harmful text needs the reader role, a purpose and an audit entry."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from itertools import chain, islice
from typing import Any, TypeVar

from ptalign.errors import InvalidInput
from ptalign_proto.v1 import library_pb2 as lib
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_server import views
from ptalign_server.errors import AdapterDeleted, NotFound, OutOfRange, SetPurged
from ptalign_server.gateway.identity import Identity
from ptalign_server.store import Store
from ptalign_server.store.artefacts import CHUNK
from ptalign_server.store.resources import Resource, Resources
from ptalign_server.wire import COLLECTIONS

T = TypeVar("T")
BATCH = 100
SETS = ("instructionSets", "annotationSets", "pairSets")
STREAMED = (*SETS, "adapters")
LAYOUTS = ("export", "preference", "conversational")
MAX_PURPOSE = 500
MAX_OFFSET = 2**32
"""Beyond any set; a uint64 may say more than a machine can count to."""


def find(resources: Resources, name: str, collection: str, tenant: str) -> Resource:
    """A resource of one collection and tenant.

    Raises:
        NotFound: In one fixed sentence, whatever the reason.
    """
    if name.partition("/")[0] != collection:
        raise NotFound
    return resources.get(name, tenant)


async def look_up(store: Store, name: str, collection: str, tenant: str) -> Resource:
    """`find` from the event loop."""
    return await store.glances.read(lambda tables: find(tables.resources, name, collection, tenant))


async def stream(
    request: lib.StreamRecordsRequest, identity: Identity, store: Store
) -> AsyncIterator[lib.Record]:
    """Records in order, masked unless the full view is asked for and allowed.

    Of an adapter: the words that training pushed down, on purpose and beside it.
    """
    collection = request.name.partition("/")[0]
    found = await look_up(store, request.name, collection, identity.tenant)
    if collection not in STREAMED:
        raise InvalidInput("name", "has no records", f"Name one of: {', '.join(STREAMED)}.")
    full = request.view == lib.RECORD_VIEW_FULL
    if full:
        await allow(store, identity, "read records", found, request.purpose)
    start = min(request.offset, MAX_OFFSET)
    end = start + min(request.limit, MAX_OFFSET) if request.limit else None
    items = islice(_items(store, found), start, end)
    async for item in _in_thread(items):
        yield views.record(collection, item, full=full)


async def download(
    request: lib.DownloadRequest, identity: Identity, store: Store
) -> AsyncIterator[lib.DownloadChunk]:
    """A file in chunks from `offset` on; its size and sha256 come first."""
    collection = request.name.partition("/")[0]
    found = await look_up(store, request.name, collection, identity.tenant)
    if collection in SETS:
        info, chunks = await _export(request, found, identity, store)
    else:
        info = _file(found, request.part)
        chunks = store.artefacts.chunks(found.name, info.part, request.offset)
    if request.offset > info.size:
        raise OutOfRange(f"offset {request.offset} is past the end: {info.size} bytes.")
    yield lib.DownloadChunk(info=info, offset=request.offset)
    offset = request.offset
    async for chunk in _in_thread(chunks, batch=4):
        yield lib.DownloadChunk(offset=offset, data=chunk)
        offset += len(chunk)


async def allow(
    store: Store, identity: Identity, action: str, found: Resource, purpose: str
) -> None:
    """Checks role and purpose and writes the audit entry; without the entry nothing is read."""
    identity.require("reader", f"to {action} in clear")
    text = purpose.strip()
    if not text or len(text) > MAX_PURPOSE:
        raise InvalidInput(
            "purpose", f"must be 1..{MAX_PURPOSE} characters", "Say why the text is read."
        )
    detail = {"purpose": text}
    await asyncio.wrap_future(
        store.write(
            lambda connection: store.audit.add(
                connection, identity.tenant, identity.name, action, found.name, detail
            )
        )
    )


def _items(store: Store, found: Resource) -> Iterator[views.Item]:
    if found.purged and found.collection in SETS:  # a deleted adapter's words are its record
        raise SetPurged(f"the text of {found.name} was purged; counts and digests remain.")
    records = store.sets.records(found.name)
    if found.collection != "adapters":
        return records
    return chain(records, _collateral(store, found.name))


def _collateral(store: Store, adapter: str) -> Iterator[views.Item]:
    """Ordinary words that lost too, which stand in an adapter's head."""
    for word, change in store.sets.head(adapter).get("collateral", {}).items():
        yield "collateral", {"word": word, "change": change}


async def _export(
    request: lib.DownloadRequest, found: Resource, identity: Identity, store: Store
) -> tuple[res.FileInfo, Iterator[bytes]]:
    """A set as a training file: what it is, and its bytes from the offset on.

    It is made twice, once to know its size and digest and once to be sent, so that it is never in
    memory as a whole and never on disk in clear.
    """
    layout, _, ending = request.part.partition(".")
    if layout not in LAYOUTS or ending not in {"jsonl", "parquet"}:
        known = [f"{name}.{end}" for name in LAYOUTS for end in ("jsonl", "parquet")]
        raise InvalidInput("part", f"is none of {', '.join(known)}", "Name one of those.")
    if found.collection == "annotationSets":
        raise InvalidInput("name", "annotation sets have no export", "Stream their records.")
    await allow(store, identity, "export a set", found, request.purpose)
    write = views.as_jsonl if ending == "jsonl" else views.as_parquet

    def pieces() -> Iterator[bytes]:
        return write(views.rows(found.collection, layout, _items(store, found)))

    info = await asyncio.to_thread(lambda: _measured(request.part, pieces()))
    return info, _chunks(pieces(), request.offset)


def _measured(part: str, pieces: Iterator[bytes]) -> res.FileInfo:
    size, digest = 0, hashlib.sha256()
    for piece in pieces:
        size += len(piece)
        digest.update(piece)
    return res.FileInfo(part=part, size=size, sha256=digest.hexdigest())


def _chunks(pieces: Iterator[bytes], offset: int) -> Iterator[bytes]:
    """The bytes from `offset` on, in pieces of one size."""
    held, skip = bytearray(), offset
    for piece in pieces:
        held += memoryview(piece)[skip:]
        skip = max(0, skip - len(piece))
        while len(held) >= CHUNK:
            yield bytes(memoryview(held)[:CHUNK])
            del held[:CHUNK]
    if held:
        yield bytes(held)


def _file(found: Resource, part: str) -> res.FileInfo:
    message: Any = COLLECTIONS[found.collection].FromString(found.body)
    for info in message.files:
        if info.part == part:
            if found.purged:
                raise AdapterDeleted(found.name)
            return info  # type: ignore[no-any-return]
    known = ", ".join(info.part for info in message.files) or "none"
    raise InvalidInput("part", f"{found.name} has no such file", f"Its files: {known}.")


async def _in_thread(items: Iterator[T], batch: int = BATCH) -> AsyncIterator[T]:
    """Items of a blocking iterator, fetched in batches off the event loop."""
    while True:
        taken = await asyncio.to_thread(lambda: list(islice(items, batch)))
        for item in taken:
            yield item
        if len(taken) < batch:
            return
