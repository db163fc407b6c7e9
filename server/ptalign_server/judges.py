"""The operator's guard judges: the file ``judges.yaml`` of the state folder.

One entry that cannot be used stops neither the others nor a call that does not name it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ptalign.errors import DataDamaged, InvalidInput
from ptalign.judges.entries import Broken, Entries, GuardEntry, read_entries

log = logging.getLogger("ptalign.server")


@dataclass(frozen=True, slots=True)
class OwnJudges:
    """What the file holds now."""

    entries: Entries = field(default_factory=Entries)
    why: str = ""
    """Why none of it can be used: the file cannot be read, or is no list."""
    away: bool = False
    """Whether it could not be read, which may pass."""

    def find(self, name: str) -> GuardEntry | None:
        """The entry of a name, or of an id; None where there is none that can be used.

        Raises:
            InvalidInput: An entry has the name and is broken, or nobody can tell since the file is.
        """
        entry = self.entries.usable.get(name.partition("@")[0])
        if entry is not None:
            return entry if name in (entry.name, entry.id) else None
        for broken in self.entries.broken:
            if broken.name and broken.name == name.partition("@")[0]:
                raise _unusable(f"entry {broken.name!r} of judges.yaml", broken.why)
        if self.why:
            raise _unusable("file judges.yaml, which may hold it,", self.why)
        return None


class JudgesFile:
    """Reads the file again when it changes.

    Args:
        path: Where it is; a file that is not there holds no judges.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: tuple[int, int] | None = None
        self._read = OwnJudges()

    def read(self) -> OwnJudges:
        """What it holds; what cannot be used is logged when it is read."""
        stamp = _stamp(self.path)
        if stamp != self._stamp:
            found = read_file(self.path)
            for what in problems(self.path, found) if found != self._read else ():
                log.error("%s; calls that name it are refused", what)
            self._read, self._stamp = found, None if found.away else stamp
        return self._read


def read_file(path: Path) -> OwnJudges:
    """What a file of judges holds, with what is wrong with it."""
    try:
        return OwnJudges(read_entries(path.read_text("utf-8")))
    except FileNotFoundError:
        return OwnJudges()
    except OSError as error:
        return OwnJudges(why=error.strerror or type(error).__name__, away=True)
    except yaml.MarkedYAMLError as error:  # its text quotes the file
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        why = f"line {line}: no YAML ({error.problem or 'cannot be parsed'})"
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        why = "no YAML in UTF-8"
    except (TypeError, ValueError) as error:
        why = str(error) if isinstance(error, TypeError) else "holds an impossible date"
    return OwnJudges(why=why)


def problems(path: Path, found: OwnJudges) -> Iterable[str]:
    """What cannot be used, one line each."""
    if found.why:
        yield f"judges file {path} cannot be used ({found.why})"
    for broken in found.entries.broken:
        yield f"judge {called(broken)} in {path} cannot be used ({broken.why})"


def called(broken: Broken) -> str:
    """How a broken entry is called: by its name, or by its line."""
    return repr(broken.name) if broken.name else f"of line {broken.line}"


def raw_entries(path: Path) -> list[Any]:
    """The entries as they stand, broken ones too, to be written back.

    Raises:
        DataDamaged: The file cannot be read, or is no list.
    """
    why = read_file(path).why
    if why:
        raise DataDamaged(f"judges file {path} cannot be used: {why}. Correct it first.")
    found: list[Any] = yaml.safe_load(path.read_text("utf-8")) if path.exists() else []
    return found or []


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def _unusable(what: str, why: str) -> InvalidInput:
    return InvalidInput(
        "judges",
        f"the server's {what} cannot be used ({why.rstrip('.')})",
        "Name another judge, or ask the operator to correct it.",
    )
