"""What a study has finished: one small file per unit, sealed sets, judged replies without text.

A killed study continues: a unit that is there with the same inputs is not done again, stages
continue after the records in their sealed logs, evaluations after the replies that were judged.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Collection, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import ptalign
from bench.results import commit, device_name, write_whole
from ptalign.errors import DataDamaged
from ptalign.nouns import Noun, Reply, digest_of
from ptalign.sealed import SealedText
from ptalign_server.store.records import SealedLog, encode, read_sealed, write_sealed
from ptalign_server.vault import KeyFile, SetKey, Vault

T = TypeVar("T", bound=Noun)
CORE = Path(ptalign.__file__).parent
KEY, WRAPPED = "operator.key", "set.key"
"""The key of a study's sets, as its owner holds it, and as it lies beside the sets: encrypted."""
PURPOSE = "study"


class Journal:
    """The folder of one form of the study.

    Args:
        folder: Made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commit = commit("ptalign", "bench/study")
        (folder / "units").mkdir(mode=0o700, parents=True, exist_ok=True)

    def forget(self) -> None:
        """Drops everything but the engine's compiled kernels."""
        for path in self.folder.iterdir():
            if path.name != "engine":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (self.folder / "units").mkdir(mode=0o700)

    @property
    def begun(self) -> bool:
        """Whether anything is there, if only texts that a stage has not finished."""
        there = (self.folder / KEY, self.folder / "sets", *(self.folder / "units").iterdir())
        return any(path.exists() for path in there)

    def result(self, unit: str, inputs: Any) -> dict[str, Any] | None:
        """What a finished unit gave; None when it is not there or had other inputs."""
        entry = self.entry(unit)
        return entry["result"] if entry and entry["inputs"] == digest_of(inputs) else None

    def entry(self, unit: str) -> dict[str, Any] | None:
        """A unit's whole record: result, seconds, commit, machine."""
        file = self._file(unit)
        if not file.is_file():
            return None
        found: dict[str, Any] = json.loads(file.read_text("utf-8"))
        return found

    def set_aside(self, unit: str) -> None:
        """Moves a unit that is there to ``stale/``, where nothing counts it."""
        file, stale = self._file(unit), self.folder / "stale"
        stale.mkdir(mode=0o700, exist_ok=True)
        file.replace(stale / f"{datetime.now():%Y%m%dT%H%M%S.%f}-{file.name}")

    def entries(self) -> list[dict[str, Any]]:
        """Every finished unit, oldest first."""
        found = [json.loads(f.read_text("utf-8")) for f in (self.folder / "units").glob("*.json")]
        return sorted(found, key=lambda entry: entry["ended"])

    def replies(self, name: str) -> Iterator[Reply]:
        """Judged replies of a file that an evaluation names, without text."""
        return ReplyFile(self.folder / name).read()

    def keep(self, unit: str, inputs: Any, result: dict[str, Any], seconds: float) -> None:
        """Records a finished unit; it is there complete or not at all."""
        entry = {
            "unit": unit,
            "inputs": digest_of(inputs),
            "ended": datetime.now().isoformat(timespec="microseconds"),
            "seconds": round(seconds, 1),
            "commit": self.commit,
            "nice": os.nice(0),
            "threads": threads(),
            "device": device_name().rpartition(",")[0],
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "load": round(os.getloadavg()[1], 1),
            "result": result,
        }
        self._write(entry)

    def restore(self, entry: dict[str, Any]) -> None:
        """Takes a unit that another machine finished, as its record has it.

        Raises:
            ValueError: The record does not say what the unit was made of.
        """
        if "inputs" not in entry:
            raise ValueError(f"{entry['unit']}: recorded without its inputs: record it anew")
        self._write(entry)

    def _write(self, entry: dict[str, Any]) -> None:
        text = json.dumps(entry, indent=1, ensure_ascii=False) + "\n"
        write_whole(self._file(entry["unit"]), text)

    def _file(self, unit: str) -> Path:
        return self.folder / "units" / f"{unit.replace('/', '.')}.json"

    # -- texts, sealed ----------------------------------------------------------------------

    def log(self, name: str, *kinds: type[Noun]) -> SealedLog[Any]:
        """A stage's records on disk, encrypted with this study's own key."""
        return SealedLog(self.folder / "sets" / f"{name}.log", self._key(), *kinds)

    def seal(self, name: str, noun: Noun) -> None:
        """Writes a set, encrypted."""
        write_sealed(self.folder / "sets" / name, self._key(), [("head", encode(noun))])

    def open(self, name: str, kind: type[T]) -> T:
        """Reads a set that `seal` wrote.

        Raises:
            DataDamaged: The file is missing or was changed.
        """
        for _, data in read_sealed(self.folder / "sets" / name, self._key()):
            return kind.model_validate(json.loads(data)["body"])
        raise DataDamaged(f"{name} holds nothing: run with --fresh")

    def _key(self) -> SetKey:
        file = self.folder / KEY
        vault = Vault(KeyFile(file) if file.exists() else KeyFile.create(file))
        wrapped = self.folder / WRAPPED
        if not wrapped.exists():
            wrapped.write_bytes(vault.fresh_key(PURPOSE)[1])
        return vault.unwrap(PURPOSE, wrapped.read_bytes())


