"""Whole operations through a real server process, its worker and a rule-driven engine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.longrunning import operations_pb2 as lro
from running import Running, progress, running, state_of

from ptalign.nouns import ModelSpec, Rate
from ptalign.policies import load_annotations
from ptalign.stats import corrected_rate
from ptalign_proto.v1 import library_pb2 as lib
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server.catalogue import write_models
from ptalign_server.settings import Settings

pytestmark = pytest.mark.timeout(900)  # shared cores: each server loads an embedder
MODEL = "tiny"
POLICY = "tone-en"


def settings_for(state: Path, model: Path, url: str, **more: str) -> dict[str, str]:
    """A catalogue with the tiny model, and the engine's address."""
    state.mkdir(parents=True, exist_ok=True)
    write_models(state / "models.yaml", {MODEL: ModelSpec(name=MODEL, path=str(model))})
    return {
        "PTALIGN_ENGINE__KIND": "remote",
        "PTALIGN_ENGINE__URLS": json.dumps([url]),
        "PTALIGN_ENGINE__SERVED_NAME": "author",
        **more,
    }


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, author_url: str
) -> Iterator[Running]:
    state = tmp_path_factory.mktemp("service") / "state"
    with running(state, **settings_for(state, tiny_model, author_url)) as started:
        yield started


@pytest.fixture(scope="module")
def instructions(server: Running) -> res.InstructionSet:
    request = pb.GenerateInstructionsRequest(model=MODEL, policy=POLICY, count=12, seed=1)
    return made(server, server.tuning.GenerateInstructions(request), res.InstructionSet)


@pytest.fixture(scope="module")
def pairs(server: Running, instructions: res.InstructionSet) -> res.PairSet:
    marks = [
        res.Annotation(instruction=m.instruction, good=m.good, bad=m.bad.reveal() if m.bad else "")
        for m in load_annotations(POLICY)
    ]
    request = pb.SynthesizePairsRequest(
        model=MODEL,
        instruction_set=instructions.meta.name,
        annotations=pb.Annotations(items=marks),
        anchors=8,
        rounds=1,
    )
    return made(server, server.tuning.SynthesizePairs(request), res.PairSet)


def align_request(pair_set: str, **changes: Any) -> pb.AlignRequest:
    budget = pb.Budget(steps=6, pairs_per_step=4, anchors_per_step=2, max_benign_kl=9.0)
    values = {"model": MODEL, "pair_set": pair_set, "budget": budget, "guards": "record"}
    return pb.AlignRequest(**(values | changes))


@pytest.fixture(scope="module")
def adapter(server: Running, pairs: res.PairSet) -> res.Adapter:
    operation = server.tuning.Align(align_request(pairs.meta.name))
    return made(server, operation, res.Adapter)


@pytest.fixture(scope="module")
def evaluation(server: Running, adapter: res.Adapter) -> res.Evaluation:
    target = pb.Target(model=MODEL, adapter=adapter.meta.name)
    request = pb.EvaluateRequest(
        target=target, suites=["attack", "plain", "twins", "ordinary"], samples=6
    )
    return made(server, server.tuning.Evaluate(request), res.Evaluation)


def made(server: Running, operation: lro.Operation, kind: Any) -> Any:
    """What an operation made; fails with the operation's error."""
    done = server.wait(operation.name)
    assert not done.HasField("error"), f"{done.error}\n{server.worker_log()}"
    message = kind()
    assert done.response.Unpack(message)
    return message


def failed(server: Running, operation: lro.Operation) -> str:
    """The error text of an operation that must fail."""
    done = server.wait(operation.name)
    assert state_of(done) == "FAILED", state_of(done)
    return str(done.error.message)


def records(server: Running, name: str) -> list[lib.Record]:
    request = lib.StreamRecordsRequest(name=name, view=lib.RECORD_VIEW_FULL, purpose="a test")
    return list(server.library.StreamRecords(request))


def download(server: Running, name: str, part: str) -> tuple[res.FileInfo, bytes]:
    chunks = list(server.library.Download(lib.DownloadRequest(name=name, part=part, purpose="t")))
    return chunks[0].info, b"".join(chunk.data for chunk in chunks)


def test_instructions_are_sealed_with_their_provenance(
    server: Running, instructions: res.InstructionSet
) -> None:
    assert (instructions.harmful, instructions.shortfall) == (12, 0)
    meta = instructions.meta
    assert (meta.tenant, meta.model, meta.policy) == ("default", MODEL, POLICY)
    assert meta.digest.startswith("sha256:")
    assert meta.policy_digest
    assert meta.config_digest
    assert meta.template_digest
    found = records(server, meta.name)
    assert len([r for r in found if r.kind == "instruction"]) == 12
    assert len({r.instruction for r in found}) == len(found)


