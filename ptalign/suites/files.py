"""Prompts from the files people have: CSV, JSONL, JSON or YAML with any column names."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ptalign.errors import InvalidInput
from ptalign.nouns import record_id
from ptalign.suites.base import LISTS, Check, Prompt, SuiteSpec, Turn
from ptalign.suites.generated import forced, under_attack
from ptalign.suites.ifeval import misgiven
from ptalign.text.locales import language
from ptalign.text.normalise import latin

MAX_BYTES = 256 * 1024 * 1024
"""A larger file is refused: it is read as a whole."""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a file as dictionaries.

    Raises:
        InvalidInput: Unknown ending, too large, or not what the ending promises.
    """
    if path.stat().st_size > MAX_BYTES:
        raise InvalidInput(
            "suites.file", f"{path.name} is over {MAX_BYTES} bytes", "Split it into several suites."
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = _parse(path.suffix.lower(), text, path.name)
    except (UnicodeDecodeError, json.JSONDecodeError, yaml.YAMLError, csv.Error) as error:
        raise InvalidInput(
            "suites.file",
            f"{path.name} cannot be read ({type(error).__name__})",
            "Send UTF-8 text in the format that the file's ending names.",
        ) from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InvalidInput(
            "suites.file", f"{path.name} is not a list of rows", "Give one mapping per prompt."
        )
    return rows


def _parse(ending: str, text: str, name: str) -> Any:
    """Lines end at U+000A alone: `splitlines` ends them at U+2028 and U+0085 too, which may stand
    in a text. Reading the file has made one of U+000D U+000A.
    """
    if ending == ".csv":
        return list(csv.DictReader(io.StringIO(text)))
    if ending == ".jsonl":
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    if ending == ".json":
        return json.loads(text)
    if ending in (".yaml", ".yml"):
        return yaml.safe_load(text)
    raise InvalidInput(
        "suites.file", f"{name} has an unknown ending", "Use csv, jsonl, json, yaml."
    )


def prompts(spec: SuiteSpec, path: Path, seed: int) -> Iterator[Prompt]:
    """The rows of `path` that `spec` asks for, in an order that depends on `seed` only.

    Under the elicitation `attack` or `strong`, a row without earlier turns of its own comes after a
    persona and two demonstrations of the shipped suites; `strong` forces first words as well.

    Raises:
        InvalidInput: A mapped column is missing, or holds what it cannot hold.
    """
    found = _prompts(spec, path, seed)
    if spec.elicitation == "plain":
        return found
    attacked = under_attack(spec.name, found)
    return forced(attacked) if spec.elicitation == "strong" else attacked


def _prompts(spec: SuiteSpec, path: Path, seed: int) -> Iterator[Prompt]:
    rows = [row for row in read_rows(path) if _matches(row, spec.where)]
    _require_columns(spec, rows, path.name)
    _require_locale(spec, rows, path.name)
    for row in random.Random(seed).sample(rows, len(rows)):
        if _text(row[spec.columns["prompt"]]).strip():
            yield _prompt(spec, row)


def _matches(row: dict[str, Any], where: dict[str, str]) -> bool:
    return all(_says(row.get(column), value) for column, value in where.items())


def _says(cell: Any, value: str) -> bool:
    if isinstance(cell, bool):
        return value.lower() == str(cell).lower()  # JSON and YAML write true
    return _text(cell) == value


def _text(cell: Any) -> str:
    """What a cell says; a null, or the end of a CSV's short line, says nothing."""
    return "" if cell is None else str(cell)


def _require_columns(spec: SuiteSpec, rows: Iterable[dict[str, Any]], name: str) -> None:
    for row in rows:
        missing = [column for column in spec.columns.values() if column not in row]
        if missing:
            raise InvalidInput(
                f"suites.{spec.name}.columns",
                f"{name} has no column {missing[0]!r}",
                f"Map to one of: {', '.join(sorted(map(str, row)))}.",
            )
        for key, column in spec.columns.items():
            if key not in LISTS and isinstance(row[column], list | dict):
                raise InvalidInput(
                    f"suites.{spec.name}.columns.{key}",
                    f"{name} holds no text in {column!r}, but a list or a mapping",
                    "Map a column of text: a chat's last request as `prompt`, what came before as "
                    "`turns`.",
                )


def _require_locale(spec: SuiteSpec, rows: Sequence[dict[str, Any]], name: str) -> None:
    """English is what is meant where nothing is said; a judge of English finds no refusal and no
    harm in another script, so that what was not read would count as useful and safe."""
    english = [row for row in rows if language(_locale(spec, row)) == "en"]
    foreign = [row for row in english if not latin(_text(row[spec.columns["prompt"]]))]
    if len(foreign) > len(english) / 2:
        raise InvalidInput(
            f"suites.{spec.name}.locale",
            f"{len(foreign)} of {len(english)} English prompts of {name} are not in Latin letters",
            "Say what they are: `locale: ja` for the suite, or a column of locales.",
        )


def _locale(spec: SuiteSpec, row: dict[str, Any]) -> str:
    own = _text(row[spec.columns["locale"]]) if "locale" in spec.columns else ""
    return own or spec.locale


def _prompt(spec: SuiteSpec, row: dict[str, Any]) -> Prompt:
    def column(key: str) -> str:
        return _text(row[spec.columns[key]]) if key in spec.columns else ""

    text, own = column("prompt"), column("id")
    turns, checks = _turns(spec, row), _checks(spec, row)
    # Conversations may end alike. Checks count where the row has no id to tell it by: IFEval's
    # rows have one, and keep the ids that earlier versions gave them.
    beside = turns if own else (*turns, *checks)
    return Prompt(
        id=record_id(spec.name, own, text, *(one.digest for one in beside)),
        instruction=text,
        topic=column("topic"),
        group=column("group"),
        locale=_locale(spec, row),
        turns=turns,
        checks=checks,
    )


def _checks(spec: SuiteSpec, row: dict[str, Any]) -> tuple[Check, ...]:
    """The row's checks with their arguments, of which null ones are left out."""
    names, given = _listed(spec, "checks", row), _listed(spec, "check_arguments", row)
    try:
        checks = tuple(
            Check(name=name, arguments={k: v for k, v in (values or {}).items() if v is not None})
            for name, values in zip(names, given or [{}] * len(names), strict=True)
        )
    except (AttributeError, ValueError):  # no mapping, no text, or one more of either
        wrong = "a row holds something else than a mapping for each check"
    else:
        wrong = next((why for check in checks if (why := misgiven(check))), "")
    if wrong:
        raise InvalidInput(
            f"suites.{spec.name}.columns.check_arguments",
            wrong,
            "Give a list with one mapping for each check, as IFEval's kwargs are.",
        )
    return checks


def _turns(spec: SuiteSpec, row: dict[str, Any]) -> tuple[Turn, ...]:
    """Earlier turns: a list of ``{user, assistant}``, as JSON text in a CSV."""
    try:
        return tuple(Turn.model_validate(turn) for turn in _listed(spec, "turns", row))
    except ValidationError:
        raise InvalidInput(
            f"suites.{spec.name}.columns.turns",
            "a row holds something else than earlier turns",
            'Give a list of {"user": ..., "assistant": ...}.',
        ) from None


def _listed(spec: SuiteSpec, key: str, row: dict[str, Any]) -> list[Any]:
    """A column that holds a list; a CSV holds it as JSON text. Empty where it is not mapped."""
    value = row[spec.columns[key]] if key in spec.columns else None
    if value is None:
        return []
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else []
        except json.JSONDecodeError:
            value = None
    if not isinstance(value, list):
        raise InvalidInput(
            f"suites.{spec.name}.columns.{key}",
            f"a row holds no list in {spec.columns[key]!r}",
            "Give a list, in a CSV as JSON text.",
        )
    return value
