"""Checkers of verifiable instructions (IFEval, Zhou et al. 2023, strict, prompt level).

lm-eval ships the originals, but importing them pulls in nltk data from the network and a dozen
packages, which a service that runs offline cannot have. These follow the same rules;
`tests/core/test_suites_ifeval.py` holds the cases, and `tests/core/test_ifeval_parity.py` compares
them with lm-eval 0.4.13 on texts that keep and break each: 34,005 of 34,020 verdicts alike. Left
to lm-eval, and reported as left out under "no checker": `language:response_language`, which needs a
language detector. English is taken from the letters where the original asks a detector, and words
in capitals are split at white space and punctuation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from ptalign.suites.base import Check, Prompt
from ptalign.text.sentences import sentences

Arguments = Mapping[str, Any]
Checker = Callable[[str, Arguments], bool]


def passes(prompt: Prompt, reply: str) -> bool:
    """Whether the reply keeps every instruction of the prompt; an empty reply keeps none."""
    return bool(reply.strip()) and all(
        CHECKERS[_short(check)](reply, check.arguments) for check in prompt.checks
    )


def can_check(check: Check) -> bool:
    """Whether there is a checker for this instruction."""
    return _short(check) in CHECKERS


def misgiven(check: Check) -> str:
    """What is wrong with the arguments of a checker; empty where nothing is, or there is none.

    Found by a reply that stands for any: a checker reads all of its arguments whatever it is given.
    """
    if not can_check(check):
        return ""
    try:
        CHECKERS[_short(check)]("word", check.arguments)
        _tokens_needed(check)
    except KeyError as error:
        return f"a row's check {check.name} lacks its argument {error.args[0]!r}"
    except (TypeError, ValueError, re.error):
        return f"a row's check {check.name} has an argument that it cannot use"
    return ""


def fits(prompt: Prompt, max_tokens: int) -> bool:
    """Whether a reply of `max_tokens` tokens can keep every instruction at all."""
    return all(_tokens_needed(check) <= max_tokens for check in prompt.checks)


def _short(check: Check) -> str:
    return check.name.removeprefix("en:")


def _tokens_needed(check: Check) -> float:
    """A lower bound, in tokens, on a reply that keeps the instruction."""
    name, given = _short(check), check.arguments
    if given.get("relation", given.get("let_relation", "")) == "less than":
        return 0
    if name == "combination:repeat_prompt":
        return 1.5 * len(str(given.get("prompt_to_repeat", "")).split()) + 24
    if name in _COSTS:
        key, tokens = _COSTS[name]
        return tokens * float(given.get(key, 1))
    return 0


_COSTS: dict[str, tuple[str, float]] = {
    "length_constraints:number_words": ("num_words", 1.4),
    "length_constraints:number_sentences": ("num_sentences", 10),
    "length_constraints:number_paragraphs": ("num_paragraphs", 25),
    "length_constraints:nth_paragraph_first_word": ("num_paragraphs", 25),
    "detectable_format:multiple_sections": ("num_sections", 25),
    "detectable_format:number_bullet_lists": ("num_bullets", 10),
    "detectable_format:number_highlighted_sections": ("num_highlights", 8),
    "detectable_content:number_placeholders": ("num_placeholders", 6),
    "keywords:frequency": ("frequency", 8),
    "keywords:letter_frequency": ("let_frequency", 4),
    "change_case:capital_word_frequency": ("capital_frequency", 4),
    "combination:two_responses": ("", 60),
    "detectable_content:postscript": ("", 60),
    "startend:end_checker": ("", 60),
}
"""Argument that counts, and tokens each unit needs at least."""


def _at_least(count: float, given: Arguments, relation: str, limit: str) -> bool:
    wanted = given[limit]
    return bool(count < wanted if given.get(relation) == "less than" else count >= wanted)


def _english(reply: str) -> bool:
    letters = [c for c in reply if c.isalpha()]
    return bool(letters) and sum(c.isascii() for c in letters) >= 0.9 * len(letters)


def _bullets(reply: str, given: Arguments) -> bool:
    found = re.findall(r"^\s*\*[^*].*$|^\s*-.*$", reply, re.MULTILINE)
    return bool(len(found) == given["num_bullets"])


def _highlights(reply: str, given: Arguments) -> bool:
    single = [h for h in re.findall(r"\*[^\n*]*\*", reply) if h.strip("*").strip()]
    double = [h for h in re.findall(r"\*\*[^\n*]*\*\*", reply) if h[2:-2].strip()]
    return bool(len(single) + len(double) >= given["num_highlights"])


def _sections(reply: str, given: Arguments) -> bool:
    parts = re.split(rf"\s?{given['section_spliter']}\s?\d+\s?", reply)
    return bool(len(parts) - 1 >= given["num_sections"])


def _paragraphs(reply: str, given: Arguments) -> bool:
    """Paragraphs are divided by ***; an empty one in the middle is a fault."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", reply)]
    inner = parts[1:-1]
    return all(inner) and sum(bool(part) for part in parts) == given["num_paragraphs"]


