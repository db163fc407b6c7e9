"""What every command shares: the connection options, two consoles, and how errors end it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec, get_type_hints

import grpc
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ptalign_client.errors import (
    ConfigError,
    DataLoss,
    DeadlineExceeded,
    DownloadDamaged,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    PtalignError,
    ServiceError,
    Unauthenticated,
    Unavailable,
)
from ptalign_client.options import DEFAULT_ENDPOINT, TLS, Options, Retry
from ptalign_client.sync import Client
from ptalign_proto import __version__

P = ParamSpec("P")
PANEL = "Connection and output"
RETRY = Retry(attempts=5)
"""A person waits: 3 s of silence on average, 6 s at most, before the command says that nobody
answers; longer where connecting itself hangs."""

EXIT_CODES = {
    0: "done",
    1: "the service refused, or the operation failed",
    2: "wrong usage or input: nothing was started",
    3: "not reachable, or no answer in time: trying again helps",
    4: "not allowed: token, certificate or role",
    5: "the verdict is not PASS (--require-pass)",
    6: "stored or downloaded data is damaged",
    70: "a fault of ptalign itself",
    130: "interrupted; the operation goes on unless it says otherwise",
}
_EXITS: tuple[tuple[tuple[type[PtalignError], ...], int], ...] = (
    ((ConfigError, InvalidArgument, NotFound), 2),
    ((Unavailable, DeadlineExceeded), 3),
    ((Unauthenticated, PermissionDenied), 4),
    ((DataLoss, DownloadDamaged), 6),
    ((PtalignError,), 1),
)


def exit_code(error: PtalignError) -> int:
    """The exit code of an error that ends a command; a failed operation is always 1."""
    if isinstance(error, ServiceError) and error.operation:
        return 6 if isinstance(error, DataLoss) else 1
    return next(code for kinds, code in _EXITS if isinstance(error, kinds))


class Session:
    """One run of a command: a client made when it is first needed, and where output goes.

    Machine output goes to stdout and is nothing but JSON under ``--json``; everything that is
    for eyes goes to stderr, but for the tables that a command was asked for.
    """

    def __init__(self, options: Options, *, as_json: bool) -> None:
        self.as_json = as_json
        self.out = Console(highlight=False)
        self.err = Console(stderr=True, highlight=False)
        self._options = options
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        if self._client is None:
            self._client = Client(options=self._options)
        return self._client

    def emit(self, value: Any) -> None:
        """Prints one JSON value on a line of its own."""
        self.out.file.write(json.dumps(jsonable(value), ensure_ascii=False) + "\n")
        self.out.file.flush()

    def note(self, text: str) -> None:
        """Says something to the person, with rich markup."""
        self.err.print(text)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


def plain(text: str) -> str:
    """Text from elsewhere without what a terminal would obey: ESC and other control characters."""
    return "".join(c if c in "\n\t" or c.isprintable() else "\ufffd" for c in text)


def jsonable(value: Any) -> Any:
    """Nouns as plain JSON values; times in ISO 8601."""
    if is_dataclass(value) and not isinstance(value, type):
        return jsonable(asdict(value))
    if isinstance(value, dict):
        return {k: jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, Path) else value


def shared(
    endpoint: Annotated[
        str,
        typer.Option(
            envvar="PTALIGN_ENDPOINT",
            help=f"host:port of the service; {DEFAULT_ENDPOINT} unless set.",
            rich_help_panel=PANEL,
            show_default=False,
        ),
    ] = "",
    token: Annotated[
        str,
        typer.Option(
            envvar="PTALIGN_TOKEN",
            help="Bearer token. Prefer the variable: arguments show in the process list.",
            rich_help_panel=PANEL,
            show_default=False,
        ),
    ] = "",
    tls_root: Annotated[
        Path | None,
        typer.Option(
            envvar="PTALIGN_TLS_ROOT",
            help="PEM of the authority to trust; turns TLS on.",
            rich_help_panel=PANEL,
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            envvar="PTALIGN_TLS_CERT",
            help="PEM of the client certificate (mutual TLS).",
            rich_help_panel=PANEL,
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(
            envvar="PTALIGN_TLS_KEY", help="PEM of the client key.", rich_help_panel=PANEL
        ),
    ] = None,
    tls_server_name: Annotated[
        str,
        typer.Option(
            envvar="PTALIGN_TLS_SERVER_NAME",
            help="Name in the server's certificate where the endpoint is another, e.g. a tunnel.",
            rich_help_panel=PANEL,
            show_default=False,
        ),
    ] = "",
    timeout: Annotated[
        float,
        typer.Option(
            help="Seconds one call may take, retries included.", min=0.1, rich_help_panel=PANEL
        ),
    ] = 30.0,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="JSON on stdout, one value a line; the rest on stderr.",
            rich_help_panel=PANEL,
        ),
    ] = False,
) -> Session:
    """The session of the options that every command has."""
    tls = TLS(root=tls_root, cert=tls_cert, key=tls_key, server_name=tls_server_name)
    given = tls if tls != TLS() else None
    options = Options(endpoint=endpoint, token=token, tls=given, timeout=timeout, retry=RETRY)
    return Session(options, as_json=as_json)


def command(
    app: typer.Typer, name: str | None = None, **settings: Any
) -> Callable[[Callable[Concatenate[Session, P], None]], Callable[Concatenate[Session, P], None]]:
    """Registers a command: its own options, then the shared ones, and errors that teach."""

    def register(
        body: Callable[Concatenate[Session, P], None],
    ) -> Callable[Concatenate[Session, P], None]:
        def call(ctx: typer.Context, **values: Any) -> None:
            before = (ctx.find_root().obj or {}) if ctx else {}
            common = {key: values.pop(key) for key in SHARED}
            after = {key: value for key, value in common.items() if _typed(ctx, key)}
            _guarded(shared(**(common | before | after)), body, values)

        settings.setdefault("help", teach(inspect.getdoc(body) or ""))
        app.command(name or body.__name__, **settings)(
            with_parameters(call, [*_parameters(body)[1:], *_parameters(shared)])
        )
        return body

    return register


def teach(text: str) -> str:
    """A docstring as help: paragraphs flow, indented lines are commands to copy."""
    flowing = []
    for paragraph in text.split("\n\n"):
        indented = paragraph.startswith("  ")
        flowing.append(
            f"[dim]  $[/] [cyan]{escape(paragraph.strip())}[/]"
            if indented
            else " ".join(paragraph.split("\n"))
        )
    return "\n\n".join(flowing)


def root(app: typer.Typer, epilog: str) -> None:
    """Lets the shared options stand before the command's name too."""

    def call(ctx: typer.Context, version: bool = False, **common: Any) -> None:
        ctx.obj = common
        if version:
            print(f"ptalign {__version__}")
            raise typer.Exit
        if ctx.invoked_subcommand is None:
            typer.echo(ctx.get_help())
            raise typer.Exit(2)

    show_version = inspect.Parameter(
        "version",
        inspect.Parameter.KEYWORD_ONLY,
        default=False,
        annotation=Annotated[bool, typer.Option("--version", help="Print the version.")],
    )
    parameters = [show_version, *_parameters(shared)]
    app.callback(epilog=epilog, invoke_without_command=True)(with_parameters(call, parameters))


