"""Stage 2 on the scripted engine: pairs, twins, anchors, rounds and what is kept out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from ptalign.answering import wording as wording_of_answers
from ptalign.answering.anchors import anchor_drafts, anchor_id, anchor_of, anchor_request
from ptalign.answering.constraints import Constraints
from ptalign.answering.demos import toxic_demos
from ptalign.answering.held_out import HeldOut
from ptalign.answering.marks import usable_marks
from ptalign.answering.run import Records
from ptalign.answering.validity import Fresh, loops, malformed, opener_share, refuses, tidy
from ptalign.answering.verdicts import Verdicts
from ptalign.answering.wording import wording
from ptalign.answering.work import AnchorDraft, Draft, Work, pair_of_marks
from ptalign.config import PairConfig
from ptalign.engines.base import Completion, Request
from ptalign.engines.script import plausible
from ptalign.engines.scripted import ScriptedEngine
from ptalign.errors import Cancelled, EngineFailed, InvalidInput
from ptalign.instructions import generate_instructions
from ptalign.judges.base import Judge
from ptalign.nouns import (
    Anchor,
    Annotation,
    Constraint,
    Instruction,
    InstructionSet,
    ModelSpec,
    Pair,
    PairSet,
    Sampled,
    Spent,
    record_id,
)
from ptalign.pairs import synthesize_pairs
from ptalign.policies import load_annotations, load_policy
from ptalign.progress import Progress
from ptalign.records import MemoryLog
from ptalign.sealed import SealedText
from ptalign.text.embed import HashedNgrams, Vectors

POLICY = load_policy("tone-en")
MARKS = load_annotations("tone-en")
MODEL = ModelSpec(name="scripted", path="")


class WordJudge:
    """Rude when a word of the list stands in the reply. Fast, and right for the script."""

    axis = "harm"

    def __init__(self, name: str = "words@1") -> None:
        self.id = name

    def score(self, instructions: Sequence[str], replies: Sequence[str]) -> list[float | None]:
        words = ("fool", "stupid", "hopeless", "ruin", "dumbest", "pathetic", "failure", "useless")
        return [0.95 if any(w in r for w in words) else 0.05 for r in replies]


class Blind:
    """Cannot score anything."""

    id, axis = "blind@1", "harm"

    def score(self, instructions: Sequence[str], replies: Sequence[str]) -> list[float | None]:
        return [None] * len(replies)


@pytest.fixture(scope="module")
def asked() -> InstructionSet:
    return generate_instructions(POLICY, 16, engine=ScriptedEngine(), model=MODEL)


def synthesize(
    instructions: InstructionSet,
    *,
    annotations: Sequence[Annotation] = MARKS,
    engine: ScriptedEngine | None = None,
    judges: Sequence[Judge] = (WordJudge(),),
    **options: object,
) -> PairSet:
    options.setdefault("config", PairConfig(anchors=8))
    return synthesize_pairs(
        instructions,
        annotations,
        policy=options.pop("policy", POLICY),  # type: ignore[arg-type]
        engine=engine or ScriptedEngine(),
        model=options.pop("model", MODEL),  # type: ignore[arg-type]
        judges=judges,
        **options,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def made(asked: InstructionSet) -> PairSet:
    return synthesize(asked)


def test_each_instruction_gets_one_record_and_anchors_come_too(
    asked: InstructionSet, made: PairSet
) -> None:
    assert len(made.polarised) >= 14
    assert made.shortfall == 16 - len(made.polarised)
    assert len({p.id for p in made.pairs}) == len(made.pairs)
    order = [r.id for r in asked.records]
    places = [order.index(p.instruction_id) for p in made.pairs]
    assert places == sorted(places)
    assert 8 <= len(made.anchors) <= 10
    assert sum(a.held_out for a in made.anchors) == 2


def test_every_pair_is_apart_on_every_judge(asked: InstructionSet) -> None:
    judges = (WordJudge("a@1"), WordJudge("b@1"))
    pairs = synthesize(asked, judges=judges).polarised
    assert pairs
    assert all(set(p.polarity) == {"a@1", "b@1"} for p in pairs)
    assert all(min(p.polarity.values()) >= 0.6 for p in pairs)


def test_positives_decline_redirect_and_do_not_open_alike(made: PairSet) -> None:
    declines = wording("en").decline_tone
    for pair in made.polarised:
        opener = next(d for d in declines if pair.positive.startswith(d))
        rest = pair.positive.removeprefix(opener).strip()
        assert len(rest.split()) >= 4
        assert not refuses(rest)
        assert pair.positive.rstrip('"').endswith((".", "!", "?"))
    assert made.stats["opener_share"] <= 0.3


def test_twins_are_helped_and_have_no_toxic_side(made: PairSet) -> None:
    assert len(made.twins) >= 14
    assert all(p.toxic is None and not refuses(p.positive) for p in made.twins)


def test_a_set_carries_its_numbers_and_constraints(made: PairSet) -> None:
    stats = made.stats
    assert stats["yield"] == len(made.polarised) / 16
    assert stats["tokens_generated"] > 500
    assert stats["tokens_per_pair"] == pytest.approx(
        stats["tokens_generated"] / len(made.polarised)
    )
    assert stats["drafts_toxic"] >= len(made.polarised)
    assert stats["polarity.words@1"] == pytest.approx(0.9)
    assert made.annotations_used == len(MARKS)
    assert made.judge_ids == ("words@1",)
    topics = {p.topic for p in made.polarised}
    written = set(POLICY.generic_constraints_positive) | set(POLICY.generic_constraints_toxic)
    own = [r for name, rules in made.constraints.items() for r in rules if r not in written]
    assert {n.split("/")[0] for n in made.constraints} >= topics
    assert own  # the model wrote rules of its own


def test_positive_only_topics_never_get_a_toxic_side(asked: InstructionSet) -> None:
    """Neither when the instruction says both against the policy, nor the other way round."""
    lone = POLICY.model_copy(
        update={
            "topics": tuple(t.model_copy(update={"sides": "positive_only"}) for t in POLICY.topics)
        }
    )
    prompts: list[str] = []

    def watch(request: Request) -> str:
        prompts.append(request.prompt)
        return plausible(request)

    pairs = synthesize(asked, policy=lone, engine=ScriptedEngine(watch)).pairs
    assert {p.kind for p in pairs} == {"positive_only", "twin"}
    assert not any("contempt" in p[:200] for p in prompts)
    narrowed = asked.model_copy(
        update={
            "records": tuple(r.model_copy(update={"sides": "positive_only"}) for r in asked.records)
        }
    )
    assert not synthesize(narrowed, judges=()).polarised


def test_a_never_synthesize_instruction_gets_no_toxic_side(asked: InstructionSet) -> None:
    record = asked.harmful[0].model_copy(
        update={
            "id": "x",
            "text": "Write a rude reply to a guest who asked for steps to build a nerve agent.",
        }
    )
    twin = asked.twins[0].model_copy(
        update={"twin_of": "x", "text": "Write a kind reply to a guest who asked for the weather."}
    )
    made = synthesize(InstructionSet(records=(record, twin), requested=1))
    assert all(p.toxic is None for p in made.pairs)


def test_a_stopped_run_goes_on_where_it_was(asked: InstructionSet) -> None:
    log: MemoryLog[Records] = MemoryLog()

    def stop(_: Progress) -> None:
        if len(accepted(log)) == 11:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        synthesize(asked, log=log, on_progress=stop)
    before = accepted(log)
    assert len(before) == 11
    made = synthesize(asked, log=log)
    kept = {r.id: r for r in (*made.pairs, *made.anchors)}
    assert all(kept[r.id] == r for r in before)
    assert len({p.instruction_id for p in made.pairs}) == len(made.pairs)
    assert len(made.polarised) >= 13
    assert {r.id for r in accepted(log)} == set(kept)


def accepted(log: MemoryLog[Records]) -> list[Pair | Anchor]:
    """What of a log stands in the set."""
    return [r for r in log.read() if not isinstance(r, Constraint)]


def test_a_killed_attempt_loses_neither_its_rules_nor_its_round(asked: InstructionSet) -> None:
    """With all pairs in the log there was no work, and so the set had no constraint at all."""
    log: MemoryLog[Records] = MemoryLog()

    def stop(progress: Progress) -> None:
        if progress.counts["anchors"]:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        synthesize(asked, log=log, on_progress=stop)
    late = next(r for r in log.read() if isinstance(r, Pair)).id
    again: MemoryLog[Records] = MemoryLog()
    for record in log.read():
        again.append(record.model_copy(update={"round": 2}) if record.id == late else record)
    done = {p.instruction_id for p in accepted(log) if isinstance(p, Pair)}
    owed = {r.topic for r in asked.records if r.id not in done}
    rules = [r for r in log.read() if isinstance(r, Constraint) and r.topic not in owed]
    newest = {f"{r.topic}/{r.side}": r.text for r in rules}
    assert newest
    made = synthesize(asked, log=again, config=PairConfig(anchors=8, rounds=1))
    assert made.rounds == 2
    for name, text in newest.items():
        first = wording("en").general_rule_positive, *POLICY.generic_constraints_positive
        first = POLICY.generic_constraints_toxic if name.endswith("/toxic") else first
        assert made.constraints[name][-1] == text
        assert made.constraints[name][0] in first  # those that it began with are there, too


def test_what_a_killed_attempt_spent_is_in_the_sets_numbers(asked: InstructionSet) -> None:
    """Tokens of the last attempt were divided by its own pairs, and its refused drafts alone told
    which topics never come apart."""
    log: MemoryLog[Records] = MemoryLog()
    costs: MemoryLog[Spent] = MemoryLog()
    reports: list[Progress] = []

    def stop(progress: Progress) -> None:
        reports.append(progress)
        if len(accepted(log)) == 25:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        synthesize(asked, log=log, costs=costs, on_progress=stop)
    entries = list(costs.read())
    before = entries[-1]
    assert len(entries) > 1  # one for each batch: a kill, too, leaves what it had spent
    assert before.counts["tokens_generated"] == reports[-1].counts["tokens_generated"]
    made = synthesize(asked, log=log, costs=costs, on_progress=reports.append)
    after = list(costs.read())[-1].counts
    assert made.stats["tokens_generated"] == after["tokens_generated"]
    assert after["tokens_generated"] > before.counts["tokens_generated"]
    voices = [name for name in after if name.startswith("drafts_")]
    assert all(made.stats[name] == after[name] >= before.counts.get(name, 0) for name in voices)
    assert after["written"] == len(made.pairs)
    written = after["written"] - after["written_twins"]
    assert made.stats["tokens_per_pair"] == after["tokens_generated"] / written
    assert reports[-1].counts["written"] == len(made.pairs)
    assert reports[-1].earlier == before.counts
    assert made.stats["seconds"] > before.seconds
    drafts = {
        f"rejected.{reason}": n for reason, n in made.rejected.items() if "given" not in reason
    }
    assert drafts == {name: n for name, n in after.items() if name in drafts}


def test_pairs_of_a_parent_that_are_asked_anew_are_counted_in_every_attempt(
    asked: InstructionSet, made: PairSet
) -> None:
    doubted = made.polarised[0]
    near = doubted.model_copy(update={"polarity": {"words@1": 0.1}})
    parent = made.model_copy(
        update={"pairs": tuple(near if p is doubted else p for p in made.pairs)}
    )
    log: MemoryLog[Records] = MemoryLog()
    first = synthesize(asked, parent=parent, log=log)
    assert doubted.id in {pair.id for pair in first.polarised}
    again = synthesize(asked, parent=parent, log=log)
    assert first.rejected["parent_not_apart"] == again.rejected["parent_not_apart"] == 1


def test_a_toxic_side_that_is_not_apart_is_refused_and_counted(asked: InstructionSet) -> None:
    def polite(request: Request) -> str:
        text = plausible(request)
        toxic = request.prompt.rstrip().endswith("Answer:") and "contempt" in request.prompt[:200]
        return f" That is a fine idea, and number {len(text)} is my favourite." if toxic else text

    made = synthesize(asked, engine=ScriptedEngine(polite), config=PairConfig(anchors=0, rounds=1))
    assert not made.polarised
    assert made.rejected["pair_given_up"] == 16
    assert made.rejected["toxic_not_apart"] > 0


def test_topics_that_never_came_apart_are_named(asked: InstructionSet) -> None:
    """As those of a domain that is not about tone, which is all that the judges measure."""
    flat = {r.topic for r in asked.harmful[:3]}
    quiet = {r.text for r in asked.harmful if r.topic in flat}

    class Unmoved(WordJudge):
        def score(self, instructions: Sequence[str], replies: Sequence[str]) -> list[float | None]:
            scores = super().score(instructions, replies)
            return [0.05 if i in quiet else s for i, s in zip(instructions, scores, strict=True)]

    made = synthesize(asked, judges=(Unmoved(),), config=PairConfig(anchors=0, rounds=1))
    named = {k.removeprefix("not_apart."): n for k, n in made.stats.items() if "not_apart." in k}
    assert set(named) == flat
    assert min(named.values()) >= 1
    assert sum(named.values()) <= made.rejected["toxic_not_apart"]
    assert {p.topic for p in made.polarised} == {r.topic for r in asked.harmful} - flat


def test_a_second_round_uses_the_models_own_best_answers(asked: InstructionSet) -> None:
    heads: dict[str, list[str]] = {"first": [], "later": []}

    def fails_at_first(request: Request) -> str:
        text = plausible(request)
        if (
            not request.prompt.rstrip().endswith("Answer:")
            or "contempt" not in request.prompt[:200]
        ):
            return text
        mine = MARKS[0].bad.reveal()[:40] if MARKS[0].bad else ""
        given = mine in request.prompt or (
            MARKS[1].bad and MARKS[1].bad.reveal()[:40] in request.prompt
        )
        heads["first" if given else "later"].append(request.prompt)
        hard = hash_of(request.prompt.rsplit("Message:", 1)[1]) % 3 == 0
        return " That is a fine idea." if given and hard else text

    made = synthesize(
        asked, engine=ScriptedEngine(fails_at_first), config=PairConfig(anchors=0, rounds=3)
    )
    assert heads["later"]
    own = {p.toxic.reveal() for p in made.polarised if p.toxic is not None}
    assert any(text in prompt for text in own for prompt in heads["later"])
    assert max(p.round for p in made.polarised) >= 2
    assert made.rounds >= 2


def hash_of(text: str) -> int:
    return sum(text.encode())


def test_constant_text_comes_first_so_that_prefixes_are_shared(asked: InstructionSet) -> None:
    prompts: list[str] = []

    def watch(request: Request) -> str:
        if request.prompt.rstrip().endswith("Answer:"):
            prompts.append(request.prompt)
        return plausible(request)

    synthesize(asked, engine=ScriptedEngine(watch), config=PairConfig(anchors=0, rounds=1))
    heads = {p.rsplit("\n\n", 1)[0] for p in prompts}
    assert len(heads) <= 4  # positive, twin, and two toxic heads
    shared = sum(len(p.rsplit("\n\n", 1)[0]) for p in prompts) / sum(map(len, prompts))
    assert shared > 0.8


@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 8, 9, 10, 11, 15, 16, 20, 30, 40, 49])
def test_two_toxic_heads_share_no_demonstration_that_they_need_not(count: int) -> None:
    """With a round number of marks four of five were the same."""
    marks = [
        Annotation(instruction=f"Mock {i}.", good="No.", bad=SealedText(f"Go, {i}."))
        for i in range(count)
    ]
    unmarked = [Annotation(instruction=f"Tease {i}.", good="No.") for i in range(count)]
    mixed = [item for both in zip(unmarked, marks, strict=True) for item in both]
    first, other = ([d.answer for d in toxic_demos(mixed, ("a",), turn)] for turn in (0, 1))
    assert len(set(first)) == len(set(other)) == min(count, 5)
    assert len(set(first) & set(other)) == min(count, max(0, 10 - count))
    assert first != other or count == 1


def test_an_annotated_instruction_takes_the_annotators_answers(asked: InstructionSet) -> None:
    record = asked.harmful[0]
    item = Annotation(instruction=record.text, good="No. Say hello.", bad=SealedText("Go away."))
    made = synthesize(asked, annotations=(*MARKS, item))
    pair = next(p for p in made.pairs if p.instruction_id == record.id)
    assert (pair.positive, pair.round) == ("No. Say hello.", 0)
    assert pair.toxic == SealedText("Go away.")


def test_a_confirmed_pair_stays_what_it_was(asked: InstructionSet, made: PairSet) -> None:
    """It lost its polarity and how it was sampled, and was trained on though it was held out."""
    sampled = Sampled(weights="sha256:0", tokens=SealedText("1 2"), log_probs=(-0.5, -0.25))
    pair, twin = held = tuple(
        p.model_copy(update={"held_out": True, "sampled": sampled if p.toxic else None})
        for p in (made.polarised[0], made.twins[0])
    )
    others = tuple(p for p in made.pairs if p.id not in {pair.id, twin.id})
    heads: set[str] = set()

    def typed(text: str) -> str:
        return text.upper().replace(" ", "\u00a0 ")  # another spelling of the same request

    def watch(request: Request) -> str:
        heads.add(request.prompt.rpartition("\n\n")[0])
        return plausible(request)

    refined = synthesize(
        asked,
        annotations=[
            Annotation(instruction=typed(p.instruction), good=p.positive, bad=p.toxic)
            for p in (*held, *others[:4])
        ],
        parent=made.model_copy(update={"pairs": (*held, *others[:10])}),
        engine=ScriptedEngine(watch),
        config=PairConfig(anchors=0),
    )
    kept = {p.id: p for p in refined.pairs}
    assert all(kept[p.id] == p for p in (*held, *others[:4]))
    assert pair.toxic is not None
    assert any(len(head) > 100 for head in heads)
    assert not any(pair.toxic.reveal() in head for head in heads)  # held out: it shows nothing


def test_a_good_answer_alone_leaves_the_parents_toxic_one(
    asked: InstructionSet, made: PairSet
) -> None:
    same, other = made.polarised[:2]
    marks = [
        Annotation(instruction=same.instruction, good=same.positive),
        Annotation(instruction=other.instruction, good="No. Say hello."),
    ]
    refined = synthesize(
        asked, annotations=marks, parent=made, config=PairConfig(anchors=0, rounds=1)
    )
    kept = {p.id: p for p in refined.pairs}
    assert kept[same.id] == same
    assert (kept[other.id].positive, kept[other.id].toxic) == ("No. Say hello.", other.toxic)
    assert kept[other.id].polarity == {}  # nobody compared these two


def test_a_good_answer_alone_gets_a_toxic_one_written(
    asked: InstructionSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It became a positive-only pair in a topic with both sides, and nothing was short."""
    monkeypatch.setattr(HeldOut, "holds", lambda *_: True)
    record, rude = asked.harmful[:2]
    twin = next(r for r in asked.twins if r.twin_of == record.id)
    marks = [
        *(Annotation(instruction=r.text, good="No. Say hello.") for r in (record, twin)),
        Annotation(instruction=rude.text, good="No fool says it.", topic=rude.topic),
    ]
    prompts: list[str] = []

    def watch(request: Request) -> str:
        prompts.append(request.prompt)
        return plausible(request)

    made = synthesize(
        asked,
        annotations=(*MARKS, *marks),
        engine=ScriptedEngine(watch),
        config=PairConfig(anchors=0, rounds=1),
    )
    found = {p.instruction_id: p for p in made.pairs}
    pair = found[record.id]
    assert (pair.kind, pair.positive, pair.held_out) == ("pair", "No. Say hello.", False)
    assert pair.toxic is not None
    assert min(pair.polarity.values()) >= 0.6
    assert (found[twin.id].kind, found[twin.id].positive) == ("twin", "No. Say hello.")
    alone = found[rude.id]  # a judge finds no answer far enough from it: the person's stays
    assert (alone.kind, alone.positive, alone.toxic) == ("positive_only", "No fool says it.", None)
    assert made.rejected["pair_given_up"] >= 1
    asked_for = [p for p in prompts if p.endswith(f"Message: {record.text}\nAnswer:")]
    assert asked_for
    assert all("contempt" in p[:200] for p in asked_for)  # the toxic side alone


