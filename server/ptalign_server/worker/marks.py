"""What people marked for a pair set: an annotation set, or marks inside the call that made it."""

from __future__ import annotations

from ptalign.nouns import Annotation
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server.errors import NotFound, SetPurged
from ptalign_server.lineage import parents
from ptalign_server.marks import annotation_of
from ptalign_server.store.resources import Resource
from ptalign_server.store.sets import AnnotationSet
from ptalign_server.worker.job import Job
from ptalign_server.worker.lineage import lineage


def called_with(job: Job, request: pb.SynthesizePairsRequest) -> tuple[Annotation, ...]:
    """The marks that a SynthesizePairs names or brings along.

    A caller's set of them comes without the bad answers of topics that its own policy allows no
    toxic side: the policy of the call may not know these topics, and would let them demonstrate.
    The page's sets have no policy, but the pair set that they were made from: there a mark has a
    bad answer only where its pair has one.
    """
    if not request.annotation_set:
        return tuple(annotation_of(item) for item in request.annotations.items)
    marks = job.load(request.annotation_set, AnnotationSet).records
    if parents(job.resource(request.annotation_set)):
        return marks
    own = job.room.store.sets.load_policy(request.annotation_set)
    lone = {topic.id for topic in own.topics if topic.sides == "positive_only"}
    return tuple(m.model_copy(update={"bad": None}) if m.topic in lone else m for m in marks)


def marked_for(job: Job, pair_set: str) -> tuple[Annotation, ...]:
    """The marks that a pair set, and those it was made of, were made with, each once.

    Marks whose text was purged are passed over, and so are those of a call that was deleted.

    Args:
        job: Whose tenant's resources are read.
        pair_set: Its name; may be empty.

    Raises:
        DataDamaged: A set or a call was changed on disk.
    """
    found: dict[str, Annotation] = {}
    for resource in lineage(job, pair_set):
        found |= {mark.digest: mark for mark in _marks(job, resource)}
    return tuple(found.values())


def _marks(job: Job, resource: Resource) -> tuple[Annotation, ...]:
    try:
        if resource.collection == "annotationSets":
            return job.load(resource.name, AnnotationSet).records
        return _inline(job, resource) if resource.collection == "pairSets" else ()
    except (NotFound, SetPurged):
        return ()


def _inline(job: Job, resource: Resource) -> tuple[Annotation, ...]:
    """Marks in the call that made a pair set; an imported or merged set has no such call."""
    made_by = res.PairSet.FromString(resource.body).meta.operation.removeprefix("operations/")
    store = job.room.store
    operation = store.operations.get(made_by, resource.tenant)
    call = store.keys.get(operation.id).open("request", operation.request)
    request = pb.SynthesizePairsRequest.FromString(call)
    return () if request.annotation_set else called_with(job, request)
