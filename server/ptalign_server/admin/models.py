"""`ptalign-server models`: the catalogue of models."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from ptalign.errors import InvalidInput
from ptalign.nouns import ModelSpec
from ptalign_server.catalogue import Catalogue, read_models, write_models
from ptalign_server.locks import locked_folder
from ptalign_server.models import weights_digest
from ptalign_server.settings import Settings

app = typer.Typer(help="Models that callers may name.", no_args_is_help=True)


@app.command()
def prepare() -> None:
    """Convert the demo model (SmolLM2-135M-Instruct) once, into the cache folder."""
    done = subprocess.run([sys.executable, "-m", "ptalign_server.models"], check=False)
    raise typer.Exit(done.returncode)  # it has said why


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="What callers write.")],
    path: Annotated[Path, typer.Argument(help="Folder with config, tokenizer and safetensors.")],
    revision: Annotated[str | None, typer.Option(help="Shown in the catalogue.")] = None,
    system_prompt: Annotated[
        str | None, typer.Option(help="In force in all four stages; '' for the template's own.")
    ] = None,
    template_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=JSON",
            help="Of the chat template, in all four stages, e.g. enable_thinking=false; repeat. "
            "KEY= drops one.",
        ),
    ] = None,
    locale: Annotated[list[str] | None, typer.Option(help="BCP 47; repeat. en unless set.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16. float32 unless set.")
    ] = None,
) -> None:
    """Add a model folder, or replace the entry of the name. Its files are hashed.

    An entry that is replaced keeps what is not given.
    """
    check_folder(path)
    settings = Settings()
    settings.make_folders()
    given = {
        "revision": revision,
        "system_prompt": system_prompt,
        "locales": tuple(locale) if locale else None,
        "dtype": dtype,
    }
    always = {"name": name, "path": str(path.absolute())}
    known = _models(settings).get(name)
    changed(known, given, template_option, always)  # what does not fit is said before the hashing
    always["weights_digest"] = weights_digest(path)  # takes minutes: what others change stays
    with locked_folder(settings.models_path.parent):
        models = _models(settings)
        known = models.get(name)
        entry = changed(known, given, template_option, always)
        write_models(settings.models_path, {**models, name: entry})
    typer.echo(f"{name}: {entry.weights_digest}")
    if known is None:
        return
    plain, before = ModelSpec(name="", path="").model_dump(), known.model_dump()
    for field, value in {**given, "template_options": template_option or None}.items():
        if value is None and before[field] != plain[field]:
            typer.echo(f"kept {field}: {json.dumps(before[field], ensure_ascii=False)}")


@app.command()
def digest(
    path: Annotated[Path, typer.Argument(help="Folder with config, tokenizer and safetensors.")],
) -> None:
    """Print the digest of a model folder: `weights_digest` of a catalogue written by hand."""
    check_folder(path)
    typer.echo(weights_digest(path))


@app.command("list")
def show() -> None:
    """List the catalogue."""
    for model in Catalogue(Settings()).models.values():
        typer.echo(f"{model.name}\t{model.dtype}\t{','.join(model.locales)}\t{model.path}")


def changed(
    known: ModelSpec | None,
    given: Mapping[str, Any],
    words: list[str] | None,
    always: Mapping[str, Any],
) -> ModelSpec:
    """An entry with what is given.

    Args:
        known: The one of its name; None for a new one.
        given: Fields that are kept where they are None.
        words: Changes of its template options; see `options_of`.
        always: Fields that are never kept.

    Raises:
        InvalidInput: A value outside its limits.
    """
    before = known.model_dump() if known else {}
    options = options_of(words, before.get("template_options", {}))
    fields = {**given, "template_options": options}
    new = {field: value for field, value in fields.items() if value is not None}
    return entry_of({**before, **new, **always})


def options_of(words: list[str] | None, before: Mapping[str, Any]) -> dict[str, Any] | None:
    """Template options with the changes that ``KEY=JSON`` words make; None when there are none.

    Raises:
        InvalidInput: A word without a key, or whose value is not JSON.
    """
    if not words:
        return None
    options = dict(before)
    for word in words:
        key, _, text = word.partition("=")
        if not key.isidentifier() or "=" not in word:
            mend = "Write KEY=JSON, e.g. enable_thinking=false."
            raise InvalidInput("template_option", f"{word!r} has no KEY=", mend)
        if not text:
            options.pop(key, None)
            continue
        try:
            options[key] = json.loads(text)
        except ValueError:
            mend = f"Quote text: '{key}=\"{text}\"'."
            raise InvalidInput("template_option", f"{text!r} is not JSON", mend) from None
    return options


def entry_of(values: Mapping[str, Any]) -> ModelSpec:
    """The catalogue entry.

    Raises:
        InvalidInput: A value outside its limits; the first one is named.
    """
    try:
        return ModelSpec.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise InvalidInput(field, first["msg"], "See --help for what it takes.") from None


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


def _models(settings: Settings) -> dict[str, ModelSpec]:
    return read_models(settings.models_path) or dict(Catalogue(settings).models)
