"""The units of a study in order, with what each depends on and how long it should take."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.study.form import TENFOLD, Data, Form, Run
from bench.study.journal import Journal, code_of
from bench.study.lab import JUDGING, PROBING, WRITING, Lab, training_config
from bench.study.record import rounded
from ptalign.config import AlignConfig

TOKENS_PER_MINUTE = 12_000.0
"""Of the engine over all suites, judging included, on two idle cores."""
STEP_MINUTES = {"mle": 0.11, "pt_align": 0.16, "ut_uniform": 0.16, "dpo": 0.25, "npo": 0.22}
REPLY_TOKENS = {"ordinary": 24, "twins": 28, "xstest-safe": 28}
"""Cap of a suite's replies where it is not 32."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of work that is kept when it is done."""

    name: str
    minutes: float
    """Expected on two idle cores."""
    inputs: Callable[[], Any]
    """What decides the result; asked when everything before it is done."""
    work: Callable[[str], dict[str, Any]]
    """Does it; takes a short digest of the inputs, to name files by."""


def units(form: Form, journal: Journal, lab: Lab) -> list[Unit]:
    """Texts, then for each run on them its training and its evaluation; the curve comes last."""
    found, written = [], set[Data]()
    for run in form.runs():
        if run.data not in written:
            found += _texts(form, journal, lab, run.data)
            written.add(run.data)
        found.append(_training(form, journal, lab, run))
        if not run.tenfold:
            found.append(_asking(form, journal, lab, run))
    return found


def _texts(form: Form, journal: Journal, lab: Lab, data: Data) -> list[Unit]:
    count = form.instructions if data == "tone" else form.broad
    asked = f"instructions-{data}"
    if form.pairs_file is not None and data == "tone":
        file = form.pairs_file
        given = hashlib.sha256(file.read_bytes()).hexdigest()
        return [Unit("pairs-tone", 0.1, lambda: [given], lambda _: lab.imported(file))]
    return [
        Unit(
            asked,
            1 + 0.05 * count,
            lambda: [data, count, code_of(*WRITING)],
            lambda tag: lab.instructions(data, tag),
        ),
        Unit(
            f"pairs-{data}",
            0.15 * count,
            lambda: [_digest(journal, asked), form.anchors, code_of(*WRITING)],
            lambda tag: lab.pairs(data, tag),
        ),
    ]


def _training(form: Form, journal: Journal, lab: Lab, run: Run) -> Unit:
    def weight() -> float | None:
        return tenfold_weight(journal, run) if run.tenfold else None

    return Unit(
        f"train/{run.label}",
        0.6 + STEP_MINUTES[run.method] * (run.steps or AlignConfig().steps_for(form.instructions)),
        lambda: [
            training_config(run, weight()).model_dump(mode="json", exclude={"threads"}),
            code_of("training", "losses", "weights", "align.py"),
            _pairs(journal, run),
        ],
        lambda tag: lab.train(run, weight(), tag),
    )


def _asking(form: Form, journal: Journal, lab: Lab, run: Run) -> Unit:
    sizes = dict(form.suites) if run.data == "tone" else dict.fromkeys(form.curve_suites, 225)
    long = sizes.pop("ifeval", 0) * min(form.usefulness_tokens, 250)
    tokens = long + sum(n * REPLY_TOKENS.get(name, 32) for name, n in sizes.items())
    first = run == form.runs()[0] or run.data == "broad"

    def trained() -> dict[str, Any]:
        return _entry(journal, f"train/{run.label}")

    def work(_: str) -> dict[str, Any]:
        if "folder" not in trained():
            raise LookupError(f"the adapter of {run.label} is on another machine: begin anew here")
        return lab.ask(run, trained()["folder"])

    return Unit(
        f"ask/{run.label}",
        (2 if first else 1) * tokens / TOKENS_PER_MINUTE,
        lambda: [
            trained()["weights_sha256"],
            _pairs(journal, run),
            dict(form.suites),
            form.usefulness_tokens,
            code_of(*JUDGING),
            code_of(*PROBING),
        ],
        work,
    )


def tenfold_weight(journal: Journal, run: Run) -> float:
    """Ten times the automatic weight that the plain run of this method and seed was matched to.

    The matched weight is the largest of the ledger: later steps come back to it, never exceed it.
    """
    ledger = _entry(journal, f"train/{run.plain.label}")["ledger"]
    weight = min(1000.0, TENFOLD * max(float(step["ut_weight"]) for step in ledger))
    return float(rounded(weight))  # as a record has it: the same run on another machine


def _pairs(journal: Journal, run: Run) -> list[str]:
    kinds = ["tone", "broad"] if run.data == "broad" else ["tone"]
    return [_digest(journal, f"pairs-{data}") for data in kinds]


def _digest(journal: Journal, unit: str) -> str:
    return str(_entry(journal, unit)["digest"])


def _entry(journal: Journal, unit: str) -> dict[str, Any]:
    entry = journal.entry(unit)
    if entry is None:
        raise LookupError(f"{unit} is not done")
    result: dict[str, Any] = entry["result"]
    return result