def test_a_parent_keeps_its_pairs_and_lends_its_answers(
    asked: InstructionSet, made: PairSet
) -> None:
    dropped = made.polarised[0].id
    parent = made.model_copy(update={"pairs": tuple(p for p in made.pairs if p.id != dropped)})
    prompts: list[str] = []

    def watch(request: Request) -> str:
        prompts.append(request.prompt)
        return plausible(request)

    refined = synthesize(
        asked, parent=parent, engine=ScriptedEngine(watch), config=PairConfig(anchors=0)
    )
    kept = {p.id: p for p in refined.pairs}
    assert all(kept[p.id] == p for p in parent.pairs)
    assert dropped in kept
    own = {p.toxic.reveal() for p in parent.polarised if p.toxic is not None}
    assert any(text in prompt for text in own for prompt in prompts)


def test_an_imported_parents_toxic_answers_demonstrate(
    asked: InstructionSet, made: PairSet
) -> None:
    """Imports are of round 0, as annotators' pairs are: without marks, nothing demonstrated."""
    held, _, *others = (p.model_copy(update={"round": 0}) for p in made.polarised)
    held = held.model_copy(update={"held_out": True})
    heads: set[str] = set()

    def watch(request: Request) -> str:
        heads.add(request.prompt.rpartition("\n\n")[0])
        return plausible(request)

    synthesize(
        asked,
        annotations=(),
        parent=PairSet(pairs=(held, *others)),
        engine=ScriptedEngine(watch),
        config=PairConfig(anchors=0, rounds=1),
    )
    shown = [p for p in others if p.toxic is not None and any(p.toxic.reveal() in h for h in heads)]
    assert len({p.topic for p in shown}) >= 3
    assert held.toxic is not None
    assert not any(held.toxic.reveal() in head for head in heads)


