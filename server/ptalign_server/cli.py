"""`ptalign-server`: serve, look after and check the service."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer

from ptalign.errors import PtalignError

app = typer.Typer(
    help="The ptalign service: topics in, a safer LoRA adapter and the evidence out.\n\n"
    "Start it with `ptalign-server serve`, check the machine with `ptalign-server doctor`. "
    "Settings are environment variables with the prefix PTALIGN_ (nested by __).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.command()
def serve() -> None:
    """Serve on loopback (gRPC 50051, /metrics 9464) until stopped.

    State goes to ./.ptalign unless PTALIGN_STATE names another folder. Off loopback
    (PTALIGN_HOST) TLS and tokens are required.
    """
    from ptalign_server import logs
    from ptalign_server.gateway.serve import quiet_environment
    from ptalign_server.gateway.serve import serve as run
    from ptalign_server.settings import Settings

    settings = Settings()
    logs.set_up(settings.log_level)
    quiet_environment()

    def ready(port: int) -> None:
        typer.echo(f"serving on {settings.host}:{port}, state in {settings.state}")
        sys.stdout.flush()

    asyncio.run(run(settings, ready))


@app.command()
def health(
    service: Annotated[
        str, typer.Option(help="Health name: empty for the server, ptalign.engine for the engine.")
    ] = "",
) -> None:
    """Ask the running server through its local socket whether it serves: exit 0 or 1."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from ptalign_server.settings import Settings

    channel = grpc.insecure_channel(f"unix:{Settings().health_socket}")
    stub = health_pb2_grpc.HealthStub(channel)
    try:
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=3)
    except grpc.RpcError as error:
        typer.echo(f"no answer: {error.details()}", err=True)
        raise typer.Exit(1) from None
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    typer.echo(name)
    raise typer.Exit(0 if name == "SERVING" else 1)


def main() -> None:
    """Entry of the command: errors made on purpose are shown as one line."""
    try:
        app()
    except PtalignError as error:
        typer.secho(str(error), fg="red", err=True)
        raise SystemExit(2) from None
