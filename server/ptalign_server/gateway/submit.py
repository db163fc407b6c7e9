"""From a checked call to a durable operation: one row of our own, committed in the call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from google.longrunning import operations_pb2

from ptalign.errors import PtalignError
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server import failpoints, wire
from ptalign_server.catalogue import Catalogue
from ptalign_server.errors import NotFound, Overloaded
from ptalign_server.gateway.estimates import Estimate
from ptalign_server.gateway.fields import request_id_problems
from ptalign_server.gateway.identity import Identity
from ptalign_server.gateway.verbs import ESTIMATES, Call
from ptalign_server.store import Store
from ptalign_server.store.db import reading
from ptalign_server.store.glance import Tables
from ptalign_server.store.operations import VALIDATING, Operation, new_id
from ptalign_server.store.requests import Ticket, answered, once, sent_before, ticket

MAX_SHOWN = 4096
"""Messages of operations that are remembered: about a kilobyte each."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A call on its way into the store."""

    identity: Identity
    kind: str
    request: Any
    ticket: Ticket | None


async def submit(
    kind: str, request: Any, identity: Identity, store: Store, catalogue: Catalogue, max_queued: int
) -> operations_pb2.Operation:
    """Checks the call and makes its operation; a dry run answers with an estimate instead."""
    call = Call(identity, store, catalogue)
    try:
        estimate = await asyncio.to_thread(ESTIMATES[kind], request, call)
    except PtalignError:  # what the call named may have gone since it was answered
        known = await asyncio.to_thread(_answered, kind, request, identity, store)
        if known is None:
            raise
        return await _shown_of(store, known, identity)
    if request.dry_run:
        return _dry_run(kind, estimate)
    made = await asyncio.to_thread(_made, kind, request, identity, store, max_queued)
    change = _Insert(store, made, max_queued)
    failpoints.hit("enqueue.before")
    operation_id = await asyncio.wrap_future(store.write(change))
    failpoints.hit("enqueue.after")
    if change.made is not None:
        return wire.operation_message(change.made)
    return await _shown_of(store, operation_id, identity)


async def _shown_of(
    store: Store, operation_id: str, identity: Identity
) -> operations_pb2.Operation:
    return await store.glances.read(
        lambda tables: answer(tables.operations.get(operation_id, identity.tenant), tables)
    )


def _answered(kind: str, request: Any, identity: Identity, store: Store) -> str | None:
    """The operation that this very call made before; None where it made none."""
    if request.dry_run or request_id_problems(request):
        return None
    with reading(store.engine) as connection:
        if not sent_before(connection, identity.tenant, request):
            return None
        seen = ticket(store.vault, identity.tenant, kind, stored(kind, request))
        return answered(connection, seen) if seen is not None else None


def _made(kind: str, request: Any, identity: Identity, store: Store, max_queued: int) -> Submission:
    """What goes into the store. Off the loop: a large call takes long to redact and to digest."""
    _refuse_early(store, identity.tenant, request, max_queued)
    request = stored(kind, request)
    return Submission(identity, kind, request, ticket(store.vault, identity.tenant, kind, request))


def _refuse_early(store: Store, tenant: str, request: Any, max_queued: int) -> None:
    """Refuses what the writer would refuse, without waiting for it.

    Overload is when the writer is busiest: its own look at the queue stays the one that counts. A
    call that was sent before may have its answer waiting, so it goes on.
    """
    if store.operations.waited_lately() < max_queued:
        return
    with reading(store.engine) as connection:
        waiting = store.operations.waiting(connection)
        if waiting >= max_queued and not sent_before(connection, tenant, request):
            raise _overloaded(max_queued)


def _overloaded(max_queued: int) -> Overloaded:
    return Overloaded(
        f"{max_queued} operations wait already. Try again when some are done, or raise "
        "PTALIGN_LIMITS__MAX_QUEUED."
    )


def stored(kind: str, request: Any) -> Any:
    """The call as it is kept."""
    with_chats = kind == "GenerateInstructions" and request.excerpts
    return redacted(request) if with_chats else request


