"""Sealed resources: what the operations made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import sqlalchemy as sa

from ptalign.errors import DataDamaged
from ptalign_server.errors import NotFound
from ptalign_server.store.db import HeavyRow, kinds_of, of_their_kinds, reading
from ptalign_server.store.schema import resources
from ptalign_server.vault import Vault

_LAST_MADE = resources.c.created.desc(), resources.c.name.desc()
"""Order by the end of the work. A name holds the time of the call, and of two evaluations under way
the one that was asked for first may end last."""
LIGHT_BYTES = 16 * 1024
"""Of a row's message: a larger one is not read on the event loop."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One row of `resources`."""

    name: str
    """``instructionSets/ID``, ``annotationSets/ID``, ``pairSets/ID``, ``adapters/ID``,
    ``evaluations/ID``."""
    collection: str
    tenant: str
    model: str
    policy: str
    verdict: str
    """Evaluations only."""
    adapter: str
    """The adapter under test; evaluations only."""
    partial: bool
    purged: bool
    content: str
    """Digest of the sealed noun."""
    body: bytes
    """The wire message, serialised."""
    created: float

    @property
    def id(self) -> str:
        return self.name.partition("/")[2]


_KINDS = kinds_of(Resource)


class Resources:
    """Reads and adds resources.

    Args:
        light: Refuse to read a large row in `get`, `get_all` and `page`: `HeavyRow`.
    """

    def __init__(self, engine: sa.Engine, vault: Vault, *, light: bool = False) -> None:
        self._engine = engine
        self._vault = vault
        body = resources.c.body
        small = sa.case((sa.func.length(body) <= LIGHT_BYTES, body)).label("body")
        self._rows = sa.select(*(small if light and c is body else c for c in resources.c))

    def insert(self, connection: sa.Connection, resource: Resource) -> None:
        """Adds a resource; adding it again (a retried step) changes nothing."""
        known = sa.select(resources.c.name).where(resources.c.name == resource.name)
        if connection.execute(known).first() is None:
            connection.execute(resources.insert().values(**self._signed(resource)))

    def mark_purged(self, connection: sa.Connection, resource: Resource, body: bytes) -> None:
        """Records that the text of a set, or the files of an adapter, are gone."""
        values = self._signed(replace(resource, purged=True, body=body))
        connection.execute(
            resources.update().where(resources.c.name == resource.name).values(**values)
        )

    def is_purged(self, connection: sa.Connection, name: str) -> bool:
        """Whether its text or its files are gone, as of this transaction."""
        query = sa.select(resources.c.purged).where(resources.c.name == name).with_for_update()
        return bool(connection.execute(query).scalar())

    def older_than(
        self,
        cutoff: float,
        collections: Sequence[str],
        damaged: Callable[[str], None],
    ) -> list[Resource]:
        """Resources of all tenants made before `cutoff` whose text is still there.

        Args:
            damaged: Told the name of each row that was changed on disk; it is left out.
        """
        query = sa.select(resources).where(
            resources.c.created < cutoff,
            resources.c.collection.in_(collections),
            resources.c.purged.is_(False),
        )
        return self._intact_ones(query, damaged)

    def all_of(self, collection: str, damaged: Callable[[str], None]) -> list[Resource]:
        """Resources of a collection of all tenants, newest first; see `older_than`."""
        query = sa.select(resources).where(resources.c.collection == collection)
        return self._intact_ones(query.order_by(resources.c.name.desc()), damaged)

    def newest(self, collection: str) -> Resource | None:
        """The last one made of a collection, of all tenants; None when there is none.

        Raises:
            DataDamaged: Its row was changed on disk.
        """
        columns = resources.c
        query = sa.select(resources).where(columns.collection == collection)
        with reading(self._engine) as connection:
            row = connection.execute(query.order_by(*_LAST_MADE).limit(1)).mappings().first()
        return None if row is None else self._checked(row)

    def purged_ids(self) -> list[str]:
        """Ids of purged sets; a deleted adapter keeps what is sealed of it."""
        query = sa.select(resources).where(resources.c.purged, resources.c.collection != "adapters")
        with reading(self._engine) as connection:
            rows = connection.execute(query).mappings().all()
        # A flipped bit in `purged` alone must not destroy a set.
        return [str(r["name"]).partition("/")[2] for r in rows if self._mac(dict(r)) == r["mac"]]

    def get(self, name: str, tenant: str | None) -> Resource:
        """One resource.

        Raises:
            NotFound: There is none, or it is another tenant's.
        """
        query = self._rows.where(resources.c.name == name)
        with reading(self._engine) as connection:
            row = connection.execute(query).mappings().first()
        if row is None or (tenant is not None and row["tenant"] != tenant):
            raise NotFound
        return self._checked(row)

    def get_all(self, names: Sequence[str]) -> dict[str, Resource]:
        """Resources by name; those that are not there are left out."""
        query = self._rows.where(resources.c.name.in_(names))
        with reading(self._engine) as connection:
            rows = connection.execute(query).mappings().all()
        return {row["name"]: self._checked(row) for row in rows}

    def page(
        self, tenant: str, collection: str, size: int, *, before: str, model: str, policy: str
    ) -> list[Resource]:
        """At most `size` resources of a collection, newest first."""
        columns = resources.c
        query = self._rows.where(columns.tenant == tenant, columns.collection == collection)
        if before:
            query = query.where(columns.name < before)
        if model:
            query = query.where(columns.model == model)
        if policy:
            query = query.where(columns.policy == policy)
        query = query.order_by(columns.name.desc()).limit(size)
        with reading(self._engine) as connection:
            return [self._checked(row) for row in connection.execute(query).mappings()]

    def evaluated(self, tenant: str, model: str) -> list[str]:
        """Adapters of a model that were evaluated, newest first."""
        columns = resources.c
        query = (
            sa.select(columns.adapter)
            .where(
                columns.tenant == tenant,
                columns.collection == "evaluations",
                columns.model == model,
                columns.adapter != "",
            )
            .distinct()
            .order_by(columns.adapter.desc())
        )
        with reading(self._engine) as connection:
            return [str(row[0]) for row in connection.execute(query)]

    def evaluations_of(self, tenant: str, adapter: str) -> list[Resource]:
        """Evaluations of an adapter, the last one made first."""
        columns = resources.c
        query = sa.select(resources).where(
            columns.tenant == tenant,
            columns.collection == "evaluations",
            columns.adapter == adapter,
        )
        with reading(self._engine) as connection:
            rows = connection.execute(query.order_by(*_LAST_MADE)).mappings()
            return [self._checked(row) for row in rows]

    def _intact_ones(self, query: sa.Select[Any], damaged: Callable[[str], None]) -> list[Resource]:
        with reading(self._engine) as connection:
            rows = connection.execute(query).mappings().all()
        found = []
        for row in rows:
            try:
                found.append(self._checked(row))
            except DataDamaged:
                damaged(str(row["name"]))
        return found

    def _signed(self, resource: Resource) -> dict[str, Any]:
        values = asdict(resource)
        return {**values, "mac": self._mac(values)}

    def _mac(self, values: Mapping[str, Any]) -> str:
        return self._vault.mac("resource", *(values[f] for f in Resource.__slots__))

    def _checked(self, row: Mapping[Any, Any]) -> Resource:
        if row["body"] is None:
            raise HeavyRow
        values = {name: row[name] for name in Resource.__slots__}
        if not of_their_kinds(values, _KINDS) or self._mac(values) != row["mac"]:
            raise DataDamaged(
                f"{values['name']} was changed in the database. Restore it from a backup."
            )
        return Resource(**values)
