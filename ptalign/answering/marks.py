"""What of the annotators' marks may teach: demonstrations and pairs come from these alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from ptalign.asking.topics import TopicIndex
from ptalign.nouns import Annotation, Instruction, Policy
from ptalign.policies.never import blocked
from ptalign.text.embed import Embedder
from ptalign.text.normalise import caseless


def usable_marks(
    annotations: Sequence[Annotation],
    instructions: Sequence[Instruction],
    policy: Policy,
    embed: Embedder,
) -> tuple[Annotation, ...]:
    """The marks that may teach, without the bad answers that may not.

    A mark whose instruction or good answer is on the never-synthesize list is left out. A bad
    answer goes where it is on the list itself, or where the mark's topic allows no toxic side.

    Args:
        annotations: As the annotators made them.
        instructions: A mark on one of these has its topic, too.
        policy: Topics with their sides, and the operator's list.
        embed: Finds the topic of a mark that names none.
    """
    check = _Check(policy, embed, {caseless(r.text): r.topic for r in instructions})
    return tuple(
        item if check.may_show_bad(item) else item.model_copy(update={"bad": None})
        for item in annotations
        if not blocked(item.instruction, policy) and not blocked(item.good, policy)
    )


class _Check:
    def __init__(self, policy: Policy, embed: Embedder, known: Mapping[str, str]) -> None:
        self._policy, self._embed, self._known = policy, embed, known
        self._sides = {topic.id: topic.sides for topic in policy.topics}

    @cached_property
    def _index(self) -> TopicIndex:
        return TopicIndex(self._policy.topics, self._embed)

    def may_show_bad(self, item: Annotation) -> bool:
        """Whether the bad answer, if there is one, may stand as an example of a toxic side."""
        if item.bad is None:
            return True
        return self._both(item) and not blocked(item.bad.reveal(), self._policy)

    def _both(self, item: Annotation) -> bool:
        if "positive_only" not in self._sides.values():
            return True  # no topic to be of that allows none
        named = {item.topic, self._known.get(caseless(item.instruction), "")} & self._sides.keys()
        if named:
            return all(self._sides[topic] == "both" for topic in named)
        topic, _ = self._index.nearest([item.instruction])[0]
        return topic.sides == "both"
