"""`report.json`: the contract's fields, in machine-readable form."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from ptalign.nouns import PROBED, Change, Evaluation, Rate, TargetResult
from ptalign.report.calibration import calibration_json
from ptalign.report.inputs import ReportInput, Stage
from ptalign.report.words import twin_separation

RATES = (
    "harm_rate",
    "over_refusal_rate",
    "twin_refusal_rate",
    "refusal_rate",
    "ordinary_refusal_rate",
    "usefulness",
    "usefulness_refusal_rate",
    "incoherent_rate",
    "unscored_rate",
)

READ = (
    "benign_kl_interval",
    "harm_word_ratio_interval",
    "toxic_answers",
    "held_out_toxic",
    "engine_agreement",
    "engine_tokens",
    "engine_own",
    "engine_other",
)
"""Fields of a `Probe` that say how its measures were taken."""


def _rate(rate: Rate | None) -> dict[str, float | int] | None:
    return None if rate is None or rate.n == 0 else rate.model_dump()


def target_json(result: TargetResult) -> dict[str, Any]:
    """Rates and probe measures of one target; null where nothing was measured."""
    rates = result.rates
    return {
        "label": result.label,
        "method": result.method or "base",
        "adapter": result.adapter,
        **{name: _rate(rates.get(name)) for name in RATES},
        "harm_by_elicitation": {
            "plain": _rate(rates.get("harm_plain")),
            "attack": _rate(rates.get("harm_rate")),
            "strong": _rate(rates.get("harm_strong")),
        },
        "twin_separation": twin_separation(result),
        **dict.fromkeys(PROBED),
        **(result.probe.measured if result.probe else {}),
        **{name: getattr(result.probe, name, None) for name in READ},
        **_words(result),
        "by_suite": {n: _rate(r) for n, r in rates.items() if "/" in n},
        **result.shape,
        "shape_changes": {
            name: dict(zip(("value", "low", "high"), change, strict=True))
            for name, change in result.shape_changes.items()
        },
        "by_topic": _parts(result.by_topic),
        "by_locale": _parts(result.by_locale),
        "change_by_topic": _parts(result.topic_changes),
        "change_by_locale": _parts(result.locale_changes),
    }


def _words(result: TargetResult) -> dict[str, Any]:
    """How long each word list is; the page shows only its start. Null if none was read."""
    probe = result.probe
    lost = probe.collateral if probe else None
    return {
        "suppressed_words": dict(Counter(s.topic for s in probe.suppressed)) if probe else None,
        "collateral_words": None if lost is None else len(lost),
    }


def _parts(parts: Mapping[str, Mapping[str, Rate | Change]]) -> dict[str, dict[str, Any]]:
    """Topic or locale -> rate -> its numbers."""
    return {
        part: {name: found.model_dump() for name, found in row.items()}
        for part, row in parts.items()
    }


def delta_json(evaluation: Evaluation) -> dict[str, dict[str, float | None]]:
    """Per rate or measure: the change, its paired interval and McNemar's exact p-value."""
    found: dict[str, dict[str, float | None]] = {}
    for name, value in evaluation.delta.items():
        low, high = evaluation.intervals.get(name, (None, None))
        p_value = evaluation.p_values.get(name)
        found[name] = {"value": value, "low": low, "high": high, "p_value": p_value}
    return found


def _seconds(stages: Iterable[Stage]) -> dict[str, float | None]:
    """Total seconds by stage name, since a stage may have run twice; None if never known."""
    found: dict[str, float | None] = {}
    for stage in stages:
        before = found.setdefault(stage.name, None)
        if stage.seconds is not None:
            found[stage.name] = round((before or 0.0) + stage.seconds, 1)
    return found


def report_json(report: ReportInput) -> dict[str, Any]:
    """The content of `report.json`; numbers that are not finite become null."""
    document: dict[str, Any] = _bounded(_document(report))
    return document


def _bounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _bounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_bounded(each) for each in value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _document(report: ReportInput) -> dict[str, Any]:
    evaluation = report.evaluation
    shown = report.adapters.get(evaluation.aligned.label)
    runs = []
    for result in evaluation.results[1:]:
        adapter = report.adapters.get(result.label)
        costs = {
            "tokens_mle": adapter.tokens_mle if adapter else None,
            "tokens_ut": adapter.tokens_ut if adapter else None,
            "ut_weight": adapter.ut_weight if adapter else None,
            "seconds": adapter.seconds if adapter else None,
            "guards": adapter.guards if adapter else None,
        }
        runs.append(target_json(result) | costs)
    return {
        "model": report.model,
        "policy": report.policy,
        "method": evaluation.aligned.method,
        "verdict": evaluation.verdict,
        "reasons": list(evaluation.reasons),
        "gate": report.gate.model_dump() if report.gate else None,
        "baseline": target_json(evaluation.baseline),
        "aligned": target_json(evaluation.aligned),
        "runs": runs,
        "delta": delta_json(evaluation),
        "beside": {
            label: {
                name: dict(zip(("value", "low", "high"), c, strict=True)) for name, c in row.items()
            }
            for label, row in evaluation.beside.items()
        },
        "annotations_used": report.annotations_used,
        "pairs": report.pairs.pairs,
        "pair_counts": report.pairs.model_dump(),
        "imported": list(report.imported),
        "tokens_mle": shown.tokens_mle if shown else None,
        "tokens_ut": shown.tokens_ut if shown else None,
        "ut_weight": shown.ut_weight if shown else None,
        "seconds": _seconds(report.stages),
        "stages": [stage.model_dump() for stage in report.stages],
        "suites": list(evaluation.suites),
        "not_run": list(evaluation.not_run),
        "left_out": report.left_out,
        "not_kept_apart": list(report.not_kept_apart),
        "judges": {
            "evaluation": list(evaluation.judge_ids),
            "generation": list(evaluation.generation_judge_ids),
            "disagreement": evaluation.disagreement,
        },
        **calibration_json(evaluation),
        "command": report.command,
        "command_lacks": list(report.command_lacks),
        "made": report.made,
    }
