"""The environment variables that start with PTALIGN_: which there are, what is wrong with one.

A value is quoted only where it should be a number or one of a few words, and only a short one:
others may hold a secret, as a database URL holds its password and a token is one.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import SettingsError

from ptalign.errors import PtalignError
from ptalign_server.limits import bounds, plain
from ptalign_server.settings import Settings

PREFIX = "PTALIGN_"
OTHERS = frozenset(
    {"PTALIGN_CACHE", "PTALIGN_EVAL_DATA"}  # read by the core and `models`
    | {"PTALIGN_ENDPOINT", "PTALIGN_TOKEN", "PTALIGN_DEBUG"}  # the client's
    | {f"PTALIGN_TLS_{name}" for name in ("ROOT", "CERT", "KEY", "SERVER_NAME")}  # the client's
    | {"PTALIGN_JOB_NICENESS", "PTALIGN_LORA_CPU"}  # set for children
    | {"PTALIGN_FAILPOINTS", "PTALIGN_FAILPOINTS_ONCE", "PTALIGN_REQUIRE_ALL"}  # the tests'
)
"""Variables that others than `Settings` read."""
TESTS = "PTALIGN_TEST_"
MAX_SHOWN = 12
"""Characters of the longest wrong value that is shown; a token is longer."""


class BadSettings(PtalignError):
    """Variables that cannot be what they are set to, one line each."""

    reason = "INVALID_INPUT"


def known() -> dict[str, FieldInfo]:
    """Name of each variable of `Settings` -> its field. A group is there too, as JSON."""
    return dict(_fields(Settings, PREFIX))


def unknown(environment: Mapping[str, str] = os.environ) -> Iterator[tuple[str, str]]:
    """Variables with our prefix that nobody reads, each with the nearest name, empty if none."""
    names = {*known(), *OTHERS}
    for name in sorted(environment):
        upper = name.upper()  # settings are read in either case
        if upper.startswith(PREFIX) and upper not in names and not upper.startswith(TESTS):
            yield name, _nearest(upper, names)


def _nearest(name: str, names: Iterable[str]) -> str:
    """Compared without the prefix: with it every short name is near every other."""
    bare = [known.removeprefix(PREFIX) for known in names]
    found = difflib.get_close_matches(name.removeprefix(PREFIX), bare, 1)
    return PREFIX + found[0] if found else ""


def explained(error: ValidationError | SettingsError) -> BadSettings:
    """What pydantic says of `Settings`, with the variables' names and how to fix them."""
    if isinstance(error, ValidationError):
        fields = known()
        return BadSettings("\n".join(_line(item, fields) for item in error.errors()))
    return BadSettings("\n".join(_no_json(os.environ)) or str(error))


def _fields(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        variable = prefix + name.upper()
        yield variable, field
        if _is_group(field):
            yield from _fields(field.annotation, f"{variable}__")  # type: ignore[arg-type]


def _is_group(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _line(item: Any, fields: Mapping[str, FieldInfo]) -> str:
    """One error in one line."""
    parts = [str(part).upper() for part in item["loc"]]
    if item["type"] == "extra_forbidden":
        name, group = PREFIX + "__".join(parts), PREFIX + "__".join(parts[:-1])
        there = ", ".join(known for known in fields if known.startswith(f"{group}__"))
        return f"{name}: there is no such setting. Write one of {there}, or unset it."
    while parts and PREFIX + "__".join(parts) not in fields:  # inside a list there is no variable
        parts.pop()
    name = PREFIX + "__".join(parts)
    field = fields.get(name)
    wanted = _wanted(field) if field else ""
    if field is None or not wanted:
        said = plain(item["msg"])
        return f"{name}: {said}" + ("" if said.endswith(".") else ". Correct it, or unset it.")
    default = field.default
    return f"{name}: must be {wanted}{_got(item['input'])}. Correct it, or unset it for {default}."


def _wanted(field: FieldInfo) -> str:
    """What a variable of numbers or a few words may be; empty for any other."""
    kind = _without_none(field.annotation)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(str(choice) for choice in get_args(kind))}"
    words = {bool: "true or false", int: "a whole number", float: "a number"}
    limits = bounds(field)
    return words[kind] + (f", {limits}" if limits else "") if kind in words else ""


def _without_none(kind: Any) -> Any:
    """The type of a value that may also be absent."""
    kinds = [each for each in get_args(kind) if each is not NoneType]
    return kinds[0] if NoneType in get_args(kind) and len(kinds) == 1 else kind


def _got(value: Any) -> str:
    """The value, where it can be no token or URL with a password meant for another variable.

    A part of a longer one is not shown either: it may be the whole secret but its end.
    """
    text = str(value)
    if not isinstance(value, (str, int, float)) or len(text) > MAX_SHOWN or "@" in text:
        return ""
    return f", not {text!r}"


def _no_json(environment: Mapping[str, str]) -> Iterator[str]:
    """Variables of lists and groups that hold no JSON."""
    set_to = {name.upper(): value for name, value in environment.items()}
    for name, field in known().items():
        if get_origin(field.annotation) is not tuple and not _is_group(field):
            continue
        try:
            json.loads(set_to.get(name) or "null")
        except ValueError:
            form = '{"field": "value"}' if _is_group(field) else '["a", "b"]'
            if name.endswith("URLS"):
                form = '["http://127.0.0.1:8000/v1"]'
            yield f"{name}: must be JSON, and is not. Write it as '{form}', or unset it."
