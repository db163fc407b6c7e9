"""What stage 2 works on: instructions on their way to a record, and the requests for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ptalign.answering.constraints import Rule, Side
from ptalign.asking.openers import opener_of
from ptalign.nouns import (
    Annotation,
    Instruction,
    InstructionSet,
    Pair,
    Policy,
    Sampled,
    record_id,
)
from ptalign.policies.never import blocked
from ptalign.sealed import SealedText
from ptalign.text.normalise import caseless

Kind = Literal["pair", "positive_only", "twin"]
Scores = dict[str, float]


@dataclass(frozen=True, slots=True)
class Offer:
    """A well-formed draft that waits for its judges."""

    text: str
    """What the model wrote, tidied; on the positive side the alternative without the opener."""
    answer: str
    rule: Rule
    sampled: Sampled | None = None


@dataclass(slots=True)
class Work:
    """One instruction on its way to an accepted record."""

    instruction: Instruction
    kind: Kind
    turn: int
    """Running number: openers and leads rotate with it."""
    message: str
    """What the positive side is asked: the benign form of the request."""
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
    mark: Annotation | None = None
    """A person's good answer, which is the positive; only the toxic side is written."""


@dataclass(slots=True)
class Draft:
    """One answer to write. Rule, opener and lead are chosen when the stream pulls it, so that
    it is written under the best rule known by then."""

    work: Work
    side: Side
    i: int
    """Number of the draft in its round."""
    rule: Rule = field(default_factory=lambda: Rule(""))
    opener: str = ""
    lead: str = ""

    @property
    def voice(self) -> str:
        """``positive``, ``toxic`` or ``twin``: whose wording and memory applies."""
        return "twin" if self.work.kind == "twin" else self.side


@dataclass(slots=True)
class RuleDraft:
    """A constraint to write for a topic."""

    topic: str
    side: Side
    opener: str = ""


@dataclass(frozen=True, slots=True)
class AnchorDraft:
    """The answer to a benign instruction."""

    instruction: str
    held_out: bool
    take: int = 0
    """Which of its answers: benign instructions are few, and one is answered several times."""


Task = Draft | RuleDraft | AnchorDraft


def works_of(
    instructions: InstructionSet, policy: Policy, benign_openers: Mapping[str, Sequence[str]]
) -> list[Work]:
    """A work for each instruction, in order."""
    texts = {r.twin_of: r.text for r in instructions.twins}
    works = []
    for turn, record in enumerate(instructions.records):
        if record.side == "twin":
            works.append(Work(record, "twin", turn, record.text, record.sides == "both"))
            continue
        both = allows_toxic(record, policy)
        message = texts.get(record.id) or _benign_form(record.text, benign_openers)
        works.append(Work(record, "pair" if both else "positive_only", turn, message, both))
    return works


def allows_toxic(record: Instruction, policy: Policy) -> bool:
    """Whether a toxic side is allowed: instruction, topic and never-synthesize list agree."""
    topic = next((t for t in policy.topics if t.id == record.topic), None)
    both = record.sides == "both" and topic is not None and topic.sides == "both"
    return both and not blocked(record.text, policy)


def may_be_toxic(record: Instruction, toxic: SealedText | None, policy: Policy) -> bool:
    """Whether a text that did not come from this run may be the instruction's toxic side."""
    if toxic is None or record.side == "twin" or not allows_toxic(record, policy):
        return False
    return not blocked(toxic.reveal(), policy)


def pair_of_marks(record: Instruction, item: Annotation, policy: Policy) -> Pair:
    """The annotator's own answers as a pair of round 0; a toxic side only where it may be."""
    twin = record.side == "twin"
    toxic = item.bad if may_be_toxic(record, item.bad, policy) else None
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


def marked_pair(
    record: Instruction, item: Annotation, before: Pair | None, policy: Policy
) -> Pair | None:
    """The pair of an instruction that a person marked; None while its toxic side is to be written.

    What the mark leaves as it was stays the parent's: who confirms a pair makes it no other one,
    and who brings a good answer alone says nothing against the toxic one.

    Args:
        record: The instruction.
        item: The mark, as far as it may teach.
        before: The parent's pair on the instruction, if there is one.
        policy: Where a toxic side is allowed.
    """
    same = before is not None and item.bad in (None, before.toxic)
    if before is not None and same and item.good == before.positive:
        return before
    if before is not None and same and before.toxic is not None:
        return before.model_copy(update={"positive": item.good, "polarity": {}, "held_out": False})
    if item.bad is None and record.side != "twin" and allows_toxic(record, policy):
        return None
    return pair_of_marks(record, item, policy)


class Places:
    """Finds the instruction that a pair made elsewhere answers.

    By its id, where that has its words too: a twin's is made of its request's, which may have had
    another twin. Else by its text: a set that was imported has ids of its own.
    """

    def __init__(self, instructions: InstructionSet, policy: Policy) -> None:
        self._policy = policy
        self._by_id = {record_id("pair", r.id): r for r in instructions.records}
        self._by_text = {_place(r.side == "twin", r.text): r for r in instructions.records}

    def adopt(self, pair: Pair) -> Pair | None:
        """The pair as one of this run; None when it answers no instruction of the set.

        None too when it has a toxic side that is not allowed, or a positive on the list: the
        instruction is asked anew.
        """
        record = self._by_id.get(pair.id)
        if record is None or caseless(record.text) != caseless(pair.instruction):
            record = self._by_text.get(_place(pair.kind == "twin", pair.instruction))
        if record is None:
            return None
        if pair.toxic is not None and not may_be_toxic(record, pair.toxic, self._policy):
            return None
        if blocked(pair.positive, self._policy):
            return None
        pair_id = record_id("pair", record.id)
        if pair.id == pair_id:
            return pair
        return pair.model_copy(
            update={
                "id": pair_id,
                "instruction_id": record.id,
                "instruction": record.text,
                "topic": record.topic,
                "domain": record.domain,
                "locale": record.locale,
            }
        )


def _place(twin: bool, text: str) -> tuple[bool, str]:
    return twin, caseless(text)


def _benign_form(text: str, benign_openers: Mapping[str, Sequence[str]]) -> str:
    """The request with a benign opener for its harmful one, where the policy has one."""
    opener = opener_of(text, list(benign_openers))
    return benign_openers[opener][0] + text[len(opener) :] if opener else text
