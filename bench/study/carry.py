"""A part of a study that goes on where the machine that began it is gone (docs/adr/0016).

What is carried: the record of its numbers and its sets, encrypted. What is not: the key that opens
them (`operator.key` of the journal), which travels another way, and adapters and replies, which are
made again where they are needed.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from bench.study.form import BASE, Form
from bench.study.journal import KEY, PURPOSE, WRAPPED, Journal, ReplyFile
from bench.study.record import Record, read_record, write_record
from ptalign.nouns import record_id
from ptalign_server.vault import KeyFile, Vault

RECORD = "record.json"


def pack(form: Form, journal: Journal, folder: Path) -> None:
    """Writes what another machine goes on from; a set that is there already is left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    write_record(form, journal, folder / RECORD)
    sealed = [file for file in (journal.folder / "sets").glob("*") if file.suffix != ".log"]
    for file in [*sealed, journal.folder / WRAPPED]:
        there = folder / file.name
        if file.is_file() and not (there.is_file() and there.read_bytes() == file.read_bytes()):
            shutil.copyfile(file, there)


def unpack(folder: Path, key: Path, journal: Journal) -> Record:
    """Fills an empty journal with what `pack` wrote.

    A training whose evaluation is missing is left out, for its adapter is not there; one that is
    never asked (ten times the weight) is whole without it.

    Args:
        folder: Of `pack`.
        key: The journal's `operator.key` on the machine that packed.
        journal: An empty one.

    Returns:
        The record; what `journal` holds now is of it.

    Raises:
        OSError: The folder is not one of `pack`.
        ValueError: Its record is none, or is too old to go on from.
        NotReady: The key file is missing, or others can read it.
        DataDamaged: The key file is none, or is of other sets.
    """
    record = read_record(folder / RECORD)
    Vault(KeyFile(key)).unwrap(PURPOSE, (folder / WRAPPED).read_bytes())
    shutil.copy(key, journal.folder / KEY)
    (journal.folder / "sets").mkdir(mode=0o700, exist_ok=True)
    shutil.copyfile(folder / WRAPPED, journal.folder / WRAPPED)
    for file in folder.iterdir():
        if file.name not in (RECORD, WRAPPED):
            shutil.copyfile(file, journal.folder / "sets" / file.name)
    for name in record.judged:
        log = ReplyFile(journal.folder / name)
        limits = _limits(record, name)
        for reply in record.replies(name):
            if reply.target == BASE:  # asked beside every run: its ids decide what is asked again
                limit = str(limits[reply.suite])
                same = record_id(BASE, "", reply.suite, reply.prompt_id, limit)
                reply = reply.model_copy(update={"id": same})
            log.append(reply)
    for unit, entry in record.units.items():
        kind, _, label = unit.partition("/")
        if kind != "train" or label.endswith("-x10") or f"ask/{label}" in record.units:
            journal.restore(entry)
    return record


def _limits(record: Record, name: str) -> dict[str, int]:
    """Suite -> tokens a reply, of the evaluations that wrote this file."""
    found = (entry["result"] for entry in record.units.values())
    asked = [result for result in found if result.get("replies") == name]
    return {suite["name"]: suite["max_tokens"] for result in asked for suite in result["suites"]}
