"""`ptalign-server`: serve, look after and check the service."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Annotated, NoReturn

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError

from ptalign.errors import NotReady, PtalignError
from ptalign_proto import __version__
from ptalign_server.admin import adapters, audit, hold, judges, keys, models, suites, tokens
from ptalign_server.admin.doctor import doctor

app = typer.Typer(
    help="The ptalign service: topics in, a safer LoRA adapter and the evidence out.\n\n"
    "Check the machine with [bold]ptalign-server doctor[/], start with [bold]ptalign-server "
    "serve[/]. Settings are environment variables with the prefix PTALIGN_, nested by __: "
    "PTALIGN_STATE=/var/lib/ptalign, PTALIGN_ENGINE__KIND=remote.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command()(doctor)
app.add_typer(models.app, name="models")
app.add_typer(suites.app, name="suites")
app.add_typer(judges.app, name="judges")
app.add_typer(keys.app, name="keys")
app.add_typer(tokens.app, name="tokens")
app.add_typer(audit.app, name="audit")
app.add_typer(hold.app, name="hold")
app.add_typer(adapters.app, name="adapters")


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"ptalign-server {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    """Options that stand before any command."""


@app.command()
def serve() -> None:
    """Serve until stopped: gRPC on 50051, /metrics on 9464, the page on 8080, all on loopback.

    State goes to ./.ptalign unless PTALIGN_STATE names another folder. Off loopback
    (PTALIGN_HOST) TLS and tokens are required: the server says what to set. The control services
    answer in seconds; the engine follows (health name ptalign.engine).
    """
    from ptalign_server import logs
    from ptalign_server.gateway.serve import Ports, quiet_environment
    from ptalign_server.gateway.serve import serve as run
    from ptalign_server.hardening import refuse_unpickling
    from ptalign_server.notices import notices
    from ptalign_server.settings import Settings, address

    refuse_unpickling()
    settings = Settings()
    logs.set_up(settings.log_level)
    settings.make_folders()  # before what looks into them
    for notice in notices(settings):
        logging.getLogger("ptalign.server").warning(notice)
    quiet_environment()

    def ready(ports: Ports) -> None:
        # The first line is parsed by scripts: what is new goes below it.
        typer.echo(f"serving on {address(settings.host, ports.grpc)}, state in {settings.state}")
        if ports.page is not None:
            secure = settings.auth.tls_cert is not None and settings.auth.tls_key is not None
            typer.echo(f"page on {_url(settings.page_host, ports.page, secure=secure)}")
        typer.echo(f"metrics on {_url(settings.metrics_host, ports.metrics)}metrics")
        sys.stdout.flush()

    asyncio.run(run(settings, ready))


@app.command()
def health(
    service: Annotated[
        str, typer.Option(help="Health name: empty for the server, ptalign.engine for the engine.")
    ] = "",
) -> None:
    """Ask the running server through its local socket whether it serves: exit 0 or 1."""
    from ptalign_server.health import SERVING, ask
    from ptalign_server.settings import Settings

    try:
        name = ask(Settings(), service)
    except NotReady as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    typer.echo(name)
    raise typer.Exit(0 if name == SERVING else 1)


def main() -> None:
    """Entry of the command: errors made on purpose, and wrong settings, are shown as one line."""
    try:
        app()
    except PtalignError as error:
        _end(error)
    except (ValidationError, SettingsError) as error:
        if isinstance(error, ValidationError) and error.title != "Settings":
            raise
        from ptalign_server.variables import explained

        _end(explained(error))


def _url(host: str, port: int, *, secure: bool = False) -> str:
    from ptalign_server.settings import address

    return f"{'https' if secure else 'http'}://{address(host, port)}/"


def _end(error: PtalignError) -> NoReturn:
    typer.secho(str(error), fg="red", err=True)
    raise SystemExit(2) from None


if __name__ == "__main__":
    main()
