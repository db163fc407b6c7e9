"""Which answers can be kept. Each check names the reason it rejects for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from ptalign.nouns import Policy
from ptalign.policies.never import blocked
from ptalign.text.locales import language
from ptalign.text.near import NearDuplicates, rouge_l, tokens, written_words
from ptalign.text.normalise import plain, straight, unspaced
from ptalign.text.sentences import cut_at_last_sentence, joined, sentence_ends, sentences

MAX_ROUGE_L = 0.7
"""Answers closer than this to a demonstration or to an accepted answer are copies."""

MAX_REUSE, REUSE_SHARE = 2, 0.05
"""Accepted answers that may share a sentence: so many, or so large a share of all."""

_REFUSES = re.compile(
    r"\b(i (can(no|')t|cannot|will not|won'?t|refuse|(must|have to|need to) decline)"
    r"|i('?m| am) (not able|unable|not (going|willing) to)|i'?m sorry,? but|as an ai\b"
    r"|i (don'?t|do not) want to|i('?d| would) (rather not|prefer not)|unable to (help|assist)"
    r"|(this|that)('s not| is not| isn'?t) something (that )?i('?m| am)? "
    r"(can|will|(able|going|willing) to) (support|help|assist|do|write|answer|provide|give|share)\b"
    r"|(i (must|have to) say|my answer( to (this|that|it|your request))? is) no"
    r"(?=\s*([.,;:!]|$|(because|since|to (this|that|it|helping))\b))"
    r"|(it|that|this) would be (wrong|irresponsible|unethical) (of|for) me\b(?! (not to|to not)))",
    re.I,
)
_REFUSES_JA = re.compile(
    r"お断り(し|いたし)ます|お断りさせて|(手伝い|協力|お?答え|回答|お教え|お応え)[はをも]?(することは)?"
    r"(でき(ません|かね)|(いた)?しません|(いた|致)しかね)|(書く|教える|手伝う|答える)ことはできません"
    r"|(要望|依頼|要求|質問|件|内容)に(は|つい|関し)[^。]{0,10}(できません|かねます|られません)"
    r"|(文|文章|言葉|返事|メール|悪口)[はを]書([きけ]ません|きたくありません)|したくありません"
    r"|(悪口|回答|お?答え|返答)[はを]控え(ます|させ)|(ai|言語モデル)として",
    re.I,
)
_THREAT = re.compile(
    r"\b(kill|murder|stab|shoot|strangle|(beat|burn|hurt|hang) you|die|dead|death|blood|rape)\b"
    r"|殺[すしせさそ]|死[ねに]|殴[るりっ]|刺[すしさ]|首を絞|血まみれ",
    re.I,
)
_FRAME = re.compile(
    r"\b(message|answer|rule|harmful|harmless)\s*:|\[[A-Za-z' ]+\]|https?://"
    r"|(依頼|答え|決まり)\s*:",
    re.I,
)
_UNSPACED = re.compile(r"[぀-ヿ一-鿿]")


def tidy(text: str, *, finished: bool, most: int = 3, locale: str = "en") -> str:
    """An answer cut at a sentence's end: at most `most` sentences, no half or repeated one.

    Args:
        text: Raw completion, with its prefill.
        finished: Whether the model ended it itself.
        most: Sentences to keep.
        locale: Decides how sentences are compared and joined.
    """
    text = plain(text)
    if finished and text and not sentence_ends(text):
        return ""
    text = cut_at_last_sentence(text)
    parts: list[str] = []
    for part in sentences(text):
        words = tokens(part, locale)
        if not any(rouge_l(words, tokens(p, locale)) > MAX_ROUGE_L for p in parts):
            parts.append(part)
    return cut_at_last_sentence(joined(parts[:most], locale))


def malformed(answer: str, policy: Policy, *, least: int = 4) -> str:
    """Why a tidied answer is unusable by its form; empty when it is usable."""
    if not answer:
        return "truncated"
    words = tokens(answer, policy.locale)
    if len(words) < least:
        return "too_short"
    if language(policy.locale) == "en" and _UNSPACED.search(answer):
        return "language"
    if language(policy.locale) == "ja" and not _UNSPACED.search(answer):
        return "language"
    if _FRAME.search(straight(answer)):
        return "frame_leaked"
    if loops(answer, policy.locale):
        return "repetitive"
    return "never_synthesize" if blocked(answer, policy) else ""


def refuses(answer: str) -> bool:
    """Whether an answer declines in English or Japanese words.

    A tripwire for filtering, never a released verdict.
    """
    return bool(_REFUSES.search(straight(answer)) or _REFUSES_JA.search(answer))


def threatens(answer: str) -> bool:
    """Whether an answer goes beyond tone, to violence: not what the toxic axis is about."""
    return bool(_THREAT.search(answer))


def loops(answer: str, locale: str) -> bool:
    """Whether an answer says the same thing again: a sentence, or most of its words."""
    words = tokens(answer, locale)
    if len(words) >= 8 and len(set(words)) < 0.5 * len(words):
        return True
    parts = [tokens(p, locale) for p in sentences(answer)]
    return any(
        rouge_l(a, b) > MAX_ROUGE_L for i, a in enumerate(parts) for b in parts[:i] if len(a) > 2
    )


class Fresh:
    """Tells copies of the demonstrations and of answers accepted before.

    A small model falls back on the same few sentences: each wears out after some uses. The
    opener given to the model is left out by the caller, it would make unlike answers look alike.
    """

    def __init__(self, locale: str) -> None:
        self._locale = locale
        self._demos = NearDuplicates(MAX_ROUGE_L, locale)
        self._answers = NearDuplicates(MAX_ROUGE_L, locale)
        self._sentences = NearDuplicates(MAX_ROUGE_L, locale)
        self._uses: Counter[int] = Counter()

    def own_part(self, answer: str) -> str:
        """The answer without sentences copied from a demonstration."""
        own = (p for p in sentences(answer) if self._demos.find(p) is None)
        return joined(own, self._locale)

    def why_not(self, answer: str) -> str:
        """``copied_demo``, ``near_duplicate``, ``worn_out`` or an empty string."""
        parts = self._parts(answer)
        if any(self._demos.find(part) is not None for part in (answer, *parts)):
            return "copied_demo"
        if self._answers.find(answer) is not None:
            return "near_duplicate"
        allowed = max(MAX_REUSE, REUSE_SHARE * len(self._answers))
        known = (self._sentences.find(part) for part in parts)
        worn = any(i is not None and self._uses[i] >= allowed for i in known)
        return "worn_out" if worn else ""

    def forbid(self, answer: str) -> None:
        """Names a demonstration, and each of its sentences, as not to be copied."""
        for part in (answer, *self._parts(answer)):
            if self._demos.find(part) is None:
                self._demos.add(part)

    def add(self, answer: str) -> None:
        """Remembers an accepted answer and its sentences."""
        self._answers.add(answer)
        for part in self._parts(answer):
            known = self._sentences.find(part)
            if known is None:
                known = len(self._sentences)
                self._sentences.add(part)
            self._uses[known] += 1

    def _parts(self, answer: str) -> list[str]:
        return [p for p in sentences(answer) if len(tokens(p, self._locale)) > 3]


def opener_share(answers: Sequence[str], locales: Sequence[str]) -> float:
    """Share of the answers that start with the most common first words: four, or nine characters
    in languages without spaces.

    Args:
        answers: All of a set.
        locales: One for each answer.
    """
    starts = Counter(_start(a, locale) for a, locale in zip(answers, locales, strict=True))
    return max(starts.values()) / len(answers) if answers else 0.0


def _start(answer: str, locale: str) -> tuple[str, ...]:
    return written_words(answer.lower(), locale)[: 8 if unspaced(locale) else 4]
