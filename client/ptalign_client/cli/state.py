"""What a run remembers between two calls of `ptalign run`, in one small file."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ptalign_client.errors import ConfigError

FILE = ".ptalign-run.json"
VERSION = 1


@dataclass(slots=True)
class Stage:
    """One stage of a run.

    The request id is written before the first call: a run killed between the server's commit and
    its reply finds the same operation again.
    """

    inputs: str
    """Digest of everything it depends on: a changed input makes the stage run anew."""
    request_id: str
    operation: str = ""
    resource: str = ""
    """What it made. Set only when it ended well."""
    partial: str = ""
    """What a failed or cancelled try kept."""
    resume_from: str = ""
    """The failed or cancelled operation before this one."""
    seconds: float = 0.0


class RunState:
    """The stages by name, saved after every change."""

    def __init__(self, folder: Path) -> None:
        """Reads the file of `folder`, if there is one.

        Raises:
            ConfigError: The file is not one of ours, or of a newer client.
        """
        self.path = folder / FILE
        self.stages: dict[str, Stage] = {}
        if self.path.exists():
            self.stages = _read(self.path)

    def stage(self, name: str, inputs: Any) -> Stage:
        """The stage as it was left, or a fresh one when its inputs are others now."""
        digest = digest_of(inputs)
        found = self.stages.get(name)
        if found is None or found.inputs != digest:
            found = self.stages[name] = Stage(digest, str(uuid.uuid4()))
            self.save()
        return found

    def again(self, stage: Stage) -> None:
        """Makes the next try of a stage a new request."""
        stage.resume_from, stage.operation = stage.operation, ""
        stage.request_id = str(uuid.uuid4())
        stage.resource = ""
        self.save()

    def afresh(self, stage: Stage) -> None:
        """The same, without going on from the try before."""
        stage.operation = ""
        self.again(stage)

    def save(self) -> None:
        """Writes the file whole, or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        written = self.path.with_suffix(".tmp")
        content = {"version": VERSION, "stages": {k: asdict(s) for k, s in self.stages.items()}}
        written.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(written, self.path)


def digest_of(inputs: Any) -> str:
    """A digest of JSON-able inputs."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:32]


def _read(path: Path) -> dict[str, Stage]:
    mend = "Move it away to start the run anew; finished operations stay on the server."
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version, stages = content["version"], content["stages"]
        if version != VERSION:
            raise ConfigError(f"{path} was written by another version of ptalign", mend)
        known = {f.name for f in fields(Stage)}
        return {k: Stage(**{n: v for n, v in s.items() if n in known}) for k, s in stages.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{path} is not the state of a run", mend) from None
