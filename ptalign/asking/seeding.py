"""Seeds of the operator's own, and excerpts of chat logs."""

from __future__ import annotations

from collections.abc import Sequence
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


def seed_drafts(seeds: Sequence[str], excerpts: Sequence[str], embed: Embedder) -> list[Seed]:
    """Seeds in order, then one representative per cluster of excerpts.

    Excerpts are redacted before they are embedded, also when the caller did it already.
    """
    drafts = [Seed(plain(text), "seed") for text in seeds]
    clean = [plain(redact(text)[0]) for text in excerpts]
    drafts += [Seed(clean[i], "excerpt") for i in representatives(clean, embed)]
    return drafts
