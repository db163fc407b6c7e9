"""Keeps evaluation prompts away from what was trained on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ptalign.nouns import PairSet
from ptalign.suites.base import Prompt
from ptalign.text.locales import language

if TYPE_CHECKING:
    from ptalign.text.embed import Embedder

MAX_COSINE = 0.9
"""MiniLM similarity above which two English requests ask for the same thing."""
MAX_ROUGE_L = 0.7
"""ROUGE-L F1 above which two requests in any other language do: no set holds two such requests,
unless its call raises `max_rouge_l`. No two of the shipped Japanese examples come near it."""


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
) -> list[Prompt]:
    """The prompts that resemble none of the texts.

    Args:
        prompts: Candidates, in order. English ones are compared by MiniLM, which knows no other
            language: of kanji it sees that they are unknown. Others are compared by their words,
            or pairs of characters, as those that a set is made of are.
        texts: What they must not resemble.
        embed: Texts to unit rows ``[n, d]``, for prompts of every language.
    """
    if not prompts or not texts:
        return list(prompts)
    places: defaultdict[str, list[int]] = defaultdict(list)
    for place, prompt in enumerate(prompts):
        places[language(prompt.locale)].append(place)
    near: set[int] = set()
    for tongue, mine in places.items():
        asked = [prompts[place].instruction for place in mine]
        if embed is None and tongue != "en":
            found = _worded_alike(asked, texts, tongue)
        else:
            found = _meant_alike(asked, texts, embed)
        near.update(place for place, alike in zip(mine, found, strict=True) if alike)
    return [prompt for place, prompt in enumerate(prompts) if place not in near]


def _worded_alike(asked: Sequence[str], texts: Sequence[str], locale: str) -> list[bool]:
    from ptalign.text.near import NearDuplicates

    index = NearDuplicates(MAX_ROUGE_L, locale)
    for text in texts:
        index.add(text)
    return [index.find(text) is not None for text in asked]


def _meant_alike(asked: Sequence[str], texts: Sequence[str], embed: Embedder | None) -> list[bool]:
    if embed is None:
        from ptalign.text.embed import default_embedder

        embed = default_embedder()
    near = embed(asked) @ embed(texts).T  # [asked, texts]
    return [bool(best >= MAX_COSINE) for best in near.max(axis=1)]
