"""The model as the step sees it: hidden states of a row, and the frozen head."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ptalign.errors import TrainingFailed, Unsupported, out_of_memory
from ptalign.losses import Head, margins
from ptalign.training.attention import attending, spans_of, use_tree_attention
from ptalign.training.fused import Swap, fused, swaps_of
from ptalign.training.texts import Sample
from ptalign.training.tree import Row, Targets, inputs_of, pack, targets_of

Layout = Literal["tree", "padded"]

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest relative difference of hidden states between a row and its samples run alone."""


def positions_of(config: Any) -> int:
    """How many positions a model of this text configuration has; no limit where none is said.

    Learned positions end there, and ones that rotate were trained no further. Where those are
    scaled they reach further than the number, each kind in its own way: no limit.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope] if "rope_type" in rope else rope.values()  # of all layers, or of each kind
    if any(isinstance(k, dict) and k.get("rope_type", "default") != "default" for k in kinds):
        return sys.maxsize
    return getattr(config, "max_position_embeddings", None) or sys.maxsize


class Decoder:
    """A causal language model, with or without an adapter, split into backbone and head.

    Attributes:
        layout: How rows are run: as a tree, or padded where the model's attention cannot take
            a tree's mask.
        reason: Why the layout is not a tree; empty when it is.
        positions: How many tokens of a sample the model takes.
    """

    def __init__(self, causal_lm: Any, peft_model: Any = None) -> None:
        self.causal_lm = causal_lm
        self.peft = peft_model
        self.config = causal_lm.config.get_text_config()
        self.positions = positions_of(self.config)
        self.backbone = causal_lm.base_model
        self.device = next(causal_lm.parameters()).device
        self.dtype = next(causal_lm.parameters()).dtype
        self.layout: Layout = "tree"
        self.reason = ""
        self.head = head_of(causal_lm)
        self._by_span = use_tree_attention(causal_lm)
        self._swaps: list[Swap] = [] if peft_model is None else swaps_of(peft_model)

    def hidden(self, row: Row) -> Tensor:
        """Last hidden states.

        Returns:
            [nodes, hidden] in the order of `row.tokens` for a tree; [samples * length, hidden]
            for the padded layout (see `flat_nodes`).
        """
        if self.layout == "padded":
            return self._run(self._padded_inputs(row))
        seen = row.ancestry()  # [nodes, nodes]
        inputs = self._tree_inputs(row, seen)
        if not self._by_span:
            return self._run(inputs)
        with attending(spans_of(row, seen, self.device)):
            return self._run(inputs)

    def _run(self, inputs: dict[str, Any]) -> Tensor:
        with fused(self._swaps):
            states: Tensor = self.backbone(use_cache=False, **inputs).last_hidden_state
        return states.flatten(0, 1)

    def margins(self, row: Row) -> tuple[Tensor, Targets]:
        """Margins of the row's targets, [targets], and what they belong to."""
        states, targets = self.target_states(row)
        return margins(states, targets.tokens, self.head), targets

    def target_states(self, row: Row) -> tuple[Tensor, Targets]:
        """Hidden states [targets, hidden] that predict the row's targets."""
        targets = targets_of(row, self.device)
        nodes = targets.nodes if self.layout == "tree" else self._flat_nodes(row)
        return self.hidden(row)[nodes], targets

    @contextlib.contextmanager
    def bare(self) -> Iterator[None]:
        """The model without its adapter."""
        if self.peft is None:
            yield
            return
        with self.peft.disable_adapter():
            yield

    @contextlib.contextmanager
    def dropping(self) -> Iterator[None]:
        """The adapter's dropout on, as in a training step; measurements never drop anything."""
        layers = [m for n, m in self.peft.named_modules() if n.endswith("lora_dropout.default")]
        for layer in layers:
            layer.train()
        yield
        for layer in layers:
            layer.eval()

    def settle(self, samples: list[Sample]) -> None:
        """Checks head and tree on real samples, and falls back to padded rows with a reason.

        Args:
            samples: A few that share prompts; run as a tree and alone.

        Raises:
            TrainingFailed: The model's own hidden states are not finite.
            Unsupported: Head or padded rows do not reproduce the model's own numbers.
        """
        rows = pack([samples], 10**9)
        if not rows:
            return
        with torch.no_grad():
            kind = type(self.causal_lm).__name__
            alone = self._alone(rows[0])
            if not all(bool(states.isfinite().all()) for states in alone):
                raise TrainingFailed(
                    f"{kind}: its hidden states are not finite before the first step; its weights, "
                    "or those of the parent adapter, are damaged or overflow in its dtype"
                )
            gap = self._gap(rows[0], alone)
            if not gap <= TOLERANCE[self.dtype]:  # NaN is over it too
                self.layout = "padded"
                self.reason = f"{kind}: a tree's mask changes hidden states by {gap:.1e}"
                if not self._gap(rows[0], alone) <= TOLERANCE[self.dtype]:
                    raise Unsupported(f"{kind}: padded rows change its hidden states")
            self._check_head(samples[0], alone[0])

    def _gap(self, row: Row, alone: list[Tensor]) -> float:
        try:
            states, targets = self.target_states(row)
        except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
            if out_of_memory(error):  # it says nothing of the layout
                raise
            if self.layout == "padded":
                raise Unsupported(
                    f"{type(self.causal_lm).__name__} cannot be run: {type(error).__name__}"
                ) from error
            return float("inf")
        want = torch.cat(alone)
        if len(want) != len(targets.nodes):
            return float("inf")
        return float((states - want).abs().max() / want.abs().max().clamp_min(1e-6))

    def _alone(self, row: Row) -> list[Tensor]:
        """Per sample: hidden states of its targets from a plain forward pass."""
        found = []
        for sample in row.samples:
            ids = torch.tensor([inputs_of(sample)], device=self.device)  # [1, length]
            states = self.backbone(input_ids=ids, use_cache=False).last_hidden_state[0]
            start = len(sample.prompt) - 1
            keep = [start + i for i in sample.places]
            found.append(states[keep])
        return found

    def _check_head(self, sample: Sample, states: Tensor) -> None:
        """The head must reproduce the model's own logits: a scale it does not know is refused."""
        ids = torch.tensor([inputs_of(sample)], device=self.device)
        start = len(sample.prompt) - 1
        keep = [start + i for i in sample.places[:4]]
        own = self.causal_lm(input_ids=ids, use_cache=False).logits[0, keep].float()
        gap = float((self.head.logits(states[:4]) - own).abs().max() / own.abs().max())
        if not gap <= TOLERANCE[self.dtype]:
            raise Unsupported(
                f"{type(self.causal_lm).__name__}: its logits are not a linear head with a known "
                f"scale and soft-cap (they differ by {gap:.1e})"
            )

    def _tree_inputs(self, row: Row, ancestry: np.ndarray) -> dict[str, Any]:
        depths = torch.tensor([row.depths], device=self.device)  # [1, nodes]
        seen = torch.from_numpy(ancestry).to(self.device)  # [nodes, nodes]
        return {
            "input_ids": torch.tensor([row.tokens], device=self.device),
            "position_ids": depths,
            "attention_mask": self._masks(seen, depths[0]),
        }

    def _masks(self, seen: Tensor, depths: Tensor) -> Tensor | dict[str, Tensor]:
        """A [1, 1, nodes, nodes] additive mask, or one per layer type where they differ."""
        full = _additive(seen, self.dtype)
        window = getattr(self.config, "sliding_window", None)
        if not window or int(depths.max()) < window or not _slides(self.config):
            return full
        near = depths[:, None] - depths[None, :] < window  # [nodes, nodes]
        slide = _additive(seen & near, self.dtype)
        if not getattr(self.config, "layer_types", None):
            return slide
        return {"full_attention": full, "sliding_attention": slide}

    def _padded_inputs(self, row: Row) -> dict[str, Any]:
        ids = [list(inputs_of(s)) for s in row.samples]
        length = max(map(len, ids))
        padded = [i + [0] * (length - len(i)) for i in ids]
        mask = [[1] * len(i) + [0] * (length - len(i)) for i in ids]
        return {
            "input_ids": torch.tensor(padded, device=self.device),  # [samples, length]
            "attention_mask": torch.tensor(mask, device=self.device),
        }

    def _flat_nodes(self, row: Row) -> Tensor:
        """[targets] places of the targets in a flattened padded batch."""
        length = max(len(inputs_of(s)) for s in row.samples)
        places = [
            owner * length + len(s.prompt) - 1 + i
            for owner, s in enumerate(row.samples)
            for i in s.places
        ]
        return torch.tensor(places, dtype=torch.long, device=self.device)


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[None, None]


def _slides(config: Any) -> bool:
    types = getattr(config, "layer_types", None)
    if types:
        return "sliding_attention" in types
    return bool(getattr(config, "use_sliding_window", True))


def head_of(causal_lm: Any) -> Head:
    """The frozen output head of a causal language model.

    Raises:
        Unsupported: It has none, or an adapter sits on it.
    """
    layer = causal_lm.get_output_embeddings()
    kind = type(causal_lm).__name__
    if layer is None or not isinstance(getattr(layer, "weight", None), Tensor):
        raise Unsupported(f"{kind} has no linear output head")
    if hasattr(layer, "lora_A") or layer.weight.requires_grad:
        raise Unsupported(f"{kind}: the output head is trained; leave it out of target_modules")
    config = causal_lm.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    bias = getattr(layer, "bias", None)
    return Head(
        weight=layer.weight.detach().float(),
        bias=None if bias is None else bias.detach().float(),
        softcap=getattr(config, "final_logit_softcapping", None),
        scale=scale,
    )
