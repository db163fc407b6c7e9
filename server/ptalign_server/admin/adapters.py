"""`ptalign-server adapters`: what there is, what ResolveAdapter must not name, what may go."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer

from ptalign.errors import DataDamaged, InvalidInput, NotReady
from ptalign_server.admin.stored import Reason, enter, open_store
from ptalign_server.errors import AdapterDeleted
from ptalign_server.settings import Settings

if TYPE_CHECKING:
    import sqlalchemy as sa

    from ptalign_server.catalogue import Catalogue
    from ptalign_server.store import Store
    from ptalign_server.store.resources import Resource

app = typer.Typer(
    help="Adapters: list them, take them out of service, delete their files.", no_args_is_help=True
)


@app.command()
def withdraw(name: str, reason: Reason = "") -> None:
    """Let ResolveAdapter pass over an adapter (adapters/ID) until it is restored.

    No evaluation brings it back. It can still be evaluated, downloaded and chatted with by name.
    It holds for every server on the database, and leaves an audit entry.
    """
    enter("withdraw", name, reason, lambda store, c: store.withdrawals.add(c, name))
    typer.echo(f"withdrawn: {name}")


@app.command()
def restore(name: str, reason: Reason = "") -> None:
    """Let its evaluations decide again; leaves an audit entry. Not for one that was deleted."""

    def bring_back(store: Store, connection: sa.Connection) -> bool:
        if store.resources.is_purged(connection, name):
            raise AdapterDeleted(name)
        return store.withdrawals.remove(connection, name)

    if not enter("restore", name, reason, bring_back):
        mend = "See: ptalign-server adapters list"
        raise InvalidInput("name", f"{name[:80]!r} is not withdrawn", mend)
    typer.echo(f"restored: {name}")


@app.command()
def delete(name: str, reason: Reason = "") -> None:
    """Remove an adapter's files for good; its record, evaluations and audit entries stay.

    Refused while it is held, while an operation under way works with it, and while it is released
    and not withdrawn. Leaves an audit entry. Deleting it again removes what was left.
    """
    from ptalign_server.catalogue import Catalogue
    from ptalign_server.gateway import deletion

    catalogue = Catalogue(Settings())
    enter("delete", name, reason, lambda store, c: deletion.delete(store, catalogue, c, name))
    with open_store() as store:
        try:
            size = deletion.erase_files(store, name)
        except (NotReady, OSError) as error:
            mend = f"Then delete it again: ptalign-server adapters delete {name}"
            raise NotReady(
                f"{name} is marked as deleted, and its files lie there: {error}. {mend}"
            ) from None
    typer.echo(f"deleted: {name}, {megabytes(size)}")


@app.command("list")
def show() -> None:
    """List the adapters of all tenants, newest first: name, day, size, model, verdict, state.

    The verdict is the newest evaluation's. The state names all that applies of: released
    (ResolveAdapter names it, or would without a newer one), withdrawn, held, in use (by an
    operation under way), deleted, damaged.
    """
    from ptalign_server.catalogue import Catalogue

    with open_store() as store:
        listed = _AdapterList(store, Catalogue(Settings()))
        broken: list[str] = []
        for found in store.resources.all_of("adapters", broken.append):
            typer.echo("\t".join(listed.line(found)))
        for name in broken:
            typer.echo("\t".join(listed.damaged(name)))


class _AdapterList:
    """What the rows of adapters do not say, read once for all of them."""

    def __init__(self, store: Store, catalogue: Catalogue) -> None:
        from ptalign_server.in_use import in_use

        self._store = store
        self._catalogue = catalogue
        self._withdrawn = set(store.withdrawals.names())
        self._held = {name.partition("/")[2] for name in store.holds.names()}
        self._used = in_use(store, lambda *_: None)

    def damaged(self, name: str) -> tuple[str, ...]:
        """An adapter whose row, or what judged it, was changed on disk: the others are shown."""
        return (name, *"----", self.state(name, damaged=True))

    def line(self, found: Resource) -> tuple[str, ...]:
        try:
            return self._line(found)
        except DataDamaged:
            return self.damaged(found.name)

    def _line(self, found: Resource) -> tuple[str, ...]:
        from ptalign_proto.v1 import resources_pb2 as res
        from ptalign_server.gateway.release import released_by

        files = [] if found.purged else res.Adapter.FromString(found.body).files
        judged = self._store.resources.evaluations_of(found.tenant, found.name)
        released = found.name not in self._withdrawn and bool(
            released_by(found, self._store, self._catalogue)
        )
        return (
            found.name,
            datetime.fromtimestamp(found.created, UTC).strftime("%Y-%m-%d"),
            megabytes(sum(file.size for file in files)),
            found.model,
            judged[0].verdict if judged else "-",
            self.state(found.name, deleted=found.purged, released=released),
        )

    def state(self, name: str, **known: bool) -> str:
        marks = known | {
            "withdrawn": name in self._withdrawn,
            "held": name.partition("/")[2] in self._held,
            "in use": name in self._used,
        }
        return ", ".join(mark for mark, holds in marks.items() if holds) or "-"


def megabytes(size: int) -> str:
    """Bytes in one unit, whatever they are: lines are compared and sorted."""
    return f"{size / 1e6:.1f} MB"
