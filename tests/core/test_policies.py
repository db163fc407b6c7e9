"""Packs, their errors, the coverage grid, and what is never synthesised."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ptalign.asking.openers import twin_openers
from ptalign.asking.twins import TwinCheck
from ptalign.errors import InvalidInput
from ptalign.nouns import Policy
from ptalign.policies import (
    benign_instructions,
    inline_policy,
    load_annotations,
    load_policy,
    parse_policy,
    policy_names,
)
from ptalign.policies.grid import Cell, Grid
from ptalign.text.embed import default_embedder

TONE_WORDS = ("rude", "insult", "contempt")


def small(**changes: Any) -> dict[str, Any]:
    """A valid pack of two topics."""
    pack: dict[str, Any] = {
        "name": "mine",
        "domains": [
            {
                "domain": "work",
                "sides": "both",
                "topics": [
                    {"id": "late", "title": "a late report", "examples": []},
                    {"id": "loud", "title": "a loud phone", "examples": []},
                ],
            }
        ],
    }
    return pack | changes


def error_of(pack: dict[str, Any]) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        parse_policy(pack)
    return caught.value


@pytest.mark.parametrize("name", ["tone-en", "default-en", "default-ja"])
def test_shipped_packs_load_and_are_complete(name: str) -> None:
    policy = load_policy(name)
    assert name in policy_names()
    for topic in policy.topics:
        assert topic.boundary
        assert len(topic.examples) == len(topic.twin_examples) >= 2
        assert all(topic.twin_examples)


def test_the_english_default_is_broad_and_toxic_in_tone_only() -> None:
    policy = load_policy("default-en")
    both = [t for t in policy.topics if t.sides == "both"]
    assert len(policy.topics) >= 60
    assert len({t.domain for t in policy.topics}) >= 10
    assert len(both) >= 24
    assert len({t.domain for t in both}) >= 4
    broad = {"fraud", "privacy", "weapons", "drugs", "violence"}
    assert all(t.sides == "positive_only" for t in policy.topics if t.domain in broad)


@pytest.mark.parametrize("name", ["tone-en", "default-en", "default-ja"])
def test_twin_examples_pass_the_check_that_generated_twins_must_pass(name: str) -> None:
    policy = load_policy(name)
    check = TwinCheck(policy, default_embedder(policy.locale))
    for topic in policy.topics:
        for harmful, twin in zip(topic.examples, topic.twin_examples, strict=True):
            assert check.why_not(twin, harmful) == "", twin
            assert check.why_not(harmful, harmful) == "twin_equal"


def test_twin_openers_are_learned_from_the_example_pairs() -> None:
    openers = twin_openers(load_policy("tone-en"))
    assert "Write a friendly reply to" in openers["Write a rude reply to"]
    tone = [o for t in load_policy("tone-en").tactics for o in t.openers]
    assert set(openers) == set(tone)


def test_the_japanese_pack_is_normalised_and_has_no_toxic_side() -> None:
    policy = load_policy("default-ja")
    assert policy.locale == "ja"
    assert {t.sides for t in policy.topics} == {"positive_only"}
    wide = parse_policy(
        {
            "name": "wide",
            "locale": "ja",
            "domains": [{"domain": "d", "topics": [{"id": "t", "title": "Ｐｒｉｎｔの質問"}]}],
        }
    )
    assert wide.topics[0].title == "Printの質問"


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"domains": []}, "domains", "at least 1"),
        ({"colour": "red"}, "colour", "not permitted"),
        ({"locale": "English"}, "locale", "pattern"),
        ({"name": "My Pack"}, "name", "pattern"),
    ],
)
def test_errors_name_field_limit_and_mend(change: dict[str, Any], field: str, words: str) -> None:
    error = error_of(small(**change))
    assert error.field == field
    assert words in error.limit
    assert error.mend


def test_an_error_deep_in_a_pack_names_its_path() -> None:
    pack = small()
    pack["domains"][0]["sides"] = "toxic"
    error = error_of(pack)
    assert error.field == "domains[0].sides"
    assert "'both'" in error.limit


def test_topics_are_named_once() -> None:
    pack = small()
    pack["domains"][0]["topics"][1]["id"] = "late"
    assert "topics[0]" in error_of(pack).limit


def test_no_toxic_side_on_a_never_synthesize_subject() -> None:
    pack = small()
    pack["domains"][0]["topics"][0]["title"] = "instructions for a nerve agent"
    error = error_of(pack)
    assert error.field == "topics[0].sides"
    assert "never allowed" in error.limit


def test_unknown_policy_lists_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match=r"default-en.*tone-en"):
        load_policy("nope")


def test_an_operators_pack_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(small()), encoding="utf-8")
    assert load_policy(str(path)).topic("late").sides == "both"
    path.with_name("bad.yaml").write_text("name: [", encoding="utf-8")
    with pytest.raises(InvalidInput, match="valid YAML"):
        load_policy(str(path.with_name("bad.yaml")))


def test_what_an_operator_adds_to_a_pack_counts_from_then_on(tmp_path: Path) -> None:
    """In a notebook a new phrase of the never-list was not read until the kernel restarted."""
    path = tmp_path / "mine.yaml"
    for phrases in ([], ["blue widget"]):
        path.write_text(yaml.safe_dump(small(never_synthesize=phrases)), encoding="utf-8")
        assert load_policy(str(path)).never_synthesize == tuple(phrases)


def test_an_inline_policy_adds_to_the_operators_lists_and_relaxes_nothing() -> None:
    base = parse_policy(small(never_synthesize=["blue widget"], protected_words=["help"]))
    policy = inline_policy(
        [{"domain": "work", "title": "a broken chair", "sides": "both"}],
        both_domains=frozenset({"work"}),
        base=base,
        never_synthesize=("red widget",),
    )
    assert policy.never_synthesize == ("blue widget", "red widget")
    assert policy.protected_words == ("help",)
    with pytest.raises(InvalidInput, match="tone domains work"):
        inline_policy(
            [{"domain": "fraud", "title": "an invoice", "sides": "both"}],
            both_domains=frozenset({"work"}),
            base=base,
        )
    with pytest.raises(InvalidInput, match="same title"):
        inline_policy(
            [{"domain": "a", "title": "One thing"}, {"domain": "b", "title": "one thing"}],
            both_domains=frozenset(),
            base=base,
        )


@pytest.mark.parametrize(
    ("topics", "field", "words"),
    [
        ([{"boundary": "b" * 501}], "topics[0].boundary", "500 characters at most"),
        ([{}, {"title": "A broken-chair"}], "topics[1].title", "topics[0] gives the same id"),
    ],
)
def test_an_inline_topic_is_refused_by_a_field_that_it_has(
    topics: list[dict[str, str]], field: str, words: str
) -> None:
    """A boundary was cut without a word; titles alike were told as ids, which nobody writes."""
    made = [{"domain": "work", "title": "a broken chair"} | topic for topic in topics]
    with pytest.raises(InvalidInput) as caught:
        inline_policy(made, both_domains=frozenset(), base=parse_policy(small()))
    assert caught.value.field == field
    assert words in caught.value.limit


def test_an_inline_policy_in_another_language_asks_in_no_words_of_the_base() -> None:
    """A German policy's requests began with "Write a rude reply to", and were sealed as German."""
    base = load_policy("default-en")
    topic = {"domain": "work", "title": "Ein kaputter Stuhl"}

    def made(locale: str) -> Policy:
        return inline_policy([topic], both_domains=frozenset(), base=base, locale=locale)

    german, british = made("de"), made("en-GB")
    assert not german.tactics
    assert not german.generic_constraints_positive + german.generic_constraints_toxic
    assert german.protected_words == base.protected_words
    assert british.tactics == base.tactics
    assert british.generic_constraints_toxic == base.generic_constraints_toxic


