"""The texts every contestant gets: prompts and two answers of natural length spread."""

from __future__ import annotations

import random
from dataclasses import dataclass

from ptalign.training.texts import ChatFormat, Sample, full_weights

_TEXT = """
    the of and to in is you that it he was for on are as with his they at be this have from or
    one had by word but not what all were we when your can said there use an each which she do
    how their if will up other about out many then them these so some her would make like him
    into time has look two more write go see number no way could people my than first water been
    call who oil its now find long down day did get come made may part kind help plan answer idea
"""
WORDS = _TEXT.split()


@dataclass(frozen=True, slots=True)
class Item:
    """One instruction with two answers."""

    instruction: str
    positive: str
    toxic: str


def make_items(count: int, answer_tokens: int, seed: int = 0) -> list[Item]:
    """Neutral random words: what they say does not matter to speed.

    Lengths are log-normal about `answer_tokens` (sigma 0.35, as answers of a small chat model),
    cut at twice the mean; instructions have 12 to 24 words.
    """
    draw = random.Random(seed)

    def words(count: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(count))

    def answer() -> str:
        length = draw.lognormvariate(0, 0.35) * answer_tokens
        return words(max(8, min(round(length), 2 * answer_tokens)))

    return [Item(words(draw.randint(12, 24)), answer(), answer()) for _ in range(count)]


def groups_of(items: list[Item], chat: ChatFormat, share: float = 0.2) -> list[list[Sample]]:
    """Samples of our step: positives whole, a fifth of the toxic tokens weighted."""
    draw = random.Random(1)
    groups = []
    for i, item in enumerate(items):
        prompt, good, bad = (
            chat.prompt(item.instruction),
            chat.answer(item.positive),
            chat.answer(item.toxic),
        )
        flagged = set(draw.sample(range(len(bad) - 1), max(1, round(share * (len(bad) - 1)))))
        weights = tuple(float(t in flagged) for t in range(len(bad)))
        groups.append(
            [
                Sample(str(i), "positive", prompt, good, full_weights(good)),
                Sample(str(i), "toxic", prompt, bad, weights),
            ]
        )
    return groups
