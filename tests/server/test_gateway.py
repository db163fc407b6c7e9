"""The gateway without a worker: what callers read, who may call, and what is durable."""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.longrunning import operations_pb2 as lro
from google.longrunning import operations_pb2_grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from safetensors.numpy import save_file

from ptalign.config import GateConfig
from ptalign.errors import DataDamaged
from ptalign.nouns import InstructionSet, ModelSpec, PairSet
from ptalign.policies import load_policy
from ptalign_proto.v1 import library_pb2 as lib
from ptalign_proto.v1 import library_pb2_grpc, safety_tuning_pb2_grpc
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server import wire
from ptalign_server.catalogue import write_models
from ptalign_server.configs import align_config
from ptalign_server.errors import NotFound, Unauthenticated, status_of
from ptalign_server.gateway import watch as watching
from ptalign_server.gateway.identity import RULES, Gate, Identity, Tokens
from ptalign_server.gateway.serve import make_server
from ptalign_server.gateway.watch import Feeds
from ptalign_server.metrics import Metrics
from ptalign_server.settings import ROLES, AuthSettings, EngineSettings, Settings
from ptalign_server.store import Store
from ptalign_server.store.db import DatabaseAway
from ptalign_server.store.operations import new_id
from ptalign_server.store.resources import Resource
from ptalign_server.store.schema import events
from ptalign_server.store.sets import Terms

MODEL = "tiny"
POLICY = "tone-en"
OTHER = "other"


class Calls:
    """Stubs on one server, and the store behind it."""

    def __init__(self, channel: Any, store: Store) -> None:
        self.channel = channel
        self.store = store
        self.tuning: Any = safety_tuning_pb2_grpc.SafetyTuningStub(channel)
        self.library: Any = library_pb2_grpc.LibraryStub(channel)
        self.operations: Any = operations_pb2_grpc.OperationsStub(channel)


@asynccontextmanager
async def serving(state: Path, **settings: Any) -> AsyncIterator[Calls]:
    configured = Settings(state=state, **settings)
    configured.make_folders()
    models = {n: ModelSpec(name=n, path=str(state)) for n in (MODEL, OTHER)}
    write_models(configured.models_path, models)
    store = Store(configured, wire.freeze)
    server = make_server(configured, store, Metrics(), health.aio.HealthServicer())
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    try:
        yield Calls(channel, store)
    finally:
        await channel.close()
        await server.stop(0)
        store.close()


@pytest.fixture
async def calls(tmp_path: Path) -> AsyncIterator[Calls]:
    async with serving(tmp_path / "state") as opened:
        yield opened


def generate(**changes: Any) -> pb.GenerateInstructionsRequest:
    values = {"model": MODEL, "policy": POLICY, "count": 5} | changes
    if "policy_spec" in changes:
        del values["policy"]
    return pb.GenerateInstructionsRequest(**values)


