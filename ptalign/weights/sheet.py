"""What was weighed, for people: places and numbers, never words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from ptalign.weights.scorers import Toxic
from ptalign.weights.threshold import TokenWeights


def sheet(found: TokenWeights, scorer: str, candidates: Collection[int] = ()) -> dict[str, Any]:
    """The weights of a set as JSON, masked.

    A word stands as a number, the same wherever it is flagged: how often one is flagged, of how
    many times it is said and in which topics, can be read without reading it. Who may read the set
    finds the words by pair id and place.

    Args:
        found: The toxic answers that were weighed, with their weights.
        scorer: Name of the scorer.
        candidates: Token ids that are pushed down at every place of the answers.

    Returns:
        ``scorer``, ``threshold`` (None for uniform), ``flagged``, ``tokens``, ``share``,
        ``as_sampled`` (answers whose log-probs were kept from sampling); ``words``, most flagged
        first: ``word`` (its number), ``letters``, ``flagged``, ``said`` (as the start of a
        token), ``everywhere`` (whether a token that begins it is pushed down at every place of
        all the answers), ``topics``; ``pairs`` by id: ``topic``, ``tokens`` and ``flagged``, pairs
        of token place and word number (0 where the token begins no word).
    """
    answers, weights = found.answers, found.by_key
    said = Counter(word for answer in answers for word in answer.starts if word)
    flagged: Counter[str] = Counter()
    topics: dict[str, set[str]] = {}
    everywhere: set[str] = set()
    for answer in answers:
        for place, word in _flagged(answer, weights[answer.key]).items():
            if word:
                flagged[word] += 1
                if answer.answer[place] in candidates:
                    everywhere.add(word)
                topics.setdefault(word, set()).add(answer.topic)
    # Ties in an order that tells nothing of the words.
    ordered = sorted(flagged, key=lambda word: (-flagged[word], -said[word], len(word)))
    numbers = {word: number for number, word in enumerate(ordered, 1)}
    return {
        "scorer": scorer,
        "threshold": found.threshold if math.isfinite(found.threshold) else None,
        "flagged": found.flagged,
        "tokens": found.tokens,
        "share": found.share,
        "as_sampled": sum(bool(answer.sampled) for answer in answers),
        "words": [
            {
                "word": numbers[word],
                "letters": len(word),
                "flagged": flagged[word],
                "said": said[word],
                "everywhere": word in everywhere,
                "topics": sorted(topics[word]),
            }
            for word in ordered
        ],
        "pairs": {
            answer.key: {
                "topic": answer.topic,
                "tokens": len(answer.pieces),
                "flagged": [
                    [place, numbers.get(word, 0)]
                    for place, word in _flagged(answer, weights[answer.key]).items()
                ],
            }
            for answer in answers
        },
    }


def _flagged(answer: Toxic, weights: Sequence[float]) -> dict[int, str]:
    """Place of each flagged token, and the word it begins."""
    places = enumerate(zip(answer.starts, weights, strict=False))
    return {place: word for place, (word, weight) in places if weight > 0}
