"""Marks in the real store: durable, sealed, counted once, handed over as an annotation set."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import page_world as world
import pytest
from starlette.testclient import TestClient

from ptalign.errors import InvalidInput
from ptalign.nouns import MAX_ANNOTATIONS
from ptalign.sealed import SealedText
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server.errors import NotFound
from ptalign_server.gateway.identity import Tokens
from ptalign_server.marks import mark_id
from ptalign_server.page import create_app
from ptalign_server.page.library import Full, Mark, Visitor
from ptalign_server.page.marks import counted, keep
from ptalign_server.page.sessions import fingerprint
from ptalign_server.page.shelf import AnnotationShelf
from ptalign_server.store.sets import AnnotationSet
from ptalign_server.worker.marks import called_with

ANN = Visitor("ann", "default", frozenset({"annotator"}))
BOB = Visitor("bob", "default", frozenset({"annotator"}))
EVE = Visitor("eve", "elsewhere", frozenset({"annotator"}))


class Place:
    """An open store with one pair set of 60 pairs."""

    def __init__(self, folder: Path, pairs: int = 60) -> None:
        self.folder = folder
        self.settings, self.store = world.open_store(folder)
        self.shelf = AnnotationShelf(self.settings, self.store)
        self.pairs = world.add_pair_set(self.store, world.pairs(pairs))

    def items(self, visitor: Visitor = ANN) -> list[str]:
        return [i.id for i in self.shelf.annotation_items(visitor, self.pairs).items]

    def mark(self, item: str, verdict: str = "good", visitor: Visitor = ANN) -> None:
        self.shelf.add_annotation(visitor, self.pairs, Mark(item, verdict, seconds=30))  # type: ignore[arg-type]

    def purge(self, pair_set: str) -> None:
        row = self.store.resources.get(pair_set, "default")
        change = self.store.resources.mark_purged
        self.store.write(lambda c: change(c, row, row.body)).result()
        self.store.write(lambda c: self.store.keys.destroy(c, row.id)).result()
        self.store.sets.erase(row.id)

    def reopen(self) -> None:
        self.store.close()
        self.settings, self.store = world.open_store(self.folder)
        self.shelf = AnnotationShelf(self.settings, self.store)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.store.close()


def noun(place: Place, name: str) -> AnnotationSet:
    row = place.store.resources.get(name, "default")
    return place.store.sets.load(name, AnnotationSet, row.content)


def test_the_queue_holds_every_pair_and_twins_come_last(place: Place) -> None:
    items = place.shelf.annotation_items(ANN, place.pairs).items
    assert [item.twin for item in items] == [False] * 60 + [True]
    assert [item.bad is None for item in items] == [False] * 60 + [True]
    (queue,) = place.shelf.queues(ANN)
    assert (queue.pairs, queue.marked, queue.agreement) == (60, 0, None)
    assert queue.made_by == "alice"


def test_an_item_says_where_harm_begins_in_its_topic(place: Place) -> None:
    """The policy's note reached no annotator."""
    shelf, row = place.shelf, place.store.sets.folder(place.pairs.partition("/")[2])
    items = shelf.annotation_items(ANN, place.pairs).items
    assert {item.boundary for item in items} == {world.BOUNDARY}
    (row / "policy").unlink()
    assert {i.boundary for i in shelf.annotation_items(ANN, place.pairs).items} == {""}


def test_a_policy_without_a_toxic_side_has_a_queue(place: Place) -> None:
    """It was empty: only pairs with both sides were shown."""
    name = world.add_pair_set(place.store, world.one_sided(4, twins=2), policy="careful")
    items = place.shelf.annotation_items(ANN, name).items
    assert [(item.bad, item.twin) for item in items] == [(None, False)] * 4 + [(None, True)] * 2
    assert {q.policy: q.pairs for q in place.shelf.queues(ANN)} == {"careful": 4, "tone": 60}
    place.shelf.add_annotation(ANN, name, Mark(items[0].id, "edit", "A fuller answer."))
    place.shelf.add_annotation(ANN, name, Mark(items[1].id, "good"))
    place.shelf.add_annotation(ANN, name, Mark(items[4].id, "bad"))
    made = noun(place, place.shelf.hand_over(ANN, name))
    assert [(r.note, r.bad) for r in made.records] == [("edited", None), ("confirmed", None)]
    assert made.rejected == (items[4].id,)


