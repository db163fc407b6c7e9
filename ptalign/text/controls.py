"""Control tokens inside data arrive as text: a model must not take them for a turn's end."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def break_up(text: str, controls: Iterable[str]) -> str:
    """The text with a blank inside each control token, which no tokenizer takes for one then.

    Args:
        controls: Longest first, where one may contain another.
    """
    for control in controls:
        if control in text:
            text = text.replace(control, f"{control[0]} {control[1:]}")
    return text


def longest_first(tokens: Iterable[str]) -> tuple[str, ...]:
    """Control tokens in the order of `break_up`; those of one letter are ordinary text."""
    return tuple(sorted((t for t in set(tokens) if len(t) > 1), key=lambda t: (-len(t), t)))


def control_tokens(model: Path) -> tuple[str, ...]:
    """The special tokens that a model folder's tokenizer files name; none where it has none."""
    found: set[str] = set()
    for added in _read(model / "tokenizer.json").get("added_tokens", ()):
        if added.get("special"):
            found.add(str(added["content"]))
    config = _read(model / "tokenizer_config.json")
    for added in config.get("added_tokens_decoder", {}).values():
        if added.get("special"):
            found.add(str(added["content"]))
    for values in (config, _read(model / "special_tokens_map.json")):
        found.update(_named(values))
    return longest_first(found)


def _named(values: dict[str, Any]) -> Iterable[str]:
    """Tokens under keys such as ``eos_token`` and ``additional_special_tokens``."""
    for key, value in values.items():
        if key.endswith(("_token", "special_tokens")):
            entries: Sequence[Any] = value if isinstance(value, list) else [value]
            for entry in entries:
                text = entry.get("content") if isinstance(entry, dict) else entry
                if isinstance(text, str):
                    yield text


def _read(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    loaded = json.loads(file.read_text("utf-8"))
    return loaded if isinstance(loaded, dict) else {}
