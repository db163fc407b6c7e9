"""`ptalign-server suites`: what evaluations ask."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ptalign.errors import InvalidInput
from ptalign_server.catalogue import Catalogue, read_suites
from ptalign_server.limits import BAD_YAML, in_file
from ptalign_server.locks import locked_folder
from ptalign_server.settings import Settings
from ptalign_server.yamlfile import replace_list

app = typer.Typer(help="Evaluation suites that callers may name.", no_args_is_help=True)

MEND = "Correct it: ptalign/suites/data/catalogue.yaml has examples."


@app.command()
def add(
    file: Annotated[
        Path, typer.Argument(help="YAML list of suites: name, measure, file, columns.")
    ],
) -> None:
    """Add suites, or replace those of the same names. Their data lies in PTALIGN_EVAL_DATA."""
    from ptalign.suites import check_spec, read_specs

    settings = Settings()
    settings.make_folders()
    try:
        added = read_specs(file.read_text("utf-8"))
    except (OSError, *BAD_YAML) as error:
        raise InvalidInput("file", f"{file} cannot be read: {in_file(error)}", MEND) from None
    if not added:
        raise InvalidInput("file", f"{file} holds no suite", MEND)
    for spec in added.values():
        check_spec(spec)
    path = settings.state / "suites.yaml"
    with locked_folder(path.parent):
        suites = {**read_suites(path), **added}
        replace_list(path, (spec.model_dump(mode="json") for spec in suites.values()))
    typer.echo(f"added {', '.join(added)}")


@app.command("list")
def show() -> None:
    """List the suites and what each measures."""
    for name, spec in Catalogue(Settings()).suites.items():
        typer.echo(f"{name}\t{spec.measure}\t{spec.file or spec.make}")