async def refused(call: Any) -> tuple[grpc.StatusCode, str, str, dict[str, str]]:
    """Code, text, reason and violations of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = rpc_status.from_call(caught.value)
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        for message in (info, bad):
            if detail.Is(message.DESCRIPTOR):
                detail.Unpack(message)
    assert info.domain == "ptalign"
    violations = {v.field: v.description for v in bad.field_violations}
    return caught.value.code(), caught.value.details(), info.reason, violations


def put_set(
    store: Store, collection: str, *, tenant: str = "default", model: str = MODEL, **flags: Any
) -> str:
    """A sealed set in the library, as a worker would have made it."""
    set_id = new_id()
    name = f"{collection}/{set_id}"
    key, wrapped = store.vault.fresh_key(set_id)
    noun: Any = InstructionSet(records=(), requested=3)
    message: Any = flags.get("message", res.InstructionSet(harmful=3))
    if collection == "pairSets":
        anchors = flags.get("anchors", 4)
        noun = PairSet(pairs=())
        message = flags.get("message", res.PairSet(pairs=3, anchors=anchors))
    message.meta.name = name
    digest = store.sets.write(set_id, key, noun)
    policy = load_policy(flags.get("policy", POLICY))
    store.sets.write_policy(set_id, key, policy)
    row = Resource(
        name=name, collection=collection, tenant=tenant, model=model, policy=policy.name,
        verdict="", adapter="", partial=flags.get("partial", False),
        purged=flags.get("purged", False), content=digest,
        body=message.SerializeToString(), created=1.0,
    )  # fmt: skip

    def change(connection: Any) -> None:
        store.keys.insert(connection, set_id, wrapped)
        store.resources.insert(connection, row)

    store.write(change).result()
    return name


async def test_unknown_names_come_with_the_known_ones(calls: Calls) -> None:
    code, text, reason, _ = await refused(calls.tuning.GenerateInstructions(generate(model="x")))
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_NAME")
    assert text == "model: no model is named 'x'. Known: other, tiny."
    _, text, _, _ = await refused(calls.tuning.GenerateInstructions(generate(policy="nope")))
    assert "tone-en" in text
    _, text, _, _ = await refused(calls.tuning.GenerateInstructions(generate(topics=["nope"])))
    assert text.startswith("topic: no topic is named 'nope'. Known: ")


async def test_of_many_known_names_those_like_the_unknown_one_are_told(
    calls: Calls, tmp_path: Path
) -> None:
    """They stood three times in the trailers, whole: a client read RESOURCE_EXHAUSTED."""
    names = [f"model-of-a-department-with-a-long-name-{n:03}" for n in range(200)]
    path = tmp_path / "state"
    write_models(path / "models.yaml", {n: ModelSpec(name=n, path=str(path)) for n in names})
    asked = generate(model=names[123] + "x")
    code, text, reason, _ = await refused(calls.tuning.GenerateInstructions(asked))
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_NAME")
    assert f"Known: {names[123]}, " in text
    assert text.endswith(" more.")
    assert len(text) < 2000


@pytest.mark.parametrize(
    "asked",
    [
        generate(topics=["t" * 9000] * 2),
        generate(locale="e" * 9000),
        generate(policy_spec=res.PolicySpec(topics=[res.TopicSpec(title="t" * 9000)] * 2)),
        generate(
            policy_spec=res.PolicySpec(topics=[res.TopicSpec(title="chair")], locale="e" * 9000)
        ),
        pb.EvaluateRequest(target=pb.Target(model=MODEL), suites=["s" * 9000] * 2),
        pb.EvaluateRequest(target=pb.Target(model=MODEL, label="l" * 9000)),
        lro.ListOperationsRequest(filter=f"kind={'K' * 9000}"),
    ],
    ids=range(7),
)
async def test_what_a_caller_wrote_is_not_sent_back_whole(calls: Calls, asked: Any) -> None:
    """An answer that its trailers cannot hold is one that no client reads."""
    stub = {
        "GenerateInstructionsRequest": calls.tuning.GenerateInstructions,
        "EvaluateRequest": calls.tuning.Evaluate,
        "ListOperationsRequest": calls.operations.ListOperations,
    }[type(asked).__name__]
    code, text, _, _ = await refused(stub(asked))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert len(text) < 500


async def test_an_error_names_some_of_many_topics_that_a_parent_has(calls: Calls) -> None:
    by_topic = {f"topic-{n:03}": 1 for n in range(300)}
    parent = put_set(calls.store, "instructionSets", message=res.InstructionSet(by_topic=by_topic))
    call = calls.tuning.GenerateInstructions(generate(parent=parent))
    assert "topic-019 and 280 more." in (await refused(call))[3]["parent"]


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"count": 0}, "count", "must be 1..20000, got 0. Say how many"),
        ({"count": 20_001}, "count", "extend the set later with parent"),
        ({"topics": ["a", " "]}, "topics[1]", "is empty"),
        ({"topics": ["a", "a"]}, "topics", "names 'a' twice"),
        ({"request_id": "seven"}, "request_id", "is not a UUID"),
        ({"seeds": ["ok", ""]}, "seeds[1]", "is empty"),
        ({"seeds": ["x" * 9000]}, "seeds[0]", "longer than 8000"),
        ({"policy": "default-ja"}, "locale", "'ja' is not one of the model's (en)"),
        ({"policy_spec": res.PolicySpec()}, "policy_spec.topics", "is empty"),
        ({"locale": "fr"}, "locale", "is 'fr', and policy tone-en is written in en"),
    ],
)
async def test_a_bad_field_is_named_with_limit_and_mend(
    calls: Calls, changes: dict[str, Any], field: str, words: str
) -> None:
    code, _, reason, violations = await refused(
        calls.tuning.GenerateInstructions(generate(**changes))
    )
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_INPUT")
    assert words in violations[field]


@pytest.mark.parametrize(
    ("engine", "asked", "run"),
    [
        ({"model": OTHER}, MODEL, OTHER),
        ({"served_name": "author"}, MODEL, "one that the server's settings do not name"),
        ({"served_name": "author", "model": OTHER}, MODEL, OTHER),
        ({"served_name": "author", "model": MODEL}, MODEL, ""),
        ({}, MODEL, ""),  # each engine answers to its model's own name
    ],
)
async def test_remote_engines_are_never_asked_for_a_model_that_they_do_not_run(
    tmp_path: Path, engine: dict[str, str], asked: str, run: str
) -> None:
    """Under one served name, a second model's sets were written by the first one's weights."""
    settings = EngineSettings(kind="remote", urls=("http://127.0.0.1:9",), **engine)
    async with serving(tmp_path / "state", engine=settings) as calls:
        sets = put_set(calls.store, "instructionSets")
        turn = pb.ChatMessage(role="user", content="hello")

        async def chat() -> None:
            async for _ in calls.tuning.Chat(pb.ChatRequest(model=asked, messages=[turn])):
                pass

        evaluate = pb.EvaluateRequest(target=pb.Target(model=asked), suites=["attack"])
        synthesize = pb.SynthesizePairsRequest(model=asked, instruction_set=sets)
        made = {
            "model": (
                calls.tuning.GenerateInstructions(generate(model=asked)),
                calls.tuning.SynthesizePairs(synthesize),
            ),
            "target.model": (calls.tuning.Evaluate(evaluate),),
        }
        for field, answers in made.items():
            for answer in answers:
                if not run:
                    assert (await answer).name
                    continue
                _, _, reason, violations = await refused(answer)
                assert reason == "INVALID_INPUT"
                assert f"is {asked}, and the engines run {run}. " in violations[field]
        if run:
            _, text, _, _ = await refused(chat())
            assert f"the engines run {run}" in text


async def test_an_inline_policy_gets_no_toxic_side_outside_tone(calls: Calls) -> None:
    topic = res.TopicSpec(domain="chemistry", title="Mixing cleaners", sides="both")
    spec = res.PolicySpec(topics=[topic])
    _, text, reason, _ = await refused(
        calls.tuning.GenerateInstructions(generate(policy_spec=spec))
    )
    assert reason == "INVALID_INPUT"
    assert "positive_only" in text


@pytest.mark.parametrize(
    ("topics", "more", "field", "words"),
    [
        ([{"boundary": "b" * 501}], {}, "policy_spec.topics[0].boundary", "longer than 500"),
        ([{"examples": ["e" * 501]}], {}, "policy_spec.topics[0].examples[0]", "longer than 500"),
        ([{"examples": ["e"] * 21}], {}, "policy_spec.topics[0].examples", "more than 20"),
        ([{"title": "x"}], {}, "policy_spec.topics[0].title", "2 to 120"),
        (
            [{"title": "a broken chair"}, {"title": "A broken-chair"}],
            {},
            "policy_spec.topics[1].title",
            "topics[0] gives the same id",
        ),
        ([{}], {"protected_words": ["w"] * 2001}, "policy_spec.protected_words", "more than 2000"),
        ([{}], {"never_synthesize": ["w" * 501]}, "policy_spec.never_synthesize[0]", "than 500"),
    ],
)
async def test_an_inline_policy_loses_nothing_and_its_own_fields_are_named(
    calls: Calls, topics: list[dict[str, Any]], more: dict[str, Any], field: str, words: str
) -> None:
    """A boundary was cut at 500 characters without a word, and topics[1].id is no field of it."""
    named = [res.TopicSpec(**{"title": "a chair"} | topic) for topic in topics]
    request = generate(policy_spec=res.PolicySpec(topics=named, **more))
    _, _, _, violations = await refused(calls.tuning.GenerateInstructions(request))
    assert words in violations[field]


async def test_a_set_is_extended_under_a_policy_that_knows_its_topics(calls: Calls) -> None:
    """The set kept the call's policy alone: in it the parent's requests lost their bad answers."""

    async def extend(parent: str, **changes: Any) -> str:
        call = calls.tuning.GenerateInstructions(generate(parent=parent, **changes))
        return (await refused(call))[3]["parent"]

    made = res.InstructionSet(harmful=3, by_topic={"work-question": 2, "online-forum": 1})
    tone = put_set(calls.store, "instructionSets", message=made)
    work = res.TopicSpec(domain="work", title="question", sides="both")
    text = await extend(tone, policy_spec=res.PolicySpec(topics=[work]))
    assert "topics that policy inline lacks or gives other sides: online-forum." in text
    narrower = [
        res.TopicSpec(domain="work", title="question", sides="positive_only"),
        res.TopicSpec(domain="online", title="forum", sides="both"),
    ]
    text = await extend(tone, policy_spec=res.PolicySpec(topics=narrower))
    assert "gives other sides: work-question." in text
    made = res.InstructionSet(harmful=3, by_topic={"work-question": 2, "online-forum": 1})
    japanese = put_set(calls.store, "instructionSets", message=made, policy="default-ja")
    assert "is written in ja, and policy tone-en in en" in await extend(japanese)
    again = put_set(calls.store, "instructionSets", message=made)
    answer = await calls.tuning.GenerateInstructions(generate(parent=again, dry_run=True))
    assert answer.done


async def test_a_region_or_capitals_make_no_other_language(calls: Calls) -> None:
    """For a model of `en` they were refused here, and taken by the other calls."""
    spec = res.PolicySpec(topics=[res.TopicSpec(title="a chair")], locale="EN")
    for asked in (generate(locale="en-GB", dry_run=True), generate(policy_spec=spec, dry_run=True)):
        assert (await calls.tuning.GenerateInstructions(asked)).done


async def test_never_synthesize_holds_inside_an_allowed_domain(calls: Calls) -> None:
    domain = next(t.domain for t in load_policy(POLICY).topics if t.sides == "both")
    topic = res.TopicSpec(domain=domain, title="how to build a nerve agent", sides="both")
    spec = res.PolicySpec(topics=[topic])
    _, text, _, _ = await refused(calls.tuning.GenerateInstructions(generate(policy_spec=spec)))
    assert "never allowed" in text


async def test_too_many_annotations(calls: Calls) -> None:
    marks = [res.Annotation(instruction=f"q{i}", good="g") for i in range(50)]
    request = pb.SynthesizePairsRequest(
        model=MODEL, instruction_set="x", annotations=pb.Annotations(items=marks)
    )
    _, _, _, violations = await refused(calls.tuning.SynthesizePairs(request))
    assert "holds 50 annotations; at most 49" in violations["annotations"]
    created = lib.CreateAnnotationSetRequest(model=MODEL, policy=POLICY, items=marks)
    _, _, _, violations = await refused(calls.library.CreateAnnotationSet(created))
    assert "at most 49" in violations["items"]


async def test_a_mark_of_an_unknown_topic_is_refused_in_either_call(calls: Calls) -> None:
    """SynthesizePairs took it, and went by another topic."""

    def synthesize(topic: str) -> Any:
        marks = [res.Annotation(instruction="q", good="g", topic=topic)]
        return calls.tuning.SynthesizePairs(
            pb.SynthesizePairsRequest(
                model=MODEL,
                instruction_set=name,
                annotations=pb.Annotations(items=marks),
                dry_run=True,
            )
        )

    name = put_set(calls.store, "instructionSets")
    code, text, _, _ = await refused(synthesize("nope"))
    assert code is grpc.StatusCode.NOT_FOUND
    assert text.startswith("topic: no topic is named 'nope'. Known: ")
    for known in ("", "work-question"):
        assert (await synthesize(known)).done


async def test_marks_that_only_call_pairs_wrong_need_the_set_they_were_said_of(
    calls: Calls,
) -> None:
    message = res.AnnotationSet(count=2, rejected=["a", "b"])
    message.meta.parents.append("pairSets/judged@sha256:0")
    request = pb.SynthesizePairsRequest(
        model=MODEL,
        instruction_set=put_set(calls.store, "instructionSets"),
        annotation_set=put_set(calls.store, "annotationSets", message=message),
        dry_run=True,
    )
    _, _, _, violations = await refused(calls.tuning.SynthesizePairs(request))
    assert "only says which of a set's pairs are wrong" in violations["parent"]
    assert "Send parent=pairSets/judged" in violations["parent"]
    request.parent = put_set(calls.store, "pairSets")
    assert (await calls.tuning.SynthesizePairs(request)).done


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"ut_weight": 0.0}, "ut_weight", "must be greater than 0 and at most 1000, got 0. Send"),
        ({"ut_weight": 5000.0}, "ut_weight", "got 5000. Send a value in that range, or leave it"),
        ({"ut_weight": 5000.0}, "ut_weight", "out for one that is set from gradient norms."),
        ({"ut_weight": 1.0, "method": res.METHOD_DPO}, "ut_weight", "no meaning for method dpo"),
        ({"ut_weight": 1.0, "method": res.METHOD_MLE}, "ut_weight", "no meaning for method mle"),
        ({"flagged_share": 0.3}, "flagged_share", "must be 0.05..0.25, got 0.3. Send a value"),
        ({"flagged_share": 0.04}, "flagged_share", "or leave it out for 0.2."),
        (
            {"flagged_share": 0.25, "method": res.METHOD_UT_UNIFORM},
            "flagged_share",
            "no meaning for method ut_uniform",
        ),
        (
            {"token_weighting": "contrast", "method": res.METHOD_NPO},
            "token_weighting",
            "no meaning for method npo",
        ),
        ({"token_weighting": "magic"}, "token_weighting", "'blend'"),
        ({"token_weighting": "magic"}, "token_weighting", "or 'uniform', got 'magic'. Send one"),
        ({"guards": "maybe"}, "guards", "abort"),
        ({"ut_candidates": "magic"}, "ut_candidates", "or 'written', got 'magic'"),
        (
            {"ut_candidates": "written", "method": res.METHOD_MLE},
            "ut_candidates",
            "no meaning for method mle",
        ),
        ({"budget": pb.Budget(steps=20_000)}, "budget.steps", "must be 0..10000, got 20000"),
        (
            {"budget": pb.Budget(twin_weight=9.0)},
            "budget.twin_weight",
            "must be greater than 0 and at most 8, got 9",
        ),
        ({"lora": pb.Lora(rank=999)}, "lora.rank", "at most 16, the largest the engine serves"),
        ({"lora": pb.Lora(rank=64)}, "lora.rank", "the largest the engine serves, got 64"),
        ({"lora": pb.Lora(alpha=2000)}, "lora.alpha", "or leave it out for twice the rank."),
        ({"pair_set": ""}, "pair_set", "is empty"),
        (
            {"budget": pb.Budget(anchors_per_step=2, without_anchors=True)},
            "budget.anchors_per_step",
            "is 2, and without_anchors asks for none",
        ),
    ],
)
async def test_align_fields(calls: Calls, changes: dict[str, Any], field: str, words: str) -> None:
    values = {"model": MODEL, "pair_set": put_set(calls.store, "pairSets")} | changes
    _, _, _, violations = await refused(calls.tuning.Align(pb.AlignRequest(**values)))
    assert words in violations[field], violations


async def test_fields_of_pairs_show_both_limits_and_what_was_sent(calls: Calls) -> None:
    request = pb.SynthesizePairsRequest(
        model=MODEL,
        instruction_set=put_set(calls.store, "instructionSets"),
        rounds=9,
        min_polarity=-0.25,
    )
    _, _, _, violations = await refused(calls.tuning.SynthesizePairs(request))
    send = "Send a value in that range, or leave it out for"
    assert violations == {
        "rounds": f"must be 1..8, got 9. {send} 2.",
        "min_polarity": f"must be 0..1, got -0.25. {send} 0.6.",
    }


async def test_the_default_rank_is_refused_too_where_no_engine_serves_it(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", engine=EngineSettings(max_lora_rank=8)) as calls:
        request = pb.AlignRequest(model=MODEL, pair_set=put_set(calls.store, "pairSets"))
        _, _, _, violations = await refused(calls.tuning.Align(request))
        assert "must be at most 8, the largest the engine serves, got 16" in violations["lora.rank"]


async def test_samples_left_out_are_the_profiles(calls: Calls) -> None:
    """It said 60, and a gpu takes 200."""
    call = calls.tuning.Evaluate(evaluate("attack", samples=200_000))
    _, _, _, violations = await refused(call)
    assert violations["samples"].endswith("or leave it out for the profile's number.")


async def test_foreign_and_missing_resources_read_alike(calls: Calls) -> None:
    strange = [
        put_set(calls.store, "pairSets", tenant="another"),
        put_set(calls.store, "pairSets", model=OTHER),
        put_set(calls.store, "instructionSets"),
        "pairSets/000000000000",
        "pairSets/../../etc/passwd",
    ]
    answers = set()
    for name in strange:
        code, text, reason, _ = await refused(
            calls.tuning.Align(pb.AlignRequest(model=MODEL, pair_set=name))
        )
        answers.add((code, text, reason))
    assert answers == {
        (
            grpc.StatusCode.NOT_FOUND,
            "No such resource, or it is not yours to see.",
            "RESOURCE_NOT_FOUND",
        )
    }


async def test_requests_that_another_model_wrote_are_taken_by_every_verb_that_reads_them(
    calls: Calls,
) -> None:
    """Held-out sets are reusable for other models, and so are those that pairs are made of."""
    verbs: dict[str, Callable[[str], Any]] = {
        "parent": lambda name: calls.tuning.GenerateInstructions(
            generate(parent=name, dry_run=True)
        ),
        "instruction_set": lambda name: calls.tuning.SynthesizePairs(
            pb.SynthesizePairsRequest(model=MODEL, instruction_set=name, dry_run=True)
        ),
        "held_out": lambda name: calls.tuning.Evaluate(evaluate(held_out=name)),
    }
    ours = put_set(calls.store, "instructionSets", model=OTHER)
    foreign = put_set(calls.store, "instructionSets", tenant="another")
    for ask in verbs.values():
        assert (await ask(ours)).done
        code, _, _, _ = await refused(ask(foreign))
        assert code is grpc.StatusCode.NOT_FOUND


async def test_requests_in_a_language_that_the_model_lacks_get_no_answers(calls: Calls) -> None:
    name = put_set(calls.store, "instructionSets", model=OTHER, policy="default-ja")
    call = pb.SynthesizePairsRequest(model=MODEL, instruction_set=name, dry_run=True)
    _, _, _, violations = await refused(calls.tuning.SynthesizePairs(call))
    assert "is written in ja, and model tiny declares en" in violations["instruction_set"]


async def test_align_refuses_partial_and_purged_sets(calls: Calls) -> None:
    partial = put_set(calls.store, "pairSets", partial=True)
    _, text, reason, _ = await refused(
        calls.tuning.Align(pb.AlignRequest(model=MODEL, pair_set=partial))
    )
    assert reason == "SET_PARTIAL"
    assert f"parent={partial}" in text
    purged = put_set(calls.store, "pairSets", purged=True)
    _, _, reason, _ = await refused(
        calls.tuning.Align(pb.AlignRequest(model=MODEL, pair_set=purged))
    )
    assert reason == "SET_PURGED"


async def test_align_takes_a_set_without_anchors_only_when_told_to(calls: Calls) -> None:
    """Every imported set is one."""
    name = put_set(calls.store, "pairSets", anchors=0)
    request = pb.AlignRequest(model=MODEL, pair_set=name, dry_run=True)
    _, _, _, violations = await refused(calls.tuning.Align(request))
    assert "holds no anchors" in violations["pair_set"]
    assert f"SynthesizePairs with parent={name}" in violations["pair_set"]
    request.budget.without_anchors = True
    assert (await calls.tuning.Align(request)).done
    assert align_config(request).anchors_per_step == 0
    assert align_config(pb.AlignRequest()).anchors_per_step == 8


def test_the_default_weighting_is_taken_with_every_method() -> None:
    """The client names it in each call."""
    request = pb.AlignRequest(method=res.METHOD_MLE, token_weighting="blend")
    assert align_config(request).method == "mle"


@pytest.mark.parametrize("dry_run", [True, False])
async def test_a_set_without_bad_answers_is_refused_before_anything_starts(
    calls: Calls, dry_run: bool
) -> None:
    """The model was loaded first. Default-ja makes such sets."""
    message = res.PairSet(positive_only=10, twins=3, anchors=4)
    name = put_set(calls.store, "pairSets", message=message)
    request = pb.AlignRequest(model=MODEL, pair_set=name, dry_run=dry_run)
    for method in ("UNSPECIFIED", "PT_ALIGN", "UT_UNIFORM", "DPO", "NPO"):
        request.method = res.Method.Value(f"METHOD_{method}")
        _, _, _, violations = await refused(calls.tuning.Align(request))
        assert f"and {name} holds none. Use method mle" in violations["method"]
    request.method = res.METHOD_MLE
    assert (await calls.tuning.Align(request)).name


async def test_align_estimates_the_steps_that_it_will_take(calls: Calls) -> None:
    """Four passes of what is trained on, eight a step: held-out pairs are not."""
    message = res.PairSet(pairs=150, positive_only=10, anchors=4, stats={"held_out_pairs": 20})
    name = put_set(calls.store, "pairSets", message=message)
    done = await calls.tuning.Align(pb.AlignRequest(model=MODEL, pair_set=name, dry_run=True))
    metadata = pb.AlignMetadata()
    assert done.metadata.Unpack(metadata)
    assert metadata.progress.estimate.basis.startswith("70 steps")


async def test_request_id_gives_the_same_operation(calls: Calls) -> None:
    request_id = str(uuid.uuid4())
    sent = [calls.tuning.GenerateInstructions(generate(request_id=request_id)) for _ in range(5)]
    assert len({operation.name for operation in await asyncio.gather(*sent)}) == 1
    code, text, reason, _ = await refused(
        calls.tuning.GenerateInstructions(generate(request_id=request_id, count=6, seed=3))
    )
    assert (code, reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    assert "differs in: count, seed" in text
    listed = await calls.operations.ListOperations(lro.ListOperationsRequest())
    assert len(listed.operations) == 1


async def test_calls_are_digested_off_the_event_loop(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An import of 64 MiB and a call of 16 MiB held every other caller up meanwhile."""
    mac, threads = calls.store.vault.mac, set()

    def watched(*parts: Any) -> str:
        if parts[0] in {"field", "records"}:
            threads.add((parts[0], threading.current_thread() is threading.main_thread()))
        return mac(*parts)

    monkeypatch.setattr(calls.store.vault, "mac", watched)
    await calls.tuning.GenerateInstructions(generate(request_id=str(uuid.uuid4())))
    header = lib.ImportHeader(
        kind="instructionSets", model=MODEL, policy=POLICY, request_id=str(uuid.uuid4())
    )
    topic = load_policy(POLICY).topics[0].id
    record = lib.Record(kind="instruction", topic=topic, instruction="Write a cold note on a desk")
    sent = [lib.ImportSetRequest(header=header), lib.ImportSetRequest(records=[record])]
    assert (await calls.library.ImportSet(sent)).accepted == 1
    assert threads == {("field", False), ("records", False)}


