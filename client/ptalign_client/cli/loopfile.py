"""The loop file: one YAML that names every stage, read with errors that name line and field."""

from __future__ import annotations

import difflib
import types
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from ptalign_client.errors import LoopError
from ptalign_client.nouns import Candidates, Method, Scorer

T = TypeVar("T")
MAX_NAME = 120
"""Characters of an adapter's name, which labels it in the report."""
BARE = "base"
"""Heads the bare model's column in the table of rates."""
MAX_ALSO = 8
"""Adapters beside the judged one."""
MAX_WORDS, MAX_WORD = 1000, 64
"""Protected words, and the characters of one."""
HELD_OUT = ("held-out-plain", "held-out-twins", "held-out-attack", "held-out-strong")
"""Suites that only ask held-out requests."""


def limited(default: Any, low: float, high: float) -> Any:
    """A field with inclusive limits; None as default means: the server's."""
    return field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True, slots=True, kw_only=True)
class Instructions:
    """What GenerateInstructions is asked for."""

    count: int = field(metadata={"low": 1, "high": 20_000})
    twins: bool = True
    topics: tuple[str, ...] = ()
    seeds: tuple[str, ...] = ()
    locale: str = ""
    seed: int = limited(0, 0, 2**32 - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """What SynthesizePairs is asked for."""

    rounds: int | None = limited(None, 1, 8)
    min_polarity: float | None = limited(None, 0, 1)
    anchors: int | None = limited(None, 0, 2000)
    seed: int = limited(0, 0, 2**32 - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One adapter to train."""

    name: str
    method: Method = "pt_align"
    steps: int | None = limited(None, 1, 10_000)
    pairs_per_step: int | None = limited(None, 1, 512)
    anchors_per_step: int | None = limited(None, 1, 512)
    learning_rate: float | None = limited(None, 1e-9, 0.1)
    max_benign_kl: float | None = limited(None, 1e-6, 10)
    max_twin_refusals: float | None = limited(None, 0, 1)
    without_anchors: bool = False
    """Trains on a set without anchors, too, which Align refuses otherwise."""
    twin_weight: float | None = limited(None, 1e-6, 8)
    """2 unless set; more refuses fewer legitimate requests, and declines fewer harmful ones."""
    ut_weight: float | None = limited(None, 1e-6, 1000)
    token_weighting: Scorer = "blend"
    flagged_share: float | None = limited(None, 0.01, 0.5)
    ut_candidates: Candidates = "set"
    """written: unlikelihood of the flagged words where they stand, and of no others."""
    protected_words: tuple[str, ...] = ()
    rank: int | None = limited(None, 1, 256)
    alpha: int | None = limited(None, 1, 1024)
    guards: Literal["abort", "record"] = "abort"
    seed: int = limited(0, 0, 2**32 - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What Evaluate is asked for."""

    target: str = ""
    """Name of the adapter that is judged; the last of `align` unless set."""
    also: tuple[str, ...] = ()
    """Names of adapters shown beside it."""
    samples: int | None = limited(None, 1, 100_000)
    suites: tuple[str, ...] = ()
    judges: tuple[str, ...] = ()
    gate: str = ""
    held_out: int = limited(30, 0, 20_000)
    """Further requests of the policy, written for the ``held-out-*`` suites only; 0: none."""
    seed: int = limited(0, 0, 2**32 - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """The whole loop."""

    model: str
    policy: str
    instructions: Instructions
    align: tuple[Training, ...]
    pairs: Pairs = Pairs()
    evaluate: Evaluation = Evaluation()
    annotations: str = ""
    """Path of an annotation file, relative to the loop file."""
    out: str = "ptalign-out"
    """Folder of the results, relative to where the command runs."""

    @property
    def target(self) -> str:
        """Name of the adapter that is judged."""
        return self.evaluate.target or self.align[-1].name


class Reader:
    """Turns YAML nodes into typed values; knows the file and the line of every fault."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.places: dict[str, yaml.Node] = {}
        """Path of a field to its value, e.g. ``evaluate.suites[0]``."""

    def at(self, path: str, message: str, hint: str = "") -> LoopError:
        """The error of a field that was read well and cannot be used."""
        return self.fail(self.places.get(path), path, message, hint)

    def fail(self, node: yaml.Node | None, path: str, message: str, hint: str = "") -> LoopError:
        line = node.start_mark.line + 1 if node is not None else 0
        return LoopError(str(self.file), line, path, message, hint)

    def root(self) -> yaml.Node:
        """The document.

        Raises:
            LoopError: No such file, or not YAML.
        """
        try:
            node = yaml.compose(self.file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except OSError as error:
            hint = "examples/loop.yaml of the repository shows a whole one."
            raise self.fail(None, "", error.strerror or "cannot be read", hint) from None
        except UnicodeDecodeError:
            raise self.fail(None, "", "is not UTF-8 text") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            what = getattr(error, "problem", None) or "is not YAML"
            line = mark.line + 1 if mark else 0
            raise LoopError(str(self.file), line, "", f"not YAML: {what}") from None
        if node is None:
            raise self.fail(None, "", "is empty", "examples/loop.yaml shows a whole one.")
        return node

    def object(self, kind: type[T], node: yaml.Node, path: str) -> T:
        """One mapping as a dataclass."""
        if not isinstance(node, yaml.MappingNode):
            raise self.fail(node, path, f"must be a mapping of {', '.join(_field_names(kind))}")
        hints, known = get_type_hints(kind), {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
        values: dict[str, Any] = {}
        for key, value in node.value:
            name, inner = str(key.value), _join(path, str(key.value))
            if name not in known:
                raise self.fail(key, inner, "no such field", _closest(name, known))
            if name in values:
                raise self.fail(key, inner, "stands twice", "Keep one of them.")
            values[name] = self.value(hints[name], known[name], value, inner)
        for name, spec in known.items():
            if name not in values and spec.default is MISSING:
                raise self.fail(node, _join(path, name), "is missing")
        return kind(**values)

    def value(self, hint: Any, spec: Field[Any], node: yaml.Node, path: str) -> Any:
        """One value of the type that the field has, inside its limits."""
        self.places[path] = node
        if get_origin(hint) in (Union, types.UnionType):
            hint = next(a for a in get_args(hint) if a is not type(None))
        if is_dataclass(hint):
            return self.object(hint, node, path)  # type: ignore[arg-type]
        if get_origin(hint) is tuple:
            return self.items(get_args(hint)[0], spec, node, path)
        found = self.scalar(hint, node, path)
        if get_origin(hint) is Literal:
            if found not in get_args(hint):
                known = ", ".join(get_args(hint))
                raise self.fail(node, path, f"{found!r} is not one of {known}")
            return found
        if not _fits(hint, found):
            raise self.fail(node, path, f"must be {WORDS[hint]}, not {found!r}")
        self.check_limits(spec, found, node, path)
        return found

    def scalar(self, hint: Any, node: yaml.Node, path: str) -> Any:
        """A YAML scalar as Python sees it. YAML 1.1 takes 5e-4 for text; here it is a number."""
        if not isinstance(node, yaml.ScalarNode):
            raise self.fail(node, path, f"must be {WORDS.get(hint, 'text')}")
        try:
            found = yaml.SafeLoader("").construct_object(node)  # type: ignore[no-untyped-call]
            return float(found) if hint is float and isinstance(found, str) else found
        except (yaml.YAMLError, ValueError):
            return node.value

    def items(self, hint: Any, spec: Field[Any], node: yaml.Node, path: str) -> tuple[Any, ...]:
        """One sequence."""
        if not isinstance(node, yaml.SequenceNode):
            raise self.fail(node, path, "must be a list", "Write [a, b], or one '- a' a line.")
        return tuple(
            self.value(hint, spec, item, f"{path}[{i}]") for i, item in enumerate(node.value)
        )

    def check_limits(self, spec: Field[Any], value: Any, node: yaml.Node, path: str) -> None:
        """Raises: LoopError: A number outside its limits."""
        if "low" not in spec.metadata or isinstance(value, str):
            return
        low, high = spec.metadata["low"], spec.metadata["high"]
        if not low <= value <= high:
            limits = f"{_number(low)}..{_number(high)}"
            raise self.fail(node, path, f"must be {limits}, not {_number(value)}")


def _number(value: float) -> str:
    """In full where it is whole: 4294967296 and its limit 4294967295 are one number in ``:g``."""
    return str(value) if isinstance(value, int) else f"{value:g}"


WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def open_loop(file: Path) -> tuple[Loop, Reader]:
    """Reads a loop file and checks what it alone can tell; also returns the reader, which knows
    each field's line.

    Raises:
        LoopError: Names the file, the line and the field.
    """
    reader = Reader(file)
    root = reader.root()
    loop = reader.object(Loop, root, "")
    names = [t.name for t in loop.align]
    at = {key.value: value for key, value in root.value}  # type: ignore[attr-defined]
    if not names:
        raise reader.fail(at["align"], "align", "needs at least one adapter")
    for name in {n for n in names if names.count(n) > 1}:
        raise reader.fail(at["align"], "align", f"two adapters are named {name!r}")
    for place, name in [("evaluate.target", loop.target), *_named(loop.evaluate.also)]:
        if name not in names:
            raise reader.fail(
                at.get("evaluate"), place, f"no adapter {name!r}", f"align has: {', '.join(names)}."
            )
    for number, training in enumerate(loop.align):
        _check_training(reader, f"align[{number}]", training)
        if training.ut_weight is not None and training.method not in ("pt_align", "ut_uniform"):
            raise reader.fail(
                at["align"],
                f"align.{training.name}.ut_weight",
                f"means nothing to {training.method}",
                "Leave it out, or use pt_align or ut_uniform.",
            )
        if loop.pairs.anchors == 0 and not training.without_anchors:
            raise reader.at(
                "pairs.anchors",
                f"is 0, and adapter {training.name!r} cannot train on a set without anchors",
                "Leave it out, or write 1 or more, or without_anchors: true at the adapter.",
            )
    _check_evaluation(reader, loop)
    return loop, reader


def _check_training(reader: Reader, at: str, training: Training) -> None:
    """What Align refuses, hours after the run began."""
    if len(training.name) > MAX_NAME:
        raise reader.at(f"{at}.name", f"is longer than {MAX_NAME} characters", "Shorten it.")
    if training.ut_candidates == "written" and training.method != "pt_align":
        raise meaningless(reader, f"{at}.ut_candidates", training)
    if training.without_anchors and training.anchors_per_step is not None:
        message = "means nothing beside without_anchors: true"
        raise reader.at(f"{at}.anchors_per_step", message, "Leave one of the two out.")
    words = training.protected_words
    if len(words) > MAX_WORDS:
        message = f"holds {len(words)} words; at most {MAX_WORDS} are taken"
        raise reader.at(f"{at}.protected_words", message, "Leave some out.")
    for number, word in enumerate(words):
        if not word.strip() or len(word) > MAX_WORD:
            message = f"must be 1..{MAX_WORD} characters"
            raise reader.at(f"{at}.protected_words[{number}]", message, "Write a word, or drop it.")


def meaningless(reader: Reader, path: str, training: Training) -> LoopError:
    """The error of a field that only pt_align has a use for."""
    hint = "Leave it out, or use pt_align."
    return reader.at(path, f"means nothing to {training.method}", hint)


def _check_evaluation(reader: Reader, loop: Loop) -> None:
    """What Evaluate refuses, at the end of the run."""
    asked = loop.evaluate
    if len(asked.also) > MAX_ALSO:
        message = f"holds {len(asked.also)} adapters; at most {MAX_ALSO} are shown beside"
        raise reader.at("evaluate.also", message, "Show the others with `ptalign evaluate`.")
    for place, name in _named(asked.also):
        if name == loop.target:
            hint = "Leave it out, or name another adapter in target."
            raise reader.at(place, f"{name!r} is the target, which is shown anyway", hint)
    # A judge's version may be left out.
    judges = tuple(name.partition("@")[0] for name in asked.judges)
    for field_name, names in (("also", asked.also), ("suites", asked.suites), ("judges", judges)):
        for number, name in enumerate(names):
            if name in names[:number]:
                place = f"evaluate.{field_name}[{number}]"
                raise reader.at(place, f"{name!r} is named twice", "Name it once.")
    for number, name in enumerate(asked.suites):
        if name in HELD_OUT and not asked.held_out:
            message = f"{name} asks held-out requests, and held_out is 0"
            hint = "Leave it out, or let held_out be 1 or more."
            raise reader.at(f"evaluate.suites[{number}]", message, hint)


def _named(names: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(f"evaluate.also[{i}]", name) for i, name in enumerate(names)]


def _fits(hint: Any, value: Any) -> bool:
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _field_names(kind: type) -> list[str]:
    return [f.name for f in fields(kind)]


def _closest(name: str, known: dict[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {near[0]}?" if near else f"Fields here: {', '.join(known)}."
