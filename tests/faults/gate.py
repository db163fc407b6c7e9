"""A gateway inside the test process, without a worker: thousands of calls in seconds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health
from world import MODEL, POLICY, generate, lay_out

from ptalign_proto.v1 import (
    library_pb2,
    library_pb2_grpc,
    safety_tuning_pb2,
    safety_tuning_pb2_grpc,
)
from ptalign_server import wire
from ptalign_server.gateway.serve import make_server
from ptalign_server.metrics import Metrics
from ptalign_server.settings import Settings
from ptalign_server.store import Store

SERVICES = (
    safety_tuning_pb2.DESCRIPTOR.services_by_name["SafetyTuning"],
    library_pb2.DESCRIPTOR.services_by_name["Library"],
    operations_pb2.DESCRIPTOR.services_by_name["Operations"],
)
DOCUMENTED = {
    "OK",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "FAILED_PRECONDITION",
    "ALREADY_EXISTS",
    "RESOURCE_EXHAUSTED",
    "OUT_OF_RANGE",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "UNAVAILABLE",
}
"""Codes that the error table names, but for CANCELLED and INTERNAL, which no input may cause."""


@dataclass
class Gate:
    """A channel to the gateway and the store behind it."""

    channel: Any
    store: Store
    settings: Settings

    @property
    def tuning(self) -> Any:
        return safety_tuning_pb2_grpc.SafetyTuningStub(self.channel)

    @property
    def library(self) -> Any:
        return library_pb2_grpc.LibraryStub(self.channel)

    @property
    def operations(self) -> Any:
        return operations_pb2_grpc.OperationsStub(self.channel)

    async def raw(
        self, method: MethodDescriptor, data: bytes, token: str = "", timeout: float = 5.0
    ) -> tuple[str, str]:
        """Sends bytes to a method; returns code and details."""
        path = f"/{method.containing_service.full_name}/{method.name}"
        metadata = (("authorization", f"Bearer {token}"),) if token else None
        make = {
            (False, False): self.channel.unary_unary,
            (False, True): self.channel.unary_stream,
            (True, False): self.channel.stream_unary,
        }[(method.client_streaming, method.server_streaming)]
        stub = make(path, request_serializer=bytes, response_deserializer=bytes)
        given = iter([data]) if method.client_streaming else data
        call = stub(given, metadata=metadata, timeout=timeout)
        try:
            if method.server_streaming:
                async for _ in call:
                    break
                call.cancel()
            else:
                await call
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details() or ""
        return "OK", ""


def methods() -> list[MethodDescriptor]:
    """Every method of our services."""
    return [method for service in SERVICES for method in service.methods]


def request_class(method: MethodDescriptor) -> Any:
    from google.protobuf import message_factory

    return message_factory.GetMessageClass(method.input_type)


@asynccontextmanager
async def gateway(state: Path, **settings: Any) -> AsyncIterator[Gate]:
    """Serves for the length of the block."""
    state.mkdir(parents=True, exist_ok=True)
    lay_out(state)
    configured = Settings(state=state, **settings)
    store = Store(configured, wire.freeze)
    server = make_server(configured, store, Metrics(), health.aio.HealthServicer())
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    try:
        yield Gate(channel, store, configured)
    finally:
        await channel.close()
        await server.stop(0)
        store.close()


async def import_two(gate: Gate) -> str:
    """An instruction set of two records; its name."""
    header = library_pb2.ImportHeader(kind="instructionSets", model=MODEL, policy=POLICY)
    records = [
        library_pb2.Record(instruction=f"Mock my {who} who lost the teapot.", topic="t0")
        for who in ("cousin", "barista")
    ]
    parts = [
        library_pb2.ImportSetRequest(header=header),
        library_pb2.ImportSetRequest(records=records),
    ]
    return str((await gate.library.ImportSet(iter(parts))).name)


async def names(gate: Gate) -> list[str]:
    """Names of things that are there: what a hostile caller would know too."""
    made = await import_two(gate)
    operation = await gate.tuning.GenerateInstructions(generate(2))
    return [MODEL, POLICY, made, operation.name, "instructionSets", "export.jsonl", "t0", "test"]
