"""Deleting an adapter: its files go; record, figures, evaluations and audit entries stay.

By an operator's command alone: no retention deletes an adapter.
"""

from __future__ import annotations

import sqlalchemy as sa

from ptalign.errors import InvalidInput
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_server.catalogue import Catalogue
from ptalign_server.errors import NotFound, OperationRunning
from ptalign_server.gateway.release import released_by
from ptalign_server.in_use import in_use, pass_over
from ptalign_server.store import Store
from ptalign_server.store.holds import lock_key, refuse_held
from ptalign_server.store.resources import Resource


def delete(store: Store, catalogue: Catalogue, connection: sa.Connection, name: str) -> bool:
    """Marks an adapter as deleted; whether it was not yet. `erase_files` comes after the commit.

    Raises:
        InvalidInput: There is no such adapter, or ResolveAdapter could name it.
        OnHold: It is held, or the operation that made it is.
        OperationRunning: An operation under way works with it.
    """
    found = _adapter(store, name)
    lock_key(connection, found.id)
    if store.resources.is_purged(connection, name):
        return False
    refuse_held(connection, found.id)
    _refuse_released(store, catalogue, found)
    if by := in_use(store, pass_over).get(name):
        raise OperationRunning(
            f"{by} works with {name}. Wait for its end, or cancel it: ptalign ops cancel {by}"
        )
    message = res.Adapter.FromString(found.body)
    message.meta.purged = True
    store.resources.mark_purged(connection, found, message.SerializeToString())
    return True


def erase_files(store: Store, name: str) -> int:
    """Removes the files of a deleted adapter; safe to do again.

    Returns:
        Their bytes, by its record.
    """
    files = res.Adapter.FromString(_adapter(store, name).body).files
    store.artefacts.delete(name, [file.part for file in files])
    return sum(file.size for file in files)


def _adapter(store: Store, name: str) -> Resource:
    try:
        if name.startswith("adapters/"):
            return store.resources.get(name, None)
    except NotFound:
        pass
    mend = "Look the name up: ptalign-server adapters list"
    raise InvalidInput("name", f"{name[:80]!r} is no adapter", mend)


def _refuse_released(store: Store, catalogue: Catalogue, found: Resource) -> None:
    if found.name in store.withdrawals.names():
        return
    if evaluation := released_by(found, store, catalogue):
        raise InvalidInput(
            "name",
            f"{found.name} is released: ResolveAdapter names it, or would without a newer one "
            f"({evaluation.name} PASSed)",
            f"Withdraw it first: ptalign-server adapters withdraw {found.name}",
        )
