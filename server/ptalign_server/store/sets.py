"""Sealed nouns on disk: ``sets/ID/noun`` when made; ``sets/ID/log`` and, of stages that write
drafts, ``sets/ID/costs`` while a stage works; ``sets/ID/model`` once an operation has used one.

``sets/ID/unsettled`` says that the files came before the row: nobody knows yet whether it stands.
``sets/.database`` says whose sets they are: a database takes what it does not know for left over.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from ptalign.config import Config, GateConfig
from ptalign.errors import DataDamaged, InvalidInput
from ptalign.nouns import Annotation, ModelSpec, Noun, Policy, Spent
from ptalign_server.store.keys import Keys
from ptalign_server.store.records import SealedLog, encode, read_sealed, write_sealed
from ptalign_server.vault import SetKey

log = logging.getLogger("ptalign.server")
T = TypeVar("T", bound=Noun)
PARTS = ("records", "pairs", "anchors", "suppressed")
"""Fields of nouns that hold records, each written as a frame of its own."""


class AnnotationSet(Noun):
    """Human marks on a policy and model."""

    records: tuple[Annotation, ...]
    annotator_minutes: float = 0.0
    rejected: tuple[str, ...] = Field((), exclude_if=lambda ids: not ids)
    """Ids of the pairs, of the set it was made from, that an annotator called wrong. Left out of
    digests where there are none, so that sets of earlier versions keep theirs."""

    @property
    def marks(self) -> int:
        """What an annotator decided: the method needs fewer than 50 of it."""
        return len(self.records) + len(self.rejected)


class Terms(Config):
    """What an evaluation's verdict went by; kept because its call may be deleted."""

    gate: GateConfig
    baseline: str = ""
    """Adapter that the target was compared with; empty: the bare model."""