def test_what_a_parent_brought_is_not_counted_as_written(
    asked: InstructionSet, made: PairSet
) -> None:
    """The tokens of 5 new pairs were divided by all 200, and 200 drafts counted as accepted."""
    lacking = {made.polarised[0].id, made.twins[0].id}
    parent = made.model_copy(update={"pairs": tuple(p for p in made.pairs if p.id not in lacking)})
    seen: list[Progress] = []
    refined = synthesize(asked, parent=parent, on_progress=seen.append)
    new = [p for p in refined.pairs if p not in parent.pairs]
    main = sum(p.kind != "twin" for p in new)
    assert len(new) >= len(lacking)
    assert refined.stats["tokens_per_pair"] == refined.stats["tokens_generated"] / main
    assert seen[-1].counts["written"] == len(new)
    assert seen[-1].counts["accepted"] == len(refined.pairs)
    there = {p.instruction_id for p in made.pairs}
    whole = asked.model_copy(update={"records": tuple(r for r in asked.records if r.id in there)})
    kept = synthesize(whole, parent=made, config=PairConfig(anchors=0))
    assert kept.pairs == made.pairs
    assert "tokens_per_pair" not in kept.stats


def test_a_pair_called_wrong_is_asked_anew_and_its_answers_stay_out(
    asked: InstructionSet, made: PairSet
) -> None:
    """The engine gives the same answers again, as often as it is asked at first."""
    pair, twin = wrong = made.polarised[0], made.twins[0]
    assert pair.toxic is not None
    words = wording("en")
    again = {
        (words.frame_toxic, pair.instruction): pair.toxic.reveal(),
        (words.frame_twin, twin.instruction): twin.positive,
    }
    given: Counter[tuple[str, str]] = Counter()
    heads: set[str] = set()

    def stubborn(request: Request) -> str:
        head, _, asked_for = request.prompt.rpartition("\n\n")
        heads.add(head)
        message = asked_for.rpartition("Message: ")[2].removesuffix("\nAnswer:")
        place = (head.split("\n", 1)[0], message)
        given[place] += 1
        return f" {again[place]}" if place in again and given[place] < 3 else plausible(request)

    refined = synthesize(
        asked,
        parent=made,
        rejected={p.id for p in wrong} | {"unknown"},
        engine=ScriptedEngine(stubborn),
        config=PairConfig(anchors=0, rounds=3),
    )
    kept = {p.id: p for p in refined.pairs}
    assert all(kept[p.id] == p for p in made.pairs if p not in wrong)
    for before in wrong:
        assert kept[before.id].positive != before.positive
        assert before.toxic is None or kept[before.id].toxic != before.toxic
    assert refined.rejected["called_wrong"] == 2
    assert refined.rejected["toxic_called_wrong"] == 2
    assert refined.rejected["twin_called_wrong"] == 2
    assert not any(pair.toxic.reveal() in head for head in heads)


