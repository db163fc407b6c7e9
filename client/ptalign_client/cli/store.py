"""`ptalign get`, `list`, `download`, `export` and the rest of the library."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from ptalign_client.cli import show
from ptalign_client.cli.annotations import read_annotations
from ptalign_client.cli.session import Session, command
from ptalign_client.download import inside
from ptalign_client.errors import ConfigError, NotFound
from ptalign_client.nouns import Adapter, Evaluation, Imported, Record, View

PANEL = "What runs and what is there"
Name = Annotated[str, typer.Argument(help="E.g. adapters/ID or pairSets/ID.")]
WithFiles = Annotated[str, typer.Argument(help="adapters/ID or evaluations/ID.")]
WithRecords = Annotated[
    str,
    typer.Argument(help="instructionSets/ID, pairSets/ID, annotationSets/ID or adapters/ID."),
]
Exportable = Annotated[str, typer.Argument(help="A set: instructionSets/ID or pairSets/ID.")]
Purpose = Annotated[
    str, typer.Option(help="Why harmful text is read; needed for it, and kept in the audit.")
]
Kind = Literal["instructions", "annotations", "pairs", "adapters", "evaluations"]
LISTS = {
    "instructions": "instruction_sets",
    "annotations": "annotation_sets",
    "pairs": "pair_sets",
    "adapters": "adapters",
    "evaluations": "evaluations",
}


def get(session: Session, name: Name) -> None:
    """Show one resource.

    [bold]Examples[/]

      ptalign get adapters/ID
    """
    found = session.client.get(name)
    session.emit(found) if session.as_json else session.out.print(show.details(found))


def listing(
    session: Session,
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Only of this model.")] = "",
    policy: Annotated[str, typer.Option("--policy", "-p", help="Only of this policy.")] = "",
    limit: Annotated[int, typer.Option("--limit", "-n", help="At most so many.", min=1)] = 20,
) -> None:
    """List resources, newest first.

    [bold]Examples[/]

      ptalign list adapters -m smollm2-135m-instruct
    """
    pages = getattr(session.client, LISTS[kind])
    with pages(model=model, policy=policy, page_size=min(limit, 500)) as items:
        found = list(islice(items, limit))
    if session.as_json:
        for item in found:
            session.emit(item)
    elif not found:
        session.note(f"No {kind} like that." if model or policy else f"No {kind} yet.")
    else:
        session.out.print(show.listing(found))


def records(
    session: Session,
    name: WithRecords,
    view: Annotated[View, typer.Option(help="full needs a role and --purpose.")] = "safe",
    purpose: Purpose = "",
    offset: Annotated[int, typer.Option(help="Records to skip.", min=0)] = 0,
    limit: Annotated[int, typer.Option("--limit", "-n", help="0: all.", min=0)] = 0,
) -> None:
    """Stream the records of a set as JSON lines; harmful text is masked in the safe view.

    Of an adapter: the words that it suppresses, by topic, before and after, and the ordinary ones
    that lost too.

    [bold]Examples[/]

      ptalign records pairSets/ID -n 3

      ptalign records adapters/ID --view full --purpose "release review"
    """
    stream = session.client.records(name, view=view, purpose=purpose, offset=offset, limit=limit)
    with stream:
        for record in stream:
            session.emit(record)


def download(
    session: Session,
    name: WithFiles,
    part: Annotated[
        str, typer.Argument(help="One file, e.g. report.html; all of them unless set.")
    ] = "",
    out: Annotated[Path, typer.Option("--out", "-o", help="File or folder to write.")] = Path(),
    purpose: Purpose = "",
) -> None:
    """Download files of an adapter or evaluation, verified by sha256.

    A download that broke continues where it stopped.

    [bold]Examples[/]

      ptalign download adapters/ID -o ./my-adapter

      ptalign download evaluations/ID report.html
    """
    if part:
        _fetch(session, name, part, out, purpose)
        return
    found = session.client.get(name)
    if not isinstance(found, Adapter | Evaluation):
        raise ConfigError(f"{name} is a set", f"Use: ptalign export {name} --out FILE.jsonl")
    out.mkdir(parents=True, exist_ok=True)
    for file in found.files:
        _fetch(session, name, file.part, inside(out, file.part), purpose)


def export(
    session: Session,
    name: Exportable,
    out: Annotated[Path, typer.Option("--out", "-o", help="File ending in .jsonl or .parquet.")],
    purpose: Purpose = "",
) -> None:
    """Export a set in the layouts that TRL reads.

    [bold]Examples[/]

      ptalign export pairSets/ID -o pairs.jsonl --purpose "train a baseline"
    """
    if out.suffix not in (".jsonl", ".parquet"):
        raise ConfigError(f"{out}: the name must end in .jsonl or .parquet")
    _fetch(session, name, f"export{out.suffix}", out, purpose)


def annotate(
    session: Session,
    file: Annotated[Path, typer.Argument(help="YAML or JSONL: instruction, good, bad, topic.")],
    model: Annotated[str, typer.Option("--model", "-m", help="A name of `ptalign catalogue`.")],
    policy: Annotated[str, typer.Option("--policy", "-p", help="The file's own unless set.")] = "",
    minutes: Annotated[
        float | None, typer.Option(help="What they cost; the file's own unless set.", min=0)
    ] = None,
) -> None:
    """Upload fewer than 50 annotations as a set.

    Each says what a good and a bad answer to an instruction look like. Text on the policy's
    never-synthesize list is refused; a bad answer of a topic without a toxic side is never shown
    to the model. Without a bad answer, the model writes one where the topic has a toxic side.

    [bold]Examples[/]

      ptalign annotate marks.yaml -m smollm2-135m-instruct -p tone-en
    """
    marks = read_annotations(file)
    if not (policy or marks.policy):
        raise ConfigError(f"{file} names no policy", "Add --policy NAME.")
    made = session.client.annotate(
        marks.items,
        model=model,
        policy=policy or marks.policy,
        annotator_minutes=marks.annotator_minutes if minutes is None else minutes,
    )
    if session.as_json:
        session.emit(made)
    else:
        session.out.print(f"[cyan]{made.name}[/]  {show.summary(made)}")


def import_set(
    session: Session,
    file: Annotated[Path, typer.Argument(help="JSONL of records, as `ptalign records` prints.")],
    kind: Annotated[Literal["instructions", "pairs"], typer.Option(help="What the set is.")],
    model: Annotated[str, typer.Option("--model", "-m", help="A name of `ptalign catalogue`.")],
    policy: Annotated[str, typer.Option("--policy", "-p", help="A name of `ptalign catalogue`.")],
) -> None:
    """Make a set from records of your own.

    Checked are kinds, lengths, topics and their sides, repeats, the never-synthesize list and
    twins that decline. No judge reads the answers: whether they are good and bad is your part.

    A pair, twin or anchor with `"held_out": true` is never trained on: what training did is
    measured on it.

    [bold]Examples[/]

      ptalign import ours.jsonl --kind instructions -m my-model -p tone-en
    """
    if not file.is_file():
        raise ConfigError(f"{file}: no such file")
    made = session.client.import_set(
        lambda: _records(file),
        kind="instructionSets" if kind == "instructions" else "pairSets",
        model=model,
        policy=policy,
    )
    _show_imported(session, made)


def merge(
    session: Session,
    names: Annotated[list[str], typer.Argument(help="2..50 sets of one kind and model.")],
) -> None:
    """Merge sets into a new one that holds each instruction once, in the order of the sets.

    What the never-synthesize list of any of their policies forbids is left out, and so are anchors
    that earlier weights of the model wrote.

    [bold]Examples[/]

      ptalign merge pairSets/ID pairSets/OTHER
    """
    _show_imported(session, session.client.merge(names))


def purge(
    session: Session,
    name: Annotated[str, typer.Argument(help="A set, e.g. pairSets/ID.")],
    reason: Annotated[str, typer.Option(help="Kept in the audit record.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Destroy a set's record text for good; counts and digests stay.

    [bold]Examples[/]

      ptalign purge pairSets/ID --reason "retention of the pilot ended"
    """
    if not yes:
        question = f"Destroy the text of {name}? It cannot be brought back."
        typer.confirm(question, abort=True, err=True)
    session.client.purge(name, reason=reason)
    session.emit({"purged": name}) if session.as_json else None
    session.note(f"[green]{escape(name)} is purged.[/]")


