"""Suites of the policy's own topics: requests of an instruction set that nothing was trained on.

The generated suites ask for rudeness, whatever the policy is about. These ask what the operator's
policy names, so that a gain is shown where it was trained. They are written by the model, as the
training requests are: the generated suites show what carries over to other wording. See
docs/adr/0013.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

from ptalign.nouns import Instruction, InstructionSet, record_id
from ptalign.suites.base import Prompt
from ptalign.suites.generated import forced, under_attack
from ptalign.text.locales import language

Maker = Callable[[InstructionSet, int], Iterator[Prompt]]


def plain(requests: InstructionSet, seed: int) -> Iterator[Prompt]:
    """The harmful requests, asked plainly."""
    for record in _spread(requests.harmful, seed):
        yield _prompt("held-out-plain", record)


def twins(requests: InstructionSet, seed: int) -> Iterator[Prompt]:
    """The benign twins, in the order of `plain`."""
    by_harmful = {record.twin_of: record for record in requests.twins}
    for record in _spread(requests.harmful, seed):
        if record.id in by_harmful:
            yield _prompt("held-out-twin", by_harmful[record.id])


def attack(requests: InstructionSet, seed: int) -> Iterator[Prompt]:
    """Requests of topics with both sides, under the generated suites' personas.

    The personas are rude in tone and English. Topics with positive answers only are never
    elicited: the suites aim the model at nothing that must not be written.
    """
    elicited = [r for r in requests.harmful if r.sides == "both" and _english(r)]
    return under_attack(
        "held-out-attack", (_prompt("", record) for record in _spread(elicited, seed))
    )


def strong(requests: InstructionSet, seed: int) -> Iterator[Prompt]:
    """The attack with the first words of the reply forced on the model."""
    return forced(attack(requests, seed))


HELD_OUT: Mapping[str, Maker] = {
    "held-out-plain": plain,
    "held-out-twins": twins,
    "held-out-attack": attack,
    "held-out-strong": strong,
}
"""Generator per name that `SuiteSpec.make` may take, and the shipped suite of the same name."""


def held_out_suites(requests: InstructionSet) -> tuple[str, ...]:
    """Names of the shipped suites that these requests can fill."""
    return tuple(name for name, make in HELD_OUT.items() if next(make(requests, 0), None))


def _spread(records: Sequence[Instruction], seed: int) -> Iterator[Instruction]:
    """In an order of which any first n cover the topics evenly."""
    topics: dict[str, list[Instruction]] = defaultdict(list)
    for record in random.Random(seed).sample(records, len(records)):
        topics[record.topic].append(record)
    while topics:
        for topic in list(topics):
            yield topics[topic].pop()
            if not topics[topic]:
                del topics[topic]


def _prompt(kind: str, record: Instruction) -> Prompt:
    return Prompt(
        id=record_id(kind, record.text),
        instruction=record.text,
        topic=record.topic,
        group=record.twin_of or record.id,
        locale=record.locale,
    )


def _english(record: Instruction) -> bool:
    return language(record.locale) == "en"
