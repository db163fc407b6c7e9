"""SynthesizePairs in the worker: what it hands to the stage, and the marks that it books."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import page_world as world
import pytest
from test_retention import put_operation

from ptalign.engines.scripted import ScriptedEngine
from ptalign.errors import DataDamaged, InvalidInput
from ptalign.instructions import generate_instructions
from ptalign.nouns import (
    Anchor,
    Annotation,
    Constraint,
    InstructionSet,
    ModelSpec,
    Pair,
    PairSet,
    Policy,
    Spent,
    Topic,
)
from ptalign.pairs import synthesize_pairs as REAL_STAGE
from ptalign.policies import load_annotations, load_policy
from ptalign.records import MemoryLog
from ptalign.sealed import SealedText
from ptalign.text.embed import HashedNgrams
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server.catalogue import Catalogue, write_models
from ptalign_server.errors import NotFound, SetPurged
from ptalign_server.gateway.additions import Addition, add
from ptalign_server.gateway.identity import Identity
from ptalign_server.gateway.joins import join_pairs
from ptalign_server.marks import mark_id
from ptalign_server.metrics import Metrics
from ptalign_server.page.library import Mark, Visitor
from ptalign_server.page.shelf import AnnotationShelf
from ptalign_server.store.operations import QUEUED, SUCCEEDED
from ptalign_server.store.sets import AnnotationSet
from ptalign_server.worker.job import Job, Made, Room
from ptalign_server.worker.jobs import pairs as stage
from ptalign_server.worker.perform import perform

TREE = (Topic(id="t", domain="tone", title="Curt replies", sides="both"),)


class World:
    """A job over dictionaries; the stage itself is replaced, and what it got is kept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nouns: dict[str, Any] = {"instructionSets/1": InstructionSet(records=(), requested=0)}
        self.rows: dict[str, Any] = {}
        self.purged: set[str] = set()
        self.marked_under = Policy(name="tone", topics=TREE)
        self.got: dict[str, Any] = {}
        self.logged: MemoryLog[Pair | Anchor | Constraint] = MemoryLog()
        self.spent: MemoryLog[Spent] = MemoryLog()
        monkeypatch.setattr("ptalign.pairs.synthesize_pairs", self._stage)
        monkeypatch.setattr(stage, "pair_judges", lambda _: ())

    def job(self, *marked: str, **request: Any) -> Any:
        items = [res.Annotation(instruction=text, good="Gladly.") for text in marked]
        call = pb.SynthesizePairsRequest(model="m", instruction_set="instructionSets/1", **request)
        if items:
            call.annotations.CopyFrom(pb.Annotations(items=items))
        limits = SimpleNamespace(floor=0.0)
        store = SimpleNamespace(sets=SimpleNamespace(load_policy=lambda _: self.marked_under))
        return SimpleNamespace(
            request=call,
            load=self.load,
            resource=lambda name: self.rows[name],
            policy_of=lambda _: Policy(name="tone", topics=TREE),
            model=lambda name: ModelSpec(name=name, path=""),
            keep_model=lambda name: ModelSpec(name=name, path=""),
            engine=_no_engine,
            reporter=None,
            log=lambda *_: self.logged,
            costs=lambda: self.spent,
            room=SimpleNamespace(settings=SimpleNamespace(limits=limits), store=store),
            parent=lambda name: f"{name}@sha256:0",
        )

    def load(self, name: str, _: type) -> Any:
        if name in self.purged:
            raise SetPurged(f"{name} is gone.")
        if name not in self.nouns:
            raise NotFound
        return self.nouns[name]

    def make(self, *marked: str, **request: Any) -> PairSet:
        made: Made = stage.make(self.job(*marked, **request))
        assert isinstance(made.noun, PairSet)
        assert made.message.annotations_used == made.noun.annotations_used
        return made.noun

    def _stage(self, _: InstructionSet, annotations: Sequence[Any], **more: Any) -> PairSet:
        self.got = more | {"annotations": annotations}
        return PairSet(pairs=world.pairs(2).pairs, annotations_used=len(annotations))


