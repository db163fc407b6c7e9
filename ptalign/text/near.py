"""Near-duplicates by ROUGE-L, found without comparing every pair.

ROUGE-L F1 of token sequences a, b with a longest common subsequence of length L is
2L / (|a| + |b|) (Lin, 2004). F1 > t forces the sequences to share more than t|a| / (2 - t)
tokens, so the rarest-first prefixes of both must meet in one token (prefix filtering: Chaudhuri
et al., 2006): the index misses no near-duplicate, and only its candidates are checked exactly.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable

from rapidfuzz.distance import LCSseq

from ptalign.text.normalise import folded, plain

_WORD = re.compile(r"[^\W_]+")
_UNSPACED = ("ja", "zh", "th")
"""Languages written without spaces: compared on overlapping character pairs."""


def tokens(text: str, locale: str = "en") -> tuple[str, ...]:
    """Comparison tokens: folded words, or character pairs in languages without spaces."""
    if locale.split("-")[0] in _UNSPACED:
        joined = "".join(_WORD.findall(plain(text).casefold()))
        return tuple(joined[i : i + 2] for i in range(max(1, len(joined) - 1))) if joined else ()
    return tuple(_WORD.findall(folded(text)))


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
        self._holders: defaultdict[str, list[int]] = defaultdict(list)

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: str) -> None:
        """Adds a text to compare later ones with."""
        words = tokens(text, self.locale)
        self._texts.append(words)
        for mark in self._prefix(words):
            self._holders[mark].append(len(self._texts) - 1)

    def find(self, text: str) -> int | None:
        """Position of the first near-duplicate among the added texts, or None."""
        words = tokens(text, self.locale)
        candidates = {i for mark in self._prefix(words) for i in self._holders.get(mark, ())}
        for i in sorted(candidates):
            if rouge_l(words, self._texts[i]) > self.threshold:
                return i
        return None

    def _prefix(self, words: tuple[str, ...]) -> list[str]:
        """The tokens of which one at least is shared by every near-duplicate.

        Both sides need one fixed order of tokens; longer words first makes rare ones lead.
        Repeated tokens are numbered, which turns the multiset into a set.
        """
        marked = _numbered(words)
        needed = int(self.threshold * len(marked) / (2 - self.threshold) + 1e-9) + 1
        marked.sort(key=lambda mark: (-len(mark), mark))
        return marked[: max(0, len(marked) - needed + 1)]


def _numbered(words: Iterable[str]) -> list[str]:
    seen: Counter[str] = Counter()
    marked = []
    for word in words:
        seen[word] += 1
        marked.append(f"{word}#{seen[word]}")
    return marked
