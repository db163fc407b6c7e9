"""Record text does not stay for ever: sets past their time are purged, unless they are held.

Purged like by hand: key first, then files, with an audit entry. Adapters, evaluations, counts and
digests stay. A stopped operation that made nothing loses its call and its log at the same age.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from ptalign.errors import DataDamaged
from ptalign_server import wire
from ptalign_server.errors import NotFound, SetPurged
from ptalign_server.gateway.purge import destroy, erase
from ptalign_server.gateway.reading import SETS
from ptalign_server.settings import Settings
from ptalign_server.store import Store
from ptalign_server.store.operations import STATES, TERMINAL, Operation
from ptalign_server.store.resources import Resource

log = logging.getLogger("ptalign.server")
PAUSE_SECONDS = 600.0
DAY_SECONDS = 86_400.0
WHO = "retention"
FIELDS = ("instruction_set", "annotation_set", "pair_set", "parent")
"""Fields of a call that name sets."""


class Holds:
    """Names that retention leaves alone, in ``holds.json`` of the state folder."""

    def __init__(self, state: Path) -> None:
        self._path = state / "holds.json"

    def names(self) -> list[str]:
        """What is held."""
        if not self._path.exists():
            return []
        found: list[str] = json.loads(self._path.read_text())
        return found

    def add(self, name: str) -> None:
        """Holds a set or an operation until `remove`."""
        self._write(sorted({*self.names(), name}))

    def remove(self, name: str) -> bool:
        """Lets retention have it again; whether it was held."""
        before = self.names()
        self._write([n for n in before if n != name])
        return name in before

    def _write(self, names: list[str]) -> None:
        partial = self._path.with_name(self._path.name + ".new")
        partial.write_text(json.dumps(names, indent=1))
        partial.replace(self._path)


def expire(store: Store, settings: Settings, now: float | None = None) -> int:
    """Purges what is past its time; at once where a crash left it half done.

    Returns:
        How many sets and operations lost their text.
    """
    drop_finished_logs(store)
    if not settings.retention_days:
        return 0
    cutoff = (time.time() if now is None else now) - settings.retention_days * DAY_SECONDS
    kept = {*Holds(settings.state).names(), *_in_use(store)}
    done = 0
    for found in store.resources.older_than(cutoff, SETS):
        if found.name not in kept:
            _purge(store, found, f"older than {settings.retention_days:g} days")
            done += 1
    for operation in store.operations.ended_before(cutoff):
        if wire.operation_name(operation.id) not in kept:
            _forget(store, operation.id)
            done += 1
    if done:
        log.info("retention: the text of %d sets and stopped operations was destroyed", done)
    return done


def drop_finished_logs(store: Store) -> None:
    """Removes logs that nothing will read: a crash came before their owner could."""
    for operation_id in store.sets.logged():
        try:
            operation = store.operations.get(operation_id)
        except DataDamaged:
            continue  # its own calls say so
        except NotFound:
            _erase_unless_keyed(store, operation_id)
            continue
        if operation.done and operation.resource:
            store.sets.drop_log(operation_id)


def _erase_unless_keyed(store: Store, operation_id: str) -> None:
    """A deleted operation's files; a draft of the page has no operation either, but its key."""
    try:
        store.keys.get(operation_id)
    except SetPurged:
        store.sets.erase(operation_id)


def _purge(store: Store, found: Resource, reason: str) -> None:
    store.write(lambda connection: destroy(store, connection, found, WHO, reason)).result()
    erase(store, found.id)


def _forget(store: Store, operation_id: str) -> None:
    store.sets.erase(operation_id)  # first: after a crash its key shows that it is due
    store.write(lambda connection: store.keys.destroy(connection, operation_id)).result()
    store.keys.truncate_wal()


def _in_use(store: Store) -> Iterator[str]:
    """Sets that operations on their way work with."""
    for operation in store.operations.in_states(set(STATES) - set(TERMINAL)):
        request = _request(store, operation)
        for field in FIELDS:
            if name := getattr(request, field, ""):
                yield str(name)


def _request(store: Store, operation: Operation) -> object:
    data = store.keys.get(operation.id).open("request", operation.request)
    return wire.KINDS[operation.kind].request.FromString(data)
