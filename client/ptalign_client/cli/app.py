"""The commands, put together."""

from __future__ import annotations

import typer

from ptalign_client.cli import chat, compare, ops, run, store, verbs
from ptalign_client.cli.session import EXIT_CODES, root

HELP = """Makes a language model measurably safer: from topics to a safer adapter.

[bold]ptalign run loop.yaml[/] runs the whole loop with progress and a report; generate, synthesize,
align and evaluate run one stage; chat --compare shows the bare model beside an adapter.

The service is at PTALIGN_ENDPOINT, or at 127.0.0.1:50051 (start one: ptalign-server serve).
"""

app = typer.Typer(
    help=HELP,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
root(app, "Exit codes: " + "; ".join(f"{code} {words}" for code, words in EXIT_CODES.items()))
for room in (run, verbs, ops, store, compare, chat):
    room.register(app)
