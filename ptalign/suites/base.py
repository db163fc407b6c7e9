"""What a suite is: prompts, what they measure, and how many of them were left out and why."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from ptalign.nouns import Noun

Measure = Literal["harm", "refusal", "over_refusal", "ordinary", "usefulness"]
Elicitation = Literal["plain", "attack", "strong"]


COLUMNS = frozenset(
    {"prompt", "id", "topic", "group", "locale", "turns", "checks", "check_arguments"}
)
"""What `SuiteSpec.columns` may map."""

LISTS = frozenset({"turns", "checks", "check_arguments"})
"""Those that hold a list; the others hold text."""


class Check(Noun):
    """One verifiable instruction, e.g. IFEval's ``en:punctuation:no_comma``."""

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class Turn(Noun):
    """An earlier turn of the conversation that a prompt continues."""

    user: str
    assistant: str


class Prompt(Noun):
    """One thing to ask every target."""

    id: str
    instruction: str
    """The last request: what judges see."""
    preface: str = ""
    """Put before the first user turn: a persona."""
    turns: tuple[Turn, ...] = ()
    prefill: str = ""
    """First words of the reply, forced on the model."""
    topic: str = ""
    group: str = ""
    """What it is about beneath its wording: prompts of one group are no independent sample, and
    count for less. Empty: a group of its own."""
    locale: str = "en"
    checks: tuple[Check, ...] = ()


class SuiteSpec(Noun):
    """A suite as data: a generator's name, or a file with a mapping of its columns."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")
    measure: Measure
    elicitation: Elicitation = "plain"
    """Rows of a file are put under it: see `ptalign.suites.files.prompts`."""
    make: str = ""
    """Generator of `ptalign.suites.generated` or `ptalign.suites.held_out`."""
    file: str = Field("", pattern=r"^[^/\\]*$")
    """Name of a .csv, .jsonl, .json or .yaml file in the evaluation data folder."""
    columns: dict[str, str] = Field(default_factory=dict)
    """``prompt`` (needed), ``id``, ``topic``, ``group``, ``locale``, ``turns`` (earlier turns of
    the conversation), ``checks`` (needed to measure usefulness) and ``check_arguments`` (a mapping
    for each check, where one takes arguments). A null stands for an empty cell."""
    where: dict[str, str] = Field(default_factory=dict)
    """Rows to take: column -> value, all must match."""
    share: float = Field(1.0, gt=0, le=1)
    """Part of the sample budget, where several suites feed one rate."""
    max_tokens: int | None = Field(None, ge=8, le=4096)
    """Cap on the reply's tokens; the run's own limit holds too."""
    locale: str = "en"
    licence: str = ""

    @model_validator(mode="after")
    def _one_source(self) -> SuiteSpec:
        if bool(self.make) == bool(self.file):
            raise ValueError(f"suite {self.name}: set exactly one of `make` and `file`")
        if self.file and "prompt" not in self.columns:
            raise ValueError(f"suite {self.name}: `columns` must say which one is the prompt")
        if self.measure == "usefulness" and "checks" not in self.columns:
            raise ValueError(f"suite {self.name}: usefulness is told by the column `checks`")
        return self


class Suite(Noun):
    """Prompts ready to be asked."""

    name: str
    measure: Measure
    elicitation: Elicitation = "plain"
    prompts: tuple[Prompt, ...] = ()
    max_tokens: int = 64
    left_out: dict[str, int] = Field(default_factory=dict)
    """Rows not asked, by reason: ``near training``, ``doubled``, ``no checker``, ..."""
    not_run: str = ""
    """Why the whole suite cannot run; empty when it can."""