def test_an_edit_writes_the_sides_that_the_pair_has(place: Place) -> None:
    two = place.shelf.annotation_items(ANN, place.pairs).items[0].id
    with pytest.raises(InvalidInput, match="bad: needs 1 character"):
        place.shelf.add_annotation(ANN, place.pairs, Mark(two, "edit", "Gladly."))
    twin = place.shelf.annotation_items(ANN, place.pairs).items[-1].id
    with pytest.raises(InvalidInput, match="bad: must be absent"):
        edit = Mark(twin, "edit", "Gladly.", SealedText("No."))
        place.shelf.add_annotation(ANN, place.pairs, edit)
    assert place.shelf.queues(ANN)[0].marked == 0


def test_marks_survive_a_restart_and_are_not_offered_again(place: Place) -> None:
    first, second = place.items()[:2]
    place.mark(first)
    place.mark(second, "bad")
    place.reopen()
    assert first not in place.items()
    (queue,) = place.shelf.queues(ANN)
    assert queue.marked == 2
    assert queue.minutes == pytest.approx(1.0)


def test_what_is_handed_over_is_an_annotation_set_with_its_parent(place: Place) -> None:
    confirmed, wrong, edited = place.items()[:3]
    place.mark(confirmed)
    place.mark(wrong, "bad")
    rewrite = Mark(edited, "edit", "A kinder answer.", SealedText("A colder answer."), 60.0)
    place.shelf.add_annotation(ANN, place.pairs, rewrite)
    name = place.shelf.hand_over(ANN, place.pairs)
    assert name.partition("/")[2] not in place.store.sets.unsettled(time.time() + 60)
    made = noun(place, name)
    assert sorted(r.note for r in made.records) == ["confirmed", "edited"]
    by_note = {r.note: r for r in made.records}
    assert by_note["edited"].good == "A kinder answer."
    assert by_note["confirmed"].bad is not None
    assert by_note["confirmed"].bad.reveal().startswith(world.BAD)
    row = place.store.resources.get(name, "default")
    message = res.AnnotationSet.FromString(row.body)
    assert made.rejected == tuple(message.rejected) == (wrong,)
    assert message.count == 3
    assert message.annotator_minutes == pytest.approx(2.0)
    assert message.meta.parents[0].startswith(f"{place.pairs}@sha256:")
    assert message.meta.made_by == ANN.name
    assert (row.model, row.policy) == ("m", "tone")
    job: Any = SimpleNamespace(
        load=lambda name, _: noun(place, name),
        resource=lambda name: place.store.resources.get(name, "default"),
        room=SimpleNamespace(store=place.store),
    )
    assert called_with(job, pb.SynthesizePairsRequest(annotation_set=name)) == made.records


def test_a_later_set_holds_the_earlier_marks_too(place: Place) -> None:
    first, second = place.items()[:2]
    place.mark(first)
    one = place.shelf.hand_over(ANN, place.pairs)
    place.mark(second)
    two = place.shelf.hand_over(BOB, place.pairs)
    assert len(noun(place, one).records) == 1
    assert len(noun(place, two).records) == 2


def test_nothing_to_hand_over_is_said(place: Place) -> None:
    with pytest.raises(InvalidInput, match="Mark at least one"):
        place.shelf.hand_over(ANN, place.pairs)


def test_a_set_of_nothing_but_wrong_pairs_is_handed_over(place: Place) -> None:
    """It failed: the annotator's "wrong" did nothing at all."""
    wrong = place.items()[:2]
    for item in wrong:
        place.mark(item, "bad")
    made = noun(place, place.shelf.hand_over(ANN, place.pairs))
    assert (made.records, made.rejected, made.marks) == ((), tuple(sorted(wrong)), 2)


def test_the_last_opinion_on_a_pair_is_handed_over(place: Place) -> None:
    first, second = place.items()[:2]
    place.mark(first, "good")
    place.mark(second, "bad")
    place.mark(first, "bad", BOB)
    place.mark(second, "good", BOB)
    made = noun(place, place.shelf.hand_over(ANN, place.pairs))
    assert made.rejected == (first,)
    assert [r.note for r in made.records] == ["confirmed"]