class ReplyFile:
    """A `RecordLog` of judged replies whose text is never written: lengths and hashes only.

    What is read back has no text: a seal's description must not be taken for what a model wrote.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._ids = {reply.id for reply in self.read()}
        if file.is_file() and not file.read_bytes().endswith(b"\n"):
            with file.open("a", encoding="utf-8") as stream:
                stream.write("\n")  # a torn line must not swallow the next one

    def read(self) -> Iterator[Reply]:
        """Judged replies in order; a line torn by a kill is left out."""
        for _, found in self._lines():
            yield found.model_copy(update={"text": SealedText("")})

    def _lines(self) -> Iterator[tuple[str, Reply]]:
        """What is whole, as it stands and as a reply."""
        if not self._file.is_file():
            return
        for line in self._file.read_text("utf-8").splitlines():
            try:
                yield line, Reply.model_validate_json(line)
            except ValueError:
                continue

    def append(self, reply: Reply) -> None:
        """Writes one reply with its text sealed."""
        if reply.id in self._ids:
            return
        self._ids.add(reply.id)
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(reply.model_dump_json() + "\n")

    def keep_only(self, targets: Collection[str], asked: Collection[tuple[str, str]]) -> None:
        """Drops what these targets said to prompts that are not of their suites any more.

        Other pairs, or a smaller suite, leave other prompts out; an adapter that is trained anew
        has answered under its label before.

        Args:
            targets: Labels; other targets' replies stay.
            asked: Suite and prompt id of every prompt they have.
        """
        kept = [
            line
            for line, found in self._lines()
            if found.target not in targets or (found.suite, found.prompt_id) in asked
        ]
        if self._file.is_file():
            write_whole(self._file, "".join(f"{line}\n" for line in kept))


def code_of(*parts: str) -> str:
    """Short digest of the sources of these modules or packages under ptalign/.

    Replies that other code judged are not comparable: files and inputs carry this.
    """
    total = hashlib.sha256()
    for part in parts:
        place = CORE / part
        files = sorted(place.rglob("*")) if place.is_dir() else [place]
        for file in files:
            if file.is_file() and file.suffix != ".pyc":
                total.update(file.name.encode() + file.read_bytes())
    return total.hexdigest()[:8]


def threads() -> int:
    """Threads of engine and trainer: OMP_NUM_THREADS, or the cores."""
    return int(os.environ.get("OMP_NUM_THREADS", 0)) or min(len(os.sched_getaffinity(0)), 8)
