"""`ptalign-server models`: the catalogue of models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from ptalign.errors import InvalidInput
from ptalign.nouns import ModelSpec
from ptalign_server.catalogue import Catalogue, read_models, write_models
from ptalign_server.models import weights_digest
from ptalign_server.settings import Settings

app = typer.Typer(help="Models that callers may name.", no_args_is_help=True)


@app.command()
def prepare() -> None:
    """Convert the demo model (SmolLM2-135M-Instruct) once, into the cache folder."""
    subprocess.run([sys.executable, "-m", "ptalign_server.models"], check=True)


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="What callers write.")],
    path: Annotated[Path, typer.Argument(help="Folder with config, tokenizer and safetensors.")],
    revision: Annotated[str, typer.Option(help="Shown in the catalogue.")] = "",
    system_prompt: Annotated[str, typer.Option(help="In force in all four stages.")] = "",
    locale: Annotated[list[str] | None, typer.Option(help="BCP 47; repeat. en unless set.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Add a model folder, or replace the entry of the name. Its files are hashed."""
    check_folder(path)
    settings = Settings()
    settings.make_folders()
    entry = ModelSpec.model_validate(
        {
            "name": name,
            "path": str(path.absolute()),
            "revision": revision,
            "weights_digest": weights_digest(path),
            "system_prompt": system_prompt,
            "locales": tuple(locale or ["en"]),
            "dtype": dtype,
        }
    )
    models = read_models(settings.models_path) or dict(Catalogue(settings).models)
    write_models(settings.models_path, {**models, name: entry})
    typer.echo(f"{name}: {entry.weights_digest}")


@app.command("list")
def show() -> None:
    """List the catalogue."""
    for model in Catalogue(Settings()).models.values():
        typer.echo(f"{model.name}\t{model.dtype}\t{','.join(model.locales)}\t{model.path}")


def check_folder(path: Path) -> None:
    """Refuses a folder that the stages could not load, or whose loading would run code.

    Raises:
        InvalidInput: Says which file is missing or unsafe.
    """
    for needed in ("config.json", "tokenizer_config.json"):
        if not (path / needed).is_file():
            mend = "Name a folder that transformers saved with save_pretrained."
            raise InvalidInput("path", f"{path} has no {needed}", mend)
    if not any(path.glob("*.safetensors")):
        mend = "Convert the weights to safetensors: other formats run code when they are loaded."
        raise InvalidInput("path", f"{path} has no .safetensors file", mend)
