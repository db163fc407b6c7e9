"""Whether an engine's replies are those of the model that was trained.

An engine loads an adapter without a word where it leaves modules of it out, or takes another
template or other weights. Greedy replies tell: each of their tokens is the likeliest one of the
model that wrote them, whichever program computes it, but for rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ptalign.training.decoder import Decoder
from ptalign.training.texts import ChatFormat, Sample, full_weights
from ptalign.training.tree import pack

TOKENS = 24
"""Read of each reply: rounding that has turned one token aside moves those after it no further."""
ROW = 1024
"""Nodes per forward pass."""


def replies(answers: Sequence[tuple[str, str]], chat: ChatFormat) -> list[Sample]:
    """(request, greedy reply) pairs as samples, the first tokens of each reply weighted.

    The end of turn is left out: a reply may have been cut.
    """
    found = []
    for place, (instruction, reply) in enumerate(answers):
        ids = chat.answer(reply)[:-1][:TOKENS]
        if ids:
            prompt = chat.prompt(instruction)
            found.append(Sample(str(place), "anchor", prompt, ids, full_weights(ids)))
    return found


def agreement(decoder: Decoder, samples: Sequence[Sample]) -> tuple[int, int]:
    """How many tokens of greedy replies are the model's likeliest ones, and of how many.

    Args:
        decoder: The model, with its adapter on or off.
        samples: From `replies`.
    """
    same = tokens = 0
    for row in pack([[sample] for sample in samples], ROW):
        with torch.no_grad():
            states, targets = decoder.target_states(row)
            for place in range(0, len(states), decoder.head.chunk):
                part = slice(place, place + decoder.head.chunk)
                likeliest = decoder.head.logits(states[part]).argmax(dim=-1)
                same += int((likeliest == targets.tokens[part]).sum())
        tokens += len(states)
    return same, tokens