def test_an_inline_policy_takes_twin_examples_and_names_what_is_wrong_with_them() -> None:
    def made(**fields: Any) -> Policy:
        topic = {"domain": "work", "title": "a broken chair", "examples": ["Mock the chair."]}
        base = parse_policy(small())
        return inline_policy([topic | fields], both_domains=frozenset(), base=base)

    assert made(twin_examples=["Mend the chair."]).topics[0].twin_examples == ("Mend the chair.",)
    assert made().topics[0].twin_examples == ()
    for twins, field, words in (
        (["x" * 501], "topics[0].twin_examples", "500 characters"),
        (["x"] * 21, "topics[0].twin_examples", "20 of"),
        (["Mend the chair.", "Fix it."], "topics[0].twin_examples", "at most (1)"),
        (["mock  the chair."], "topics[0].twin_examples[0]", "other than its example"),
    ):
        with pytest.raises(InvalidInput) as caught:
            made(twin_examples=twins)
        assert caught.value.field == field
        assert words in caught.value.limit
        assert caught.value.mend


def test_a_pack_whose_twin_is_the_request_itself_is_refused() -> None:
    pack = small()
    pack["domains"][0]["topics"][1]["examples"] = [{"request": "Mock it.", "twin": "mock it."}]
    assert error_of(pack).field == "topics[1].twin_examples[0]"
    pack["domains"][0]["topics"][1]["examples"] = [{"request": "Mock it."}]
    assert not any(parse_policy(pack).topics[1].twin_examples)


