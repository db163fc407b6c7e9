"""The CPU's LoRA operations: vLLM's results where those are right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu

from ptalign_server.pool import lora_cpu as ours

SLOTS, RANK, WIDE, TOKENS = 3, 4, 24, 6
WIDTHS = (16, 8)
"""Of a packed linear's slices."""
BATCHES = {"one adapter": [2] * TOKENS, "two adapters": [0, 2, 2, 0, 0, 2]}
MIXED = [-1, 1, -1, 1, -1, -1]
THEIR_LINEAR = punica_cpu.PunicaWrapperCPU.add_lora_linear


def batch_of(slots: list[int], prompts: bool) -> Any:
    """vLLM's own wrapper, told which token has which adapter; ids are slots + 1, 0 is none."""
    batch = punica_cpu.PunicaWrapperCPU(TOKENS, TOKENS, device="cpu")
    ids = tuple(slot + 1 for slot in slots)
    mapping = LoRAMapping(index_mapping=ids, prompt_mapping=ids, is_prefill=prompts)
    batch.update_metadata(mapping, [1, 2, 3], SLOTS, vocab_size=32)
    return batch


def linear(operation: Any, batch: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What a packed linear of ones gives after the operation."""
    torch.manual_seed(0)
    x = torch.randn(TOKENS, WIDE, dtype=dtype)
    a = [torch.randn(SLOTS, 1, RANK, WIDE, dtype=dtype) for _ in WIDTHS]
    b = [torch.randn(SLOTS, 1, width, RANK, dtype=dtype) for width in WIDTHS]
    y = torch.ones(TOKENS, sum(WIDTHS), dtype=dtype)
    operation(batch, y, x, a, b, 0.5, WIDTHS)
    return y


@pytest.mark.parametrize("prompts", [True, False], ids=["prompts", "decoding"])
@pytest.mark.parametrize("slots", BATCHES.values(), ids=BATCHES)
def test_linears_of_adapters_get_what_vllm_gives_them(slots: list[int], prompts: bool) -> None:
    batch = batch_of(slots, prompts)
    found = linear(ours.add_lora_linear, batch)
    torch.testing.assert_close(found, linear(THEIR_LINEAR, batch))
    assert not torch.equal(found[:, :16], torch.ones(TOKENS, 16))
    assert not torch.equal(found[:, 16:], torch.ones(TOKENS, 8))


def test_linears_in_half_precision_get_what_vllm_gives_them() -> None:
    batch = batch_of(BATCHES["two adapters"], True)
    both = [linear(f, batch, torch.bfloat16) for f in (ours.add_lora_linear, THEIR_LINEAR)]
    torch.testing.assert_close(*both, rtol=0.016, atol=0.01)


@pytest.mark.parametrize("prompts", [True, False], ids=["prompts", "decoding"])
@pytest.mark.parametrize("slots", [MIXED, [-1] * TOKENS], ids=["some", "all"])
def test_linears_of_tokens_without_an_adapter_are_left_alone(
    slots: list[int], prompts: bool
) -> None:
    found = linear(ours.add_lora_linear, batch_of(slots, prompts))
    for row, slot in zip(found, slots, strict=True):
        assert torch.equal(row, torch.ones(sum(WIDTHS))) == (slot == -1)


def test_the_head_gets_what_vllm_gives_it() -> None:
    torch.manual_seed(0)
    x, a = torch.randn(TOKENS, WIDE), torch.randn(SLOTS, 1, RANK, WIDE)
    b = torch.randn(SLOTS, 1, WIDE, RANK)
    for slots in BATCHES.values():
        found = []
        for module in (lora_ops, ours):
            small, wide = torch.zeros(TOKENS, RANK), x.clone()
            module.bgmv_shrink(x, a, small, torch.tensor(slots), 0.5)
            module.bgmv_expand(small, b, wide, torch.tensor(slots), True)
            found.append((small, wide))
        for their, our in zip(*found, strict=True):
            torch.testing.assert_close(our, their)


def test_the_head_leaves_tokens_without_an_adapter_alone() -> None:
    torch.manual_seed(0)
    x, a = torch.randn(TOKENS, WIDE), torch.randn(SLOTS, 1, RANK, WIDE)
    b, where = torch.randn(SLOTS, 1, WIDE, RANK), torch.tensor(MIXED)
    small, wide = torch.zeros(TOKENS, RANK), x.clone()
    ours.bgmv_shrink(x, a, small, where, 1.0)
    ours.bgmv_expand(small, b, wide, where, True)
    bare = where == -1
    assert torch.equal(wide[bare], x[bare])
    assert not torch.equal(wide[~bare], x[~bare])
    lora_ops.bgmv_shrink(x, a, small, where, 1.0)
    assert small[0].any(), "vLLM leaves them alone too: lora_cpu's reason #48421 is gone"


def test_only_engines_of_the_pool_are_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("bgmv_shrink", "bgmv_expand")
    for name in names:
        monkeypatch.setattr(punica_cpu, name, getattr(lora_ops, name))
    wrapper = punica_cpu.PunicaWrapperCPU
    monkeypatch.setattr(wrapper, "add_lora_linear", THEIR_LINEAR)
    monkeypatch.delenv(ours.VARIABLE, raising=False)
    ours.register()
    assert all(getattr(punica_cpu, n) is getattr(lora_ops, n) for n in names)
    assert wrapper.add_lora_linear is THEIR_LINEAR
    monkeypatch.setenv(ours.VARIABLE, "1")
    ours.register()
    assert all(getattr(punica_cpu, n) is getattr(ours, n) for n in names)
    assert wrapper.add_lora_linear is ours.add_lora_linear