async def test_request_id_of_another_method_is_named(calls: Calls) -> None:
    request_id = str(uuid.uuid4())
    await calls.tuning.GenerateInstructions(generate(request_id=request_id))
    pair_set = put_set(calls.store, "pairSets")
    request = pb.AlignRequest(request_id=request_id, model=MODEL, pair_set=pair_set)
    _, text, _, _ = await refused(calls.tuning.Align(request))
    assert "differs in: method" in text


async def test_a_call_that_is_sent_again_is_answered_although_its_set_was_purged(
    calls: Calls,
) -> None:
    """Its answer was lost, and the retry said that the call could not be made."""
    name = put_set(calls.store, "instructionSets")
    request = pb.SynthesizePairsRequest(
        request_id=str(uuid.uuid4()), model=MODEL, instruction_set=name
    )
    made = await calls.tuning.SynthesizePairs(request)
    row = calls.store.resources.get(name, "default")
    calls.store.write(lambda c: calls.store.resources.mark_purged(c, row, row.body)).result()
    assert (await calls.tuning.SynthesizePairs(request)).name == made.name
    request.seed = 1
    _, text, reason, _ = await refused(calls.tuning.SynthesizePairs(request))
    assert (reason, "differs in: seed" in text) == ("REQUEST_ID_REUSED", True)
    for other in (str(uuid.uuid4()), "", "seven"):
        request.request_id = other
        _, _, reason, _ = await refused(calls.tuning.SynthesizePairs(request))
        assert reason == ("INVALID_INPUT" if other == "seven" else "SET_PURGED")


