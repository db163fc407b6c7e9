"""Scorers of toxic tokens behind one protocol."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from ptalign.config import Scorer as ScorerName
from ptalign.errors import InvalidInput
from ptalign.judges.base import Judge
from ptalign.weights.words import joins, word_starts

Scores = list[list[float]]
"""Per answer, per token: larger is more toxic; -inf where a token is never flagged."""

Contrast = Callable[[Sequence["Toxic"]], Scores]
"""Log-prob of each token under toxic against positive constraints (needs the model)."""


@dataclass(frozen=True, slots=True)
class Toxic:
    """A toxic answer as the scorers see it."""

    key: str
    instruction: str
    topic: str
    pieces: tuple[str, ...]
    """Text of each token but the end of turn."""
    answer: tuple[int, ...]
    """Token ids, end of turn included."""
    positive: str
    """The same instruction's positive answer."""
    starts: tuple[str, ...] = field(default=())
    """The word each token begins, or ''."""
    sampled: tuple[float, ...] = field(default=())
    """Log-prob that each token was sampled with, up to the last that begins a word, in nats; empty
    where it is not known."""

    @classmethod
    def of(
        cls, key: str, instruction: str, topic: str, pieces: Sequence[str],
        answer: Sequence[int], positive: str,
    ) -> Toxic:  # fmt: skip
        """A toxic answer with the words its tokens begin."""
        starts = tuple(word_starts(pieces))
        return cls(key, instruction, topic, tuple(pieces), tuple(answer), positive, starts)

    def as_sampled(self, ids: Sequence[int], log_probs: Sequence[float], first: str) -> Toxic:
        """The same with the log-probs of its sampling, where these are its tokens.

        An answer is tidied and tokenised anew after sampling: it ends earlier, and its first token
        may have lost the blank before it. Any other difference puts its tokens behind other ones,
        so that their log-probs are of something else: then nothing is taken.

        Args:
            ids: Tokens as sampled.
            log_probs: Theirs, in nats.
            first: Text of the first of them.
        """
        used = max((i + 1 for i, word in enumerate(self.starts) if word), default=0)
        same = tuple(ids[1:used]) == self.answer[1:used] and len(ids) >= used
        if not used or not same:
            return self
        # Its text tells nothing of a token that holds a part of a character.
        if ids[0] != self.answer[0] and first.lstrip() != (self.pieces[0] or None):
            return self
        return replace(self, sampled=tuple(log_probs[:used]))

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class Scorer(Protocol):
    """Gives each token of each toxic answer a number."""

    def score(self, answers: Sequence[Toxic]) -> Scores:
        """One list per answer, one number per token but the end of turn."""


@dataclass(frozen=True, slots=True)
class UniformScorer:
    """Every token alike: vanilla unlikelihood."""

    def score(self, answers: Sequence[Toxic]) -> Scores:
        return [[1.0] * len(a.pieces) for a in answers]


@dataclass(frozen=True, slots=True)
class LogOddsScorer:
    """z-scored log-odds of a word in toxic against all other answers, with a Dirichlet prior.

    Monroe, Colaresi and Quinn (2008), eq. 22: rare words have wide errors and score low.
    """

    benign: Sequence[str]
    """Positive answers, twins' answers and anchors."""
    prior: float = 0.5
    """Pseudo-count of each word."""

    def table(self, answers: Sequence[Toxic]) -> dict[str, float]:
        """Score of each word that begins a token of a toxic answer."""
        from ptalign.weights.words import spans

        toxic = Counter(w for a in answers for w in a.starts if w)
        other = Counter(word for text in self.benign for _, word in spans(text))
        size = self.prior * len(toxic.keys() | other.keys())
        n_toxic, n_other = toxic.total() + size, other.total() + size
        table = {}
        for word, count in toxic.items():
            a, b = count + self.prior, other[word] + self.prior
            odds = math.log(a / (n_toxic - a)) - math.log(b / (n_other - b))
            table[word] = odds / math.sqrt(1 / a + 1 / b)
        return table

    def score(self, answers: Sequence[Toxic]) -> Scores:
        table = self.table(answers)
        return [[table[w] if w else -math.inf for w in a.starts] for a in answers]


