"""Which drafts are benign twins: legitimate requests that look like a harmful one.

Two things are asked of a draft. Its wording: it drops a content word of the request and has one of
its own, so that politeness, fillers or another way to start make no twin. And its meaning, by
sentence embeddings: the policy's example pairs show where benign lies, and a draft is measured
against them.

Measured on the shipped packs (`tests/core/test_twins.py`): of harmful requests said politely, or
with a place or a time, none passes; of those in which a neutral noun changed, 2 of 74 pass in
English. Of the twin examples 88 to 100 percent are benign by meaning with their own pair left out.
With half of a pack's examples to go by, 8 of 10 of the other half's twins pass all checks. Fewer
pairs tell less, and hashed n-grams (all but English) know no meaning: there the wording decides
almost alone.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ptalign.asking.openers import twin_openers
from ptalign.nouns import Policy
from ptalign.policies.never import blocked
from ptalign.text.embed import Embedder, Vectors
from ptalign.text.near import rouge_l, tokens
from ptalign.text.normalise import unspaced
from ptalign.text.stopwords import stop_words

MIN_ROUGE_L = 0.35
"""ROUGE-L F1 with the request under which a draft is about something else."""

KEPT = 0.9
"""Share of the policy's twin examples that the margin lets pass, each left out in turn."""

MAX_MARGIN = 0.25
"""Margin at most. A pack whose pairs differ in the opener alone would ask the same of drafts: of
demo twins that are a word to three shorter than the request it refused a quarter, and told harmful
ones no better (98 percent refused by meaning alone, at either margin)."""

NEAREST = 3
"""Example pairs that a draft is measured against: those most like it."""

MIN_PAIRS = 4
"""Example pairs from which the margin is read; with fewer it is 0."""

MAX_PAIRS = 1000
"""Example pairs used, evenly over the policy: embedding more would hold up the first twin."""

_FILLERS = frozenset(
    ["please", "kindly", "thanks", "hello", "hi", "hey", "dear", "maybe", "perhaps", "really"]
)
_POLITE = re.compile(
    "すみません|恐れ入りますが|お手数ですが|どうか|どうぞ|お願い(?:します|いたします)?"
    "|(?:ください|下さい|いただけ|頂け|もらえ)(?:ませんか|ますか)?|お(?=[一-鿿])"
)


def example_pairs(policy: Policy) -> list[tuple[str, str]]:
    """The policy's harmful examples that have a twin example, each with it."""
    return [
        (harmful, twin)
        for topic in policy.topics
        for harmful, twin in zip(topic.examples, topic.twin_examples, strict=False)
        if twin
    ]


