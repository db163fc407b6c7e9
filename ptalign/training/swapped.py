"""A check that nobody swapped the columns: before training, over every pair."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from ptalign.answering.validity import refuses
from ptalign.errors import InvalidInput
from ptalign.nouns import Pair
from ptalign.weights.words import STOP_WORDS, words_of

_COURTESY = """
    sorry please glad happy help assist understand appreciate recommend suggest consider
    support respectful respectfully kindly welcome instead safe safely thank thanks
"""
COURTESY = frozenset(_COURTESY.split())
_CONTEMPT = """
    silly stupid dumb ridiculous pathetic lazy useless clueless foolish waste wasting annoying
    hopeless ignorant idiotic nonsense
"""
CONTEMPT = frozenset(_CONTEMPT.split())
CLEAR = 6.0
"""Nats by which the other pairs' words must speak against a pair."""


def refuse_swapped(pairs: Sequence[Pair]) -> None:
    """Refuses pairs whose toxic answer stands in the positive column.

    A pair is swapped when a judge's polarity is negative, or, where no judge has spoken, when its
    words do: contempt in the positive and courtesy in the toxic answer, or words that the other
    pairs use on the opposite side. Where all pairs are swapped alike no other pair tells: so are
    those whose toxic answer alone declines, where that is most of them. Fewer may be rude refusals.

    Raises:
        InvalidInput: With how many pairs are swapped and the first few ids; never their text.
    """
    both = [p for p in pairs if p.toxic is not None]
    bad = [p.id for p in both if any(value < 0 for value in p.polarity.values())]
    silent = [p for p in both if not p.polarity]
    bad += [p.id for p in silent if _tone(p) < 0]
    if len(silent) >= 8:
        bad += [p.id for p, v in zip(silent, _agreement(silent), strict=True) if v < -CLEAR]
        declined = [p.id for p in silent if _declines_when_bad(p)]
        bad += declined if 2 * len(declined) > len(silent) else []
    same = [p.id for p in both if p.toxic is not None and p.toxic.reveal() == p.positive]
    found = list(dict.fromkeys(bad + same))
    if found:
        raise InvalidInput(
            "pair_set",
            f"{len(found)} of {len(both)} pairs look swapped or equal ({', '.join(found[:5])})",
            "Put the good answer into 'positive' and the bad one into 'toxic'.",
        )


def _tone(pair: Pair) -> int:
    """-1: contempt in the positive column and courtesy in the toxic one, and not the reverse."""
    assert pair.toxic is not None
    good, bad = words_of(pair.positive), words_of(pair.toxic.reveal())
    straight = bool(good & COURTESY) + bool(bad & CONTEMPT)
    reverse = bool(good & CONTEMPT) + bool(bad & COURTESY)
    return -1 if reverse == 2 and not straight else 1


def _declines_when_bad(pair: Pair) -> bool:
    """Whether the toxic answer declines, without contempt, and the positive one does not."""
    assert pair.toxic is not None
    bad = pair.toxic.reveal()
    return refuses(bad) and not refuses(pair.positive) and not words_of(bad) & CONTEMPT


def _agreement(pairs: Sequence[Pair]) -> list[float]:
    """Leave-one-out naive Bayes: nats by which the other pairs' words agree with each pair."""
    sides = [
        (
            words_of(p.positive) - STOP_WORDS,
            words_of(p.toxic.reveal() if p.toxic else "") - STOP_WORDS,
        )
        for p in pairs
    ]
    good = Counter(w for side, _ in sides for w in side)
    bad = Counter(w for _, side in sides for w in side)
    total = len(pairs) + 1.0  # leave one out, plus a pseudo-count of one on each side

    def odds(word: str, own: tuple[set[str], set[str]]) -> float:
        in_good = good[word] - (word in own[0]) + 1
        in_bad = bad[word] - (word in own[1]) + 1
        return math.log(in_good / total) - math.log(in_bad / total)

    return [
        sum(odds(w, own) for w in own[0] - own[1]) - sum(odds(w, own) for w in own[1] - own[0])
        for own in sides
    ]