def resolve(
    session: Session,
    model: Annotated[str, typer.Option("--model", "-m", help="A name of `ptalign catalogue`.")],
    policy: Annotated[str, typer.Option("--policy", "-p", help="A name of `ptalign catalogue`.")],
) -> None:
    """Name the adapter to serve: the newest that PASSed and has not FAILed since.

    [bold]Examples[/]

      ptalign resolve -m smollm2-135m-instruct -p tone-en
    """
    try:
        found = session.client.resolve_adapter(model=model, policy=policy)
    except NotFound as error:
        if error.reason != "RESOURCE_NOT_FOUND":
            raise
        raise NotFound(
            f"no adapter for {model} and {policy} is released: none passed, or it failed or was "
            "withdrawn since",
            f"Evaluate one: `ptalign evaluate adapters/ID -m {model}`.",
            reason=error.reason,
        ) from None
    if session.as_json:
        session.emit(found)
    else:
        session.out.print(found.adapter.name)
        session.note(f"[dim]passed {found.evaluation}; weights {found.adapter.weights_sha256}[/]")


def catalogue(session: Session) -> None:
    """List the names you may use: models, policies, suites, judges, gates, profiles."""
    found = session.client.catalogue()
    if session.as_json:
        session.emit(found)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("KIND", no_wrap=True)
    table.add_column("NAME", style="cyan", no_wrap=True)
    table.add_column("TITLE", overflow="fold")
    for spec in fields(found):
        for i, entry in enumerate(getattr(found, spec.name)):
            table.add_row("" if i else spec.name, entry.name, Text(entry.title))
    session.out.print(table)


