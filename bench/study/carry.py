"""A part of a study that goes on where the machine that began it is gone (docs/adr/0016).

What is carried: the record of its numbers, with an outcome a reply, and its sets, encrypted. What
is not: the key that opens them (`operator.key` of the journal), which travels another way, the
texts of replies, and adapters, which are made again where they are needed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.study.form import BASE, Form
from bench.study.journal import KEY, PURPOSE, WRAPPED, Journal, ReplyFile
from bench.study.record import Record, read_record, write_record
from ptalign.errors import DataDamaged
from ptalign.nouns import InstructionSet, PairSet, record_id
from ptalign_server.vault import KeyFile, Vault

RECORD = "record.json"
KINDS: Mapping[str, type[InstructionSet] | type[PairSet]] = {
    "instructions": InstructionSet,
    "pairs": PairSet,
}
"""First word of a set's name -> what it holds."""


def pack(form: Form, journal: Journal, folder: Path) -> None:
    """Writes what another machine goes on from; the record last, so that it names what is there."""
    folder.mkdir(parents=True, exist_ok=True)
    sets = journal.folder / "sets"
    sealed = [sets / entry["unit"] for entry in journal.entries() if _kind(entry["unit"])]
    for file in [*sealed, journal.folder / WRAPPED]:
        if file.is_file():
            partial = folder / f"{file.name}.partial"
            shutil.copyfile(file, partial)
            partial.replace(folder / file.name)
    write_record(form, journal, folder / RECORD)


def unpack(folder: Path, key: Path, journal: Journal) -> Record:
    """Fills an empty journal with what `pack` wrote.

    A training whose evaluation is missing is left out, for its adapter is not there; one that is
    never asked (ten times the weight) stays with the training that its weight comes from.

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
        DataDamaged: The key file is none or of other sets, or a set is missing or was changed.
    """
    record = read_record(folder / RECORD)
    Vault(KeyFile(key)).unwrap(PURPOSE, (folder / WRAPPED).read_bytes())
    _copy_key(key, journal.folder / KEY)
    (journal.folder / "sets").mkdir(mode=0o700)
    shutil.copyfile(folder / WRAPPED, journal.folder / WRAPPED)
    for unit, entry in record.units.items():
        if kind := _kind(unit):
            _take_set(folder, journal, unit, kind, entry["result"]["digest"])
    for name in record.judged:
        _take_replies(record, name, ReplyFile(journal.folder / name))
    for unit, entry in record.units.items():
        if _whole(unit, record.units):
            journal.restore(entry)
    return record


def _kind(unit: str) -> type[InstructionSet] | type[PairSet] | None:
    return KINDS.get(unit.partition("-")[0])


def _copy_key(key: Path, there: Path) -> None:
    with os.fdopen(os.open(there, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(key.read_bytes())


def _take_set(
    folder: Path,
    journal: Journal,
    name: str,
    kind: type[InstructionSet] | type[PairSet],
    digest: str,
) -> None:
    if (folder / name).is_file():  # of pairs that were imported there are no instructions
        shutil.copyfile(folder / name, journal.folder / "sets" / name)
    if journal.open(name, kind).digest != digest:
        raise DataDamaged(f"{folder / name} is not the set that {RECORD} was made with")


def _take_replies(record: Record, name: str, log: ReplyFile) -> None:
    """Judged replies; those of the bare model under the ids that an evaluation looks for.

    It is asked beside every run, and what is there is not asked again.
    """
    found = (entry["result"] for entry in record.units.values())
    asked = [result for result in found if result.get("replies") == name]
    limits = {suite["name"]: suite["max_tokens"] for result in asked for suite in result["suites"]}
    for reply in record.replies(name):
        if reply.target == BASE:
            limit = str(limits.get(reply.suite, ""))
            same = record_id(BASE, "", reply.suite, reply.prompt_id, limit)
            reply = reply.model_copy(update={"id": same})
        log.append(reply)


def _whole(unit: str, units: Mapping[str, Any]) -> bool:
    """Whether a unit needs nothing that was not carried."""
    kind, _, label = unit.partition("/")
    return kind != "train" or f"ask/{label.removesuffix('-x10')}" in units
