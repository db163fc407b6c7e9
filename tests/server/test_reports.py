"""What a report says of the work behind an adapter: each minute of an annotator once."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from ptalign.nouns import Evaluation, TargetResult
from ptalign.report.figures import COLOURS
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server.errors import NotFound
from ptalign_server.gateway.verbs import MAX_ALSO
from ptalign_server.store.resources import Resource
from ptalign_server.worker.reports import (
    _apart,
    _command,
    _command_lacks,
    _counts,
    _imported,
    _own_set,
    _same_pairs,
    _stages,
    _unlearned_before,
)

RESULT = TargetResult(label="baseline")
EVALUATION = Evaluation(results=(RESULT, RESULT), verdict="PASS")


class World:
    """A job whose tenant has the resources that were added, in the order they were."""

    def __init__(self) -> None:
        self.rows: dict[str, Resource] = {}
        self.request = pb.EvaluateRequest(target=pb.Target(model="m", adapter="adapters/a"))
        self.operation = SimpleNamespace(identity="bob", tenant="default")
        self.calls: dict[str, bytes] = {}
        key = SimpleNamespace(open=lambda _, sealed: sealed)
        store = SimpleNamespace(
            operations=SimpleNamespace(get=self.call), keys=SimpleNamespace(get=lambda _: key)
        )
        self.room = SimpleNamespace(store=store)

    def call(self, operation: str, tenant: str) -> SimpleNamespace:
        if operation not in self.calls:
            raise NotFound
        return SimpleNamespace(id=operation, request=self.calls[operation])

    def adapter(self, name: str, *parents: str, **call: Any) -> None:
        """One trained by an Align with these fields."""
        request = pb.AlignRequest(**call)
        message = res.Adapter(method=request.method or res.METHOD_PT_ALIGN)
        message.meta.operation = f"operations/{name}"
        self.calls[name] = request.SerializeToString()
        self.add(f"adapters/{name}", message, *parents)

    def resource(self, name: str) -> Resource:
        if name not in self.rows:
            raise NotFound
        return self.rows[name]

    def add(self, name: str, message: Any, *parents: str, policy: str = "tone") -> None:
        message.meta.parents.extend(f"{parent}@sha256:x" for parent in parents)
        self.rows[name] = Resource(
            name=name,
            collection=name.partition("/")[0],
            tenant="default",
            model="m",
            policy=policy,
            verdict="",
            adapter="",
            partial=False,
            purged=False,
            content="sha256:x",
            body=message.SerializeToString(),
            created=time.time() + len(self.rows),
        )

    def marks(
        self, name: str, minutes: float, *parents: str, policy: str = "tone", digest: str = ""
    ) -> None:
        message = res.AnnotationSet(count=3, annotator_minutes=minutes)
        message.meta.policy_digest = digest
        self.add(f"annotationSets/{name}", message, *parents, policy=policy)

    def pairs(self, name: str, *parents: str) -> None:
        self.add(f"pairSets/{name}", res.PairSet(), *parents)

    def minutes(self, pair_set: str) -> list[float]:
        """Annotator minutes of the stages behind an adapter trained on the set, oldest first."""
        self.add("adapters/a", res.Adapter(), pair_set)
        return [s.annotator_minutes for s in _stages(self, EVALUATION)]  # type: ignore[arg-type]


def test_minutes_of_one_set_of_marks_stand_at_the_pairs_made_with_it() -> None:
    """Pairs, annotation, refinement: both pair sets had all minutes, so the sum was twice them."""
    world = World()
    world.pairs("first")
    world.marks("page", 12.0, "pairSets/first")
    world.pairs("second", "annotationSets/page", "pairSets/first")
    assert world.minutes("pairSets/second") == [0.0, 12.0, 0.0, 0.0]


def test_stages_name_who_asked_for_them() -> None:
    world = World()
    world.add("pairSets/first", res.PairSet(meta=res.ResourceMeta(made_by="alice")))
    world.add("adapters/a", res.Adapter(), "pairSets/first")
    stages = _stages(world, EVALUATION)  # type: ignore[arg-type]
    assert [stage.made_by for stage in stages] == ["alice", "", "bob"]


def test_compute_is_what_each_result_says_of_all_its_attempts() -> None:
    """It was how long the newest operation ran: of a training that was resumed its last attempt,
    and 0 once the operation was deleted."""
    world = World()
    world.add("instructionSets/i", res.InstructionSet(stats={"seconds": 7.0}))
    world.pairs("brought")
    world.add(
        "pairSets/joined",
        res.PairSet(stats={"seconds": 30.5}),
        "pairSets/brought",
        "instructionSets/i",
    )
    world.add("adapters/a", res.Adapter(train_seconds=90.0), "pairSets/joined")
    spent = EVALUATION.model_copy(update={"seconds": {"generate": 5.0, "earlier attempts": 2.0}})
    found = [(stage.name, stage.seconds) for stage in _stages(world, spent)]  # type: ignore[arg-type]
    assert found == [
        ("GenerateInstructions", 7.0),
        ("SynthesizePairs", None),
        ("SynthesizePairs", 30.5),
        ("Align", 90.0),
        ("Evaluate", 7.0),
    ]


def test_counts_are_those_of_the_adapters_own_set_though_its_text_is_gone() -> None:
    """After retention the report said that nobody had marked anything, or counted another set."""
    world = World()
    rejected, stats = (
        {"blocked": 1},
        {"held_out_pairs": 5.0, "held_out_twins": 6.0, "held_out": 8.0},
    )
    own = res.PairSet(
        pairs=60, positive_only=4, twins=50, anchors=40, annotations_used=24, rounds=2,
        rejected=rejected, stats=stats,
    )  # fmt: skip
    world.add("pairSets/own", own)
    world.add("pairSets/named", res.PairSet(pairs=9, annotations_used=3))
    world.rows["pairSets/own"] = replace(world.rows["pairSets/own"], purged=True)
    world.add("adapters/a", res.Adapter(), "pairSets/own")
    world.request.pair_set = "pairSets/named"
    found = _own_set(world)  # type: ignore[arg-type]
    assert found.annotations_used == 24
    counts = _counts(found)
    assert (counts.pairs, counts.polarised, counts.twins, counts.anchors) == (64, 60, 50, 40)
    assert (counts.rounds, counts.rejected) == (2, rejected)
    assert (counts.held_out, counts.held_out_twins, counts.held_out_anchors) == (5, 6, 8)
    del world.rows["pairSets/own"]
    assert _counts(_own_set(world)).pairs == 0  # type: ignore[arg-type]
    world.request.target.adapter = ""
    assert _counts(_own_set(world)).pairs == 9  # type: ignore[arg-type]


def test_imported_sets_are_those_that_nothing_here_made() -> None:
    world = World()
    world.pairs("brought")
    world.add("pairSets/made", res.PairSet(meta=res.ResourceMeta(operation="operations/made")))
    world.pairs("joined", "pairSets/brought", "pairSets/made")
    world.add("adapters/a", res.Adapter(), "pairSets/joined")
    assert list(_imported(world)) == ["pairSets/brought"]  # type: ignore[arg-type]


def test_a_later_hand_over_adds_only_what_came_since() -> None:
    """The page hands over all marks each time: their minutes were counted in every round."""
    world = World()
    world.pairs("first")
    world.marks("early", 12.0, "pairSets/first")
    world.pairs("second", "annotationSets/early", "pairSets/first")
    world.marks("late", 20.0, "pairSets/second")
    world.pairs("third", "annotationSets/late", "pairSets/second")
    assert world.minutes("pairSets/third") == [0.0, 12.0, 8.0, 0.0, 0.0]


def test_a_set_used_twice_counts_once_and_sets_of_callers_each_for_themselves() -> None:
    world = World()
    world.marks("one", 5.0)
    world.marks("two", 7.0)
    world.pairs("first", "annotationSets/one")
    world.pairs("second", "annotationSets/one", "pairSets/first")
    world.pairs("third", "annotationSets/two", "pairSets/second")
    assert world.minutes("pairSets/third") == [5.0, 0.0, 7.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"policy": "tone"}, {"policy": "other"}),
        ({"policy": "inline", "digest": "sha256:a"}, {"policy": "inline", "digest": "sha256:b"}),
    ],
)
def test_marks_of_another_policy_are_other_work(one: Any, other: Any) -> None:
    world = World()
    world.pairs("tone")
    world.pairs("fraud")
    world.marks("tone", 5.0, "pairSets/tone", **one)
    world.marks("fraud", 4.0, "pairSets/fraud", **other)
    world.pairs("refined", "annotationSets/tone", "pairSets/tone")
    world.pairs("again", "annotationSets/fraud", "pairSets/fraud")
    world.pairs("merged", "pairSets/refined", "pairSets/again")
    assert sum(world.minutes("pairSets/merged")) == 9.0


def test_adapters_of_the_same_pairs_are_those_made_from_the_same_things() -> None:
    world = World()
    for name in ("one", "two"):
        world.pairs(name)
    world.add("adapters/a", res.Adapter(), "pairSets/one")
    world.add("adapters/mle", res.Adapter(), "pairSets/one")
    world.add("adapters/old", res.Adapter(), "pairSets/two")
    world.add("adapters/on", res.Adapter(), "pairSets/one", "adapters/old")
    names = {name: f"adapters/{name}" for name in ("a", "mle", "old", "on")}
    assert _same_pairs(world, names) == ("a", "mle")  # type: ignore[arg-type]
    world.request.target.adapter = ""
    assert _same_pairs(world, names) == ()  # type: ignore[arg-type]


def test_settings_that_two_trainings_differ_in_are_named() -> None:
    """Whatever the seed and the rank, the report said that unlearning made the difference."""
    world = World()
    world.adapter("a", ut_weight=7.0, lora=pb.Lora(rank=16), budget=pb.Budget(max_benign_kl=1.0))
    mle: dict[str, Any] = {"method": res.METHOD_MLE}
    world.adapter("like", **mle)
    world.adapter("other", **mle, seed=1, lora=pb.Lora(rank=8), budget=pb.Budget(pairs_per_step=4))
    apart = {name: _apart(world, f"adapters/{name}") for name in ("a", "like", "other")}  # type: ignore[arg-type]
    assert apart == {
        "a": (),
        "like": (),
        "other": (
            "seed (1 against 0)",
            "pairs a step (4 against 8)",
            "rank (8 against 16)",
            "alpha (16 against 32)",
        ),
    }
    del world.calls["like"]
    assert "not known any more" in _apart(world, "adapters/like")[0]  # type: ignore[arg-type]


def test_an_adapter_that_goes_on_from_an_unlearned_one_is_told_from_others() -> None:
    world = World()
    for method, before in ((res.METHOD_MLE, False), (res.METHOD_NPO, True)):
        world.adapter("first", method=method)
        world.adapter("second", "adapters/first", method=res.METHOD_MLE)
        world.adapter("a", "adapters/second")
        assert _unlearned_before(world) is before  # type: ignore[arg-type]


def test_the_command_has_all_of_the_call_that_it_can_say() -> None:
    """Only the adapters, samples and the seed were there: it gave other numbers."""
    world = World()
    also = [pb.Target(model="m", adapter="adapters/b"), pb.Target(model="m")]
    world.request = pb.EvaluateRequest(
        target=pb.Target(model="m", adapter="adapters/a"),
        also=also,
        suites=["attack", "catqa"],
        judges=["my-guard", "refusal@1"],
        gate="strict",
        samples=60,
        pair_set="pairSets/p",
        held_out="instructionSets/i",
        seed=3,
    )
    assert _command(world) == (  # type: ignore[arg-type]
        "ptalign evaluate adapters/a -m m --also adapters/b --also '' --suite attack "
        "--suite catqa --judge my-guard --judge refusal@1 --gate strict --samples 60 "
        "--pair-set pairSets/p --held-out instructionSets/i --seed 3"
    )
    assert _command_lacks(world) == ()  # type: ignore[arg-type]


def test_what_the_command_cannot_say_is_told() -> None:
    world = World()
    world.request.baseline.adapter = "adapters/old"
    world.request.gate_spec.CopyFrom(pb.GateSpec(max_benign_kl=0.5, min_samples=40))
    assert _command(world) == "ptalign evaluate adapters/a -m m"  # type: ignore[arg-type]
    assert _command_lacks(world) == (  # type: ignore[arg-type]
        "the baseline adapters/old",
        "a gate of its own (max_benign_kl 0.5, min_samples 40)",
    )


def test_every_target_that_a_call_may_name_has_a_colour_of_its_own() -> None:
    """Baseline, target and those beside: with six colours the report failed from the seventh on."""
    assert len(set(COLOURS)) >= 2 + MAX_ALSO
