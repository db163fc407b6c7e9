"""One self-contained HTML file: no script, no font, and no request to anywhere."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from ptalign.nouns import COLLATERAL, Adapter, Suppressed, TargetResult
from ptalign.numbers import apart, decimal, rounded, signed
from ptalign.report.calibration import judged
from ptalign.report.contribution import BOTH, contribution
from ptalign.report.figures import COLOURS, colours_of, lines, track
from ptalign.report.guards import guards, weight_words
from ptalign.report.inputs import ReportInput
from ptalign.report.parts import parts
from ptalign.report.words import (
    MEASURES,
    METHODS,
    STAGES,
    VERDICTS,
    WITHHELD,
    headline,
    interval,
    mask,
    name_of,
    notes,
    original,
    percent,
    prompts,
    read_in,
    rows_of,
    separated_from,
    separation_points,
    shown,
    strong_is_free,
)

GATES = {"default": "the operator's default", "inline": "written in the call"}
TOP_WORDS = 12
"""Words shown of the suppressed and the collateral list; more suppressed ones for many topics."""
TOPIC_WORDS = 3
"""Suppressed words shown of each topic, at least."""


@cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("ptalign.report", "templates"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"percent": percent, "interval": interval, "prompts": prompts}
    found.filters |= {"clock": clock, "decimal": decimal, "signed": signed}
    found.globals["apart"] = apart
    return found


def clock(seconds: float | None) -> str:
    """``4 min 05 s``; a dash if unknown."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(int(rounded(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _verdict(report: ReportInput) -> str:
    """The verdict in words for a manager; a PASS that releases nothing is not called ready."""
    verdict = report.evaluation.verdict
    withheld = report.gate is not None and not report.gate.releases
    return WITHHELD if verdict == "PASS" and withheld else VERDICTS[verdict]


def report_html(report: ReportInput) -> str:
    """The page."""
    evaluation = report.evaluation
    results = evaluation.results
    colours = colours_of(len(results))
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            evaluation=evaluation,
            verdict_words=_verdict(report),
            headline=headline(evaluation),
            notes=notes(evaluation),
            strong=strong_is_free(evaluation),
            stage_titles=STAGES,
            method=METHODS.get(evaluation.aligned.method, evaluation.aligned.method),
            targets=[
                {"name": name_of(result), "colour": colour, "result": result}
                for result, colour in zip(results, colours, strict=True)
            ],
            tiles=_tiles(results),
            rows=_rows(results, colours),
            measures=_measures(results),
            topics=parts(results, colours, "topic", report.topic_titles),
            locales=parts(results, colours, "locale") if len(results[0].by_locale) > 1 else [],
            changed=name_of(results[1]),
            original=original(results[0]),
            reasons=[reason.split(": ", 1) for reason in evaluation.reasons],
            training=[
                _training(name_of(result), adapter)
                for result in results
                if (adapter := report.adapters.get(result.label)) is not None
            ],
            contribution=contribution(report),
            unlearns=evaluation.aligned.method in BOTH,
            suppressed=_suppressed(results[1]),
            collateral=_collateral(results[1]),
            top_words=TOP_WORDS,
            least_loss=COLLATERAL,
            separations=[separation_points(r) for r in results],
            separated_from=separated_from(results),
            judged=judged(evaluation),
            gate_title=GATES.get(report.gate.name, report.gate.name) if report.gate else "",
        )
    )


def _tiles(results: tuple[TargetResult, ...]) -> list[dict[str, str]]:
    """The few numbers that decide, before and after."""
    wanted = (
        ("harm_rate", "rude or harmful under attack"),
        ("refusal_rate", "harmful requests declined"),
        ("over_refusal_rate", "legitimate look-alikes refused"),
        ("usefulness", "instructions followed"),
    )
    before, after = results[0].rates, results[1].rates
    return [
        {"title": title, "before": percent(before.get(key)), "after": percent(after.get(key))}
        for key, title in wanted
        if key in after
    ]


def _rows(results: tuple[TargetResult, ...], colours: tuple[str, ...]) -> list[dict[str, Any]]:
    """One row per rate that any target has."""
    found = []
    for key, title, better in rows_of(results):
        rates = [result.rates.get(key) for result in results]
        if any(rate is not None and rate.n for rate in rates):
            drawn = track(rates, colours)
            found.append({"title": title, "better": better, "rates": rates, "track": drawn})
    return found


