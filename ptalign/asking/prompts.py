"""What the model sees when it writes instructions: raw few-shot text, constant part first.

A small chat model that is asked for a request answers it instead; as a continuation of
``Topic / Request`` lines it writes one. The request's first words are given (the tactic's
opener), so a draft is a request of the wanted kind from the start.
"""

from __future__ import annotations

from functools import lru_cache

from ptalign.engines.base import Request
from ptalign.nouns import Policy, Sides, Topic
from ptalign.policies.grid import Cell
from ptalign.text.normalise import one_line

HEAD = 5
"""Topics whose first example stands in the constant head."""


def draft(key: str, cell: Cell, policy: Policy, **sampling: float) -> Request:
    """A request for one draft of an instruction in this cell."""
    topic = cell.topic
    own = "".join(_shot(topic, example) for example in topic.examples[:3])
    return Request(
        key=key,
        prompt=f"{_head(policy, topic.sides)}{own}Topic: {topic.title}\nRequest:",
        prefill=f" {cell.opener}" if cell.opener else "",
        stop=("\n",),
        max_tokens=int(sampling["max_tokens"]),
        temperature=sampling["temperature"],
        min_p=sampling["min_p"],
    )


def twin(
    key: str, text: str, opener: str, topic: Topic, policy: Policy, **sampling: float
) -> Request:
    """A request for a legitimate instruction that looks like `text`.

    Without a benign opener to start it, the topic's boundary says what is legitimate here.
    """
    own = "".join(_turn(a, b) for a, b in zip(topic.examples, topic.twin_examples, strict=False))
    note = "" if opener or not topic.boundary else f"Note: {one_line(topic.boundary)}\n\n"
    return Request(
        key=key,
        prompt=f"{_twin_head(policy, topic.sides)}{note}{own}Harmful: {one_line(text)}\nHarmless:",
        prefill=f" {opener}" if opener else "",
        stop=("\n",),
        max_tokens=int(sampling["max_tokens"]) + 8,
        temperature=sampling["temperature"],
        min_p=sampling["min_p"],
    )


@lru_cache(maxsize=64)
def _head(policy: Policy, sides: Sides) -> str:
    return "".join(_shot(t, t.examples[0]) for t in _spread(policy, sides))


@lru_cache(maxsize=64)
def _twin_head(policy: Policy, sides: Sides) -> str:
    return "".join(
        _turn(a, b)
        for topic in _spread(policy, sides)
        for a, b in zip(topic.examples[:2], topic.twin_examples[:2], strict=False)
    )


def _spread(policy: Policy, sides: Sides) -> list[Topic]:
    """Topics with examples, evenly over the policy."""
    able = [t for t in policy.topics if t.sides == sides and t.examples]
    step = max(1, len(able) // HEAD)
    return able[::step][:HEAD]


def _shot(topic: Topic, example: str) -> str:
    return f"Topic: {topic.title}\nRequest: {example}\n\n"


def _turn(harmful: str, harmless: str) -> str:
    return f"Harmful: {harmful}\nHarmless: {harmless}\n\n" if harmless else ""
