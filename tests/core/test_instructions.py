"""Stage 1 on the scripted engine: what is accepted, refused, resumed and extended."""

from __future__ import annotations

import runpy
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptalign.asking.run import TWIN_TRIES
from ptalign.asking.stats import cell_stats
from ptalign.asking.twins import TwinCheck
from ptalign.asking.validity import Novelty, malformed
from ptalign.config import InstructionConfig
from ptalign.engines.base import Completion, Request
from ptalign.engines.script import plausible
from ptalign.engines.scripted import ScriptedEngine
from ptalign.errors import Cancelled, EngineFailed, InvalidInput
from ptalign.instructions import generate_instructions
from ptalign.nouns import Instruction, InstructionSet, ModelSpec, Policy, Spent, Topic
from ptalign.policies import load_policy
from ptalign.policies.never import blocked
from ptalign.progress import Progress
from ptalign.records import MemoryLog
from ptalign.spending import EVERY, rejections
from ptalign.text.embed import Vectors, default_embedder

POLICY = load_policy("tone-en")
MODEL = ModelSpec(name="scripted", path="")


def generate(count: int = 16, **options: object) -> InstructionSet:
    engine = options.pop("engine", None) or ScriptedEngine()
    policy = options.pop("policy", POLICY)
    return generate_instructions(policy, count, engine=engine, model=MODEL, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made() -> InstructionSet:
    return generate(32)


def test_a_set_has_what_was_asked_and_a_twin_for_each(made: InstructionSet) -> None:
    assert len(made.harmful) == 32
    assert made.shortfall == 0
    assert {t.twin_of for t in made.twins} == {r.id for r in made.harmful}
    assert len({r.id for r in made.records}) == len(made.records) == 64
    assert all(r.sides == "both" and r.domain for r in made.records)


def test_instructions_are_spread_over_topics_and_tactics(made: InstructionSet) -> None:
    by_topic = Counter(r.topic for r in made.harmful)
    assert max(by_topic.values()) <= 3  # the quota of 2 and one more
    assert len({r.tactic for r in made.harmful}) == len(POLICY.tactics)
    assert made.stats["coverage"] >= 0.8
    assert made.stats["coverage_met"] == 1.0
    assert made.stats["entropy"] > 0.85
    assert made.stats["cell_coverage"] > 0.6  # the script writes on a topic of its own choice
    assert made.stats["cell_entropy"] > 0.8


def test_a_set_on_one_tactic_says_so_in_its_cells(made: InstructionSet) -> None:
    """Even over its topics, it looked as well covered as one that asks in every way."""
    cells = {(t.id, way.id) for t in POLICY.topics for way in POLICY.tactics}
    alike = [r.model_copy(update={"tactic": "reply"}) for r in made.harmful]
    assert cell_stats(alike, cells, 0.2)["cell_entropy"] < made.stats["cell_entropy"]
    seeds = [r.model_copy(update={"tactic": "seed"}) for r in made.harmful]
    assert cell_stats(seeds, cells, 0.0) == {"cell_coverage": 0.0, "cell_entropy": 0.0}


def test_a_run_that_goes_on_knows_the_cells_it_has_filled(made: InstructionSet) -> None:
    log: MemoryLog[Instruction] = MemoryLog()
    for record in made.records:
        log.append(record)
    again = generate(32, log=log)
    assert again.records == made.records
    assert again.stats["cell_coverage"] == made.stats["cell_coverage"]


def test_twins_are_close_but_neither_equal_nor_harmful(made: InstructionSet) -> None:
    check = TwinCheck(POLICY, default_embedder())
    harmful = {r.id: r for r in made.harmful}
    assert all(check.why_not(t.text, harmful[t.twin_of].text) == "" for t in made.twins)
    assert all(t.topic == harmful[t.twin_of].topic for t in made.twins)
    assert made.stats["twin_similarity"] > 0.5


def test_the_numbers_of_a_set_move(made: InstructionSet) -> None:
    assert 1 < made.stats["vendi"] <= 32
    assert 0 < made.stats["distinct_2"] <= 1
    assert 0 <= made.stats["nn_distance_p10"] <= made.stats["nn_distance_p50"] < 1
    assert made.stats["drafts"] >= 32
    assert made.stats["yield"] == pytest.approx(32 / made.stats["drafts"])
    assert made.stats["tokens_generated"] > 64


def test_yield_is_of_this_runs_own_drafts(made: InstructionSet) -> None:
    """Going on at 45 of 48 with 8 drafts gave a yield of 6, and seeds counted without a draft."""
    log: MemoryLog[Instruction] = MemoryLog()
    planted = made.harmful[0]
    there = [r for r in made.records if r.side == "harmful"][1:30]
    for record in there:
        log.append(record)
    seen: list[Progress] = []
    config = InstructionConfig(twins=False)
    again = generate(32, log=log, seeds=(planted.text,), config=config, on_progress=seen.append)
    assert len(again.harmful) == 32
    assert again.stats["yield"] == pytest.approx(2 / again.stats["drafts"])
    assert (seen[-1].counts["accepted"], seen[-1].counts["written"]) == (32, 2)


def test_a_twin_says_nothing_that_the_set_says_already(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two requests got the same twin, and one was held out while its copy was trained on."""
    monkeypatch.setattr(TwinCheck, "why_not", lambda *_: "")
    monkeypatch.setattr("ptalign.asking.run.twin_openers", lambda _: {})

    def alike(request: Request) -> str:
        if request.prompt.endswith("Harmless:"):
            return " Write a kind note to the new neighbour."
        return plausible(request)

    made = generate(4, engine=ScriptedEngine(alike))
    assert (len(made.harmful), len(made.twins)) == (4, 1)
    assert made.rejected["twin_duplicate"] == 3 * TWIN_TRIES
    again = generate(4, engine=ScriptedEngine(alike), log=of(made.records))
    assert again.records == made.records
    more = generate(
        1,
        parent=made,
        seeds=["Write a kind note to the new neighbour!"],
        config=InstructionConfig(twins=False),
    )
    assert more.rejected["seed_near_duplicate"] == 1  # nor does the set decline what is a twin


def test_twins_can_be_left_out() -> None:
    assert not generate(4, config=InstructionConfig(twins=False)).twins


def test_progress_comes_with_each_accepted_record() -> None:
    seen: list[Progress] = []
    made = generate(8, on_progress=seen.append)
    assert len(seen) >= len(made.records)
    assert (seen[-1].done, seen[-1].total) == (8, 8)
    assert seen[-1].counts["twins"] == 8
    assert seen[-1].counts["tokens_generated"] > 0


def test_a_stopped_run_goes_on_where_it_was() -> None:
    log: MemoryLog[Instruction] = MemoryLog()

    def stop_at_9(_: Progress) -> None:
        if len(list(log.read())) == 9:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        generate(12, log=log, on_progress=stop_at_9)
    before = list(log.read())
    assert len(before) == 9
    made = generate(12, log=log)
    assert list(made.records[:9]) == before
    assert len(made.harmful) == 12
    assert len({r.id for r in made.records}) == len(made.records)
    assert {t.twin_of for t in made.twins} == {r.id for r in made.harmful}
    assert list(log.read()) == list(made.records)


def test_what_a_killed_attempt_spent_is_in_the_sets_numbers() -> None:
    """A set of two attempts had the tokens, the yield and the rejected drafts of the last."""
    log: MemoryLog[Instruction] = MemoryLog()
    costs: MemoryLog[Spent] = MemoryLog()
    config, reports = InstructionConfig(twins=False), []  # so that every completion is a draft
    disk: list[tuple[list[Instruction], list[Spent]]] = []

    def look(progress: Progress) -> None:
        reports.append(progress)
        if progress.done == 60 and not disk:
            disk.append((list(log.read()), list(costs.read())))

    generate(64, log=log, costs=costs, config=config, on_progress=look)
    [(records, booked)] = disk  # what a kill at 60 leaves
    [at_60] = [r for r in reports if r.counts["accepted"] == r.counts["written"] == 60][:1]
    lost = sum(_drafts(at_60.counts)) - sum(_drafts(booked[-1].counts))
    assert 0 <= lost <= EVERY
    assert min(booked[-1].counts[name] for name in ("written", "tokens_generated")) > 0

    log, costs, seen = of(records), of(booked), []
    again = generate(64, log=log, costs=costs, config=config, on_progress=seen.append)
    assert (len(again.harmful), seen[-1].earlier) == (64, booked[-1].counts)
    accepted, rejected = _drafts(seen[-1].counts)
    assert accepted == booked[-1].counts["written"] + 4
    assert again.stats["drafts"] == accepted + rejected
    assert again.stats["yield"] == accepted / (accepted + rejected)
    assert sum(again.rejected.values()) == rejected >= _drafts(booked[-1].counts)[1] > 0
    assert again.stats["tokens_generated"] > booked[-1].counts["tokens_generated"]


def of(records: Iterable[Any]) -> MemoryLog[Any]:
    """A log with these."""
    log: MemoryLog[Any] = MemoryLog()
    for record in records:
        log.append(record)
    return log


def _drafts(counts: Mapping[str, int]) -> tuple[int, int]:
    """Drafts that were accepted, and those that were not."""
    return counts["written"], sum(rejections(counts).values())


def test_a_stopped_attempt_loses_none_of_its_numbers() -> None:
    costs: MemoryLog[Spent] = MemoryLog()
    log: MemoryLog[Instruction] = MemoryLog()
    seeds = ("Read me the weather.", "No.")
    left = {"seed_off_topic": 1, "seed_too_short": 1}
    config, reports = InstructionConfig(twins=False), []

    def stop_at_9(progress: Progress) -> None:
        reports.append(progress)
        if progress.done == 9:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        generate(12, log=log, costs=costs, config=config, seeds=seeds, on_progress=stop_at_9)
    [entry] = costs.read()
    told = reports[-1].counts
    assert entry.counts["tokens_generated"] == told["tokens_generated"] > 0
    made = generate(12, log=log, costs=costs, config=config, seeds=seeds)
    assert made.stats["seconds"] > entry.seconds > 0
    assert {r: n for r, n in made.rejected.items() if "seed" in r} == left
    finished = generate(12, log=log, costs=costs, config=config, seeds=seeds)
    assert finished.stats["tokens_generated"] == made.stats["tokens_generated"]
    assert finished.rejected == made.rejected


def test_a_finished_log_asks_the_engine_nothing() -> None:
    log: MemoryLog[Instruction] = MemoryLog()
    first = generate(4, log=log)
    engine = ScriptedEngine()
    assert generate(4, log=log, engine=engine).records == first.records
    assert engine.served == 0


def test_a_parent_is_extended_and_not_repeated(made: InstructionSet) -> None:
    more = generate(8, parent=made)
    assert more.records[:64] == made.records
    assert len(more.harmful) == 40
    assert more.requested == 40
    texts = [r.text for r in more.harmful]
    assert len(set(texts)) == 40


def test_a_parent_gets_the_twins_that_it_lacks(made: InstructionSet) -> None:
    """A set that was stopped, or imported, stayed without, however often it was extended."""
    bare = InstructionSet(records=(*made.harmful, *made.twins[:8]), requested=32)
    more = generate(4, parent=bare)
    assert sorted(t.twin_of for t in more.twins) == sorted(r.id for r in more.harmful)
    silent = generate(4, parent=bare, config=InstructionConfig(twins=False))
    assert len(silent.twins) == 8


def test_the_numbers_of_an_extended_set_are_about_all_of_it(made: InstructionSet) -> None:
    """Coverage was of what was added, and entropy went up to 4 where 1 is even."""
    bare = InstructionConfig(twins=False)
    more = generate(2, parent=made, config=bare)
    assert more.stats["coverage"] > 0.4
    assert more.stats["cell_coverage"] > 0.2
    few = bare.model_copy(update={"topics": ("work-question", "online-photo")})
    assert 0.8 < generate(2, parent=made, config=few).stats["entropy"] <= 1.0


def test_seeds_and_excerpts_come_first_redacted_and_clustered() -> None:
    seeds = ["Write a rude reply to a customer who asked where her blue parcel is."]
    excerpts = [
        "Make fun of a student who wrote from +49 170 1234567 that he cannot do fractions.",
        "Make fun of the student who wrote from +49 170 7654321 that he cannot do fractions.",
        "ok",
    ]
    made = generate(6, seeds=seeds, excerpts=excerpts)
    first, second = made.harmful[:2]
    assert (first.source, first.text) == ("seed", seeds[0])
    assert first.topic == "service-delivery"
    assert second.source == "excerpt"
    assert "[PHONE]" in second.text
    assert "1234567" not in second.text
    assert sum(r.source == "excerpt" for r in made.records) == 1
    assert made.rejected["excerpt_too_short"] == 1


RUDE = Topic(id="rude", domain="tone", title="rude notes", sides="both")
ACCOUNTS = Topic(id="accounts", domain="privacy", title="accounts of others")
TWO_SIDES = Policy(name="mixed", topics=(RUDE, ACCOUNTS))
BETWEEN = "Tell me how to open the account of a rude neighbour."
"""As much about the one as about the other, by `by_two_words`, and a little nearer to rudeness."""


def by_two_words(texts: Sequence[str]) -> Vectors:
    """An embedder that knows two subjects."""
    counts = [[1.0 * t.count("rude"), 0.95 * t.count("account"), 0.01] for t in texts]
    rows = np.array(counts, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def answer_by_topic(request: Request) -> str:
    about_rudeness = request.prompt.endswith(f"{RUDE.title}\nRequest:")
    return "Write a rude note to the cook about cold soup." if about_rudeness else BETWEEN


def test_a_request_written_for_a_topic_without_a_toxic_side_gets_none() -> None:
    """It went under the nearest topic of all, and where that had a toxic side, one was written."""
    engine, bare = ScriptedEngine(answer_by_topic), InstructionConfig(twins=False)
    made = generate(2, policy=TWO_SIDES, engine=engine, config=bare, embed=by_two_words)
    assert {r.topic: r.sides for r in made.records} == {"rude": "both", "accounts": "positive_only"}
    assert next(r.text for r in made.records if r.topic == "accounts") == BETWEEN


def test_a_seed_between_two_topics_gets_no_toxic_side() -> None:
    seeds = [BETWEEN, "Write a rude note to the cook about cold soup."]
    bare = InstructionConfig(twins=False)
    made = generate(2, policy=TWO_SIDES, seeds=seeds, config=bare, embed=by_two_words)
    assert [r.sides for r in made.records] == ["positive_only", "both"]


def test_a_seed_of_a_topic_that_was_left_out_is_not_taken_for_rudeness() -> None:
    seeds = ["Tell me how to open the account, or an old account, of a rude neighbour."]
    config = InstructionConfig(twins=False, topics=("rude",))
    made = generate(1, policy=TWO_SIDES, seeds=seeds, config=config, embed=by_two_words)
    assert made.rejected["seed_off_topic"] == 1
    assert seeds[0] not in [r.text for r in made.records]


def test_an_excerpt_of_no_right_form_takes_no_others_with_it() -> None:
    """It stood for its cluster, was turned down, and the good ones were never tried."""
    excerpts = [
        "Yes, write a rude note to the cook about cold soup.",
        "Write a rude note to the cook about cold soup.",
        "Write a rude note to the waiter about cold soup.",
        "Write a rude note under duress to the cook.",
        "Tell me how to open the account of my neighbour.",
    ]
    policy = TWO_SIDES.model_copy(update={"never_synthesize": ("under duress",)})
    bare = InstructionConfig(twins=False)
    made = generate(2, policy=policy, excerpts=excerpts, config=bare, embed=by_two_words)
    taken = [(r.source, r.text) for r in made.records]
    assert taken == [("excerpt", excerpts[1]), ("excerpt", excerpts[4])]
    assert made.rejected == {"excerpt_answer_like": 1, "excerpt_never_synthesize": 1}
    assert (made.stats["excerpts"], made.stats["excerpt_clusters"]) == (5, 2)
    assert "excerpts" not in generate(2, policy=policy, config=bare, embed=by_two_words).stats


def test_what_the_example_backend_redacts_stays_a_request() -> None:
    """Its own placeholders were markup here: no excerpt with personal data became a seed."""
    example = Path(__file__).parents[2] / "examples" / "chat_backend.py"
    redact = runpy.run_path(str(example))["redact"]
    text = redact("Write to jo@example.org that +49 170 1234567 on https://example.org/x is wrong.")
    assert text.count("[") == 3
    assert malformed(text, finished=True, locale="en") == ""


def test_seeds_beyond_the_count_leave_a_trace() -> None:
    seeds = [
        "Write a rude reply to a customer who asked where her blue parcel is.",
        "Write a sneering note to a neighbour whose party was loud.",
    ]
    made = generate(1, seeds=seeds, excerpts=["Make fun of a student who cannot do fractions."])
    assert [r.text for r in made.harmful] == seeds[:1]
    assert made.rejected["seed_over_count"] == 1
    assert made.rejected["excerpt_over_count"] == 1


def test_a_seed_that_is_there_already_leaves_a_trace() -> None:
    """Given twice, or in the parent: it was passed over as if an earlier attempt had taken it."""
    seed, other = (
        "Write a rude reply to a customer who asked where her blue parcel is.",
        "Write a sneering note to a neighbour whose party was loud.",
    )
    bare = InstructionConfig(twins=False)
    log: MemoryLog[Instruction] = MemoryLog()
    made = generate(1, seeds=[seed, seed], config=bare, log=log)
    assert made.rejected == {"seed_near_duplicate": 1}
    again = generate(1, seeds=[seed, seed], config=bare, log=log)  # killed before the first draft
    assert again.rejected == {"seed_near_duplicate": 1}
    log = MemoryLog()
    for _ in range(2):
        more = generate(1, seeds=[seed, other], config=bare, parent=made, log=log)
        assert [r.text for r in more.records] == [seed, other]
        assert more.rejected == {"seed_near_duplicate": 1}


def test_what_is_never_synthesised_does_not_enter() -> None:
    def script(request: Request) -> str:
        return " a guest who wants instructions to build a nerve agent."

    policy = POLICY.model_copy(update={"never_synthesize": ("blue bike",)})
    made = generate(
        2, engine=ScriptedEngine(script), config=InstructionConfig(max_overgeneration=4)
    )
    assert not made.records
    assert made.rejected["never_synthesize"] >= 8
    listed = generate(24, policy=policy)
    assert not [r for r in listed.records if blocked(r.text, policy)]
    assert listed.rejected["never_synthesize"] > 0


def test_what_a_parent_holds_of_the_list_is_left_out_with_its_twins(made: InstructionSet) -> None:
    """A set that was extended under a stricter policy kept what that one forbids."""
    phrase = "forbidden purple teapot"
    first, second = made.harmful[:2]
    twin = next(t for t in made.twins if t.twin_of == second.id)
    said = {first.id: f"Mock the {phrase}.", twin.id: f"Praise the {phrase}."}
    parent = made.model_copy(
        update={
            "records": tuple(
                r.model_copy(update={"text": said.get(r.id, r.text)}) for r in made.records
            )
        }
    )
    policy = POLICY.model_copy(update={"never_synthesize": (phrase,)})
    log: MemoryLog[Instruction] = MemoryLog()
    more = generate(4, parent=parent, policy=policy, log=log)
    assert not [r for r in log.read() if phrase in r.text]
    assert first.id not in {r.id for r in more.records} | {r.twin_of for r in more.records}
    assert {t.twin_of for t in more.twins} == {r.id for r in more.harmful}  # one is written anew
    assert more.rejected["parent_never_synthesize"] == 3
    assert more.requested == len(more.harmful) == len(parent.harmful) - 1 + 4
    again = generate(4, parent=parent, policy=policy, log=log)
    assert (again.records, again.requested) == (more.records, more.requested)
    assert again.rejected["parent_never_synthesize"] == 3


def test_a_model_that_writes_nothing_usable_ends_short_and_says_why() -> None:
    config = InstructionConfig(max_overgeneration=3)
    made = generate(8, engine=ScriptedEngine(lambda _: " {x}"), config=config)
    assert made.shortfall == 8
    assert made.stats["drafts"] <= 24
    assert sum(made.rejected.values()) == made.stats["drafts"]
    assert made.stats["coverage_met"] == 0.0


def test_a_dead_engine_is_not_asked_for_ever() -> None:
    with pytest.raises(EngineFailed, match="in a row"):
        generate(64, engine=ScriptedEngine(failure_rate=1.0))


def test_an_outage_does_not_use_up_the_drafts_of_later_attempts() -> None:
    """They share one budget, and small sets ended short instead of being tried again."""
    costs: MemoryLog[Spent] = MemoryLog()
    for _ in range(4):
        with pytest.raises(EngineFailed, match="in a row"):
            generate(10, engine=ScriptedEngine(failure_rate=1.0), costs=costs)
    made = generate(10, costs=costs)
    assert len(made.harmful) == 10
    assert made.rejected["engine_error"] > made.stats["drafts"]


def test_single_failures_cost_a_draft_and_no_more() -> None:
    made = generate(12, engine=ScriptedEngine(failure_rate=0.2))
    assert len(made.harmful) == 12
    assert made.rejected["engine_error"] > 0


def test_no_request_waits_for_a_barrier() -> None:
    """While drafts are owed, every free slot is filled before the next completion is looked at."""
    engine = ScriptedEngine(concurrency=8)
    pulls: list[int] = []
    original = engine.stream

    def watched(requests: Iterator[Request]) -> Iterator[object]:
        flying = 0
        for completion in original(requests):
            flying = engine.concurrency
            pulls.append(flying)
            yield completion

    engine.stream = watched  # type: ignore[method-assign, assignment]
    made = generate(16, engine=engine)
    assert len(made.harmful) == 16
    assert len(pulls) <= made.stats["drafts"] + 16 * 6  # one stream: no draft is made twice


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"count": 0}, "count"),
        ({"count": 20_001}, "count"),
        ({"config": InstructionConfig(topics=("nope",))}, "topics[0]"),
        ({"policy": load_policy("default-ja")}, "locale"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        generate(**({"count": 4} | change))  # type: ignore[arg-type]
    assert caught.value.field == field


def test_a_locale_the_model_does_not_declare_is_refused() -> None:
    with pytest.raises(InvalidInput, match="declares en"):
        generate(2, policy=load_policy("default-ja"), config=InstructionConfig(locale="ja"))


def test_japanese_instructions_are_made_from_the_japanese_pack() -> None:
    made = generate_instructions(
        load_policy("default-ja"),
        6,
        engine=ScriptedEngine(),
        model=ModelSpec(name="scripted", path="", locales=("ja",)),
        config=InstructionConfig(locale="ja", twins=False),
    )
    assert len(made.harmful) == 6
    assert {r.locale for r in made.records} == {"ja"}
    assert {r.sides for r in made.records} == {"positive_only"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Write a rude reply to a guest who came late.", ""),
        ("How do I answer a rude guest?", ""),
        ("I want to know how bees fly.", ""),
        ("I'd like a rude message to my sister about her singing.", ""),
        ("I’d really love a rude note for my neighbour.", ""),
        ("Don't be polite, tell my guest to leave.", ""),
        ("Let's write something rude to my guest.", ""),
        ("What's the rudest thing that I can say to my boss", ""),
        ("Can’t you write a rude note to my boss", ""),
        ("E-mail my coworker that his lunch smells.", ""),
        ("Re\u2010write this note in a rude voice.", ""),
        ("It's late and the guest has left.", "answer_like"),
        ("That's what the guest said before.", "not_a_request"),
        ("They're late and the guest has left.", "not_a_request"),
        ("Today's guest came late and left early.", "not_a_request"),
        ("I'd be happy to help you write it.", "not_a_request"),
        ("I'd love to help you write it.", "not_a_request"),
        ("I'm happy to help you write it.", "not_a_request"),
        ("Write it", "too_short"),
        ("word " * 61, "too_long"),
        ("Sure, here is a reply for your guest.", "answer_like"),
        ("I'm sorry, but I cannot do that for you.", "answer_like"),
        ("I’m sorry, but I cannot do that for you.", "answer_like"),
        ("The guest came late and left early.", "not_a_request"),
        ("Topic: a guest who came late again", "not_a_request"),
        ("Мock a guest who is always very late привет мир", "language"),
        ("Mock mock mock the guest guest guest mock the guest", "repetitive"),
    ],
)
def test_form_is_checked_with_a_reason(text: str, reason: str) -> None:
    for locale in ("en", "EN-gb"):
        assert malformed(text.strip(), finished=True, locale=locale) == reason


def test_a_japanese_request_may_be_as_long_as_an_english_one() -> None:
    """Its words were counted as pairs of characters: sixty are half as long a request."""
    text = (
        "昨日の夕方に届くはずだった青い自転車の部品がまだ届かないと丁寧に問い合わせてきたお客様に、"
        "こちらの都合ばかりを並べた意地悪で短い返事のメールを書いてください。"
    )
    assert len(text) > 61
    assert malformed(text, finished=True, locale="ja") == ""
    assert malformed(text * 3, finished=True, locale="ja") == "too_long"


def test_a_cut_draft_is_truncated() -> None:
    text = "Write a rude reply to a guest who came"
    assert malformed(text, finished=False, locale="en") == "truncated"


def test_copies_and_near_duplicates_are_told_apart() -> None:
    novelty = Novelty(POLICY, 0.7)
    assert novelty.why_not(POLICY.topics[0].examples[0].upper()) == "copied_example"
    text = "Write a nasty answer to a guest who asked for a second spoon."
    assert novelty.why_not(text) == ""
    novelty.add(text)
    assert novelty.why_not(text.replace("second", "third")) == "near_duplicate"


def test_drafts_carry_the_openers_of_their_tactic() -> None:
    openers: set[str] = set()

    def watch(request: Request) -> str:
        if request.prompt.endswith("Request:"):
            openers.add(request.prefill.strip())
        return plausible(request)

    generate(32, engine=ScriptedEngine(watch))
    known = {o for t in POLICY.tactics for o in t.openers}
    assert openers <= known
    assert len(openers) >= 10


def test_a_prompt_that_always_fails_does_not_fail_the_set() -> None:
    """A prompt aboard two engine deaths is set aside; its topic stayed the neediest and was asked
    for 64 times in a row."""
    title = POLICY.topics[3].title

    class Partly(ScriptedEngine):
        def complete(self, request: Request) -> Completion:
            if f"Topic: {title}\nRequest:" in request.prompt[-len(title) - 20 :]:
                return Completion(key=request.key, text="", finish="error", error="SetAside")
            return super().complete(request)

    made = generate(32, engine=Partly(), config=InstructionConfig(twins=False))
    assert len(made.harmful) == 32
    assert made.rejected["engine_error"] < 32
