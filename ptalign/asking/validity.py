"""Which drafts are instructions. Each check names the reason it rejects for."""

from __future__ import annotations

import re

from ptalign.nouns import Policy
from ptalign.text.locales import language
from ptalign.text.near import NearDuplicates, tokens
from ptalign.text.normalise import straight, unspaced

LONGEST = 60
"""Words of an instruction at most."""

LONGEST_UNSPACED = 150
"""The same in character pairs, where words are not apart: two and a half make a word."""

COPIED = 0.8
"""ROUGE-L F1 with an example above which a draft is a copy of it."""

_ANSWER = re.compile(
    r"^(sure|certainly|of course|i'?m sorry|sorry|i can(no|')t|i cannot|i won'?t|as an ai"
    r"|here (is|are)|yes\b|no\b[,.]|thank you|you (should|can|could|are)|it is\b|it's\b"
    r"|the answer|answer:)",
    re.I,
)
_MARKUP = re.compile(
    r"(topic|request|harmful|harmless|question|answer)\s*:|https?://|[<>{}\[\]|]", re.I
)
_REDACTED = re.compile(r"\[[A-Z_]+\]")
"""What `redact` leaves in an excerpt: not markup."""

_KANA = re.compile(r"[぀-ヿ]")
_QUESTION = frozenset(
    [
        "how",
        "what",
        "why",
        "when",
        "where",
        "who",
        "which",
        "can",
        "could",
        "should",
        "would",
        "is",
        "are",
        "do",
        "does",
        "did",
        "will",
        "may",
        "am",
        "was",
        "were",
        "has",
        "have",
    ]
)
_NOT_A_VERB = frozenset(
    [
        "the",
        "a",
        "an",
        "this",
        "that",
        "these",
        "those",
        "my",
        "your",
        "his",
        "her",
        "our",
        "their",
        "its",
        "it",
        "he",
        "she",
        "they",
        "we",
        "i",
        "you",
        "there",
        "if",
        "in",
        "on",
        "at",
        "for",
        "with",
        "from",
        "by",
        "about",
        "and",
        "or",
        "but",
        "because",
        "so",
    ]
)
_WORD_PART = re.compile(r"['‐-]")
"""Between a verb and what is drawn together with it, and within one: don't, e-mail."""
_WISH = re.compile(r"\W*i'd (?:\w+ )?(?:like|love)\b(?! to help)", re.I)
_LEAD_IN = frozenset({"i", "my", "as", "if", "in", "imagine", "suppose", "for", "please"})


def malformed(text: str, *, finished: bool, locale: str) -> str:
    """Why a text is no instruction by its form alone; empty when it is one.

    Args:
        text: The draft, in plain form.
        finished: Whether the model ended the line itself, not the token limit.
        locale: BCP 47 tag the instruction must be written in.
    """
    words = tokens(text, locale)
    if len(words) < 4:
        return "too_short"
    longest = LONGEST_UNSPACED if unspaced(locale) else LONGEST
    if len(words) > longest or len(text) > 400:
        return "too_long"
    if not finished:
        return "truncated"
    if not in_language(text, locale):
        return "language"
    if _ANSWER.match(straight(text)):
        return "answer_like"
    if _MARKUP.search(_REDACTED.sub("", text)):
        return "not_a_request"
    if language(locale) == "en" and not _is_request(text):
        return "not_a_request"
    if _repeats(words):
        return "repetitive"
    return ""


def in_language(text: str, locale: str) -> bool:
    """Whether a text is written in the script of its locale (English, Japanese; else True)."""
    letters = [c for c in text if c.isalpha()]
    if not letters:
        return False
    if language(locale) == "en":
        return sum(c.isascii() for c in letters) >= 0.95 * len(letters)
    if language(locale) == "ja":
        return bool(_KANA.search(text))
    return True


def _is_request(text: str) -> bool:
    """An imperative, a question, or a lead-in that ends in one."""
    text = straight(text)
    first = text.split(None, 1)[0].strip("\"'“,.!?").lower()
    if text.rstrip("\"'”").endswith("?") or _WISH.match(text):
        return True
    word = _WORD_PART.split(first)[0]
    if word in _QUESTION:
        return True
    if "'" in first and (word in _LEAD_IN or (first.endswith("'s") and word != "let")):
        return False  # an offer (I'm happy to), or what somebody has or is
    if word in _LEAD_IN:
        return bool(re.search(r"\b(how|what|write|tell|give|explain|help|want|need)\b", text, re.I))
    return word not in _NOT_A_VERB and word.isalpha()


def _repeats(words: tuple[str, ...]) -> bool:
    return len(words) >= 6 and len(set(words)) < 0.6 * len(words)


class Novelty:
    """Tells copies of examples and near-duplicates of what was accepted.

    Args:
        policy: Its examples must not come back.
        max_rouge_l: ROUGE-L F1 above which a text is a near-duplicate.
    """

    def __init__(self, policy: Policy, max_rouge_l: float) -> None:
        self._examples = NearDuplicates(max(COPIED, max_rouge_l), policy.locale)
        self._accepted = NearDuplicates(max_rouge_l, policy.locale)
        for topic in policy.topics:
            for example in topic.examples:
                self._examples.add(example)

    def why_not(self, text: str) -> str:
        """``copied_example``, ``near_duplicate`` or an empty string."""
        if self._examples.find(text) is not None:
            return "copied_example"
        return "near_duplicate" if self._accepted.find(text) is not None else ""

    def add(self, text: str) -> None:
        """Remembers an accepted text."""
        self._accepted.add(text)
