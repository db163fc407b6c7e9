"""`ptalign-server judges`: guard models as judges of evaluations."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from ptalign.errors import InvalidInput
from ptalign.judges import judge_names
from ptalign.judges.entries import GuardEntry
from ptalign.judges.guard import AXES, FAMILIES, Answer, GuardJudge
from ptalign_server.judges import called, raw_entries, read_file
from ptalign_server.limits import plain
from ptalign_server.locks import locked_folder
from ptalign_server.settings import Settings
from ptalign_server.yamlfile import replace_list

HARMLESS = ("What is the capital of France?", "The capital of France is Paris.")
"""A request and a reply that no guard calls harmful, or a refusal."""
_REFUSAL = " and ".join(family for family, axes in AXES.items() if "refusal" in axes)
MAX_SHOWN = 200
"""Characters of a guard's answer that are shown."""

app = typer.Typer(
    help="Guard models as judges: any OpenAI-compatible server.\n\n"
    "Callers name them in Evaluate, beside or instead of the judges of ptalign: "
    "[bold]ptalign evaluate --judge NAME[/]. They are kept in judges.yaml in the state folder, "
    "and a running server reads a changed file at the next call.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="What callers write, e.g. qwen-guard.")],
    family: Annotated[
        str,
        typer.Option(help=f"How it is asked and read: {', '.join(FAMILIES)}."),
    ],
    url: Annotated[str, typer.Option(help="Base address, e.g. http://guard:8000/v1.")],
    model: Annotated[str, typer.Option(help="Name the server knows the guard by.")],
    axis: Annotated[
        str,
        typer.Option(
            help=f"harm, or refusal ({_REFUSAL}). For both, add it twice under two names."
        ),
    ] = "harm",
    api_key_env: Annotated[
        str,
        typer.Option(
            help="Environment variable of the server that holds the key. Never the key itself."
        ),
    ] = "",
    locale: Annotated[
        list[str] | None,
        typer.Option(help="Language it was trained on, BCP 47; repeat. All unless set."),
    ] = None,
    guideline: Annotated[
        str, typer.Option(help="ShieldGemma's policy; harassment unless set.")
    ] = "",
    timeout_s: Annotated[
        float | None, typer.Option(help="Seconds one question may take. 60 unless set.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(help="Questions in flight at most. 8 unless set.")
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe/--no-probe", help="Ask it about one harmless reply first.")
    ] = True,
) -> None:
    """Add a judge, or replace the one of the name, once it has judged one harmless reply.

    The file is written anew, without comments.

    [bold]Examples[/]

      ptalign-server judges add qwen-guard --family qwen3guard --url http://127.0.0.1:8000/v1 \\
        --model Qwen/Qwen3Guard-Gen-0.6B

      ptalign-server judges add wild-refusal --family wildguard --axis refusal \\
        --url https://guards.example.org/v1 --model wildguard --api-key-env GUARD_API_KEY
    """
    given = {
        "name": name,
        "family": family,
        "url": url,
        "model": model,
        "axis": axis,
        "api_key_env": api_key_env,
        "locales": locale,
        "guideline": guideline,
        "timeout_s": timeout_s,
        "concurrency": concurrency,
    }
    values = {field: value for field, value in given.items() if value not in (None, "", [])}
    entry = entry_of(values)
    settings = Settings()
    settings.make_folders()
    path = settings.judges_path
    raw_entries(path)  # a file that cannot be used is said before the guard is asked
    if probe:
        typer.echo(probed(entry))
    with locked_folder(path.parent):  # what others changed meanwhile stays
        others = _without(name, raw_entries(path))
        replace_list(path, [*others, entry.model_dump(mode="json", exclude_defaults=True)])
    typer.echo(f"added {entry.id}. Callers write: ptalign evaluate --judge {name}")


@app.command("list")
def show() -> None:
    """List the judges: those of ptalign, the operator's, and entries that cannot be used."""
    for shipped in judge_names():
        typer.echo(f"{shipped}\tof ptalign")
    path = Settings().judges_path
    found = read_file(path)
    for entry in found.entries.usable.values():
        key = f"\tkey in {entry.api_key_env}" if entry.api_key_env else ""
        unset = " (not set here)" if key and not os.environ.get(entry.api_key_env) else ""
        typer.echo(f"{entry.id}\t{entry.family} {entry.model}\t{entry.url}{key}{unset}")
    for broken in found.entries.broken:
        typer.secho(f"{called(broken)} cannot be used: {broken.why}", fg="red", err=True)
    if found.why:
        typer.secho(f"{path} cannot be used: {found.why}", fg="red", err=True)


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="As in the list, without what follows @.")],
) -> None:
    """Remove a judge. Evaluations that it has graded stay as they are."""
    path = Settings().judges_path
    entries = raw_entries(path)
    if len(_without(name, entries)) == len(entries):
        known = ", ".join(str(e.get("name")) for e in entries if isinstance(e, dict)) or "none"
        raise InvalidInput("name", f"no entry of {path} is named {name!r}", f"There are: {known}.")
    with locked_folder(path.parent):
        replace_list(path, _without(name, raw_entries(path)))
    typer.echo(f"removed {name}")


def entry_of(values: Mapping[str, Any]) -> GuardEntry:
    """The entry.

    Raises:
        InvalidInput: A value outside its limits; the first one is named.
    """
    try:
        return GuardEntry.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field, text = ".".join(map(str, first["loc"])), plain(first["msg"])
        if not field:
            field, _, text = text.partition(": ")
        mend = "ptalign-server judges add --help says what it takes."
        raise InvalidInput(field, text.rstrip("."), mend) from None


def probed(entry: GuardEntry) -> str:
    """What the guard says of a harmless reply, in one line.

    Raises:
        InvalidInput: It gave no score; what came back is named.
    """
    try:
        answer = asked(entry)
    except InvalidInput as error:
        mend = "Set it for this command too, or add the judge unseen with --no-probe."
        raise InvalidInput("api_key_env", error.limit, mend) from None
    if answer.score is None:
        came = f": {_shown(answer)}" if answer.text else ""
        raise InvalidInput(
            "url",
            f"{entry.url} gave no score for a harmless reply ({answer.why}{came})",
            "Correct the entry, or add it unseen with --no-probe.",
        )
    line = f"asked about a harmless reply, {entry.model} wrote {_shown(answer)}: {entry.axis} "
    line += f"{answer.score:g}"
    if answer.score:
        line += ". 0 was expected: are these the right family, model and axis?"
    return line


def asked(entry: GuardEntry, timeout_s: float | None = None) -> Answer:
    """What the guard says of a harmless reply, asked once.

    Raises:
        InvalidInput: The key it needs is not set.
    """
    if timeout_s is not None:
        entry = entry.model_copy(update={"timeout_s": min(entry.timeout_s, timeout_s)})
    judge: GuardJudge = entry.judge()
    try:
        return judge.ask(*HARMLESS, attempts=1)
    finally:
        judge.close()


def _without(name: str, entries: Iterable[Any]) -> list[Any]:
    return [e for e in entries if not (isinstance(e, dict) and e.get("name") == name)]


def _shown(answer: Answer) -> str:
    """The answer in one line that no terminal takes for commands."""
    return ascii(" ".join(answer.text.split())[:MAX_SHOWN])
