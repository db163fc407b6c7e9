"""Guard judges as an operator writes them down: a YAML list, one entry per judge.

A file is read entry by entry. What is wrong with one entry is said with its line, and the others
stay usable. No message quotes a value: one may be a key that somebody wrote into the wrong field.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import urlsplit

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from ptalign.engines.openai import never
from ptalign.errors import InvalidInput
from ptalign.judges import judge_names
from ptalign.judges.guard import FAMILIES, HARASSMENT, Axis, GuardJudge, check_axis, judge_id
from ptalign.nouns import Noun

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class GuardEntry(Noun):
    """One guard judge: what `GuardJudge` takes, with the key in the environment."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)]
    """What callers write; small letters, digits, dot, dash and underscore."""
    family: str
    """One of `FAMILIES`."""
    url: str
    """Base address of the OpenAI-compatible server."""
    model: Annotated[str, Field(min_length=1, max_length=256)]
    """Name the server knows the guard by."""
    axis: Axis = "harm"
    api_key_env: str = ""
    """Environment variable that holds the bearer token; empty: none is sent."""
    locales: tuple[Annotated[str, Field(pattern=r"^[A-Za-z]{2,3}(-[A-Za-z0-9]+)*$")], ...] = ()
    """Languages the guard was trained on, BCP 47; empty: all."""
    guideline: Annotated[str, Field(max_length=4000)] = ""
    """ShieldGemma's policy; empty: harassment, as its model card words it."""
    timeout_s: Annotated[float, Field(gt=0, le=600)] = 60.0
    """Seconds one question may take."""
    concurrency: Annotated[int, Field(ge=1, le=64)] = 8
    """Questions in flight at most."""

    @field_validator("name")
    @classmethod
    def _is_free(cls, name: str) -> str:
        if name in {shipped.partition("@")[0] for shipped in judge_names()}:
            raise ValueError("a judge of ptalign has this name: choose another")
        return name

    @field_validator("family")
    @classmethod
    def _is_known(cls, family: str) -> str:
        if family not in FAMILIES:
            raise ValueError(f"no such family: write one of {', '.join(FAMILIES)}")
        return family

    @field_validator("url")
    @classmethod
    def _is_address(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            good = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
        except ValueError:
            good = False
        if not good or parts.query or parts.fragment or not url.isascii() or not url.isprintable():
            raise ValueError("not an address: write it like http://127.0.0.1:8000/v1")
        if "@" in parts.netloc:
            raise ValueError("holds a login: put a key into a variable, and name it in api_key_env")
        return url

    @field_validator("api_key_env")
    @classmethod
    def _names_a_variable(cls, name: str) -> str:
        if name and not _VARIABLE.fullmatch(name):
            raise ValueError("not a variable's name: never the key itself, e.g. GUARD_API_KEY")
        if name.upper().startswith("PTALIGN_"):
            raise ValueError("PTALIGN_ is for the server's settings: use another variable")
        return name

    @model_validator(mode="after")
    def _fits_its_family(self) -> GuardEntry:
        try:
            check_axis(self.family, self.axis)
        except InvalidInput as error:
            raise ValueError(f"axis: {error.limit}. {error.mend}") from None
        if self.guideline and "{guideline}" not in FAMILIES[self.family].prompt:
            raise ValueError(f"guideline: {self.family} takes none; drop it")
        return self

    @property
    def id(self) -> str:
        """Id of its scores: ``NAME@AXIS-VERSION``."""
        return judge_id(self.name, self.family, self.model, self.axis, self.guideline or HARASSMENT)

    def api_key(self, environment: Mapping[str, str] = os.environ) -> str:
        """The key; empty where the entry needs none.

        Raises:
            InvalidInput: Its variable is unset, or holds what no header can carry.
        """
        if not self.api_key_env:
            return ""
        key = environment.get(self.api_key_env, "").strip()
        what = f"judge {self.name!r} needs a key in the server's variable {self.api_key_env}"
        if not key:
            raise InvalidInput("judges", f"{what}, which is not set", "Set it and restart.")
        if not (key.isascii() and key.isprintable()):
            raise InvalidInput("judges", f"{what}, which is not plain text", "Correct it.")
        return key

    def judge(
        self,
        environment: Mapping[str, str] = os.environ,
        should_stop: Callable[[], bool] = never,
    ) -> GuardJudge:
        """The judge, ready to score until `should_stop` says True.

        Raises:
            InvalidInput: As `api_key`.
        """
        return GuardJudge(
            self.family,
            self.url,
            self.model,
            name=self.name,
            axis=self.axis,
            api_key=self.api_key(environment),
            concurrency=self.concurrency,
            timeout_s=self.timeout_s,
            guideline=self.guideline or HARASSMENT,
            locales=self.locales,
            should_stop=should_stop,
        )


@dataclass(frozen=True, slots=True)
class Broken:
    """An entry that cannot be used."""

    name: str
    """Empty where it has none that can be read."""
    line: int
    """Where it begins in the file, from 1."""
    why: str
    """Line, field, limit and mend."""


@dataclass(frozen=True, slots=True)
class Entries:
    """What a file of judges holds."""

    usable: Mapping[str, GuardEntry] = field(default_factory=dict)
    broken: tuple[Broken, ...] = ()


def read_entries(text: str) -> Entries:
    """Judges of a YAML list.

    Raises:
        yaml.YAMLError: It is no YAML.
        TypeError: It is no list.
    """
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    values = yaml.safe_load(text)
    if node is None or values is None:
        return Entries()
    if not isinstance(node, yaml.SequenceNode):
        raise TypeError("must be a list: each entry begins with '- name: ...'")
    pairs = list(zip(values, node.value, strict=True))
    twice = {name for name, n in Counter(_name(value) for value, _ in pairs).items() if n > 1}
    usable: dict[str, GuardEntry] = {}
    broken: list[Broken] = []
    for value, place in pairs:
        found = _entry(value, place, twice - {""})
        if isinstance(found, GuardEntry):
            usable[found.name] = found
        else:
            broken.append(found)
    return Entries(usable, tuple(broken))


def _name(value: Any) -> str:
    name = value.get("name") if isinstance(value, dict) else None
    return name if isinstance(name, str) else ""


def _entry(value: Any, place: yaml.Node, twice: set[str]) -> GuardEntry | Broken:
    """An entry, or what is wrong with it."""
    line, name = place.start_mark.line + 1, _name(value)
    if name in twice:
        why = f"line {line}, name: two entries have this name; rename or drop one"
        return Broken(name, line, why)
    try:
        return GuardEntry.model_validate(value)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
        return Broken(name, line, "; ".join(_why(item, place) for item in errors))


def _why(item: Any, place: yaml.Node) -> str:
    """One mistake: ``line 4, family: no such family: write one of ...``."""
    path = [str(part) for part in item["loc"]]
    text = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        text = f"no such field; there are: {', '.join(GuardEntry.model_fields)}"
        if "key" in path[-1] or "token" in path[-1]:
            text = "no such field; put the key into a variable, and name it in api_key_env"
    known = {key.value: key.start_mark.line + 1 for key, _ in _fields(place)}
    named = path[0] if path else text.partition(":")[0]
    where = f"line {known.get(named, place.start_mark.line + 1)}"
    return f"{where}, {'.'.join(path)}: {text}" if path else f"{where}, {text}"


def _fields(place: yaml.Node) -> list[tuple[yaml.Node, yaml.Node]]:
    return place.value if isinstance(place, yaml.MappingNode) else []
