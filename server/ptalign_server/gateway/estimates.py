"""What a call would cost on this machine, before it is made."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ptalign.nouns import ModelSpec

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Of a parameter."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a call would cost on this profile."""

    seconds: float
    memory_bytes: int
    disk_bytes: int
    basis: str


def of_generation(model: ModelSpec, drafts: float, tokens: int, basis: str) -> Estimate:
    """Cost of generating `drafts` completions of at most `tokens` tokens each.

    `basis` says how `drafts` was counted, and is added to the explanation.
    """
    size = weights_bytes(model)
    rate = 96 * 538e6 / max(size, 1e6)
    return Estimate(
        seconds=drafts * tokens * 0.8 / rate,
        memory_bytes=int(size * 1.2 + 2.4e9),
        disk_bytes=int(drafts * tokens * 8),
        basis=f"96 tokens/s for a 135M model on two cores, scaled by weights; {basis}",
    )


def weights_bytes(model: ModelSpec, loaded: int = 0) -> int:
    """Size of the model's weights: of its files, or with so many bytes a parameter."""
    if model.weights_digest:
        return _bytes_of(model.path, loaded, model.weights_digest)
    return _bytes_now(model.path, loaded)


@lru_cache(maxsize=64)
def _bytes_of(path: str, loaded: int, weights_digest: str) -> int:
    """Looked up once for each digest: listing the folder took 6 % of the time of a busy server."""
    return _bytes_now(path, loaded)


def _bytes_now(path: str, loaded: int) -> int:
    return sum(_file_bytes(file, loaded) for file in Path(path).glob("*.safetensors"))


def _file_bytes(file: Path, loaded: int) -> int:
    with contextlib.suppress(SafetensorError):
        if loaded:
            with safe_open(file, "np") as tensors:  # its header alone is read
                shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
            return loaded * sum(map(math.prod, shapes))
    return file.stat().st_size