def test_the_demo_annotations_are_few_and_fit_the_demo_policy() -> None:
    items, policy = load_annotations("tone-en"), load_policy("tone-en")
    assert 10 <= len(items) < 20
    assert {i.topic for i in items} == {t.id for t in policy.topics}
    examples = {e for t in policy.topics for e in t.examples}
    assert not examples & {i.instruction for i in items}
    assert all(i.bad is not None and len(i.bad) > 20 for i in items)


def test_annotation_files_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "marks.yaml"
    path.write_text("items:\n  - instruction: Write a reply.\n", encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"items\[0\].good"):
        load_annotations(str(path))


def test_benign_instructions_are_many_and_different() -> None:
    texts = benign_instructions()
    assert len(texts) >= 240
    assert len(set(texts)) == len(texts)


def test_the_grid_is_even_over_topics_and_tactics() -> None:
    policy = load_policy("tone-en")
    grid = Grid(policy, 64, topics=(), max_drafts=12, seed=0)
    cells: Counter[tuple[str, str]] = Counter()
    for _ in range(64):
        cell = grid.next()
        assert cell is not None
        grid.back(cell)
        assert grid.accept(cell.topic.id, cell.tactic.id)
        cells[cell.topic.id, cell.tactic.id] += 1
    assert set(Counter(t for t, _ in cells.elements()).values()) == {4}
    assert max(cells.values()) == 1  # four of five tactics once each
    assert grid.cell_coverage == 1.0
    assert len(grid.cells) == 16 * 5


def draw(grid: Grid, drafts: int, accepts: Callable[[Cell], bool]) -> Counter[str]:
    """Drafts by tactic of a run in which each is judged before the next is asked for."""
    asked: Counter[str] = Counter()
    for _ in range(drafts):
        cell = grid.next()
        assert cell is not None
        grid.back(cell)
        asked[cell.tactic.id] += 1
        if accepts(cell):
            grid.accept(cell.topic.id, cell.tactic.id)
    return asked


