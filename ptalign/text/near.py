"""Near-duplicates by ROUGE-L, found without comparing every pair.

ROUGE-L F1 of token sequences a, b with a longest common subsequence of length L is
2L / (|a| + |b|) (Lin, 2004). F1 > t forces the sequences to share more than t(|a| + |b|) / 2
tokens, and b to be long enough to hold them. So each near-duplicate of a holds at least one of the
few tokens that are left of a when as many as must be shared are set aside (prefix filtering:
Chaudhuri et al., 2006). All tokens of added texts are indexed, so the ones to look up can be those
that are rarest at the moment. The index misses no near-duplicate: who holds too few of the tokens
looked up cannot be one, and the rest is checked exactly.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import chain

from rapidfuzz.distance import LCSseq

from ptalign.text.normalise import caseless, folded, unspaced

_WORD = re.compile(r"[^\W_]+")


def tokens(text: str, locale: str = "en") -> tuple[str, ...]:
    """Comparison tokens: folded words, or character pairs in languages without spaces."""
    if unspaced(locale):
        joined = "".join(_WORD.findall(caseless(text)))
        return tuple(joined[i : i + 2] for i in range(max(1, len(joined) - 1))) if joined else ()
    return tuple(_WORD.findall(folded(text)))


def written_words(text: str, locale: str = "en") -> tuple[str, ...]:
    """The words as written, or character pairs in languages without spaces."""
    return tokens(text, locale) if unspaced(locale) else tuple(text.split())


def rouge_l(a: tuple[str, ...], b: tuple[str, ...]) -> float:
    """ROUGE-L F1 of two token sequences, 0..1."""
    if not a or not b:
        return 0.0
    return float(2 * LCSseq.similarity(a, b) / (len(a) + len(b)))


class NearDuplicates:
    """An index that says whether a text is a near-duplicate of one added before.

    Args:
        threshold: Texts with a higher ROUGE-L F1 are near-duplicates.
        locale: Decides the tokens.
    """

    def __init__(self, threshold: float = 0.7, locale: str = "en") -> None:
        self.threshold = threshold
        self.locale = locale
        self._texts: list[tuple[str, ...]] = []
        self._lengths: list[int] = []
        self._longest = 0
        self._least: dict[int, list[int]] = {}
        self._holders: defaultdict[str, list[int]] = defaultdict(list)
        self._last: tuple[str, tuple[str, ...]] = ("", ())
        """The text looked up last, which is often the one added next, and its tokens."""

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: str) -> None:
        """Adds a text to compare later ones with."""
        words = self._tokens(text)
        place = len(self._texts)
        self._texts.append(words)
        self._lengths.append(len(words))
        if len(words) > self._longest:
            self._longest = len(words)
            self._least.clear()
        for mark in _numbered(words):
            self._holders[mark].append(place)

    def find(self, text: str) -> int | None:
        """Position of the first near-duplicate among the added texts, or None."""
        words = self._tokens(text)
        for i in self._candidates(words):
            if rouge_l(words, self._texts[i]) > self.threshold:
                return i
        return None

    def _tokens(self, text: str) -> tuple[str, ...]:
        if self._last[0] != text:
            self._last = (text, tokens(text, self.locale))
        return self._last[1]

    def _candidates(self, words: tuple[str, ...]) -> list[int]:
        """Positions, in order, of all texts that hold enough of the rarest tokens."""
        found = [self._holders.get(mark, ()) for mark in _numbered(words)]
        found.sort(key=len)
        looked_up = len(words) - _shared_at_least(self.threshold, len(words)) + 1
        if looked_up <= 0:
            return []
        least = self._least.get(len(words))
        if least is None:
            least = self._least[len(words)] = self._least_hits(len(words), looked_up)
        hits = Counter(chain.from_iterable(found[:looked_up]))
        lengths = self._lengths
        return sorted(i for i, count in hits.items() if count >= least[lengths[i]])

    def _least_hits(self, length: int, looked_up: int) -> list[int]:
        """By another text's length: how many of the looked-up tokens it must hold."""
        least = []
        for other in range(self._longest + 1):
            needed = math.floor(self.threshold * (length + other) / 2 - 1e-9) + 1
            possible = needed <= min(length, other)
            least.append(max(1, needed - (length - looked_up)) if possible else length + 1)
        return least


def _shared_at_least(threshold: float, length: int) -> int:
    """Tokens that a near-duplicate of any length shares with a text of this length."""
    return int(threshold * length / (2 - threshold) - 1e-9) + 1


def _numbered(words: Iterable[str]) -> list[str]:
    """Repeated tokens get numbers, which turns the multiset into a set."""
    seen: set[str] = set()
    marked = []
    for word in words:
        mark, number = word, 1
        while mark in seen:
            number += 1
            mark = f"{word}#{number}"
        seen.add(mark)
        marked.append(mark)
    return marked
