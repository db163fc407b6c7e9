"""The alignment step: time, memory, growth, exactness."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from statistics import median

import torch
from torch import Tensor

from bench.contestants import (
    CONTESTANTS,
    UT_WEIGHT,
    Step,
    demo_model,
    ours,
    padded,
)
from bench.memory import peak_over_base
from bench.results import Measure, Result, compared, device_name, say
from bench.texts import groups_of, make_items
from ptalign.config import LoraConfig
from ptalign.losses import Head, margins, margins_of_logits, mle, unlikelihood
from ptalign.training import lora
from ptalign.training.step import Objective, accumulate
from ptalign.training.texts import ChatFormat, Sample
from ptalign.training.tree import pack

RIVALS = {
    "sft": ("TRL SFTTrainer on positives and negatives", 2.5),
    "dpo": ("TRL DPOTrainer", 3.5),
    "packed": ("own packed step, prompts not shared", 1.2),
    "cut": ("CUT-style step (full softmax, padded)", 2.0),
    "candidates": ("own step with 20 negative candidates at every place", 0.0),
}
PAIRS = 8
GOAL_TOKENS = 64
"""The goals are for answers of this length: with longer ones a shared prompt is a smaller part."""
MEMORY = {
    "sft": ("TRL SFTTrainer without gradient checkpointing", 3.0),
    "cut": (RIVALS["cut"][0], 2.0),
    "sft_checkpointed": ("TRL SFTTrainer with gradient checkpointing", 1.0),
}


def measures(quick: bool) -> list[Measure]:
    """All measures of the step."""
    pairs, rounds = (4, 2) if quick else (PAIRS, 5)
    names, minute = [n for n in RIVALS if n not in ("dpo", "candidates")], 0.4 if quick else 1.0
    found = [
        Measure("exact gradients", 0.2, lambda: exact_gradients(quick)),
        Measure("against the naive step", 0.7, lambda: against_naive(quick)),
        Measure(
            "step, 64 tokens",
            1.5 if quick else 8,
            lambda: race(names, pairs, 64, rounds, quick),
        ),
        Measure(
            "candidates, 64 tokens",
            0.4 if quick else 2,
            lambda: race(["candidates"], pairs, 64, rounds, quick),
        ),
        *(
            Measure(f"memory, {name}", minute, lambda name=name: memory(name, pairs, quick))  # type: ignore[misc]
            for name in MEMORY
        ),
    ]
    if not quick:
        found += [
            Measure("DPO, 64 tokens", 7, lambda: race(["dpo"], pairs, 64, rounds, quick)),
            Measure("step, 128 tokens", 8, lambda: race(names, PAIRS, 128, 2, quick)),
            # TRL's step of 8 pairs needs about 18 GB here, beside what the machine needs.
            Measure("step, 256 tokens", 9, lambda: race(names, 4, 256, 2, quick)),
            Measure("growth with pairs", 3, lambda: growth(quick)),
        ]
    return found


def race(names: list[str], pairs: int, tokens: int, rounds: int, quick: bool) -> list[Result]:
    """CPU seconds of a step, contestants taking turns in every round; one warm-up step each."""
    model, items = demo_model(), make_items(pairs, tokens)
    steps: dict[str, Step] = {n: CONTESTANTS[n](items, model) for n in ("ours", *names)}
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(1, rounds + 1):
        for name, step in steps.items():
            seconds[name].append(step())
        found = ", ".join(f"{name} {spent[-1]:.1f}" for name, spent in seconds.items())
        say(f"  round {number} of {rounds}: {found} CPU s")
    few = f", {pairs} pairs" if pairs != PAIRS and not quick else ""
    return [
        compared(
            f"step, {tokens} tokens{few}: {RIVALS[n][0]}",
            seconds["ours"],
            seconds[n],
            RIVALS[n][1] if tokens == GOAL_TOKENS else 0.0,
            "CPU s",
            quick,
        )
        for n in names
    ]


def memory(name: str, pairs: int, quick: bool) -> list[Result]:
    """Peak memory of a step over the loaded model."""
    label, goal = MEMORY[name]
    return [
        compared(
            f"memory, 64 tokens: {label}",
            [own_peak(pairs) / 2**20],
            [peak_over_base(name, pairs, 64) / 2**20],
            goal,
            "MiB",
            quick,
        )
    ]


@cache
def own_peak(pairs: int) -> float:
    """Ours, measured once for all rivals."""
    return peak_over_base("ours", pairs, 64)


def growth(quick: bool) -> list[Result]:
    """Seconds per token of 16 pairs against 4: 1 when the cost is linear in tokens."""
    model, cost = demo_model(), {}
    chat = ChatFormat(lora.load_tokenizer(model), model)
    for pairs in (4, 16):
        items = make_items(pairs, 64)
        step = ours(items, model)
        step()
        seconds = median(step() for _ in range(3))
        tokens = sum(s.length for g in groups_of(items, chat) for s in g)
        cost[pairs] = 1000 * seconds / tokens
    return [
        compared(
            "growth: 4 pairs' cost of a token / 16 pairs'",
            [cost[16]],
            [cost[4]],
            0.9,
            "CPU ms/token",
            quick,
        )
    ]


def exact_gradients(quick: bool) -> list[Result]:
    """Worst relative gradient error on saturated tokens against float64, ours and CUT-style."""
    causal_lm = lora.load_model(demo_model())
    weight = causal_lm.get_output_embeddings().weight.detach()  # [vocabulary, hidden]
    targets = torch.arange(1000, 1016)
    hidden = saturated(weight, targets)
    worst = {"ours": 0.0, "cut": 0.0}
    for loss in (mle, unlikelihood):
        want = gradient(
            hidden.double(), lambda h: margins_of_logits(h @ weight.double().t(), targets), loss
        )
        got = gradient(hidden, lambda h: margins(h, targets, Head(weight)), loss)
        cut = cut_gradient(hidden, weight, targets, loss is mle)
        worst["ours"] = max(worst["ours"], error(got, want))
        worst["cut"] = max(worst["cut"], error(cut, want))
    limit = 1e-5
    return [
        Result(
            f"gradient error on saturated tokens, limit {limit:g}; theirs: CUT-style",
            worst["ours"],
            worst["cut"],
            limit / worst["ours"],
            1.0,
            "relative",
            len(targets),
            0.0,
            device_name(),
            quick,
        )
    ]


def saturated(weight: Tensor, targets: Tensor) -> Tensor:
    """[rows, hidden] whose targets lead all other tokens together by 8 to 38 nats.

    Found by ascent on the margin in float64, so that logits stay as large as a model's own.
    """
    exact = weight.double()
    hidden = torch.zeros(len(targets), weight.shape[1], dtype=torch.float64)
    wanted = 8.0 + 2.0 * torch.arange(len(targets), dtype=torch.float64)
    for _ in range(500):
        leaf = hidden.clone().requires_grad_()
        margin = margins_of_logits(leaf @ exact.t(), targets)
        short = (wanted - margin.detach()).clamp_min(0)  # [rows] nats still missing
        if not short.any():
            break
        (slope,) = torch.autograd.grad(margin.sum(), leaf)
        pace = short.clamp_max(1.0) + (short > 0) * 0.01
        hidden += slope * (pace / slope.square().sum(1))[:, None]
    return hidden.float()


def gradient(
    hidden: Tensor,
    margin: Callable[[Tensor], Tensor],
    loss: Callable[[Tensor, Tensor, float], Tensor],
) -> Tensor:
    """d loss / d hidden, every row its own scale."""
    leaf = hidden.clone().requires_grad_()
    found = margin(leaf)
    return torch.autograd.grad(loss(found, torch.ones_like(found), 1.0), leaf)[0]


def cut_gradient(hidden: Tensor, weight: Tensor, targets: Tensor, likely: bool) -> Tensor:
    """The same through a float32 softmax and log(1 - p) with a clamp."""
    leaf = hidden.clone().requires_grad_()
    p = (leaf @ weight.t()).softmax(1).gather(1, targets[:, None])
    value = p if likely else 1 - p
    return torch.autograd.grad(-value.clamp_min(1e-20).log().sum(), leaf)[0]


def error(got: Tensor, want: Tensor) -> float:
    """Largest relative error of a row."""
    return float(((got.double() - want).norm(dim=1) / want.norm(dim=1)).max())


def against_naive(quick: bool) -> list[Result]:
    """Loss and LoRA gradients of the tree step against one padded batch with full logits."""
    model = demo_model()
    chat = ChatFormat(lora.load_tokenizer(model), model)
    decoder = lora.attach(lora.load_model(model), LoraConfig(), seed=0)
    groups = groups_of(make_items(2, 48), chat)
    parameters = list(lora.trainable(decoder).values())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # off LoRA's start, where half of the gradients are 0
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.01)
    objective = Objective("pt_align", 0.1, {})
    losses = accumulate(decoder, groups, objective, UT_WEIGHT)
    got = [p.grad.clone() for p in parameters if p.grad is not None]
    naive = naive_loss(decoder.causal_lm, [s for g in groups for s in g])
    want = torch.autograd.grad(naive, parameters)
    apart = sum(float((g - w).square().sum()) for g, w in zip(got, want, strict=True))
    whole = sum(float(w.square().sum()) for w in want)
    loss_error = abs(float(objective.total(losses, UT_WEIGHT)) / naive.item() - 1)
    worst, limit = max((apart / whole) ** 0.5, loss_error), 2e-5
    return [
        Result(
            "loss and LoRA gradients against the naive padded step; theirs: limit",
            worst,
            limit,
            limit / worst,
            1.0,
            "relative",
            len(pack(groups, 10**9)[0].samples),
            0.0,
            device_name(),
            quick,
        )
    ]


def naive_loss(causal_lm: torch.nn.Module, samples: list[Sample]) -> Tensor:
    """L_MLE + lambda L_UT from full logits of one padded batch, in exact form."""
    ids, mask = padded(samples)
    logits = causal_lm(input_ids=ids, attention_mask=mask, use_cache=False).logits
    terms = []
    for part, loss in (("positive", mle), ("toxic", unlikelihood)):
        mine = [(row, s) for row, s in enumerate(samples) if s.part == part]
        margin = torch.cat(
            [
                margins_of_logits(
                    logits[row, len(s.prompt) - 1 : s.length - 1], torch.tensor(s.answer)
                )
                for row, s in mine
            ]
        )
        weight = torch.tensor([w for _, s in mine for w in s.weights])
        terms.append(loss(margin, weight, float(weight.sum())))
    return terms[0] + UT_WEIGHT * terms[1]
