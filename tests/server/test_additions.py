"""Sets that callers bring: what is refused of annotators' marks, and what merging keeps once."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import page_world as world
import pytest
import sqlalchemy as sa

from ptalign.answering.anchors import anchor_id
from ptalign.config import PairConfig
from ptalign.engines.scripted import ScriptedEngine
from ptalign.errors import InvalidInput, PtalignError
from ptalign.nouns import (
    Anchor,
    Annotation,
    Instruction,
    InstructionSet,
    ModelSpec,
    Pair,
    PairSet,
    Policy,
    Topic,
    record_id,
)
from ptalign.pairs import synthesize_pairs
from ptalign.sealed import SealedText
from ptalign.text.embed import HashedNgrams
from ptalign_proto.v1 import library_pb2 as lib
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server import marks, views
from ptalign_server.errors import RequestIdReused, Violations
from ptalign_server.gateway import additions, imports, joins, marking, merges
from ptalign_server.gateway.fields import annotation_problems
from ptalign_server.gateway.identity import Identity
from ptalign_server.page.library import Mark, Visitor
from ptalign_server.page.shelf import AnnotationShelf
from ptalign_server.store import Store
from ptalign_server.store.db import DatabaseAway
from ptalign_server.store.resources import Resource
from ptalign_server.store.sets import AnnotationSet
from ptalign_server.worker.jobs import pairs as stage

ANN = Visitor("ann", "default", frozenset({"annotator"}))
KNOWN: Any = SimpleNamespace(models={})
"""A catalogue that the model has left."""
DEV = Identity("eng", "default", frozenset({"engineer"}))
TREE = (Topic(id="t", domain="tone", title="Curt replies", sides="both"),)
POLICY = Policy(name="tone", topics=TREE, never_synthesize=(world.LISTED,))
Place = tuple[AnnotationShelf, Store]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    settings, store = world.open_store(tmp_path)
    yield AnnotationShelf(settings, store), store
    store.close()


def refused(call: Callable[[], object]) -> PtalignError:
    with pytest.raises(Violations) as caught:
        call()
    assert world.LISTED not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("field", ["instruction", "good", "bad"])
def test_a_listed_mark_is_named_by_item_and_field_not_by_text(field: str) -> None:
    fine = Annotation(instruction="Write a note.", good="Gladly.", bad=SealedText("No."))
    text = f"the {world.LISTED}"
    bad = fine.model_copy(update={field: SealedText(text) if field == "bad" else text})
    error = refused(lambda: marks.refuse_blocked("items", [fine, bad], POLICY))
    assert f"items[1].{field}" in str(error)
    assert "never-synthesize" in str(error)
    marks.refuse_blocked("items", [fine], POLICY)


async def test_an_annotation_set_with_listed_text_is_not_made(place: Place) -> None:
    _, store = place
    with pytest.raises(Violations, match=r"items\[0\].bad"):
        await annotate(store, bad=f"The {world.LISTED}.")
    assert not made_sets(store)


async def annotate(store: Store, **changes: str) -> str:
    """`CreateAnnotationSet` with one mark."""
    mark = {"instruction": "Write a note.", "good": "Gladly.", "bad": "No."} | changes
    request_id = mark.pop("request_id", "")
    request = lib.CreateAnnotationSetRequest(
        model="m", policy="tone", items=[res.Annotation(**mark)], request_id=request_id
    )
    known = SimpleNamespace(
        model=lambda _: ModelSpec(name="m", path=""),
        policies=SimpleNamespace(find=lambda _: POLICY),
        locale="en",
    )
    return await marking.annotate(request, DEV, store, known)  # type: ignore[arg-type]


async def test_a_note_is_no_longer_than_other_texts(place: Place) -> None:
    """Three megabytes were sealed with the set, and no call shows a note."""
    _, store = place
    with pytest.raises(Violations, match=r"items\[0\].note: is longer than 8000 characters"):
        await annotate(store, note="x" * 8001)
    await annotate(store, note="x" * 8000)


def made_sets(store: Store) -> list[Resource]:
    return store.resources.page("default", "annotationSets", 9, before="", model="", policy="")


def read(store: Store, made: Resource) -> AnnotationSet:
    return store.sets.load(made.name, AnnotationSet, made.content)


async def test_a_set_whose_commit_stands_keeps_its_text_when_the_database_goes(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection drops after the commit: the call is sent again and answered with that set."""
    _, store = place
    write, request_id = store.write, str(uuid.uuid4())

    def cut_off(change: Callable[[sa.Connection], object]) -> Future[object]:
        write(change).result()
        cut: Future[object] = Future()
        cut.set_exception(DatabaseAway())
        return cut

    with monkeypatch.context() as patch:
        patch.setattr(store, "write", cut_off)
        with pytest.raises(DatabaseAway):
            await annotate(store, request_id=request_id)
    name = await annotate(store, request_id=request_id)
    [made] = made_sets(store)
    assert made.name == name
    assert read(store, made).marks == 1


