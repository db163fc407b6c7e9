"""Several sets as one: each instruction once, and what their numbers add up to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Generic, TypeVar

from ptalign.nouns import Anchor, Instruction, InstructionSet, Pair, PairSet, Policy
from ptalign_server.gateway.additions import Words, instruction_stats, pair_stats, words_of

R = TypeVar("R", Instruction, Pair)


def join_instructions(sets: list[InstructionSet], policy: Policy) -> tuple[InstructionSet, int]:
    """Each instruction once, by id or words; a twin follows the instruction that stays.

    Of a harmful one and a twin with the same words the first stays. The twins of a harmful one that
    goes go with it.

    Returns:
        The joined set, and how many records stood there more than once.
    """
    once: _Once[Instruction] = _Once()
    for record in (r for s in sets for r in s.records):
        once.add(record, record.side == "twin", words_of(record.text, record.locale))
    followed = tuple(
        r.model_copy(update={"twin_of": once.replaced[r.twin_of]})
        if r.twin_of in once.replaced
        else r
        for r in once.records
    )
    gone = once.contradicting()
    kept = tuple(r for r in followed if r.id not in gone and r.twin_of not in gone)
    doubled = once.doubled + len(followed) - len(kept)
    joined = InstructionSet(
        records=kept,
        requested=sum(r.side == "harmful" for r in kept),
        rejected=_rejected(sets, doubled),
        stats=instruction_stats(kept, policy),
    )
    return joined, doubled


def join_pairs(sets: list[PairSet]) -> tuple[PairSet, int]:
    """Each instruction's pair and each anchor once; marks, judges and constraints of all.

    Of a harmful request's pair and a twin with the same words the first stays.

    Returns:
        The joined set, and how many pairs stood there more than once.
    """
    once: _Once[Pair] = _Once()
    for pair in (p for s in sets for p in s.pairs):
        once.add(pair, pair.kind == "twin", words_of(pair.instruction, pair.locale))
    anchors = _join_anchors(sets)
    gone = once.contradicting()
    kept = tuple(p for p in once.records if p.id not in gone)
    doubled = once.doubled + len(gone)
    joined = PairSet(
        pairs=kept,
        anchors=anchors,
        annotation_ids=tuple(sorted({i for s in sets for i in s.annotation_ids})),
        annotations_used=_annotations_used(sets),
        rounds=max(s.rounds for s in sets),
        requested=sum(p.kind != "twin" for p in kept),
        constraints={k: v for s in sets for k, v in s.constraints.items()},
        protected_words=tuple(sorted({w for s in sets for w in s.protected_words})),
        judge_ids=tuple(sorted({j for s in sets for j in s.judge_ids})),
        rejected=_rejected(sets, doubled),
        stats=pair_stats(kept, anchors),
    )
    return joined, doubled


def _join_anchors(sets: list[PairSet]) -> tuple[Anchor, ...]:
    """Each answer to an instruction once, whatever number an import gave it.

    Sets of one policy answer the same ordinary requests: of answers with one number the first
    counts, as of pairs, so that fifty sets have no fifty answers to each. An instruction that one
    set kept from training is kept from it in all.
    """
    held_out = {a.instruction for s in sets for a in s.anchors if a.held_out}
    kept: dict[str, Anchor] = {}
    said: set[tuple[str, str]] = set()
    for anchor in (a for s in sets for a in s.anchors):
        text = anchor.instruction, anchor.answer
        if anchor.id not in kept and text not in said:
            said.add(text)
            kept[anchor.id] = anchor.model_copy(update={"held_out": anchor.instruction in held_out})
    return tuple(kept.values())


def _annotations_used(sets: Sequence[PairSet]) -> int:
    """Marks behind the sets, each once; those of earlier versions' sets cannot be told apart."""
    known = {i for made in sets for i in made.annotation_ids}
    return len(known) + sum(made.annotations_used for made in sets if not made.annotation_ids)


def _rejected(sets: Sequence[InstructionSet | PairSet], doubled: int) -> dict[str, int]:
    """What the sets left out, by reason, and what joining them did."""
    total = Counter({"duplicate": doubled} if doubled else {})
    for made in sets:
        total.update(made.rejected)
    return dict(total)


class _Once(Generic[R]):
    """Records, each instruction once: the last one with its id, else the first with its words.

    Imported records have ids of their own, so that ids alone would keep an instruction twice.
    """

    def __init__(self) -> None:
        self._by_id: dict[str, R] = {}
        self._ids: dict[tuple[bool, Words], str] = {}
        self.replaced: dict[str, str] = {}
        """Id of a record that was left out -> id of the one that stands for it."""
        self._asked: dict[str, tuple[bool, Words]] = {}
        """Whether it is a twin, and its words: of what is kept, by id."""
        self.doubled = 0

    @property
    def records(self) -> tuple[R, ...]:
        """What is kept, in order."""
        return tuple(self._by_id.values())

    def contradicting(self) -> set[str]:
        """Ids of what stands here with the words of an earlier record of the other side.

        A set that declines and helps with one request teaches neither.
        """
        first: dict[Words, bool] = {}
        return {
            name
            for name, (twin, words) in self._asked.items()
            if first.setdefault(words, twin) != twin
        }

    def add(self, record: R, twin: bool, words: Words) -> None:
        """Takes a record, in its first one's place when it was there."""
        known = self._ids.setdefault((twin, words), record.id)
        self.doubled += known != record.id or record.id in self._by_id
        if known == record.id:
            self._by_id[record.id] = record
            self._asked[record.id] = twin, words
        elif record.id not in self._by_id:
            self.replaced[record.id] = known


def joined_policy(policies: list[Policy]) -> Policy:
    """The first policy with the topics and lists of all."""
    topics = {topic.id: topic for policy in policies for topic in policy.topics}
    never = {phrase for policy in policies for phrase in policy.never_synthesize}
    words = {word for policy in policies for word in policy.protected_words}
    return policies[0].model_copy(
        update={
            "topics": tuple(topics.values()),
            "never_synthesize": tuple(sorted(never)),
            "protected_words": tuple(sorted(words)),
        }
    )
