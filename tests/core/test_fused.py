"""Layers with hand-written backward passes: PEFT's own numbers, less memory, no traces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from ptalign.training.fused import fused, swaps_of

HIDDEN, INNER = 12, 40


class Mlp(torch.nn.Module):
    """A gated MLP as most decoders have it; `scale` makes it one that only looks like it."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.gate_proj = torch.nn.Linear(HIDDEN, INNER, bias=False)
        self.up_proj = torch.nn.Linear(HIDDEN, INNER, bias=False)
        self.down_proj = torch.nn.Linear(INNER, HIDDEN, bias=False)
        self.act_fn = torch.nn.SiLU()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return found * self.scale


class Block(torch.nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.before = torch.nn.Linear(HIDDEN, HIDDEN)  # with a bias
        self.mlp = Mlp(scale)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.before(x)
        found: Tensor = mixed + self.mlp(mixed)
        return found


def block(*, scale: float = 1.0, **lora: Any) -> Any:
    """A block under LoRA in float64, moved off LoRA's start."""
    torch.manual_seed(0)
    names = ["before", "gate_proj", "up_proj", "down_proj"]
    settings = LoraConfig(r=3, lora_alpha=6, target_modules=names, **lora)
    peft = get_peft_model(Block(scale), settings).double().eval()
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter))
    return peft


def names_of(peft: Any) -> set[str]:
    swapped = {module for module, _ in swaps_of(peft)}
    return {name.rpartition("model.")[2] for name, m in peft.named_modules() if m in swapped}


def grads(peft: Any, x: Tensor, run: Callable[[], Tensor]) -> list[Tensor]:
    """Gradients of the input and of all adapter parameters, and the output."""
    leaves = [x, *(p for p in peft.parameters() if p.requires_grad)]
    y = run()
    return [*torch.autograd.grad(y.square().sum(), leaves), y.detach()]


def test_output_and_gradients_are_pefts() -> None:
    """2 x 70 rows, more than the backward pass takes at once; float64, so errors are formulas."""
    peft = block()
    x = torch.randn(2, 70, HIDDEN, dtype=torch.float64, requires_grad=True)
    assert names_of(peft) == {"before", "mlp"}
    want = grads(peft, x, lambda: peft(x))
    with fused(swaps_of(peft)):
        y = peft(x)
    for got, wanted in zip(grads(peft, x, lambda: y), want, strict=True):
        assert got.shape == wanted.shape
        assert float((got - wanted).norm() / wanted.norm()) < 1e-12


def test_a_graph_can_be_walked_twice() -> None:
    """Matching the norms of two losses differentiates one forward pass twice."""
    peft = block()
    x = torch.randn(5, HIDDEN, dtype=torch.float64)
    parameters = [p for p in peft.parameters() if p.requires_grad]
    with fused(swaps_of(peft)):
        y = peft(x)
    first, second = (
        torch.autograd.grad(y.sum(), parameters, retain_graph=again) for again in (True, False)
    )
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_an_input_without_gradient_costs_none() -> None:
    peft = block()
    x = torch.randn(5, HIDDEN, dtype=torch.float64)
    with fused(swaps_of(peft)):
        y = peft(x)
    y.sum().backward()
    assert all(p.grad is not None for p in peft.parameters() if p.requires_grad)
    assert x.grad is None


def wide_values_kept(peft: Any, swaps: list[Any]) -> int:
    """Distinct activations of an MLP's inner width that wait for the backward pass."""
    kept: set[int] = set()

    def note(tensor: Tensor) -> Tensor:
        if tensor.shape[-1] == INNER and tensor.shape[:-1].numel() == 7:
            kept.add(tensor.data_ptr())
        return tensor

    x = torch.randn(1, 7, HIDDEN, dtype=torch.float64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t), fused(swaps):
        y = peft(x)  # alive, so that no address is used twice
    assert y.requires_grad
    return len(kept)


def test_an_mlp_keeps_two_wide_activations() -> None:
    peft = block()
    assert wide_values_kept(peft, swaps_of(peft)) == 2
    assert wide_values_kept(peft, []) == 4


def test_the_adapter_can_be_switched_off() -> None:
    peft = block()
    x = torch.randn(5, HIDDEN, dtype=torch.float64)
    with peft.disable_adapter():
        want = peft(x)
        with fused(swaps_of(peft)):
            got = peft(x)
    assert torch.equal(got, want)
    assert not torch.allclose(peft(x), want)


def test_the_model_is_left_as_it_was() -> None:
    peft = block()
    with pytest.raises(RuntimeError, match="stop"), fused(swaps_of(peft)):
        assert any("forward" in vars(m) for m in peft.modules())
        raise RuntimeError("stop")
    assert not any("forward" in vars(m) for m in peft.modules())


@pytest.mark.parametrize("lora", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}])
def test_what_is_not_plain_lora_runs_as_it_did(lora: dict[str, Any]) -> None:
    assert names_of(block(**lora)) == set()


def test_an_mlp_that_only_looks_like_one_is_left_alone() -> None:
    """Its linear layers are still plain ones."""
    found = names_of(block(scale=1.5))
    assert found == {"before", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
