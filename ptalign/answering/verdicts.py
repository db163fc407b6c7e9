"""Which drafts become answers: form first, then relevance, harm and polarity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from ptalign.answering.constraints import Rule
from ptalign.answering.validity import Fresh, malformed, refuses, threatens
from ptalign.answering.work import Draft, Offer, Scores, Work
from ptalign.judges.base import Judge
from ptalign.nouns import Annotation, Pair, Policy, Sampled
from ptalign.text.embed import RELEVANCE, Embedder
from ptalign.text.near import rouge_l, tokens
from ptalign.text.sentences import joined, sentences

MAX_HARM = 0.5
"""Harm score above which an answer is no positive; lower where the asked polarity needs it."""

MAX_ALIKE = 0.5
"""ROUGE-L F1 of the two sides above which there is nothing to learn from."""

NOT_APART = "not_apart."
"""Before the topic of toxic drafts that a judge did not find far enough from the positive."""


class Verdicts:
    """Judges drafts and remembers what was accepted.

    Args:
        policy: Language and never-synthesize list.
        judges: Harm judges; each must find the sides far enough apart.
        embed: Sentence embedder, for relevance: a positive that is to the point is taken at once,
            one that is not far from it is kept for the last round. An embedder without `RELEVANCE`
            rejects and prefers none.
        min_polarity: judge(toxic) - judge(positive) asked of each judge: 0..1.
        reject: Told the reason of each draft that the judges turn down.
        counts: Where toxic drafts that a judge did not find far enough from the positive are
            counted, ``not_apart.<topic>``.
    """

    def __init__(
        self,
        policy: Policy,
        judges: Sequence[Judge],
        embed: Embedder,
        min_polarity: float,
        reject: Callable[[str], None],
        counts: Counter[str],
    ) -> None:
        self._policy, self._judges, self._embed = policy, tuple(judges), embed
        self._cosines = RELEVANCE.get(embed.id)
        self._min_polarity, self._reject, self._counts = min_polarity, reject, counts
        self._max_harm = min(MAX_HARM, 1 - min_polarity)
        voices = ("positive", "toxic", "twin")
        self._fresh: dict[str, Fresh] = {voice: Fresh(policy.locale) for voice in voices}
        self._wrong: dict[str, set[tuple[str, ...]]] = {voice: set() for voice in voices}

    def forbid(self, voice: str, answer: str) -> None:
        """Names a demonstration that answers in this voice must not copy."""
        self._fresh[voice].forbid(answer)

    def remember(self, pair: Pair) -> None:
        """Takes an accepted pair of an earlier attempt or a parent into account."""
        if pair.toxic is not None:
            self._fresh["toxic"].add(pair.toxic.reveal())
        if pair.kind == "twin":
            self._fresh["twin"].add(pair.positive)
        else:
            self._fresh["positive"].add(self._offered(pair))

    def keep_out(self, pair: Pair) -> None:
        """Takes no answer again of a pair that a person called wrong, whatever its opener."""
        voice, locale = "twin" if pair.kind == "twin" else "positive", self._policy.locale
        offer = self._offered(pair) if voice == "positive" else ""
        self._wrong[voice] |= {tokens(text, locale) for text in (pair.positive, offer) if text}
        if pair.toxic is not None:
            self._wrong["toxic"].add(tokens(pair.toxic.reveal(), locale))

    def swapped(self, pairs: Sequence[Pair]) -> set[str]:
        """Ids of polarised pairs whose sides every judge finds apart, but the wrong way round.

        Asked of pairs that no judge has read, imported ones and a person's. Any other doubt stays
        without consequence: a judge that does not know their domain finds no sides apart.
        """
        found = {pair.id for pair in pairs} if self._judges else set()
        asked, goods = [p.instruction for p in pairs], [p.positive for p in pairs]
        bads = [p.toxic.reveal() if p.toxic else "" for p in pairs]
        most = -self._min_polarity
        for judge in self._judges if pairs else ():
            sides = zip(pairs, judge.score(asked, goods), judge.score(asked, bads), strict=True)
            found &= {p.id for p, g, b in sides if g is not None and b is not None and b - g < most}
        return found

    def preset(self, work: Work, mark: Annotation) -> None:
        """Takes a person's good answer as the work's positive: scored, but not turned down."""
        offer = Offer(mark.good, mark.good, Rule(""))
        work.mark, work.positive = mark, mark.good
        work.positive_scores = self._scores(work, [offer])[0] or {}

    def take(self, draft: Draft, text: str, sampled: Sampled | None = None) -> str:
        """Keeps a well-formed draft for its judges, or says why not.

        Args:
            draft: What was asked.
            text: What came, tidied.
            sampled: Its tokens, where the engine told.
        """
        fresh = self._fresh[draft.voice]
        toxic = draft.side == "toxic"
        if toxic:
            text = fresh.own_part(text)
        if tokens(text, self._policy.locale) in self._wrong[draft.voice]:
            return "called_wrong"
        reason = malformed(text, self._policy, least=5 if toxic else 4) or fresh.why_not(text)
        if reason:
            return reason
        if refuses(text):
            return "refuses"
        if toxic and threatens(text):
            return "threat"
        answer = joined([draft.opener, text], self._policy.locale).strip()
        waiting = draft.work.toxics if toxic else draft.work.offers
        waiting.append(Offer(text, answer, draft.rule, sampled))
        return ""

    def choose_positive(self, work: Work, *, last: bool) -> None:
        """Sets the work's positive to the best of its offers, if one is good enough.

        Args:
            work: Its offers are judged; near misses stay for a later round.
            last: No drafts are left to ask for: near misses will do.
        """
        offers, voice = work.offers, "twin" if work.kind == "twin" else "positive"
        if not offers:
            return
        relevance = self._relevance(offers, work.message)
        scores = self._scores(work, offers) if work.tone else [{} for _ in offers]
        merit = [near - _worst(harm) for near, harm in zip(relevance, scores, strict=True)]
        work.offers = []
        for i in sorted(range(len(offers)), key=lambda i: -merit[i]):
            offer, harm = offers[i], scores[i]
            reason = self._why_no_positive(voice, offer, harm, relevance[i])
            if reason:
                self._reject(f"{voice}_{reason}")
            elif not last and self._cosines and relevance[i] < self._cosines.good:
                work.offers.append(offer)
            else:
                work.positive, work.positive_scores = offer.answer, harm or {}
                offer.rule.accepted += 1
                self._fresh[voice].add(offer.text)
                return

    def choose_toxic(self, work: Work) -> tuple[Offer, Scores] | None:
        """The toxic draft that is far enough apart and most to the point, with its polarity."""
        drafts, work.toxics = work.toxics, []
        if not drafts:
            return None
        best: tuple[float, Offer, Scores] | None = None
        relevance = self._relevance(drafts, work.instruction.text)
        for offer, harm, near in zip(drafts, self._scores(work, drafts), relevance, strict=True):
            apart = {n: harm[n] - v for n, v in work.positive_scores.items()} if harm else {}
            reason = self._why_no_toxic(offer, work.positive, apart)
            if reason:
                self._reject(f"toxic_{reason}")
                self._counts[f"{NOT_APART}{work.instruction.topic}"] += reason == "not_apart"
            elif best is None or min(apart.values()) + near > best[0]:
                best = (min(apart.values()) + near, offer, apart)
        if best is None:
            return None
        _, offer, apart = best
        offer.rule.accepted += 1
        self._fresh["toxic"].add(offer.text)
        return offer, apart

    def _why_no_positive(
        self, voice: str, offer: Offer, harm: Scores | None, relevance: float
    ) -> str:
        if self._cosines and relevance < self._cosines.least:
            return "beside_the_point"
        if harm is None:
            return "unscored"
        return "harsh" if _worst(harm) > self._max_harm else self._fresh[voice].why_not(offer.text)

    def _why_no_toxic(self, offer: Offer, positive: str, apart: Scores) -> str:
        if not apart:
            return "unscored"
        if min(apart.values()) < self._min_polarity:
            return "not_apart"
        locale = self._policy.locale
        if rouge_l(tokens(offer.text, locale), tokens(positive, locale)) > MAX_ALIKE:
            return "like_positive"
        return self._fresh["toxic"].why_not(offer.text)

    def _offered(self, pair: Pair) -> str:
        """The alternative of a positive, without its refusal."""
        return joined(sentences(pair.positive)[1:], self._policy.locale)

    def _relevance(self, offers: Sequence[Offer], asked: str) -> list[float]:
        """Cosine of each with what was asked; all the same where the embedder cannot tell."""
        if self._cosines is None:
            return [0.0] * len(offers)
        vectors = self._embed([*(o.text for o in offers), asked])
        return [float(v) for v in vectors[:-1] @ vectors[-1]]

    def _scores(self, work: Work, offers: Sequence[Offer]) -> list[Scores | None]:
        """Harm by each judge for all drafts of a work at once; None where one cannot score."""
        asked, answers = [work.instruction.text] * len(offers), [o.answer for o in offers]
        columns = {judge.id: judge.score(asked, answers) for judge in self._judges}
        rows: list[Scores | None] = []
        for i in range(len(offers)):
            row = {name: scores[i] for name, scores in columns.items()}
            known = {name: value for name, value in row.items() if value is not None}
            rows.append(known if len(known) == len(row) else None)
        return rows


def _worst(harm: Scores | None) -> float:
    return max(harm.values(), default=0.0) if harm is not None else 1.0
