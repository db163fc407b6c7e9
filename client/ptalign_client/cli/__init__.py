"""The `ptalign` command."""

from __future__ import annotations

import os
import sys

from rich.console import Console
from rich.markup import escape

from ptalign_client.cli.app import app


def main() -> None:
    """Entry point of the `ptalign` command. No traceback reaches the person unless asked for."""
    try:
        app(prog_name="ptalign")
    except Exception as error:
        if os.environ.get("PTALIGN_DEBUG"):
            raise
        Console(stderr=True).print(
            f"[bold red]Error:[/] a fault of ptalign itself: {type(error).__name__}: "
            f"{escape(str(error))}\n[bold]Fix:[/]   please report it; "
            "PTALIGN_DEBUG=1 shows where it happened."
        )
        sys.exit(70)


__all__ = ["app", "main"]
