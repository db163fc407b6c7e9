"""Whether the server of this state folder serves: asked through its local socket."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ptalign.errors import NotReady
from ptalign_server.settings import Settings

TIMEOUT_SECONDS = 3
SERVING = "SERVING"


def ask(settings: Settings, service: str = "") -> str:
    """The status of a health name, as ``grpc.health.v1`` calls it.

    Raises:
        NotReady: No server answers.
    """
    with grpc.insecure_channel(f"unix:{settings.health_socket}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            request = health_pb2.HealthCheckRequest(service=service)
            answer = stub.Check(request, timeout=TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            raise NotReady(f"no answer: {error.details()}") from None
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def serves(settings: Settings) -> bool:
    """Whether the server of this state folder is up."""
    try:
        return ask(settings) == SERVING
    except NotReady:
        return False
