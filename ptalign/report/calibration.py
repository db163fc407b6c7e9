"""How often the judges are right, and the rates corrected for their errors: words and data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ptalign.calibrate import ANNOTATIONS, CROSS_FITTED, PACKAGED, RATES, XSTEST
from ptalign.nouns import Calibration, Evaluation
from ptalign.numbers import decimal
from ptalign.report.words import interval, percent, rows_of, whole_title

FEW = 50
"""With fewer texts of a kind, the reader is told that the figures are rough."""

SOURCES = {
    ANNOTATIONS: "marked by people",
    CROSS_FITTED: "marked by people, each scored by a copy of the judge that had not seen it",
    XSTEST: "of XSTest, labelled by people",
    PACKAGED: "of XSTest, labelled by people; counted when the judge was made",
}


def calibration_json(evaluation: Evaluation) -> dict[str, Any]:
    """`calibration`: one row per judge or group; `corrected`: rates by target."""
    return {
        "calibration": [made.model_dump(mode="json") for made in evaluation.calibrations],
        "corrected": {
            result.label: {name: rate.model_dump() for name, rate in result.corrected.items()}
            for result in evaluation.results
        },
    }


def judged(evaluation: Evaluation) -> dict[str, Any]:
    """The content of the page's section on judges."""
    made = evaluation.calibrations
    return {
        "checks": [_check(one, evaluation.judge_ids) for one in made],
        "notes": [note for one in made if one.decides for note in _notes(one)],
        "rates": _rates(evaluation),
    }


def _check(made: Calibration, deciding: Sequence[str]) -> dict[str, str]:
    """One row of the table."""
    name = " and ".join(made.judges)
    if len(made.judges) > 1:
        name += ", as they decide together"
    elif not set(made.judges) <= set(deciding):
        name += ", which filtered training"
    measured = bool(made.source)
    return {
        "judge": name,
        "texts": f"{_texts(made)} {SOURCES.get(made.source, made.source)}" if measured else "",
        "why": made.not_correctable,
        "finds": f"{percent(made.sensitivity)} ({interval(made.sensitivity)})",
        "lets_be": f"{percent(made.specificity)} ({interval(made.specificity)})",
        "kappa": "–" if made.kappa is None else decimal(made.kappa, 2),
        "kappas": ", ".join(f"{name} {decimal(value, 2)}" for name, value in made.kappas.items()),
    }


def _texts(made: Calibration) -> str:
    yes, no = made.sensitivity.n, made.specificity.n
    if made.axis == "harm":
        return f"{no} good and {yes} bad answers"
    return f"{yes} refusals and {no} other replies"


def _notes(made: Calibration) -> list[str]:
    """What a reader must know about the corrected shares of an axis."""
    if made.not_correctable:
        return [f"Shares of {made.axis} are not corrected: {made.not_correctable}."]
    if min(made.sensitivity.n, made.specificity.n) >= FEW:
        return []
    return [
        f"What decides on {made.axis} was checked on {_texts(made)} only, so its figures "
        f"are rough; the wide intervals of the corrected shares say how rough."
    ]


def _rates(evaluation: Evaluation) -> list[dict[str, Any]]:
    """As measured and corrected, per target."""
    names = {name for group in RATES.values() for name in group}
    return [
        {
            "title": whole_title(key, title),
            "cells": [
                {
                    "measured": percent(result.rates.get(key)),
                    "corrected": percent(result.corrected.get(key)),
                    "interval": interval(result.corrected.get(key)),
                }
                for result in evaluation.results
            ],
        }
        for key, title, _ in rows_of(evaluation.results)
        if key in names and any(key in result.corrected for result in evaluation.results)
    ]