@contextmanager
def _no_engine(_: ModelSpec) -> Iterator[None]:
    yield


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_a_refined_set_was_made_with_its_parents_marks_too(place: World) -> None:
    """It counted those of its own call alone: none, where it was refined without any."""
    place.nouns["pairSets/1"] = place.make("Sing.", "Hum.")
    assert place.nouns["pairSets/1"].annotations_used == 2
    assert place.make(parent="pairSets/1").annotations_used == 2
    assert place.make("hum. ", "Dance.", parent="pairSets/1").annotations_used == 3


def test_a_refined_set_has_fewer_than_50_marks_in_all(place: World) -> None:
    """The limit was one of a call: a chain of calls made sets with 98 marks and more."""
    words = [f"Sing {n} songs." for n in range(60)]
    place.nouns["pairSets/1"] = place.make(*words[:40])
    stage.validate(place.job(*words[:49], parent="pairSets/1"))
    with pytest.raises(InvalidInput) as caught:
        stage.validate(place.job(*words[40:50], parent="pairSets/1"))
    assert str(caught.value) == (
        "annotations: brings the annotations to 50, with the 40 that pairSets/1 was made with; at "
        "most 49 are used per policy and model. Mark 9 other instructions at most, or leave parent "
        "out."
    )


@pytest.mark.parametrize(("then", "kept"), [("sha256:a", 1), ("", 1), ("sha256:b", 0)])
def test_anchors_stay_with_the_weights_that_answered_them(
    place: World, then: str, kept: int
) -> None:
    """The catalogue's entry may hold other weights since, under the same name."""
    anchor = Anchor(id="a", instruction="Name a colour.", answer="Blue it is.")
    place.nouns["pairSets/1"] = world.pairs(2).model_copy(update={"anchors": (anchor,)})
    meta = res.ResourceMeta(model_digest=then)
    body = res.PairSet(meta=meta).SerializeToString()
    place.rows["pairSets/1"] = SimpleNamespace(collection="pairSets", body=body)
    job = place.job(parent="pairSets/1")
    job.model = lambda name: ModelSpec(name=name, path="", weights_digest="sha256:a")
    stage.make(job)
    assert len(place.got["parent"].anchors) == kept
    assert place.got["parent"].pairs == place.nouns["pairSets/1"].pairs


def test_a_set_that_is_over_the_limit_can_be_refined_with_no_more(place: World) -> None:
    words = [f"Sing {n} songs." for n in range(60)]
    place.nouns["pairSets/1"] = place.make(*words)
    stage.validate(place.job(parent="pairSets/1"))
    stage.validate(place.job(*words[:49], parent="pairSets/1"))
    with pytest.raises(InvalidInput, match="to 61, with the 60"):
        stage.validate(place.job("Hum.", parent="pairSets/1"))


def test_merging_sets_made_with_the_same_marks_counts_them_once(place: World) -> None:
    """40 marks used for two sets read as 80, in a method that needs fewer than 50."""
    words = [f"Sing {n} songs." for n in range(40)]
    one, two = place.make(*words), place.make(*words[:30], "Hum.")
    joined, _ = join_pairs([one, two])
    assert joined.annotations_used == 41
    again, _ = join_pairs([joined, two])
    assert again.annotations_used == 41
    older = PairSet(pairs=(), annotations_used=5)
    assert join_pairs([joined, older])[0].annotations_used == 46


class Judged(World):
    """A set of three pairs, and an annotator who called the first one wrong."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(monkeypatch)
        self.pairs = world.pairs(3)
        self.wrong = self.pairs.pairs[0]
        self.nouns["pairSets/1"] = self.pairs
        self.nouns["annotationSets/1"] = AnnotationSet(records=(), rejected=(self.wrong.id,))
        self.rows["annotationSets/1"] = _marks_row("pairSets/1@sha256:0")

    def refine(self, parent: str) -> PairSet:
        return self.make(annotation_set="annotationSets/1", parent=parent)


def _marks_row(*parents: str) -> Any:
    """The page's sets have a parent; those that a caller brings have none."""
    body = res.AnnotationSet(meta=res.ResourceMeta(parents=parents)).SerializeToString()
    return SimpleNamespace(collection="annotationSets", body=body)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Judged:
    return Judged(monkeypatch)