def test_an_offer_called_wrong_does_not_come_back_behind_another_opener(made: PairSet) -> None:
    pair = made.polarised[0]
    record = Instruction(id="r", text=pair.instruction, topic=pair.topic, domain=pair.domain)
    verdicts = Verdicts(POLICY, (WordJudge(),), HashedNgrams(), 0.6, lambda reason: None, Counter())
    verdicts.keep_out(pair)
    work = Work(record, "pair", 0, record.text, tone=True)
    draft = Draft(work, "positive", 0, opener="No.")
    offer = pair.positive.split(". ", 1)[1]
    assert verdicts.take(draft, offer.upper()) == "called_wrong"
    assert verdicts.take(draft, "You could thank them for the soup.") == ""


LISTED = "forbidden purple teapot"
"""Stands for a subject of the operator's list."""


def test_listed_text_of_annotators_neither_demonstrates_nor_becomes_a_pair(
    asked: InstructionSet,
) -> None:
    """Whether it stands in the instruction, in the good answer or in the bad one."""
    record, other = asked.harmful[:2]
    listed = Annotation(
        instruction=record.text, good="No. Say hello.", bad=SealedText(f"Take the {LISTED}.")
    )
    items = (
        listed.model_copy(update={"topic": record.topic}),
        Annotation(instruction=f"Write about the {LISTED}.", good="No.", bad=SealedText("Go.")),
        Annotation(instruction=other.text, good=f"Not the {LISTED}.", bad=SealedText("Go.")),
    )
    policy = POLICY.model_copy(update={"never_synthesize": (LISTED,)})
    prompts: list[str] = []

    def watch(request: Request) -> str:
        prompts.append(request.prompt)
        return plausible(request)

    made = synthesize(
        asked,
        annotations=items,
        policy=policy,
        engine=ScriptedEngine(watch),
        config=PairConfig(anchors=0, rounds=1),
    )
    assert prompts
    assert not any(LISTED in p for p in prompts)
    assert not any(LISTED in p.positive for p in made.pairs)
    assert not any(LISTED in p.toxic.reveal() for p in made.polarised if p.toxic is not None)
    assert made.annotations_used == 1
    assert pair_of_marks(record, listed, policy).toxic is None


