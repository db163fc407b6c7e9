"""What stage 2 works on: instructions on their way to a record, and the requests for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ptalign.answering.constraints import Rule, Side
from ptalign.asking.openers import opener_of
from ptalign.nouns import Annotation, Instruction, InstructionSet, Pair, Policy, record_id
from ptalign.policies.never import blocked

Kind = Literal["pair", "positive_only", "twin"]
Scores = dict[str, float]


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
    """Running number: openers and leads rotate with it."""
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


Task = Draft | RuleDraft | AnchorDraft


def works_of(
    instructions: InstructionSet, policy: Policy, kind_openers: Mapping[str, Sequence[str]]
) -> list[Work]:
    """A work for each instruction, in order."""
    texts = {r.twin_of: r.text for r in instructions.twins}
    works = []
    for turn, record in enumerate(instructions.records):
        if record.side == "twin":
            works.append(Work(record, "twin", turn, record.text, record.sides == "both"))
            continue
        both = allows_toxic(record, policy)
        message = texts.get(record.id) or _kind_form(record.text, kind_openers)
        works.append(Work(record, "pair" if both else "positive_only", turn, message, both))
    return works


def allows_toxic(record: Instruction, policy: Policy) -> bool:
    """Whether a toxic side is allowed: instruction, topic and never-synthesize list agree."""
    topic = next((t for t in policy.topics if t.id == record.topic), None)
    both = record.sides == "both" and topic is not None and topic.sides == "both"
    return both and not blocked(record.text, policy)


def pair_of_marks(record: Instruction, item: Annotation, policy: Policy) -> Pair:
    """The annotator's own answers as a pair of round 0."""
    twin = record.side == "twin"
    toxic = item.bad if not twin and allows_toxic(record, policy) else None
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


def _kind_form(text: str, kind_openers: Mapping[str, Sequence[str]]) -> str:
    """The request with its unkind opener replaced, where the policy knows how."""
    opener = opener_of(text, list(kind_openers))
    return kind_openers[opener][0] + text[len(opener) :] if opener else text
