"""LoRA layers and gated MLPs whose backward passes are written by hand.

PEFT's layer is a chain of small operations, and autograd walks it back tensor by tensor: scaling
the update, adding it, scaling its gradient and adding that each read and write whole activations.
Here the rank-r products are accumulated straight into the outputs of the frozen ones. A gated MLP
keeps the outputs of its two branches only and makes the rest again in its backward pass, which
takes two of the six widest activations of a layer out of memory.

Layers are swapped in for the length of a forward pass, so the model stays as PEFT built it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from ptalign.losses.head import chunks

CHUNK = 64
"""Rows of an MLP's backward pass whose intermediate values stay in the caches."""
TOLERANCE = 1e-5
"""Largest relative difference between an MLP's own output and ours."""

Forward = Callable[[Tensor], Tensor]
Swap = tuple[torch.nn.Module, Forward]


@dataclass(frozen=True, slots=True)
class Lora:
    """One linear layer ``y = x W^T + b + scale (x A^T) B^T``."""

    weight: Tensor
    """[out, in], frozen."""
    bias: Tensor | None
    """[out], frozen."""
    a: Tensor
    """[rank, in]."""
    b: Tensor
    """[out, rank]."""
    scale: float

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Output [rows, out] and x A^T [rows, rank] of x [rows, in]."""
        low = x @ self.a.t()
        weight = self.weight.t()
        y = x @ weight if self.bias is None else torch.addmm(self.bias, x, weight)
        return y.addmm_(low, self.b.t(), alpha=self.scale), low

    def grads(self, x: Tensor, low: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x A^T [rows, rank], A and B."""
        dlow = (dy @ self.b).mul_(self.scale)
        return dlow, dlow.t() @ x, (low.t() @ dy).mul_(self.scale).t()

    def grad_input(self, dlow: Tensor, dy: Tensor) -> Tensor:
        """Gradient of the input, [rows, in]."""
        return (dy @ self.weight).addmm_(dlow, self.a)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, layer: Lora) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])  # [rows, in]
        y, low = layer.forward(rows)
        ctx.save_for_backward(rows, low)
        ctx.layer = layer
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        rows, low = ctx.saved_tensors
        dy = grads[0].reshape(len(rows), -1)
        dlow, da, db = ctx.layer.grads(rows, low, dy)
        if not ctx.needs_input_grad[0]:  # the first layer's input is a frozen embedding
            return None, da, db, None
        dx = ctx.layer.grad_input(dlow, dy)
        return dx.view(*grads[0].shape[:-1], -1), da, db, None


class _GatedMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layers: Sequence[Lora], *_parameters: Tensor) -> Tensor:
        gate_layer, up_layer, down_layer = layers
        rows = x.reshape(-1, x.shape[-1])  # [rows, hidden]
        gate, low_gate = gate_layer.forward(rows)  # [rows, inner], [rows, rank]
        up, low_up = up_layer.forward(rows)
        y, low_down = down_layer.forward(silu(gate).mul_(up))
        ctx.save_for_backward(rows, gate, up, low_gate, low_up, low_down)
        ctx.layers = layers
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, gate, up, low_gate, low_up, low_down = ctx.saved_tensors
        gate_layer, up_layer, down_layer = ctx.layers
        dy = grads[0].reshape(rows.shape)
        dlow = (dy @ down_layer.b).mul_(down_layer.scale)
        inner, dgate, dup = _gated_grads(gate, up, down_layer.grad_input(dlow, dy))
        _, *down = down_layer.grads(inner, low_down, dy)
        dlow_gate, *of_gate = gate_layer.grads(rows, low_gate, dgate)
        dlow_up, *of_up = up_layer.grads(rows, low_up, dup)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = gate_layer.grad_input(dlow_gate, dgate)
            dx.addmm_(dup, up_layer.weight).addmm_(dlow_up, up_layer.a)
            dx = dx.view(grads[0].shape)
        return dx, None, *of_gate, *of_up, *down


