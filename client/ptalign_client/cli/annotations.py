"""Annotation files: YAML or JSONL, as people write them."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from ptalign_client.errors import ConfigError
from ptalign_client.nouns import Annotation

FIELDS = tuple(f.name for f in fields(Annotation))
HEAD = "items", "policy", "annotator_minutes"
"""Fields of a YAML file."""


@dataclass(frozen=True, slots=True)
class Marks:
    """What an annotation file holds."""

    items: tuple[Annotation, ...]
    policy: str = ""
    annotator_minutes: float = 0.0


def read_annotations(file: Path) -> Marks:
    """Reads annotations: JSONL with one object a line, or YAML with `items`.

    Raises:
        ConfigError: No such file, not its format, or an item without `instruction` or `good`.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    if file.suffix in (".jsonl", ".ndjson"):
        lines = enumerate(text.split("\n"), 1)  # `splitlines` ends one at U+2028 in a text too
        items = [_item(file, f"line {i}", _json(file, i, line)) for i, line in lines if line]
        return Marks(tuple(items))
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise ConfigError(f"{file}:{mark.line + 1 if mark else 0}: not YAML") from None
    head = found if isinstance(found, dict) else {"items": found}
    for name in head:
        if name not in HEAD:
            hint = f"A file has {', '.join(HEAD[:-1])} and {HEAD[-1]}."
            raise ConfigError(f"{file}: no such field: {name}", hint)
    listed = head.get("items")
    if not isinstance(listed, list):
        raise ConfigError(f"{file}: needs a list under 'items'", f"Each item has {_said()}.")
    return Marks(
        tuple(_item(file, f"items[{i}]", item) for i, item in enumerate(listed)),
        str(head.get("policy") or ""),
        _minutes(file, head.get("annotator_minutes", 0.0)),
    )


def _minutes(file: Path, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise ConfigError(f"{file}: annotator_minutes must be a number from 0 up")
    return float(value)


def _json(file: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{file}:{number}: not JSON: {error.msg}") from None


def _item(file: Path, place: str, item: Any) -> Annotation:
    if not isinstance(item, dict) or not all(isinstance(v, str) for v in item.values()):
        raise ConfigError(f"{file}: {place}: must be a mapping of texts", f"It has {_said()}.")
    unknown = sorted(set(item) - set(FIELDS))
    if unknown:
        raise ConfigError(f"{file}: {place}: no such field: {unknown[0]}", f"It has {_said()}.")
    for name in ("instruction", "good"):
        if not item.get(name, "").strip():
            raise ConfigError(f"{file}: {place}: {name} is missing")
    return Annotation(**item)


def _said() -> str:
    return "instruction, good, and perhaps bad, topic and note"
