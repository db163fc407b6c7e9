"""Record text does not stay for ever: sets past their time are purged, unless they are held.

Purged like by hand: key first, then files, with an audit entry. Adapters, evaluations, counts and
digests stay. A stopped operation that made nothing loses its call and its log at the same age, and
an ended one its events but for the last: who watches it then is told how it ended.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from functools import partial

import sqlalchemy as sa
from google.protobuf.message import DecodeError

from ptalign.errors import DataDamaged, PtalignError
from ptalign_server import wire
from ptalign_server.errors import NotFound, SetPurged
from ptalign_server.gateway.purge import destroy, erase
from ptalign_server.gateway.reading import SETS
from ptalign_server.in_use import Skip, in_use
from ptalign_server.metrics import Metrics
from ptalign_server.settings import Settings
from ptalign_server.store import Store
from ptalign_server.store.operations import UNDER_WAY, Operation
from ptalign_server.store.resources import Resource

log = logging.getLogger("ptalign.server")
PAUSE_SECONDS = 600.0
DAY_SECONDS = 86_400.0
UNSETTLED_SECONDS = 3600.0
"""After which a commit that was under way stands or never will."""
WHO = "retention"
FAILURES = (PtalignError, OSError, sa.exc.SQLAlchemyError, DecodeError)
"""What one row or file may fail with, while others can still be purged."""


class _Stopped(Exception):
    """The server ends: the next one's first round goes on."""


class _Pass:
    """One round: what lost its text, and what had to be left for somebody to look at."""

    def __init__(self, store: Store, should_stop: Callable[[], bool]) -> None:
        self.store = store
        self.should_stop = should_stop
        self.done = 0
        self.skipped = 0

    def skip(self, name: str, why: object = "its row was changed in the database") -> None:
        """Leaves one thing out: it must not keep the text of all others."""
        self.skipped += 1
        log.error("retention: %s is left out: %s", name, why)

    def each(self, name: str, act: Callable[[], None]) -> bool:
        """Whether it went through.

        Raises:
            _Stopped: It was not begun.
        """
        if self.should_stop():
            raise _Stopped
        try:
            act()
        except FAILURES as error:
            # A database error quotes the row's values.
            self.skip(name, error if isinstance(error, PtalignError) else type(error).__name__)
            return False
        return True


class _Kept:
    """Ids of what operations under way work with, as of each question, and of what is held.

    A hold that comes later is seen where the key is destroyed.
    """

    def __init__(self, store: Store, skip: Skip) -> None:
        self._store = store
        self._look(self._ids_under_way(), skip)

    def __contains__(self, found: str) -> bool:
        # A pass may take minutes, and what was accepted meanwhile needs its sets too.
        under_way = self._ids_under_way()
        if not under_way <= self._under_way:
            self._look(under_way, _say_nothing)
        return found in self._ids

    def _look(self, under_way: set[str], skip: Skip) -> None:
        self._under_way = under_way
        names = {*self._store.holds.names(), *in_use(self._store, skip)}
        # A set and its operation share one key.
        self._ids = {name.partition("/")[2] for name in names}

    def _ids_under_way(self) -> set[str]:
        return set(self._store.operations.ids_in(UNDER_WAY))


def _say_nothing(name: str, why: object = "") -> None:
    """The pass has named what cannot run already, or the next one will."""


def expire(
    store: Store,
    settings: Settings,
    now: float | None = None,
    gauges: Metrics | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> int:
    """Purges what is past its time; at once where a crash left it half done.

    What cannot be read is logged by name and left out, and the others go on.

    Args:
        gauges: Told the time when nothing had to be left out.
        should_stop: Asked before each; True leaves the rest to the next round.

    Returns:
        How many sets and operations lost their text.
    """
    now = time.time() if now is None else now
    turn = _Pass(store, should_stop)
    try:
        drop_finished_logs(store, turn.skip)
        for set_id in store.sets.unsettled(now - UNSETTLED_SECONDS):
            turn.each(f"set {set_id}", partial(_settle, store, set_id))
        for operation_id in store.worked():
            turn.each(f"work/{operation_id}", partial(_drop_left_work, store, operation_id))
        if settings.retention_days:
            _expire(turn, settings, now - settings.retention_days * DAY_SECONDS)
    except _Stopped:
        return turn.done
    if turn.done:
        log.info("retention: the text of %d sets and stopped operations was destroyed", turn.done)
    if turn.skipped:
        log.error("retention: %d rows or files were left out, see above", turn.skipped)
    elif gauges is not None:
        gauges.retention_success.set(now)
    return turn.done


def _expire(turn: _Pass, settings: Settings, cutoff: float) -> None:
    store = turn.store
    kept = _Kept(store, turn.skip)
    reason = f"older than {settings.retention_days:g} days"
    for found in store.resources.older_than(cutoff, SETS, turn.skip):
        if found.id not in kept:
            turn.done += turn.each(found.name, partial(_purge, store, found, reason))
    for operation in store.operations.ended_before(cutoff, turn.skip):
        if operation.id not in kept:
            forget = partial(_forget, store, operation, reason)
            turn.done += turn.each(wire.operation_name(operation.id), forget)
    for operation in store.operations.with_history(cutoff, turn.skip):
        if operation.id not in kept:
            turn.each(wire.operation_name(operation.id), partial(_drop_history, store, operation))


def drop_finished_logs(store: Store, skip: Skip) -> None:
    """Removes logs that nothing will read: a crash came before their owner could."""
    for operation_id in store.sets.logged():
        try:
            operation = store.operations.get(operation_id)
        except NotFound:
            _erase_unless_keyed(store, operation_id)
            continue
        except DataDamaged as error:
            skip(wire.operation_name(operation_id), error)
            continue
        if operation.done and operation.resource:
            store.sets.drop_log(operation_id)


def _drop_left_work(store: Store, operation_id: str) -> None:
    """Removes the checkpoints of a deleted operation: a crash came before its folder went.

    An operation has its row before anybody makes its folder.
    """
    try:
        store.operations.get(operation_id)
    except NotFound:
        shutil.rmtree(store.work(operation_id), ignore_errors=True)


def _settle(store: Store, set_id: str) -> None:
    """Files that came before their row: they go where it never came."""
    _erase_unless_keyed(store, set_id)
    store.sets.settle(set_id)


def _erase_unless_keyed(store: Store, operation_id: str) -> None:
    """A deleted operation's files; a draft of the page has no operation either, but its key."""
    try:
        store.keys.get(operation_id)
    except SetPurged:
        store.sets.erase(operation_id)
    except DataDamaged:
        return  # it has a key, if one that nobody can use


def _purge(store: Store, found: Resource, reason: str) -> None:
    store.write(lambda connection: destroy(store, connection, found, WHO, reason)).result()
    erase(store, found.id)


def _forget(store: Store, operation: Operation, reason: str) -> None:
    def change(connection: sa.Connection) -> None:
        store.keys.destroy(connection, operation.id)
        name, detail = wire.operation_name(operation.id), {"reason": reason}
        store.audit.add(connection, operation.tenant, WHO, "purge", name, detail)
        # Before the commit: after a crash, or an entry without room, its key shows that it is due.
        store.sets.erase(operation.id)
        shutil.rmtree(store.work(operation.id), ignore_errors=True)

    store.write(change).result()
    store.keys.truncate_wal()


def _drop_history(store: Store, operation: Operation) -> None:
    def some(connection: sa.Connection) -> bool:
        return store.operations.drop_history(connection, operation)

    while store.write(some).result():
        pass