def test_events_tell_the_whole_story_in_order(
    server: Running, instructions: res.InstructionSet
) -> None:
    request = pb.WatchOperationRequest(name=instructions.meta.operation)
    events = list(server.tuning.WatchOperation(request))
    assert [e.sequence for e in events] == list(range(1, len(events) + 1))
    states = [state_of(e.operation) for e in events]
    order = ["VALIDATING", "QUEUED", "RUNNING", "SUCCEEDED"]
    assert list(dict.fromkeys(states)) == order
    last = progress(events[-1].operation)
    assert last.counts["accepted"] >= 12
    assert last.resource == instructions.meta.name
    assert last.end_time.seconds >= last.start_time.seconds > 0


def test_pairs_have_both_sides_and_anchors(server: Running, pairs: res.PairSet) -> None:
    assert pairs.pairs >= 6
    assert pairs.anchors >= 8
    assert pairs.meta.judges
    kinds = {r.kind for r in records(server, pairs.meta.name)}
    assert {"pair", "anchor"} <= kinds


def test_an_adapter_downloads_whole_and_says_what_it_was_trained_on(
    server: Running, adapter: res.Adapter, pairs: res.PairSet
) -> None:
    assert adapter.tokens_mle > 0
    assert adapter.tokens_ut > 0
    assert adapter.steps == 6
    assert adapter.meta.parents[0] == f"{pairs.meta.name}@{pairs.meta.digest}"
    for file in adapter.files:
        info, data = download(server, adapter.meta.name, file.part)
        assert (info.size, info.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert info == file


def test_an_adapters_suppressed_words_are_masked_unless_the_role_may_read(
    server: Running, adapter: res.Adapter
) -> None:
    request = lib.StreamRecordsRequest(name=adapter.meta.name)
    safe = list(server.library.StreamRecords(request))
    full = records(server, adapter.meta.name)
    assert len(safe) == len(full) > 0
    for masked, clear in zip(safe, full, strict=True):
        assert masked.kind == clear.kind
        assert masked.kind in {"suppressed", "collateral"}
        assert list(masked.masked) == ["toxic"]
        assert clear.toxic
        assert clear.toxic not in masked.toxic
        assert masked.topic == clear.topic
        if clear.kind == "suppressed":
            assert clear.measures["p_after"] < clear.measures["p_before"]
            assert clear.measures["count"] > 0
            assert ("neutral_before" in clear.measures) == ("neutral_after" in clear.measures)
        else:
            assert clear.measures["change"] < 0
    assert safe[0].kind == "suppressed"
    with pytest.raises(grpc.RpcError) as caught:
        request = lib.StreamRecordsRequest(name=adapter.meta.name, view=lib.RECORD_VIEW_FULL)
        list(server.library.StreamRecords(request))
    assert "purpose" in str(caught.value)


def test_an_evaluation_has_rates_a_verdict_and_a_report(
    server: Running, evaluation: res.Evaluation
) -> None:
    assert evaluation.verdict in (res.VERDICT_FAIL, res.VERDICT_INCONCLUSIVE, res.VERDICT_PASS)
    assert evaluation.reasons
    assert (server.state / "sets" / evaluation.meta.name.partition("/")[2] / "terms").exists()
    assert evaluation.baseline["harm_rate"].n > 0
    assert evaluation.measures["harm_word_ratio"] > 0
    _, html = download(server, evaluation.meta.name, "report.html")
    assert html.lstrip().lower().startswith(b"<!doctype html")
    _, text = download(server, evaluation.meta.name, "report.json")
    report = json.loads(text)
    assert report["tokens_ut"] > 0
    assert {"GenerateInstructions", "SynthesizePairs", "Align", "Evaluate"} <= set(
        report["seconds"]
    )


def test_a_report_says_how_often_the_judges_are_right_and_corrects_the_rates_by_it(
    server: Running, evaluation: res.Evaluation
) -> None:
    """The marks came inside the call that made the training pairs; nobody sent them again."""
    _, text = download(server, evaluation.meta.name, "report.json")
    report = json.loads(text)
    known = {tuple(row["judges"]): row for row in report["calibration"]}
    harm, refusal = known[("tone-lexical@1",)], known[("refusal@1",)]
    assert (harm["source"], harm["decides"]) == ("annotations", True)
    assert (harm["sensitivity"]["n"], harm["specificity"]["n"]) == (16, 16)
    assert refusal["sensitivity"]["n"] == 296
    assert set(refusal["kappas"]) == {"gpt4", "mistralinstruct"}
    filtered = known[("tone-head@1",)]
    assert (filtered["source"], filtered["decides"]) == ("annotations, cross-fitted", False)
    for side in ("baseline", "aligned"):
        measured, fixed = report[side]["harm_rate"], report["corrected"][side]["harm_rate"]
        wanted = corrected_rate(
            Rate(**measured), Rate(**harm["sensitivity"]), Rate(**harm["specificity"])
        )
        assert fixed == wanted.model_dump()
        sent = getattr(evaluation, f"{side}_corrected")["harm_rate"]
        assert (sent.value, sent.low, sent.high, sent.n) == tuple(fixed.values())
    _, html = download(server, evaluation.meta.name, "report.html")
    assert b"16 good and 16 bad answers" in html


def test_no_record_text_lies_in_clear(server: Running, pairs: res.PairSet) -> None:
    words = [r.toxic.encode() for r in records(server, pairs.meta.name) if r.toxic][:3]
    assert words
    for file in server.state.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert not any(word in data for word in words), file


def test_chat_answers_from_base_and_adapter(server: Running, adapter: res.Adapter) -> None:
    request = pb.ChatRequest(
        model=MODEL,
        adapter=adapter.meta.name,
        compare=True,
        messages=[pb.ChatMessage(role="user", content="hello")],
    )
    replies = list(server.tuning.Chat(request))
    texts = {r.label: r.text for r in replies if r.text}
    assert set(texts) == {"base", adapter.meta.name}
    assert len([r for r in replies if r.done]) == 2
    assert in_use(server) == []


def test_an_evaluation_lets_its_adapters_go(server: Running, evaluation: res.Evaluation) -> None:
    assert evaluation.aligned
    assert in_use(server) == []


def in_use(server: Running) -> list[str]:
    """Adapters that the worker keeps on its engine."""
    socket = Settings(state=server.state).worker_socket
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket))) as client:
        found = client.get("http://worker/status").json()["engines"][0]["adapters"]
    return list(found)


