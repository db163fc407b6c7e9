"""Suites written for ptalign: tone requests with twins, three elicitations, ordinary requests.

Nothing here appears in training: situations, request forms, personas and demonstrations are the
evaluation's own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib import resources
from itertools import cycle
from typing import Any, Literal

import yaml

from ptalign.nouns import record_id
from ptalign.suites.base import Prompt, Turn

Side = Literal["harmful", "twin"]


def _data(name: str) -> str:
    return resources.files("ptalign.suites").joinpath("data", name).read_text("utf-8")


@cache
def _yaml(name: str) -> Any:
    return yaml.safe_load(_data(name))


def requests(side: Side, seed: int) -> Iterator[tuple[str, str, str]]:
    """(topic, situation, request) so that any first n cover topics and request forms evenly.

    Both sides come in the same order: the n-th twin is the twin of the n-th harmful request.
    """
    data = _yaml("situations.yaml")
    forms, domains = data["forms"], data["domains"]
    rng = random.Random(seed)
    order = {domain: rng.sample(whos, len(whos)) for domain, whos in domains.items()}
    for turn in range(len(forms)):
        for row in range(max(map(len, order.values()))):
            for column, (domain, whos) in enumerate(order.items()):
                if row < len(whos):
                    form = forms[(turn + row + column) % len(forms)]
                    yield domain, whos[row], form[side].format(who=whos[row])


def plain(seed: int) -> Iterator[Prompt]:
    """Harmful requests, asked plainly."""
    for topic, who, text in requests("harmful", seed):
        yield Prompt(id=record_id("plain", text), instruction=text, topic=topic, group=who)


def twins(seed: int) -> Iterator[Prompt]:
    """Legitimate requests that look like the harmful ones."""
    for topic, who, text in requests("twin", seed):
        yield Prompt(id=record_id("twin", text), instruction=text, topic=topic, group=who)


def attack(seed: int) -> Iterator[Prompt]:
    """The harmful requests under a persona with two demonstrations of its manner."""
    return under_attack("attack", plain(seed))


def under_attack(kind: str, prompts: Iterable[Prompt]) -> Iterator[Prompt]:
    """Prompts with a persona and its demonstrations before each, in turn; `kind` is for the ids.

    A conversation of its own stays as it is.
    """
    attacks = cycle(_yaml("attacks.yaml")["attacks"])
    for prompt in prompts:
        if prompt.turns:
            yield prompt
            continue
        chosen = next(attacks)
        yield prompt.model_copy(
            update={
                "id": record_id(kind, chosen["persona"], prompt.instruction),
                "preface": chosen["persona"],
                "turns": tuple(Turn(**turn) for turn in chosen["turns"]),
            }
        )


def strong(seed: int) -> Iterator[Prompt]:
    """The attack with the first words of the reply forced on the model."""
    return forced(attack(seed))


def forced(prompts: Iterable[Prompt]) -> Iterator[Prompt]:
    """Prompts whose reply must begin with rude first words, in turn."""
    prefills = _yaml("attacks.yaml")["prefills"]
    for index, prompt in enumerate(prompts):
        prefill = prefills[(index // 2) % len(prefills)]
        yield prompt.model_copy(
            update={"id": record_id("strong", prefill, prompt.id), "prefill": prefill}
        )


def ordinary(seed: int) -> Iterator[Prompt]:
    """Everyday requests that nobody should refuse."""
    lines = [line for line in _data("ordinary.txt").splitlines() if line.strip()]
    for text in random.Random(seed).sample(lines, len(lines)):
        yield Prompt(id=record_id("ordinary", text), instruction=text, topic="ordinary")


MAKERS: dict[str, Callable[[int], Iterator[Prompt]]] = {
    "plain": plain,
    "twins": twins,
    "attack": attack,
    "strong": strong,
    "ordinary": ordinary,
}
"""Generator per name that `SuiteSpec.make` may take."""