def test_wrong_is_said_of_one_sets_answers(place: Place) -> None:
    """A set that refines it has new answers under the same ids: they are to be looked at."""
    right, wrong = place.items()[:2]
    place.mark(right)
    place.mark(wrong, "bad")
    refined = world.add_pair_set(place.store, world.pairs(60))
    offered = {i.id: i.opinions for i in place.shelf.annotation_items(ANN, refined).items}
    assert offered[wrong] == 0
    assert right not in offered
    made = noun(place, place.shelf.hand_over(ANN, refined))
    assert (len(made.records), made.rejected) == (1, ())
    place.shelf.add_annotation(ANN, refined, Mark(wrong, "good"))
    made = noun(place, place.shelf.hand_over(ANN, refined))
    assert (len(made.records), made.rejected) == (2, ())
    assert place.shelf.queues(ANN)[0].marked == 2


def test_wrong_stands_for_each_set_that_it_was_said_of(place: Place) -> None:
    """The word on one set's answers took back what was said of another's under the same id."""
    first, second = place.items()[:2]
    place.mark(first, "bad")
    place.mark(second, "bad")
    refined = world.add_pair_set(place.store, world.pairs(60))
    place.shelf.add_annotation(ANN, refined, Mark(first, "bad"))
    place.shelf.add_annotation(ANN, refined, Mark(second, "good"))
    place.shelf.add_annotation(ANN, refined, Mark(second, "withdrawn"))
    assert noun(place, place.shelf.hand_over(ANN, place.pairs)).rejected == tuple(
        sorted((first, second))
    )
    assert noun(place, place.shelf.hand_over(ANN, refined)).rejected == (first,)
    place.mark(first, "good")  # another word on the first set's answer
    assert noun(place, place.shelf.hand_over(ANN, place.pairs)).rejected == (second,)
    assert place.shelf.queues(ANN)[0].marked == 2


def test_what_is_counted_already_is_shown_at_the_limit_too(place: Place) -> None:
    """Answers that were written anew were never looked at: "More would not be used"."""
    items = place.items()[:MAX_ANNOTATIONS]
    wrong = items[7]
    for item in items:
        place.mark(item, "bad" if item == wrong else "good")
    offered = place.shelf.annotation_items(ANN, place.pairs).items
    assert not any(item.free for item in offered)
    refined = world.add_pair_set(place.store, world.pairs(60))
    offered = place.shelf.annotation_items(ANN, refined).items
    assert [item.id for item in offered if item.free] == [wrong]
    place.shelf.add_annotation(ANN, refined, Mark(wrong, "good"))
    assert place.shelf.queues(ANN)[0].marked == MAX_ANNOTATIONS


def test_handing_over_again_answers_the_set_that_was_made(place: Place) -> None:
    """A double click, or the page loaded again, sealed a second set of the same marks."""
    first, second = place.items()[:2]
    place.mark(first)
    with ThreadPoolExecutor(4) as threads:
        names = set(threads.map(lambda _: place.shelf.hand_over(ANN, place.pairs), range(4)))
    assert len(names) == 1
    place.mark(second)
    assert place.shelf.hand_over(ANN, place.pairs) not in names


def test_marks_stop_at_49_and_count_over_pair_sets_of_the_policy(place: Place) -> None:
    items = place.items()
    for item in items[: MAX_ANNOTATIONS - 1]:
        place.mark(item)
    other = world.add_pair_set(place.store, world.pairs(3, "b"))
    extra = place.shelf.annotation_items(ANN, other).items
    place.shelf.add_annotation(ANN, other, Mark(extra[0].id, "good"))
    assert {q.marked for q in place.shelf.queues(ANN)} == {MAX_ANNOTATIONS}
    with pytest.raises(Full):
        place.mark(items[MAX_ANNOTATIONS])
    with pytest.raises(Full):
        place.shelf.add_annotation(BOB, other, Mark(extra[1].id, "good"))
    assert len(noun(place, place.shelf.hand_over(ANN, place.pairs)).records) == MAX_ANNOTATIONS


