"""google.longrunning.Operations over our own rows."""

from __future__ import annotations

import asyncio
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import empty_pb2

from ptalign.errors import Cancelled, InvalidInput
from ptalign_server.errors import NotFound, OperationRunning, status_of
from ptalign_server.gateway.identity import caller
from ptalign_server.gateway.purge import erase
from ptalign_server.gateway.submit import answer, answers
from ptalign_server.gateway.watch import Feeds
from ptalign_server.in_use import in_use, pass_over
from ptalign_server.store import Store
from ptalign_server.store.glance import Tables
from ptalign_server.store.holds import refuse_held
from ptalign_server.store.operations import (
    CANCELLED,
    CANCELLING,
    STATES,
    TERMINAL,
    WAITING,
    Operation,
)
from ptalign_server.wire import KINDS, cancelled_by

DEFAULT_PAGE = 50
MAX_PAGE = 500
MAX_WAIT_SECONDS = 3600.0
CLAUSE = re.compile(r"\s*(kind|state|done)\s*=\s*\"?([A-Za-z_]+)\"?\s*")
FILTER_MEND = "Write for example: kind=Align AND state=RUNNING, or done=false."


def operation_id(name: str) -> str:
    """The id in ``operations/ID``."""
    if not name.startswith("operations/"):
        raise NotFound
    return name.removeprefix("operations/")


class Operations(operations_pb2_grpc.OperationsServicer):  # type: ignore[misc]
    """Get, list, wait, cancel and delete operations of the caller's tenant."""

    def __init__(self, store: Store, feeds: Feeds) -> None:
        self._store = store
        self._feeds = feeds

    async def GetOperation(self, request: Any, context: Any) -> operations_pb2.Operation:
        tenant = caller().tenant
        found = operation_id(request.name)
        return await self._store.glances.read(
            lambda tables: answer(tables.operations.get(found, tenant), tables)
        )

    async def ListOperations(
        self, request: operations_pb2.ListOperationsRequest, context: Any
    ) -> operations_pb2.ListOperationsResponse:
        kind, states = parse_filter(request.filter)
        size = page_size(request.page_size)
        tenant = caller().tenant

        def read(tables: Tables) -> operations_pb2.ListOperationsResponse:
            rows = tables.operations.page(
                tenant, size + 1, before=request.page_token, kind=kind, states=states
            )
            return operations_pb2.ListOperationsResponse(
                operations=answers(rows[:size], tables),
                next_page_token=rows[size - 1].id if len(rows) > size else "",
            )

        return await self._store.glances.read(read, size)

    async def WaitOperation(
        self, request: operations_pb2.WaitOperationRequest, context: Any
    ) -> operations_pb2.Operation:
        """Answers when the operation is done, or with its state when the timeout ends."""
        end = time.monotonic() + _timeout(request, context)
        found = await self._get(request.name)
        while not found.done and (left := end - time.monotonic()) > 0:
            await self._feeds.wait(found.id, found.sequence, left)
            found = await self._get(request.name)
        return await self._store.glances.read(lambda tables: answer(found, tables))

    async def CancelOperation(self, request: Any, context: Any) -> empty_pb2.Empty:
        found, identity = await self._get(request.name), caller()

        def change(connection: sa.Connection) -> None:
            def told(operation: Operation) -> Operation | None:
                after = cancel(operation, identity.name)
                if after is not None:
                    who = identity.tenant, identity.name
                    self._store.audit.add(connection, *who, "cancel", request.name, {})
                return after

            self._store.operations.advance_in(connection, found.id, told)

        await asyncio.wrap_future(self._store.write(change))
        return empty_pb2.Empty()

    async def DeleteOperation(self, request: Any, context: Any) -> empty_pb2.Empty:
        found = await self._get(request.name)

        def change(connection: sa.Connection) -> None:
            if not found.done:
                raise OperationRunning(
                    f"{request.name} is {found.state}. Cancel it first; what it made stays."
                )
            refuse_held(connection, found.id)
            self._store.operations.delete(connection, found.id)
            if not found.resource:  # nothing else would ever name its call and its log
                self._store.keys.destroy(connection, found.id)
            who = identity.tenant, identity.name
            self._store.audit.add(connection, *who, "delete", request.name, {})

        def whole() -> None:
            if found.kind == "Align":
                self._refuse_resumed(request.name)
            self._store.write(change).result()
            if not found.resource:
                erase(self._store, found.id)
            shutil.rmtree(self._store.work(found.id), ignore_errors=True)

        identity = caller()
        await asyncio.to_thread(whole)  # as in `purge`: to its end, whoever still waits for it
        return empty_pb2.Empty()

    def _refuse_resumed(self, name: str) -> None:
        if by := in_use(self._store, pass_over).get(name):
            raise OperationRunning(
                f"{by} goes on from {name}. Wait for its end, or cancel it: ptalign ops cancel {by}"
            )

    async def _get(self, name: str) -> Operation:
        found = operation_id(name)
        tenant = caller().tenant
        return await self._store.glances.read(lambda tables: tables.operations.get(found, tenant))


def cancel(operation: Operation, who: str) -> Operation | None:
    """What Cancel does to an operation: one that waits ends at once, one that runs is told."""
    if operation.state in TERMINAL or operation.state == CANCELLING:
        return None
    operation = replace(operation, metadata=cancelled_by(operation, who))
    if operation.state in WAITING:
        error = status_of(Cancelled("cancelled before it started")).SerializeToString()
        return replace(operation, state=CANCELLED, error=error, ended=time.time())
    return replace(operation, state=CANCELLING)


def page_size(asked: int) -> int:
    """The page size in force.

    Raises:
        InvalidInput: It is negative or above the limit.
    """
    if not 0 <= asked <= MAX_PAGE:
        mend = f"Leave it out for {DEFAULT_PAGE}."
        raise InvalidInput("page_size", f"must be 0..{MAX_PAGE}, got {asked}", mend)
    return asked or DEFAULT_PAGE


def parse_filter(text: str) -> tuple[str, Sequence[str]]:
    """Kind and states of a filter such as ``kind=Align AND state=RUNNING`` or ``done=false``."""
    kind, states = "", set(STATES)
    for clause in re.split(r"\bAND\b", text) if text.strip() else ():
        match = CLAUSE.fullmatch(clause)
        if match is None:
            raise InvalidInput("filter", f"cannot be read at {clause.strip()[:60]!r}", FILTER_MEND)
        field, value = match.groups()
        if field == "kind":
            before, kind = kind, _one_of(value, tuple(KINDS))
            states = states if before in ("", kind) else set()  # none is of both
        elif field == "state":
            states &= {_one_of(value, STATES)}
        else:
            done = _one_of(value, ("true", "false")) == "true"
            states &= set(TERMINAL) if done else set(STATES) - set(TERMINAL)
    return kind, () if states == set(STATES) else sorted(states) or ["NONE"]


def _one_of(value: str, known: Sequence[str]) -> str:
    if value not in known:
        limit = f"{value[:60]!r} is none of {', '.join(known)}"
        raise InvalidInput("filter", limit, FILTER_MEND)
    return value


def _timeout(request: operations_pb2.WaitOperationRequest, context: Any) -> float:
    """The request's timeout, ending a little before the call's own deadline."""
    asked = MAX_WAIT_SECONDS
    if request.HasField("timeout"):
        asked = request.timeout.seconds + request.timeout.nanos / 1e9
    left = context.time_remaining()
    return float(min(asked, MAX_WAIT_SECONDS if left is None else max(0.0, left - 0.25)))
