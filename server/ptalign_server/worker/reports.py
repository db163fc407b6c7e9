"""What a report is made from: the evaluation, its adapters, and what each stage cost."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ptalign.errors import DataDamaged, InvalidInput
from ptalign.nouns import Adapter, Evaluation, Policy
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server import configs
from ptalign_server.errors import NotFound, SetPurged, Violations
from ptalign_server.lineage import own_pairs, parents
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

MADE_WITH = (
    ("model_digest", "the model's weights"),
    ("template_digest", "the chat template or system prompt"),
)
"""Fields of what every adapter says of itself."""


def build_report(
    job: Job,
    evaluation: Evaluation,
    targets: Sequence[Target],
    suites: Sequence[Suite],
    policy: Policy | None,
    gate: Gate,
    lost: Sequence[str],
) -> tuple[str, dict[str, Any]]:
    """``report.html`` as text and ``report.json`` as a document."""
    from ptalign.report import ReportInput, build

    asked = (job.request.baseline, job.request.target, *job.request.also)
    names = {t.label: one.adapter for t, one in zip(targets, asked, strict=True) if one.adapter}
    same, own = _same_pairs(job, names), _own_set(job)
    report = ReportInput(
        model=job.request.target.model,
        policy=policy.name if policy else trained_under(job)[0],
        evaluation=evaluation,
        adapters={label: job.load(name, Adapter) for label, name in names.items()},
        same_pairs=same,
        apart={label: _apart(job, names[label]) for label in same},
        unlearned_before=_unlearned_before(job),
        pairs=_counts(own),
        annotations_used=own.annotations_used,
        imported=tuple(_imported(job)),
        stages=tuple(_stages(job, evaluation)),
        left_out={suite.name: suite.left_out for suite in suites if suite.left_out},
        not_kept_apart=tuple(lost),
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


def _apart(job: Job, name: str) -> tuple[str, ...]:
    """In which settings an adapter's training differed from the target's.

    Of settings that only the method uses, or that only move what the ledger holds, none counts.
    """
    own = job.request.target.adapter
    if name == own:
        return ()
    first, second = (res.Adapter.FromString(job.resource(n).body).meta for n in (name, own))
    digests = ((what, getattr(first, f), getattr(second, f)) for f, what in MADE_WITH)
    found = [what for what, one, other in digests if one and other and one != other]
    alone, both = _settings(job, first.operation), _settings(job, second.operation)
    if alone is None or both is None:
        return (*found, "settings that are not known any more")
    return (*found, *(f"{w} ({alone[w]} against {both[w]})" for w in both if alone[w] != both[w]))


def _settings(job: Job, operation: str) -> dict[str, str] | None:
    """What a caller of Align may set beside the method and what shows in the ledger, in words."""
    store = job.room.store
    try:
        found = store.operations.get(operation.removeprefix("operations/"), job.operation.tenant)
        call = store.keys.get(found.id).open("request", found.request)
        config = configs.align_config(pb.AlignRequest.FromString(call))
    except (NotFound, SetPurged, DataDamaged):  # a remark must not cost the evaluation
        return None
    except (InvalidInput, Violations):  # a limit may be another by now
        return None
    lora = config.lora
    return {
        "seed": str(config.seed),
        "pairs a step": str(config.pairs_per_step),
        "everyday answers a step": str(config.anchors_per_step),
        "rank": str(lora.rank),
        "alpha": str(lora.alpha or 2 * lora.rank),
        "dropout": f"{lora.dropout:g}",
        "layers": ", ".join(sorted(lora.target_modules)) or "all",
    }


def _unlearned_before(job: Job) -> bool:
    """Whether an adapter that the target goes on from learned from bad answers too."""
    line = [r for r in lineage(job, job.request.target.adapter) if r.collection == "adapters"]
    return any(res.Adapter.FromString(r.body).method != res.METHOD_MLE for r in line[1:])


def _own_set(job: Job) -> res.PairSet:
    """What the set that the target was made from says of itself: after a purge too. Of the bare
    model the set that the call names; empty where there is none."""
    request = job.request
    adapter = request.target.adapter
    name = own_pairs(job.resource(adapter)) if adapter else request.pair_set
    try:
        return res.PairSet.FromString(job.resource(name).body) if name else res.PairSet()
    except NotFound:  # younger than the backup that was restored
        return res.PairSet()


def _imported(job: Job) -> Iterator[str]:
    """Sets of the target's lineage that no operation made, nor a merge, which has parents."""
    for resource in lineage(job, job.request.target.adapter):
        if resource.collection in ("instructionSets", "pairSets") and not parents(resource):
            meta = COLLECTIONS[resource.collection].FromString(resource.body).meta
            if not meta.operation:
                yield resource.name


def _counts(own: res.PairSet) -> PairCounts:
    from ptalign.report import PairCounts

    return PairCounts(
        pairs=own.pairs + own.positive_only,
        polarised=own.pairs,
        twins=own.twins,
        anchors=own.anchors,
        held_out=int(own.stats.get("held_out_pairs", 0)),
        held_out_twins=int(own.stats.get("held_out_twins", 0)),
        held_out_anchors=int(own.stats.get("held_out", 0)),
        rounds=own.rounds,
        rejected=dict(own.rejected),
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