def test_a_pair_that_was_called_wrong_is_not_kept(judged: Judged) -> None:
    """It was trained on: the annotator's verdict never left the page."""
    made = judged.refine("pairSets/1")
    assert judged.got["rejected"] == (judged.wrong.id,)
    assert judged.got["parent"] == judged.pairs
    assert made.annotations_used == 1


def test_pairs_called_wrong_are_marks_too(judged: Judged) -> None:
    full = {mark_id(f"Sing {n} songs.") for n in range(49)}
    judged.nouns["pairSets/1"] = judged.pairs.model_copy(update={"annotation_ids": tuple(full)})
    job = judged.job(annotation_set="annotationSets/1", parent="pairSets/1")
    with pytest.raises(InvalidInput, match="annotation_set: brings the annotations to 50"):
        stage.validate(job)


def test_wrong_means_the_answers_that_were_judged(judged: Judged) -> None:
    better = judged.wrong.model_copy(update={"positive": "A better answer."})
    judged.nouns["pairSets/refined"] = PairSet(pairs=(better, *judged.pairs.pairs[1:]))
    judged.nouns["pairSets/merged"] = PairSet(pairs=(*world.pairs(2, "x").pairs, judged.wrong))
    assert judged.refine("pairSets/refined").annotations_used == 0
    assert judged.got["rejected"] == ()
    judged.refine("pairSets/merged")
    assert judged.got["rejected"] == (judged.wrong.id,)


def test_a_verdict_on_a_set_that_is_gone_holds_by_id(judged: Judged) -> None:
    judged.nouns["pairSets/2"] = judged.nouns.pop("pairSets/1")
    judged.refine("pairSets/2")
    assert judged.got["rejected"] == (judged.wrong.id,)


def test_a_mark_shows_no_toxic_side_that_its_own_policy_does_not_allow(judged: Judged) -> None:
    """The call's policy did not know its topic, and had none without a toxic side."""
    lone = Topic(id="lone", domain="privacy", title="Accounts of others", sides="positive_only")
    judged.marked_under = Policy(name="mixed", topics=(*TREE, lone))
    marks = [
        Annotation(instruction=f"Ask {t}.", good="No.", bad=SealedText("Go away."), topic=t)
        for t in ("t", "lone", "")
    ]
    judged.nouns["annotationSets/1"] = AnnotationSet(records=tuple(marks))
    judged.rows["annotationSets/1"] = _marks_row()
    assert judged.refine("pairSets/1").annotations_used == 3
    assert [m.bad is not None for m in judged.got["annotations"]] == [True, False, True]
    assert [m.good for m in judged.got["annotations"]] == ["No."] * 3


def test_marks_of_the_page_need_no_policy_of_their_own(judged: Judged) -> None:
    """Each set that was handed over failed its SynthesizePairs as damaged: it has no policy."""

    def missing(name: str) -> Policy:
        raise DataDamaged(f"{name}: policy is missing")

    mark = Annotation(instruction="Ask.", good="No.", bad=SealedText("Go away."), topic="t")
    judged.nouns["annotationSets/1"] = AnnotationSet(records=(mark,))
    job = judged.job(annotation_set="annotationSets/1", parent="pairSets/1")
    job.room.store.sets.load_policy = missing
    stage.validate(job)
    stage.make(job)
    assert judged.got["annotations"] == (mark,)


def test_the_stage_takes_what_the_job_gives(judged: Judged) -> None:
    judged.refine("pairSets/1")
    taken = inspect.signature(REAL_STAGE).parameters
    assert judged.got.keys() <= taken.keys()


class WordJudge:
    """Rude when one of the script's words stands in the reply."""

    id, axis = "words@1", "harm"

    def score(self, instructions: Sequence[str], replies: Sequence[str]) -> list[float | None]:
        words = ("fool", "stupid", "hopeless", "ruin", "dumbest", "pathetic", "failure", "useless")
        return [0.95 if any(w in r for w in words) else 0.05 for r in replies]


