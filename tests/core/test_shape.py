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
