"""What a twin teaches: to stay as it is where the bare model answers, to answer where it refuses.

A twin's answer was written under constraints, as a demonstration. Its likelihood teaches that
manner along with the willingness, which is most of the drift that training causes. Where the bare
model answers its twins anyway there is nothing to teach: KL(bare || adapted) along the answer pulls
nowhere until a refusal begins to. See docs/adr/0017.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ptalign.config import AlignConfig
from ptalign.training.batches import Pools
from ptalign.training.decoder import Decoder
from ptalign.training.refusals import Declines, refused
from ptalign.training.texts import ChatFormat, Sample

ASKED = 24
"""Twins that the bare model is asked before training, and the adapted one at the end."""
REFUSES = 0.1
"""Share of them above which a model is taught to answer twins."""


def settled(
    plan: Pools, decoder: Decoder, chat: ChatFormat, config: AlignConfig, declines: Declines
) -> Pools:
    """Pools whose twins are kept or taught, with what the bare model says to the twins asked.

    Args:
        plan: From `make_pools`.
        decoder: Asked with its adapter off.
        chat: Decodes.
        config: Its `twins` may say which; "auto" goes by the share that the bare model refuses.
        declines: Whether the beginning of a reply declines.
    """
    asked = plan.asked[:ASKED]
    with decoder.bare():
        before = refused(decoder, chat, asked, declines)
    plan = replace(plan, asked=asked, asked_before=before)
    if config.twins == "teach" or (config.twins == "auto" and sum(before) > REFUSES * len(before)):
        return plan
    return replace(plan, twins=[tuple(replace(s, part="kept") for s in g) for g in plan.twins])


def heavier(groups: Sequence[tuple[Sample, ...]], weight: float) -> list[tuple[Sample, ...]]:
    """The groups with the tokens of taught twins at this weight; a kept twin's term has its own."""

    def of(sample: Sample) -> Sample:
        if sample.part != "twin" or weight == 1:
            return sample
        return sample.weighted([weight * w for w in sample.weights])

    return [tuple(map(of, group)) for group in groups]