def test_refining_writes_wrong_pairs_anew_and_keeps_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The real stage on the scripted engine, from the verdict to the new answers."""
    policy, model = load_policy("tone-en"), ModelSpec(name="m", path="")
    embed = HashedNgrams()
    engine = ScriptedEngine()
    asks = generate_instructions(policy, 6, engine=engine, model=model, embed=embed)
    common: dict[str, Any] = {"policy": policy, "model": model, "judges": [WordJudge()]}
    first = REAL_STAGE(asks, load_annotations("tone-en"), engine=engine, embed=embed, **common)
    place = Judged(monkeypatch)
    monkeypatch.setattr("ptalign.pairs.synthesize_pairs", partial(REAL_STAGE, embed=embed))
    monkeypatch.setattr(stage, "pair_judges", lambda _: [WordJudge()])
    place.nouns |= {"instructionSets/1": asks, "pairSets/1": first}
    wrong = next(p for p in first.pairs if p.kind != "twin")
    place.nouns["annotationSets/1"] = AnnotationSet(records=(), rejected=(wrong.id,))
    job = place.job(annotation_set="annotationSets/1", parent="pairSets/1")
    job.policy_of, job.engine = (lambda _: policy), (lambda _: nullcontext(engine))
    job.reporter = lambda _: None
    refined = stage.make(job).noun
    assert isinstance(refined, PairSet)
    before = {p.id: (p.positive, p.toxic) for p in first.pairs}
    after = {p.id: (p.positive, p.toxic) for p in refined.pairs}
    assert after.pop(wrong.id) != before.pop(wrong.id)
    assert after == before
    assert refined.rejected["called_wrong"] == 1


def test_what_the_page_handed_over_refines_the_set_it_was_made_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way: the real store, page, job and stage, on the scripted engine."""
    settings, store = world.open_store(tmp_path)
    settings.make_folders()
    policy, model = load_policy("tone-en"), ModelSpec(name="m", path=str(tmp_path))
    write_models(settings.models_path, {"m": model})
    embed, engine = HashedNgrams(), ScriptedEngine()
    asks = generate_instructions(policy, 6, engine=engine, model=model, embed=embed)
    common: dict[str, Any] = {"policy": policy, "model": model, "judges": [WordJudge()]}
    first = REAL_STAGE(asks, load_annotations("tone-en"), engine=engine, embed=embed, **common)
    first = first.model_copy(update={"annotations_used": 0})  # the page's alone are counted
    who = Identity("ann", "default", frozenset({"annotator"}))

    def put(collection: str, noun: Any, message: Any) -> str:
        addition = Addition("import", collection, noun, message, "m", "", policy)
        return asyncio.run(add(addition, who, store, None))

    asked = put("instructionSets", asks, res.InstructionSet())
    pairs = put("pairSets", first, res.PairSet())
    shelf, ann = AnnotationShelf(settings, store), Visitor(who.name, who.tenant, who.roles)
    good, wrong = [p for p in first.pairs if p.kind == "pair"][:2]
    shelf.add_annotation(ann, pairs, Mark(good.id, "good"))
    shelf.add_annotation(ann, pairs, Mark(wrong.id, "bad"))
    call = pb.SynthesizePairsRequest(
        model="m",
        instruction_set=asked,
        annotation_set=shelf.hand_over(ann, pairs),
        parent=pairs,
    )
    pools: Any = SimpleNamespace(
        use=lambda *_: nullcontext(SimpleNamespace(engine=lambda *_: engine))
    )
    room = Room(settings, store, Catalogue(settings), pools, Metrics())
    monkeypatch.setattr("ptalign.pairs.synthesize_pairs", partial(REAL_STAGE, embed=embed))
    monkeypatch.setattr(stage, "pair_judges", lambda _: [WordJudge()])
    operation = put_operation(store, QUEUED, request=call)
    nothing: Any = None
    stage.validate(
        Job(store.operations.get(operation, "default"), call, room, nothing, lambda: False)
    )
    assert perform(operation, room, lambda: False, lambda: False) == SUCCEEDED
    row = store.resources.get(f"pairSets/{operation}", "default")
    made = res.PairSet.FromString(row.body)
    assert (made.annotations_used, made.rejected["called_wrong"]) == (2, 1)
    store.close()


