"""Policy packs: what a model is asked about, and what it must never be asked to write."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ptalign.errors import InvalidInput
from ptalign.nouns import Annotation, Policy
from ptalign.policies.schema import inline_policy, parse_policy
from ptalign.sealed import SealedText
from ptalign.text.locales import language

__all__ = [
    "benign_instructions",
    "benign_language",
    "inline_policy",
    "load_annotations",
    "load_policy",
    "parse_policy",
    "policy_names",
]

_HERE = Path(__file__).parent


def policy_names() -> tuple[str, ...]:
    """Names of the shipped packs."""
    return tuple(sorted(p.stem for p in (_HERE / "packs").glob("*.yaml")))


def load_policy(name: str) -> Policy:
    """A shipped pack by name, or an operator's pack by the path of its YAML file.

    Raises:
        InvalidInput: Unknown name (the known ones are listed), or a pack that breaks a rule.
    """
    if name in policy_names():
        return _shipped(name)
    path = Path(name)  # read each time: what its owner adds to it counts from then on
    if path.suffix in {".yaml", ".yml"} and path.is_file():
        return parse_policy(_read(path))
    raise InvalidInput(
        "policy",
        f"known policies are {', '.join(policy_names())}",
        "Use one of them, or the path of a YAML pack.",
    )


@cache
def _shipped(name: str) -> Policy:
    return parse_policy(_read(_HERE / "packs" / f"{name}.yaml"))


def load_annotations(name: str) -> tuple[Annotation, ...]:
    """Shipped demo annotations by policy name, or a YAML file by path: `items` with instruction,
    good, bad and optionally topic and note.

    Raises:
        InvalidInput: No such file, or an item without an instruction or a good answer.
    """
    shipped = _HERE / "annotations" / f"{name}.yaml"
    path = shipped if shipped.is_file() else Path(name)
    if not path.is_file():
        raise InvalidInput("annotations", "a file that exists", "Check the path.")
    items = _read(path).get("items")
    if not isinstance(items, list) or not items:
        raise InvalidInput("annotations.items", "a list of 1 to 49 items", "Add the list.")
    return tuple(_annotation(i, item) for i, item in enumerate(items))


def benign_language(locale: str) -> str:
    """Language of the ordinary requests for a locale: its own, or English where there are none."""
    own = language(locale)
    return own if (_HERE / f"benign-{own}.yaml").is_file() else "en"


@cache
def benign_instructions(locale: str = "en") -> tuple[str, ...]:
    """Ordinary requests that anchor the model to what it is, in an order that mixes kinds."""
    own = benign_language(locale)
    name = "benign.yaml" if own == "en" else f"benign-{own}.yaml"
    return tuple(_read(_HERE / name)["instructions"])


def _annotation(i: int, item: Any) -> Annotation:
    if not isinstance(item, Mapping):
        raise InvalidInput(f"annotations.items[{i}]", "a mapping", "Write instruction, good, bad.")
    for key in ("instruction", "good"):
        if not str(item.get(key) or "").strip():
            raise InvalidInput(f"annotations.items[{i}].{key}", "not empty", "Write the text.")
    bad = str(item.get("bad") or "").strip()
    return Annotation(
        instruction=str(item["instruction"]).strip(),
        good=str(item["good"]).strip(),
        bad=SealedText(bad) if bad else None,
        topic=str(item.get("topic") or ""),
        note=str(item.get("note") or ""),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise InvalidInput(path.name, f"valid YAML in UTF-8{where}", "Correct the file.") from None
    if not isinstance(data, dict):
        raise InvalidInput(path.name, "a mapping at the top", "Start with name: ...")
    return data
