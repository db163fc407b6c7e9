"""What an Align leaves behind: checkpoints until its result is committed, nothing after."""

from __future__ import annotations

import errno
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_deletion import PARTS, put_adapter
from test_retention import put_operation

from ptalign.errors import DataDamaged, InvalidInput, TrainingFailed, Unsupported
from ptalign.nouns import Adapter, ModelSpec, Pair, PairSet
from ptalign.policies import load_policy
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server import wire
from ptalign_server.gateway import verbs
from ptalign_server.metrics import Metrics
from ptalign_server.settings import Settings
from ptalign_server.store import Store
from ptalign_server.store.operations import (
    CANCELLED,
    FAILED,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    Operation,
)
from ptalign_server.store.resources import Resource
from ptalign_server.worker import perform as performing
from ptalign_server.worker import run as running
from ptalign_server.worker.job import Made, Room
from ptalign_server.worker.jobs import JOBS, align, evaluate


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(Settings(state=tmp_path / "state"), wire.freeze)
    yield made
    made.close()


def job_of(store: Store, request: pb.AlignRequest) -> Any:
    """As much of a job as Align touches, training aside."""
    operation = store.operations.get(put_operation(store, QUEUED))
    room = SimpleNamespace(store=store, settings=Settings(state=store.work("x").parents[1]))
    return SimpleNamespace(
        operation=operation, request=request, room=room, name=f"adapters/{operation.id}",
        folder=store.work(operation.id), keep_model=lambda name: ModelSpec(name=name, path="x"),
        policy_of=lambda _: load_policy("tone-en"), load=lambda *_, **__: PairSet(pairs=()),
        parent=lambda name: f"{name}@sha256:1", resource=lambda name: adapter_row(name, ""),
    )  # fmt: skip


def adapter_row(name: str, weights: str) -> Any:
    """The row of an adapter that was trained on weights; empty: nobody knows which."""
    body = res.Adapter(meta=res.ResourceMeta(model_digest=weights)).SerializeToString()
    return SimpleNamespace(name=name, collection="adapters", purged=False, body=body)


def trained(payload: dict[str, Any]) -> dict[str, Any]:
    """What a training job leaves in its folder, and its result."""
    out = Path(payload["out"])
    (out / "checkpoints" / "step-000006").mkdir(parents=True)
    (out / "adapter").mkdir()
    for part in align.FILES:
        (out / "adapter" / part).write_text("{}")
    noun = Adapter(
        path=str(out / "adapter"), weights_sha256="sha256:1", method="pt_align", tokens_mle=1,
        tokens_ut=1, tokens_anchor=1, ledger=(), retain_kl=0.0,
    )  # fmt: skip
    return noun.model_dump(mode="json")