def _gated_grads(gate: Tensor, up: Tensor, dinner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """silu(gate) * up again, and the gradients of both; [rows, inner] each.

    `dinner` is overwritten. With s the sigmoid of the gate and act = s * gate, the slope of silu
    is s + act (1 - s) = act + s (1 - act).
    """
    inner, dup = torch.empty_like(up), torch.empty_like(up)
    one = gate.new_ones(())
    for part in chunks(len(gate), CHUNK):
        sigmoid = gate[part].sigmoid()
        act = gate[part] * sigmoid
        torch.mul(act, up[part], out=inner[part])
        torch.mul(act, dinner[part], out=dup[part])
        dinner[part].mul_(up[part]).mul_(act.lerp_(one, sigmoid))
    return inner, dinner, dup


def swaps_of(peft_model: Any) -> list[Swap]:
    """Modules of a PEFT model with the forward passes that may stand in for their own.

    Only plain LoRA without dropout on `torch.nn.Linear` of one precision is replaced, and an MLP
    only where ours gives what its own gives; everything else runs as it did.
    """
    linear = {m: layer for m in peft_model.modules() if (layer := _lora_of(m)) is not None}
    mlps = [m for m in peft_model.modules() if _gated(m, linear) and _same(m, linear)]
    inside = {part for m in mlps for part in (m.gate_proj, m.up_proj, m.down_proj)}
    found: list[Swap] = [(m, _mlp_forward(m, linear)) for m in mlps]
    return found + [(m, _linear_forward(m, at)) for m, at in linear.items() if m not in inside]


def _lora_of(module: Any) -> Lora | None:
    from peft.tuners.lora.layer import Linear

    if type(module) is not Linear or type(module.base_layer) is not torch.nn.Linear:
        return None
    base, (name, *others) = module.base_layer, list(module.lora_A)
    plain = isinstance(module.lora_dropout[name], torch.nn.Identity) and not module.lora_variant
    low: Any = module.lora_A[name]
    high: Any = module.lora_B[name]
    if others or not plain or module.fan_in_fan_out or high.bias is not None:
        return None
    a, b = low.weight, high.weight
    if not base.weight.dtype == a.dtype == b.dtype or base.weight.requires_grad:
        return None
    return Lora(base.weight, base.bias, a, b, float(module.scaling[name]))


def _gated(module: torch.nn.Module, linear: dict[torch.nn.Module, Lora]) -> bool:
    parts = [getattr(module, f"{name}_proj", None) for name in ("gate", "up", "down")]
    known = all(part in linear and linear[part].bias is None for part in parts)
    return known and "silu" in type(getattr(module, "act_fn", None)).__name__.lower()


def _same(module: Any, linear: dict[torch.nn.Module, Lora]) -> bool:
    """Whether ours gives this MLP's own output; some scale a branch or add one."""
    weight = linear[module.gate_proj].weight
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn((4, weight.shape[1]), generator=generator).to(weight)  # [4, hidden]
    with torch.no_grad():
        own, ours = module(probe), _mlp_forward(module, linear)(probe)
    return bool((own - ours).abs().max() <= TOLERANCE * own.abs().max())


def _linear_forward(module: Any, layer: Lora) -> Forward:
    own = module.forward

    def forward(x: Tensor) -> Tensor:
        if module.disable_adapters or module.merged:
            return own(x)  # type: ignore[no-any-return]
        return _Linear.apply(x, layer.a, layer.b, layer)  # type: ignore[no-any-return, no-untyped-call]

    return forward


def _mlp_forward(module: Any, linear: dict[torch.nn.Module, Lora]) -> Forward:
    own, parts = module.forward, (module.gate_proj, module.up_proj, module.down_proj)
    layers = [linear[part] for part in parts]
    parameters = [p for layer in layers for p in (layer.a, layer.b)]

    def forward(x: Tensor) -> Tensor:
        if any(part.disable_adapters or part.merged for part in parts):
            return own(x)  # type: ignore[no-any-return]
        return _GatedMlp.apply(x, layers, *parameters)  # type: ignore[no-any-return, no-untyped-call]

    return forward


@contextlib.contextmanager
def fused(swaps: Sequence[Swap]) -> Iterator[None]:
    """Forward passes inside run the swapped layers; their graphs outlive the context."""
    for module, forward in swaps:
        module.forward = forward
    try:
        yield
    finally:
        for module, _ in swaps:
            del module.forward
