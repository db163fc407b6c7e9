"""Adapters of the library, served by a pool."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ptalign.errors import DataDamaged, NotReady
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_server.errors import AdapterDeleted
from ptalign_server.in_use import in_use
from ptalign_server.manifest import Signer
from ptalign_server.pool import Pool
from ptalign_server.store import Store

log = logging.getLogger("ptalign.worker")


def adapter_folder(store: Store, name: str) -> Path:
    """A local PEFT folder of an adapter, its signed manifest checked.

    Raises:
        AdapterDeleted: It was deleted since the call was checked.
        DataDamaged: Its files were changed where they are kept, not only where they were brought.
    """
    folder = store.artefacts.folder(name, _parts(store, name))
    store.artefacts.trim(lambda: in_use(store, lambda *_: None))
    try:
        Signer(store.vault).check(folder, name)
    except DataDamaged as error:
        if not store.artefacts.drop(name):
            raise
        log.warning("%s Bringing it again from the object store.", error)
        folder = store.artefacts.folder(name, _parts(store, name))
        Signer(store.vault).check(folder, name)
    return folder


def check_adapter(store: Store, name: str) -> None:
    """Checks an adapter whose files are at hand, before its operation waits for the device.

    What an object store has to bring first is checked in its turn: bringing it would hold up every
    other operation that is to be checked. A folder that is away may be back by then.

    Raises:
        AdapterDeleted, DataDamaged, Unsupported: It cannot be served or trained on.
    """
    if store.artefacts.at_hand(name, _parts(store, name)):
        with suppress(NotReady):
            adapter_folder(store, name)


def _parts(store: Store, name: str) -> list[str]:
    found = store.resources.get(name, None)
    if found.purged:
        raise AdapterDeleted(name)
    return [file.part for file in res.Adapter.FromString(found.body).files]


@contextmanager
def served_adapter(store: Store, pool: Pool, name: str) -> Iterator[str]:
    """Loads an adapter for the block; the name to ask the engine for, empty for the bare model."""
    if not name:
        yield ""
        return
    served = pool.serve_adapter(name.replace("/", "-"), adapter_folder(store, name))
    try:
        yield served
    finally:
        pool.release_adapter(served)