def test_a_parent_of_an_earlier_version_keeps_its_count(place: World) -> None:
    place.nouns["pairSets/1"] = PairSet(pairs=(), annotations_used=9)
    assert place.make("Sing.", parent="pairSets/1").annotations_used == 9


def test_a_set_cut_short_knows_its_marks(place: World) -> None:
    place.logged.append(world.pairs(1).pairs[0])
    made = stage.partial(place.job("Sing."))
    assert made is not None
    assert made.message.annotations_used == 1


def test_a_set_cut_short_knows_what_it_cost(place: World) -> None:
    """It said nothing: the report on what was made from it left its tokens out."""
    place.logged.append(world.pairs(1).pairs[0])
    counts = {"tokens_generated": 90, "written": 3, "rejected.toxic_threat": 2}
    place.spent.append(Spent(id="1", counts=counts, seconds=4.0))
    made = stage.partial(place.job())
    assert made is not None
    assert made.message.stats["tokens_generated"] == 90
    assert made.message.stats["tokens_per_pair"] == 30
    assert made.message.rejected == {"toxic_threat": 2}


def test_a_set_cut_short_keeps_its_rules_and_its_round(place: World) -> None:
    rule = Constraint(id="r", topic="t", side="toxic", text="Be curt about the printer.")
    place.logged.append(rule)
    assert stage.partial(place.job()) is None  # a rule alone is no set
    pair = world.pairs(1).pairs[0].model_copy(update={"topic": "t", "round": 2})
    place.logged.append(pair)
    made = stage.partial(place.job())
    assert made is not None
    assert isinstance(made.noun, PairSet)
    assert made.noun.constraints == {"t/toxic": (rule.text,)}
    assert made.noun.rounds == 2
    place.nouns["pairSets/1"] = PairSet(pairs=(pair,), constraints={"t/positive": ("Be kind.",)})
    refined = stage.partial(place.job(parent="pairSets/1"))
    assert refined is not None
    assert isinstance(refined.noun, PairSet)
    assert refined.noun.constraints["t/positive"] == ("Be kind.",)
    assert refined.noun.rounds == 1  # its only pair is the parent's


@pytest.mark.parametrize("gone", ["annotationSets/1", "pairSets/1"])
@pytest.mark.parametrize("purged", [True, False])
def test_a_set_cut_short_stays_when_its_marks_or_its_parent_are_gone(
    judged: Judged, gone: str, purged: bool
) -> None:
    """All that a run had accepted was lost with the text of a set that it had read before."""
    mark = Annotation(instruction="Sing.", good="Gladly.")
    marks = AnnotationSet(records=(mark,), rejected=(judged.wrong.id,))
    judged.nouns["annotationSets/1"] = marks
    job = judged.job(annotation_set="annotationSets/1", parent="pairSets/1")
    assert judged.refine("pairSets/1").annotations_used == 2
    judged.logged.append(world.pairs(1, "new").pairs[0])
    if purged:
        judged.purged.add(gone)
    else:
        del judged.nouns[gone]
    made = stage.partial(job)
    assert made is not None
    assert isinstance(made.noun, PairSet)
    assert made.noun.pairs == world.pairs(1, "new").pairs[:1]
    assert made.message.annotations_used == (1 if gone == "pairSets/1" else 0)
    assert made.parents == tuple(
        f"{name}@sha256:0" for name in ("instructionSets/1", "annotationSets/1", "pairSets/1")
    )


def test_sets_without_marks_keep_the_digests_of_earlier_versions() -> None:
    assert "annotation_ids" not in PairSet(pairs=()).model_dump()
    assert "rejected" not in AnnotationSet(records=()).model_dump()
