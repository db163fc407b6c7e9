"""Align -> Adapter: trained by an executor subprocess, under the device's lease."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ptalign.config import AlignConfig
from ptalign.errors import InvalidInput
from ptalign.judges import GENERATION_JUDGES
from ptalign.nouns import Adapter, ModelSpec, PairSet
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_server import configs, failpoints, manifest, messages, wire
from ptalign_server.errors import NotFound
from ptalign_server.executor import run_job
from ptalign_server.gateway.weights import check_weights
from ptalign_server.in_use import resumed
from ptalign_server.manifest import Signer
from ptalign_server.profiles import profile
from ptalign_server.worker.adapters import adapter_folder, check_adapter
from ptalign_server.worker.job import Job, Made
from ptalign_server.worker.trained import taught

REVEAL = {"reveal": True}
FILES = ("adapter_config.json", "adapter_model.safetensors")
"""What a PEFT folder consists of, and all that leaves it."""
BESIDE = ("token_weights.json", "ledger.json")
"""Beside that folder: which tokens were weighed, masked (`mle` weighs none), and the steps.
`ptalign.training.lora` names them too; importing that would load torch into the worker."""

WEIGHING_JUDGE = GENERATION_JUDGES[-1]
"""One that is not used to evaluate unless asked for: what weighs tokens must not measure."""


def validate(job: Job) -> None:
    """Reads the pair set, which must be whole, and the parent adapter with what it was taught.

    Their digests and the signature must hold.
    """
    pairs = job.load(job.request.pair_set, PairSet, whole=True)
    if parent := job.request.parent_adapter:
        check_adapter(job.room.store, parent)
        taught(job, parent, pairs)


def make(job: Job) -> Made:
    """Trains, then stores the adapter's files."""
    request = job.request
    out = _run_folder(job)
    policy = job.policy_of(request.pair_set)
    model = job.keep_model(request.model)
    if request.parent_adapter:  # the weights may have been replaced while the call waited
        check_weights("parent_adapter", job.resource(request.parent_adapter), model)
    budget = profile(job.room.settings.profile).trainer
    config = configs.align_config(request).model_copy(
        update={"device": budget.device, "threads": budget.threads}
    )
    parent = request.parent_adapter
    pairs = job.load(request.pair_set, PairSet, whole=True)
    payload = {
        "pairs": pairs.model_dump(mode="json", context=REVEAL),
        "model": model.model_dump(mode="json"),
        "config": config.model_dump(mode="json"),
        "policy": policy.model_dump(mode="json"),
        "parent": str(adapter_folder(job.room.store, parent)) if parent else "",
        "taught": taught(job, parent, pairs) if parent else [],
        "out": str(out.absolute()),
        "judge": WEIGHING_JUDGE if config.scorer == "judge" else "",
    }
    result = run(job, model, "align", payload)
    adapter = Adapter.model_validate(result)
    failpoints.hit("adapter_publish.before")
    files = [_store(job, Path(adapter.path) / part) for part in FILES]
    files += [_store(job, out / part) for part in BESIDE if (out / part).is_file()]
    files.append(_sign(job, files))
    failpoints.hit("adapter_publish.after")
    # Checkpoints stay until the result is committed: a crash before would train anew.
    return _made(job, adapter.model_copy(update={"path": job.name}), config, files)


def run(job: Job, model: ModelSpec, kind: str, payload: dict[str, Any]) -> dict[str, Any]:
    """Runs an executor job while it has the device."""
    settings = job.room.settings
    with job.room.pools.lease(job.should_stop, job.reporter.waiting):
        return run_job(
            kind,
            payload,
            workdir=settings.state / "engines" / "children",
            on_progress=job.reporter,
            should_stop=job.should_stop,
            budget=profile(settings.profile).trainer,
        )


def _run_folder(job: Job) -> Path:
    """The run's folder; a resumed run begins with a copy of the earlier one's checkpoints.

    Raises:
        InvalidInput: The earlier run took steps, and its folder is not there.
    """
    out = job.folder / "run"
    if not out.exists() and (source := _earlier_folder(job)) is not None:
        partial = out.with_name("run.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial)
        partial.rename(out)
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    return out


def _earlier_folder(job: Job) -> Path | None:
    """The folder to go on from, of the nearest earlier run that began; None where none did."""
    store = job.room.store
    for earlier in resumed(store, job.request, job.operation.tenant):
        source = store.work(earlier) / "run"
        if source.exists():
            return source
        if _took_steps(job, earlier):
            raise InvalidInput(
                "resume_from",
                f"names operations/{earlier}, whose checkpoints are not there",
                "Leave resume_from out to start afresh. Servers of one database share a folder "
                "`work`.",
            )
    return None


def _took_steps(job: Job, earlier: str) -> bool:
    try:
        found = job.room.store.operations.get(earlier, job.operation.tenant)
    except NotFound:  # deleted since the call was checked, and its folder with it
        return True
    return any(wire.metadata_of(found).progress.counts.values())


def _store(job: Job, file: Path) -> res.FileInfo:
    return job.room.store.artefacts.put(job.name, file.name, file)


def _sign(job: Job, files: list[res.FileInfo]) -> res.FileInfo:
    store = job.room.store
    return store.artefacts.put(job.name, manifest.PART, Signer(store.vault).sign(job.name, files))


def _made(job: Job, noun: Adapter, config: AlignConfig, files: list[res.FileInfo]) -> Made:
    request = job.request
    names = (request.pair_set, request.parent_adapter)
    return Made(
        noun=noun,
        message=messages.adapter(noun, files),
        config=config,
        parents=tuple(job.parent(name) for name in names if name),
        judges=(WEIGHING_JUDGE,) if _weighed_by_judge(config) else (),
        model=request.model,
    )


def _weighed_by_judge(config: AlignConfig) -> bool:
    """Whether a judge weighed the tokens; `ptalign.training.pools.scorer_of` loads torch."""
    return config.method == "pt_align" and config.scorer == "judge"
