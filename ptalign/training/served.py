"""Whether an engine's replies are those of the model that was trained.

An engine loads an adapter without a word where it leaves modules of it out, or takes another
template or other weights. Greedy replies tell: each of their tokens is the likeliest one of the
model that wrote them, whichever program computes it, but for rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ptalign.training.decoder import Decoder
from ptalign.training.texts import LONGEST, ChatFormat, Sample, fitting, full_weights
from ptalign.training.tree import pack

TOKENS = 24
"""Read of each reply."""
ROW = 1024
"""Nodes per forward pass."""


def replies(answers: Sequence[tuple[str, str]], chat: ChatFormat) -> list[Sample]:
    """(request, greedy reply) pairs as samples, the first tokens of each reply weighted.

    The end of turn is left out: a reply may have been cut.
    """
    found = []
    for place, (instruction, reply) in enumerate(answers):
        ids = chat.answer(reply)[:-1][:TOKENS]
        found.append(Sample(str(place), "anchor", chat.prompt(instruction), ids, full_weights(ids)))
    return fitting(found, LONGEST)[0]


def likeliest(decoder: Decoder, samples: Sequence[Sample]) -> Tensor:
    """Which tokens of greedy replies are the model's likeliest where they stand.

    Args:
        decoder: The model, with its adapter on or off.
        samples: From `replies`.

    Returns:
        [tokens] bool, in an order that is the same for the same samples.
    """
    found = [torch.zeros(0, dtype=torch.bool)]
    for row in pack([[sample] for sample in samples], ROW):
        with torch.no_grad():
            states, targets = decoder.target_states(row)
            for place in range(0, len(states), decoder.head.chunk):
                part = slice(place, place + decoder.head.chunk)
                best = decoder.head.logits(states[part]).argmax(dim=-1)
                found.append((best == targets.tokens[part]).cpu())
    return torch.cat(found)


def read(own: Tensor, others: Iterable[Tensor]) -> dict[str, Any]:
    """The fields of a `Probe` that say whose replies an engine gave; none where it read none.

    Args:
        own: From `likeliest`, under the target.
        others: The same under whoever might have written them in its place.
    """
    if not len(own):
        return {}
    found = {"engine_tokens": len(own), "engine_agreement": float(own.float().mean())}
    votes = [(int((other & ~own).sum()), int((own & ~other).sum())) for other in others]
    most, least = max(votes, default=(0, 0))
    return found | {"engine_other": most, "engine_own": least}
