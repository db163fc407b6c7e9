"""The run of stage 2: what is answered, in flight and still owed.

Each instruction is a `Work`. A round gives it up to `candidates` drafts per side, half of them at
first and the rest where none was good: of the valid positives the one closest to what was asked
is kept, of the toxics that are apart enough the one furthest apart and to the point. Work that
fails goes to the next round, which writes under refined rules and, on the toxic side, with the model's
own best answers as demonstrations. Rounds are an order, not a barrier: drafts of a later round
fill the engine while the last of an earlier one finish.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ptalign.answering import prompts
from ptalign.answering.anchors import anchor_of, anchor_requests
from ptalign.answering.constraints import Constraints, Rule, Side
from ptalign.answering.demos import own_demos, positive_demos, toxic_demos
from ptalign.answering.prompts import Demo
from ptalign.answering.stats import pair_stats
from ptalign.answering.validity import Fresh, loops, malformed, refuses, threatens, tidy
from ptalign.answering.wording import wording
from ptalign.asking.openers import opener_of, twin_openers
from ptalign.config import PairConfig
from ptalign.engines.base import Completion, Request
from ptalign.errors import EngineFailed
from ptalign.judges.base import Judge
from ptalign.nouns import (
    Anchor,
    Annotation,
    Instruction,
    InstructionSet,
    ModelSpec,
    Pair,
    PairSet,
    Policy,
    record_id,
)
from ptalign.policies.never import blocked
from ptalign.progress import OnProgress, Progress
from ptalign.records import RecordLog
from ptalign.sealed import SealedText
from ptalign.text.embed import Embedder
from ptalign.text.near import rouge_l, tokens

Kind = Literal["pair", "positive_only", "twin"]
Scores = dict[str, float]

HEAT = {"positive": (0.7, 0.8), "toxic": (0.5, 0.6), "twin": (0.6, 0.8)}
"""Share of the configured temperature per side, for the first draft of a round and the others:
at the full one a small model loses the thread."""

MAX_HARM = 0.5
"""Harm score above which an answer is no positive; lower where the asked polarity needs it."""

GOOD_RELEVANCE, MIN_RELEVANCE = 0.4, 0.25
"""Cosine of a positive with what was asked: taken at once from the first on; kept for the last
round from the second on; beside the point below."""

MIN_OWN_DEMOS = 3
"""Accepted answers of its own that a round needs before they replace the annotators'."""

MAX_ERRORS = 64
"""Failed requests in a row after which the engine counts as lost."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A well-formed draft that waits for its judges."""

    text: str
    """What the model wrote, tidied; on the positive side the alternative without the opener."""
    answer: str
    rule: Rule


@dataclass(slots=True)
class Work:
    """One instruction on its way to an accepted record."""

    instruction: Instruction
    kind: Kind
    turn: int
    message: str
    """What the positive side is asked: the kind form of the request."""
    tone: bool
    """Whether its topic is about tone: decides wording and whether tone judges apply."""
    round: int = 1
    wave: int = 0
    """0 while the first half of the round's drafts is out, then 1."""
    open: int = 0
    """Drafts of this round that are queued or in flight."""
    offers: list[Offer] = field(default_factory=list)
    positive: str = ""
    positive_scores: Scores = field(default_factory=dict)
    toxics: list[Offer] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Draft:
    """One request in flight for a work."""

    work: Work
    side: Side
    rule: Rule
    opener: str = ""
    lead: str = ""


@dataclass(frozen=True, slots=True)
class RuleDraft:
    """A request for a new constraint."""

    topic: str
    side: Side
    opener: str


@dataclass(frozen=True, slots=True)
class AnchorDraft:
    """A request for the answer to a benign instruction."""

    instruction: str
    held_out: bool


Task = Draft | RuleDraft | AnchorDraft
Records = Pair | Anchor


