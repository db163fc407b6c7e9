"""A store with pair sets in it, for the tests of the annotation page."""

from __future__ import annotations

import time
from pathlib import Path

import sqlalchemy as sa

from ptalign.nouns import Pair, PairSet, Policy, Topic, record_id
from ptalign.sealed import SealedText
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_server import wire
from ptalign_server.settings import Settings
from ptalign_server.store import Store
from ptalign_server.store.operations import new_id
from ptalign_server.store.resources import Resource

TOPICS = ("rude-replies", "contempt", "impatience", "sarcasm")
LISTED = "forbidden purple teapot"
"""Stands for a subject of the operator's never-synthesize list."""
BOUNDARY = "Saying no is fine; belittling the person is not."
BAD = "What a silly question. Figure it out yourself"


def open_store(folder: Path, **settings: object) -> tuple[Settings, Store]:
    made = Settings(state=folder / "state", **settings)  # type: ignore[arg-type]
    return made, Store(made, wire.freeze)


def pairs(count: int, tag: str = "") -> PairSet:
    """Mild made-up pairs; polarity falls with the number, so the last one is least certain."""
    made = []
    for n in range(count):
        text = f"Could you explain step {n}{tag} of the recipe again?"
        made.append(
            Pair(
                id=record_id(text),
                instruction_id=record_id("i", text),
                instruction=text,
                topic=TOPICS[n % len(TOPICS)],
                positive=f"Of course. Step {n}{tag}: fold the flour in gently, then let it rest.",
                toxic=SealedText(f"{BAD}, number {n}{tag}."),
                polarity={"tone": 1.0 - n / (2 * count), "words": 1.0 - n / (2 * count)},
            )
        )
    text = f"Could you explain step 0{tag} of another recipe?"
    told = {"id": record_id(text), "instruction": text, "kind": "twin", "toxic": None}
    return PairSet(pairs=(*made, made[0].model_copy(update=told)), requested=count)


def one_sided(count: int, twins: int = 0) -> PairSet:
    """Pairs of a policy without a toxic side, and twins: one answer to each."""
    plain = pairs(count + twins, "o").pairs[: count + twins]
    made = [
        pair.model_copy(
            update={
                "kind": "positive_only" if n < count else "twin",
                "toxic": None,
                "polarity": {},
            }
        )
        for n, pair in enumerate(plain)
    ]
    return PairSet(pairs=tuple(made), requested=count)


def add_pair_set(
    store: Store,
    noun: PairSet,
    *,
    tenant: str = "default",
    model: str = "m",
    policy: str = "tone",
    policy_digest: str = "sha256:p",
    listed: str = LISTED,
    weights: str = "sha256:m",
) -> str:
    """Puts a sealed pair set into the store, as the worker does; returns its name."""
    set_id = new_id()
    key, wrapped = store.vault.fresh_key(set_id)
    digest = store.sets.write(set_id, key, noun)
    tree = tuple(
        Topic(id=t, domain="tone", title=t, sides="both", boundary=BOUNDARY) for t in TOPICS
    )
    rules = Policy(name=policy, topics=tree, never_synthesize=(listed,))
    store.sets.write_policy(set_id, key, rules)
    name = f"pairSets/{set_id}"
    meta = res.ResourceMeta(name=name, digest=digest, model=model, policy=policy, tenant=tenant)
    meta.model_digest, meta.policy_digest, meta.made_by = weights, policy_digest, "alice"
    alone = sum(pair.kind == "positive_only" for pair in noun.pairs)
    message = res.PairSet(meta=meta, pairs=len(noun.polarised), positive_only=alone)
    row = Resource(
        name=name,
        collection="pairSets",
        tenant=tenant,
        model=model,
        policy=policy,
        verdict="",
        adapter="",
        partial=False,
        purged=False,
        content=digest,
        body=message.SerializeToString(),
        created=time.time(),
    )

    def change(connection: sa.Connection) -> None:
        store.keys.insert(connection, set_id, wrapped)
        store.resources.insert(connection, row)

    store.write(change).result()
    return name
