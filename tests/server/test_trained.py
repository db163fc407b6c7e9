"""What an evaluation keeps away from, and the gauges that outlive a worker."""

from __future__ import annotations

import math
from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import page_world as world
import pytest

from ptalign.nouns import Anchor, Evaluation, ModelSpec, Pair, PairSet, Policy, TargetResult
from ptalign.stats import wilson
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server.catalogue import Catalogue
from ptalign_server.errors import NotFound, SetPurged
from ptalign_server.settings import Settings
from ptalign_server.store.resources import Resource
from ptalign_server.worker.job import Job
from ptalign_server.worker.jobs import evaluate as evaluating
from ptalign_server.worker.jobs.evaluate import _publish, _targets, publish_newest, trained_of
from ptalign_server.worker.trained import taught as taught_by


def row(name: str, message: Any, *, created: float = 0.0) -> Resource:
    return Resource(
        name=name,
        collection=name.partition("/")[0],
        tenant="default",
        model="m",
        policy="tone",
        verdict="",
        adapter="",
        partial=False,
        purged=False,
        content="sha256:0",
        body=message.SerializeToString(),
        created=created,
    )


class World:
    """A job over dictionaries: an adapter continued from another, each with its pair set."""

    def __init__(self, **request: Any) -> None:
        self.request = pb.EvaluateRequest(**request)
        self.rows: dict[str, Resource] = {}
        self.nouns: dict[str, PairSet] = {}
        self.pairs("base", judges=["base-judge@1"])
        self.pairs("own", judges=["own-judge@1"])
        self.pairs("called", judges=["called-judge@1"])
        self.pairs("beside", judges=["own-judge@1"])
        self.adapter("first", "pairSets/base@sha256:0")
        self.adapter("second", "pairSets/own@sha256:0", "adapters/first@sha256:0")
        self.adapter("other", "pairSets/beside@sha256:0")

    def pairs(self, name: str, *, judges: list[str]) -> None:
        message = res.PairSet()
        message.meta.judges.extend(judges)
        self.rows[f"pairSets/{name}"] = row(f"pairSets/{name}", message)
        pair = Pair(id=name, instruction_id=name, instruction=name, topic="t", positive="p")
        self.nouns[f"pairSets/{name}"] = PairSet(pairs=(pair,), judge_ids=tuple(judges))

    def adapter(self, name: str, *parents: str) -> None:
        message = res.Adapter()
        message.meta.parents.extend(parents)
        self.rows[f"adapters/{name}"] = row(f"adapters/{name}", message)

    def resource(self, name: str) -> Resource:
        if name not in self.rows:
            raise NotFound
        return self.rows[name]

    def load(self, name: str, kind: type) -> PairSet:
        if name not in self.nouns:
            raise SetPurged("gone")
        return self.nouns[name]

    def texts(self) -> set[str]:
        seen = trained_of(self).seen  # type: ignore[arg-type]
        return {p.instruction for p in seen.pairs} if seen else set()


SECOND = pb.Target(model="m", adapter="adapters/second")


def test_the_sets_of_the_whole_lineage_are_kept_away_from() -> None:
    world = World(target=SECOND)
    found = trained_of(world)  # type: ignore[arg-type]
    assert world.texts() == {"own", "base"}
    assert found.judge_ids == ("base-judge@1", "own-judge@1")
    assert found.name == "pairSets/own"
    assert found.with_all_judges is not None
    assert found.with_all_judges.judge_ids == found.judge_ids
    assert found.with_all_judges.pairs == world.nouns["pairSets/own"].pairs


def test_what_cannot_be_kept_away_from_is_named() -> None:
    """A purged set of a parent adapter was left out in silence."""
    world = World(target=SECOND, also=[pb.Target(model="m", adapter="adapters/other")])
    assert trained_of(world).lost == ()  # type: ignore[arg-type]
    del world.nouns["pairSets/base"], world.nouns["pairSets/beside"]
    assert world.texts() == {"own"}
    assert trained_of(world).lost == ("pairSets/beside", "pairSets/base")  # type: ignore[arg-type]


def test_a_judge_that_weighed_tokens_must_not_grade_either() -> None:
    """Imported pairs name no judge: the one that weighed their tokens could release its adapter."""
    world = World(target=SECOND)
    world.pairs("base", judges=[])
    world.pairs("own", judges=[])
    message = res.Adapter.FromString(world.rows["adapters/first"].body)
    message.meta.judges.append("tone-valence@1")
    world.rows["adapters/first"] = row("adapters/first", message)
    found = trained_of(world)  # type: ignore[arg-type]
    assert found.judge_ids == ("tone-valence@1",)
    assert found.with_all_judges is not None
    assert found.with_all_judges.judge_ids == found.judge_ids


def held_out_of(world: World) -> list[str]:
    found = trained_of(world).pairs  # type: ignore[arg-type]
    assert found is not None
    return [p.id for p in found.pairs if p.held_out]


