"""From scores to weights: one threshold by flagged share, and the tokens that are never flagged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ptalign.text.stopwords import JAPANESE
from ptalign.weights.scorers import Scorer, Toxic, UniformScorer
from ptalign.weights.words import STOP_WORDS, spelled_words, words_of


@dataclass(frozen=True, slots=True)
class TokenWeights:
    """Weights of a whole set."""

    answers: Sequence[Toxic] = field(repr=False)
    """What was weighed; its text is not shown."""
    by_key: Mapping[str, tuple[float, ...]]
    """Pair id -> one weight per answer token, end of turn included (always 0)."""
    threshold: float
    """Lowest flagged score."""
    flagged: int
    """Tokens with a weight above zero."""
    tokens: int
    """Toxic answer tokens, end of turn left out."""

    @property
    def share(self) -> float:
        return self.flagged / self.tokens if self.tokens else 0.0


def weigh(
    answers: Sequence[Toxic], scorer: Scorer, *, share: float, protected: Iterable[str] = ()
) -> TokenWeights:
    """Weight 1 on the highest-scoring tokens, 0 elsewhere.

    Never flagged: tokens that begin no word, words of the same instruction's positive answer,
    stop words, protected words and the end of turn. The uniform scorer is the vanilla baseline:
    it flags every token but protected words and the end of turn, whatever the share.

    Args:
        answers: All toxic answers of the set, so that one threshold serves all.
        scorer: Gives the numbers.
        share: Share of all toxic tokens to flag, 0..1; fewer when fewer are allowed.
        protected: Words of the policy and the caller that are never flagged.
    """
    kept = {w for text in protected for w in words_of(text)}
    plain = isinstance(scorer, UniformScorer)
    scores = scorer.score(answers)
    masked = [
        [s if may else -math.inf for s, may in zip(row, _allowed(a, kept, plain), strict=True)]
        for a, row in zip(answers, scores, strict=True)
    ]
    total = sum(map(len, masked))
    threshold = -math.inf if plain else _threshold(masked, math.floor(share * total + 1e-9))
    weights = {
        a.key: (*(float(s != -math.inf and s >= threshold) for s in row), 0.0)
        for a, row in zip(answers, masked, strict=True)
    }
    flagged = sum(w > 0 for row in weights.values() for w in row)
    return TokenWeights(answers, weights, threshold, flagged, total)


def _allowed(answer: Toxic, protected: set[str], plain: bool) -> list[bool]:
    """Per token: whether it may be flagged at all."""
    if plain:
        return [w not in protected for w in spelled_words(answer.pieces, answer.starts)]
    never = protected | STOP_WORDS | words_of(answer.positive)
    return [
        bool(word) and word not in never and piece.strip() not in JAPANESE  # の, but not のろま
        for word, piece in zip(answer.starts, answer.pieces, strict=True)
    ]


def _threshold(scores: Sequence[Sequence[float]], wanted: int) -> float:
    """Lowest score that flags at most `wanted` tokens; ties at the edge stay out if they can."""
    ordered = sorted((s for row in scores for s in row if s != -math.inf), reverse=True)
    if not ordered:
        return math.inf
    edge = ordered[min(max(wanted, 1), len(ordered)) - 1]
    above = [s for s in ordered if s > edge]
    tied_over = len([s for s in ordered if s >= edge]) > wanted
    return above[-1] if above and tied_over else edge