def test_marks_that_a_set_was_made_with_count_and_those_again_cost_nothing(place: Place) -> None:
    """The page counted its own draft alone: 16 marks of a file and 49 of the page made 65."""
    noun = world.pairs(60, "c")
    texts = [f"Sing {n} songs." for n in range(MAX_ANNOTATIONS - 3)] + [
        noun.pairs[0].instruction.upper()
    ]
    ids = tuple(mark_id(text) for text in texts)
    name = world.add_pair_set(place.store, noun.model_copy(update={"annotation_ids": ids}))
    assert {q.pair_set: q.marked for q in place.shelf.queues(ANN)} == {
        name: MAX_ANNOTATIONS - 2,
        place.pairs: 0,
    }
    for number in range(3):
        place.shelf.add_annotation(ANN, name, Mark(noun.pairs[number].id, "good"))
    assert place.shelf.annotation_items(ANN, name).queue.marked == MAX_ANNOTATIONS
    with pytest.raises(Full):
        place.shelf.add_annotation(ANN, name, Mark(noun.pairs[3].id, "good"))
    place.shelf.add_annotation(BOB, name, Mark(noun.pairs[2].id, "good"))
    assert {q.pair_set: q.marked for q in place.shelf.queues(ANN)} == {
        name: MAX_ANNOTATIONS,
        place.pairs: 3,
    }


def test_a_refined_set_counts_what_was_handed_over_for_it_once(place: Place) -> None:
    marked = place.items()[:5]
    for item in marked:
        place.mark(item)
    known = {p.id: mark_id(p.instruction) for p in world.pairs(60).pairs}
    noun = world.pairs(60).model_copy(update={"annotation_ids": tuple(known[i] for i in marked)})
    refined = world.add_pair_set(place.store, noun)
    assert place.shelf.annotation_items(ANN, refined).queue.marked == 5


def test_marks_of_a_draft_of_an_earlier_version_count_once_too(place: Place) -> None:
    pair = world.pairs(1).pairs[0]
    old = keep(ANN, place.pairs, Mark(pair.id, "good"), pair, 0).model_copy(update={"mark_id": ""})
    assert counted([old], ()) == counted([old], [mark_id(pair.instruction)]) == 1


def test_marks_for_one_set_are_not_handed_over_for_one_made_with_others(place: Place) -> None:
    """SynthesizePairs would refuse the very command that the page names."""
    for item in place.items()[:MAX_ANNOTATIONS]:
        place.mark(item)
    noun = world.pairs(60).model_copy(update={"annotation_ids": (mark_id("Sing."),)})
    other = world.add_pair_set(place.store, noun)
    with pytest.raises(
        InvalidInput, match=f"With the 1 that .* these are {MAX_ANNOTATIONS + 1} marks"
    ):
        place.shelf.hand_over(ANN, other)
    place.shelf.hand_over(ANN, place.pairs)


def test_a_broken_set_holds_up_no_other(place: Place) -> None:
    broken = world.add_pair_set(place.store, world.pairs(2, "b"))
    (place.store.sets.folder(broken.partition("/")[2]) / "noun").unlink()
    assert {q.pair_set for q in place.shelf.queues(ANN)} == {broken, place.pairs}


def test_inline_policies_of_one_name_share_no_marks(place: Place) -> None:
    """One team's marks filled the other's page, and were handed over as its own."""
    inline: dict[str, str] = {"policy": "inline", "policy_digest": "sha256:x"}
    ours = world.add_pair_set(place.store, world.pairs(3, "x"), **inline)
    more = world.add_pair_set(place.store, world.pairs(3, "y"), **inline)
    theirs = world.add_pair_set(
        place.store, world.pairs(3, "z"), policy="inline", policy_digest="sha256:z"
    )
    for item in place.shelf.annotation_items(ANN, ours).items[:2]:
        place.shelf.add_annotation(ANN, ours, Mark(item.id, "good"))
    counts = {q.pair_set: q.marked for q in place.shelf.queues(ANN)}
    assert counts == {ours: 2, more: 2, theirs: 0, place.pairs: 0}
    with pytest.raises(InvalidInput, match="Mark at least one"):
        place.shelf.hand_over(ANN, theirs)


def test_an_edited_policy_keeps_its_marks(place: Place) -> None:
    place.mark(place.items()[0])
    edited = world.add_pair_set(place.store, world.pairs(3, "e"), policy_digest="sha256:edited")
    assert place.shelf.annotation_items(ANN, edited).queue.marked == 1


def test_the_limit_holds_when_many_mark_at_once(place: Place) -> None:
    people = [Visitor(f"p{n}", "default", ANN.roles) for n in range(6)]
    items = place.items()

    def work(job: tuple[int, str]) -> bool:
        try:
            place.mark(job[1], "good", people[job[0] % 6])
        except Full:
            return False
        return True

    with ThreadPoolExecutor(6) as threads:
        kept = sum(threads.map(work, enumerate(items)))
    assert kept == MAX_ANNOTATIONS
    assert place.shelf.queues(ANN)[0].marked == MAX_ANNOTATIONS