def _nth_paragraph(reply: str, given: Arguments) -> bool:
    parts = reply.split("\n\n")
    filled = sum(bool(part.strip()) for part in parts)
    nth, paragraphs = int(given["nth_paragraph"]), given["num_paragraphs"]
    wanted = str(given["first_word"]).lower()
    if nth > filled or filled != paragraphs or not parts[nth - 1].split():
        return False
    word = parts[nth - 1].split()[0].lstrip("'\"")
    return re.split(r"[.,?!'\"]", word)[0].lower() == wanted


def _postscript(reply: str, given: Arguments) -> bool:
    marker = str(given["postscript_marker"]).upper()
    patterns = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return bool(re.search(patterns.get(marker, re.escape(marker)), reply, re.IGNORECASE))


def _json(reply: str, _: Arguments) -> bool:
    text = re.sub(r"^```(?:json)?|```$", "", reply.strip(), flags=re.IGNORECASE).strip()
    try:
        json.loads(text)
    except (ValueError, RecursionError):  # the parser is recursive, and a reply may loop
        return False
    return True


def _two_responses(reply: str, _: Arguments) -> bool:
    parts = [part.strip() for part in reply.split("******")]
    filled = [part for part in parts if part]
    return all(parts[1:-1]) and len(filled) == 2 and filled[0] != filled[1]


def _ends(reply: str, given: Arguments) -> bool:
    text = reply.strip().strip('"').lower()
    return text.endswith(str(given["end_phrase"]).strip().lower())


def _repeats(reply: str, given: Arguments) -> bool:
    wanted = str(given["prompt_to_repeat"]).strip().lower()
    return reply.strip().lower().startswith(wanted)


def _keywords(reply: str, given: Arguments) -> bool:
    found = [re.search(word, reply, re.IGNORECASE) for word in given["keywords"]]
    return all(found)


def _no_forbidden(reply: str, given: Arguments) -> bool:
    words = given["forbidden_words"]
    found = [re.search(rf"\b{word}\b", reply, re.IGNORECASE) for word in words]
    return not any(found)


def _frequency(reply: str, given: Arguments) -> bool:
    count = len(re.findall(given["keyword"], reply, re.IGNORECASE))
    return _at_least(count, given, "relation", "frequency")


def _capital_words(reply: str, given: Arguments) -> bool:
    count = sum(word.isupper() for word in re.findall(r"[\w'-]+", reply))
    return _at_least(count, given, "capital_relation", "capital_frequency")


_CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")

CHECKERS: dict[str, Checker] = {
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": lambda r, g: r.isupper() and _english(r),
    "change_case:english_lowercase": lambda r, g: r.islower() and _english(r),
    "combination:repeat_prompt": _repeats,
    "combination:two_responses": _two_responses,
    "detectable_content:number_placeholders": lambda r, g: (
        len(re.findall(r"\[.*?\]", r)) >= g["num_placeholders"]
    ),
    "detectable_content:postscript": _postscript,
    "detectable_format:constrained_response": lambda r, g: any(c in r for c in _CONSTRAINED),
    "detectable_format:json_format": _json,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:title": lambda r, g: any(
        t.strip("<> ") for t in re.findall(r"<<[^\n]+>>", r)
    ),
    "keywords:existence": _keywords,
    "keywords:forbidden_words": _no_forbidden,
    "keywords:frequency": _frequency,
    "keywords:letter_frequency": lambda r, g: _at_least(
        r.lower().count(str(g["letter"]).lower()), g, "let_relation", "let_frequency"
    ),
    "length_constraints:nth_paragraph_first_word": _nth_paragraph,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_sentences": lambda r, g: _at_least(
        len(sentences(r)), g, "relation", "num_sentences"
    ),
    "length_constraints:number_words": lambda r, g: _at_least(
        len(re.findall(r"\w+", r)), g, "relation", "num_words"
    ),
    "punctuation:no_comma": lambda r, g: "," not in r,
    "startend:end_checker": _ends,
    "startend:quotation": lambda r, g: len(r.strip()) > 1 and r.strip()[0] == r.strip()[-1] == '"',
}
"""Checker per instruction name without its language prefix."""
