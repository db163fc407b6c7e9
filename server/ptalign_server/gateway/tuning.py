"""The service SafetyTuning: four verbs, watching, and a chat to look at an adapter."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from google.longrunning import operations_pb2

from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_proto.v1 import safety_tuning_pb2_grpc as rpc
from ptalign_server import wire
from ptalign_server.catalogue import Catalogue
from ptalign_server.gateway.chat import chat
from ptalign_server.gateway.identity import caller
from ptalign_server.gateway.operations import operation_id
from ptalign_server.gateway.submit import answer, submit
from ptalign_server.gateway.watch import Feeds
from ptalign_server.settings import Settings
from ptalign_server.store import Store

MAX_SEQUENCE = 2**62
"""Beyond any event; a uint64 may say more than a database can compare."""


class SafetyTuning(rpc.SafetyTuningServicer):  # type: ignore[misc]
    """Serves the verbs; see the .proto for what each means."""

    def __init__(
        self, settings: Settings, store: Store, catalogue: Catalogue, feeds: Feeds
    ) -> None:
        self._settings = settings
        self._store = store
        self._catalogue = catalogue
        self._feeds = feeds

    async def GenerateInstructions(self, request: Any, context: Any) -> operations_pb2.Operation:
        return await self._submit("GenerateInstructions", request)

    async def SynthesizePairs(self, request: Any, context: Any) -> operations_pb2.Operation:
        return await self._submit("SynthesizePairs", request)

    async def Align(self, request: Any, context: Any) -> operations_pb2.Operation:
        return await self._submit("Align", request)

    async def Evaluate(self, request: Any, context: Any) -> operations_pb2.Operation:
        return await self._submit("Evaluate", request)

    async def WatchOperation(
        self, request: pb.WatchOperationRequest, context: Any
    ) -> AsyncIterator[pb.OperationEvent]:
        found = operation_id(request.name)
        tenant, glances = caller().tenant, self._store.glances
        await glances.read(lambda tables: tables.operations.get(found, tenant))
        async for event in self._feeds.events(found, min(request.after_sequence, MAX_SEQUENCE)):
            message = operations_pb2.Operation.FromString(event.body)
            changed = wire.changed_at(message)
            if message.done and not message.HasField("error"):
                message = await glances.read(
                    lambda tables: answer(tables.operations.get(found), tables)
                )
            yield pb.OperationEvent(sequence=event.sequence, time=changed, operation=message)
            if message.done:
                return

    async def Chat(self, request: pb.ChatRequest, context: Any) -> AsyncIterator[pb.ChatReply]:
        async for reply in chat(request, caller(), self._settings, self._store, self._catalogue):
            yield reply

    async def _submit(self, kind: str, request: Any) -> operations_pb2.Operation:
        limit = self._settings.limits.max_queued
        return await submit(kind, request, caller(), self._store, self._catalogue, limit)
