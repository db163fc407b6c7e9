"""CreateAnnotationSet: the marks are checked here and sealed."""

from __future__ import annotations

import asyncio

from ptalign.errors import InvalidInput
from ptalign.nouns import MAX_ANNOTATIONS
from ptalign_proto.v1 import library_pb2 as lib
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_server.catalogue import Catalogue
from ptalign_server.errors import UnknownName, refuse
from ptalign_server.gateway.additions import Addition, add, made_before
from ptalign_server.gateway.fields import (
    annotation_problems,
    request_id_problems,
    too_many_annotations,
)
from ptalign_server.gateway.identity import Identity
from ptalign_server.marks import annotation_of, refuse_blocked
from ptalign_server.store import Store
from ptalign_server.store.requests import ticket
from ptalign_server.store.sets import AnnotationSet


async def annotate(
    request: lib.CreateAnnotationSetRequest, identity: Identity, store: Store, catalogue: Catalogue
) -> str:
    """Seals 1..MAX_ANNOTATIONS annotations; returns the set's name."""
    problems = request_id_problems(request)
    if not request.items:
        problems.append(InvalidInput("items", "is empty", f"Send 1..{MAX_ANNOTATIONS} marks."))
    if len(request.items) > MAX_ANNOTATIONS:
        problems.append(too_many_annotations("items", len(request.items)))
    for number, item in enumerate(request.items):
        problems += annotation_problems(f"items[{number}]", item)
    if not 0 <= request.annotator_minutes < 1e6:
        limit = "must be 0 or more and below a million"
        problems.append(InvalidInput("annotator_minutes", limit, "Send minutes."))
    refuse(problems)
    seen = ticket(store.vault, identity.tenant, "CreateAnnotationSet", request)
    if name := await made_before(store, seen):
        return name
    model = catalogue.model(request.model)
    # a large file takes long
    policy = await asyncio.to_thread(catalogue.policies.find, request.policy)
    topics = {topic.id for topic in policy.topics}
    for item in request.items:
        if item.topic and item.topic not in topics:
            raise UnknownName("topic", item.topic, topics)
    noun = AnnotationSet(
        records=tuple(annotation_of(item) for item in request.items),
        annotator_minutes=request.annotator_minutes,
    )
    await asyncio.to_thread(refuse_blocked, "items", noun.records, policy)
    message = res.AnnotationSet(
        count=len(noun.records), annotator_minutes=request.annotator_minutes
    )
    kind = "annotate", "annotationSets"
    addition = Addition(*kind, noun, message, model.name, model.weights_digest, policy)
    return await add(addition, identity, store, seen)
