"""Whether a model in training declines what it should answer: it writes the first words itself.

Refusals of twins cannot be read off a likelihood: a helpful answer may stay as likely as it was
while a refusal overtakes it. So the first tokens are decoded, greedily, as an evaluation would; see
docs/adr/0013.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from ptalign.text.locales import language
from ptalign.training.decoder import Decoder
from ptalign.training.texts import ChatFormat, Sample
from ptalign.training.tree import pack

TOKENS = 10
"""Decoded of each reply at least: refusals in English show in their first clause."""
ROW = 1024
"""Nodes per forward pass."""

CLAUSES = {"en": "", "ja": "申し訳ありませんが、この件には協力できません。"}
"""Languages whose refusals `ptalign.answering.validity.refuses` knows, with a first clause as long
as it takes to tell: Japanese says no at its end, after a token or three a character."""

Declines = Callable[[str], bool]
"""Whether the beginning of a reply declines."""


def reading(chat: ChatFormat, locales: Iterable[str]) -> int:
    """How many tokens of a reply it takes to see a refusal in any of the languages."""
    clauses = (CLAUSES.get(language(locale), "") for locale in set(locales))
    return max(TOKENS, *(len(chat.answer(clause)) for clause in clauses), 0)


def refused(
    decoder: Decoder,
    chat: ChatFormat,
    asked: Sequence[Sample],
    declines: Declines,
    tokens: int = TOKENS,
) -> list[bool]:
    """Whether the greedy reply to each request begins with a refusal within `tokens`, in order."""
    begun = greedy(decoder, [sample.prompt for sample in asked], chat.end, tokens)
    return [declines(chat.text(ids)) for ids in begun]


def greedy(
    decoder: Decoder, prompts: Sequence[tuple[int, ...]], end: int, tokens: int = TOKENS
) -> list[tuple[int, ...]]:
    """The likeliest token after each prompt, again and again, the adapter on.

    Args:
        decoder: The model.
        prompts: Token ids.
        end: The end-of-turn token: a reply stops before it.
        tokens: Most tokens of a reply.

    Returns:
        Token ids per prompt, in order.
    """
    replies: list[tuple[int, ...]] = [()] * len(prompts)
    open_ones = list(range(len(prompts)))
    for _ in range(tokens):
        asked = [[_next(str(i), prompts[i], replies[i])] for i in open_ones]
        found: dict[int, int] = {}
        for row in pack(asked, ROW):
            with torch.no_grad():
                states, targets = decoder.target_states(row)
                likeliest = decoder.head.logits(states).argmax(dim=-1).tolist()
            for owner, token in zip(targets.owners.tolist(), likeliest, strict=True):
                found[int(row.samples[owner].key)] = token
        open_ones = [i for i in open_ones if found[i] != end]
        for i in open_ones:
            replies[i] += (found[i],)
        if not open_ones:
            break
    return replies


def _next(key: str, prompt: tuple[int, ...], reply: tuple[int, ...]) -> Sample:
    """A sample whose only weighted token is the one to come; its id is never read."""
    return Sample(key, "twin", prompt, (*reply, 0), (*(0.0,) * len(reply), 1.0))
