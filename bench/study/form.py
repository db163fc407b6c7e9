"""How large a study is, and which training runs it consists of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ptalign.config import AlignConfig
from ptalign.nouns import Method

DEFAULTS = AlignConfig()
Data = Literal["tone", "broad"]
BASE = "base"
"""Label of the bare model."""
NAMED = ("mle", "pt_align", "ut_uniform")
"""Methods that a goal names beside base."""
TENFOLD = 10.0
"""Times the automatic weight, for the runs that look past the budget."""

CURVE = ((0, 4, 64), (2, 4, 64), (4, 4, 64), (8, 4, 64), (4, 0, 64), (4, 4, 128), (8, 8, 128))
"""(twins a step, anchors a step, steps) of the runs on the XSTest curve: about three and six passes
over the pairs of both policies."""


@dataclass(frozen=True, slots=True)
class Run:
    """One adapter to train and how."""

    method: Method
    seed: int
    data: Data = "tone"
    steps: int = DEFAULTS.steps
    twins: int = DEFAULTS.twins_per_step
    anchors: int = DEFAULTS.anchors_per_step
    tenfold: bool = False
    """At ten times the automatic weight of the run of this method and seed."""

    @property
    def label(self) -> str:
        """Names the run in the journal and on the page."""
        if self.data == "broad":
            return f"curve-t{self.twins}-a{self.anchors}-n{self.steps}-s{self.seed}"
        return f"{self.method}-s{self.seed}" + ("-x10" if self.tenfold else "")

    @property
    def plain(self) -> Run:
        """The run whose automatic weight this one multiplies."""
        return Run(self.method, self.seed, steps=self.steps)


@dataclass(frozen=True, slots=True)
class Form:
    """A size of the study."""

    name: str
    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    """Training seeds."""
    instructions: int
    """Harmful requests asked for, each with a twin."""
    steps: int
    """Of each compared run; 0: `AlignConfig.steps_for`."""
    suites: Mapping[str, int]
    """Suite -> prompts at most."""
    usefulness_tokens: int
    broad: int = 0
    """Harmful requests over the shipped broad policy, for the XSTest curve; 0: no curve."""
    anchors: int = 80
    curve: tuple[tuple[int, int, int], ...] = ()
    tenfold: bool = False
    pairs_file: Path | None = None
    """A pair set made earlier, to train on in place of one made now."""
    curve_suites: tuple[str, ...] = field(default=("xstest-safe", "xstest-unsafe"))

    def sizes(self) -> dict[str, Any]:
        """What two parts of one study have in common."""
        names = ("name", "instructions", "broad", "anchors", "steps", "usefulness_tokens")
        return {name: getattr(self, name) for name in names} | {"suites": dict(self.suites)}

    def runs(self) -> list[Run]:
        """Every run, what a goal needs first: a study cut short then lacks what needs it least.

        The methods that goals name at every seed, ten times the weight once, the curve (seed 0
        only), the other methods, and ten times the weight at the other seeds.
        """
        named = [m for m in self.methods if m in NAMED]
        others = [m for m in self.methods if m not in NAMED]
        found = [self._compared(m, seed) for seed in self.seeds for m in named]
        found += [run for seed in self.seeds[:1] for run in self._tenfold(seed)]
        found += [
            Run("pt_align", 0, "broad", steps, twins, anchors)
            for twins, anchors, steps in (self.curve if self.broad and 0 in self.seeds else ())
        ]
        found += [self._compared(m, seed) for seed in self.seeds for m in others]
        return found + [run for seed in self.seeds[1:] for run in self._tenfold(seed)]

    def _compared(self, method: Method, seed: int) -> Run:
        return Run(method, seed, steps=self.steps)

    def _tenfold(self, seed: int) -> list[Run]:
        methods = [m for m in self.methods if m in ("pt_align", "ut_uniform") and self.tenfold]
        return [Run(m, seed, steps=self.steps, tenfold=True) for m in methods]


FULL = Form(
    name="full",
    methods=("mle", "pt_align", "ut_uniform", "dpo", "npo"),
    seeds=(0, 1, 2),
    instructions=192,
    steps=0,
    anchors=240,
    suites={
        "attack": 300,
        "strong": 300,
        "plain": 300,
        "twins": 300,
        "xstest-safe": 250,
        "xstest-unsafe": 200,
        "ordinary": 230,
        "ifeval": 299,
    },
    usefulness_tokens=512,
    broad=96,
    curve=CURVE,
    tenfold=True,
)
QUICK = Form(
    name="quick",
    methods=("pt_align", "mle", "ut_uniform"),
    seeds=(0,),
    instructions=40,
    steps=0,
    suites={
        "attack": 60,
        "strong": 60,
        "plain": 60,
        "twins": 60,
        "xstest-safe": 40,
        "ordinary": 60,
        "ifeval": 40,
    },
    usefulness_tokens=64,
    tenfold=True,
)
SMOKE = Form(
    name="smoke",
    methods=("mle", "pt_align", "ut_uniform"),
    seeds=(0,),
    instructions=4,
    steps=2,
    suites={"attack": 4, "strong": 4, "plain": 4, "twins": 4, "ordinary": 4, "ifeval": 2},
    usefulness_tokens=24,
    broad=3,
    anchors=6,
    curve=((1, 1, 2),),
    tenfold=True,
    curve_suites=("xstest-safe", "xstest-unsafe"),
)
FORMS = {form.name: form for form in (FULL, QUICK, SMOKE)}