def _fetch(session: Session, name: str, part: str, out: Path, purpose: str) -> None:
    columns = (
        TextColumn("[bold cyan]{task.description}"),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=session.err, transient=True) as bar:
        task = bar.add_task(part, total=None)

        def on_bytes(here: int, total: int) -> None:
            bar.update(task, completed=here, total=total)

        file = session.client.download(name, part, out, purpose=purpose, on_bytes=on_bytes)
    if session.as_json:
        session.emit({"file": file, "bytes": file.stat().st_size})
    else:
        session.out.print(
            f"{escape(str(file))}  [dim]{show.size(file.stat().st_size)}, sha256 verified[/]"
        )


def _records(file: Path) -> Iterator[Record]:
    known = {f.name for f in fields(Record)}
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                found: dict[str, Any] = json.loads(line)
                unknown = sorted(set(found) - known)
                if unknown:
                    raise ConfigError(f"{file}:{number}: no such field: {unknown[0]}")
                yield Record(**found | {"masked": tuple(found.get("masked", ()))})
            except UnicodeDecodeError:
                raise ConfigError(f"{file}:{number}: is not UTF-8") from None
            except (ValueError, TypeError, AttributeError):
                raise ConfigError(f"{file}:{number}: is not a JSON object") from None


def _show_imported(session: Session, made: Imported) -> None:
    if session.as_json:
        session.emit(made)
        return
    reasons = ", ".join(f"{reason} {n}" for reason, n in made.rejected.items())
    session.out.print(
        f"[cyan]{made.name}[/]  {made.accepted} accepted"
        + (f", {sum(made.rejected.values())} rejected ({escape(reasons)})" if reasons else "")
    )


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    command(app, "list", rich_help_panel=PANEL)(listing)
    command(app, "import", rich_help_panel=PANEL)(import_set)
    for verb in (get, records, download, export, annotate, merge, purge, resolve, catalogue):
        command(app, rich_help_panel=PANEL)(verb)
