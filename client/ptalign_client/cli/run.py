"""`ptalign run`: the whole loop from one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ptalign_client.cli import show
from ptalign_client.cli.loop import Runner, stage_table
from ptalign_client.cli.loopfile import read_loop
from ptalign_client.cli.session import Session, command


def run(
    session: Session,
    file: Annotated[Path, typer.Argument(help="Loop file; examples/loop.yaml shows a whole one.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the results; the file's own.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Check the file and stop.")] = False,
    require_pass: Annotated[
        bool, typer.Option("--require-pass", help="Exit with 5 unless the verdict is PASS.")
    ] = False,
    cancel_on_interrupt: Annotated[
        bool, typer.Option("--cancel-on-interrupt", help="Ctrl-C cancels the running operation.")
    ] = False,
) -> None:
    """Run the whole loop: instructions, pairs, adapters, evaluation, report.

    A run that was interrupted continues where it stopped when it is run again: the names of its
    operations stand in OUT/.ptalign-run.json. A changed field runs its stage anew, and those
    that depend on it.

    [bold]Examples[/]

      ptalign run examples/loop.yaml

      ptalign run loop.yaml --out demo-out --require-pass
    """
    loop = read_loop(file)
    if check:
        session.note(f"[green]{escape(str(file))} is well-formed.[/]")
        return
    folder = out or Path(loop.out)
    runner = Runner(session, loop, file.parent, folder, cancel_on_interrupt=cancel_on_interrupt)
    evaluation = runner.run()
    if session.as_json:
        stages = {
            done.label: {"name": done.resource.name, "seconds": done.seconds}
            for done in runner.finished
        }
        session.emit({"stages": stages, "evaluation": evaluation, "out": folder})
    else:
        session.out.print()
        session.out.print(stage_table(runner.finished))
        session.out.print()
        session.out.print(show.rates(runner.columns(evaluation)))
        session.out.print()
        session.out.print("verdict:", show.verdict(evaluation))
        session.out.print(f"report:  {folder / 'report.html'}", soft_wrap=True, markup=False)
    if require_pass and evaluation.verdict != "pass":
        raise typer.Exit(5)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    command(app)(run)