@pytest.mark.parametrize("trainer", ["parent", "beside", "no one"])
def test_held_out_is_what_no_target_was_trained_on(trainer: str) -> None:
    """A small set holds nothing out, and one of more instructions marked what it had taught."""
    beside = pb.Target(model="m", adapter="adapters/other")
    world = World(target=SECOND, also=[beside] if trainer == "beside" else [])
    (own,) = world.nouns["pairSets/own"].pairs
    marks = [
        own.model_copy(update={"id": i, "instruction": i, "held_out": True})
        for i in ("twice", "once")
    ]
    own_set = PairSet(pairs=(own, *marks))
    world.nouns["pairSets/own"] = own_set
    earlier = {"parent": "base", "beside": "beside", "no one": "called"}[trainer]
    taught = own.model_copy(update={"id": "twice", "instruction": "twice"})
    world.nouns[f"pairSets/{earlier}"] = PairSet(pairs=(taught, marks[1]))
    kept = ["twice", "once"] if trainer == "no one" else ["once"]
    assert held_out_of(world) == kept
    known = taught_by(world, "adapters/second", own_set)  # type: ignore[arg-type]
    assert known == (["twice"] if trainer == "parent" else [])


def test_what_was_taught_is_known_by_its_words_and_anchors_are_too() -> None:
    """An import gives requests other ids, and no anchor of a parent's was looked for: benign KL was
    read on what the adapter had been fitted to, and called held out."""
    world = World(target=SECOND)
    twin = Pair(
        id="1", kind="twin", instruction_id="1", instruction="Sing?", topic="t", positive="p"
    )
    anchor = Anchor(id="2", instruction="How long is a mile?", answer="Far.")
    world.nouns["pairSets/base"] = PairSet(pairs=(twin,), anchors=(anchor,))
    ids = ("a", "b", "c")
    again = [twin.model_copy(update={"id": i, "held_out": True}) for i in ids]
    again[1] = again[1].model_copy(update={"kind": "pair"})  # the same words, to be declined
    again[2] = again[2].model_copy(update={"instruction": "Dance?"})
    anchors = [anchor.model_copy(update={"id": i, "held_out": True}) for i in ("d", "e")]
    anchors[0] = anchors[0].model_copy(update={"instruction": "how long is a MILE?"})
    anchors[1] = anchors[1].model_copy(update={"instruction": "How long is a yard?"})
    own = PairSet(pairs=tuple(again), anchors=tuple(anchors))
    world.nouns["pairSets/own"] = own
    assert taught_by(world, "adapters/first", own) == ["a", "d"]  # type: ignore[arg-type]
    assert held_out_of(world) == ["b", "c"]
    found = trained_of(world).pairs  # type: ignore[arg-type]
    assert found is not None
    assert [a.id for a in found.anchors if a.held_out] == ["e"]


def test_a_set_that_the_call_names_only_adds() -> None:
    world = World(target=SECOND, pair_set="pairSets/called")
    found = trained_of(world)  # type: ignore[arg-type]
    assert world.texts() == {"own", "base", "called"}
    assert "called-judge@1" in found.judge_ids
    assert found.name == "pairSets/own"


def test_targets_beside_are_kept_away_from_too() -> None:
    beside = pb.Target(model="m", adapter="adapters/other")
    assert World(target=SECOND, also=[beside]).texts() == {"own", "base", "beside"}
    assert World(target=SECOND, baseline=beside).texts() == {"own", "base", "beside"}


def test_a_label_of_the_call_stands_and_numbered_ones_give_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A number met a label that the call gave: refused hours later, as a field that it lacks."""
    monkeypatch.setattr(evaluating, "served_adapter", lambda *_: nullcontext(""))
    bare, named = pb.Target(), pb.Target(label="baseline")
    request = pb.EvaluateRequest(target=pb.Target(label="base-2"), also=[bare, bare, bare, named])
    job: Any = SimpleNamespace(request=request, room=SimpleNamespace(store=None))
    pool: Any = None
    with ExitStack() as adapters:
        labels = [target.label for target in _targets(job, pool, adapters)]
    assert labels == ["baseline-2", "base-2", "base", "base-3", "base-4", "baseline"]


@pytest.mark.parametrize("gone", ["", "adapters/second", "adapters/other", "instructionSets/1"])
def test_what_an_evaluation_works_with_is_read_before_it_waits(
    gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged adapter was found after the wait for the device and the engine's start."""
    beside = pb.Target(model="m", adapter="adapters/other")
    job: Any = World(target=SECOND, also=[beside, SECOND], held_out="instructionSets/1")
    job.room = SimpleNamespace(store=None)
    job.nouns |= dict.fromkeys(("adapters/second", "adapters/other", "instructionSets/1"))
    job.nouns.pop(gone, None)
    checked: list[str] = []
    monkeypatch.setattr(evaluating, "marked_for", lambda *_: ())
    monkeypatch.setattr(evaluating, "check_adapter", lambda _, name: checked.append(name))
    with pytest.raises(SetPurged) if gone else nullcontext():
        evaluating.validate(job)
    if not gone:
        assert checked == ["adapters/second", "adapters/other"]


