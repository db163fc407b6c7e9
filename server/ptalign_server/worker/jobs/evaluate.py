"""Evaluate -> Evaluation, with its report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ptalign.config import EvalConfig
from ptalign.nouns import Adapter, Evaluation, ModelSpec, PairSet, Policy, Probe, Reply
from ptalign.progress import Progress
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server import configs, messages
from ptalign_server.catalogue import PROFILES
from ptalign_server.errors import NotFound, SetPurged
from ptalign_server.profiles import profile
from ptalign_server.worker.adapters import adapter_folder, serve_adapter
from ptalign_server.worker.job import Job, Made
from ptalign_server.worker.jobs.align import REVEAL, run
from ptalign_server.worker.judges import evaluation_judges
from ptalign_server.worker.reports import build_report

if TYPE_CHECKING:
    from ptalign.evaluate import Target
    from ptalign.suites import Suite
    from ptalign_server.pool import Pool


def validate(job: Job) -> None:
    """Reads the training set, whose digest must hold."""
    _pairs(job, pair_set_of(job))


def make(job: Job) -> Made:
    """Asks, judges, compares and writes the report."""
    from ptalign.evaluate import evaluate

    request = job.request
    model = job.model(request.target.model)
    config = config_of(job)
    pair_set = pair_set_of(job)
    pairs = _pairs(job, pair_set)
    policy = job.policy_of(pair_set) if pairs is not None else None
    suites = _suites(job, config, pairs)
    with job.room.pools.use(model) as pool:
        targets = _targets(job, pool)
        made = evaluate(
            targets,
            suites,
            engine=pool.engine(job.should_stop, job.reporter.waiting),
            model=model,
            judges=evaluation_judges(tuple(request.judges)),
            config=config,
            pairs=pairs,
            prober=lambda pairs, folders: _probe(job, model, config, policy, pairs, folders),
            on_progress=job.reporter,
            log=job.log(Reply),
        )
    _publish(job, made)
    files = _report(job, made, targets, suites, pairs, policy)
    return Made(
        noun=made,
        message=messages.evaluation(made, files),
        config=config,
        parents=tuple(job.parent(n) for n in (request.target.adapter, pair_set) if n),
        judges=made.judge_ids,
        verdict=made.verdict,
        adapter=request.target.adapter,
        model=model.name,
    )


def config_of(job: Job) -> EvalConfig:
    """The call's settings, with the profile's number of samples unless it set one."""
    request = job.request
    gate_name = request.gate if request.WhichOneof("gate_choice") == "gate" else ""
    config = configs.eval_config(request, job.room.catalogue.gate(gate_name))
    if not request.samples:
        samples = int(PROFILES[job.room.settings.profile]["samples"])
        config = config.model_copy(update={"samples": samples})
    return config


def pair_set_of(job: Job) -> str:
    """The training set: the call's, else the one that the target's adapter was made from."""
    request = job.request
    if request.pair_set or not request.target.adapter:
        return str(request.pair_set)
    body = job.resource(request.target.adapter).body
    for parent in res.Adapter.FromString(body).meta.parents:
        if parent.startswith("pairSets/"):
            return str(parent.partition("@")[0])
    return ""


def _pairs(job: Job, name: str) -> PairSet | None:
    """The training set; None when there is none or its text was purged."""
    if not name:
        return None
    try:
        return job.load(name, PairSet)
    except (NotFound, SetPurged):
        return None


def _suites(job: Job, config: EvalConfig, pairs: PairSet | None) -> tuple[Suite, ...]:
    from ptalign.suites import DEFAULT, build

    job.reporter(Progress("reading suites", 0, 0))
    names = tuple(job.request.suites) or DEFAULT
    return build(names, config=config, pairs=pairs, catalogue=job.room.catalogue.suites)


def _targets(job: Job, pool: Pool) -> list[Target]:
    """The baseline, the target of the verdict, then what is shown beside them."""
    request = job.request
    labels: dict[str, int] = {}
    asked = [(request.baseline, "baseline"), (request.target, "aligned")]
    asked += [(target, "") for target in request.also]
    return [_target(job, pool, target, label, labels) for target, label in asked]


def _target(job: Job, pool: Pool, asked: pb.Target, label: str, labels: dict[str, int]) -> Target:
    from ptalign.evaluate import Target

    store = job.room.store
    method = ""
    if asked.adapter:
        adapter = job.load(asked.adapter, Adapter)
        method = adapter.method
    label = asked.label or label or method or "base"
    labels[label] = labels.get(label, 0) + 1
    if labels[label] > 1:
        label = f"{label}-{labels[label]}"
    folder = str(adapter_folder(store, asked.adapter)) if asked.adapter else ""
    return Target(label, serve_adapter(store, pool, asked.adapter), method, folder)


def _probe(
    job: Job,
    model: ModelSpec,
    config: EvalConfig,
    policy: Policy | None,
    pairs: PairSet,
    folders: Mapping[str, str],
) -> dict[str, Probe]:
    """`ptalign.probe.probe` in an executor subprocess."""
    payload: dict[str, Any] = {
        "pairs": pairs.model_dump(mode="json", context=REVEAL),
        "adapters": dict(folders),
        "model": model.model_dump(mode="json"),
        "config": config.model_dump(mode="json"),
        "policy": policy.model_dump(mode="json") if policy else None,
        "device": profile(job.room.settings.profile).trainer.device,
    }
    found = run(job, model, "probe", payload)
    return {label: Probe.model_validate(value) for label, value in found.items()}


def _publish(job: Job, made: Evaluation) -> None:
    """Moves the gauges of the newest rates."""
    gauge = job.room.metrics.evaluation_rate
    for target, result in (("baseline", made.baseline), ("aligned", made.aligned)):
        for axis, rate in result.rates.items():
            if "/" not in axis:
                gauge.labels(axis, target).set(rate.value)


def _report(
    job: Job,
    made: Evaluation,
    targets: Sequence[Target],
    suites: Sequence[Suite],
    pairs: PairSet | None,
    policy: Policy | None,
) -> list[res.FileInfo]:
    """Stores ``report.html`` and ``report.json``."""
    html, document = build_report(job, made, targets, suites, pairs, policy)
    put = job.room.store.artefacts.put
    text = json.dumps(document, indent=1, ensure_ascii=False)
    return [
        put(job.name, "report.html", html.encode()),
        put(job.name, "report.json", text.encode()),
    ]
