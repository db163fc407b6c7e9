"""What annotations, imports and merges share: a set that a caller brings is sealed once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ptalign.nouns import Anchor, Instruction, Noun, Pair, Policy
from ptalign.text.near import tokens
from ptalign.text.normalise import caseless
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_server import wire
from ptalign_server.gateway.identity import Identity
from ptalign_server.gateway.reading import look_up
from ptalign_server.store import Store
from ptalign_server.store.db import DatabaseAway, reading
from ptalign_server.store.operations import new_id
from ptalign_server.store.requests import Ticket, answered, once
from ptalign_server.store.resources import Resource

Words = tuple[str, ...]
"""What spellings of one request share."""


@dataclass(frozen=True, slots=True)
class Addition:
    """A set ready to be sealed."""

    action: str
    """What the audit trail calls it: ``annotate``, ``import``, ``merge``."""
    collection: str
    noun: Noun
    message: Any
    model: str
    model_digest: str
    policy: Policy
    parents: tuple[str, ...] = ()
    judges: tuple[str, ...] = ()


async def made_before(store: Store, seen: Ticket | None) -> str | None:
    """The set that this very call made. Asked first: what it was made of may be gone by now."""
    if seen is None:
        return None

    def look() -> str | None:
        with reading(store.engine) as connection:
            return answered(connection, seen)

    return await asyncio.to_thread(look)


async def message_of(store: Store, name: str, identity: Identity) -> Any:
    """A set's message as its row holds it, which stays when the set is purged."""
    collection = name.partition("/")[0]
    found = await look_up(store, name, collection, identity.tenant)
    return wire.COLLECTIONS[collection].FromString(found.body)


def count_of(made: res.InstructionSet | res.PairSet) -> int:
    """Records of a set without its anchors."""
    if isinstance(made, res.InstructionSet):
        return made.harmful + made.twins
    return made.pairs + made.positive_only + made.twins


async def add(addition: Addition, identity: Identity, store: Store, seen: Ticket | None) -> str:
    """Seals the files, then commits key, row and audit entry: sent again, a call adds none."""
    set_id = new_id()
    key, wrapped = store.vault.fresh_key(set_id)
    digest = await asyncio.to_thread(store.sets.write, set_id, key, addition.noun)
    await asyncio.to_thread(store.sets.write_policy, set_id, key, addition.policy)
    resource = row_of(addition, set_id, digest, identity)

    def change(connection: sa.Connection) -> tuple[str, bool]:
        def make() -> str:
            store.keys.insert(connection, set_id, wrapped)
            store.resources.insert(connection, resource)
            who, detail = (identity.tenant, identity.name), {"parents": addition.parents}
            store.audit.add(connection, *who, addition.action, resource.name, detail)
            return resource.name

        return once(connection, seen, make)

    try:
        name, made = await asyncio.wrap_future(store.write(change))
    except (asyncio.CancelledError, DatabaseAway):
        raise  # the row may stand, or be on its way: retention sees to the files
    except BaseException:
        store.sets.erase(set_id)
        raise
    await asyncio.to_thread(store.sets.settle if made else store.sets.erase, set_id)
    return name


def row_of(addition: Addition, set_id: str, digest: str, identity: Identity) -> Resource:
    now, name = time.time(), f"{addition.collection}/{set_id}"
    meta = res.ResourceMeta(
        name=name,
        digest=digest,
        tenant=identity.tenant,
        create_time=wire.timestamp(now),
        model=addition.model,
        model_digest=addition.model_digest,
        policy=addition.policy.name,
        policy_digest=addition.policy.digest,
        parents=addition.parents,
        judges=addition.judges,
        made_by=identity.name,
    )
    addition.message.meta.CopyFrom(meta)
    return Resource(
        name=name,
        collection=addition.collection,
        tenant=identity.tenant,
        model=addition.model,
        policy=addition.policy.name,
        verdict="",
        adapter="",
        partial=False,
        purged=False,
        content=digest,
        body=addition.message.SerializeToString(),
        created=now,
    )


def words_of(text: str, locale: str) -> Words:
    """What spellings of one request share: its words without case, accents and punctuation."""
    return tokens(text, locale) or (caseless(text),)


def instruction_stats(records: Sequence[Instruction], policy: Policy) -> dict[str, float]:
    """What can be said without an embedder, which this process has none of."""
    from ptalign.asking.stats import given_stats  # numpy: only for callers who bring sets

    return given_stats(records, [topic.id for topic in policy.topics])


def pair_stats(pairs: Sequence[Pair], anchors: Sequence[Anchor] = ()) -> dict[str, float]:
    """What the set holds. It has no yield: no run made it, nor rounds where all are imported."""
    from ptalign.answering.stats import pair_stats

    unknown = {"yield", "twin_yield"}
    if not any(pair.round for pair in pairs):
        unknown.add("first_round")
    made = pair_stats(pairs, anchors, 0, 0)
    return {name: value for name, value in made.items() if name not in unknown}