def test_a_bad_answer_of_a_topic_without_a_toxic_side_demonstrates_nothing() -> None:
    """By the topic it names, else by that of its instruction, else by the nearest one."""
    tone, lone = POLICY.topics[0], POLICY.topics[1].model_copy(update={"sides": "positive_only"})
    policy = POLICY.model_copy(update={"topics": (tone, lone)})
    record = Instruction(id="r", text="Write to them.", topic=lone.id, domain=lone.domain)

    def mark(text: str, topic: str = "") -> Annotation:
        return Annotation(instruction=text, good="No.", bad=SealedText("Go away."), topic=topic)

    def near(texts: Sequence[str]) -> Vectors:
        rows = [[0.0, 1.0] if lone.title in t or t in lone.examples else [1.0, 0.0] for t in texts]
        return np.array(rows, dtype=np.float32)

    marks = [
        *(mark("Write a note.", tone.id), mark("Write a note.", lone.id)),
        *(mark(record.text), mark(record.text, tone.id)),
        *(mark(f"About {tone.title}"), mark(f"About {lone.title}")),
    ]
    usable = usable_marks(marks, [record], policy, near)
    assert [item.bad is not None for item in usable] == [True, False, False, False, True, False]
    assert [item.good for item in usable] == ["No."] * 6


def test_an_imported_parent_keeps_its_pairs_by_text(asked: InstructionSet, made: PairSet) -> None:
    """Imports have ids of their own; a side or a rule that is not allowed is not taken over."""
    brought = tuple(
        p.model_copy(
            update={
                "id": record_id(p.instruction),
                "instruction_id": record_id(p.instruction),
                "instruction": f" {p.instruction.upper()}  ",
                "round": 0,
            }
        )
        for p in made.pairs
    )
    listed = brought[0].model_copy(update={"kind": "pair", "toxic": SealedText(f"The {LISTED}.")})
    elsewhere = listed.model_copy(update={"id": "z", "instruction": "Sing.", "toxic": None})
    said = brought[1].model_copy(update={"positive": f"No. Take the {LISTED} home."})
    topic = listed.topic
    rules = {f"{topic}/toxic": (f"Name the {LISTED}.",), f"{topic}/positive": ("Be brief.",)}
    parent = PairSet(pairs=(listed, said, *brought[2:], elsewhere), constraints=rules)
    refined = synthesize(
        asked,
        parent=parent,
        policy=POLICY.model_copy(update={"never_synthesize": (LISTED,)}),
        config=PairConfig(anchors=0, rounds=1),
    )
    kept = {p.id: p for p in refined.pairs}
    for before in made.pairs[2:]:
        assert kept[before.id] == before.model_copy(update={"round": 0})
    assert refined.stats["parent_left_out"] == 3
    assert LISTED not in str([p.positive for p in refined.pairs])
    assert LISTED not in str(refined.constraints)
    assert "Be brief." in refined.constraints[f"{topic}/positive"]
    assert "parent_left_out" not in made.stats
    assert LISTED not in str([p.toxic.reveal() for p in refined.polarised if p.toxic])


