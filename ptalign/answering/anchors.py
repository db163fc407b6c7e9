"""Anchors: benign instructions with the model's own answers, which keep the model what it is."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from ptalign.answering.validity import refuses
from ptalign.config import PairConfig
from ptalign.engines.base import Completion, Message, Request
from ptalign.nouns import Anchor, ModelSpec, record_id
from ptalign.policies import benign_instructions
from ptalign.text.embed import Embedder
from ptalign.text.normalise import plain
from ptalign.text.sentences import cut_at_last_sentence

TEMPERATURE = 0.3
"""Low: an anchor is what the model would mostly say."""

MAX_SIMILARITY = 0.7
"""Cosine with an instruction of the set above which a benign one is no anchor."""

SPARE = 1.25
"""Anchors asked for over those wanted, since some answers do not end properly."""


def anchor_requests(
    config: PairConfig,
    model: ModelSpec,
    taken: Sequence[str],
    known: Collection[str],
    embed: Embedder,
) -> Iterator[tuple[tuple[str, bool], Request]]:
    """(instruction, held out) and the request for each anchor that is still owed.

    Args:
        config: How many, which share is held out, how long.
        model: Its system prompt applies.
        taken: Instructions of the set: anchors keep away from them.
        known: Ids of anchors accepted before.
        embed: Sentence embedder.
    """
    if not config.anchors:
        return
    wanted = benign_instructions()[: round(config.anchors * SPARE)]
    apart = _apart(wanted, taken, embed)
    system = (Message("system", model.system_prompt),) if model.system_prompt else ()
    for i, text in enumerate(wanted):
        if text not in apart or anchor_id(text) in known:
            continue
        held_out = int((i + 1) * config.held_out_share) > int(i * config.held_out_share)
        yield (
            (text, held_out),
            Request(
                key=f"anchor-{i}",
                messages=(*system, Message("user", text)),
                max_tokens=config.max_tokens,
                temperature=TEMPERATURE,
                top_p=config.top_p,
            ),
        )


def anchor_of(instruction: str, completion: Completion, *, held_out: bool) -> Anchor | None:
    """The anchor a completion makes; None when it refuses or has no whole sentence."""
    text = plain(completion.text)
    answer = text if completion.finish == "stop" else cut_at_last_sentence(text)
    if len(answer.split()) < 2 or refuses(answer):
        return None
    return Anchor(
        id=anchor_id(instruction), instruction=instruction, answer=answer, held_out=held_out
    )


def anchor_id(instruction: str) -> str:
    """Deterministic in the instruction."""
    return record_id("anchor", instruction)


def _apart(wanted: Sequence[str], taken: Sequence[str], embed: Embedder) -> set[str]:
    """The wanted texts that are not close to any taken one."""
    if not taken:
        return set(wanted)
    nearest = (embed(wanted) @ embed(taken).T).max(axis=1)
    return {text for text, near in zip(wanted, nearest, strict=True) if near <= MAX_SIMILARITY}