def test_a_second_opinion_costs_no_mark_and_gives_agreement(place: Place) -> None:
    first, second = place.items()[:2]
    place.mark(first)
    place.mark(second)
    place.mark(first, "good", BOB)
    place.mark(second, "bad", BOB)
    (queue,) = place.shelf.queues(ANN)
    assert (queue.marked, queue.agreement) == (2, 0.5)
    offered = place.shelf.annotation_items(BOB, place.pairs).items
    assert {first, second}.isdisjoint(i.id for i in offered)


def test_two_sets_answers_under_one_id_are_no_disagreement(place: Place) -> None:
    """Ann's "wrong" on an answer and Bob's "right" on the one that replaced it counted as one."""
    first = place.items()[0]
    place.mark(first, "bad")
    refined = world.add_pair_set(place.store, world.pairs(60))
    place.shelf.add_annotation(BOB, refined, Mark(first, "good"))
    assert place.shelf.queues(ANN)[0].agreement is None
    place.mark(first, "bad", Visitor("cy", "default", ANN.roles))
    assert place.shelf.queues(ANN)[0].agreement == 1.0


def test_what_a_visitor_skipped_comes_last_for_them_and_for_this_set(place: Place) -> None:
    first, second, third = place.items()[:3]
    place.mark(first, "skipped")
    place.mark(second, "skipped")
    assert place.items()[0] == third
    assert place.items()[-2:] == [first, second]
    place.mark(first, "skipped")
    assert place.items()[-2:] == [second, first]
    assert place.items(BOB)[:3] == [first, second, third]
    board = place.shelf.annotation_items(ANN, place.pairs)
    assert (board.queue.marked, board.last, board.to_seal) == (0, "", 0)
    place.reopen()
    assert place.items()[-2:] == [second, first]
    refined = world.add_pair_set(place.store, world.pairs(60))
    assert place.shelf.annotation_items(ANN, refined).items[0].id == first


def test_skipping_a_new_answer_leaves_what_was_said_of_the_old_one(place: Place) -> None:
    wrong = place.items()[0]
    place.mark(wrong, "bad")
    refined = world.add_pair_set(place.store, world.pairs(60))
    place.shelf.add_annotation(ANN, refined, Mark(wrong, "skipped"))
    assert noun(place, place.shelf.hand_over(ANN, place.pairs)).rejected == (wrong,)


def test_time_on_marks_that_did_not_stay_was_worked_too(place: Place) -> None:
    """Minutes were those of the marks that stood: less work than was paid for."""
    first, second = place.items()[:2]
    place.mark(first)
    place.shelf.add_annotation(ANN, place.pairs, Mark(first, "withdrawn"))
    place.mark(first, "bad")
    place.mark(second)
    place.shelf.add_annotation(ANN, place.pairs, Mark(second, "withdrawn"))
    assert place.shelf.queues(ANN)[0].minutes == pytest.approx(1.5)
    made = noun(place, place.shelf.hand_over(ANN, place.pairs))
    assert (made.marks, made.annotator_minutes) == (1, pytest.approx(1.5))


def test_the_page_says_how_many_marks_it_would_hand_over(place: Place) -> None:
    """It said all that count towards the limit."""
    right, wrong = place.items()[:2]
    place.mark(right)
    place.mark(wrong, "bad")
    refined = world.add_pair_set(place.store, world.pairs(60))
    for name, count in ((place.pairs, 2), (refined, 1)):
        board = place.shelf.annotation_items(ANN, name)
        assert (board.queue.marked, board.to_seal) == (2, count)
        assert noun(place, place.shelf.hand_over(ANN, name)).marks == count


def test_a_mark_can_be_taken_back(place: Place) -> None:
    first = place.items()[0]
    place.mark(first)
    assert place.shelf.annotation_items(ANN, place.pairs).last == first
    place.mark(first, "withdrawn")
    board = place.shelf.annotation_items(ANN, place.pairs)
    assert first in [i.id for i in board.items]
    assert (board.queue.marked, board.last) == (0, "")


def test_only_a_mark_on_the_set_at_hand_is_offered_to_be_taken_back(place: Place) -> None:
    """Taking back what was marked in another set was not found."""
    place.mark(place.items()[0])
    other = world.add_pair_set(place.store, world.pairs(3, "b"))
    assert place.shelf.annotation_items(ANN, other).last == ""