def test_a_set_whose_caller_went_away_keeps_its_text(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer has the change in hand by then, and commits it."""
    _, store = place
    insert, entered, go = store.resources.insert, threading.Event(), threading.Event()

    def slow(*row: Any) -> None:
        entered.set()
        assert go.wait(60)
        insert(*row)

    async def leave() -> None:
        call = asyncio.create_task(annotate(store))
        assert await asyncio.to_thread(entered.wait, 60)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    monkeypatch.setattr(store.resources, "insert", slow)
    asyncio.run(leave())
    go.set()
    store.write(lambda _: None).result()  # changes are made in order
    [made] = made_sets(store)
    assert read(store, made).marks == 1


async def test_a_set_that_is_refused_leaves_no_files(place: Place) -> None:
    _, store = place
    request_id = str(uuid.uuid4())
    first = await annotate(store, request_id=request_id)
    assert await annotate(store, request_id=request_id) == first
    with pytest.raises(RequestIdReused):
        await annotate(store, good="Of course.", request_id=request_id)
    assert [file.name for file in store.sets.folder("").iterdir()] == [made_sets(store)[0].id]
    assert not store.sets.unsettled(time.time() + 60)


def test_inline_marks_are_checked_before_the_operation_runs() -> None:
    items = [res.Annotation(instruction="Write a note.", good=f"The {world.LISTED}.")]
    request = pb.SynthesizePairsRequest(
        instruction_set="instructionSets/1", annotations=pb.Annotations(items=items)
    )
    job = SimpleNamespace(request=request, load=lambda *_: None, policy_of=lambda _: POLICY)
    error = refused(lambda: stage.validate(job))  # type: ignore[arg-type]
    assert "annotations.items[0].good" in str(error)


def test_an_edit_on_the_page_with_listed_text_is_not_kept(place: Place) -> None:
    shelf, store = place
    name = world.add_pair_set(store, world.pairs(2))
    item = shelf.annotation_items(ANN, name).items[0].id
    edit = Mark(item, "edit", "A kinder answer.", SealedText(f"Use the {world.LISTED}."), 30.0)
    error = refused(lambda: shelf.add_annotation(ANN, name, edit))
    assert ".bad" in str(error)
    assert shelf.queues(ANN)[0].marked == 0


def instruction(text: str, made_id: str, twin_of: str = "") -> Instruction:
    return Instruction(
        id=made_id,
        text=text,
        topic="t",
        domain="tone",
        side="twin" if twin_of else "harmful",
        twin_of=twin_of,
    )


def test_merging_imported_and_generated_instructions_keeps_each_once() -> None:
    text = "Write a cold note."
    own = record_id("harmful", text)
    made = InstructionSet(
        records=(
            instruction(text, own),
            instruction("Write a warm note.", record_id("twin", own), own),
        ),
        requested=1,
    )
    brought = InstructionSet(
        records=(
            instruction("Write a cool note.", "twin", "import"),
            instruction(f"  {text.upper()} ", "import"),
            instruction("Another one.", "other"),
        ),
        requested=2,
    )
    joined, doubled = joins.join_instructions([made, brought], POLICY)
    assert (doubled, joined.requested) == (1, 2)
    assert [r.text for r in joined.harmful] == [text, "Another one."]
    assert {r.twin_of for r in joined.twins} == {own}
    assert len(joined.twins) == 2


def test_merging_declines_nothing_that_a_twin_asks() -> None:
    """Whichever comes first stays, and a twin goes with its instruction."""
    cold, warm = "Write a cold note.", "Write a warm note."
    first = InstructionSet(
        records=(instruction(cold, "1"), instruction(warm, "1t", "1")), requested=1
    )
    other = InstructionSet(
        records=(
            instruction("Write a mild note.", "2t", "2"),
            instruction(warm.upper(), "2"),
            instruction("Write a curt note.", "3"),
            instruction(f"{cold} ", "3t", "3"),
        ),
        requested=2,
    )
    joined, doubled = joins.join_instructions([first, other], POLICY)
    assert [r.id for r in joined.records] == ["1", "1t", "3"]
    assert (doubled, joined.requested, joined.rejected) == (3, 2, {"duplicate": 3})


ROOMS = Policy(
    name="rooms",
    topics=tuple(Topic(id=t, domain="tone", title=t, sides="both") for t in "abcd"),
    never_synthesize=(world.LISTED,),
)


def asked(text: str, topic: str, **fields: str) -> lib.Record:
    return lib.Record(instruction=text, topic=topic, **fields)


def test_an_imported_instruction_set_carries_its_numbers() -> None:
    """It had none: no coverage, so a set under its floor did not say so."""
    records = [
        asked("Write a cold note about the stairs.", "a", id="x"),
        asked("Write a cold note about the stair.", "a"),
        asked("Sing to the neighbours at dawn.", "b"),
        asked("Write a warm note about the stairs.", "a", kind="twin", twin_of="x", id="y"),
        asked("Nobody asked for this topic.", "elsewhere"),
    ]
    made = imports.import_instructions(records, ROOMS)
    assert made.rejected == {"off_topic": 1}
    stats = made.stats
    assert (stats["coverage"], stats["coverage_met"]) == (0.5, 0.0)
    assert stats["near_duplicates"] == 1
    assert stats["twin_share"] == pytest.approx(1 / 3)
    assert stats["entropy"] == pytest.approx(0.459, abs=1e-3)  # 2/3 and 1/3 over log 4
    assert 0 < stats["distinct_2"] < 1
    assert "vendi" not in stats
    missing = ("vendi", "nn_distance_p10", "nn_distance_p50", "twin_similarity")
    assert {f"not_computed.{name}" for name in missing} < stats.keys()


@pytest.mark.parametrize("take_in", [imports.import_instructions, imports.import_pairs])
def test_a_misspelt_twin_is_refused_not_taken_for_a_harmful_request(
    take_in: Callable[[list[lib.Record], Policy], object],
) -> None:
    answer = "Gladly: dear neighbour."
    cold = asked("Write a cold note.", "a", kind="pair", positive="I would rather not.")
    warm = asked("Write a warm note.", "a", kind="Twin", positive=answer)
    error = refused(lambda: take_in([cold, warm], ROOMS))
    assert "records[1].kind: is 'Twin'" in str(error)
    assert "twin or anchor" in str(error)


def test_every_kind_of_record_that_a_set_is_read_as_is_taken() -> None:
    kinds = {"": "pair", "instruction": "pair", "pair": "pair", "positive_only": "pair"}
    kinds |= {"twin": "twin", "anchor": "anchor"}
    records = [
        asked(f"Write note {i}.", "a", kind=kind, positive="Gladly.", toxic="No.")
        for i, kind in enumerate(kinds)
    ]
    pairs = imports.import_pairs(records, ROOMS)
    assert [p.kind for p in pairs.pairs] == [k for k in kinds.values() if k != "anchor"]
    assert len(pairs.anchors) == 1
    asks = imports.import_instructions(records, ROOMS)
    assert [r.side for r in asks.records] == ["harmful"] * 4 + ["twin"]
    assert asks.rejected == {"anchor": 1}


def test_placeholders_of_a_safe_view_are_no_texts() -> None:
    """Records read without the full view made pairs of "<sealed 17 chars sha256:...>"."""
    seen = asked("<sealed 33 chars sha256:0a1b>", "a", masked=["instruction"])
    made = imports.import_instructions([seen, asked("Sing at dawn!", "a")], ROOMS)
    assert (len(made.records), made.rejected) == (1, {"masked": 1})
    anchor = lib.Record(
        kind="anchor", instruction="Why is rain wet?", positive="<sealed>", masked=["positive"]
    )
    pair = asked("Sing at noon!", "a", kind="pair", positive="I would rather not.")
    shown = asked("Sing at ten!", "a", kind="pair", positive="No.", toxic=repr(SealedText("Go.")))
    pairs = imports.import_pairs([anchor, pair, shown], ROOMS)
    assert (pairs.anchors, pairs.rejected) == ((), {"masked": 2})
    mark = res.Annotation(instruction="Sing.", good="La.", bad=repr(SealedText("Go.")))
    assert [p.field for p in annotation_problems("items[0]", mark)] == ["items[0].bad"]


def test_two_spellings_of_a_request_are_one() -> None:
    """Only case and spaces were looked through."""
    records = [asked("Sing at dawn!", "a"), asked("sing  at dawn.", "a"), asked("Sing.", "a")]
    made = imports.import_instructions(records, ROOMS)
    assert ([r.text for r in made.records], made.rejected) == (
        ["Sing at dawn!", "Sing."],
        {"duplicate": 1},
    )
    other = imports.import_instructions([asked("« Sing, at dawn »", "a")], ROOMS)
    joined, doubled = joins.join_instructions([made, other], ROOMS)
    assert (len(joined.records), doubled) == (2, 1)


def test_a_request_in_two_locales_is_one() -> None:
    """Its words differ by locale and its id does not: two pairs of one id, weighed by ids."""
    records = [
        asked("Sing at dawn!", "a", locale="en", id="x", positive="Gladly."),
        asked("Sing at dawn!", "a", locale="ja", id="y", positive="Gladly, too."),
        asked("Sing kindly.", "a", locale="ja", kind="twin", twin_of="y", positive="Yes."),
    ]
    made = imports.import_instructions(records, ROOMS)
    assert (len(made.records), made.rejected) == (2, {"duplicate": 1})
    assert [twin.twin_of for twin in made.twins] == [made.harmful[0].id]
    pairs = imports.import_pairs(records, ROOMS)
    assert len({p.id for p in pairs.pairs}) == len(pairs.pairs) == 2
    assert pairs.rejected == {"duplicate": 1}


def test_an_imported_twin_belongs_to_the_spelling_that_was_kept() -> None:
    """Ids are made anew here, and twins went on naming the caller's."""
    records = [
        asked("Sing kindly.", "a", kind="twin", twin_of="second"),
        asked("Sing at dawn!", "a", id="first"),
        asked("sing at dawn", "a", id="second"),
    ]
    made = imports.import_instructions(records, ROOMS)
    (harmful,) = made.harmful
    assert [twin.twin_of for twin in made.twins] == [harmful.id]


def test_a_huge_import_says_that_it_was_not_searched_for_near_duplicates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ptalign.asking.stats.MAX_COMPARED", 10)
    made = imports.import_instructions([asked("Sing at dawn.", "b")], ROOMS)
    assert "near_duplicates" not in made.stats
    assert made.stats["not_computed.near_duplicates"] == 1


def test_merged_sets_keep_what_was_rejected_and_carry_their_numbers() -> None:
    one = imports.import_instructions([asked("Sing.", "a"), asked("Hum.", "z")], ROOMS)
    two = imports.import_instructions([asked("sing.", "a"), asked("Dance.", "c")], ROOMS)
    joined, doubled = joins.join_instructions([one, two], ROOMS)
    assert doubled == 1
    assert joined.rejected == {"off_topic": 1, "duplicate": 1}
    assert joined.stats["coverage"] == 0.5
    assert len(joined.harmful) == 2


def test_imported_and_merged_pairs_carry_their_numbers() -> None:
    fields = {"positive": "Here is a kind note.", "toxic": "No.", "kind": "pair"}
    one = imports.import_pairs([asked("Sing.", "a", **fields), asked("Hum.", "a")], ROOMS)
    assert one.rejected == {"empty": 1}
    assert one.stats["words_positive"] == 5
    assert one.stats["anchors"] == 0
    assert not one.stats.keys() & {"yield", "twin_yield", "first_round"}
    two = PairSet(
        pairs=(one.pairs[0].model_copy(update={"id": "2", "instruction": "Hop.", "round": 2}),),
        anchors=(Anchor(id="x", instruction="Hello?", answer="Hello."),),
        rejected={"empty": 2},
    )
    joined, _ = joins.join_pairs([one, two])
    assert joined.rejected == {"empty": 3}
    assert (joined.stats["anchors"], joined.stats["first_round"]) == (1, 0.5)


def test_the_numbers_of_sets_in_two_languages_do_not_follow_their_order() -> None:
    """All was counted as the first record's language is: in words, or in pairs of characters."""
    english = [asked("Write a rather cold note about the stairs.", "a"), asked("Sing.", "b")]
    japanese = [asked("階段の冷たい書き置きを書いてください。", "a", locale="ja")]
    japanese.append(asked("階段の冷たい書き置きを書いてくださいね。", "a", locale="ja"))
    sets = [imports.import_instructions(records, ROOMS) for records in (english, japanese)]
    one, two = (joins.join_instructions(order, ROOMS)[0].stats for order in (sets, sets[::-1]))
    assert one == pytest.approx(two)
    assert one["near_duplicates"] == 1

    fields = {"toxic": "No. Go away.", "kind": "pair"}
    japanese_fields = {"toxic": "いやです。", "kind": "pair", "locale": "ja"}
    pairs = [
        imports.import_pairs(
            [
                asked("Sing.", "a", positive="Here is one kind note.", **fields),
                asked("Hum.", "a", positive="Here is one kind reply.", **fields),
                asked("Hop.", "a", positive="Gladly, in a moment.", **fields),
            ],
            ROOMS,
        ),
        imports.import_pairs(
            [asked("歌って。", "a", positive="よろこんで歌います。", **japanese_fields)], ROOMS
        ),
    ]
    one, two = (joins.join_pairs(order)[0].stats for order in (pairs, pairs[::-1]))
    assert one == pytest.approx(two)
    assert one["words_positive"] == (5 + 5 + 4 + 8) / 4
    assert one["words_toxic"] == (3 + 3 + 3 + 3) / 4
    assert one["opener_share"] == 0.5


def test_an_instruction_with_two_twins_is_one_that_has_some() -> None:
    records = [
        asked("Write a cold note about the stairs.", "a", id="x"),
        asked("Sing to the neighbours at dawn.", "b"),
        asked("Write a warm note about the stairs.", "a", kind="twin", twin_of="x", id="y"),
        asked("Write a kind note about the stairs.", "a", kind="twin", twin_of="x", id="z"),
    ]
    assert imports.import_instructions(records, ROOMS).stats["twin_share"] == 0.5


def test_sets_that_were_made_with_50_marks_do_not_merge(place: Place) -> None:
    """The sum was written into the merged set, and read as one policy's marks in its report."""
    ids = tuple(f"{n}" for n in range(50))
    made = [world.pairs(2, tag).model_copy(update={"annotation_ids": ids}) for tag in "abc"]
    made[0] = made[0].model_copy(update={"annotation_ids": ids[:30]})
    made[1] = made[1].model_copy(update={"annotation_ids": ids[20:49]})
    made[2] = made[2].model_copy(update={"annotation_ids": ids[49:]})
    _, store = place
    names = [world.add_pair_set(store, noun) for noun in made]
    addition, _ = merges.merged(names[:2], DEV, store, KNOWN)
    assert addition.message.annotations_used == 49
    with pytest.raises(InvalidInput, match="made with 50 annotations on tone; at most 49"):
        merges.merged(names, DEV, store, KNOWN)
    other = world.add_pair_set(store, made[2], policy="style")  # a limit of its own
    assert merges.merged([*names[:2], other], DEV, store, KNOWN)[0].message.annotations_used == 50


def test_a_twin_whose_answer_declines_is_not_taken() -> None:
    """It would hold the model to the refusal of a legitimate request; a pair's may decline."""
    decline = {"positive": "I'm sorry, but I can't help with that."}
    records = [
        asked("Write a warm note.", "a", kind="twin", **decline),
        asked("Write a short note.", "a", kind="twin", positive="Here is a short note."),
        asked("Write a cold note.", "a", kind="pair", **decline),
    ]
    made = imports.import_pairs(records, ROOMS)
    assert made.rejected == {"twin_refuses": 1}
    assert [pair.kind for pair in made.pairs] == ["twin", "positive_only"]


MARKED = PairSet(
    pairs=tuple(
        Pair(
            id=str(i),
            kind="twin" if i % 2 else "pair",
            instruction_id=str(i),
            instruction=f"Write about desk {i}.",
            topic="a",
            positive="Here is a kind note.",
            toxic=None if i % 2 else SealedText("No."),
            held_out=i < 4,
        )
        for i in range(9)
    ),
    anchors=tuple(
        Anchor(
            id=anchor_id(f"How high is desk {i // 2}?", i % 2),
            instruction=f"How high is desk {i // 2}?",
            answer=f"It is {i} feet high.",
            held_out=i < 2,
            ended=i != 5,
        )
        for i in range(6)
    ),
)


def records_of(made: PairSet) -> list[lib.Record]:
    """The set's records, as a reader streams them."""
    parts = [("pairs", p) for p in made.pairs] + [("anchors", a) for a in made.anchors]
    bodies = [(name, noun.model_dump(context={"reveal": True})) for name, noun in parts]
    return [views.record("pairSets", item, full=True) for item in bodies]


def test_an_imported_set_holds_out_what_the_exported_one_did() -> None:
    """Every pair was trained on, and its anchors were left out as off topic."""
    brought = imports.import_pairs(records_of(MARKED), ROOMS)
    kinds = [(p.kind, p.instruction, p.held_out) for p in MARKED.pairs]
    assert [(p.kind, p.instruction, p.held_out) for p in brought.pairs] == kinds
    assert brought.anchors == MARKED.anchors
    assert not brought.rejected
    counts = {"anchors": 6, "held_out": 2, "held_out_pairs": 2, "held_out_twins": 2}
    assert counts.items() <= brought.stats.items()
    joined, _ = joins.join_pairs([MARKED, brought])
    assert (len(joined.pairs), len(joined.anchors)) == (9, 6)
    assert sum(p.held_out for p in joined.pairs) == 4


def test_an_anchor_whose_first_answer_was_rejected_is_merged_once() -> None:
    """The import numbers the others from 0: one stood twice in the merged set, one was lost."""
    later = tuple(
        a.model_copy(update={"id": anchor_id(a.instruction, 1 + i % 2)})
        for i, a in enumerate(MARKED.anchors)
    )
    given = MARKED.model_copy(update={"anchors": later})
    brought = imports.import_pairs(records_of(given), ROOMS)
    assert {a.id for a in brought.anchors} != {a.id for a in later}
    assert joins.join_pairs([given, brought])[0].anchors == later
    answers = {(a.instruction, a.answer) for a in later}
    joined, _ = joins.join_pairs([brought, given])
    assert {(a.instruction, a.answer) for a in joined.anchors} == answers
    assert len(joined.anchors) == len(later)


def test_merging_with_an_import_of_a_part_keeps_what_was_there() -> None:
    """The import numbers its answers from 0, and the last one under a number counted."""
    text = "How high is a desk?"

    def answered(*answers: str) -> PairSet:
        anchors = (
            Anchor(id=anchor_id(text, i), instruction=text, answer=answer)
            for i, answer in enumerate(answers)
        )
        return PairSet(pairs=(), anchors=tuple(anchors))

    one, two = answered("Three feet.", "A metre."), answered("A metre.", "It depends.")
    joined, _ = joins.join_pairs([one, two])
    assert joined.anchors == one.anchors
    joined, _ = joins.join_pairs([one, answered("A metre.", "Three feet.", "It depends.")])
    assert [a.answer for a in joined.anchors] == ["Three feet.", "A metre.", "It depends."]


def test_records_of_earlier_versions_are_trained_on_and_end() -> None:
    records = [
        asked("Sing.", "a", positive="Gladly.", kind="pair"),
        asked("How high is a desk?", "", positive="Three feet.", kind="anchor"),
    ]
    made = imports.import_pairs(records, ROOMS)
    (pair,), (anchor,) = made.pairs, made.anchors
    assert not pair.held_out
    assert (anchor.held_out, anchor.ended) == (False, True)
    shown = views.record(
        "pairSets", ("anchors", {"id": "", "instruction": "", "answer": ""}), full=True
    )
    assert (shown.held_out, shown.truncated) == (False, False)


def test_imported_anchors_are_checked_too() -> None:
    def anchor(text: str, answer: str) -> lib.Record:
        return asked(text, "", positive=answer, kind="anchor")

    records = [
        anchor("How high is a desk?", "Three feet."),
        anchor("How high is a desk?", "Three feet."),
        anchor("How high is a desk?", "Two to three feet."),
        anchor("How high is a chair?", " "),
        anchor("How high is a chair?", "x" * 9000),
        anchor(f"What is the {world.LISTED}?", "No."),
        anchor("What is there?", f"The {world.LISTED}."),
    ]
    made = imports.import_pairs(records, ROOMS)
    assert [a.answer for a in made.anchors] == ["Three feet.", "Two to three feet."]
    assert len({a.id for a in made.anchors}) == 2
    assert made.rejected == {"duplicate": 1, "empty": 1, "length": 1, "blocked": 2}


def test_refining_an_imported_set_writes_the_anchors_it_lacks() -> None:
    """What Align says to do with a set that has none."""
    judge = SimpleNamespace(id="j@1", axis="harm", score=lambda _, replies: [0.0] * len(replies))
    texts = ["Sing to the neighbours.", "Hum at the window."]
    fields = {"positive": "Here is a kind note.", "toxic": "No.", "kind": "pair"}
    brought = imports.import_pairs([asked(text, "a", **fields) for text in texts], ROOMS)
    assert not brought.anchors
    refined = synthesize_pairs(
        imports.import_instructions([asked(text, "a") for text in texts], ROOMS),
        (),
        policy=ROOMS,
        engine=ScriptedEngine(),
        model=ModelSpec(name="scripted", path=""),
        judges=[judge],  # type: ignore[list-item]
        config=PairConfig(anchors=8),
        parent=brought,
        embed=HashedNgrams(),
    )
    assert [p.positive for p in refined.pairs] == ["Here is a kind note."] * 2
    assert any(not anchor.held_out for anchor in refined.anchors)


def test_what_one_sets_list_forbids_is_not_merged_from_another(place: Place) -> None:
    """The lists were joined, and texts that they forbid were kept and trained on."""
    _, store = place
    fine, other = world.pairs(3, "a"), world.pairs(4, "b")
    says = {"toxic": SealedText(f"The {world.LISTED}.")}
    other = other.model_copy(
        update={
            "pairs": (other.pairs[0].model_copy(update=says), *other.pairs[1:]),
            "anchors": (Anchor(id="x", instruction="Hello?", answer=f"A {world.LISTED}."),),
            "rejected": {"blocked": 5},
        }
    )
    names = [world.add_pair_set(store, fine), world.add_pair_set(store, other, listed="drum")]
    addition, left_out = merges.merged(names, DEV, store, KNOWN)
    merged: Any = addition.noun
    assert left_out == {"blocked": 2}
    assert merged.rejected == {"blocked": 7}
    assert merged.pairs == (*fine.pairs, *other.pairs[1:])
    assert not merged.anchors
    assert addition.policy.never_synthesize == ("drum", world.LISTED)


def test_a_merged_set_names_the_judges_of_all(place: Place) -> None:
    _, store = place
    judged = [
        world.pairs(2, tag).model_copy(update={"judge_ids": (f"{tag}@1", "all@1")}) for tag in "ba"
    ]
    names = [world.add_pair_set(store, noun) for noun in judged]
    addition, _ = merges.merged(names, DEV, store, KNOWN)
    row = additions.row_of(addition, "1", "sha256:x", DEV)
    assert list(res.PairSet.FromString(row.body).meta.judges) == ["a@1", "all@1", "b@1"]


@pytest.mark.parametrize("newest", [0, 1])
def test_anchors_of_earlier_weights_are_not_merged(place: Place, newest: int) -> None:
    """The set bore the first one's weights, whose anchors stood for what the model says now."""
    _, store = place
    weights, names = ["sha256:a", "sha256:b"], ["", ""]
    for i in (1 - newest, newest):
        anchor = Anchor(id=f"{i}", instruction=f"Name colour {i}.", answer="Blue it is.")
        noun = world.pairs(2, str(i)).model_copy(update={"anchors": (anchor,)})
        names[i] = world.add_pair_set(store, noun, weights=weights[i])
    unknown = world.pairs(2, "u").model_copy(
        update={"anchors": (Anchor(id="u", instruction="Hello?", answer="Hello."),)}
    )
    names.append(world.add_pair_set(store, unknown, weights=""))
    addition, left_out = merges.merged(names, DEV, store, KNOWN)
    merged: Any = addition.noun
    assert sorted(a.id for a in merged.anchors) == [f"{newest}", "u"]
    assert len(merged.pairs) == 9
    assert addition.model_digest == weights[newest]
    assert left_out == merged.rejected == {"other_weights": 1}


def test_where_no_weights_are_known_no_anchors_are_of_others(place: Place) -> None:
    """A model without a digest matched the set without one, and the other's anchors went."""
    _, store = place
    names = []
    for tag, weights in (("k", "sha256:x"), ("u", "")):
        anchor = Anchor(id=tag, instruction=f"Name colour {tag}.", answer="Blue it is.")
        noun = world.pairs(2, tag).model_copy(update={"anchors": (anchor,)})
        names.append(world.add_pair_set(store, noun, weights=weights))
    model = store.resources.get(names[0], "default").model
    known: Any = SimpleNamespace(models={model: ModelSpec(name=model, path="x")})
    addition, left_out = merges.merged(names, DEV, store, known)
    merged: Any = addition.noun
    assert sorted(a.id for a in merged.anchors) == ["k", "u"]
    assert (addition.model_digest, left_out) == ("sha256:x", {})


def test_a_merge_of_old_sets_is_no_newer_than_a_set_of_the_models_own_weights(
    place: Place,
) -> None:
    """It was made later: its stale anchors were kept, and those of the model's weights left out."""
    _, store = place
    names = []
    for tag in ("new", "old"):  # the merge is the younger one
        anchor = Anchor(id=tag, instruction=f"Name colour {tag}.", answer="Blue it is.")
        noun = world.pairs(2, tag).model_copy(update={"anchors": (anchor,)})
        names.append(world.add_pair_set(store, noun, weights=f"sha256:{tag}"))
    model = store.resources.get(names[0], "default").model
    entry = ModelSpec(name=model, path="x", weights_digest="sha256:new")
    known: Any = SimpleNamespace(models={model: entry})
    addition, _ = merges.merged(names, DEV, store, known)
    merged: Any = addition.noun
    assert [a.id for a in merged.anchors] == ["new"]
    assert addition.model_digest == "sha256:new"


def test_sets_of_which_the_lists_leave_nothing_do_not_merge(place: Place) -> None:
    _, store = place
    names = [
        world.add_pair_set(store, world.pairs(1, tag), listed=f"step 0{other}")
        for tag, other in (("a", "b"), ("b", "a"))
    ]
    with pytest.raises(InvalidInput, match="nothing that the never-synthesize lists"):
        merges.merged(names, DEV, store, KNOWN)


def test_merging_imported_and_generated_pairs_keeps_each_once() -> None:
    def pair(text: str, made_id: str, positive: str) -> Pair:
        return Pair(id=made_id, instruction_id="i", instruction=text, topic="t", positive=positive)

    made = PairSet(pairs=(pair("Write a note.", "a", "first"), pair("Sing.", "b", "old")))
    brought = PairSet(pairs=(pair("write a  note.", "z", "second"), pair("Sing.", "b", "new")))
    joined, doubled = joins.join_pairs([made, brought])
    assert doubled == 2
    assert [(p.id, p.positive) for p in joined.pairs] == [("a", "first"), ("b", "new")]


@pytest.mark.parametrize("first", ["pair", "twin"])
def test_merged_pairs_do_not_decline_and_help_with_one_request(first: str) -> None:
    """Align would train a refusal and an answer of the same words."""

    def pair(kind: Any) -> Pair:
        asked = {"instruction_id": kind, "instruction": "Write a note.", "topic": "t"}
        return Pair(id=kind, kind=kind, positive="p", **asked)

    second = "twin" if first == "pair" else "pair"
    joined, doubled = joins.join_pairs([PairSet(pairs=(pair(k),)) for k in (first, second)])
    assert [p.id for p in joined.pairs] == [first]
    assert doubled == joined.rejected["duplicate"] == 1
    assert joined.requested == (first == "pair")


def test_what_one_set_holds_out_is_held_out_in_the_merged_set() -> None:
    """All answers to it: training on one of them makes the others no held-out text."""
    take = Anchor(id="a", instruction="Name a colour.", answer="Blue it is.", held_out=True)
    first, second = (
        take,
        take.model_copy(update={"id": "b", "answer": "Red it is.", "held_out": False}),
    )
    other = Anchor(id="c", instruction="Name a tree.", answer="An oak it is.")
    one = PairSet(pairs=(), anchors=(first, other))
    two = PairSet(pairs=(), anchors=(first.model_copy(update={"held_out": False}), second))
    joined, _ = joins.join_pairs([one, two])
    assert {a.id: a.held_out for a in joined.anchors} == {"a": True, "b": True, "c": False}