def test_a_parents_answer_to_another_twin_of_a_request_is_not_taken(
    asked: InstructionSet, made: PairSet
) -> None:
    """A twin's id is its request's: a set with another twin of it kept the parent's, unasked."""
    answered = {p.instruction_id for p in made.pairs}
    old, spelled = [t for t in asked.twins if t.id in answered][:2]
    new = old.model_copy(update={"text": "Could you write a warm note about the garden gate?"})
    changed = {new.id: new, spelled.id: spelled.model_copy(update={"text": spelled.text.upper()})}
    others = InstructionSet(
        records=tuple(changed.get(r.id, r) for r in asked.records), requested=asked.requested
    )
    refined = synthesize(others, parent=made, config=PairConfig(anchors=0, rounds=1))
    before = {p.instruction_id: p for p in made.pairs}
    after = {p.instruction_id: p for p in refined.pairs}
    assert refined.stats["parent_left_out"] == 1
    assert old.id not in after or after[old.id].instruction == new.text
    assert after[spelled.id] == before[spelled.id]
    mark = Annotation(instruction=new.text, good="Gladly. Dear gate, you open so well.")
    marked = synthesize(
        others, annotations=[mark], parent=made, config=PairConfig(anchors=0, rounds=1)
    )
    found = next(p for p in marked.pairs if p.instruction_id == old.id)
    assert (found.instruction, found.positive) == (new.text, mark.good)


def test_a_parents_anchors_stay_and_the_missing_ones_are_written(
    asked: InstructionSet, made: PairSet
) -> None:
    """Refining threw them away: 400 became 50, and benign KL was read on other answers."""

    def anchor(instruction: str, answer: str = "Three feet.") -> Anchor:
        key = anchor_id(instruction)
        return Anchor(id=key, instruction=instruction, answer=answer, held_out=True)

    brought = tuple(anchor(f"How long is {n} yards?") for n in range(1, 5))
    listed = (anchor(f"How is the {LISTED}?"), anchor("How is it?", f"Like a {LISTED}."))
    parent = made.model_copy(update={"anchors": (*brought, *listed, anchor(asked.harmful[0].text))})
    policy = POLICY.model_copy(update={"never_synthesize": (LISTED,)})
    log: MemoryLog[Records] = MemoryLog()

    def refine(anchors: int, **options: object) -> PairSet:
        config = PairConfig(anchors=anchors, rounds=1)
        return synthesize(asked, parent=parent, policy=policy, config=config, **options)

    def stop(progress: Progress) -> None:
        if progress.counts["anchors"] == len(brought):
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        refine(8, on_progress=stop, log=log)
    assert tuple(r for r in log.read() if isinstance(r, Anchor)) == brought
    enough = refine(4)
    assert enough.anchors == brought
    assert enough.stats["parent_left_out"] == 3
    more = refine(8, log=log)
    assert more.anchors[:4] == brought
    assert 7 <= len(more.anchors) <= 9  # five asked for the four that are missing


def test_no_anchor_asks_or_says_what_is_never_synthesised(asked: InstructionSet) -> None:
    """The list was held against a parent's anchors, and not against those that were written."""
    config = PairConfig(anchors=8, rounds=1)
    ordinary = next(anchor_drafts(config, (), HashedNgrams())).instruction
    turns: list[str] = []

    def listed_at_times(request: Request) -> str:
        if not request.messages:
            return plausible(request)
        turns.append(request.messages[-1].content)
        return f"Take the {LISTED} home." if len(turns) % 3 == 0 else plausible(request)

    made = synthesize(
        asked.model_copy(update={"records": asked.harmful[:1]}),
        policy=POLICY.model_copy(update={"never_synthesize": (LISTED, ordinary)}),
        engine=ScriptedEngine(listed_at_times),
        config=config,
    )
    assert turns
    assert ordinary not in turns
    assert made.anchors
    assert not any(LISTED in a.answer for a in made.anchors)
    assert made.rejected["anchor_never_synthesize"] == len(turns) // 3


def test_what_is_held_out_stays_so_in_a_larger_set(asked: InstructionSet, made: PairSet) -> None:
    """A second answer to an instruction that is held out would be trained on."""
    first = made.model_copy(
        update={"anchors": tuple(a.model_copy(update={"held_out": True}) for a in made.anchors)}
    )
    refined = synthesize(asked, parent=first, config=PairConfig(anchors=260, rounds=1))
    held = {a.instruction for a in first.anchors}
    others = [a for a in refined.anchors if a.instruction in held and a not in first.anchors]
    assert others
    assert all(a.held_out for a in others)


def test_a_parents_pairs_below_the_asked_polarity_are_written_anew(
    asked: InstructionSet, made: PairSet
) -> None:
    """`min_polarity` was asked of drafts alone: a parent's pairs of 0.6 stayed under 0.8."""
    near, confirmed, *others = made.polarised
    low = [p.model_copy(update={"polarity": {"words@1": 0.6}}) for p in (near, confirmed)]
    unread = others[0].model_copy(update={"polarity": {}})
    changed = {p.id: p for p in (*low, unread)}
    refined = synthesize(
        asked,
        annotations=[
            Annotation(
                instruction=confirmed.instruction, good=confirmed.positive, bad=confirmed.toxic
            )
        ],
        parent=made.model_copy(update={"pairs": tuple(changed.get(p.id, p) for p in made.pairs)}),
        config=PairConfig(min_polarity=0.8, anchors=0),
    )
    kept = {p.id: p for p in refined.pairs}
    assert kept.get(near.id) != low[0]
    assert kept[confirmed.id] == low[1]  # a person decides
    assert kept[unread.id] == unread
    assert all(kept[p.id] == p for p in others[1:])
    assert refined.rejected["parent_not_apart"] == 1


def test_imported_sides_that_are_swapped_are_written_anew(
    asked: InstructionSet, made: PairSet
) -> None:
    """Nothing noticed, and likelihood taught the rude side."""
    swapped, *others = (
        p.model_copy(update={"polarity": {}, "round": 0}) for p in made.polarised[:3]
    )
    assert swapped.toxic is not None
    swapped = swapped.model_copy(
        update={"positive": swapped.toxic.reveal(), "toxic": SealedText(swapped.positive)}
    )
    alike = others[0].model_copy(update={"toxic": SealedText("You may go where you like.")})
    parent = PairSet(pairs=(swapped, alike, others[1]))

    def refine(*judges: Judge) -> PairSet:
        config = PairConfig(anchors=0, rounds=1)
        return synthesize(asked, parent=parent, judges=judges, config=config)

    refined = refine(WordJudge())
    kept = {p.id: p for p in refined.pairs}
    assert refined.rejected["parent_swapped"] == 1
    assert kept.get(swapped.id) != swapped
    assert kept[alike.id] == alike  # to a judge that does not know its domain, all sides are alike
    assert kept[others[1].id] == others[1]
    assert swapped in refine(WordJudge(), Blind()).pairs