def test_other_tenants_see_and_change_nothing(place: Place) -> None:
    assert place.shelf.queues(EVE) == []
    with pytest.raises(NotFound):
        place.shelf.annotation_items(EVE, place.pairs)
    with pytest.raises(NotFound):
        place.shelf.add_annotation(EVE, place.pairs, Mark(place.items()[0], "good"))
    with pytest.raises(NotFound):
        place.shelf.annotation_items(ANN, "operations/x")


def test_unknown_items_are_not_kept(place: Place) -> None:
    with pytest.raises(NotFound):
        place.mark("ffffffffffffffff")


def test_a_look_is_in_the_audit_trail(place: Place) -> None:
    before = place.store.audit.count()
    place.shelf.record_reveal(ANN, place.pairs, place.items()[0])
    assert place.store.audit.count() == before + 1
    assert place.store.audit.first_bad() == 0


def test_no_text_lies_in_clear_in_any_file(place: Place) -> None:
    item = place.items()[0]
    place.shelf.add_annotation(
        ANN, place.pairs, Mark(item, "edit", "CANARY-GOOD", SealedText("CANARY-BAD"))
    )
    place.shelf.hand_over(ANN, place.pairs)
    place.store.close()
    for file in place.folder.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert b"CANARY" not in data, file
            assert world.BAD.encode() not in data, file


def test_marks_on_a_purged_set_hold_none_of_its_text(place: Place) -> None:
    kept, purged = place.items()[0], world.add_pair_set(place.store, world.pairs(2, "z"))
    place.mark(kept)
    gone = place.shelf.annotation_items(ANN, purged).items[0].id
    place.shelf.add_annotation(ANN, purged, Mark(gone, "good"))
    place.purge(purged)
    made = noun(place, place.shelf.hand_over(ANN, place.pairs))
    assert len(made.records) == 1
    assert [q.pair_set for q in place.shelf.queues(ANN)] == [place.pairs]


@pytest.mark.parametrize("tag", ["", "z"], ids=["the same pairs refined", "other pairs"])
def test_a_page_that_was_full_of_marks_on_a_purged_set_has_room_again(
    place: Place, tag: str
) -> None:
    """It said that all marks were made, and had none to hand over."""
    for item in place.items()[:MAX_ANNOTATIONS]:
        place.mark(item)
    place.purge(place.pairs)
    place.pairs = world.add_pair_set(place.store, world.pairs(60, tag))
    board = place.shelf.annotation_items(ANN, place.pairs)
    assert (board.queue.marked, board.to_seal, len(board.items)) == (0, 0, 61)
    for item in place.items()[:MAX_ANNOTATIONS]:
        place.mark(item)
    with pytest.raises(Full):
        place.mark(place.items()[0])
    assert [q.marked for q in place.shelf.queues(ANN)] == [MAX_ANNOTATIONS]
    assert len(noun(place, place.shelf.hand_over(ANN, place.pairs)).records) == MAX_ANNOTATIONS


def test_visitors_come_from_the_servers_tokens(place: Place) -> None:
    tokens = Tokens(place.settings.state / "tokens.json")
    token = tokens.add("ann", "default", ["annotator"])
    assert place.shelf.visitor(fingerprint(token)) == ANN
    tokens.remove("ann", "default")
    assert place.shelf.visitor(fingerprint(token)) is None
    assert place.shelf.local() is not None


@pytest.mark.parametrize(
    ("host", "page_host", "free"),
    [
        ("127.0.0.1", "localhost", True),
        ("127.0.0.1", "0.0.0.0", False),
        ("0.0.0.0", "127.0.0.1", False),
    ],
)
def test_a_page_that_others_can_reach_asks_for_a_token(
    place: Place, host: str, page_host: str, free: bool
) -> None:
    """It went by gRPC's address alone: anybody who sent `Host: localhost` came in."""
    settings = place.settings.model_copy(update={"host": host, "page_host": page_host})
    shelf = AnnotationShelf(settings, place.store)
    assert (shelf.local() is not None) == free
    page = TestClient(create_app(shelf), "http://localhost", follow_redirects=False)
    assert page.get("/").status_code == (200 if free else 303)


def test_replicas_share_the_cookie_key(place: Place) -> None:
    assert AnnotationShelf(place.settings, place.store).secret() == place.shelf.secret()
    assert len(place.shelf.secret()) == 32
