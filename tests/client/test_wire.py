"""Nouns and messages say the same: a field added to one side only fails here."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime

import pytest
from google.longrunning import operations_pb2

from ptalign_client import Budget, GateSpec, PolicySpec, Resource, State, TopicSpec, nouns, wire
from ptalign_proto.v1 import resources_pb2, safety_tuning_pb2


@pytest.mark.parametrize("noun", sorted(wire.MESSAGES, key=lambda n: n.__name__))
def test_noun_has_every_field_of_its_message_and_no_other(noun: type) -> None:
    wired = {f.name for f in wire.MESSAGES[noun].DESCRIPTOR.fields}
    if issubclass(noun, Resource):
        wired = wired - {"meta"} | {f.name for f in resources_pb2.ResourceMeta.DESCRIPTOR.fields}
    own = {f.name for f in fields(noun)}
    if noun is nouns.Progress:
        own -= {"values", "suite"}  # of the verbs' own metadata
    assert own == wired


def test_states_verdicts_and_methods_are_those_of_the_wire() -> None:
    def words(enum: object, prefix: str) -> set[str]:
        return {v.removeprefix(prefix).lower() for v in list(enum.keys())} - {"unspecified"}  # type: ignore[attr-defined]

    states = words(safety_tuning_pb2.OperationState, "OPERATION_STATE_")
    assert {str(s) for s in State} - {""} == states
    assert set(nouns.Verdict.__args__) - {""} == words(resources_pb2.Verdict, "VERDICT_")
    assert set(nouns.Method.__args__) == words(resources_pb2.Method, "METHOD_")


def test_resource_carries_its_meta_flat_with_times_in_utc() -> None:
    message = resources_pb2.Adapter(method="METHOD_MLE", guards={"benign_kl": "ok"})
    message.meta.name = "adapters/7"
    message.meta.parents.append("pairSets/1@sha256:ab")
    message.meta.create_time.FromDatetime(datetime(2026, 1, 2, 3, 4, tzinfo=UTC))
    message.files.add(part="a", size=3, sha256="00")

    adapter = wire.to_noun(nouns.Adapter, message)

    assert (adapter.name, adapter.method) == ("adapters/7", "mle")
    assert adapter.create_time == datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    assert adapter.parents == ("pairSets/1@sha256:ab",)
    assert adapter.files == (nouns.FileInfo("a", 3, "00"),)
    assert adapter.guards == {"benign_kl": "ok"}


def test_missing_optional_is_none_and_zero_is_kept() -> None:
    assert not wire.to_message(Budget(steps=3)).HasField("learning_rate")
    gate = wire.to_message(GateSpec(max_benign_kl=0.0))
    assert gate.HasField("max_benign_kl")
    assert not gate.HasField("max_unscored")
    assert wire.to_noun(GateSpec, gate) == GateSpec(max_benign_kl=0.0)


def test_nested_nouns_travel_both_ways() -> None:
    policy = PolicySpec(
        title="Tone",
        topics=(
            TopicSpec(
                domain="tone",
                title="Work",
                sides="both",
                examples=("a", "b"),
                twin_examples=("c", ""),
            ),
        ),
        protected_words=("not",),
    )
    assert wire.to_noun(PolicySpec, wire.to_message(policy)) == policy
    untitled = PolicySpec(topics=policy.topics)  # the service has no use for a title
    assert wire.to_noun(PolicySpec, wire.to_message(untitled)) == untitled


def test_names_in_a_request_are_those_of_resources_wherever_they_stand() -> None:
    request = safety_tuning_pb2.EvaluateRequest(
        target={"model": "tiny", "adapter": "adapters/1"},
        also=[{"adapter": "adapters/2"}, {"adapter": "adapters/1"}],
        pair_set="pairSets/3",
        suites=["attack"],
    )
    assert set(wire.names_in(request)) == {"adapters/1", "adapters/2", "pairSets/3"}
    asks = safety_tuning_pb2.GenerateInstructionsRequest(seeds=["see adapters/1 and more"])
    assert wire.names_in(asks) == ()


def test_progress_of_align_brings_its_losses() -> None:
    operation = operations_pb2.Operation(name="operations/1")
    progress = safety_tuning_pb2.OperationProgress(
        kind="Align", state="OPERATION_STATE_RUNNING", done=3, total=24, counts={"accepted": 2}
    )
    operation.metadata.Pack(
        safety_tuning_pb2.AlignMetadata(progress=progress, loss_ut=0.5, tokens_ut=9)
    )

    found = wire.to_progress(operation)

    assert (found.operation, found.state, found.done) == ("operations/1", State.RUNNING, 3)
    assert found.values["loss_ut"] == 0.5
    assert found.values["tokens_ut"] == 9
    assert found.eta_seconds is None
    assert found.counts == {"accepted": 2}


def test_operation_without_metadata_of_ours_still_has_a_progress() -> None:
    running = operations_pb2.Operation(name="operations/1")
    assert wire.to_progress(running).state is State.UNSPECIFIED
    failed = operations_pb2.Operation(name="operations/1", done=True)
    failed.error.code = 13
    assert wire.to_progress(failed).state is State.FAILED
