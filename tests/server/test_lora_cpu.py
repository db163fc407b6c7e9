"""The CPU's LoRA operations: vLLM's results where those are right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from vllm.lora.ops.torch_ops import lora_ops as theirs

from ptalign_server.pool import lora_cpu as ours

SLOTS, RANK, WIDE = 3, 4, 24
BATCHES = {"one adapter": [2] * 6, "two adapters": [0, 2, 2, 0, 0, 2]}


def tensors() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return (
        torch.randn(6, WIDE),
        torch.randn(SLOTS, 1, RANK, WIDE),
        torch.randn(SLOTS, 1, WIDE, RANK),
    )


@pytest.mark.parametrize("slots", BATCHES.values(), ids=BATCHES)
def test_tokens_of_adapters_get_what_vllm_gives_them(slots: list[int]) -> None:
    x, a, b = tensors()
    where = torch.tensor(slots)
    found = []
    for module in (theirs, ours):
        small, wide, packed = torch.zeros(6, RANK), x.clone(), torch.ones(6, 2 * WIDE)
        module.bgmv_shrink(x, a, small, where, 0.5)
        module.bgmv_expand(small, b, wide, where, True)
        module.bgmv_expand_slice(small, b, packed, where, WIDE, WIDE, True)
        found.append((small, wide, packed))
    for their, our in zip(*found, strict=True):
        torch.testing.assert_close(our, their)


def test_prompts_name_their_adapter_once() -> None:
    x, a, b = tensors()
    meta: tuple[Any, ...] = (None, torch.tensor([4, 2]), torch.tensor([1, 0]), 2, 4, 6)
    found = []
    for module in (theirs, ours):
        small, wide = torch.zeros(6, RANK), torch.zeros(6, WIDE)
        module.sgmv_shrink(x, a, small, *meta, 2.0)
        module.sgmv_expand(small, b, wide, *meta, True)
        module.sgmv_expand_slice(small, b[:, :, :8], wide, *meta, 8, 8, True)
        found.append((small, wide))
    for their, our in zip(*found, strict=True):
        torch.testing.assert_close(our, their)


def test_tokens_without_an_adapter_are_left_alone() -> None:
    x, a, b = tensors()
    where = torch.tensor([-1, 1, -1, 1, -1, -1])
    small, wide = torch.zeros(6, RANK), x.clone()
    ours.bgmv_shrink(x, a, small, where, 1.0)
    ours.bgmv_expand(small, b, wide, where, True)
    bare = where == -1
    assert torch.equal(wide[bare], x[bare])
    assert not torch.equal(wide[~bare], x[~bare])
    theirs.bgmv_shrink(x, a, small, where, 1.0)
    assert small[0].any(), "vLLM leaves them alone too: lora_cpu's reason #48421 is gone"


def test_only_engines_of_the_pool_are_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.lora.punica_wrapper import punica_cpu

    names = [n for n in vars(theirs) if "gmv_" in n]
    for name in names:
        monkeypatch.setattr(punica_cpu, name, getattr(theirs, name))
    monkeypatch.delenv(ours.VARIABLE, raising=False)
    ours.register()
    assert all(getattr(punica_cpu, n) is getattr(theirs, n) for n in names)
    monkeypatch.setenv(ours.VARIABLE, "1")
    ours.register()
    assert all(getattr(punica_cpu, n) is getattr(ours, n) for n in names)
