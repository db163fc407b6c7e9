"""What a report is made from: the evaluation, its adapters, and what each stage cost."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ptalign.nouns import Adapter, Evaluation, PairSet, Policy
from ptalign_server.lineage import parents
from ptalign_server.store.resources import Resource
from ptalign_server.wire import COLLECTIONS
from ptalign_server.worker.job import Job
from ptalign_server.worker.lineage import lineage, minutes_per_pair_set
from ptalign_server.worker.trained import trained_under

if TYPE_CHECKING:
    from ptalign.evaluate import Target
    from ptalign.report import Gate, PairCounts, Stage
    from ptalign.suites import Suite

STAGES = {
    "instructionSets": "GenerateInstructions",
    "pairSets": "SynthesizePairs",
    "adapters": "Align",
}


def build_report(
    job: Job,
    evaluation: Evaluation,
    targets: Sequence[Target],
    suites: Sequence[Suite],
    pairs: PairSet | None,
    policy: Policy | None,
    gate: Gate,
) -> tuple[str, dict[str, Any]]:
    """``report.html`` as text and ``report.json`` as a document."""
    from ptalign.report import PairCounts, ReportInput, build

    asked = (job.request.baseline, job.request.target, *job.request.also)
    names = {t.label: one.adapter for t, one in zip(targets, asked, strict=True) if one.adapter}
    report = ReportInput(
        model=job.request.target.model,
        policy=policy.name if policy else trained_under(job)[0],
        evaluation=evaluation,
        adapters={label: job.load(name, Adapter) for label, name in names.items()},
        same_pairs=_same_pairs(job, names),
        pairs=_counts(pairs) if pairs else PairCounts(),
        annotations_used=pairs.annotations_used if pairs else 0,
        stages=tuple(_stages(job, evaluation)),
        left_out={suite.name: suite.left_out for suite in suites if suite.left_out},
        topic_titles={t.id: t.title for t in policy.topics} if policy else {},
        gate=gate,
        command=_command(job),
        command_lacks=_command_lacks(job),
        made=time.strftime("%Y-%m-%d"),
    )
    return build(report)


def _same_pairs(job: Job, names: Mapping[str, str]) -> tuple[str, ...]:
    """Labels of the adapters made from what the target's was: its pair set, its parent adapter."""
    own = job.request.target.adapter
    made_from = set(parents(job.resource(own))) if own else set()
    return tuple(
        label
        for label, name in names.items()
        if made_from and set(parents(job.resource(name))) == made_from
    )


def _counts(pairs: PairSet) -> PairCounts:
    from ptalign.report import PairCounts

    return PairCounts(
        pairs=sum(p.kind != "twin" for p in pairs.pairs),
        polarised=len(pairs.polarised),
        twins=len(pairs.twins),
        anchors=len(pairs.anchors),
        rounds=pairs.rounds,
        rejected=pairs.rejected,
    )


def _stages(job: Job, evaluation: Evaluation) -> Iterator[Stage]:
    """Costs of the stages that led to the target, oldest first, then of this one."""
    from ptalign.report import Stage

    line = list(lineage(job, job.request.target.adapter))
    minutes = minutes_per_pair_set(line)
    for resource in reversed(line):
        if resource.collection in STAGES:
            yield _stage(resource, minutes.get(resource.name, 0.0))
    seconds = sum(evaluation.seconds.values())
    yield Stage(
        name="Evaluate",
        seconds=seconds,
        tokens=evaluation.tokens_generated,
        made_by=job.operation.identity,
    )


def _stage(resource: Resource, minutes: float) -> Stage:
    """What its making cost as it says itself: its newest operation is only the last attempt, may
    have waited for a device, and may be deleted."""
    from ptalign.report import Stage

    message: Any = COLLECTIONS[resource.collection].FromString(resource.body)
    trained = resource.collection == "adapters"
    tokens = (
        message.tokens_mle + message.tokens_ut + message.tokens_anchor
        if trained
        else int(message.stats["tokens_generated"])
    )
    seconds = message.train_seconds if trained else message.stats.get("seconds")
    return Stage(
        name=STAGES[resource.collection],
        seconds=seconds or None,
        tokens=tokens,
        annotator_minutes=minutes,
        made_by=message.meta.made_by,
    )


def _command(job: Job) -> str:
    """`ptalign evaluate` with all of the call that it has an option for."""
    request = job.request
    words = ["ptalign", "evaluate", request.target.adapter, "-m", request.target.model]
    for option, values in (
        ("--also", [target.adapter for target in request.also]),
        ("--suite", request.suites),
        ("--judge", request.judges),
    ):
        for value in values:
            words += [option, value]
    for option, value in (
        ("--gate", request.gate),
        ("--samples", request.samples),
        ("--pair-set", request.pair_set),
        ("--held-out", request.held_out),
        ("--seed", request.seed),
    ):
        if value:
            words += [option, str(value)]
    return shlex.join(words)


def _command_lacks(job: Job) -> tuple[str, ...]:
    """What the call asked for beside, which `ptalign evaluate` has no option for."""
    request = job.request
    found = []
    if request.baseline.adapter:
        found.append(f"the baseline {request.baseline.adapter}")
    if request.WhichOneof("gate_choice") == "gate_spec":
        limits = [f"{field.name} {value:g}" for field, value in request.gate_spec.ListFields()]
        found.append(f"a gate of its own ({', '.join(limits) or 'no limits'})")
    return tuple(found)
