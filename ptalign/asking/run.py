"""The run of stage 1: what is accepted, in flight and still owed."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ptalign.asking import prompts
from ptalign.asking.openers import opener_of, twin_openers
from ptalign.asking.seeding import seed_drafts
from ptalign.asking.stats import cell_stats, cost_stats, coverage_stats, set_stats
from ptalign.asking.topics import TopicIndex
from ptalign.asking.twins import TwinCheck
from ptalign.asking.validity import Novelty, malformed
from ptalign.config import InstructionConfig
from ptalign.engines.base import Asked, Completion, Outage, Request
from ptalign.nouns import Instruction, InstructionSet, Policy, Source, Topic, record_id
from ptalign.policies.grid import Cell, Grid
from ptalign.policies.never import blocked
from ptalign.progress import OnProgress, Progress
from ptalign.records import RecordLog
from ptalign.spending import Spending
from ptalign.text.embed import Embedder, default_embedder
from ptalign.text.near import tokens
from ptalign.text.normalise import plain

MIN_SIMILARITY = 0.3
"""Cosine with the nearest topic below which a draft is off topic (MiniLM)."""

SAFE_MARGIN = 0.05
"""Cosine by which a text from elsewhere must be nearer to a topic of both sides than to any other:
nobody asked for it on such a topic. Of the English pack's examples, left out one at a time, 2
of 94 that are to have no toxic side would get one (7 without a margin); 7 of 52 lose theirs (2)."""

TWIN_TRIES = 6
"""Drafts of one twin before the instruction goes without."""


@dataclass(frozen=True, slots=True)
class TwinJob:
    """A harmful instruction that waits for its twin."""

    harmful: Instruction
    opener: str = ""
    tries: int = 0


class DraftRun:
    """The state of one call: what is accepted, in flight and still owed."""

    def __init__(
        self,
        policy: Policy,
        count: int,
        config: InstructionConfig,
        on_progress: OnProgress,
        log: RecordLog[Instruction],
        spent: Spending,
        embed: Embedder | None,
        parent: InstructionSet | None,
    ) -> None:
        self.policy, self.config = policy, config
        self.embed = embed or default_embedder(policy.locale)
        self._on_progress, self._log, self._spent = on_progress, log, spent
        self._parent = parent.records if parent else ()
        self.goal = count + (len(parent.harmful) if parent else 0)
        self._grid = Grid(
            policy,
            count,
            topics=config.topics,
            max_drafts=config.max_overgeneration,
            seed=config.seed,
            given=Counter(r.topic for r in parent.harmful) if parent else None,
        )
        self._index = TopicIndex(policy.topics, self.embed)
        self._novelty = Novelty(policy, config.max_rouge_l)
        self._twin_check = TwinCheck(policy, self.embed)
        self._benign_openers = twin_openers(policy)
        self._records: dict[str, Instruction] = {}
        self._planted: set[str] = set()
        self._said: set[tuple[str, ...]] = set()
        self._harmful = 0
        self._twin_jobs: deque[TwinJob] = deque()
        self._flight: dict[str, Cell | TwinJob] = {}
        self._keys = 0
        self._outage = Outage()
        self._budget = round(config.max_overgeneration * count)
        self._exhausted = False

    # -- what was there before ----------------------------------------------------------------

    def resume(self) -> None:
        """Takes the parent's records and what the log holds from an earlier attempt."""
        logged = tuple(self._log.read())
        self._planted = {r.id for r in logged} - {r.id for r in self._parent}
        for record in (*self._parent, *logged):
            if record.id in self._records:
                continue
            self._remember(record)
            self._log.append(record)
        paired = {r.twin_of for r in self._records.values()}
        for record in self._records.values():
            if record.side == "harmful" and record.id not in paired:
                self._want_twin(record)

    def plant(self, seeds: Sequence[str], excerpts: Sequence[str]) -> None:
        """Accepts the operator's seeds and excerpts that pass the checks, up to the count.

        Done before the first draft, and so by the first attempt that has booked one. What an
        attempt before that has accepted is there already: each once, others are said twice.
        """
        if self._spent.earlier:
            return
        drafts = seed_drafts(seeds, excerpts, self.embed, self._unfit)
        if excerpts:
            clusters = sum(d.source == "excerpt" and not d.unfit for d in drafts)
            self._spent.counts |= {"excerpts": len(excerpts), "excerpt_clusters": clusters}
        for seed in drafts:
            seed_id = record_id("harmful", seed.text)
            if seed_id in self._planted:
                self._planted.remove(seed_id)
                continue
            if seed_id in self._records:
                self._reject(f"{seed.source}_near_duplicate")
                continue
            if not seed.unfit and self._harmful >= self.goal:
                self._reject(f"{seed.source}_over_count")
                continue
            reason = seed.unfit or self._accept(seed.text, "seed", seed.source)
            if reason:
                self._reject(f"{seed.source}_{reason}")

    def _unfit(self, text: str) -> str:
        """Why a text of the caller's is no instruction that may enter, by itself."""
        reason = malformed(text, finished=True, locale=self.policy.locale)
        return reason or ("never_synthesize" if blocked(text, self.policy) else "")

    # -- what goes out ------------------------------------------------------------------------

    def requests(self) -> Iterator[Request]:
        """Twins first, then drafts for the neediest cells while enough are owed."""
        self._flight.clear()
        return Asked(self._next_request)

    def _next_request(self) -> Request | None:
        if self._twin_jobs:
            return self._ask_twin(self._twin_jobs.popleft())
        return self._ask_draft() if self._short_of_drafts() else None

    def _ask_draft(self) -> Request | None:
        cell = self._grid.next()
        if cell is None:
            self._exhausted = True
            return None
        return prompts.draft(
            self._fly(cell),
            cell,
            self.policy,
            max_tokens=self.config.max_tokens,
            temperature=self.config.temperature,
            min_p=self.config.min_p,
        )

    def _ask_twin(self, job: TwinJob) -> Request:
        text, topic = job.harmful.text, self.policy.topic(job.harmful.topic)
        benign = self._benign_openers.get(opener_of(text, list(self._benign_openers)), ("",))
        job = replace(job, opener=benign[(self._keys + job.tries) % len(benign)])
        return prompts.twin(
            self._fly(job),
            text,
            job.opener,
            topic,
            self.policy,
            max_tokens=self.config.max_tokens,
            temperature=0.5 + 0.1 * job.tries,
            min_p=self.config.min_p,
        )

    def _fly(self, what: Cell | TwinJob) -> str:
        self._keys += 1
        key = f"q{self._keys}"
        self._flight[key] = what
        return key

    def _short_of_drafts(self) -> bool:
        """Whether the drafts in flight are too few for what is owed, at the yield so far."""
        owed = self.goal - self._harmful
        flying = sum(isinstance(w, Cell) for w in self._flight.values())
        written, drafts = self._spent.counts["written"], self._spent.counts["drafts"]
        if owed <= 0 or self._exhausted or drafts + flying >= self._budget:
            return False
        return flying * (written + 2) / (drafts + 4) < owed + 1

    # -- what comes back ----------------------------------------------------------------------

    def receive(self, completion: Completion) -> None:
        """Judges one completion and accepts, retries or rejects it."""
        what = self._flight.pop(completion.key)
        self._spent.back(completion)
        failed = self._outage.failed(completion)
        if isinstance(what, Cell):
            self._spent.counts["drafts"] += not failed  # an outage must not use up the budget
            self._grid.back(what, failed=failed)
            reason = "engine_error" if failed else self._take_draft(what, completion)
        else:
            reason = "engine_error" if failed else self._take_twin(what, completion)
            if reason and what.tries + 1 < TWIN_TRIES:
                self._twin_jobs.append(replace(what, tries=what.tries + 1))
            elif reason:
                self._spent.leave_out("twin_given_up")
        if reason:
            self._reject(reason)

    def _take_draft(self, cell: Cell, completion: Completion) -> str:
        text = plain(f"{cell.opener}{completion.text}")
        reason = malformed(text, finished=completion.finish == "stop", locale=self.policy.locale)
        return reason or self._accept(text, cell.tactic.id, "model", cell.topic)

    def _accept(self, text: str, tactic: str, source: Source, asked: Topic | None = None) -> str:
        """Accepts a harmful instruction under its nearest topic, or says why not.

        Args:
            text: The instruction.
            tactic: Id of the way of asking.
            source: Who wrote it.
            asked: The topic that it was written for.
        """
        if blocked(text, self.policy):
            return "never_synthesize"
        if reason := self._novelty.why_not(text):
            return reason
        if tokens(text, self.policy.locale) in self._said:
            return "near_duplicate"  # a twin: helped with on one side, and declined on the other
        topic = self._topic_of(text, asked)
        if topic is None:
            return "off_topic"
        if self._harmful >= self.goal or self._grid.full(topic.id):
            return "over_quota"
        record = self._record(text, topic, tactic=tactic, source=source)
        self._remember(record)
        self._want_twin(record)
        self._log.append(record)
        self._spent.counts["written"] += source == "model"
        self._report()
        return ""

    def _topic_of(self, text: str, asked: Topic | None) -> Topic | None:
        """The nearest of the run's topics; None where all are far.

        What was written for a topic without a toxic side, or is nearer to one, stays without: the
        answer to a dangerous request must not be written because it sounds like a rude one.
        """
        every, similar = self.policy.topics, self._index.similar([text])[0].tolist()
        near = {topic.id: cosine for topic, cosine in zip(every, similar, strict=True)}
        able = {topic.id: topic for topic in self._grid.topics}
        best = max(near[name] for name in able)
        margin = SAFE_MARGIN if asked is None else 0.0
        safe = {t.id for t in every if t.sides == "positive_only"}
        if (asked is not None and asked.id in safe) or any(
            near[name] >= best - (margin if name in able else 0.0) for name in safe
        ):
            able = {name: topic for name, topic in able.items() if name in safe}
        name = max(able, key=lambda name: near[name], default="")
        return able[name] if name and near[name] >= MIN_SIMILARITY else None

    def _take_twin(self, job: TwinJob, completion: Completion) -> str:
        text = plain(f"{job.opener}{completion.text}")
        reason = malformed(text, finished=completion.finish == "stop", locale=self.policy.locale)
        reason = reason or self._twin_check.why_not(text, job.harmful.text)
        if not reason and tokens(text, self.policy.locale) in self._said:
            reason = "twin_duplicate"  # one of the two may be held out, and the other trained on
        if reason:
            return reason
        topic = self.policy.topic(job.harmful.topic)
        record = self._record(text, topic, tactic=job.harmful.tactic, twin_of=job.harmful.id)
        self._remember(record)
        self._log.append(record)
        self._report()
        return ""

    # -- books --------------------------------------------------------------------------------

    def wants_more(self) -> bool:
        """Whether another stream has something to do."""
        return bool(self._twin_jobs) or self._short_of_drafts()

    def finished(self) -> bool:
        """Whether what is still in flight is surplus."""
        waiting = any(isinstance(w, TwinJob) for w in self._flight.values())
        return self._harmful >= self.goal and not self._twin_jobs and not waiting

    def result(self) -> InstructionSet:
        """The set as it stands, with its numbers."""
        records = tuple(self._records.values())
        asked = [t.id for t in self._grid.topics]
        topics = list(dict.fromkeys([*asked, *(r.topic for r in self._parent)]))
        stats = set_stats(records, topics, self.embed)
        stats |= coverage_stats(records, topics, self.goal)
        stats |= cell_stats(records, self._grid.cells, self._grid.cell_coverage)
        stats |= cost_stats(self._spent.counts, self._spent.seconds)
        bare = sum(not any(t.twin_examples) for t in self._grid.topics)
        if bare and self.config.twins:
            stats["topics_without_twin_examples"] = float(bare)
        return InstructionSet(
            records=records, requested=self.goal, rejected=self._spent.rejected, stats=stats
        )

    def _record(
        self, text: str, topic: Topic, *, tactic: str, source: Source = "model", twin_of: str = ""
    ) -> Instruction:
        return Instruction(
            id=record_id("twin", twin_of) if twin_of else record_id("harmful", text),
            text=text,
            topic=topic.id,
            domain=topic.domain,
            side="twin" if twin_of else "harmful",
            twin_of=twin_of,
            sides=topic.sides,
            tactic=tactic,
            locale=self.policy.locale,
            source=source,
        )

    def _remember(self, record: Instruction) -> None:
        self._records[record.id] = record
        self._said.add(tokens(record.text, self.policy.locale))
        if record.side == "harmful":
            self._harmful += 1
            self._novelty.add(record.text)
            self._grid.accept(record.topic, record.tactic)

    def _want_twin(self, record: Instruction) -> None:
        if not self.config.twins:
            return
        topic = next((t for t in self.policy.topics if t.id == record.topic), None)
        if topic and any(topic.twin_examples):
            self._twin_jobs.append(TwinJob(record))
        else:  # nothing to tell benign by
            self._spent.leave_out("no_twin_examples")

    def _reject(self, reason: str) -> None:
        self._spent.reject(reason)
        if self._spent.at_a_tenth:
            self._report()

    def _report(self) -> None:
        accepted, spent = self._harmful, self._spent
        counts = spent.told | {"accepted": accepted, "twins": len(self._records) - accepted}
        phase = "writing instructions"
        self._on_progress(Progress(phase, accepted, self.goal, counts, earlier=spent.earlier))
