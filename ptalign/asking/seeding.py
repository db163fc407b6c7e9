"""Seeds of the operator's own, and excerpts of chat logs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ptalign.text.cluster import representatives
from ptalign.text.embed import Embedder
from ptalign.text.normalise import plain
from ptalign.text.redact import redact


@dataclass(frozen=True, slots=True)
class Seed:
    """A text that did not come from the model."""

    text: str
    source: Literal["seed", "excerpt"]
    unfit: str = ""
    """Why it cannot be taken, whatever was taken before; empty where it can."""


def seed_drafts(
    seeds: Sequence[str], excerpts: Sequence[str], embed: Embedder, unfit: Callable[[str], str]
) -> list[Seed]:
    """Seeds in order, one representative per cluster of excerpts, then the excerpts that are unfit.

    An unfit excerpt is in no cluster: it would take those with it that it stands for.

    Args:
        seeds: The operator's own.
        excerpts: Redacted before they are embedded, also when the caller did it already.
        embed: What tells which are alike.
        unfit: Why a text in plain form cannot be taken; empty where it can.
    """
    drafts = [Seed(text, "seed", unfit(text)) for text in map(plain, seeds)]
    clean = [plain(redact(text)[0]) for text in excerpts]
    read = [Seed(text, "excerpt", unfit(text)) for text in clean]
    fit = [seed for seed in read if not seed.unfit]
    drafts += [fit[i] for i in representatives([seed.text for seed in fit], embed)]
    return drafts + [seed for seed in read if seed.unfit]
