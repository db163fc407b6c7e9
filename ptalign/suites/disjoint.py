"""Keeps evaluation prompts away from what was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ptalign.nouns import PairSet
from ptalign.suites.base import Prompt

if TYPE_CHECKING:
    from ptalign.text.embed import Embedder

MAX_COSINE = 0.9
"""MiniLM similarity above which two requests ask for the same thing."""


def training_texts(pairs: PairSet) -> list[str]:
    """Every request that training or its retention check saw."""
    texts = {pair.instruction for pair in pairs.pairs}
    texts |= {anchor.instruction for anchor in pairs.anchors}
    return sorted(texts)


def far_from(
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    *,
    embed: Embedder | None = None,
    max_cosine: float = MAX_COSINE,
) -> list[Prompt]:
    """The prompts whose nearest text is less similar than `max_cosine`.

    Args:
        prompts: Candidates, in order.
        texts: What they must not resemble.
        embed: Texts to unit rows ``[n, d]``; the packaged MiniLM unless given.
        max_cosine: Cosine similarity from which a prompt is left out.
    """
    if not prompts or not texts:
        return list(prompts)
    if embed is None:
        from ptalign.text.embed import default_embedder

        embed = default_embedder()
    near = embed([p.instruction for p in prompts]) @ embed(texts).T  # [prompts, texts]
    return [p for p, best in zip(prompts, near.max(axis=1), strict=True) if best < max_cosine]