def with_parameters(
    call: Callable[..., None], parameters: list[inspect.Parameter]
) -> Callable[..., None]:
    """The function, as typer sees it: its context, then these parameters."""
    ctx = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    vars(call)["__signature__"] = inspect.Signature([ctx, *parameters])
    call.__annotations__ = {p.name: p.annotation for p in (ctx, *parameters)}
    return call


def _typed(ctx: typer.Context | None, name: str) -> bool:
    """Whether an option stands after the command's name.

    Those before it count where none does; they hold what the environment says too.
    """
    source = ctx.get_parameter_source(name) if ctx else None
    return source is not None and source.name == "COMMANDLINE"


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(function, include_extras=True)
    return [
        p.replace(annotation=hints[p.name], kind=inspect.Parameter.KEYWORD_ONLY)
        for p in inspect.signature(function).parameters.values()
    ]


SHARED = inspect.signature(shared).parameters


def _guarded(session: Session, body: Callable[..., None], values: dict[str, Any]) -> None:
    try:
        body(session, **values)
    except PtalignError as error:
        report(session, error)
        raise typer.Exit(exit_code(error)) from None
    except KeyboardInterrupt:
        session.note("[yellow]interrupted[/]")
        raise typer.Exit(130) from None
    except BrokenPipeError:
        raise typer.Exit(0) from None  # the reader of stdout has seen enough
    except OSError as error:
        if (found := of_a_file(error)) is None:
            raise
        report(session, found)
        raise typer.Exit(exit_code(found)) from None
    finally:
        session.close()


