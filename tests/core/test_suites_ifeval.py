"""Each checker with a reply that keeps the instruction and one that does not."""

from __future__ import annotations

import pytest

from ptalign.suites import Check, Prompt
from ptalign.suites.ifeval import CHECKERS, can_check, fits, misgiven, passes

CASES = [
    ("punctuation:no_comma", {}, "One two.", "One, two."),
    ("change_case:english_lowercase", {}, "all small.", "Not small."),
    ("change_case:english_capital", {}, "ALL LARGE.", "NOt LARGE."),
    (
        "change_case:capital_word_frequency",
        {"capital_relation": "less than", "capital_frequency": 2},
        "Only ONE here.",
        "TWO WORDS here.",
    ),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}, "say hi. Hi!", "Hi! Say hi."),
    ("combination:two_responses", {}, "First.\n******\nSecond.", "Same.\n******\nSame."),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] [b]", "[a]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nP.S. Hi", "Bye. PS"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "p.p.s hi", "P.S. hi"),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "Maybe."),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1 a SECTION 2 b",
        "SECTION one, SECTION two",
    ),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n* b\n* c"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* *b*", "*a* b"),
    ("detectable_format:title", {}, "<<A title>>\nText", "<< >> Text"),
    ("keywords:existence", {"keywords": ["sea", "sand"]}, "Sea and SAND", "Sea only"),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "A category.", "A Cat."),
    (
        "keywords:frequency",
        {"relation": "at least", "keyword": "war", "frequency": 2},
        "war, war",
        "war",
    ),
    (
        "keywords:letter_frequency",
        {"let_relation": "less than", "letter": "o", "let_frequency": 2},
        "no",
        "noon",
    ),
    ("length_constraints:number_words", {"relation": "at least", "num_words": 3}, "a b c", "a b"),
    (
        "length_constraints:number_sentences",
        {"relation": "less than", "num_sentences": 3},
        "One. Two.",
        "One. Two. Three.",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a\n\nb"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "week"},
        "One.\n\n'Week, two.",
        "One.\n\nMonth two.",
    ),
    ("startend:end_checker", {"end_phrase": "The end."}, 'So. "The END."', "The end. No."),
    ("startend:quotation", {}, '"All quoted."', '"Half" quoted.'),
]


@pytest.mark.parametrize(("name", "arguments", "keeps", "breaks"), CASES)
def test_checker(name, arguments, keeps, breaks):
    prompt = Prompt(
        id="1", instruction="?", checks=(Check(name=f"en:{name}", arguments=arguments),)
    )
    assert passes(prompt, keeps)
    assert not passes(prompt, breaks)
    assert not passes(prompt, "  ")


@pytest.mark.parametrize(("name", "arguments", "keeps", "breaks"), CASES)
def test_a_missing_argument_is_found_before_any_reply_is_there(name, arguments, keeps, breaks):
    assert not misgiven(Check(name=f"en:{name}", arguments=arguments))
    for left_out in arguments:
        if not left_out.endswith("relation"):  # at least, unless set
            rest = {key: value for key, value in arguments.items() if key != left_out}
            said = misgiven(Check(name=name, arguments=rest))
            assert said == f"a row's check {name} lacks its argument {left_out!r}"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("keywords:existence", {"keywords": ["sea", "(sand"]}),
        ("keywords:forbidden_words", {"forbidden_words": ["word", 7, "(sand"]}),
        ("keywords:frequency", {"keyword": "sea", "frequency": "twice"}),
        ("detectable_format:number_bullet_lists", {"num_bullets": "two"}),
        (
            "length_constraints:nth_paragraph_first_word",
            {"num_paragraphs": 2, "nth_paragraph": "second", "first_word": "week"},
        ),
    ],
)
def test_an_argument_that_no_reply_could_be_checked_by_is_found(name, arguments):
    assert misgiven(Check(name=name, arguments=arguments)).endswith("that it cannot use")


def test_every_checker_has_a_case_and_the_language_row_is_left_to_others():
    assert {name for name, *_ in CASES} == set(CHECKERS)
    assert not can_check(Check(name="en:language:response_language", arguments={"language": "de"}))


@pytest.mark.parametrize("again", ["[", '{"a":'])
def test_json_that_opens_without_end_is_a_reply_that_breaks_the_instruction(again):
    """One looping reply ended the whole evaluation: the parser is recursive."""
    prompt = Prompt(id="1", instruction="?", checks=(Check(name="detectable_format:json_format"),))
    assert not passes(prompt, again * 100_000)


def test_all_instructions_of_a_prompt_must_be_kept():
    checks = (Check(name="punctuation:no_comma"), Check(name="change_case:english_lowercase"))
    prompt = Prompt(id="1", instruction="?", checks=checks)
    assert passes(prompt, "small and plain")
    assert not passes(prompt, "small, and plain")


def test_a_reply_that_cannot_be_long_enough_is_not_asked_for():
    def asks(name, **arguments):
        return Prompt(id="1", instruction="?", checks=(Check(name=name, arguments=arguments),))

    long = asks("en:length_constraints:number_words", relation="at least", num_words=500)
    short = asks("en:length_constraints:number_words", relation="less than", num_words=500)
    assert not fits(long, 128)
    assert fits(long, 1024)
    assert fits(short, 16)
