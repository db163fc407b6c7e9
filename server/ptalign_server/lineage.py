"""What a resource was made from, by the names that it carries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ptalign_server.store.resources import Resource
from ptalign_server.wire import COLLECTIONS


def made_from(find: Callable[[str], Resource | None], *names: str) -> Iterator[Resource]:
    """Resources and all they were made from, nearest first, each once.

    Args:
        find: A resource by its name; None passes it over, and what it was made from.
        names: Where to begin. Empty ones are passed over.
    """
    waiting, seen = [name for name in names if name], set[str]()
    while waiting:
        current = waiting.pop(0)
        if current in seen:
            continue
        seen.add(current)
        if resource := find(current):
            yield resource
            waiting += parents(resource)


def parents(resource: Resource) -> list[str]:
    """Names of what a resource was made from, without their digests."""
    meta = COLLECTIONS[resource.collection].FromString(resource.body).meta
    return [parent.partition("@")[0] for parent in meta.parents]


def own_pairs(adapter: Resource) -> str:
    """The pair set that an adapter was made from; empty for none."""
    return next((name for name in parents(adapter) if name.startswith("pairSets/")), "")


def trained_on(line: Iterable[Resource]) -> Iterator[str]:
    """The pair sets that the adapters of a lineage were made from, in its order."""
    for resource in line:
        if resource.collection == "adapters" and (own := own_pairs(resource)):
            yield own