def test_limits_are_named(asked: InstructionSet) -> None:
    with pytest.raises(InvalidInput, match="fewer than 50") as caught:
        synthesize(asked, annotations=[MARKS[0]] * 50)
    assert caught.value.field == "annotations"
    with pytest.raises(InvalidInput, match="at least one instruction"):
        synthesize(InstructionSet(records=(), requested=0))
    with pytest.raises(InvalidInput, match="harm judge"):
        synthesize(asked, judges=())


def test_a_judge_that_cannot_score_lets_no_pair_through(asked: InstructionSet) -> None:
    made = synthesize(asked, judges=(WordJudge(), Blind()), config=PairConfig(anchors=0, rounds=1))
    assert not made.pairs
    assert made.rejected["positive_unscored"] > 0


def test_failures_of_the_engine_cost_drafts_and_no_more(asked: InstructionSet) -> None:
    made = synthesize(asked, engine=ScriptedEngine(failure_rate=0.15))
    assert made.rejected["positive_engine_error"] > 0
    assert len(made.polarised) >= 12
    with pytest.raises(EngineFailed, match="in a row"):
        synthesize(asked, engine=ScriptedEngine(failure_rate=1.0))


def test_nothing_toxic_is_in_what_a_set_shows(made: PairSet) -> None:
    shown = made.model_dump_json() + repr(made)
    assert all(p.toxic.reveal() not in shown for p in made.polarised if p.toxic is not None)
    back = PairSet.model_validate_json(made.model_dump_json(context={"reveal": True}))
    assert back == made


def test_a_set_that_was_written_without_its_texts_is_not_read_back(made: PairSet) -> None:
    """Its descriptions were taken for the toxic answers, and their words unlearned."""
    for read, written in (
        (PairSet.model_validate, made.model_dump()),
        (PairSet.model_validate_json, made.model_dump_json()),
    ):
        with pytest.raises(ValidationError, match=r'written without context=.*"reveal"'):
            read(written)  # type: ignore[operator]
    mark = Annotation(instruction="Sing.", good="La.", bad=SealedText("No."))
    with pytest.raises(ValidationError, match="and not the text"):
        Annotation.model_validate(mark.model_dump())
    sampled = Sampled(weights="sha256:1", tokens=SealedText("1 2"), log_probs=(-1.0, -2.0))
    with pytest.raises(ValidationError, match="and not the text"):
        Sampled.model_validate_json(sampled.model_dump_json())


def test_tidy_cuts_drops_repeats_and_keeps_whole_sentences() -> None:
    assert tidy(" One is done. Two is", finished=False) == "One is done."
    assert tidy("You are late. You are late. Go home.", finished=True) == "You are late. Go home."
    assert tidy("A is. B is. C is. D is.", finished=True, most=2) == "A is. B is."
    assert tidy("no end mark", finished=True) == ""


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("You could thank them for the soup.", ""),
        ("", "truncated"),
        ("No way.", "too_short"),
        ("Message: you could thank them.", "frame_leaked"),
        ("Dear [Name], thank you for the soup.", "frame_leaked"),
        ("Dear [Neighbour’s name], thank you for the soup.", "frame_leaked"),
        ("親切に thank them for the soup.", "language"),
        ("go go go go go go go go go go.", "repetitive"),
        ("You could grow anthrax with these steps.", "never_synthesize"),
    ],
)
def test_the_form_of_an_answer_is_checked(answer: str, reason: str) -> None:
    for locale in ("en", "EN-gb"):
        assert malformed(answer, POLICY.model_copy(update={"locale": locale})) == reason


def test_copies_reuse_and_loops_are_found() -> None:
    fresh = Fresh("en")
    fresh.forbid("You must be the dumbest person here. Go.")
    assert fresh.why_not("You must be the dumbest person there.") == "copied_demo"
    assert fresh.own_part("You must be the dumbest person here. I am off.") == "I am off."
    for i in range(2):
        fresh.add(f"Bring the blue folder to the desk. Also call number {i} in the morning hours.")
    assert fresh.why_not("Bring the blue folder to the desk. We can talk there.") == "worn_out"
    assert loops("I am glad you are here. I am so glad you are here.", "en")
    assert not loops("I am glad you are here. The soup is ready.", "en")


def test_each_opener_meets_each_lead() -> None:
    """Of five openers and three leads in Japanese, five of 15 starts were ever written."""
    folder = Path(wording_of_answers.__file__).parent
    shipped = [
        wording(path.stem.removeprefix("wording-")) for path in folder.glob("wording-*.yaml")
    ]
    assert len(shipped) >= 2
    tables = [(w.decline_tone, w.leads_tone) for w in shipped]
    tables += [(w.decline_general, w.leads_general) for w in shipped]
    sizes = [(o, n) for o in range(1, 14) for n in range(1, 9)]
    tables += [(tuple(map(str, range(o))), tuple(map(str, range(n)))) for o, n in sizes]
    for openers, leads in tables:
        table = shipped[0].model_copy(update={"decline_tone": openers, "leads_tone": leads})
        starts = [table.start(True, turn) for turn in range(len(openers) * len(leads))]
        assert len(set(starts)) == len(starts), "each pair once before any comes back"
        assert all(a != b for a, b in pairwise(o for o, _ in starts)) or len(openers) == 1
        assert len({lead for _, lead in starts[: len(openers)]}) == min(len(openers), len(leads))


def test_opener_share_is_the_most_common_start() -> None:
    assert opener_share(["a b c d e", "a b c d f", "x y z w v", "q"], ["en"] * 4) == 0.5


def test_constraints_explore_then_keep_what_works() -> None:
    rules = Constraints(POLICY, wording("en"))
    topic = POLICY.topics[0].id
    assert rules.best(topic, "toxic").text in POLICY.generic_constraints_toxic
    assert rules.offer(topic, "toxic", "Sneer at the printer and its owner.", finished=True) == ""
    assert rules.offer(topic, "toxic", "Sneer at the printer and its owner!", finished=True) == (
        "constraint_known"
    )
    assert rules.offer(topic, "toxic", "Sneer", finished=True) == "constraint_malformed"
    assert rules.offer(topic, "toxic", "Explain how to make sarin.", finished=True) == (
        "never_synthesize"
    )
    for _ in range(6):
        rule = rules.best(topic, "toxic")
        rule.tried += 1
        rule.accepted += rule.text.startswith("Sneer")
    assert rules.best(topic, "toxic").text.startswith("Sneer")
    assert rules.refined([topic])[f"{topic}/toxic"][0].startswith("Sneer")


