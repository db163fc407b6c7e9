"""What a twin teaches: to stay as it is where the bare model answers, to answer where it refuses.

A twin's answer was written under constraints, as a demonstration. Its likelihood teaches that
manner along with the willingness, which is most of the drift that training causes. Where the bare
model answers its twins anyway there is nothing to teach: KL(bare || adapted) along the answer only
holds what a refusal, or anything else, would move. See docs/adr/0017.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ptalign.config import AlignConfig
from ptalign.training.batches import Pools
from ptalign.training.decoder import Decoder
from ptalign.training.refusals import Declines, refused
from ptalign.training.texts import ChatFormat

ASKED_BEFORE = 24
"""Twins that the bare model is asked before training, and the adapted one at the end."""
ASKED_DURING = 8
"""Of those, the twins that it is asked every few steps (`ptalign.training.loop`). Where fewer are
held out trained ones are asked too: of three, one refused by chance would be over a limit of .25
(ADR 0017)."""
REFUSES = 0.1
"""Share of them above which a model is taught to answer twins."""


def ask(plan: Pools, decoder: Decoder, chat: ChatFormat, declines: Declines) -> list[bool]:
    """Whether the bare model refuses each of the first twins that are asked, none where none are.

    Args:
        plan: From `make_pools`.
        decoder: Asked with its adapter off.
        chat: Decodes.
        declines: Whether the beginning of a reply declines.
    """
    with decoder.bare():
        asked = plan.asked[:ASKED_BEFORE]
        return refused(decoder, chat, asked, declines, plan.asked_tokens)


def settled(plan: Pools, before: Sequence[bool], config: AlignConfig) -> Pools:
    """Pools whose twins are kept, taught or, where a step draws none, left out.

    Args:
        plan: From `make_pools`.
        before: What `ask` found.
        config: Its `twins` may say which; "auto" goes by the share that the bare model refuses.
    """
    plan = replace(plan, asked=plan.asked[: len(before)], asked_before=before)
    if not config.twins_per_step:
        return replace(plan, twins=())
    if config.twins == "teach" or (config.twins == "auto" and sum(before) > REFUSES * len(before)):
        return plan
    return replace(plan, twins=[tuple(replace(s, part="kept") for s in g) for g in plan.twins])
