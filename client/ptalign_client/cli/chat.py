"""`ptalign chat`: talk to a model, an adapter, or both side by side."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ptalign_client.cli.session import Session, command, plain
from ptalign_client.cli.verbs import chosen
from ptalign_client.errors import ConfigError
from ptalign_client.nouns import ChatMessage


def chat(
    session: Session,
    model: Annotated[str, typer.Option("--model", "-m", help="A name of `ptalign catalogue`.")],
    adapter: Annotated[str, typer.Option("--adapter", "-a", help="adapters/ID")] = "",
    compare: Annotated[
        bool, typer.Option("--compare", "-c", help="The bare model beside the adapter.")
    ] = False,
    once: Annotated[str, typer.Option(help="Say this, print the reply and stop.")] = "",
    max_tokens: Annotated[int | None, typer.Option(help="256 unless set.")] = None,
) -> None:
    """Talk to a model, with an adapter or beside it. Nothing is stored.

    Ctrl-D or an empty line ends the talk. With --compare both hear the adapter's own earlier
    replies, so that their answers to the newest line can be compared.

    [bold]Examples[/]

      ptalign chat -m smollm2-135m-instruct -a adapters/ID --compare

      ptalign chat -m smollm2-135m-instruct --once "How do I say no politely?" --json
    """
    if compare and not adapter:
        raise ConfigError("--compare needs --adapter", "ptalign list adapters shows their names.")
    limit = chosen("--max-tokens", max_tokens, 2048)
    if not once:
        _check_names(session, model, adapter)
    turns: list[ChatMessage] = []
    while line := once or _ask(session):
        turns.append(ChatMessage(role="user", content=line))
        replies = _reply(session, turns, model, adapter, compare, limit)
        if once:
            return
        turns.append(ChatMessage(role="assistant", content=replies.get(adapter or "base", "")))


def _check_names(session: Session, model: str, adapter: str) -> None:
    """Before the person is asked for words that nobody would answer.

    Raises:
        ConfigError: No such model.
        NotFound: No such adapter.
    """
    known = [entry.name for entry in session.client.catalogue().models]
    if model not in known:
        hint = f"Known: {', '.join(known) or 'none is set up yet'}."
        raise ConfigError(f"--model: no model is named {model!r}", hint)
    if adapter:
        session.client.get_adapter(adapter)


def _ask(session: Session) -> str:
    try:
        return session.err.input("[bold cyan]you>[/] ").strip()
    except EOFError:
        return ""


def _reply(
    session: Session,
    turns: list[ChatMessage],
    model: str,
    adapter: str,
    compare: bool,
    max_tokens: int,
) -> dict[str, str]:
    """One turn, shown as it is written."""
    labels = (["base"] if compare or not adapter else []) + ([adapter] if adapter else [])
    replies = dict.fromkeys(labels, "")
    stream = session.client.chat(
        turns, model=model, adapter=adapter, compare=compare, max_tokens=max_tokens
    )
    live = session.out.is_terminal and not session.as_json
    with Live(console=session.out, auto_refresh=False) if live else _Silent() as screen, stream:
        for piece in stream:
            replies[piece.label] = replies.get(piece.label, "") + piece.text
            if live:
                screen.update(side_by_side(replies), refresh=True)
    if session.as_json:
        session.emit({"replies": replies})
    elif not live:
        for label, text in replies.items():
            session.out.print(plain(f"{label}: {text}"), markup=False, soft_wrap=True)
    return replies


class _Silent:
    """No screen: output goes to a file or is JSON."""

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, _: RenderableType, *, refresh: bool) -> None:
        return None


def side_by_side(replies: dict[str, str]) -> RenderableType:
    """Each reply in a column of its own."""
    table = Table.grid(expand=True, padding=(0, 1))
    for _ in replies:
        table.add_column(ratio=1)
    styles = {"base": "yellow"}
    table.add_row(
        *(
            Panel(
                Text(plain(text.strip()) or "..."),
                title=label,
                title_align="left",
                border_style=styles.get(label, "green"),
            )
            for label, text in replies.items()
        )
    )
    return table


def register(app: typer.Typer) -> None:
    """Adds the command."""
    command(app, rich_help_panel="Look")(chat)
