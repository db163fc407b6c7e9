"""What a resource was made from."""

from __future__ import annotations

from collections.abc import Iterator

from ptalign_server.errors import NotFound
from ptalign_server.store.resources import Resource
from ptalign_server.wire import COLLECTIONS
from ptalign_server.worker.job import Job


def lineage(job: Job, *names: str) -> Iterator[Resource]:
    """Resources and all they were made from, nearest first, each once.

    Empty names and resources that are not there are passed over.
    """
    waiting, seen = [name for name in names if name], set()
    while waiting:
        current = waiting.pop(0)
        if current in seen:
            continue
        seen.add(current)
        try:
            resource = job.resource(current)
        except NotFound:
            continue
        yield resource
        waiting += parents(resource)


def parents(resource: Resource) -> list[str]:
    """Names of what a resource was made from, without their digests."""
    meta = COLLECTIONS[resource.collection].FromString(resource.body).meta
    return [parent.partition("@")[0] for parent in meta.parents]
