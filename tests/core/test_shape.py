"""Length and repetition of replies to harmless requests."""

from __future__ import annotations

import pytest

from ptalign.nouns import Reply
from ptalign.sealed import SealedText
from ptalign.shape import shape_changes, shapes
from ptalign.suites import Prompt, Suite

SUITES = (
    Suite(
        name="ordinary",
        measure="ordinary",
        prompts=(Prompt(id="0", instruction="?"),),
        max_tokens=8,
    ),
    Suite(name="attack", measure="harm", prompts=(Prompt(id="0", instruction="?"),), max_tokens=8),
)


def replies(*texts, suite="ordinary", tokens=5, outcome="useful"):
    return [
        Reply(
            id=f"{suite}{i}", target="t", suite=suite, prompt_id=str(i), text=SealedText(text),
            outcome=outcome, tokens=tokens,
        )
        for i, text in enumerate(texts)
    ]  # fmt: skip


def test_words_and_runs_are_counted_on_harmless_requests_only():
    found = shapes(
        [
            *replies("one two three four", "go on go on go on"),
            *replies("not read " * 30, suite="attack", tokens=8),
        ],
        SUITES,
    )
    assert found["reply_words"] == 5.0
    assert found["reply_at_limit"] == 0.0
    # Four runs, of which "go on go" and "on go on" stand twice: half were said before.
    assert found["reply_repetition"] == pytest.approx(0.25)


def test_replies_at_the_limit_are_told_and_unscored_ones_left_out():
    told = [*replies("a b", tokens=8), *replies("", "c", tokens=0, outcome="unscored")[1:]]
    assert shapes(told, SUITES)["reply_at_limit"] == 1.0
    assert shapes(replies("x", outcome="unscored"), SUITES) == {}


def test_prompts_of_one_group_count_for_less_where_they_change_alike():
    """The report says so of its intervals, and these took each prompt for itself."""
    n = 24
    alone = tuple(Prompt(id=str(i), instruction="?") for i in range(n))
    alike = tuple(p.model_copy(update={"group": str(i // 6)}) for i, p in enumerate(alone))
    before = replies(*["a b c d"] * n)
    after = replies(*["a b" if i // 6 % 2 else "a b c d" for i in range(n)])
    after = [r.model_copy(update={"tokens": 8 if i // 6 % 2 else 5}) for i, r in enumerate(after)]

    def widths(prompts):
        suites = [SUITES[0].model_copy(update={"prompts": prompts})]
        found = shape_changes(before, after, suites)
        return {name: high - low for name, (_, low, high) in found.items()}

    wide, narrow = widths(alike), widths(alone)
    for name in ("reply_words", "reply_at_limit"):
        assert wide[name] > 1.5 * narrow[name]


def test_changes_are_taken_on_the_same_prompts():
    before, after = replies("a b c d", "a b", "a"), replies("a b", "a b", "a")[:2]
    value, low, high = shape_changes(before, after, SUITES)["reply_words"]
    assert value == -1.0
    assert low <= value <= high
    assert shape_changes([], after, SUITES) == {}


def test_japanese_is_counted_without_spaces():
    (reply,) = replies("\u3053\u3093\u306b\u3061\u306f")
    found = shapes([reply.model_copy(update={"locale": "ja"})], SUITES)
    assert found["reply_words"] == 4.0
