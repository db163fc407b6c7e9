"""Anchors: benign instructions with the model's own answers, which keep the model what it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ptalign.answering.validity import loops, refuses
from ptalign.answering.work import AnchorDraft
from ptalign.config import PairConfig
from ptalign.engines.base import Completion, Message, Request
from ptalign.nouns import Anchor, ModelSpec, Policy, record_id
from ptalign.policies import benign_instructions, benign_language
from ptalign.policies.never import blocked
from ptalign.text.embed import Embedder
from ptalign.text.near import written_words

TEMPERATURE = 1.0
"""The model's own distribution: likelihood on its samples estimates KL(bare || tuned). Likelier
ones would sharpen the model (ADR 0009)."""

MAX_SIMILARITY = 0.7
"""Cosine with an instruction of the set above which a benign one is no anchor."""

SPARE = 1.25
"""Anchors asked for over those wanted, since some answers loop or refuse."""


SEED_STRIDE = 37
"""Benign instructions between the first anchors of two neighbouring seeds."""


def anchor_drafts(
    config: PairConfig, taken: Sequence[str], embed: Embedder, locale: str = "en"
) -> Iterator[AnchorDraft]:
    """The anchors to ask for, in order; the same ones each time that the seed is the same.

    Where more are wanted than there are benign instructions, these are answered again and again:
    another answer at temperature 1 is another sample. A held-out one is held out each time, and
    under each seed: its place in the whole list decides.

    Args:
        config: How many, which share is held out, and with the seed where in the list to begin.
        taken: Instructions of the set: anchors keep away from them.
        embed: Sentence embedder.
        locale: Of the set: anchors are in its language where ptalign has ordinary requests in it.
    """
    pool = benign_instructions(locale)
    first = SEED_STRIDE * config.seed % len(pool)
    count = round(config.anchors * SPARE)
    wanted = (pool[first:] + pool[:first])[:count]
    apart = _apart(wanted, taken, embed)
    share = config.held_out_share
    for number in range(count):
        take, i = divmod(number, len(wanted))
        if wanted[i] in apart:
            place = (first + i) % len(pool)
            held_out = int((place + 1) * share) > int(place * share)
            yield AnchorDraft(wanted[i], held_out=held_out, take=take)


def inherited_anchors(
    given: Sequence[Anchor], policy: Policy, taken: Sequence[str], embed: Embedder
) -> list[Anchor]:
    """A parent's anchors that may stay: not on the never-synthesize list, away from `taken`."""
    fit = [a for a in given if not any(blocked(t, policy) for t in (a.instruction, a.answer))]
    apart = _apart([a.instruction for a in fit], taken, embed)
    return [a for a in fit if a.instruction in apart]


def anchor_request(key: str, draft: AnchorDraft, config: PairConfig, model: ModelSpec) -> Request:
    """A chat turn with the model's own system prompt."""
    system = (Message("system", model.system_prompt),) if model.system_prompt else ()
    return Request(
        key=key,
        messages=(*system, Message("user", draft.instruction)),
        max_tokens=config.max_tokens,
        temperature=TEMPERATURE,
        min_p=0.0,
    )


def anchor_of(draft: AnchorDraft, completion: Completion, locale: str = "en") -> Anchor | None:
    """The anchor a completion makes, word for word; None when it refuses, loops or says nothing.

    An answer that was cut by its length stays as it is, without an end.
    """
    answer = completion.text.strip()
    language = benign_language(locale)
    if len(written_words(answer, language)) < 2 or refuses(answer) or loops(answer, language):
        return None
    return Anchor(
        id=anchor_id(draft.instruction, draft.take),
        instruction=draft.instruction,
        answer=answer,
        held_out=draft.held_out,
        ended=completion.finish == "stop",
    )


def anchor_id(instruction: str, take: int = 0) -> str:
    """Deterministic in the instruction and which of its answers this is, from 0."""
    return record_id("anchor", instruction if not take else f"{instruction}\n{take}")


def _apart(wanted: Sequence[str], taken: Sequence[str], embed: Embedder) -> set[str]:
    """The wanted texts that are not close to any taken one."""
    if not taken or not wanted:
        return set(wanted)
    nearest = (embed(wanted) @ embed(taken).T).max(axis=1)
    return {text for text, near in zip(wanted, nearest, strict=True) if near <= MAX_SIMILARITY}