async def test_dry_run_estimates_and_makes_nothing(calls: Calls) -> None:
    answer = await calls.tuning.GenerateInstructions(generate(dry_run=True))
    metadata = pb.GenerateInstructionsMetadata()
    answer.metadata.Unpack(metadata)
    estimate = metadata.progress.estimate
    assert answer.done
    assert estimate.seconds > 0
    assert estimate.memory_bytes > 0
    assert estimate.basis
    listed = await calls.operations.ListOperations(lro.ListOperationsRequest())
    assert not listed.operations
    await refused(calls.tuning.GenerateInstructions(generate(dry_run=True, count=0)))


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
async def test_a_dry_run_of_a_training_counts_weights_as_they_are_loaded(
    calls: Calls, tmp_path: Path, dtype: Any, size: int
) -> None:
    """Files in two bytes a parameter under an entry in float32 were counted at half."""
    save_file({"w": np.zeros(500_000, dtype=np.float16)}, tmp_path / "model.safetensors")
    entry = ModelSpec(name=MODEL, path=str(tmp_path), dtype=dtype)
    write_models(tmp_path / "state" / "models.yaml", {MODEL: entry})
    name = put_set(calls.store, "pairSets")
    answer = await calls.tuning.Align(pb.AlignRequest(model=MODEL, pair_set=name, dry_run=True))
    metadata = pb.AlignMetadata()
    answer.metadata.Unpack(metadata)
    estimate = metadata.progress.estimate
    assert estimate.memory_bytes == pytest.approx(500_000 * size * 2.2 + 1.7e9, abs=2)