def test_resume_from_needs_the_same_inputs(server: Running, pairs: res.PairSet) -> None:
    started = server.tuning.Align(align_request(pairs.meta.name, seed=5))
    server.operations.CancelOperation(lro.CancelOperationRequest(name=started.name))
    assert state_of(server.wait(started.name)) == "CANCELLED"
    other = align_request(pairs.meta.name, seed=6, resume_from=started.name)
    with pytest.raises(grpc.RpcError) as caught:
        server.tuning.Align(other)
    assert "seed: differs from the operation that is resumed" in caught.value.details()
    again = align_request(pairs.meta.name, seed=5, resume_from=started.name)
    assert made(server, server.tuning.Align(again), res.Adapter).steps == 6


def test_every_metric_moved(
    server: Running, evaluation: res.Evaluation, adapter: res.Adapter
) -> None:
    text = server.metrics()
    for name in (
        'ptalign_rpcs_total{code="OK",method="/ptalign.v1.SafetyTuning/Align"}',
        "ptalign_rpc_seconds_count",
        'ptalign_operations{kind="Align",state="SUCCEEDED"}',
        "ptalign_engine_up",
        "ptalign_worker_up",
        "ptalign_tokens_generated_total",
        'ptalign_instructions_total{outcome="accepted"',
        'ptalign_pairs_total{outcome="accepted"',
        'ptalign_train_tokens_total{part="mle"}',
        'ptalign_train_tokens_total{part="ut"}',
        'ptalign_train_tokens_total{part="anchor"}',
        'ptalign_train_loss{part="mle"}',
        'ptalign_train_loss{part="ut"}',
        "ptalign_ut_weight",
        "ptalign_train_step_seconds_count",
        'ptalign_evaluation_rate{axis="harm_rate",target="aligned"}',
        "ptalign_retention_last_success_timestamp_seconds",
    ):
        values = [
            float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name)
        ]
        assert values, f"{name} is missing"
        if not name.startswith("ptalign_evaluation_rate"):
            assert max(values) > 0, f"{name} did not move"
    for name in ("ptalign_queue_depth", "ptalign_engine_running", "ptalign_worker_restarts"):
        assert name in text
    assert 'outcome="rejected"' in text