class Sets:
    """The sealed files of all sets.

    Args:
        root: Folder that holds one folder per set.
    """

    def __init__(self, root: Path, keys: Keys) -> None:
        self._root = root
        self._keys = keys

    def claim(self, database: str) -> None:
        """Marks the folder as the database's; one without a mark is an earlier version's, or new.

        Raises:
            InvalidInput: It is another database's.
        """
        mark = self._root / ".database"
        mark.touch(mode=0o600)
        found = mark.read_text()
        if not found:
            mark.write_text(database)
        elif found != database:
            raise InvalidInput(
                "PTALIGN_DATABASE",
                f"the sets in {self._root} are another database's",
                "Set it to theirs, or use a folder of sets of its own (PTALIGN_STATE; in the chart "
                f"persistence.sharedClaim). If theirs is gone for good, remove {mark}: page drafts "
                "and unfinished sets in the folder are then destroyed.",
            )

    def folder(self, set_id: str) -> Path:
        """The set's folder."""
        return self._root / set_id

    def log(self, set_id: str, *kinds: type[Noun]) -> SealedLog[Any]:
        """The log that a stage appends to while it makes the set."""
        return SealedLog(self.folder(set_id) / "log", self._keys.get(set_id), *kinds)

    def costs(self, set_id: str) -> SealedLog[Spent]:
        """The log of what the drafts of the set cost, in a file of its own: the records in `log`
        are all that earlier versions know to be in there. Begun anew where it is damaged: figures
        must not cost the records."""
        file, key = self.folder(set_id) / "costs", self._keys.get(set_id)
        try:
            with contextlib.closing(SealedLog[Spent](file, key, Spent)) as whole:
                for _ in whole.read():
                    pass
        except DataDamaged as error:
            log.warning("%s: what its drafts cost so far is not known any more", error)
            file.unlink()
        return SealedLog(file, key, Spent)

    def seal(self, set_id: str, noun: Noun) -> str:
        """Writes the finished noun. The logs stay until `drop_log`, once the row is committed.

        Returns:
            The noun's digest, to be kept in the resource's row.
        """
        return self._write(set_id, self._keys.get(set_id), noun)

    def drop_log(self, set_id: str) -> None:
        """Removes the logs of what stands in the noun of a committed resource."""
        for part in ("costs", "log"):  # the one that `logged` finds comes last
            (self.folder(set_id) / part).unlink(missing_ok=True)

    def logged(self) -> list[str]:
        """Ids of what has a log: it is being made, or a crash came before `drop_log`."""
        return [file.parent.name for file in self._root.glob("*/log")]

    def write(self, set_id: str, key: SetKey, noun: Noun) -> str:
        """`seal` under a key that is not in the database yet; `settle` comes with its row."""
        self.folder(set_id).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._mark(set_id).touch(mode=0o600)
        return self._write(set_id, key, noun)

    def settle(self, set_id: str) -> None:
        """The row of what was written is committed."""
        self._mark(set_id).unlink(missing_ok=True)

    def unsettled(self, before: float) -> list[str]:
        """Ids of what was written before that time, and whose row may stand or not."""
        found = []
        for mark in self._root.glob("*/unsettled"):
            with contextlib.suppress(FileNotFoundError):  # settled meanwhile
                if mark.stat().st_mtime < before:
                    found.append(mark.parent.name)
        return found

    def _mark(self, set_id: str) -> Path:
        return self.folder(set_id) / "unsettled"

    def _write(self, set_id: str, key: SetKey, noun: Noun) -> str:
        write_sealed(self.folder(set_id) / "noun", key, _split(noun))
        return noun.digest

    def load(self, name: str, kind: type[T], digest: str) -> T:
        """The noun of a resource.

        Raises:
            DataDamaged: A byte changed, records are missing, or the digest differs.
            SetPurged: The text was purged.
        """
        set_id = name.partition("/")[2]
        key = self._keys.get(set_id)
        try:
            noun = _join(kind, read_sealed(self.folder(set_id) / "noun", key))
        except (ValidationError, ValueError, KeyError):
            noun = None
        except DataDamaged as error:
            raise DataDamaged(f"{name}: {error}") from None
        if noun is None or noun.digest != digest:
            raise DataDamaged(
                f"{name} does not match the digest it was sealed with. Restore it from a backup."
            )
        return noun

    def head(self, name: str) -> dict[str, Any]:
        """What a noun says beside its records, which are not read.

        Raises:
            DataDamaged: It was changed, or is missing.
            SetPurged: The text was purged.
        """
        set_id = name.partition("/")[2]
        _, data = next(read_sealed(self.folder(set_id) / "noun", self._keys.get(set_id)))
        head: dict[str, Any] = json.loads(data.decode("utf-8", "surrogatepass"))
        return head

    def records(self, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Field and content of each record, in order, without holding the set in memory."""
        set_id = name.partition("/")[2]
        for record_id, data in read_sealed(self.folder(set_id) / "noun", self._keys.get(set_id)):
            if record_id != "head":
                yield _field(record_id), json.loads(data)["body"]

    def keep_policy(self, set_id: str, policy: Policy) -> None:
        """Seals the policy that a set was made under."""
        self.write_policy(set_id, self._keys.get(set_id), policy)

    def write_policy(self, set_id: str, key: SetKey, policy: Policy) -> None:
        """`keep_policy` under a key that is not in the database yet."""
        write_sealed(self.folder(set_id) / "policy", key, [("head", encode(policy))])

    def load_policy(self, name: str) -> Policy:
        """The policy that a set was made under."""
        set_id = name.partition("/")[2]
        [(_, data)] = read_sealed(self.folder(set_id) / "policy", self._keys.get(set_id))
        return Policy.model_validate(json.loads(data)["body"])

    def keep_model(self, set_id: str, model: ModelSpec) -> None:
        """Seals the model that an operation works with."""
        file = self.folder(set_id) / "model"
        write_sealed(file, self._keys.get(set_id), [("head", encode(model))])

    def load_model(self, set_id: str) -> ModelSpec | None:
        """The model that an operation works with; None before it kept one.

        Raises:
            DataDamaged: The file was changed.
        """
        file = self.folder(set_id) / "model"
        if not file.exists():
            return None
        [(_, data)] = read_sealed(file, self._keys.get(set_id))
        return ModelSpec.model_validate(json.loads(data)["body"])

    def keep_terms(self, set_id: str, terms: Terms) -> None:
        """Seals what an evaluation's verdict went by."""
        data = terms.model_dump_json().encode()
        write_sealed(self.folder(set_id) / "terms", self._keys.get(set_id), [("head", data)])

    def load_terms(self, name: str) -> Terms | None:
        """What an evaluation's verdict went by; None for one of a version that kept none.

        None as well for a gate of an earlier version that took limits beyond what they limit.

        Raises:
            DataDamaged: The file was changed.
        """
        set_id = name.partition("/")[2]
        file = self.folder(set_id) / "terms"
        if not file.exists():
            return None
        [(_, data)] = read_sealed(file, self._keys.get(set_id))
        try:
            return Terms.model_validate_json(data)
        except ValidationError:  # sealed, so not changed since
            return None

    def erase(self, set_id: str) -> None:
        """Removes the set's files. Their key must be destroyed first."""
        shutil.rmtree(self.folder(set_id), ignore_errors=True)


def _split(noun: Noun) -> Iterator[tuple[str, bytes]]:
    """Head first, then one item per record, named ``FIELD.ORDINAL``."""
    parts = [part for part in PARTS if part in type(noun).model_fields]
    head = noun.model_dump(mode="json", context={"reveal": True}, exclude=set(parts))
    yield "head", json.dumps(head, ensure_ascii=False).encode("utf-8", "surrogatepass")
    for part in parts:
        for ordinal, record in enumerate(getattr(noun, part)):
            yield f"{part}.{ordinal}", encode(record)


def _join(kind: type[T], items: Iterator[tuple[str, bytes]]) -> T:
    values: dict[str, Any] = {}
    for record_id, data in items:
        content = json.loads(data.decode("utf-8", "surrogatepass"))
        if record_id == "head":
            values.update(content)
        else:
            values.setdefault(_field(record_id), []).append(content["body"])
    for part in PARTS:
        if part in kind.model_fields:
            values.setdefault(part, [])
    return kind.model_validate(values)


def _field(record_id: str) -> str:
    return record_id.partition(".")[0]
