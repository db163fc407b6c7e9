"""Pairs and twins that are kept from training, to measure on what the adapter never saw.

See docs/adr/0013.
"""

from __future__ import annotations

import hashlib

from ptalign.nouns import InstructionSet

FEWEST = 24
"""Twins asked for: below this every one is needed for training."""
READ = 8
"""Pairs that would be held out: with fewer, too few are left to read harm words in."""


class HeldOut:
    """Says which accepted pairs are kept from training.

    An id decides, so that a set that is refined, extended or merged marks the same ones again:
    what an adapter was not trained on stays unseen by those that continue it. Positive-only pairs
    are all trained on.

    Args:
        instructions: What is answered.
        share: Of the polarised pairs and of the twins, in 0..1.
    """

    def __init__(self, instructions: InstructionSet, share: float) -> None:
        both = sum(record.sides == "both" for record in instructions.harmful)
        enough = {"pair": share * both >= READ, "twin": len(instructions.twins) >= FEWEST}
        self._spared = {kind for kind, spared in enough.items() if spared}
        self._share = share

    def holds(self, pair_id: str, kind: str) -> bool:
        """Whether the pair of this id and kind is kept from training."""
        return kind in self._spared and _fraction(pair_id) < self._share


def _fraction(key: str) -> float:
    """A number in 0..1 that looks random and is the same everywhere."""
    digest = hashlib.sha256(f"held out/{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