def evaluate(*suites: str, **changes: Any) -> pb.EvaluateRequest:
    target = pb.Target(model=MODEL)
    return pb.EvaluateRequest(target=target, suites=suites, dry_run=True, **changes)


async def estimate(calls: Calls, request: pb.EvaluateRequest) -> pb.Estimate:
    answer = await calls.tuning.Evaluate(request)
    metadata = pb.EvaluateMetadata()
    answer.metadata.Unpack(metadata)
    return metadata.progress.estimate


async def test_an_evaluation_is_estimated_by_the_suites_that_can_be_asked(
    calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PTALIGN_EVAL_DATA", raising=False)
    one, two = (
        await estimate(calls, evaluate("attack")),
        await estimate(calls, evaluate("attack", "strong")),
    )
    assert two.seconds == pytest.approx(2 * one.seconds)
    assert "1 suite per target" in one.basis
    assert "INCONCLUSIVE" not in one.basis
    usual = await estimate(calls, evaluate())
    assert "5 suites per target; not run for lack of data: xstest-safe, ifeval" in usual.basis
    assert "cannot PASS" in usual.basis
    assert "PTALIGN_EVAL_DATA" in usual.basis
    for name in ("xstest_prompts.csv", "ifeval_en_odd.jsonl"):
        (tmp_path / name).touch()
    monkeypatch.setenv("PTALIGN_EVAL_DATA", str(tmp_path))
    assert (await estimate(calls, evaluate())).basis.endswith("7 suites per target")


async def test_an_adapter_whose_training_set_was_purged_is_told_that_it_cannot_pass(
    calls: Calls,
) -> None:
    """Found out a month later, after hours, and without the cause."""
    named = put_set(calls.store, "pairSets")
    for number, purged in ((1, False), (2, True)):
        own = put_set(calls.store, "pairSets", purged=purged)
        message = res.Adapter()
        message.meta.parents.append(f"{own}@sha256:x")
        row = Resource(
            name=f"adapters/{number:024x}", collection="adapters", tenant="default", model=MODEL,
            policy=POLICY, verdict="", adapter="", partial=False, purged=False, content="",
            body=message.SerializeToString(), created=1.0,
        )  # fmt: skip
        calls.store.write(lambda c, r=row: calls.store.resources.insert(c, r)).result()
        request = evaluate("attack")
        request.target.adapter = row.name
        words = f"the text of the adapter's {own} is gone: benign KL is not measured"
        assert (words in (await estimate(calls, request)).basis) == purged
        request.pair_set = named
        told = (await estimate(calls, request)).basis
        assert ("benign KL is not measured" in told) is False
        assert (f"the text of {own}, which" in told) == purged


async def test_a_purged_set_of_a_parent_adapter_is_told(calls: Calls) -> None:
    """Prompts were not kept apart from it, and only the target's own set was looked at."""
    gone, own = put_set(calls.store, "pairSets", purged=True), put_set(calls.store, "pairSets")
    names = [f"adapters/{number:024x}" for number in (1, 2)]
    for name, parents in zip(names, ([gone], [own, names[0]]), strict=True):
        message = res.Adapter()
        message.meta.parents.extend(f"{parent}@sha256:x" for parent in parents)
        row = Resource(
            name=name, collection="adapters", tenant="default", model=MODEL, policy=POLICY,
            verdict="", adapter="", partial=False, purged=False, content="",
            body=message.SerializeToString(), created=1.0,
        )  # fmt: skip
        calls.store.write(lambda c, r=row: calls.store.resources.insert(c, r)).result()
    request = evaluate("attack")
    request.target.adapter = names[1]
    basis = (await estimate(calls, request)).basis
    assert f"the text of {gone}, which a target or an adapter that it goes on from" in basis
    assert "benign KL is not measured" not in basis


async def test_held_out_requests_are_an_instruction_set_that_is_there(
    calls: Calls,
) -> None:
    _, _, _, violations = await refused(calls.tuning.Evaluate(evaluate("held-out-plain")))
    assert "suite held-out-plain asks its requests" in violations["held_out"]
    for name in ("instructionSets/none", "pairSets/x"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await calls.tuning.Evaluate(evaluate(held_out=name))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_held_out_requests_that_no_suite_asks_are_refused(
    calls: Calls, tmp_path: Path
) -> None:
    """They were not asked, and stood among the evaluation's parents."""
    name = put_set(calls.store, "instructionSets")
    _, _, _, violations = await refused(calls.tuning.Evaluate(evaluate("attack", held_out=name)))
    assert "asked by none of the suites named" in violations["held_out"]
    assert "held-out-plain" in violations["held_out"]
    own = "- {name: own, measure: harm, elicitation: plain, make: held-out-plain}"
    (tmp_path / "state" / "suites.yaml").write_text(own)
    for suites in ((), ("attack", "held-out-twins"), ("own",)):
        assert (await calls.tuning.Evaluate(evaluate(*suites, held_out=name))).done


async def test_an_evaluation_with_nothing_to_ask_is_refused_in_the_call(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PTALIGN_EVAL_DATA", raising=False)
    _, _, reason, violations = await refused(calls.tuning.Evaluate(evaluate("ifeval", "catqa")))
    assert reason == "INVALID_INPUT"
    for words in ("ifeval needs ifeval_en_odd.jsonl", "catqa needs", "PTALIGN_EVAL_DATA"):
        assert words in violations["suites"]
    _, _, _, violations = await refused(calls.tuning.Evaluate(evaluate("attack", "attack")))
    assert "names 'attack' twice" in violations["suites"]


async def test_a_target_beside_is_of_the_same_model(calls: Calls) -> None:
    """Its model was read by nobody: the target's own rates stood under another model's name."""
    for asked, words in ((OTHER, "not the target's model tiny"), ("none", "no model is named")):
        beside = pb.Target(model=asked, label="another model")
        call = calls.tuning.Evaluate(evaluate("attack", also=[pb.Target(model=MODEL), beside]))
        _, text, _, violations = await refused(call)
        assert words in text
        assert list(violations) == (["also[1].model"] if asked == OTHER else [])
    beside = pb.Target(label="bare")
    assert (await calls.tuning.Evaluate(evaluate("attack", also=[beside]))).done
    beside.label = "a" * 121
    call = calls.tuning.Evaluate(evaluate("attack", also=[beside]))
    _, _, _, violations = await refused(call)
    assert "longer than 120" in violations["also[0].label"]


async def test_a_suite_that_no_evaluation_could_ask_is_refused_in_the_call(
    calls: Calls, tmp_path: Path
) -> None:
    entry = "{name: own, measure: harm, file: p.csv, columns: {prompt: q, language: l}}"
    (tmp_path / "state" / "suites.yaml").write_text(f"- {entry}")
    _, _, _, violations = await refused(calls.tuning.Evaluate(evaluate("own")))
    assert "no prompt has 'language'" in violations["suites.own.columns"]
    assert (await calls.tuning.Evaluate(evaluate("attack"))).done


async def test_the_call_is_sealed_at_rest(calls: Calls, tmp_path: Path) -> None:
    canary = "canary-seed-7f3a"
    await calls.tuning.GenerateInstructions(generate(seeds=[canary]))
    for file in (tmp_path / "state").rglob("*"):
        if file.is_file():
            assert canary.encode() not in file.read_bytes(), file


async def test_excerpts_are_redacted_before_they_are_stored(calls: Calls) -> None:
    made = await calls.tuning.GenerateInstructions(
        generate(excerpts=["write to jane.roe@example.org please"])
    )
    row = calls.store.operations.get(made.name.removeprefix("operations/"))
    key = calls.store.keys.get(row.id)
    kept = pb.GenerateInstructionsRequest.FromString(key.open("request", row.request))
    assert "jane" not in kept.excerpts[0]


async def test_operations_pages_filters_cancel_delete(calls: Calls) -> None:
    names = [(await calls.tuning.GenerateInstructions(generate())).name for _ in range(5)]
    seen: list[str] = []
    token = ""
    while True:
        page = await calls.operations.ListOperations(
            lro.ListOperationsRequest(page_size=2, page_token=token)
        )
        seen += [o.name for o in page.operations]
        token = page.next_page_token
        if not token:
            break
    assert seen == names[::-1]
    with pytest.raises(grpc.aio.AioRpcError):
        await calls.operations.DeleteOperation(lro.DeleteOperationRequest(name=names[0]))
    await calls.operations.CancelOperation(lro.CancelOperationRequest(name=names[0]))
    found = await calls.operations.GetOperation(lro.GetOperationRequest(name=names[0]))
    assert found.done
    assert found.error.code == grpc.StatusCode.CANCELLED.value[0]
    done = await calls.operations.ListOperations(lro.ListOperationsRequest(filter="done=true"))
    assert [o.name for o in done.operations] == [names[0]]
    none = await calls.operations.ListOperations(
        lro.ListOperationsRequest(filter="kind=Align AND done=false")
    )
    assert not none.operations
    for text in ("kind=Align AND kind=GenerateInstructions", "state=RUNNING AND done=true"):
        both = lro.ListOperationsRequest(filter=text)
        assert not (await calls.operations.ListOperations(both)).operations, text
    await calls.operations.DeleteOperation(lro.DeleteOperationRequest(name=names[0]))
    _, _, reason, _ = await refused(
        calls.operations.GetOperation(lro.GetOperationRequest(name=names[0]))
    )
    assert reason == "RESOURCE_NOT_FOUND"


@pytest.mark.parametrize("text", ["kind=Nope", "state=DONE", "size>3", "AND", "done=perhaps"])
async def test_a_filter_that_cannot_be_read_is_explained(calls: Calls, text: str) -> None:
    _, _, _, violations = await refused(
        calls.operations.ListOperations(lro.ListOperationsRequest(filter=text))
    )
    assert "kind=Align AND state=RUNNING" in violations["filter"]


async def test_wait_ends_with_its_timeout_and_with_the_operation(calls: Calls) -> None:
    made = await calls.tuning.GenerateInstructions(generate())
    request = lro.WaitOperationRequest(name=made.name)
    request.timeout.FromMilliseconds(300)
    assert not (await calls.operations.WaitOperation(request)).done
    request.timeout.FromSeconds(20)
    waiting = asyncio.ensure_future(calls.operations.WaitOperation(request))
    await asyncio.sleep(0.2)
    await calls.operations.CancelOperation(lro.CancelOperationRequest(name=made.name))
    assert (await asyncio.wait_for(waiting, 5)).done


async def test_a_wait_goes_on_until_there_is_news(calls: Calls) -> None:
    """A feed that begins rang for what the caller had: the store was asked ten times a second."""
    made = await calls.tuning.GenerateInstructions(generate())
    operation_id, feeds = made.name.removeprefix("operations/"), Feeds(calls.store)
    sequence, clock = calls.store.operations.get(operation_id).sequence, asyncio.get_running_loop()
    began = clock.time()
    await feeds.wait(operation_id, sequence, 0.6)
    assert clock.time() - began >= 0.6
    waiting = asyncio.ensure_future(feeds.wait(operation_id, sequence, 60))
    await asyncio.sleep(0.3)
    await asyncio.to_thread(calls.store.operations.advance, operation_id, lambda o: o)
    await asyncio.wait_for(waiting, 20)


async def test_who_watches_while_the_database_is_away_fills_no_log(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = await calls.tuning.GenerateInstructions(generate())
    operation_id, feeds = made.name.removeprefix("operations/"), Feeds(calls.store)
    sequences, asked = calls.store.operations.sequences, []

    def away(names: Any) -> Any:
        asked.append(names)
        if len(asked) < 3:
            raise DatabaseAway
        return sequences(names)

    monkeypatch.setattr(calls.store.operations, "sequences", away)
    monkeypatch.setattr(watching, "AWAY_SECONDS", 0.01)
    await asyncio.wait_for(feeds.wait(operation_id, 0, 60), 20)
    told = [record for record in caplog.records if "watching" in record.getMessage()]
    assert len(told) == 2
    assert not any(record.exc_info for record in told)


async def test_watch_resumes_by_sequence(calls: Calls) -> None:
    made = await calls.tuning.GenerateInstructions(generate())
    operation_id = made.name.removeprefix("operations/")
    for _ in range(3):
        calls.store.operations.advance(operation_id, lambda o: o)
    await calls.operations.CancelOperation(lro.CancelOperationRequest(name=made.name))

    async def sequences(after: int) -> list[int]:
        request = pb.WatchOperationRequest(name=made.name, after_sequence=after)
        return [event.sequence async for event in calls.tuning.WatchOperation(request)]

    assert await sequences(0) == [1, 2, 3, 4, 5]
    assert await sequences(3) == [4, 5]


async def test_many_watchers_see_every_event(calls: Calls) -> None:
    made = await calls.tuning.GenerateInstructions(generate())
    operation_id = made.name.removeprefix("operations/")

    async def watch() -> list[int]:
        request = pb.WatchOperationRequest(name=made.name)
        return [event.sequence async for event in calls.tuning.WatchOperation(request)]

    watchers = [asyncio.ensure_future(watch()) for _ in range(50)]
    for _ in range(10):
        await asyncio.to_thread(calls.store.operations.advance, operation_id, lambda o: o)
        await asyncio.sleep(0.03)
    await calls.operations.CancelOperation(lro.CancelOperationRequest(name=made.name))
    for seen in await asyncio.wait_for(asyncio.gather(*watchers), 20):
        assert seen == list(range(1, 13))


async def test_watch_and_wait_end_when_the_operation_is_deleted(calls: Calls) -> None:
    """Cancelled and deleted between two looks at the store: nobody told those who waited."""
    made = await calls.tuning.GenerateInstructions(generate())
    operation_id, store = made.name.removeprefix("operations/"), calls.store
    watch = calls.tuning.WatchOperation(pb.WatchOperationRequest(name=made.name))
    assert (await watch.read()).sequence == 1
    wait = asyncio.ensure_future(Feeds(store).wait(operation_id, 1, 300))
    await asyncio.sleep(0)  # it begins to wait
    store.write(lambda connection: store.operations.delete(connection, operation_id)).result()
    code, _, reason, _ = await asyncio.wait_for(refused(watch.read()), 10)
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")
    await asyncio.wait_for(wait, 10)


async def test_a_slow_watcher_of_a_deleted_operation_is_told(calls: Calls) -> None:
    """The feed was ahead of it and the store had nothing: it asked again without a pause."""
    made = await calls.tuning.GenerateInstructions(generate())
    operation_id, store = made.name.removeprefix("operations/"), calls.store
    feeds = Feeds(store)
    watch = feeds.events(operation_id, 0)
    assert (await anext(watch)).sequence == 1
    await feeds.wait(operation_id, 0, 10)

    def advance(connection: Any) -> None:  # at once, so that the feed keeps the last 100 alone
        for _ in range(150):
            store.operations.advance_in(connection, operation_id, lambda o: o)

    store.write(advance).result()
    await feeds.wait(operation_id, 150, 10)
    store.write(lambda connection: store.operations.delete(connection, operation_id)).result()
    with pytest.raises(NotFound):
        await asyncio.wait_for(anext(watch), 10)


async def test_a_damaged_event_ends_its_own_watch_and_holds_up_no_other(calls: Calls) -> None:
    """The look at all watched operations ended with the first that could not be read."""
    store, feeds = calls.store, Feeds(calls.store)
    made = [await calls.tuning.GenerateInstructions(generate()) for _ in range(2)]
    damaged, whole = (operation.name.removeprefix("operations/") for operation in made)
    watches = [feeds.events(damaged, 0), feeds.events(whole, 0)]
    for watch in watches:
        assert (await anext(watch)).sequence == 1
    waits = [asyncio.ensure_future(anext(watch)) for watch in watches]
    await feeds.wait(whole, 0, 10)

    def change(connection: Any) -> None:
        for operation_id in (damaged, whole):
            store.operations.advance_in(connection, operation_id, lambda o: o)
        row = events.update().where(events.c.operation == damaged, events.c.sequence == 2)
        connection.execute(row.values(body=b"other"))

    store.write(change).result()
    assert (await asyncio.wait_for(waits[1], 10)).sequence == 2
    with pytest.raises(DataDamaged):
        await asyncio.wait_for(waits[0], 10)


async def test_a_watch_from_before_a_restored_backup_ends(calls: Calls) -> None:
    """The caller has seen 500 events, the restored operation ends with its second: it hung."""
    made = await calls.tuning.GenerateInstructions(generate())
    operation_id, feeds = made.name.removeprefix("operations/"), Feeds(calls.store)
    end: Any = object()
    watching = asyncio.ensure_future(anext(feeds.events(operation_id, 500), end))
    await feeds.wait(operation_id, 0, 10)
    assert not watching.done()
    await calls.operations.CancelOperation(lro.CancelOperationRequest(name=made.name))
    assert await asyncio.wait_for(watching, 10) is end


async def test_unexpected_text_never_reaches_the_caller(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("secret-path /etc/shadow")

    monkeypatch.setattr(type(calls.store.operations), "page", broken)
    code, text, reason, _ = await refused(
        calls.operations.ListOperations(lro.ListOperationsRequest())
    )
    assert (code, reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "shadow" not in text
    assert text.startswith("internal error ")
    assert "internal error " + text.split()[2].rstrip(".") in caplog.text


async def test_a_full_disk_is_said_and_passes(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sqlalchemy as sa

    def full(*_: Any, **__: Any) -> Any:
        raise sa.exc.OperationalError("insert", {}, Exception("database or disk is full"))

    monkeypatch.setattr(calls.store.keys, "insert", full)
    code, text, reason, _ = await refused(calls.tuning.GenerateInstructions(generate()))
    assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "DISK_FULL")
    assert "Free space there" in text
    monkeypatch.undo()
    await calls.tuning.GenerateInstructions(generate())


async def test_overload_is_refused_with_a_hint(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", limits={"max_queued": 2}) as calls:
        for _ in range(2):
            await calls.tuning.GenerateInstructions(generate())
        code, text, _, _ = await refused(calls.tuning.GenerateInstructions(generate()))
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "PTALIGN_LIMITS__MAX_QUEUED" in text


async def test_a_full_queue_refuses_without_the_writer_and_answers_what_was_sent_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path / "state", limits={"max_queued": 1}) as calls:
        first = generate(request_id=str(uuid.uuid4()))
        made = await calls.tuning.GenerateInstructions(first)
        assert (await calls.tuning.GenerateInstructions(first)).name == made.name
        dry = await calls.tuning.GenerateInstructions(generate(dry_run=True))
        assert dry.done

        def busy(*_: Any) -> Any:
            raise AssertionError("waited for the writer")

        monkeypatch.setattr(calls.store, "write", busy)
        for request in (generate(), generate(request_id=str(uuid.uuid4()))):
            code, _, _, _ = await refused(calls.tuning.GenerateInstructions(request))
            assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        code, _, _, _ = await refused(calls.tuning.GenerateInstructions(generate(count=0)))
        assert code == grpc.StatusCode.INVALID_ARGUMENT  # not worth a retry


def methods() -> list[str]:
    """Every method of the services on the wire."""
    from google.longrunning import operations_pb2

    from ptalign_proto.v1 import library_pb2, safety_tuning_pb2

    return [
        f"/{service.full_name}/{method.name}"
        for module in (safety_tuning_pb2, library_pb2, operations_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]


def test_every_method_has_a_rule() -> None:
    assert set(methods()) <= set(RULES)
    assert all(rule <= set(ROLES) and rule for name, rule in RULES.items() if name in methods())


async def test_reflection_lists_the_services(calls: Calls) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(calls.channel)

    async def ask() -> AsyncIterator[Any]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    async for answer in stub.ServerReflectionInfo(ask()):
        names = {service.name for service in answer.list_services_response.service}
        assert {"ptalign.v1.SafetyTuning", "ptalign.v1.Library"} <= names
        break


@pytest.mark.parametrize("role", ROLES)
async def test_roles_open_what_their_rules_say_and_nothing_else(tmp_path: Path, role: str) -> None:
    auth = AuthSettings(tokens_on_loopback=True)
    async with serving(tmp_path / "state", auth=auth) as calls:
        token = Tokens(tmp_path / "state" / "tokens.json").add("who", "default", [role])
        metadata = (("authorization", f"Bearer {token}"),)
        for method in methods():
            call = calls.channel.unary_unary(method)
            if method.endswith("/ImportSet"):
                call = calls.channel.stream_unary(method)
            streams = method.endswith(("WatchOperation", "Chat", "StreamRecords", "Download"))
            if streams:
                call = calls.channel.unary_stream(method)
            sent = call(iter([]) if method.endswith("/ImportSet") else b"", metadata=metadata)
            code = grpc.StatusCode.OK
            try:
                if streams:
                    async for _ in sent:
                        break
                else:
                    await asyncio.wait_for(sent, 5)
            except grpc.aio.AioRpcError as error:
                code = error.code()
            allowed = role in RULES[method]
            assert (code == grpc.StatusCode.PERMISSION_DENIED) is not allowed, (method, code)


async def test_no_token_or_a_wrong_one_is_unauthenticated(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", auth=AuthSettings(tokens_on_loopback=True)) as calls:
        request = lib.GetCatalogueRequest()
        code, text, _, _ = await refused(calls.library.GetCatalogue(request))
        assert code == grpc.StatusCode.UNAUTHENTICATED
        assert "tokens add" in text
        wrong = (("authorization", "Bearer pta_wrong"),)
        code, _, _, _ = await refused(calls.library.GetCatalogue(request, metadata=wrong))
        assert code == grpc.StatusCode.UNAUTHENTICATED


def test_tokens_of_a_mounted_secret_are_read_again(tmp_path: Path) -> None:
    """Kubernetes swaps the link to the folder that the file lies in."""
    for version in ("old", "new"):
        (tmp_path / version).mkdir()
    tokens = [
        Tokens(tmp_path / v / "tokens.json").add(v, "t", ["engineer"]) for v in ("old", "new")
    ]
    link = tmp_path / "secret"
    link.symlink_to("old")
    gate = Gate(
        Settings(
            state=tmp_path / "state",
            tokens_file=link / "tokens.json",
            auth=AuthSettings(tokens_on_loopback=True),
        )
    )
    method = "/ptalign.v1.Library/GetCatalogue"
    gate.admit(method, [("authorization", f"Bearer {tokens[0]}")])
    link.unlink()
    link.symlink_to("new")
    gate.admit(method, [("authorization", f"Bearer {tokens[1]}")])
    with pytest.raises(Unauthenticated):
        gate.admit(method, [("authorization", f"Bearer {tokens[0]}")])


def test_tokens_stay_in_use_while_their_file_cannot_be_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A torn file was an internal error of every call, without a word in the log."""
    file = tmp_path / "tokens.json"
    tokens = Tokens(file)
    token = tokens.add("alice", "red", ["engineer"])
    whole = file.read_text()
    assert tokens.find(token).tenant == "red"
    for torn in ("[{", '[{"name": "alice"}]', "{}", "\udcff"):
        caplog.clear()
        file.write_bytes(torn.encode("utf-8", "surrogateescape"))
        assert [tokens.find(token).name for _ in range(3)] == ["alice"] * 3
        [said] = [record.getMessage() for record in caplog.records]
        assert str(file) in said
        with pytest.raises(DataDamaged, match=r"tokens\.json"):
            tokens.add("bob", "red", ["engineer"])
    file.unlink()
    file.mkdir()  # what root cannot read either
    assert tokens.find(token).name == "alice"
    file.rmdir()
    file.write_text(whole)
    other = Tokens(file).add("bob", "red", ["engineer"])
    assert tokens.find(other).name == "bob"


def test_a_removed_token_does_not_outlive_a_file_that_is_away_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The file that could not be read then counted as read, until it changed once more."""
    tokens = Tokens(tmp_path / "tokens.json")
    token = tokens.add("mallory", "red", ["engineer"])
    assert tokens.find(token).name == "mallory"
    Tokens(tmp_path / "tokens.json").remove("mallory", "red")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda _: (_ for _ in ()).throw(OSError(24, "too many")))
        assert [tokens.find(token).name for _ in range(3)] == ["mallory"] * 3
    assert len(caplog.records) == 1
    with pytest.raises(Unauthenticated):
        tokens.find(token)


def test_tenants_name_their_tokens_as_they_like(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / "tokens.json")
    red, blue, again = (
        tokens.add("alice", tenant, ["engineer"]) for tenant in ("red", "blue", "blue")
    )
    assert tokens.find(red).tenant == "red"
    assert tokens.find(again).tenant == "blue"
    with pytest.raises(Unauthenticated):
        tokens.find(blue)
    assert not tokens.remove("alice", "default")
    assert tokens.remove("alice", "red")
    with pytest.raises(Unauthenticated):
        tokens.find(red)
    assert tokens.find(again).tenant == "blue"


def test_changes_of_the_tokens_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reads the file and writes it anew: one that reads in between would be undone."""
    seen: list[str] = []

    def watch(name: str) -> Callable[..., Any]:
        act = getattr(Tokens, name)

        def watched(*arguments: Any) -> Any:
            folder = os.open(tmp_path, os.O_RDONLY)
            try:
                with pytest.raises(BlockingIOError):
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            finally:
                os.close(folder)
            seen.append(name)
            return act(*arguments)

        return watched

    for name in ("entries", "_write"):
        monkeypatch.setattr(Tokens, name, watch(name))
    tokens = Tokens(tmp_path / "tokens.json")
    tokens.add("alice", "t", ["engineer"])
    assert tokens.remove("alice", "t")
    assert seen == ["entries", "_write"] * 2


async def test_the_tenant_comes_from_the_token(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", auth=AuthSettings(tokens_on_loopback=True)) as calls:
        tokens = Tokens(tmp_path / "state" / "tokens.json")
        header = {
            tenant: (("authorization", f"Bearer {tokens.add(tenant, tenant, ['engineer'])}"),)
            for tenant in ("red", "blue")
        }
        made = await calls.tuning.GenerateInstructions(generate(), metadata=header["red"])
        mine = await calls.operations.GetOperation(
            lro.GetOperationRequest(name=made.name), metadata=header["red"]
        )
        assert mine.name == made.name
        _, _, reason, _ = await refused(
            calls.operations.GetOperation(
                lro.GetOperationRequest(name=made.name), metadata=header["blue"]
            )
        )
        assert reason == "RESOURCE_NOT_FOUND"


PACK = """
name: mine
never_synthesize: [purple lawnmower]
domains:
  - domain: work
    topics: [{id: slow-print, title: the printer is slow}]
"""


async def test_a_broken_policy_file_is_told_to_the_log_and_to_its_own_callers_only(
    calls: Calls, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "state" / "policies"
    (folder / "mine.yaml").write_text(PACK)
    (folder / "torn.yaml").write_text("name: torn\nnever_synthesize: [green teapot]\n")
    (folder / "yet.yaml").write_text("name: [")
    (folder / "lost.yaml").symlink_to(tmp_path / "nowhere")
    found = await calls.library.GetCatalogue(lib.GetCatalogueRequest())
    assert {"mine", POLICY} <= {entry.name for entry in found.policies}
    assert not {"torn", "yet", "lost"} & {entry.name for entry in found.policies}
    await calls.tuning.GenerateInstructions(generate(policy="mine"))
    for name, words in (("torn", "domains: Field required"), ("yet", "line 1"), ("lost", "")):
        _, text, _, violations = await refused(
            calls.tuning.GenerateInstructions(generate(policy=name))
        )
        assert f"file {name}.yaml cannot be used" in violations["policy"]
        assert words in text
        assert str(tmp_path) not in text
        told = [r for r in caplog.records if f"{name}.yaml" in r.getMessage()]
        assert len(told) == 1
    (folder / "torn.yaml").write_text(PACK.replace("mine", "torn"))
    await calls.tuning.GenerateInstructions(generate(policy="torn"))


async def test_inline_policies_wait_until_a_broken_policy_file_is_corrected(
    calls: Calls, tmp_path: Path
) -> None:
    file = tmp_path / "state" / "policies" / "torn.yaml"
    file.write_text("name: torn\nnever_synthesize: [green teapot]\n")
    domain = next(t.domain for t in load_policy(POLICY).topics if t.sides == "both")
    topic = res.TopicSpec(domain=domain, title="a kettle", sides="both")
    request = generate(policy_spec=res.PolicySpec(topics=[topic]))
    _, text, _, _ = await refused(calls.tuning.GenerateInstructions(request))
    assert "torn.yaml is broken" in text
    file.unlink()
    await calls.tuning.GenerateInstructions(request)


async def test_catalogue_names_everything(calls: Calls) -> None:
    found = await calls.library.GetCatalogue(lib.GetCatalogueRequest())
    assert [m.name for m in found.models] == [MODEL, OTHER]
    assert POLICY in [p.name for p in found.policies]
    for entries in (found.suites, found.judges, found.gates, found.profiles):
        assert entries


async def test_resolve_adapter_says_not_found_until_one_passed(calls: Calls) -> None:
    request = lib.ResolveAdapterRequest(model=MODEL, policy=POLICY)
    _, _, reason, _ = await refused(calls.library.ResolveAdapter(request))
    assert reason == "RESOURCE_NOT_FOUND"
    names = []
    for verdict in ("PASS", "PASS", "FAIL"):
        adapter, evaluation = f"adapters/{new_id()}", f"evaluations/{new_id()}"
        for name, message, collection, judged in (
            (adapter, res.Adapter(), "adapters", ""),
            (evaluation, res.Evaluation(), "evaluations", verdict),
        ):
            message.meta.name = name
            row = Resource(
                name=name, collection=collection, tenant="default", model=MODEL, policy=POLICY,
                verdict=judged, adapter=adapter if judged else "", partial=False, purged=False,
                content="", body=message.SerializeToString(), created=1.0,
            )  # fmt: skip
            calls.store.write(lambda c, r=row: calls.store.resources.insert(c, r)).result()
        evaluated = evaluation.partition("/")[2]
        _, wrapped = calls.store.vault.fresh_key(evaluated)
        calls.store.write(
            lambda c, i=evaluated, w=wrapped: calls.store.keys.insert(c, i, w)
        ).result()
        calls.store.sets.keep_terms(evaluated, Terms(gate=GateConfig()))
        names.append((adapter, evaluation))
        await asyncio.sleep(0.002)
    found = await calls.library.ResolveAdapter(request)
    assert (found.adapter.meta.name, found.evaluation) == names[1]


def test_an_internal_error_has_an_opaque_id() -> None:
    status = status_of(ValueError("text of a record"))
    assert "record" not in status.message
    assert status.code == grpc.StatusCode.INTERNAL.value[0]


def test_identity_requires_roles() -> None:
    who = Identity("a", "default", frozenset({"engineer"}))
    with pytest.raises(Exception, match="needs the role reader"):
        who.require("reader", "to look")
