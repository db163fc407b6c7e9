"""From suite names to prompts that may be asked."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from pydantic import TypeAdapter

from ptalign.config import EvalConfig
from ptalign.errors import InvalidInput
from ptalign.nouns import InstructionSet, PairSet
from ptalign.suites.base import COLUMNS, Prompt, Suite, SuiteSpec
from ptalign.suites.disjoint import far_from, training_texts
from ptalign.suites.files import prompts as read_prompts
from ptalign.suites.generated import MAKERS
from ptalign.suites.held_out import HELD_OUT, held_out_suites
from ptalign.suites.ifeval import can_check, fits

if TYPE_CHECKING:
    from ptalign.text.embed import Embedder

DEFAULT = ("attack", "strong", "plain", "twins", "xstest-safe", "ordinary", "ifeval")
"""What an evaluation runs unless told otherwise, beside what held-out requests can fill."""

NO_DATA = "no data"
NO_HELD_OUT = "no instruction set is held out"
_SPECS = TypeAdapter(list[SuiteSpec])


def read_specs(text: str) -> dict[str, SuiteSpec]:
    """Suites of a YAML list, by name.

    Raises:
        pydantic.ValidationError: An entry does not fit `SuiteSpec`.
    """
    return {spec.name: spec for spec in _SPECS.validate_python(yaml.safe_load(text) or [])}


def check_spec(spec: SuiteSpec) -> None:
    """Refuses what would be left out without a word, or fail in every evaluation.

    Raises:
        InvalidInput: `columns` maps what no prompt has, or no generator is called as `make` says.
    """
    if unknown := sorted(spec.columns.keys() - COLUMNS):
        raise InvalidInput(
            f"suites.{spec.name}.columns",
            f"no prompt has {', '.join(map(repr, unknown))}",
            f"Map one of: {', '.join(sorted(COLUMNS))}.",
        )
    made = {*MAKERS, *HELD_OUT}
    if spec.make and spec.make not in made:
        raise InvalidInput(
            f"suites.{spec.name}.make",
            f"no generator is called {spec.make!r}",
            f"Known: {', '.join(sorted(made))}.",
        )


@cache
def shipped() -> Mapping[str, SuiteSpec]:
    """The suites of the package."""
    file = resources.files("ptalign.suites").joinpath("data", "catalogue.yaml")
    return read_specs(file.read_text("utf-8"))


def data_folder() -> Path | None:
    """The folder that the environment variable PTALIGN_EVAL_DATA names."""
    named = os.environ.get("PTALIGN_EVAL_DATA", "")
    return Path(named) if named else None


def chosen_suites(
    names: Sequence[str] = (), held_out: InstructionSet | None = None
) -> tuple[str, ...]:
    """The suites that an evaluation runs: those named, else the default ones.

    Args:
        names: What the caller asked for.
        held_out: Requests that nothing was trained on: they add the suites that they can fill.
    """
    return tuple(names) or DEFAULT + (held_out_suites(held_out) if held_out else ())


def build(
    names: Sequence[str] = (),
    *,
    config: EvalConfig,
    pairs: PairSet | None = None,
    catalogue: Mapping[str, SuiteSpec] | None = None,
    data: Path | None = None,
    held_out: InstructionSet | None = None,
    embed: Embedder | None = None,
) -> tuple[Suite, ...]:
    """The named suites, sampled alike for every target and disjoint from training.

    Args:
        names: Names in the catalogue; `chosen_suites` unless given.
        config: Samples per suite, token limits and the seed.
        pairs: The training set whose requests and anchors are kept away from; None: not checked.
        catalogue: The operator's suites beside the shipped ones.
        data: Folder of evaluation files; PTALIGN_EVAL_DATA unless given.
        held_out: What the ``held-out`` suites ask: requests of the policy that were not trained on.
        embed: Embedder of the similarity check in every language; unless given, English is compared
            by MiniLM, other languages by their words (`far_from`).

    Returns:
        One suite per name; a suite whose file is missing has ``not_run == "no data"``, and a
        ``held-out`` one without requests says so.

    Raises:
        InvalidInput: An unknown or doubled name, or a suite that cannot be as its entry says.
    """
    known = {**shipped(), **(catalogue or {})}
    names = chosen_suites(names, held_out)
    if len(set(names)) != len(names):
        raise InvalidInput("suites", "a suite is named twice", "Name each suite once.")
    for name in names:
        if name not in known:
            raise InvalidInput("suites", f"unknown {name!r}", f"Known: {', '.join(sorted(known))}.")
        check_spec(known[name])
    texts = training_texts(pairs) if pairs is not None else []
    folder = data or data_folder()
    return tuple(_build(known[name], config, texts, folder, held_out, embed) for name in names)


def _build(
    spec: SuiteSpec,
    config: EvalConfig,
    texts: Sequence[str],
    folder: Path | None,
    held_out: InstructionSet | None,
    embed: Embedder | None,
) -> Suite:
    limit = config.usefulness_tokens if spec.measure == "usefulness" else config.max_tokens
    limit = min(limit, spec.max_tokens or limit)
    found = Suite(
        name=spec.name, measure=spec.measure, elicitation=spec.elicitation, max_tokens=limit
    )
    if spec.file and not (folder and (folder / spec.file).is_file()):
        return found.model_copy(update={"not_run": NO_DATA})
    if spec.make in HELD_OUT and held_out is None:
        return found.model_copy(update={"not_run": NO_HELD_OUT})
    source = _source(spec, folder, held_out, config.seed)
    wanted = max(1, round(config.samples * spec.share))
    chosen, left_out = _choose(source, wanted, limit, texts, embed)
    return found.model_copy(
        update={
            "prompts": tuple(chosen),
            "left_out": left_out,
            "not_run": "" if chosen else _why_empty(spec, left_out),
        }
    )


def _why_empty(spec: SuiteSpec, left_out: Mapping[str, int]) -> str:
    if left_out:
        return "every prompt was left out"
    return "no row that has a prompt matches `where`" if spec.where else "it has no prompt"


def _source(
    spec: SuiteSpec, folder: Path | None, held_out: InstructionSet | None, seed: int
) -> Iterator[Prompt]:
    if held_out is not None and spec.make in HELD_OUT:
        return HELD_OUT[spec.make](held_out, seed)
    if spec.make:
        return MAKERS[spec.make](seed)
    if folder is None:
        raise InvalidInput("data", "no folder of evaluation files", "Set PTALIGN_EVAL_DATA.")
    return read_prompts(spec, folder / spec.file, seed)


def _choose(
    source: Iterator[Prompt],
    wanted: int,
    limit: int,
    texts: Sequence[str],
    embed: Embedder | None,
) -> tuple[list[Prompt], dict[str, int]]:
    """The first `wanted` prompts that may be asked, and how many before them may not.

    Only as many candidates are embedded as are still missing: embedding is what costs.
    """
    left_out: Counter[str] = Counter()
    chosen: list[Prompt] = []
    usable = _usable(source, limit, left_out)
    while missing := wanted - len(chosen):
        candidates = list(islice(usable, missing))
        if not candidates:
            break
        far = far_from(candidates, texts, embed=embed)
        left_out["near training"] += len(candidates) - len(far)
        chosen += far
    return chosen, {why: n for why, n in left_out.items() if n}


def _usable(source: Iterator[Prompt], limit: int, left_out: Counter[str]) -> Iterator[Prompt]:
    """What is asked twice alike is asked once: its second reply would be no second sample.

    A row that comes again under another persona is another prompt; one that comes again under
    another id is not.
    """
    nothing = {"id": "", "topic": "", "group": ""}
    seen: set[str] = set()
    for prompt in source:
        asked = prompt.model_copy(update=nothing).digest
        why = "doubled" if {prompt.id, asked} & seen else _unusable(prompt, limit)
        if why:
            left_out[why] += 1
        else:
            seen |= {prompt.id, asked}
            yield prompt


def _unusable(prompt: Prompt, limit: int) -> str:
    if not all(can_check(check) for check in prompt.checks):
        return "no checker"
    if prompt.checks and not fits(prompt, limit):
        return "longer than the token limit"
    return ""
