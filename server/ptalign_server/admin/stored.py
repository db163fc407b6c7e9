"""The server's own database and folder, for a command beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ptalign_server.settings import Settings

if TYPE_CHECKING:
    from ptalign_server.store import Store


@contextmanager
def open_store() -> Iterator[Store]:
    """The store that the environment names; imported late, since ``--help`` needs none of it."""
    from ptalign_server.store import Store
    from ptalign_server.wire import freeze

    store = Store(Settings(), freeze)
    try:
        yield store
    finally:
        store.close()
