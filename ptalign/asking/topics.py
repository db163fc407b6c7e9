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
        self._starts: list[int] = []
        """Where each topic's rows begin."""

    def nearest(self, texts: Sequence[str]) -> list[tuple[Topic, float]]:
        """The nearest topic of each text and its cosine similarity."""
        found = []
        for row in self.similar(texts):
            best = int(row.argmax())
            found.append((self.topics[best], float(row[best])))
        return found

    def similar(self, texts: Sequence[str]) -> Vectors:
        """The cosine similarity of each text (rows) with each topic (columns)."""
        if self._rows is None:
            self._rows = self._build()
        every = self._embed(texts) @ self._rows.T
        return np.maximum.reduceat(every, self._starts, axis=1)

    def _build(self) -> Vectors:
        rows: list[Vectors] = []
        for topic in self.topics:
            vectors = self._embed((topic.title, *topic.examples))
            mean = vectors.mean(axis=0)
            self._starts.append(len(rows))
            rows += [mean / max(float(np.linalg.norm(mean)), 1e-9), *vectors]
        return np.stack(rows).astype(np.float32)