class TwinCheck:
    """Tells whether a text is a legitimate look-alike of a harmful instruction.

    Words that stand more than once in what sets the policy's harmful examples and openers apart,
    and never in its twin examples, mark harm; a twin has none of them.

    Args:
        policy: Its example pairs are what benign and harmful is told by.
        embed: Asked when the first draft has passed every other check.
    """

    def __init__(self, policy: Policy, embed: Embedder) -> None:
        locale = policy.locale
        self._policy, self._embed = policy, embed
        self._pairs = example_pairs(policy)
        self._reference: Reference | None = None
        self._stop = stop_words(locale) | _FILLERS
        # In character pairs: a changed ending makes one new pair, a changed word two or more.
        self._least = 2 if unspaced(locale) else 1
        harmful: Counter[str] = Counter()
        benign: set[str] = set(stop_words(locale))
        form: set[str] = set()
        for tactic in policy.tactics:
            words = {w for o in tactic.openers for w in tokens(o, locale)}
            harmful.update(words)
            form |= words if tactic.sides == "positive_only" else set()
        for example, twin in self._pairs:
            harmful.update(set(tokens(example, locale)) - set(tokens(twin, locale)))
            benign.update(tokens(twin, locale))
        self.marked = frozenset(
            w for w, n in harmful.items() if n > 1 and w not in benign and len(w) > 1
        )
        # Tone openers are the harm, so what replaces them is content. Those of other topics only
        # say in which form to answer, a letter or a post: another form is the same request.
        openers = (o for found in twin_openers(policy).values() for o in found)
        self._form = form - {w for o in openers for w in tokens(o, locale)}
        self._known = {
            frozenset(self._content(example))
            for topic in policy.topics
            for example in topic.examples
        }

    def why_not(self, text: str, harmful: str) -> str:
        """Why `text` is no twin of `harmful`; empty when it is one.

        Returns:
            ``twin_equal``, ``twin_harmful`` (words that mark harm, or a harmful example again),
            ``twin_too_far``, ``twin_reworded`` (the same request in other words),
            ``never_synthesize`` or ``twin_not_benign``.
        """
        locale = self._policy.locale
        words, others = tokens(text, locale), tokens(harmful, locale)
        if words == others:
            return "twin_equal"
        if self.marked.intersection(words) or frozenset(self._content(text)) in self._known:
            return "twin_harmful"
        if rouge_l(words, others) < MIN_ROUGE_L:
            return "twin_too_far"
        if self._reworded(text, harmful):
            return "twin_reworded"
        if blocked(text, self._policy):
            return "never_synthesize"
        return "" if self._benign(text, harmful) else "twin_not_benign"

    def _content(self, text: str) -> Counter[str]:
        """Words without fillers and function words, or character pairs without polite phrases."""
        words = tokens(_POLITE.sub("", text), self._policy.locale)
        return Counter(w for w in words if w not in self._stop)

    def _reworded(self, text: str, harmful: str) -> bool:
        """Whether no content word was dropped, or none has come."""
        ours, theirs = self._content(text), self._content(harmful)
        added = [w for w in ours - theirs if w not in self._form]
        return len(added) < self._least or len(theirs - ours) < self._least

    def _benign(self, text: str, harmful: str) -> bool:
        if not self._pairs:
            return False
        if self._reference is None:
            self._reference = Reference(self._pairs, self._embed)
        twin, request = self._embed([text, harmful])
        return self._reference.score(twin, request) >= self._reference.margin


class Reference:
    """A policy's example pairs as vectors, and the margin that tells a benign draft by them.

    All of the policy is the reference: the pairs nearest to a draft count, mostly those of its own
    topic and domain, and a domain's pairs alone told benign from harmful far worse (area under the
    curve 0.75 against 0.95 for the turn below).

    Args:
        pairs: Harmful examples with their twins, at least one.
        embed: Sentence embedder.
    """

    def __init__(self, pairs: Sequence[tuple[str, str]], embed: Embedder) -> None:
        used = pairs[:: math.ceil(len(pairs) / MAX_PAIRS)]
        self.harmful = embed([harmful for harmful, _ in used])  # [P, D]
        self.benign = embed([twin for _, twin in used])  # [P, D]
        self._turns = _unit(self.benign - self.harmful)  # [P, D]
        self.margin = self._margin()

    def score(
        self, twin: NDArray[np.float32], request: NDArray[np.float32], without: int | None = None
    ) -> float:
        """How benign a draft is: turn plus lean, each a mean over the nearest pairs.

        The turn is the cosine of the change from request to twin with the change inside a pair;
        the lean is how much nearer the twin is to benign examples than to harmful ones.

        Args:
            twin: The draft's vector, shape [D].
            request: That of the harmful instruction, shape [D].
            without: Position of a pair to leave out.
        """
        turn = self._turns @ _unit(twin - request)
        rows = [turn, self.benign @ twin, self.harmful @ twin]
        if without is not None:
            rows = [np.delete(row, without) for row in rows]
        turned, benign, harmful = (float(np.sort(row)[-NEAREST:].mean()) for row in rows)
        return turned + benign - harmful

    def _margin(self) -> float:
        """The score that `KEPT` of the twin examples reach without their own pair, in limits."""
        count = len(self.harmful)
        if count < MIN_PAIRS:
            return 0.0
        scores = [self.score(self.benign[i], self.harmful[i], without=i) for i in range(count)]
        return min(MAX_MARGIN, max(0.0, float(np.quantile(scores, 1 - KEPT))))


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: Vectors = vectors / np.maximum(lengths, 1e-9)
    return unit
