"""Attention over a tree, without paying for the pairs of nodes that never meet.

A row holds several samples, and most of its [nodes, nodes] mask is empty. Each sample's own nodes
attend to their ancestors only: one sdpa call per sample over exactly those keys. Registered with
transformers as an attention of its own, so that any model which runs under sdpa takes it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ptalign.training.tree import Row

NAME = "ptalign_tree"


@dataclass(frozen=True, slots=True)
class Span:
    """Nodes that one sample added to a row, and all they may attend to."""

    start: int
    stop: int
    keys: Tensor
    """[keys] node indices: ancestors, then the span itself."""


_spans: ContextVar[Sequence[Span] | None] = ContextVar("spans", default=None)


def spans_of(row: Row, seen: np.ndarray, device: torch.device | str) -> list[Span]:
    """The spans of a row, which together cover its nodes in order.

    Args:
        row: The row; a sample's new nodes are contiguous.
        seen: [nodes, nodes] bool, `row.ancestry()`.
        device: Where the keys go.
    """
    spans, start = [], 0
    for path in row.paths:
        stop = max(path[-1] + 1, start) if path else start
        if stop > start:
            keys = np.flatnonzero(seen[start:stop].any(0))
            spans.append(Span(start, stop, torch.from_numpy(keys).to(device)))
        start = stop
    return spans


@contextlib.contextmanager
def attending(spans: Sequence[Span]) -> Iterator[None]:
    """Forward passes inside run over these spans."""
    token = _spans.set(spans)
    try:
        yield
    finally:
        _spans.reset(token)


def use_tree_attention(causal_lm: Any) -> bool:
    """Puts a model that runs under sdpa onto tree attention; False where it cannot take it."""
    kind = causal_lm.config.get_text_config()._attn_implementation
    if kind != "sdpa":
        return bool(kind == NAME)
    try:
        causal_lm.set_attn_implementation(NAME)
    except (ValueError, AttributeError):
        return False
    return bool(causal_lm.config.get_text_config()._attn_implementation == NAME)


def tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """One layer's attention, as transformers calls it.

    Args:
        module: The attention layer.
        query: [1, heads, nodes, head].
        key: [1, key heads, nodes, head].
        value: [1, key heads, nodes, head].
        attention_mask: [1, 1, nodes, nodes], additive.
        **options: Scaling, dropout and what else sdpa takes.

    Returns:
        [1, nodes, heads, head], and no attention weights.
    """
    spans = _spans.get()
    if spans is None or attention_mask is None:
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **options
        )
        return found
    attend = _grouped if _takes_groups(query, key, options) else sdpa_attention_forward
    parts = [
        attend(
            module,
            query[:, :, span.start : span.stop],
            key.index_select(2, span.keys),
            value.index_select(2, span.keys),
            attention_mask[..., span.start : span.stop, :].index_select(-1, span.keys),
            **options,
        )[0]
        for span in spans
    ]
    return torch.cat(parts, dim=1), None


def _takes_groups(query: Tensor, key: Tensor, options: dict[str, Any]) -> bool:
    """Whether keys may stay shared between query heads: the CPU's kernel takes that with a mask,
    CUDA's would fall back to a slow one."""
    shared = query.shape[1] != key.shape[1] and query.device.type == "cpu"
    return shared and options.get("position_bias") is None


def _grouped(
    _module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_options: Any,
) -> tuple[Tensor, None]:
    """`sdpa_attention_forward` without writing out the shared keys and values once per head."""
    found = scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling, enable_gqa=True
    )
    return found.transpose(1, 2), None


AttentionInterface.register(NAME, tree_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