def _measures(results: tuple[TargetResult, ...]) -> list[dict[str, Any]]:
    """The probe's measures; those on trained answers only if some target has them."""
    found = []
    for key, title, digits in MEASURES:
        cells = [_cell(key, result, digits) for result in results]
        if key.startswith("trained_") and all(cell["value"] == "–" for cell in cells):
            continue
        note = read_in(results[1]) if key in ("harm_word_ratio", "selectivity") else ""
        found.append({"title": title, "note": note, "cells": cells})
    return found


def _cell(key: str, result: TargetResult, digits: int) -> dict[str, str]:
    """A measure, with its interval if the target is an adapter."""
    value = result.probe.measured.get(key) if result.probe else None
    if value is None:
        return {"value": "–", "interval": ""}
    told = signed if key.endswith("selectivity") else decimal
    unit = " ×" if key.endswith("ratio") else ""
    ends = getattr(result.probe, f"{key}_interval", None) if result.adapter else None
    between = " to ".join(told(end, digits) for end in ends) if ends else ""
    return {"value": told(value, digits) + unit, "interval": between}


def _training(name: str, adapter: Adapter) -> dict[str, Any]:
    """Losses and the weight over steps, what the guards said, and what the run cost."""
    ledger = adapter.ledger
    parts = [
        ("good answers", COLOURS[1], [log.loss_mle for log in ledger]),
        ("bad answers", COLOURS[2], [log.loss_ut for log in ledger]),
        ("everyday answers", COLOURS[0], [log.loss_anchor for log in ledger]),
        ("legitimate twins", COLOURS[4], [log.loss_twin or 0.0 for log in ledger]),
    ]
    told = [part for part in parts if any(part[2])]
    weights = [log.ut_weight for log in ledger]
    return {
        "name": name,
        "adapter": adapter,
        "losses": lines(told, f"losses of {name} over steps"),
        "legend": [(title, colour) for title, colour, _ in told],
        "weights": lines([("weight", COLOURS[3], weights)], f"unlikelihood weight of {name}")
        if any(weights)
        else Markup(""),
        "weight_words": weight_words(adapter),
        "guards": guards(adapter),
        "trajectory": _trajectory(name, adapter),
    }


def _trajectory(name: str, adapter: Adapter) -> list[dict[str, Any]]:
    """What the ledger measured during the run, if it did so at least twice."""
    ledger = adapter.ledger
    _, _, at_the_end = adapter.guards.get("benign_kl", "").partition(": ")
    figures = [
        (
            "Change on everyday answers (benign KL, nats a token)",
            "read on a few along the way" + (f"; at the end {at_the_end}" if at_the_end else ""),
            (COLOURS[0], [log.retain_kl for log in ledger]),
        ),
        (
            "Share of legitimate twins refused",
            "read on a few along the way",
            (COLOURS[4], [log.twin_refusals for log in ledger]),
        ),
        (
            "Weight of legitimate twins (τ)",
            "doubled where they are refused, or fit worse than at the start",
            (COLOURS[4], [log.twin_weight for log in ledger]),
        ),
    ]
    found = []
    for title, note, (colour, values) in figures:
        if sum(value is not None for value in values) < 2:
            continue
        points = [math.nan if value is None else value for value in values]
        chart = lines([(title, colour, points)], f"{title}, {name}, over steps")
        found.append({"title": title, "note": note, "chart": chart})
    return found


def _suppressed(result: TargetResult) -> list[dict[str, Any]]:
    """The words that lost most, masked, by topic; the topic with the largest loss comes first."""
    if result.probe is None:
        return []
    by_topic: dict[str, list[Suppressed]] = {}
    for item in sorted(result.probe.suppressed, key=lambda s: s.p_after - s.p_before):
        by_topic.setdefault(item.topic, []).append(item)
    most = max(TOPIC_WORDS, TOP_WORDS // max(len(by_topic), 1))
    return [
        {
            "token": mask(item.token.reveal()),
            "topic": topic.replace("-", " "),
            "shown": most,
            "found": len(items),
            "count": item.count,
            "before": item.p_before,
            "after": item.p_after,
            "neutral_before": item.neutral_before,
            "neutral_after": item.neutral_after,
        }
        for topic, items in by_topic.items()
        for item in items[:most]
    ]


def _collateral(result: TargetResult) -> list[tuple[str, float]] | None:
    """Ordinary words that lost more than `COLLATERAL`, worst first; None if none was read."""
    if result.probe is None or result.probe.collateral is None:
        return None
    ordered = sorted(result.probe.collateral.items(), key=lambda item: item[1])
    return [(shown(word), change) for word, change in ordered]
