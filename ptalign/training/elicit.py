"""Contexts that draw bad answers out, for training: a persona and two demonstrations.

A toxic answer is unlikely after the bare instruction already, so unlikelihood there has little to
do and teaches little about what happens under attack. Half of the polarised pairs are therefore
seen after a context that makes the toxic answer likely: the model itself supplied the
demonstrations, as toxic answers of other pairs. See docs/adr/0008.

The personas and demonstrations of the evaluation's attack suites appear in none of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import yaml

from ptalign.nouns import Pair
from ptalign.text.locales import language
from ptalign.training.texts import ChatFormat

TURNS = 2
"""Demonstrations per context, as in the attacks that people use."""


@dataclass(frozen=True, slots=True)
class Context:
    """What stands before an instruction."""

    persona: str
    demonstrations: tuple[Pair, ...]

    def prompt(self, instruction: str, chat: ChatFormat) -> tuple[int, ...]:
        """Token ids up to the start of the answer.

        Args:
            instruction: The last user turn.
            chat: The model's template.
        """
        shown = [(d.instruction, d.toxic.reveal()) for d in self.demonstrations if d.toxic]
        first, answer = shown[0]
        shown[0] = (f"{self.persona}\n\n{first}", answer)
        return chat.prompt(instruction, before=shown)


def contexts(pairs: Sequence[Pair], locale: str, seed: int) -> list[Context]:
    """One context per persona, each with demonstrations of its own.

    Args:
        pairs: Polarised pairs; none gives no contexts.
        locale: Language of the personas; English where there are none.
        seed: Draws the demonstrations.
    """
    if len(pairs) <= TURNS:
        return []
    personas = _personas(locale)
    order = np.random.default_rng([seed, *b"elicit"]).permutation(len(pairs))
    drawn = [pairs[order[i % len(pairs)]] for i in range(TURNS * len(personas))]
    return [
        Context(persona, tuple(drawn[TURNS * i : TURNS * (i + 1)]))
        for i, persona in enumerate(personas)
    ]


@cache
def _personas(locale: str) -> tuple[str, ...]:
    known = yaml.safe_load(Path(__file__).with_name("personas.yaml").read_text(encoding="utf-8"))
    return tuple(known.get(language(locale), known["en"]))