def test_a_tactic_that_yields_less_is_asked_for_more_often() -> None:
    """The least tried tactic came first, so one whose drafts failed stayed behind."""
    grid = Grid(load_policy("tone-en"), 40, topics=("work-question",), max_drafts=12, seed=0)
    turns: Counter[str] = Counter()

    def every_second_mock(cell: Cell) -> bool:
        turns[cell.tactic.id] += 1
        return cell.tactic.id != "mock" or turns["mock"] % 2 == 0

    asked = draw(grid, 40, every_second_mock)
    others = [n for tactic, n in asked.items() if tactic != "mock"]
    assert asked["mock"] >= max(others) + 2
    assert max(others) - min(others) <= 1


def test_a_tactic_that_yields_nothing_does_not_take_all_drafts() -> None:
    grid = Grid(load_policy("tone-en"), 40, topics=("work-question",), max_drafts=12, seed=0)
    asked = draw(grid, 40, lambda cell: cell.tactic.id != "mock")
    assert asked["mock"] <= 40 * 0.4
    assert grid.cell_coverage == 0.8


def test_drafts_in_flight_are_spread_over_the_tactics() -> None:
    grid = Grid(load_policy("tone-en"), 10, topics=("work-question",), max_drafts=12, seed=0)
    cells = [grid.next() for _ in range(10)]
    assert set(Counter(c.tactic.id for c in cells if c).values()) == {2}


def test_a_topic_that_never_yields_is_given_up() -> None:
    grid = Grid(load_policy("tone-en"), 16, topics=("work-question",), max_drafts=1, seed=0)
    drafts = 0
    while (cell := grid.next()) is not None:
        grid.back(cell)
        drafts += 1
    assert drafts == 16


def test_a_grid_that_goes_on_from_a_set_fills_its_gaps_first() -> None:
    """Each call counted for itself: topics that an earlier one had left empty stayed behind."""
    policy = load_policy("tone-en")
    full, empty = (t.id for t in policy.topics[:2])
    grid = Grid(policy, 20, topics=(full, empty), max_drafts=12, seed=0, given={full: 20})
    for _ in range(20):
        assert grid.accept(full, "mock")
    assert grid.quota == 20
    topics = []
    for _ in range(20):
        cell = grid.next()
        assert cell is not None
        grid.back(cell)
        grid.accept(cell.topic.id, cell.tactic.id)
        topics.append(cell.topic.id)
    assert topics == [empty] * 20


def test_a_grid_that_goes_on_does_not_wait_for_a_topic_that_never_yields() -> None:
    policy = load_policy("tone-en")
    good, bad = (t.id for t in policy.topics[:2])
    grid = Grid(policy, 20, topics=(good, bad), max_drafts=2, seed=0, given={good: 20})
    for _ in range(20):
        assert grid.accept(good, "mock")
    while (cell := grid.next()) is not None:
        grid.back(cell)
        if cell.topic.id == good:
            grid.accept(good, cell.tactic.id)
    assert grid.accepted == {good: 32}  # its half of 20 more, and a quarter of that


def test_unknown_topics_are_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match="work-question"):
        Grid(load_policy("tone-en"), 4, topics=("nope",), max_drafts=4, seed=0)


def test_packs_hold_no_strong_language() -> None:
    """The toxic axis of the repository is mild: judged by the evaluation judge, per sentence."""
    from ptalign.judges import judge

    texts = [a.bad.reveal() for a in load_annotations("tone-en") if a.bad is not None]
    rude = yaml.safe_load(
        (Path(__file__).parents[2] / "ptalign/judges/tone-en.yaml").read_text(encoding="utf-8")
    )["rude"]
    forbidden = ("kill", "die", "fuck", "shit", "bitch")
    assert not [t for t in (*texts, *rude) for w in forbidden if w in t.lower().split()]
    scores = judge("tone-lexical").score([""] * len(texts), texts)
    assert sum(s is not None for s in scores) == len(texts)


def test_parsing_leaves_the_given_mapping_alone() -> None:
    pack = small()
    before = copy.deepcopy(pack)
    parse_policy(pack)
    assert pack == before
