"""Evaluate -> Evaluation, with its report."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import ExitStack
from itertools import chain, count
from typing import TYPE_CHECKING, Any

from ptalign.config import EvalConfig, GateConfig
from ptalign.errors import PtalignError
from ptalign.nouns import (
    Adapter,
    Answers,
    Evaluation,
    InstructionSet,
    ModelSpec,
    PairSet,
    Policy,
    Probe,
    Reply,
)
from ptalign.progress import Progress
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server import configs, messages
from ptalign_server.catalogue import DEFAULT_GATE, SAMPLES
from ptalign_server.gateway.release import why_withheld
from ptalign_server.gateway.weights import check_weights
from ptalign_server.profiles import profile
from ptalign_server.worker.adapters import adapter_folder, check_adapter, served_adapter
from ptalign_server.worker.job import Job, Made, Room
from ptalign_server.worker.jobs.align import REVEAL, run
from ptalign_server.worker.judges import Counting, OfTheseJudges, evaluation_judges
from ptalign_server.worker.marks import marked_for
from ptalign_server.worker.reports import build_report
from ptalign_server.worker.trained import Trained, trained, trained_under

if TYPE_CHECKING:
    from ptalign.evaluate import Target
    from ptalign.report import Gate
    from ptalign.suites import Suite
    from ptalign_server.pool import Pool

log = logging.getLogger(__name__)


def validate(job: Job) -> None:
    """Reads sets, marks and adapters, whose digests and signatures must hold."""
    marked_for(job, trained_of(job).name)
    if job.request.held_out:
        job.load(job.request.held_out, InstructionSet)
    for name in filter(None, dict.fromkeys(_adapters(job))):
        check_adapter(job.room.store, name)
        job.load(name, Adapter)


def make(job: Job) -> Made:
    """Asks, judges, compares and writes the report."""
    from ptalign.evaluate import evaluate

    request = job.request
    model = job.keep_model(request.target.model)
    for field, target in configs.targets_of(request).items():
        if target.adapter:  # replaced while the call waited, the weights are not its own any more
            check_weights(f"{field}.adapter", job.resource(target.adapter), model)
    config = config_of(job)
    data = trained_of(job)
    pairs, marks = data.pairs, marked_for(job, data.name)
    policy = job.policy_of(data.name) if pairs is not None else None
    suites = _suites(job, config, data.seen)

    def prober(
        pairs: PairSet, folders: Mapping[str, str], answers: Mapping[str, Answers]
    ) -> dict[str, Probe]:
        return _probe(job, model, config.samples, policy, pairs, folders, answers)

    with (
        evaluation_judges(request.judges, job.room.catalogue, job.should_stop) as judges,
        job.room.pools.use(model, job.should_stop, job.reporter.waiting) as pool,
        ExitStack() as adapters,
    ):
        targets = _targets(job, pool, adapters)
        made = evaluate(
            targets,
            suites,
            engine=pool.engine(job.should_stop, job.reporter.waiting),
            model=model,
            judges=judges,
            config=config,
            pairs=data.with_all_judges,
            annotations=marks,
            prober=prober if pairs is not None else None,
            on_progress=Counting(job.reporter, judges),
            log=OfTheseJudges(job.log(Reply), judges),
            costs=job.costs(),
        )
    _publish(job.room, made.baseline.rates, made.aligned.rates)
    gate = gate_in_force(job, config.gate)
    files = _report(job, made, targets, suites, policy, gate, data.lost)
    return Made(
        noun=made,
        message=messages.evaluation(made, files, gate),
        config=config,
        parents=_parents(job, data),
        judges=made.judge_ids,
        verdict=made.verdict,
        adapter=request.target.adapter,
        model=model.name,
        policy=trained_under(job),
    )


def gate_in_force(job: Job, gate: GateConfig) -> Gate:
    """What the verdict went by, for those who read it later."""
    from ptalign.report import Gate

    inline = job.request.WhichOneof("gate_choice") == "gate_spec"
    name = configs.INLINE if inline else configs.gate_named(job.request) or DEFAULT_GATE
    why = why_withheld(gate, job.request.baseline.adapter, job.room.catalogue.gate(""))
    limits = gate.model_dump(exclude_none=True)
    return Gate(name=name, limits=limits, releases=not why, withheld=why)


def config_of(job: Job) -> EvalConfig:
    """The call's settings, with the profile's number of samples unless it set one."""
    request = job.request
    gate = job.room.catalogue.gate(configs.gate_named(request))
    config = configs.eval_config(request, gate)
    if not request.samples:
        samples = SAMPLES[job.room.settings.profile]
        config = config.model_copy(update={"samples": samples})
    return config


def trained_of(job: Job) -> Trained:
    """What the targets were trained on, and what the call adds to it."""
    return trained(job, _adapters(job), job.request.pair_set)


def _adapters(job: Job) -> list[str]:
    """Of the targets, the one of the verdict first; empty for the bare model."""
    return [target.adapter for target in configs.targets_of(job.request).values()]


def _parents(job: Job, data: Trained) -> tuple[str, ...]:
    """The adapter, the pair set measured on, and the sets that the call names."""
    request = job.request
    names = (request.target.adapter, data.name, request.pair_set, request.held_out)
    return tuple(job.parent(name) for name in dict.fromkeys(names) if name)


def _suites(job: Job, config: EvalConfig, pairs: PairSet | None) -> tuple[Suite, ...]:
    from ptalign.suites import build

    job.reporter(Progress("reading suites", 0, 0))
    named = job.request.held_out
    return build(
        tuple(job.request.suites),
        config=config,
        pairs=pairs,
        catalogue=job.room.catalogue.suites,
        held_out=job.load(named, InstructionSet) if named else None,
    )


def _targets(job: Job, pool: Pool, adapters: ExitStack) -> list[Target]:
    """The baseline, the target of the verdict, then what is shown beside them.

    `adapters` is what serves them.
    """
    request = job.request
    asked = [(request.baseline, "baseline"), (request.target, "aligned")]
    asked += [(target, "") for target in request.also]
    labels = {target.label for target, _ in asked if target.label}

    def serve(name: str) -> str:
        return adapters.enter_context(served_adapter(job.room.store, pool, name))

    return [_target(job, serve, target, label, labels) for target, label in asked]


def _target(
    job: Job, serve: Callable[[str], str], asked: pb.Target, label: str, labels: set[str]
) -> Target:
    from ptalign.evaluate import Target

    store = job.room.store
    method = ""
    if asked.adapter:
        adapter = job.load(asked.adapter, Adapter)
        method = adapter.method
    label = asked.label or _free(label or method or "base", labels)
    labels.add(label)
    folder = str(adapter_folder(store, asked.adapter)) if asked.adapter else ""
    return Target(label, serve(asked.adapter), method, folder)


def _free(label: str, taken: Set[str]) -> str:
    """The label, numbered where another target has it: those that a call gives stay as they are."""
    numbered = (f"{label}-{number}" for number in count(2))
    return next(name for name in chain([label], numbered) if name not in taken)


def _probe(
    job: Job,
    model: ModelSpec,
    samples: int,
    policy: Policy | None,
    pairs: PairSet,
    folders: Mapping[str, str],
    answers: Mapping[str, Answers],
) -> dict[str, Probe]:
    """`ptalign.probe.probe` in an executor subprocess."""
    payload: dict[str, Any] = {
        "pairs": pairs.model_dump(mode="json", context=REVEAL),
        "adapters": dict(folders),
        "answers": {label: list(some) for label, some in answers.items()},
        "model": model.model_dump(mode="json"),
        "samples": samples,
        "policy": policy.model_dump(mode="json") if policy else None,
        "device": profile(job.room.settings.profile).trainer.device,
    }
    found = run(job, model, "probe", payload)
    return {label: Probe.model_validate(value) for label, value in found.items()}


def publish_newest(room: Room) -> None:
    """Shows the rates of the newest evaluation, whichever server ran it.

    The gauges die with the worker, and an alert on them must not end with it.
    """
    try:
        newest = room.store.resources.newest("evaluations")
    except PtalignError as error:
        log.error("the rates of the newest evaluation are not shown: %s", error)
        return
    if newest is not None:
        message = res.Evaluation.FromString(newest.body)
        _publish(room, message.baseline, message.aligned)


def _publish(room: Room, baseline: Mapping[str, Any], aligned: Mapping[str, Any]) -> None:
    """Moves the gauges of the newest rates: NaN where it scored no reply, or asked for none.

    0 would read as no harm, and a gauge left alone as the newest's although it is an older
    adapter's. Removed it cannot be: prometheus_client does not, where processes share files.
    """
    from ptalign.rates import WHOLE_RATES

    for target, rates in (("baseline", baseline), ("aligned", aligned)):
        for axis in WHOLE_RATES:
            rate = rates.get(axis)
            value = rate.value if rate is not None and rate.n else math.nan
            room.metrics.evaluation_rate.labels(axis, target).set(value)


def _report(
    job: Job,
    made: Evaluation,
    targets: Sequence[Target],
    suites: Sequence[Suite],
    policy: Policy | None,
    gate: Gate,
    lost: Sequence[str],
) -> list[res.FileInfo]:
    """Stores ``report.html`` and ``report.json``."""
    html, document = build_report(job, made, targets, suites, policy, gate, lost)
    put = job.room.store.artefacts.put
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    return [
        put(job.name, "report.html", html.encode()),
        put(job.name, "report.json", text.encode()),
    ]
