"""What operations under way work with: retention leaves it alone, and so does whoever deletes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, Protocol

from ptalign.errors import DataDamaged
from ptalign_server import wire
from ptalign_server.errors import NotFound, SetPurged
from ptalign_server.lineage import made_from
from ptalign_server.store import Store
from ptalign_server.store.operations import Operation
from ptalign_server.store.resources import Resource

log = logging.getLogger("ptalign.server")
FIELDS = ("instruction_set", "annotation_set", "pair_set", "parent", "parent_adapter", "held_out")
"""Fields of a call that name resources."""
TRAINED_ON = ("pairSets", "annotationSets")
"""What Evaluate reads of that which its adapters were made from."""


class Skip(Protocol):
    """Told what was left out, and why where its row is not the reason."""

    def __call__(self, name: str, why: object = ..., /) -> None: ...


def in_use(store: Store, skip: Skip) -> dict[str, str]:
    """Resource name -> an unfinished operation that depends on it.

    Args:
        skip: Told of operations whose call is unreadable: they cannot run.
    """
    found: dict[str, str] = {}
    for operation in store.operations.under_way(skip):
        by = wire.operation_name(operation.id)
        try:
            request = _request(store, operation)
        except (DataDamaged, SetPurged) as error:
            skip(by, error)
            continue
        found |= dict.fromkeys(_named(store, operation, request, skip), by)
    return found


def resumed(store: Store, request: Any, tenant: str) -> Iterator[str]:
    """Ids of the runs that an Align goes on from, the nearest first.

    One that was stopped before it began took no step: it hands on those that it was to go on from.

    Raises:
        NotFound, SetPurged, DataDamaged: The call of one cannot be read, which names the next.
    """
    seen = set[str]()
    while (earlier := request.resume_from.removeprefix("operations/")) and earlier not in seen:
        seen.add(earlier)
        yield earlier
        request = _request(store, store.operations.get(earlier, tenant))


def pass_over(name: str, why: object = "its row was changed in the database") -> None:
    """A `Skip` for whoever asks about one name only."""
    log.warning("%s is passed over, it cannot run: %s", name, why)


def _named(store: Store, operation: Operation, request: Any, skip: Skip) -> Iterator[str]:
    for field in FIELDS:
        if name := getattr(request, field, ""):
            yield str(name)
    if operation.kind == "Align":
        yield from _resumed(store, operation, request, skip)
    if operation.kind == "Evaluate":
        targets = (request.target, request.baseline, *request.also)
        adapters = [target.adapter for target in targets if target.adapter]
        yield from adapters
        yield from _trained_on(store, [request.pair_set, *adapters], operation.tenant, skip)


def _resumed(store: Store, operation: Operation, request: Any, skip: Skip) -> Iterator[str]:
    """Those whose steps it may copy."""
    try:
        for earlier in resumed(store, request, operation.tenant):
            yield wire.operation_name(earlier)
    except (NotFound, SetPurged):
        return  # nothing of it is left to be kept
    except DataDamaged as error:
        skip(wire.operation_name(operation.id), error)


def _request(store: Store, operation: Operation) -> Any:
    data = store.keys.get(operation.id).open("request", operation.request)
    return wire.KINDS[operation.kind].request.FromString(data)


def _trained_on(store: Store, names: list[str], tenant: str, skip: Skip) -> Iterator[str]:
    """Pair sets and marks in the whole lineage of these, which no field of the call names."""

    def found(name: str) -> Resource | None:
        try:
            return store.resources.get(name, tenant)
        except NotFound:
            return None
        except DataDamaged as error:
            skip(name, error)
            return None

    for resource in made_from(found, *names):
        if resource.collection in TRAINED_ON:
            yield resource.name