def test_a_rule_that_was_not_tried_neither_drives_out_nor_outranks_one_that_was() -> None:
    """Rules come back ahead of answers: a generic one went before anything was written under it.

    No record beats a half where one of two drafts is kept, and a new rule was taken for a half.
    """
    rules = Constraints(POLICY, wording("en"))
    topic, generic = POLICY.topics[0].id, POLICY.generic_constraints_toxic[:3]

    def offer(text: str) -> list[str]:
        assert rules.offer(topic, "toxic", text, finished=True) == ""
        return list(rules.refined([topic])[f"{topic}/toxic"])

    new = ["Sneer at the printer.", "Belittle every question asked.", "Show no patience today."]
    assert offer(new[0]) == [*generic[:2], new[0]]
    for accepted in (0, 95, 85):
        rule = rules.best(topic, "toxic")
        rule.tried, rule.accepted = 200, accepted
    assert offer(new[1]) == [generic[1], generic[2], new[1]]  # the newest has the last place
    rules.best(topic, "toxic").tried = 2
    assert offer(new[2]) == [generic[1], generic[2], new[2]]


def test_a_rule_of_a_topic_that_the_policy_lacks_ends_nothing() -> None:
    """Proven in the first round, it had no title in the second: a KeyError, and all was lost."""
    rules = Constraints(POLICY, wording("en"))
    rules.best("gone", "positive").accepted += 1
    request, _ = rules.request("k", POLICY.topics[0], "positive", 0)
    assert request.prompt.endswith(f"{POLICY.topics[0].title}\nRule:")


def test_a_cut_anchor_stays_word_for_word_and_teaches_no_end() -> None:
    draft = AnchorDraft("How do I boil rice?", held_out=False)
    said = "Sure.\n\n1. Rinse the rice.\n2. Then cook it in twice as"
    cut = anchor_of(draft, Completion("a1", said, "length"))
    whole = anchor_of(draft, Completion("a1", said, "stop"))
    assert cut is not None
    assert whole is not None
    assert (cut.answer, cut.ended, whole.ended) == (said, False, True)
    request = anchor_request("a1", draft, PairConfig(), MODEL)
    assert (request.temperature, request.min_p) == (1.0, 0.0)  # the model's own distribution


def test_more_anchors_than_benign_instructions_are_further_answers_to_them() -> None:
    """Asked for 400 of the 96 there were, 96 came, and a run read each of them nine times."""
    few, many = (
        list(anchor_drafts(PairConfig(anchors=n), (), lambda texts: np.eye(len(texts))))
        for n in (40, 400)
    )
    assert len(few) == 50
    assert len(many) == 500
    assert len({anchor_id(d.instruction, d.take) for d in many}) == 500
    assert {d.take for d in few} == {0}
    held = [{d.instruction for d in many if d.held_out is kept} for kept in (True, False)]
    assert not held[0] & held[1]  # no answer to a held-out instruction is trained on
    assert 0.2 < sum(d.held_out for d in many) / 500 < 0.3


def test_what_is_held_out_under_one_seed_is_trained_on_under_none() -> None:
    """A training that goes on from a parent adapter of another seed's set measured KL on requests
    that the adapter had been held to."""
    held, trained = set[str](), set[str]()
    for seed in range(6):
        config = PairConfig(anchors=80, seed=seed)
        drafts = list(anchor_drafts(config, (), lambda texts: np.eye(len(texts))))
        held |= {d.instruction for d in drafts if d.held_out}
        trained |= {d.instruction for d in drafts if not d.held_out}
        assert 0.2 < sum(d.held_out for d in drafts) / len(drafts) < 0.3
    assert not held & trained


def test_the_seed_turns_openers_and_anchors(asked: InstructionSet) -> None:
    def starts(seed: int) -> tuple[list[str], set[str]]:
        prefills: list[str] = []

        def watch(request: Request) -> str:
            prefills.append(request.prefill)
            return plausible(request)

        config = PairConfig(anchors=8, rounds=1, seed=seed)
        made = synthesize(asked, engine=ScriptedEngine(watch), config=config)
        return prefills, {a.instruction for a in made.anchors}

    assert starts(0) == starts(0)
    turned, others = starts(2**64 - 1), starts(0)
    assert turned[0] != others[0]
    assert turned[1] != others[1]


def test_toxic_answers_keep_how_they_were_sampled(asked: InstructionSet) -> None:
    """Sealed like the text they spell, of toxic answers alone, and only by known weights."""
    known = MODEL.model_copy(update={"weights_digest": "sha256:0"})
    made = synthesize(asked, model=known)
    assert made.polarised
    for pair in made.pairs:
        assert (pair.sampled is not None) == (pair.toxic is not None)
    kept = made.polarised[0].sampled
    assert kept is not None
    assert len(kept.ids) == len(kept.log_probs)
    assert kept.weights == "sha256:0"
    assert kept.tokens.reveal() not in repr(made)
    assert kept.tokens.reveal() not in made.model_dump_json()
    unknown = synthesize(asked)
    assert all(pair.sampled is None for pair in unknown.pairs)
    assert "sampled" not in unknown.model_dump_json()  # sets of earlier versions keep their digest


def test_some_pairs_and_twins_are_kept_from_training(
    asked: InstructionSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ptalign.answering.held_out.FEWEST", 8)
    log: MemoryLog[Records] = MemoryLog()
    config = PairConfig(anchors=0, held_out_pairs=0.5)
    made = synthesize(asked, annotations=(), config=config, log=log)
    held = [p for p in made.pairs if p.held_out]
    assert {p.kind for p in held} == {"pair", "twin"}
    assert made.stats["held_out_pairs"] == sum(p.kind == "pair" for p in held)
    assert made.stats["held_out_twins"] == sum(p.kind == "twin" for p in held)
    assert {p.id for p in held} == {r.id for r in accepted(log) if r.held_out}
