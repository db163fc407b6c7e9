"""How varied a set of texts is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from ptalign.text.embed import Vectors
from ptalign.text.near import tokens

BLOCK = 1024
"""Texts that are compared with all others at a time: bounds the memory of the products."""


def normalised_entropy(labels: Iterable[str], cells: int) -> float:
    """Shannon entropy of the labels over log(cells): 1 is an even spread over all cells."""
    counts = Counter(labels)
    total = sum(counts.values())
    if total == 0 or cells < 2:
        return 1.0 if total else 0.0
    entropy = -sum(n / total * math.log(n / total) for n in counts.values())
    return entropy / math.log(cells)


def distinct_n(texts: Sequence[str], n: int, locales: Sequence[str]) -> float:
    """Share of different n-grams among all n-grams (Li et al., 2016).

    Args:
        texts: All of a set.
        n: Tokens of a gram.
        locales: One for each text.
    """
    grams: Counter[tuple[str, ...]] = Counter()
    for text, locale in zip(texts, locales, strict=True):
        words = tokens(text, locale)
        grams.update(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    total = sum(grams.values())
    return len(grams) / total if total else 0.0


def vendi_score(vectors: Vectors) -> float:
    """Effective number of different texts, 1..n (Friedman & Dieng, 2023, order 1).

    The exponential of the entropy of the eigenvalues of K / n, K the cosine similarities. They
    are taken from the smaller of the two Gram matrices: cost n * min(n, dimensions)^2.
    """
    n, dimensions = vectors.shape
    if n == 0:
        return 0.0
    wide = vectors.astype(np.float64)
    gram = wide @ wide.T if n <= dimensions else wide.T @ wide
    values = np.linalg.eigvalsh(gram / n)
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def nearest_distances(vectors: Vectors) -> np.ndarray:
    """Cosine distance of each text to its nearest other one, shape [n]; 1 when alone."""
    n = len(vectors)
    nearest = np.ones(n, dtype=np.float32)
    for start in range(0, n, BLOCK):
        similar = vectors[start : start + BLOCK] @ vectors.T
        similar[np.arange(len(similar)), np.arange(start, start + len(similar))] = -1.0
        if n > 1:
            nearest[start : start + BLOCK] = 1.0 - similar.max(axis=1)
    return nearest
