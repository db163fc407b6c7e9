"""`ptalign-server suites`: what evaluations ask."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
import yaml
from pydantic import ValidationError

from ptalign.errors import InvalidInput
from ptalign_server.catalogue import Catalogue
from ptalign_server.limits import in_file
from ptalign_server.settings import Settings
from ptalign_server.yamlfile import replace_list

app = typer.Typer(help="Evaluation suites that callers may name.", no_args_is_help=True)


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
        added = read_specs(file.read_text())
    except (OSError, ValidationError, yaml.YAMLError) as error:
        mend = "Correct it: ptalign/suites/data/catalogue.yaml has examples."
        raise InvalidInput("file", f"{file} cannot be read: {in_file(error)}", mend) from None
    for spec in added.values():
        check_spec(spec)
    path = settings.state / "suites.yaml"
    own = read_specs(path.read_text()) if path.exists() else {}
    replace_list(path, (spec.model_dump(mode="json") for spec in {**own, **added}.values()))
    typer.echo(f"added {', '.join(added)}")


@app.command("list")
def show() -> None:
    """List the suites and what each measures."""
    for name, spec in Catalogue(Settings()).suites.items():
        typer.echo(f"{name}\t{spec.measure}\t{spec.file or spec.make}")
