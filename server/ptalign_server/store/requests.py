"""Request ids: the same call sent twice within a day does its work once."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from google.protobuf.message import Message

from ptalign.errors import DataDamaged
from ptalign_server.errors import RequestIdReused
from ptalign_server.store.schema import request_ids
from ptalign_server.vault import Vault

KEEP_SECONDS = 24 * 3600.0
_PLACE = sa.and_(
    request_ids.c.tenant == sa.bindparam("tenant_"),
    request_ids.c.request_id == sa.bindparam("request_id_"),
)
_FIND = sa.select(request_ids).where(_PLACE)
_DROP = request_ids.delete().where(_PLACE)
_INSERT = request_ids.insert()


@dataclass(frozen=True, slots=True)
class Ticket:
    """What identifies one mutating call."""

    tenant: str
    request_id: str
    method: str
    fields: dict[str, str]
    """Field name -> keyed digest of its value, so that the field that differs can be named."""
    vault: Vault = field(repr=False)

    def mac(self, answer: str, fields: Mapping[str, str] | None = None) -> str:
        """Over this ticket's row, with the row's own fields where they are given."""
        text = json.dumps(dict(self.fields if fields is None else fields), sort_keys=True)
        who = (self.tenant, self.request_id, self.method)
        return self.vault.mac("request", *who, text, answer)


def ticket(vault: Vault, tenant: str, method: str, request: Message) -> Ticket | None:
    """The call's ticket; None when it has no request_id."""
    request_id = _request_id(request)
    if not request_id:
        return None
    return Ticket(tenant, request_id, method, field_digests(vault, request), vault)


def sent_before(connection: sa.Connection, tenant: str, request: Message) -> bool:
    """Whether a call with this request_id was answered already; nothing else is compared."""
    request_id = _request_id(request)
    place = {"tenant_": tenant, "request_id_": request_id}
    return bool(request_id) and connection.execute(_FIND, place).first() is not None


def _request_id(request: Message) -> str:
    """In one spelling: a UUID may also come with braces, or without its hyphens."""
    given = str(getattr(request, "request_id", ""))
    return str(uuid.UUID(given)) if given else ""


def field_digests(vault: Vault, request: Message) -> dict[str, str]:
    """A keyed digest per field that is set, without request_id."""
    digests = {}
    for descriptor, _ in request.ListFields():
        if descriptor.name == "request_id":
            continue
        alone = type(request)()
        alone.MergeFrom(request)
        for other, _ in request.ListFields():
            if other.name != descriptor.name:
                alone.ClearField(other.name)
        data = alone.SerializeToString(deterministic=True)
        digests[descriptor.name] = vault.mac("field", data)[:16]
    return digests


def once(
    connection: sa.Connection, ticket: Ticket | None, make: Callable[[], str]
) -> tuple[str, bool]:
    """The answer of an earlier equal call, or that of `make`.

    Returns:
        The name of what the call made, and whether it was made now.

    Raises:
        RequestIdReused: The id was used for a call with another payload.
        DataDamaged: What is known of the earlier call was changed on disk.
    """
    if ticket is None:
        return make(), True
    known = _known(connection, ticket)
    if known is not None:
        return known, False
    answer = make()
    values = {
        "tenant": ticket.tenant,
        "request_id": ticket.request_id,
        "method": ticket.method,
        "fields": json.dumps({"fields": ticket.fields, "mac": ticket.mac(answer)}, sort_keys=True),
        "answer": answer,
        "created": time.time(),
    }
    connection.execute(_INSERT, values)
    return answer, True


def answered(connection: sa.Connection, ticket: Ticket) -> str | None:
    """The answer of an earlier equal call; None where there is none. Changes nothing.

    Raises:
        RequestIdReused: The id was used for a call with another payload.
        DataDamaged: What is known of the earlier call was changed on disk.
    """
    row = connection.execute(_FIND, _place(ticket)).first()
    return None if row is None or _is_old(row) else _answer(row, ticket)


def forget_old(connection: sa.Connection) -> None:
    """Drops request ids that no longer count; called now and then."""
    old = request_ids.c.created < time.time() - KEEP_SECONDS
    connection.execute(request_ids.delete().where(old))


def _known(connection: sa.Connection, ticket: Ticket) -> str | None:
    row = connection.execute(_FIND, _place(ticket)).first()
    if row is None:
        return None
    if _is_old(row):
        connection.execute(_DROP, _place(ticket))
        return None
    return _answer(row, ticket)


def _place(ticket: Ticket) -> dict[str, str]:
    return {"tenant_": ticket.tenant, "request_id_": ticket.request_id}


def _is_old(row: Any) -> bool:
    return bool(row.created < time.time() - KEEP_SECONDS)


def _answer(row: Any, ticket: Ticket) -> str:
    """The answer that a row holds, if its call was this one."""
    if row.method != ticket.method:
        raise RequestIdReused(["method"])
    before = _fields(row, ticket)
    differing = [
        k for k in sorted({*before, *ticket.fields}) if before.get(k) != ticket.fields.get(k)
    ]
    if differing:
        raise RequestIdReused(differing)
    return str(row.answer)


def _fields(row: Any, ticket: Ticket) -> dict[str, str]:
    try:
        kept = json.loads(row.fields)
        fields: dict[str, str] = kept["fields"]
        intact = ticket.mac(row.answer, fields) == kept["mac"]
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        raise DataDamaged(
            f"what is known of request_id {ticket.request_id} was changed in the database. Send a "
            "new request_id."
        )
    return fields
