"""`ptalign run`: the whole loop from one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ptalign_client.cli import show
from ptalign_client.cli.check import check_calls, check_names, check_trainings, read_marks
from ptalign_client.cli.loop import Runner, stage_table
from ptalign_client.cli.loopfile import Loop, Reader, open_loop
from ptalign_client.cli.session import Session, command, exit_code, of_a_file, report
from ptalign_client.cli.state import RunState
from ptalign_client.cli.verbs import RequirePass, demand_pass
from ptalign_client.errors import ConfigError, DeadlineExceeded, PtalignError, ServiceError
from ptalign_client.nouns import Evaluation
from ptalign_client.options import Retry


def run(
    session: Session,
    file: Annotated[Path, typer.Argument(help="Loop file; examples/loop.yaml shows a whole one.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the results; the file's own.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Check file, marks, names and limits, and stop.")
    ] = False,
    require_pass: RequirePass = False,
    cancel_on_interrupt: Annotated[
        bool, typer.Option("--cancel-on-interrupt", help="Ctrl-C cancels the running operation.")
    ] = False,
) -> None:
    """Run the whole loop: instructions, pairs, adapters, evaluation, report.

    A run that was interrupted continues where it stopped when it is run again: the names of its
    operations stand in OUT/.ptalign-run.json. A changed field runs its stage anew, and those
    that depend on it. Where a set they read was purged meanwhile, move that file away.

    [bold]Examples[/]

      ptalign run examples/loop.yaml

      ptalign run loop.yaml --out demo-out --require-pass
    """
    if check and require_pass:  # 0 would read as PASS
        raise ConfigError(
            "--require-pass needs a verdict, and --check stops before there is one",
            "Leave one out.",
        )
    loop, reader = open_loop(file)
    folder = out or Path(loop.out)
    check_trainings(loop, reader, RunState(folder).stages)
    marks = read_marks(loop, reader)
    if check:
        _check(session, loop, reader)
        return
    check_names(loop, reader, session.client.catalogue())
    check_calls(loop, reader, session.client)
    runner = Runner(session, loop, marks, folder, cancel_on_interrupt=cancel_on_interrupt)
    evaluation = _run(session, runner)
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
    if require_pass:
        demand_pass(evaluation)


def _run(session: Session, runner: Runner) -> Evaluation:
    """Runs it. The code for "nothing was started" is not for an error after something was."""
    try:
        return runner.run()
    except (PtalignError, OSError) as error:
        found = error if isinstance(error, PtalignError) else of_a_file(error)
        if found is None or not (runner.began and exit_code(found) == 2):
            raise
        report(session, found)
        raise typer.Exit(1) from None


def _check(session: Session, loop: Loop, reader: Reader) -> None:
    """Says that the file can be run; names and limits are checked where a server answers."""
    named, why = False, ""
    try:
        # One try: a check needs no server, so it does not wait for one.
        once = session.client.with_options(timeout=5, retry=Retry(attempts=1))
        check_names(loop, reader, once.catalogue())
        named = True
        check_calls(loop, reader, once)
    except (ServiceError, DeadlineExceeded) as error:
        why = error.words
    if session.as_json:
        session.emit(
            {
                "file": reader.file,
                "well_formed": True,
                "names_checked": named,
                "limits_checked": not why,
            }
        )
    session.note(f"[green]{escape(str(reader.file))} is well-formed.[/]")
    if why:
        what = "Its ranks, suites and judges" if named else "The names in it"
        session.note(f"{what} were not checked: {escape(why)}.")


def register(app: typer.Typer) -> None:
    """Adds the command."""
    command(app)(run)
