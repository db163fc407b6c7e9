"""Which topic a text is about, by embedding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ptalign.nouns import Topic
from ptalign.text.embed import Embedder, Vectors


class TopicIndex:
    """Nearest topic of a text.

    A topic's vector is the mean of its title and its examples; similarity is the larger of the
    cosine with that mean and with the closest single example.
    """

    def __init__(self, topics: Sequence[Topic], embed: Embedder) -> None:
        self.topics = tuple(topics)
        self._embed = embed
        self._rows: Vectors | None = None
        self._owner = np.zeros(0, dtype=np.intp)

    def nearest(self, texts: Sequence[str]) -> list[tuple[Topic, float]]:
        """The nearest topic of each text and its cosine similarity."""
        if self._rows is None:
            self._build()
        similar = self._embed(texts) @ self._rows.T  # type: ignore[union-attr]
        best = similar.argmax(axis=1)
        return [
            (self.topics[self._owner[b]], float(row[b]))
            for row, b in zip(similar, best, strict=True)
        ]

    def _build(self) -> None:
        rows, owner = [], []
        for i, topic in enumerate(self.topics):
            vectors = self._embed((topic.title, *topic.examples))
            mean = vectors.mean(axis=0)
            rows += [mean / max(float(np.linalg.norm(mean)), 1e-9), *vectors]
            owner += [i] * (len(vectors) + 1)
        self._rows = np.stack(rows).astype(np.float32)
        self._owner = np.array(owner)
