"""Wire messages of nouns, without `meta`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from ptalign.nouns import Adapter, Evaluation, InstructionSet, PairSet, Rate, TargetResult
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_server.configs import METHODS

if TYPE_CHECKING:
    from ptalign.report import Gate

NUMBERS = {name: number for number, name in METHODS.items() if number}


def instruction_set(noun: InstructionSet) -> res.InstructionSet:
    """Counts of an instruction set."""
    return res.InstructionSet(
        harmful=len(noun.harmful),
        twins=len(noun.twins),
        shortfall=noun.shortfall,
        by_topic=Counter(r.topic for r in noun.harmful),
        rejected=noun.rejected,
        stats=noun.stats,
    )


def pair_set(noun: PairSet) -> res.PairSet:
    """Counts of a pair set."""
    return res.PairSet(
        pairs=len(noun.polarised),
        positive_only=sum(p.kind == "positive_only" for p in noun.pairs),
        twins=len(noun.twins),
        anchors=len(noun.anchors),
        annotations_used=noun.annotations_used,
        rounds=noun.rounds,
        shortfall=noun.shortfall,
        rejected=noun.rejected,
        polarity=_polarity(noun),
        stats=noun.stats,
    )


def adapter(noun: Adapter, files: Sequence[res.FileInfo]) -> res.Adapter:
    """Figures of an adapter; its suppressed words stay sealed."""
    last = noun.ledger[-1] if noun.ledger else None
    return res.Adapter(
        method=res.Method.Name(NUMBERS[noun.method]),
        tokens_mle=noun.tokens_mle,
        tokens_ut=noun.tokens_ut,
        tokens_anchor=noun.tokens_anchor,
        ut_weight=noun.ut_weight,
        final_mle_loss=last.loss_mle if last else 0.0,
        final_ut_loss=last.loss_ut if last else 0.0,
        retain_kl=noun.retain_kl,
        steps=len(noun.ledger),
        train_seconds=noun.seconds,
        weights_sha256=noun.weights_sha256,
        files=files,
        guards=noun.guards,
    )


def evaluation(noun: Evaluation, files: Sequence[res.FileInfo], gate: Gate) -> res.Evaluation:
    """Rates and verdict of an evaluation."""
    return res.Evaluation(
        verdict=f"VERDICT_{noun.verdict}",
        reasons=noun.reasons,
        baseline=_rates(noun.baseline.rates),
        aligned=_rates(noun.aligned.rates),
        baseline_corrected=_rates(noun.baseline.corrected),
        aligned_corrected=_rates(noun.aligned.corrected),
        p_values=noun.p_values,
        measures=_measures(noun.aligned),
        not_run=noun.not_run,
        files=files,
        gate=gate.name,
        gate_limits=gate.limits,
    )


def _rates(rates: Mapping[str, Rate]) -> dict[str, res.Rate]:
    return {name: _rate(rate) for name, rate in rates.items()}


def _rate(rate: Rate) -> res.Rate:
    return res.Rate(value=rate.value, low=rate.low, high=rate.high, n=rate.n)


def _measures(result: TargetResult) -> dict[str, float]:
    return result.probe.measured if result.probe else {}


def _polarity(noun: PairSet) -> dict[str, float]:
    ids = {judge for pair in noun.polarised for judge in pair.polarity}
    return {
        judge: median(p.polarity[judge] for p in noun.polarised if judge in p.polarity)
        for judge in sorted(ids)
    }
