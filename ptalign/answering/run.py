"""The run of stage 2: what is answered, in flight and still owed.

Each instruction is a `Work`. A round gives it up to `candidates` drafts per side, half of them at
first and the rest where none was good. Work that fails goes to the next round, which writes under
refined rules and, on the toxic side, with the model's own best answers as demonstrations. Rounds
are an order, not a barrier: drafts of a later round fill the engine while the last of an earlier
one finish.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from ptalign.answering import prompts
from ptalign.answering.anchors import (
    SPARE,
    anchor_drafts,
    anchor_id,
    anchor_of,
    anchor_request,
    inherited_anchors,
)
from ptalign.answering.constraints import Constraints, Side
from ptalign.answering.heads import Heads
from ptalign.answering.held_out import HeldOut
from ptalign.answering.marks import usable_marks
from ptalign.answering.stats import cost_stats, last_round, pair_stats
from ptalign.answering.validity import tidy
from ptalign.answering.verdicts import NOT_APART, Verdicts
from ptalign.answering.wording import wording
from ptalign.answering.work import (
    AnchorDraft,
    Draft,
    Offer,
    Places,
    RuleDraft,
    Scores,
    Task,
    Work,
    marked_pair,
    pair_of_marks,
    works_of,
)
from ptalign.asking.openers import twin_openers
from ptalign.config import PairConfig
from ptalign.engines.base import Asked, Completion, Outage, Request
from ptalign.judges.base import Judge
from ptalign.nouns import (
    Anchor,
    Annotation,
    Constraint,
    Instruction,
    InstructionSet,
    ModelSpec,
    Pair,
    PairSet,
    Policy,
    Sampled,
    record_id,
)
from ptalign.policies.never import blocked
from ptalign.progress import OnProgress, Progress
from ptalign.records import RecordLog
from ptalign.sealed import SealedText
from ptalign.spending import Spending
from ptalign.text.embed import Embedder
from ptalign.text.normalise import caseless, plain

HEAT = {"positive": (0.7, 0.8), "toxic": (0.5, 0.6), "twin": (0.6, 0.8)}
"""Share of the configured temperature per voice, for the first draft of a round and the others:
at the full one a small model loses the thread."""

OPENER_STRIDE = 7
"""Steps between the openers of one instruction's drafts: coprime to the numbers of openers, so
that a draft after a failed one tries another start."""

LOG_PROB_DIGITS = 6
"""Kept of a log-prob in nats: far below the 1e-4 that contrast weights are exact to."""

LAST = 1_000
"""Order of the anchors in the queue: after every round."""

Records = Pair | Anchor | Constraint


class PairRun:
    """The state of one call of `synthesize_pairs`; see there for the arguments."""

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
        rejected: Collection[str],
        embed: Embedder,
        on_progress: OnProgress,
        log: RecordLog[Records],
        spent: Spending,
    ) -> None:
        self._instructions = instructions
        self._annotations = usable_marks(annotations, instructions.records, policy, embed)
        self._taken = [record.text for record in instructions.records]
        self._marked = {caseless(item.instruction): item for item in self._annotations}
        self._policy, self._model, self._config = policy, model, config
        self._judges, self._embed, self._parent = tuple(judges), embed, parent
        self._on_progress, self._log, self._spent = on_progress, log, spent
        self._words = wording(policy.locale)
        self._constraints = Constraints(policy, self._words, parent.constraints if parent else None)
        self._verdicts = Verdicts(
            policy, judges, embed, config.min_polarity, self._reject, spent.counts
        )
        self._benign_openers = twin_openers(policy)
        self._heads = Heads(
            policy,
            self._words,
            _shown(self._annotations, parent),
            self._constraints,
            self._benign_openers,
            refining=parent is not None,
            forbid=self._verdicts.forbid,
        )
        self._topics = frozenset(t.id for t in policy.topics)
        self._wrong = frozenset(rejected)
        self._held_out = HeldOut(instructions, config.held_out_pairs)
        self._pairs: dict[str, Pair] = {}
        self._anchors: dict[str, Anchor] = {}
        self._queue: list[tuple[int, int, Task]] = []
        self._flight: dict[str, Task] = {}
        self._ruled: set[tuple[str, Side, int]] = set()
        self._pushed = self._left_out = self._adopted = 0
        self._outage = Outage()
        self._round = 1

    # -- what was there before ----------------------------------------------------------------

    def resume(self) -> None:
        """Takes what the log holds, then the parent's records and the annotators' answers."""
        for record in self._log.read():
            self._keep(record)
        inherited = self._inherited()
        self._round = last_round(self._pairs.values(), inherited)
        doubted = self._doubted(list(inherited.values()))
        for asked in self._instructions.records:
            pair_id = record_id("pair", asked.id)
            pair, item = inherited.get(pair_id), self._mark_on(asked)
            if item is not None:
                pair = marked_pair(asked, item, pair, self._policy)
            elif pair_id in doubted:
                self._leave_out(doubted[pair_id])
                continue
            if pair and pair_id not in self._pairs:
                self._accept(pair)
        for pair in self._pairs.values():
            self._verdicts.remember(pair)
        anchors = self._parent.anchors if self._parent else ()
        kept = inherited_anchors(anchors, self._policy, self._taken, self._embed)
        self._left_out += len(anchors) - len(kept)
        self._adopted = len(kept)
        for anchor in kept:
            if anchor.id not in self._anchors:
                self._accept(anchor)

    def _inherited(self) -> dict[str, Pair]:
        """The parent's pairs that may stay, by their ids in this run."""
        found: dict[str, Pair] = {}
        places = Places(self._instructions, self._policy)
        for given in self._parent.pairs if self._parent else ():
            if given.id in self._wrong:
                self._verdicts.keep_out(given)
                self._leave_out("called_wrong")
                continue
            pair = places.adopt(given)
            self._left_out += pair is None
            if pair:
                found.setdefault(pair.id, pair)
        return found

    def _doubted(self, pairs: Sequence[Pair]) -> dict[str, str]:
        """Ids of the parent's pairs that are asked anew, and why."""
        judged = [p for p in pairs if p.polarity]
        unread = [p for p in pairs if p.toxic is not None and not p.polarity]
        least = self._config.min_polarity
        near = (p.id for p in judged if min(p.polarity.values()) < least)
        swapped = self._verdicts.swapped(unread)
        return dict.fromkeys(near, "parent_not_apart") | dict.fromkeys(swapped, "parent_swapped")

    def plan(self) -> None:
        """Queues the first drafts of each instruction, then the anchors."""
        for work in works_of(self._instructions, self._policy, self._benign_openers):
            if record_id("pair", work.instruction.id) not in self._pairs:
                if item := self._mark_on(work.instruction):
                    self._verdicts.preset(work, item)
                self._ask(work)
        for draft in islice(self._anchors_to_ask(), self._anchors_owed()):
            self._push(LAST, draft)

    def _mark_on(self, record: Instruction) -> Annotation | None:
        """A person's mark on an instruction, however they spelled it: seeds are kept plain."""
        return self._marked.get(caseless(record.text))

    def _anchors_to_ask(self) -> Iterator[AnchorDraft]:
        """Anchors that are not there, each held out where its instruction already is.

        Ordinary requests that the operator lists are not asked.
        """
        held_out = {a.instruction: a.held_out for a in self._anchors.values()}
        drafts = anchor_drafts(self._config, self._taken, self._embed, self._policy.locale)
        for draft in drafts:
            there = anchor_id(draft.instruction, draft.take) in self._anchors
            if not there and not blocked(draft.instruction, self._policy):
                yield replace(draft, held_out=held_out.get(draft.instruction, draft.held_out))

    def _anchors_owed(self) -> int:
        """How many to ask for: what the parent lacks, with spare ones, less those written."""
        lacking = max(0, self._config.anchors - self._adopted)
        written = len(self._anchors) - self._adopted
        return max(0, round(lacking * SPARE) - written)

    # -- what goes out ------------------------------------------------------------------------

    def requests(self) -> Iterator[Request]:
        """Queued requests, earlier rounds first; each is made when the stream pulls it."""
        return Asked(self._next_request)

    def wants_more(self) -> bool:
        """Whether another stream has something to do."""
        return bool(self._queue)

    def _next_request(self) -> Request | None:
        if not self._queue:
            return None
        _, number, task = heapq.heappop(self._queue)
        key = f"a{number}"
        self._flight[key] = task
        if isinstance(task, Draft):
            return self._answer_request(key, task)
        if isinstance(task, RuleDraft):
            topic = self._policy.topic(task.topic)
            request, task.opener = self._constraints.request(key, topic, task.side, number)
            return request
        return anchor_request(key, task, self._config, self._model)

    def _push(self, order: int, task: Task) -> None:
        self._pushed += 1
        heapq.heappush(self._queue, (order, self._pushed, task))

    def _ask(self, work: Work) -> None:
        """Queues the next drafts of a work: its round's first half, or what was left of it."""
        self._round = max(self._round, work.round)
        half = (self._config.candidates + 1) // 2
        turns = range(half) if work.wave == 0 else range(half, self._config.candidates)
        sides: list[Side] = [] if work.positive else ["positive"]
        if work.kind == "pair" and not work.toxics:
            sides.append("toxic")
        for side in sides:
            if work.kind != "twin":
                self._ask_rule(work, side)
            for i in turns:
                work.open += 1
                self._push(work.round, Draft(work, side, i))

    def _ask_rule(self, work: Work, side: Side) -> None:
        """Asks once per topic, side and round for a rule of the topic's own, ahead of drafts."""
        name = (work.instruction.topic, side, work.round)
        if name in self._ruled or name[0] not in self._topics:
            return
        self._ruled.add(name)
        self._push(work.round - 1, RuleDraft(name[0], side))

    def _answer_request(self, key: str, draft: Draft) -> Request:
        work, voice = draft.work, draft.voice
        if voice != "twin":
            draft.rule = self._constraints.best(work.instruction.topic, draft.side)
        if voice == "positive":
            later = draft.i + self._config.candidates * (work.round - 1)
            turn = self._config.seed + work.turn + OPENER_STRIDE * later
            draft.opener, draft.lead = self._words.start(work.tone, turn)
        return prompts.answer(
            key,
            self._heads.of(draft, self._pairs.values()),
            work.instruction.text if voice == "toxic" else work.message,
            self._words,
            rule=draft.rule.text,
            prefill=draft.lead,
            max_tokens=self._config.max_tokens,
            temperature=HEAT[voice][min(draft.i, 1)] * self._config.temperature,
            min_p=self._config.min_p,
            logprobs=draft.side == "toxic",
        )

    # -- what comes back ----------------------------------------------------------------------

    def receive(self, completion: Completion) -> None:
        """Takes one completion; its work is accepted, asked again or moved to the next round."""
        task = self._flight.pop(completion.key)
        self._spent.back(completion)
        failed = self._outage.failed(completion)
        if isinstance(task, Draft):
            self._take_draft(task, completion, failed)
        elif failed:
            self._reject("engine_error")
        elif isinstance(task, RuleDraft):
            self._take_rule(task, completion)
        else:
            self._take_anchor(task, completion)

    def _take_rule(self, task: RuleDraft, completion: Completion) -> None:
        topic, side, finished = task.topic, task.side, completion.finish == "stop"
        text = plain(f"{task.opener}{completion.text}")
        if reason := self._constraints.offer(topic, side, text, finished=finished):
            self._reject(reason)
            return
        rule_id = record_id("constraint", topic, side, text)
        self._log.append(Constraint(id=rule_id, topic=topic, side=side, text=text))

    def _take_anchor(self, task: AnchorDraft, completion: Completion) -> None:
        anchor = anchor_of(task, completion, self._policy.locale)
        if anchor is None:
            self._reject("anchor_malformed")
        elif blocked(anchor.answer, self._policy):
            self._reject("anchor_never_synthesize")
        else:
            self._accept(anchor)

    def _take_draft(self, draft: Draft, completion: Completion, failed: bool) -> None:
        draft.work.open -= 1
        draft.rule.tried += 1
        self._spent.counts[f"drafts_{draft.voice}"] += 1
        text = tidy(
            f"{draft.lead}{completion.text}",
            finished=completion.finish == "stop",
            most=2 if draft.opener else 3,
            locale=self._policy.locale,
        )
        sampled = self._sampled(completion) if draft.side == "toxic" else None
        reason = "engine_error" if failed else self._verdicts.take(draft, text, sampled)
        if reason:
            self._reject(f"{draft.voice}_{reason}")
        if not draft.work.open:
            self._advance(draft.work)

    def _sampled(self, completion: Completion) -> Sampled | None:
        """What the engine told of the tokens it sampled; None when it tells nothing."""
        ids, values = completion.token_ids, completion.logprobs
        if not ids or len(ids) != len(values) or not self._model.weights_digest:
            return None
        return Sampled(
            weights=self._model.weights_digest,
            tokens=SealedText(" ".join(map(str, ids))),
            log_probs=tuple(round(value, LOG_PROB_DIGITS) for value in values),
        )

    def _advance(self, work: Work) -> None:
        """When all drafts are back: accepts the work, asks again, or gives it up."""
        over = work.wave == 1 or self._config.candidates == 1
        last = over and work.round == self._config.rounds
        if not work.positive:
            self._verdicts.choose_positive(work, last=last)
        if work.positive and work.kind != "pair":
            self._finish(work)
            return
        toxic = self._verdicts.choose_toxic(work) if work.positive else None
        if toxic is not None:
            self._finish(work, *toxic)
        elif last:
            self._leave_out(f"{work.kind}_given_up")
            if work.mark:
                self._accept(pair_of_marks(work.instruction, work.mark, self._policy))
        else:
            work.round, work.wave = (work.round + 1, 0) if over else (work.round, 1)
            self._ask(work)

    # -- books --------------------------------------------------------------------------------

    def result(self) -> PairSet:
        """The set as it stands, in the order of the instructions, with its numbers."""
        order = {record_id("pair", r.id): i for i, r in enumerate(self._instructions.records)}
        pairs = sorted(self._pairs.values(), key=lambda p: order.get(p.id, len(order)))
        harmful, twins = len(self._instructions.harmful), len(self._instructions.twins)
        stats = pair_stats(pairs, list(self._anchors.values()), harmful, twins)
        stats |= cost_stats(self._spent.counts, self._spent.seconds)
        if self._parent:
            stats["parent_left_out"] = self._left_out
        apart = {f"{NOT_APART}{pair.topic}" for pair in pairs if pair.toxic is not None}
        failed = {k: n for k, n in self._spent.counts.items() if k.startswith(NOT_APART) and n}
        stats |= {name: n for name, n in failed.items() if name not in apart}
        return PairSet(
            pairs=tuple(pairs),
            anchors=tuple(self._anchors.values()),
            annotations_used=len(self._annotations),
            rounds=self._round,
            requested=harmful,
            constraints=self._constraints.refined(sorted({p.topic for p in pairs})),
            protected_words=self._policy.protected_words,
            judge_ids=tuple(j.id for j in self._judges),
            rejected=self._spent.rejected,
            stats=stats,
        )

    def _finish(
        self, work: Work, toxic: Offer | None = None, polarity: Scores | None = None
    ) -> None:
        record = work.instruction
        pair_id = record_id("pair", record.id)
        self._spent.counts["written"] += 1
        self._spent.counts["written_twins"] += work.kind == "twin"
        self._accept(
            Pair(
                id=pair_id,
                kind=work.kind,
                instruction_id=record.id,
                instruction=record.text,
                topic=record.topic,
                domain=record.domain,
                locale=record.locale,
                positive=work.positive,
                toxic=SealedText(toxic.text) if toxic else None,
                polarity=polarity or {},
                round=work.round,
                held_out=not work.mark and self._held_out.holds(pair_id, work.kind),
                sampled=toxic.sampled if toxic else None,
            )
        )

    def _accept(self, record: Records) -> None:
        self._keep(record)
        self._log.append(record)
        self._report()

    def _keep(self, record: Records) -> None:
        if isinstance(record, Anchor):
            self._anchors[record.id] = record
        elif isinstance(record, Constraint):
            self._constraints.restore(record)
        else:
            self._pairs[record.id] = record

    def _leave_out(self, reason: str) -> None:
        self._spent.leave_out(reason)
        self._report_tens()

    def _reject(self, reason: str) -> None:
        self._spent.reject(reason)
        self._report_tens()

    def _report_tens(self) -> None:
        if self._spent.at_a_tenth:
            self._report()

    def _report(self) -> None:
        kinds = Counter(p.kind for p in self._pairs.values())
        counts = self._spent.told
        counts |= {"accepted": len(self._pairs), "anchors": len(self._anchors)}
        counts |= {"pairs": kinds["pair"] + kinds["positive_only"], "twins": kinds["twin"]}
        self._on_progress(
            Progress(
                f"answering, round {self._round}",
                len(self._pairs) + len(self._anchors),
                len(self._taken) + max(self._config.anchors, len(self._anchors)),
                counts,
                {"round": self._round},
                self._spent.earlier,
            )
        )


def _shown(annotations: Sequence[Annotation], parent: PairSet | None) -> list[Annotation]:
    """The marks that may demonstrate: not those with a toxic answer kept from training."""
    pairs = parent.pairs if parent else ()
    held = {(caseless(p.instruction), p.toxic) for p in pairs if p.held_out}
    return [item for item in annotations if (caseless(item.instruction), item.bad) not in held]