def test_a_purged_set_still_names_its_judges() -> None:
    world = World(target=SECOND)
    del world.nouns["pairSets/own"], world.nouns["pairSets/base"]
    found = trained_of(world)  # type: ignore[arg-type]
    assert (found.name, found.pairs, found.seen) == ("", None, None)
    assert found.with_all_judges is not None
    assert found.with_all_judges.judge_ids == ("base-judge@1", "own-judge@1")


@pytest.mark.parametrize("named", ["", "pairSets/called"])
def test_the_bare_model_has_only_what_the_call_names(named: str) -> None:
    found = trained_of(World(target=pb.Target(model="m"), pair_set=named))  # type: ignore[arg-type]
    assert found.name == named
    assert (found.with_all_judges is None) == (not named)


def test_an_evaluation_of_an_adapter_whose_sets_are_purged_keeps_its_policy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It had none: `list evaluations -p` and the report left it out."""
    job: Any = World(target=SECOND)
    job.nouns.clear()
    message = res.Adapter.FromString(job.rows["adapters/second"].body)
    message.meta.policy, message.meta.policy_digest = "tone", "sha256:p"
    job.rows["adapters/second"] = row("adapters/second", message)
    result = TargetResult(label="base")
    found = Evaluation(results=(result, result), verdict="INCONCLUSIVE")
    nothing = SimpleNamespace(engine=lambda *_: None)
    job.room = SimpleNamespace(
        catalogue=Catalogue(Settings(state=tmp_path)),
        settings=Settings(state=tmp_path),
        pools=SimpleNamespace(use=lambda *_: nullcontext(nothing)),
        metrics=SimpleNamespace(evaluation_rate=Gauge()),
    )
    job.model = job.keep_model = lambda _: ModelSpec(name="m", path=str(tmp_path))
    job.parent = lambda name: f"{name}@sha256:0"
    job.should_stop, job.log, job.costs = (lambda: False), (lambda *_: None), (lambda: None)
    job.reporter = SimpleNamespace(waiting=None)
    for name in ("_suites", "_targets", "_report", "Counting", "OfTheseJudges"):
        monkeypatch.setattr(evaluating, name, lambda *_: ())
    monkeypatch.setattr(evaluating, "evaluation_judges", lambda *_: nullcontext(()))
    monkeypatch.setattr("ptalign.evaluate.evaluate", lambda *_, **__: found)
    made = evaluating.make(job)
    job.name, job.policies = "evaluations/1", []
    job.operation = SimpleNamespace(id="1", tenant="default", created=1.0, identity="alice")
    meta = Job.meta(job, made, "sha256:e")
    assert (meta.policy, meta.policy_digest) == ("tone", "sha256:p")
    assert meta.made_by == "alice"
    job.policies = [Policy(name="called", topics=())]
    assert Job.meta(job, made, "sha256:e").policy == "called"


class Gauge:
    def __init__(self) -> None:
        self.values: dict[tuple[str, ...], float] = {}

    def labels(self, *names: str) -> Any:
        return SimpleNamespace(set=lambda value: self.values.update({names: value}))

    def shown(self) -> dict[tuple[str, ...], float]:
        return {names: value for names, value in self.values.items() if not math.isnan(value)}


def test_a_worker_shows_the_newest_evaluation_when_it_starts(tmp_path: Path) -> None:
    _, store = world.open_store(tmp_path)
    gauge = Gauge()
    room: Any = SimpleNamespace(store=store, metrics=SimpleNamespace(evaluation_rate=gauge))
    publish_newest(room)
    assert not gauge.values
    for number, value in ((2, 0.25), (1, 0.75)):
        message = res.Evaluation()
        for rates, share in ((message.baseline, 0.5), (message.aligned, value)):
            rates["harm_rate"].value, rates["harm_rate"].n = share, 60
        message.aligned["harm_rate/t"].n = 30
        made = row(f"evaluations/{number}", message, created=float(number))
        store.write(lambda c, made=made: store.resources.insert(c, made)).result()
    publish_newest(room)
    assert gauge.shown() == {("harm_rate", "baseline"): 0.5, ("harm_rate", "aligned"): 0.25}
    store.close()


def test_a_rate_that_the_newest_evaluation_did_not_measure_is_shown_as_no_number() -> None:
    gauge = Gauge()
    room: Any = SimpleNamespace(metrics=SimpleNamespace(evaluation_rate=gauge))
    told = wilson(3, 60)
    _publish(room, {"harm_rate": told, "usefulness": told}, {"harm_rate": told})
    _publish(room, {"harm_rate": told, "unscored_rate": told}, {"harm_rate": wilson(0, 0)})
    assert gauge.shown() == {("harm_rate", "baseline"): 0.05, ("unscored_rate", "baseline"): 0.05}
    assert math.isnan(gauge.values["harm_rate", "aligned"])
    assert math.isnan(gauge.values["usefulness", "baseline"])