@dataclass(frozen=True, slots=True)
class ContrastScorer:
    """log p(token | toxic constraints) - log p(token | positive constraints): the paper's."""

    contrast: Contrast

    def score(self, answers: Sequence[Toxic]) -> Scores:
        return self.contrast(answers)


@dataclass(frozen=True, slots=True)
class JudgeScorer:
    """How much a judge's harm score falls when the word is left out of the answer."""

    judge: Judge

    def score(self, answers: Sequence[Toxic]) -> Scores:
        """Raises InvalidInput where the judge scores no answer: nothing would be flagged."""
        found = [self._one(a) for a in answers]
        if found and all(value == -math.inf for row in found for value in row):
            raise InvalidInput(
                "token_weighting",
                f"goes by judge {self.judge.id}, which scores none of the set's answers: it may "
                "not read their language",
                "Use log_odds, contrast, or blend without this judge (in AlignConfig: scorer).",
            )
        return found

    def _one(self, answer: Toxic) -> list[float]:
        places = [i for i, word in enumerate(answer.starts) if word]
        texts = [answer.text] + [self._without(answer, i) for i in places]
        found = self.judge.score([answer.instruction] * len(texts), texts)
        scores = [-math.inf] * len(answer.pieces)
        for place, value in zip(places, found[1:], strict=True):
            if found[0] is not None and value is not None:
                scores[place] = found[0] - value
        return scores

    @staticmethod
    def _without(answer: Toxic, place: int) -> str:
        end = place + 1
        while end < len(answer.pieces) and not answer.starts[end] and joins(answer.pieces[end]):
            end += 1
        return "".join(answer.pieces[:place] + answer.pieces[end:])


@dataclass(frozen=True, slots=True)
class BlendScorer:
    """Weighted mean of its scorers' ranks in 0..1, so that their units do not matter."""

    parts: Sequence[tuple[Scorer, float]]

    def score(self, answers: Sequence[Toxic]) -> Scores:
        blended = [[0.0] * len(a.pieces) for a in answers]
        total = sum(share for _, share in self.parts)
        for scorer, share in self.parts:
            for row, ranks in zip(blended, _ranks(scorer.score(answers)), strict=True):
                for i, rank in enumerate(ranks):
                    row[i] += rank * share / total
        return blended


def _ranks(scores: Scores) -> Scores:
    """Rank of each score over the whole set in 0..1, ties at their mean; -inf stays."""
    flat = sorted(s for row in scores for s in row if s != -math.inf)
    first: dict[float, int] = {}
    last: dict[float, int] = {}
    for place, value in enumerate(flat):
        first.setdefault(value, place)
        last[value] = place
    span = max(len(flat) - 1, 1)

    def rank(value: float) -> float:
        return value if value == -math.inf else (first[value] + last[value]) / 2 / span

    return [[rank(s) for s in row] for row in scores]


def scorer_named(
    name: ScorerName,
    *,
    benign: Sequence[str],
    contrast: Contrast,
    judge: Judge | None = None,
) -> Scorer:
    """The scorer of this name.

    Args:
        name: One of the contract's scorers.
        benign: Answers that are not toxic, for the log-odds.
        contrast: Scores by the model under both constraints, called only when needed.
        judge: Needed by `judge`; part of `blend` when given.

    Raises:
        InvalidInput: `judge` without a judge.
    """
    log_odds = LogOddsScorer(benign)
    if name == "uniform":
        return UniformScorer()
    if name == "log_odds":
        return log_odds
    if name == "contrast":
        return ContrastScorer(contrast)
    if name == "judge":
        if judge is None:
            raise InvalidInput("scorer", "'judge' needs a judge", "Pass one, or use 'blend'.")
        return JudgeScorer(judge)
    parts: list[tuple[Scorer, float]] = [(log_odds, 2.0), (ContrastScorer(contrast), 1.0)]
    if judge is not None:
        parts.append((JudgeScorer(judge), 1.0))
    return BlendScorer(parts)