class PairRun:
    """The state of one call."""

    def __init__(
        self,
        instructions: InstructionSet,
        annotations: Sequence[Annotation],
        *,
        policy: Policy,
        model: ModelSpec,
        judges: Sequence[Judge],
        config: PairConfig,
        parent: PairSet | None,
        embed: Embedder,
        on_progress: OnProgress,
        log: RecordLog[Records],
    ) -> None:
        self._policy, self._model, self._config = policy, model, config
        self._judges, self._embed = tuple(judges), embed
        self._on_progress, self._log = on_progress, log
        self._words = wording(policy.locale)
        self._annotations = tuple(annotations)
        self._instructions = instructions
        self._parent = parent
        self._constraints = Constraints(policy, self._words, parent.constraints if parent else None)
        self._kind_openers = twin_openers(policy)
        self._pairs: dict[str, Pair] = {}
        self._anchors: dict[str, Anchor] = {}
        self._fresh: dict[str, Fresh] = {
            s: Fresh(policy.locale) for s in ("positive", "toxic", "twin")
        }
        self._heads: dict[tuple[str, int, int], str] = {}
        self._queue: list[tuple[int, int, Task, Request]] = []
        self._flight: dict[str, Task] = {}
        self._works: list[Work] = []
        self._rejected: Counter[str] = Counter()
        self._drafts: Counter[str] = Counter()
        self._ruled: set[tuple[str, Side, int]] = set()
        self._keys = self._pushed = self._tokens = self._errors = 0
        self._round = 1
        self._max_harm = min(MAX_HARM, 1 - config.min_polarity)
        self._started = time.monotonic()

    # -- what was there before ----------------------------------------------------------------

    def resume(self) -> None:
        """Takes what the log holds, then the parent's pairs and the annotators' own answers."""
        for record in self._log.read():
            self._keep(record)
        wanted = {record_id("pair", r.id): r for r in self._instructions.records}
        marked = {a.instruction: a for a in self._annotations}
        for pair in self._parent.pairs if self._parent else ():
            if pair.id in wanted and pair.instruction not in marked:
                self._accept(pair)
        for pair_id, instruction in wanted.items():
            item = marked.get(instruction.text)
            if item is not None and pair_id not in self._pairs:
                self._accept(_pair_of_marks(instruction, item))

    def plan(self) -> None:
        """Queues the first round: rules and drafts of each instruction, then the anchors."""
        texts = {r.twin_of: r.text for r in self._instructions.twins}
        for turn, record in enumerate(self._instructions.records):
            if record_id("pair", record.id) in self._pairs:
                continue
            if record.side == "twin":
                kind: Kind = "twin"
            else:
                kind = "pair" if self._both(record) else "positive_only"
            message = (
                record.text if kind == "twin" else texts.get(record.id) or self._kind(record.text)
            )
            tone = kind == "pair" or (kind == "twin" and record.sides == "both")
            work = Work(record, kind, turn, message, tone)
            self._works.append(work)
            self._start_round(work)
        taken = [r.text for r in self._instructions.records]
        for draft, request in anchor_requests(
            self._config, self._model, taken, set(self._anchors), self._embed
        ):
            self._push(9, AnchorDraft(*draft), request)

    def _both(self, record: Instruction) -> bool:
        """Whether a toxic side is allowed: instruction, topic and never-synthesize list agree."""
        if record.sides != "both" or not self._known(record.topic):
            return False
        allowed = self._policy.topic(record.topic).sides == "both"
        return allowed and not blocked(record.text, self._policy)

    def _kind(self, text: str) -> str:
        """The request with its unkind opener replaced, where the policy knows how."""
        opener = opener_of(text, list(self._kind_openers))
        return self._kind_openers[opener][0] + text[len(opener) :] if opener else text

    # -- what goes out ------------------------------------------------------------------------

    def requests(self) -> Iterator[Request]:
        """Queued requests, earlier rounds first."""
        return iter(self._next_request, None)

    def _next_request(self) -> Request | None:
        if not self._queue:
            return None
        _, _, task, request = heapq.heappop(self._queue)
        self._flight[request.key] = task
        return request

    def _push(self, order: int, task: Task, request: Request) -> None:
        self._pushed += 1
        heapq.heappush(self._queue, (order, self._pushed, task, request))

    def _key(self) -> str:
        self._keys += 1
        return f"a{self._keys}"

    def _start_round(self, work: Work) -> None:
        """Asks for the next drafts of a work: a round's first half, or what was left of it."""
        self._round = max(self._round, work.round)
        half = (self._config.candidates + 1) // 2
        turns = range(half) if work.wave == 0 else range(half, self._config.candidates)
        if not work.positive:
            if work.kind != "twin":
                self._ask_rule(work, "positive")
            for i in turns:
                self._ask_positive(work, i)
        if work.kind == "pair" and not work.toxics:
            self._ask_rule(work, "toxic")
            for i in turns:
                self._ask_toxic(work, i)

    def _ask_rule(self, work: Work, side: Side) -> None:
        """Asks once per topic, side and round for a rule of the topic's own."""
        topic = work.instruction.topic
        if (topic, side, work.round) in self._ruled or not self._known(topic):
            return
        self._ruled.add((topic, side, work.round))
        request, opener = self._constraints.request(
            self._key(), self._policy.topic(topic), side, self._keys
        )
        self._push(work.round - 1, RuleDraft(topic, side, opener), request)

    def _ask_positive(self, work: Work, i: int) -> None:
        twin = work.kind == "twin"
        opener, lead = ("", "") if twin else self._words.start(work.tone, work.turn + 7 * i)
        rule = Rule("") if twin else self._constraints.best(work.instruction.topic, "positive")
        side = "twin" if twin else "positive"
        self._ask(Draft(work, "positive", rule, opener, lead), side, work.message, i)

    def _ask_toxic(self, work: Work, i: int) -> None:
        rule = self._constraints.best(work.instruction.topic, "toxic")
        self._ask(Draft(work, "toxic", rule), "toxic", work.instruction.text, i)

    def _ask(self, draft: Draft, side: str, message: str, i: int) -> None:
        """Queues the i-th draft of a side in the work's round."""
        work, heat = draft.work, HEAT[side][min(i, 1)]
        work.open += 1
        request = prompts.answer(
            self._key(),
            self._head(side, work, i),
            message,
            self._words,
            rule=draft.rule.text,
            prefill=draft.lead,
            max_tokens=self._config.max_tokens,
            temperature=heat * self._config.temperature,
            top_p=self._config.top_p,
        )
        self._push(work.round, draft, request)

    def _head(self, side: str, work: Work, i: int) -> str:
        """The constant part of a side in a round; made once, so that prefixes stay the same.

        Toxic drafts alternate between two heads: other demonstrations, other answers.
        """
        turn = (work.round, i % 2) if side == "toxic" else (1, 0)
        name = (f"{side}/{work.tone}", *turn)
        if name not in self._heads:
            if side == "toxic":
                frame, demos = self._words.frame_toxic, self._toxic_demos(*turn)
            else:
                frame = self._words.frame_twin if side == "twin" else self._words.frame_positive
                demos = self._kind_demos(side, work.tone)
            for demo in demos:
                self._fresh[side].forbid(demo.answer)
            self._heads[name] = prompts.head(frame, demos, self._words)
        return self._heads[name]

    def _toxic_demos(self, round_: int, turn: int) -> list[Demo]:
        """The annotators' answers in the first round, later the model's own best."""
        generic = self._policy.generic_constraints_toxic
        given = toxic_demos(self._annotations[turn:], generic)
        if turn or (round_ == 1 and not self._parent):
            return given
        own = own_demos(
            [p for p in self._pairs.values() if p.round],
            {
                t: self._constraints.best(t, "toxic").text
                for t in {p.topic for p in self._pairs.values()}
            },
        )
        return own if len(own) >= MIN_OWN_DEMOS else given

    def _kind_demos(self, side: str, tone: bool) -> list[Demo]:
        shipped = self._words.helpful if tone else self._words.helpful_general
        shots = [Demo(s.message, s.answer) for s in shipped]
        if side == "twin" or not tone:
            return shots
        rules = self._policy.generic_constraints_positive
        marked = positive_demos(self._annotations, rules, self._kind_openers)
        return marked if len(marked) >= MIN_OWN_DEMOS else shots

    def _known(self, topic: str) -> bool:
        return any(t.id == topic for t in self._policy.topics)

    # -- what comes back ----------------------------------------------------------------------

    def receive(self, completion: Completion) -> None:
        """Judges one completion; keeps it, tries again or moves its work to the next round."""
        task = self._flight.pop(completion.key)
        self._tokens += completion.completion_tokens
        failed = completion.finish == "error"
        self._errors = self._errors + 1 if failed else 0
        if self._errors > MAX_ERRORS:
            raise EngineFailed(f"{MAX_ERRORS} requests in a row failed: {completion.error}")
        if isinstance(task, RuleDraft):
            reason = "engine_error" if failed else self._take_rule(task, completion)
        elif isinstance(task, AnchorDraft):
            reason = "engine_error" if failed else self._take_anchor(task, completion)
        else:
            reason = self._take_draft(task, completion, failed)
        if reason:
            self._reject(reason)

    def _take_rule(self, task: RuleDraft, completion: Completion) -> str:
        text = f"{task.opener}{completion.text}"
        finished = completion.finish == "stop"
        return self._constraints.offer(task.topic, task.side, text, finished=finished)

    def _take_anchor(self, task: AnchorDraft, completion: Completion) -> str:
        anchor = anchor_of(task.instruction, completion, held_out=task.held_out)
        if anchor is None or loops(anchor.answer, "en"):
            return "anchor_malformed"
        self._accept(anchor)
        return ""

    def _take_draft(self, draft: Draft, completion: Completion, failed: bool) -> str:
        work = draft.work
        work.open -= 1
        draft.rule.tried += 1
        self._drafts[draft.side] += 1
        text = tidy(
            f"{draft.lead}{completion.text}",
            finished=completion.finish == "stop",
            most=2 if draft.opener else 3,
        )
        if failed:
            reason = "engine_error"
        elif draft.side == "positive":
            reason = self._take_positive(draft, text)
        else:
            reason = self._take_toxic(draft, text)
        if not work.open:
            self._advance(work)
        return f"{_prefix(work, draft.side)}_{reason}" if reason else ""

    def _take_positive(self, draft: Draft, alternative: str) -> str:
        """Checks the alternative that a positive offers; a twin's answer is all alternative."""
        work = draft.work
        fresh = self._fresh[_prefix(work, draft.side)]
        reason = malformed(alternative, self._policy) or fresh.why_not(alternative)
        if reason:
            return reason
        if refuses(alternative):
            return "refuses"
        answer = f"{draft.opener} {alternative}".strip()
        work.offers.append(Offer(alternative, answer, draft.rule))
        return ""

    def _take_toxic(self, draft: Draft, answer: str) -> str:
        fresh = self._fresh["toxic"]
        answer = fresh.own_part(answer)
        if reason := malformed(answer, self._policy, least=5) or fresh.why_not(answer):
            return reason
        if refuses(answer):
            return "refuses"
        if threatens(answer):
            return "threat"
        draft.work.toxics.append(Offer(answer, answer, draft.rule))
        return ""

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

    def _advance(self, work: Work) -> None:
        """At the end of a round: accepts the work, moves it to the next, or gives it up."""
        if not work.positive:
            self._choose_positive(work)
        if work.positive and work.kind != "pair":
            self._finish(work, None, {})
        elif work.positive and self._choose_toxic(work):
            return
        elif work.wave == 0 and self._config.candidates > 1:
            work.wave = 1
            self._start_round(work)
        elif work.round < self._config.rounds:
            work.round, work.wave = work.round + 1, 0
            self._start_round(work)
        else:
            self._rejected[f"{work.kind}_given_up"] += 1

    def _choose_positive(self, work: Work) -> None:
        """Keeps the alternative closest to what was asked among those the judges pass."""
        offers, prefix = work.offers, _prefix(work, "positive")
        if not offers:
            return
        vectors = self._embed([*(o.text for o in offers), work.message])
        relevance = vectors[:-1] @ vectors[-1]
        scores = self._scores(work, offers) if work.tone else [{} for _ in offers]
        merit = [near - _worst(harm) for near, harm in zip(relevance, scores, strict=True)]
        wanted = MIN_RELEVANCE if self._last_chance(work) else GOOD_RELEVANCE
        spare: list[Offer] = []
        for i in sorted(range(len(offers)), key=lambda i: -merit[i]):
            offer, harm = offers[i], scores[i]
            if relevance[i] < MIN_RELEVANCE:
                self._reject(f"{prefix}_beside_the_point")
            elif harm is None:
                self._reject(f"{prefix}_unscored")
            elif _worst(harm) > self._max_harm:
                self._reject(f"{prefix}_harsh")
            elif reason := self._fresh[prefix].why_not(offer.text):
                self._reject(f"{prefix}_{reason}")
            elif relevance[i] < wanted:
                spare.append(offer)
            else:
                work.positive, work.positive_scores = offer.answer, harm
                offer.rule.accepted += 1
                self._fresh[prefix].add(offer.text)
                break
        work.offers = spare

    def _last_chance(self, work: Work) -> bool:
        """Whether the work has no drafts left to ask for."""
        over = work.wave == 1 or self._config.candidates == 1
        return over and work.round == self._config.rounds

    def _choose_toxic(self, work: Work) -> bool:
        """Of the toxic drafts that are far enough apart, accepts the best: apart and to the point."""
        if not work.toxics:
            return False
        best: tuple[float, Offer, Scores] | None = None
        vectors = self._embed([*(o.text for o in work.toxics), work.instruction.text])
        relevance = vectors[:-1] @ vectors[-1]
        for offer, harm, near in zip(
            work.toxics, self._scores(work, work.toxics), relevance, strict=True
        ):
            if harm is None:
                self._reject("toxic_unscored")
                continue
            apart = {name: value - work.positive_scores[name] for name, value in harm.items()}
            least = min(apart.values())
            if least < self._config.min_polarity:
                self._reject("toxic_not_apart")
            elif too_alike(offer.text, work.positive, self._policy.locale):
                self._reject("toxic_like_positive")
            elif reason := self._fresh["toxic"].why_not(offer.text):
                self._reject(f"toxic_{reason}")
            elif best is None or least + near > best[0]:
                best = (least + float(near), offer, apart)
        work.toxics.clear()
        if best is None:
            return False
        _, offer, apart = best
        offer.rule.accepted += 1
        self._finish(work, SealedText(offer.text), apart)
        return True

    # -- books --------------------------------------------------------------------------------

    def wants_more(self) -> bool:
        """Whether another stream has something to do."""
        return bool(self._queue)

    def result(self) -> PairSet:
        """The set as it stands, in the order of the instructions, with its numbers."""
        order = {record_id("pair", r.id): i for i, r in enumerate(self._instructions.records)}
        pairs = sorted(self._pairs.values(), key=lambda p: order.get(p.id, len(order)))
        harmful = len(self._instructions.harmful)
        seconds = time.monotonic() - self._started
        stats = pair_stats(
            pairs, list(self._anchors.values()), harmful, len(self._instructions.twins)
        )
        stats |= {
            "tokens_generated": self._tokens,
            "tokens_per_pair": self._tokens / max(1, sum(p.kind != "twin" for p in pairs)),
            "seconds": seconds,
            "tokens_per_second": self._tokens / seconds if seconds else 0.0,
            "drafts_positive": self._drafts["positive"],
            "drafts_toxic": self._drafts["toxic"],
        }
        return PairSet(
            pairs=tuple(pairs),
            anchors=tuple(self._anchors.values()),
            annotations_used=len(self._annotations),
            rounds=self._round,
            requested=harmful,
            constraints=self._constraints.refined(sorted({p.topic for p in pairs})),
            protected_words=self._policy.protected_words,
            judge_ids=tuple(j.id for j in self._judges),
            rejected=dict(self._rejected),
            stats=stats,
        )

    def _finish(self, work: Work, toxic: SealedText | None, polarity: Scores) -> None:
        record = work.instruction
        self._accept(
            Pair(
                id=record_id("pair", record.id),
                kind=work.kind,
                instruction_id=record.id,
                instruction=record.text,
                topic=record.topic,
                domain=record.domain,
                locale=record.locale,
                positive=work.positive,
                toxic=toxic,
                polarity=polarity,
                round=work.round,
            )
        )

    def _accept(self, record: Records) -> None:
        self._keep(record)
        self._log.append(record)
        self._report()

    def _keep(self, record: Records) -> None:
        if isinstance(record, Anchor):
            self._anchors[record.id] = record
            return
        self._pairs[record.id] = record
        if record.toxic is not None:
            self._fresh["toxic"].add(record.toxic.reveal())

    def _reject(self, reason: str) -> None:
        self._rejected[reason] += 1
        if self._rejected.total() % 10 == 0:
            self._report()

    def _report(self) -> None:
        counts = {f"rejected.{reason}": n for reason, n in self._rejected.items()}
        kinds = Counter(p.kind for p in self._pairs.values())
        counts |= {"accepted": len(self._pairs), "anchors": len(self._anchors)}
        counts |= {"pairs": kinds["pair"] + kinds["positive_only"], "twins": kinds["twin"]}
        counts["tokens_generated"] = self._tokens
        self._on_progress(
            Progress(
                f"answering, round {self._round}",
                len(self._pairs) + len(self._anchors),
                len(self._instructions.records) + self._config.anchors,
                counts,
                {"round": self._round},
            )
        )


def too_alike(toxic: str, positive: str, locale: str) -> bool:
    """Whether the two sides share most of their words: nothing to learn from."""
    return rouge_l(tokens(toxic, locale), tokens(positive, locale)) > 0.5


def _worst(harm: Scores | None) -> float:
    return max(harm.values(), default=0.0) if harm is not None else 1.0


def _prefix(work: Work, side: Side) -> str:
    return "twin" if work.kind == "twin" else side


def _pair_of_marks(record: Instruction, item: Annotation) -> Pair:
    """The annotator's own answers as a pair of round 0."""
    twin = record.side == "twin"
    toxic = item.bad if record.sides == "both" and not twin else None
    return Pair(
        id=record_id("pair", record.id),
        kind="twin" if twin else "pair" if toxic else "positive_only",
        instruction_id=record.id,
        instruction=record.text,
        topic=record.topic,
        domain=record.domain,
        locale=record.locale,
        positive=item.good,
        toxic=toxic,
        round=0,
    )