def test_checkpoints_outlive_the_training(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(align, "run", lambda job, model, kind, payload: trained(payload))
    job = job_of(store, pb.AlignRequest(model="m", pair_set="pairSets/1"))
    align.make(job)
    assert (job.folder / "run" / "checkpoints" / "step-000006").exists()


def test_the_steps_of_a_training_are_among_its_files(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stayed on the worker's disk, and went with the run's folder."""

    def run(_: Any, __: Any, ___: Any, payload: dict[str, Any]) -> dict[str, Any]:
        (Path(payload["out"]) / "ledger.json").write_text('{"ledger": []}')
        return trained(payload)

    monkeypatch.setattr(align, "run", run)
    job = job_of(store, pb.AlignRequest(model="m", pair_set="pairSets/1"))
    made: Any = align.make(job).message
    assert [file.part for file in made.files] == [*align.FILES, "ledger.json", "manifest.json"]
    manifest = json.loads(b"".join(store.artefacts.chunks(job.name, "manifest.json", 0)))
    assert "ledger.json" in manifest["files"]


@pytest.mark.parametrize(
    ("method", "weighting", "judges"),
    [("pt_align", "judge", 1), ("pt_align", "blend", 0), ("ut_uniform", "judge", 0)],
)
def test_an_adapter_names_the_judge_that_weighed_its_tokens(
    method: str, weighting: str, judges: int, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def run(_: Any, __: Any, ___: Any, payload: dict[str, Any]) -> dict[str, Any]:
        asked.append(payload["judge"])
        return trained(payload)

    monkeypatch.setattr(align, "run", run)
    request = pb.AlignRequest(model="m", pair_set="pairSets/1", token_weighting=weighting)
    request.method = f"METHOD_{method.upper()}"  # type: ignore[assignment]
    made = align.make(job_of(store, request))
    assert made.judges == tuple(asked[:judges])


def test_training_knows_what_its_parent_was_taught(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twins of the parent's were asked as ones that training never saw."""
    given: list[dict[str, Any]] = []

    def run(job: Any, model: Any, kind: str, payload: dict[str, Any]) -> dict[str, Any]:
        given.append(payload)
        return trained(payload)

    monkeypatch.setattr(align, "run", run)
    monkeypatch.setattr(align, "adapter_folder", lambda *_: Path("parent"))
    monkeypatch.setattr(
        align, "taught", lambda _, parent, pairs: [parent, *(p.id for p in pairs.pairs)]
    )
    job = job_of(store, pb.AlignRequest(model="m", pair_set="s", parent_adapter="adapters/1"))
    pair = Pair(id="a", instruction_id="a", instruction="?", topic="t", positive="p")
    job.load = lambda *_, **__: PairSet(pairs=(pair,))
    align.make(job)
    assert given[0]["taught"] == ["adapters/1", "a"]


def test_a_damaged_parent_is_found_before_the_training_waits(store: Store) -> None:
    name = put_adapter(store)  # its files are no weights
    align.validate(job_of(store, pb.AlignRequest(model="m", pair_set="pairSets/1")))
    request = pb.AlignRequest(model="m", pair_set="pairSets/1", parent_adapter=name)
    with pytest.raises(DataDamaged):
        align.validate(job_of(store, request))


def test_a_parent_that_is_elsewhere_holds_up_no_other_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All operations are checked one after the other, and an object store may hang."""
    monkeypatch.setattr(align, "taught", lambda *_: set())
    (tmp_path / "bucket").mkdir()
    settings = Settings(state=tmp_path / "state", artefacts=f"file://{tmp_path / 'bucket'}")
    store = Store(settings, wire.freeze)
    name = put_adapter(store)
    request = pb.AlignRequest(model="m", pair_set="pairSets/1", parent_adapter=name)
    align.validate(job_of(store, request))
    store.artefacts.folder(name, list(PARTS))  # brought for another operation
    with pytest.raises(DataDamaged):
        align.validate(job_of(store, request))
    store.close()


def test_an_adapter_whose_weights_were_replaced_while_its_call_waited_is_refused(
    store: Store,
) -> None:
    """It was evaluated, or trained on, over others, and released by that verdict."""
    plain, tuned = pb.Target(model="m"), pb.Target(model="m", adapter="adapters/1")
    calls: dict[str, tuple[Any, Any]] = {
        "parent_adapter": (align, pb.AlignRequest(model="m", parent_adapter="adapters/1")),
        r"target\.adapter": (evaluate, pb.EvaluateRequest(target=tuned)),
        r"baseline\.adapter": (evaluate, pb.EvaluateRequest(target=plain, baseline=tuned)),
        r"also\[1\]\.adapter": (evaluate, pb.EvaluateRequest(target=plain, also=[plain, tuned])),
    }
    for field, (stage, request) in calls.items():
        job = job_of(store, request)
        job.resource = lambda name: adapter_row(name, "sha256:old")
        job.keep_model = lambda name: ModelSpec(name=name, path="x", weights_digest="sha256:new")
        with pytest.raises(Unsupported, match=f"^{field}: adapters/1 was trained on weights"):
            stage.make(job)


def test_evaluations_take_no_turn_of_what_needs_the_engine() -> None:
    """Four that waited for a training kept all instructions and pairs from it."""
    assert JOBS["Evaluate"].queue not in {JOBS["GenerateInstructions"].queue, JOBS["Align"].queue}


def performed(store: Store, operation: str) -> str:
    room: Any = SimpleNamespace(
        store=store,
        metrics=Metrics(),
        settings=Settings(state=store.work("x").parents[1]),
    )
    return performing.perform(operation, room, lambda: False, lambda: False)


def sealed(job: Any, _: Made) -> Resource:
    return Resource(
        name=job.name, collection="pairSets", tenant="default", model="m", policy="", verdict="",
        adapter="", partial=False, purged=False, content="", body=b"", created=1.0,
    )  # fmt: skip


def test_the_folder_goes_after_the_commit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    operation = put_operation(store, QUEUED)
    folder, seen = store.work(operation) / "run", dict[str, bool]()

    def make(_: Any) -> Made:
        folder.mkdir(parents=True)
        return Made(noun=PairSet(pairs=()), message=None, config=None)

    monkeypatch.setattr(performing, "_seal", sealed)
    monkeypatch.setattr(
        performing.failpoints, "hit", lambda point: seen.update({point: folder.exists()})
    )
    monkeypatch.setitem(JOBS, "SynthesizePairs", replace(JOBS["SynthesizePairs"], make=make))
    assert performed(store, operation) == SUCCEEDED
    assert seen["state_commit.after"]
    assert not folder.parent.exists()
    folder.mkdir(parents=True)  # a crash came between commit and removal
    assert performed(store, operation) == SUCCEEDED
    assert not folder.parent.exists()


def test_the_folder_of_a_failed_run_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    operation = put_operation(store, QUEUED)
    folder = store.work(operation) / "run"

    def make(_: Any) -> Made:
        folder.mkdir(parents=True)
        raise TrainingFailed("a planted failure")

    monkeypatch.setitem(
        JOBS, "SynthesizePairs", replace(JOBS["SynthesizePairs"], make=make, partial=None)
    )
    assert performed(store, operation) == FAILED
    assert folder.exists()


@pytest.mark.parametrize("elsewhere", [False, True])
def test_files_of_an_adapter_that_is_none_go(
    elsewhere: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No row names them, so nobody could have removed them."""
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    url = f"file://{bucket}" if elsewhere else ""
    store = Store(Settings(state=tmp_path / "state", artefacts=url), wire.freeze)
    root = bucket if elsewhere else tmp_path / "state" / "artefacts"
    other = put_adapter(store)

    def make(job: Any) -> Made:
        store.artefacts.put(job.name, align.FILES[0], b"{}")
        raise TrainingFailed("a planted failure")

    monkeypatch.setitem(JOBS, "Align", replace(JOBS["Align"], make=make))
    operation = put_operation(store, QUEUED, "Align")
    assert performed(store, operation) == FAILED
    assert not list((root / f"adapters/{operation}").glob("*"))
    assert {file.name for file in (root / other).iterdir()} >= set(PARTS)
    store.close()


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
def test_what_was_accepted_outlives_a_volume_that_is_away_at_the_end(
    number: int, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operation ended without a resource, and its records could not be gone on with."""
    away = [OSError(number, "away")] * 2
    accepted = Made(noun=PairSet(pairs=()), message=None, config=None, partial=True)

    def make(_: Any) -> Made:
        raise TrainingFailed("a planted failure")

    def partial(_: Any) -> Made:
        if away:
            raise away.pop()
        return accepted

    monkeypatch.setattr(performing, "_seal", sealed)
    row = replace(JOBS["SynthesizePairs"], make=make, partial=partial)
    monkeypatch.setitem(JOBS, "SynthesizePairs", row)
    operation = put_operation(store, QUEUED)
    for _ in range(2):  # the worker comes again, see `Worker._persist`
        with pytest.raises(OSError, match="away"):
            performed(store, operation)
        assert store.operations.get(operation).state == RUNNING
    assert performed(store, operation) == FAILED
    assert store.operations.get(operation).resource == f"pairSets/{operation}"


def sealed_after(away: list[OSError], monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Made]:
    """A stage that is made at once, and whose sealing raises these first."""

    def seal(job: Any, made: Made) -> Resource:
        if away:
            raise away.pop()
        return sealed(job, made)

    monkeypatch.setattr(performing, "_seal", seal)
    return lambda _: Made(noun=PairSet(pairs=()), message=None, config=None)


@pytest.mark.parametrize("number", [errno.ESTALE, errno.ENOSPC])
def test_what_was_made_outlives_a_volume_that_is_away_while_it_is_sealed(
    number: int, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One such error, and a finished adapter or report was lost: nothing tried it again."""
    away = [OSError(number, "away")]

    make = sealed_after(away, monkeypatch)
    row = replace(JOBS["SynthesizePairs"], make=make, partial=None)
    monkeypatch.setitem(JOBS, "SynthesizePairs", row)
    operation = put_operation(store, QUEUED)
    with pytest.raises(OSError, match="away"):  # the worker comes again, see `Worker._persist`
        performed(store, operation)
    assert store.operations.get(operation).state == RUNNING
    assert performed(store, operation) == SUCCEEDED
    assert store.operations.get(operation).resource == f"pairSets/{operation}"


def test_a_volume_that_is_away_for_long_is_no_death_of_the_worker(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After 25 looks, two seconds apart, it ended FAILED for a worker that never died."""
    away = [OSError(errno.ESTALE, "away")] * 30

    make = sealed_after(away, monkeypatch)
    monkeypatch.setattr(running, "RETRY_SECONDS", 0.0)
    monkeypatch.setitem(JOBS, "SynthesizePairs", replace(JOBS["SynthesizePairs"], make=make))
    worker = running.Worker.__new__(running.Worker)
    settings = Settings(state=store.work("x").parents[1])
    worker.room = Room(settings, store, None, None, Metrics())  # type: ignore[arg-type]
    worker.ending, worker._told = threading.Event(), set()
    operation = put_operation(store, QUEUED)
    assert worker._persist(operation) == SUCCEEDED
    assert store.operations.get(operation).attempt == 1


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (OSError(errno.ESTALE, "away"), 5),
        (FileNotFoundError(errno.ENOENT, "gone"), 1),
        (OSError("no tokenizer in this folder"), 1),  # as libraries say it
    ],
)
def test_a_volume_that_is_away_for_a_moment_ends_no_operation(
    error: OSError, tries: int, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def make(_: Any) -> Made:
        tried.append(1)
        raise error

    monkeypatch.setattr(performing, "_sleep", lambda *_: None)
    row = replace(JOBS["SynthesizePairs"], make=make, partial=None)
    monkeypatch.setitem(JOBS, "SynthesizePairs", row)
    assert performed(store, put_operation(store, QUEUED)) == FAILED
    assert len(tried) == tries


def stopped(store: Store, *, tokens: int) -> Operation:
    """An Align that failed after it had trained so many tokens."""
    found = store.operations.get(put_operation(store, FAILED))
    metadata = pb.AlignMetadata()
    metadata.progress.counts["tokens_mle"] = tokens
    body = metadata.SerializeToString()
    return store.operations.advance(
        found.id, lambda o: replace(o, kind="Align", started=2.0, metadata=body)
    )


def test_resume_from_another_machine_is_refused(store: Store) -> None:
    earlier = stopped(store, tokens=9)
    job = job_of(store, pb.AlignRequest(resume_from=f"operations/{earlier.id}"))
    with pytest.raises(InvalidInput, match="are not there") as caught:
        align._run_folder(job)
    assert caught.value.field == "resume_from"
    assert not (job.folder / "run").exists()
    gone = job_of(store, pb.AlignRequest(resume_from="operations/deleted"))
    with pytest.raises(InvalidInput, match="operations/deleted"):
        align._run_folder(gone)


def test_resume_from_goes_on_where_it_can(store: Store) -> None:
    no_step = stopped(store, tokens=0)
    fresh = job_of(store, pb.AlignRequest(resume_from=f"operations/{no_step.id}"))
    assert align._run_folder(fresh).exists()
    ran = stopped(store, tokens=9)
    (store.work(ran.id) / "run" / "checkpoints").mkdir(parents=True)
    job = job_of(store, pb.AlignRequest(resume_from=f"operations/{ran.id}"))
    assert (align._run_folder(job) / "checkpoints").exists()
    (store.work(ran.id) / "run" / "checkpoints").rmdir()
    assert (align._run_folder(job) / "checkpoints").exists()  # its own by now


def test_a_resumed_run_that_never_began_hands_on_what_it_would_have_gone_on_from(
    store: Store,
) -> None:
    """Cancelled while it waited, it has no steps: the next one started at 0 without a word."""
    ran = stopped(store, tokens=9)
    (store.work(ran.id) / "run" / "checkpoints").mkdir(parents=True)
    before = ran.id
    for _ in range(2):
        request = pb.AlignRequest(resume_from=f"operations/{before}")
        before = put_operation(store, CANCELLED, "Align", request)
    job = job_of(store, pb.AlignRequest(resume_from=f"operations/{before}"))
    assert (align._run_folder(job) / "checkpoints").exists()
    shutil.rmtree(store.work(ran.id))
    job = job_of(store, pb.AlignRequest(resume_from=f"operations/{before}"))
    with pytest.raises(InvalidInput, match=f"{ran.id}, whose checkpoints are not there"):
        align._run_folder(job)


def test_guards_may_differ_from_those_of_the_run_that_is_resumed(store: Store) -> None:
    """A finished run that tripped one was to be kept by recording, which was refused."""
    before = pb.AlignRequest(model="m", pair_set="pairSets/1", seed=3)
    earlier = put_operation(store, FAILED, "Align", before)
    call: Any = SimpleNamespace(store=store, identity=SimpleNamespace(tenant="default"))
    again = pb.AlignRequest(resume_from=f"operations/{earlier}", guards="record")
    again.MergeFrom(before)
    verbs._check_resume(again, call)
    again.seed = 4
    with pytest.raises(InvalidInput, match="seed: differs"):
        verbs._check_resume(again, call)
