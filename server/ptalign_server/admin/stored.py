"""The server's own database and folder, for a command beside it, and its audit entries.

Imported late: probes run the same program every few seconds and need none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from ptalign.errors import DataDamaged, InvalidInput
from ptalign_server.errors import NotFound
from ptalign_server.settings import Settings

if TYPE_CHECKING:
    import sqlalchemy as sa

    from ptalign_server.store import Store

T = TypeVar("T")
WHO = "console"
"""Who the audit entry names: whoever may run commands beside the server, on its key."""
Reason = Annotated[str, typer.Option(help="Why, for the audit trail: a matter's number.")]


@contextmanager
def open_store() -> Iterator[Store]:
    """The store that the environment names.

    Raises:
        InvalidInput: No server has run there: an empty one would be made, and found in order.
    """
    from ptalign_server.store import Store
    from ptalign_server.wire import freeze

    settings = Settings()
    if not _has_run(settings):
        mend = "Set PTALIGN_STATE to the folder that serve runs on."
        raise InvalidInput("PTALIGN_STATE", f"is {settings.state}, where no server has run", mend)
    store = Store(settings, freeze)
    try:
        yield store
    finally:
        store.close()


def _has_run(settings: Settings) -> bool:
    """Whether a server made the embedded database; of any other it is not known."""
    import sqlalchemy as sa

    file = sa.make_url(settings.database_url).database
    return not (settings.embedded and file and not Path(file).exists())


def entered(
    action: str, name: str, tenant: str, detail: Mapping[str, object], act: Callable[[], T]
) -> T:
    """Does something outside the database and appends it to the audit trail, where there is one.

    Args:
        action: What the trail calls it.
        name: What it is done to, such as ``tokens/NAME``.
        tenant: Whose it is.
        detail: What else the trail says; nothing that must stay secret.
        act: Does it. The entry is written first: what fails leaves none, and nothing is done whose
            entry cannot be written.
    """
    if not _has_run(Settings()):
        return act()  # there is no trail yet
    with open_store() as store, store.engine.begin() as connection:  # not gathered, so written here
        store.audit.add(connection, tenant, WHO, action, name, detail)
        return act()


def enter(action: str, name: str, reason: str, act: Callable[[Store, sa.Connection], bool]) -> bool:
    """Does something and appends it to the audit trail, both or neither.

    Args:
        action: What the trail calls it.
        name: Of the resource or operation that it is done to.
        reason: Why, as the caller says.
        act: Changes the database and says whether anything changed: nothing else is entered.

    Returns:
        Whether anything changed.

    Raises:
        InvalidInput: The reason is longer than a purpose may be.
    """
    from ptalign_server.gateway.reading import MAX_PURPOSE

    if len(reason) > MAX_PURPOSE:
        limit = f"must be at most {MAX_PURPOSE} characters"
        raise InvalidInput("--reason", limit, "Name the matter, not its story.")
    with open_store() as store:

        def change(connection: sa.Connection) -> bool:
            changed = act(store, connection)
            if changed:
                tenant, detail = _tenant(store, name), {"reason": reason}
                store.audit.add(connection, tenant, WHO, action, name, detail)
            return changed

        return store.write(change).result()


def _tenant(store: Store, name: str) -> str:
    """Whose it is; empty where its row is gone or damaged: what was done stands all the same."""
    collection, _, found = name.partition("/")
    try:
        if collection == "operations":
            return store.operations.get(found).tenant
        return store.resources.get(name, None).tenant
    except (NotFound, DataDamaged):
        return ""
