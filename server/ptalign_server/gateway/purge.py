"""Destroying a set's text: the key first, then the bytes. Counts, digests and audit stay."""

from __future__ import annotations

import asyncio
import logging

import sqlalchemy as sa

from ptalign.errors import InvalidInput
from ptalign_proto.v1 import library_pb2 as lib
from ptalign_server import failpoints
from ptalign_server.errors import refuse
from ptalign_server.gateway.fields import request_id_problems
from ptalign_server.gateway.identity import Identity
from ptalign_server.gateway.reading import MAX_PURPOSE, SETS, look_up
from ptalign_server.store import Store
from ptalign_server.store.requests import once, ticket
from ptalign_server.store.resources import Resource
from ptalign_server.wire import COLLECTIONS

log = logging.getLogger("ptalign.server")


async def purge(request: lib.PurgeSetRequest, identity: Identity, store: Store) -> None:
    """Purges a set; purging it again changes nothing."""
    problems = request_id_problems(request)
    if not request.reason.strip() or len(request.reason) > MAX_PURPOSE:
        limit = f"must be 1..{MAX_PURPOSE} characters"
        problems.append(InvalidInput("reason", limit, "Say why the text is destroyed."))
    refuse(problems)
    collection = request.name.partition("/")[0]
    found = await look_up(store, request.name, collection, identity.tenant)
    if collection not in SETS:
        raise InvalidInput("name", "holds no record text", f"Name one of: {', '.join(SETS)}.")
    seen = ticket(store.vault, identity.tenant, "PurgeSet", request)

    def change(connection: sa.Connection) -> None:
        def act() -> str:
            destroy(store, connection, found, identity.name, request.reason)
            return found.name

        once(connection, seen, act)

    def whole() -> None:
        failpoints.hit("purge.before")
        store.write(change).result()
        failpoints.hit("purge.after")
        erase(store, found.id)

    await asyncio.to_thread(whole)  # to its end: a caller who goes away keeps no file


def destroy(
    store: Store, connection: sa.Connection, found: Resource, who: str, reason: str
) -> None:
    """Destroys a set's key, with its audit entry; one that was purged meanwhile stays as it is."""
    if store.resources.is_purged(connection, found.name):
        return
    message = COLLECTIONS[found.collection].FromString(found.body)
    message.meta.purged = True
    store.keys.destroy(connection, found.id)
    store.resources.mark_purged(connection, found, message.SerializeToString())
    store.audit.add(connection, found.tenant, who, "purge", found.name, {"reason": reason})


def erase(store: Store, set_id: str) -> None:
    """Removes the files and the last pages that held the key."""
    store.sets.erase(set_id)
    store.keys.truncate_wal()


def finish_purges(store: Store) -> int:
    """Erases what a crash in the middle of a purge left; call at start."""
    left = [name for name in store.resources.purged_ids() if store.sets.folder(name).exists()]
    for set_id in left:
        log.info("finishing the purge of set %s", set_id)
        store.sets.erase(set_id)
    store.keys.truncate_wal()
    return len(left)
