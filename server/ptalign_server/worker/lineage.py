"""What a resource was made from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ptalign_proto.v1 import resources_pb2 as res
from ptalign_server.errors import NotFound
from ptalign_server.lineage import made_from, parents
from ptalign_server.store.resources import Resource
from ptalign_server.wire import marked_policy
from ptalign_server.worker.job import Job


def lineage(job: Job, *names: str) -> Iterator[Resource]:
    """Resources and all they were made from, nearest first, each once.

    Empty names and resources that are not there are passed over.
    """

    def found(name: str) -> Resource | None:
        try:
            return job.resource(name)
        except NotFound:
            return None

    return made_from(found, *names)


def minutes_per_pair_set(line: Sequence[Resource]) -> dict[str, float]:
    """What annotators spent on the marks that each pair set of a lineage was the first to use.

    The annotation page hands over all marks on a model and policy, earlier ones too: of its sets a
    later one adds the minutes that it has more than those before it.
    """
    oldest_first = sorted(line, key=lambda resource: resource.created)
    marks = {r.name: r for r in line if r.collection == "annotationSets"}
    counted: dict[str, float] = {}
    spent: dict[str, float] = {}
    for pair_set in oldest_first:
        if pair_set.collection != "pairSets":
            continue
        spent[pair_set.name] = 0.0
        for made in (marks[name] for name in parents(pair_set) if name in marks):
            source = _source(made)
            before = counted.get(source, 0.0)
            now = max(before, res.AnnotationSet.FromString(made.body).annotator_minutes)
            spent[pair_set.name] += now - before
            counted[source] = now
    return spent


def _source(marks: Resource) -> str:
    """Where an annotation set's marks were made: a caller's set stands for itself.

    The page's sets have a parent, and its marks are kept per model and policy.
    """
    return f"{marks.model}/{marked_policy(marks)}" if parents(marks) else marks.name
