"""`ptalign-server tokens`: who may call."""

from __future__ import annotations

from typing import Annotated

import typer

from ptalign.errors import InvalidInput, NotReady
from ptalign_server.admin.stored import entered
from ptalign_server.gateway.identity import Tokens
from ptalign_server.settings import ROLES, Settings

MAX_NAME, MAX_TENANT = 100, 64
"""Characters: both stand in rows of operations and of the audit trail, `tokens/NAME` too."""

app = typer.Typer(help="Bearer tokens: stored as hashes, shown once.", no_args_is_help=True)


def _tokens() -> Tokens:
    settings = Settings()
    settings.make_folders()
    return Tokens(settings.tokens_path)


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Who uses it; the tenant's older one goes.")],
    role: Annotated[list[str], typer.Option(help=f"One of {', '.join(ROLES)}; repeat for more.")],
    tenant: Annotated[str, typer.Option(help="Whose resources it sees.")] = "default",
) -> None:
    """Make a token and print it. Running servers take it up at once."""
    for one in role:
        if one not in ROLES:
            raise InvalidInput("--role", f"must be one of {', '.join(ROLES)}", "Choose one.")
    for field, given, most in (("name", name, MAX_NAME), ("--tenant", tenant, MAX_TENANT)):
        if not 1 <= len(given) <= most:
            raise InvalidInput(field, f"must be 1 to {most} characters", "Choose a shorter one.")
    tokens = _tokens()

    def act() -> str:
        return tokens.add(name, tenant, role)

    typer.echo(entered("add token", f"tokens/{name}", tenant, {"roles": role}, act))


@app.command()
def remove(
    name: str,
    tenant: Annotated[str, typer.Option(help="Whose token of the name.")] = "default",
) -> None:
    """Remove a token: its next call is refused."""
    tokens = _tokens()
    known = (one.roles for one in tokens.entries() if (one.name, one.tenant) == (name, tenant))
    roles = list(next(known, ()))

    def act() -> None:
        if not tokens.remove(name, tenant):
            limit = f"no token of the tenant {tenant} is named {name!r}"
            raise InvalidInput("name", limit, "See: ptalign-server tokens list")

    try:
        entered("remove token", f"tokens/{name}", tenant, {"roles": roles}, act)
    except NotReady as error:  # whose access must end cannot wait for a database
        act()
        typer.echo(f"the audit trail has no entry of it: {error}", err=True)
    typer.echo(f"removed {name}")


@app.command("list")
def show() -> None:
    """List names, tenants and roles; never the tokens."""
    for entry in _tokens().entries():
        typer.echo(f"{entry.name}\t{entry.tenant}\t{','.join(entry.roles)}")