def of_a_file(error: OSError) -> ConfigError | None:
    """The file error as one the caller can fix; None for connection errors."""
    if isinstance(error, (ConnectionError, TimeoutError)):
        return None
    return ConfigError(
        f"{error.filename or 'a file here'}: {error.strerror or error}",
        "Mend the path, its permissions or the space on its disk, and call again.",
    )


def report(session: Session, error: PtalignError) -> None:
    """Prints what went wrong, why, and how to fix it; also as JSON if asked for."""
    what, fields, mend = explain(error)
    table = Table.grid(padding=(0, 1))
    table.add_row(Text("Error:", style="bold red"), Text(plain(what), overflow="fold"))
    for line in fields:
        table.add_row(Text("•", style="red", justify="right"), Text(plain(line), overflow="fold"))
    if mend:
        table.add_row(Text("Fix:", style="bold"), Text(plain(mend), overflow="fold"))
    session.err.print(table)
    if session.as_json:
        session.emit({"error": _facts(error)})


def explain(error: PtalignError) -> tuple[str, list[str], str]:
    """What went wrong in one sentence, the fields at fault, and the mend."""
    if isinstance(error, ServiceError) and error.violations:
        head = "the request has fields outside their limits"
        return _after(error, head), [str(v) for v in error.violations], error.hint
    if isinstance(error, ServiceError):
        return _after(error, error.words), [], error.hint or _where_listed(error)
    return error.words, [], error.hint


LISTED = {
    "operations": "ops list",
    "instructionSets": "list instructions",
    "annotationSets": "list annotations",
    "pairSets": "list pairs",
    "adapters": "list adapters",
    "evaluations": "list evaluations",
}
"""Collection -> the command that lists it."""


def _where_listed(error: ServiceError) -> str:
    """The command that lists what a missing name is one of: the same whoever owns that name."""
    if not isinstance(error, NotFound) or error.reason != "RESOURCE_NOT_FOUND":
        return ""
    kinds = dict.fromkeys(name.partition("/")[0] for name in error.asked)
    lists = (LISTED[kind] for kind in kinds if kind in LISTED)
    known = " or ".join(f"`ptalign {what}`" for what in lists)
    return f"{known} shows yours." if known else ""


def _after(error: ServiceError, text: str) -> str:
    return f"{error.operation} ended with: {text}" if error.operation else text


def _facts(error: PtalignError) -> dict[str, Any]:
    facts: dict[str, Any] = {"type": type(error).__name__, "message": error.words}
    facts |= {"hint": error.hint, "retryable": error.retryable}
    if isinstance(error, ServiceError):
        code = error.code.name if isinstance(error.code, grpc.StatusCode) else ""
        facts |= {"code": code, "reason": error.reason, "metadata": error.metadata}
        facts |= {"operation": error.operation, "resource": error.resource}
        facts["violations"] = [asdict(v) for v in error.violations]
    return facts