def redacted(request: pb.GenerateInstructionsRequest) -> pb.GenerateInstructionsRequest:
    """The call with personal data taken out of its chat excerpts: what is stored and shown."""
    from ptalign.text.redact import redact

    clean = pb.GenerateInstructionsRequest()
    clean.CopyFrom(request)
    clean.excerpts[:] = [redact(text)[0] for text in request.excerpts]
    return clean


def answer(operation: Operation, tables: Tables) -> operations_pb2.Operation:
    """An operation with its response, when it has one."""
    return answers([operation], tables)[0]


def answers(found: Sequence[Operation], tables: Tables) -> list[operations_pb2.Operation]:
    """The operations with their responses, which are read in one go."""
    named = [operation.resource for operation in found if wire.needs_response(operation)]
    made = tables.resources.get_all(named) if named else {}
    messages = []
    for operation in found:
        message = operations_pb2.Operation.FromString(_shown(operation))
        if wire.needs_response(operation):
            if operation.resource not in made:
                raise NotFound
            resource = made[operation.resource]
            message.response.CopyFrom(wire.response(resource.collection, resource.body))
        messages.append(message)
    return messages


_SHOWN: dict[tuple[str, int], bytes] = {}
"""Messages by operation and sequence number, which every change raises. Making one costs more than
reading its row."""


def _shown(operation: Operation) -> bytes:
    """The operation without its response, serialised."""
    key = operation.id, operation.sequence
    found = _SHOWN.get(key)
    if found is None:
        if len(_SHOWN) >= MAX_SHOWN:
            _SHOWN.clear()
        found = _SHOWN[key] = wire.freeze(operation)
    return found


class _Insert:
    """The change: runs on the writer's thread, inside its transaction."""

    def __init__(self, store: Store, submission: Submission, max_queued: int) -> None:
        self._store = store
        self._submission = submission
        self._max_queued = max_queued
        self.made: Operation | None = None

    def __call__(self, connection: sa.Connection) -> str:
        self.made = None  # of a try that was undone

        def make() -> str:
            self.made = self._insert(connection)
            return self.made.id

        found, _ = once(connection, self._submission.ticket, make)
        return found

    def _insert(self, connection: sa.Connection) -> Operation:
        store, submission = self._store, self._submission
        if store.operations.waiting(connection) >= self._max_queued:
            raise _overloaded(self._max_queued)
        now = time.time()
        operation_id = new_id()
        key, wrapped = store.vault.fresh_key(operation_id)
        store.keys.insert(connection, operation_id, wrapped)
        operation = Operation(
            id=operation_id,
            tenant=submission.identity.tenant,
            identity=submission.identity.name,
            kind=submission.kind,
            state=VALIDATING,
            sequence=1,
            attempt=0,
            request=key.seal("request", submission.request.SerializeToString()),
            metadata=b"",
            error=b"",
            resource="",
            created=now,
            started=0.0,
            updated=now,
            ended=0.0,
        )
        who = operation.tenant, operation.identity
        name, detail = wire.operation_name(operation.id), {"kind": operation.kind}
        store.audit.add(connection, *who, "submit", name, detail)
        return store.operations.insert(connection, operation)


def _dry_run(kind: str, estimate: Estimate) -> operations_pb2.Operation:
    metadata = wire.KINDS[kind].metadata()
    metadata.progress.operation = "operations/dry-run"
    metadata.progress.kind = kind
    metadata.progress.state = pb.OPERATION_STATE_SUCCEEDED
    metadata.progress.estimate.CopyFrom(
        pb.Estimate(
            seconds=estimate.seconds,
            memory_bytes=estimate.memory_bytes,
            disk_bytes=estimate.disk_bytes,
            basis=estimate.basis,
        )
    )
    message = operations_pb2.Operation(name="operations/dry-run", done=True)
    message.metadata.Pack(metadata)
    message.response.Pack(wire.KINDS[kind].resource())
    return message
