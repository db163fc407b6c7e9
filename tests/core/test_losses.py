"""Losses: arithmetic by hand, and float32 against float64 where tokens are saturated."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from ptalign.losses import (
    Head,
    dpo,
    kl_divergence,
    margins,
    margins_of_logits,
    mle,
    npo,
    set_margins,
    unlikelihood,
)

LN2, LN3, LN4 = math.log(2), math.log(3), math.log(4)


def test_margin_is_the_log_odds_of_the_target() -> None:
    """Logits (ln 1, ln 2, ln 5), target 1: e = 2, So = 1 + 5 = 6, S = 8.

    margin = ln 2 - ln 6 = -ln 3; p = 2/8 = 1/4, log p = -ln 4, log(1 - p) = ln 3/4.
    """
    logits = torch.tensor([[0.0, LN2, math.log(5)]], dtype=torch.float64)
    margin = margins_of_logits(logits, torch.tensor([1]))
    assert margin.item() == pytest.approx(-LN3)
    assert logsigmoid(margin).item() == pytest.approx(-LN4)
    assert logsigmoid(-margin).item() == pytest.approx(math.log(3 / 4))


def test_mle_divides_by_the_steps_weights_not_the_rows() -> None:
    """p = 1/4, 1/2, 1/2 with weights 1, 1, 0 in a step of 4 weighted tokens.

    L = -(ln 1/4 + ln 1/2) / 4 = (ln 4 + ln 2) / 4.
    """
    margin = torch.tensor([-LN3, 0.0, 0.0], dtype=torch.float64)
    weight = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    assert mle(margin, weight, 4).item() == pytest.approx((LN4 + LN2) / 4)


def test_unlikelihood_weighs_and_normalises_by_the_sum_of_weights() -> None:
    """p = 1/4 (w 2) and 1/2 (w 1), sum of weights 3: L = -(2 ln 3/4 + ln 1/2) / 3."""
    margin = torch.tensor([-LN3, 0.0], dtype=torch.float64)
    weight = torch.tensor([2.0, 1.0], dtype=torch.float64)
    want = -(2 * math.log(3 / 4) - LN2) / 3
    assert unlikelihood(margin, weight, 3).item() == pytest.approx(want)


def test_unlikelihood_gradient_on_the_target_logit_is_w_p_over_total() -> None:
    """p = 1/4, w = 2, total 5: dL/dz_target = 2 * 1/4 / 5 = 0.1, and it fades with p."""
    logits = torch.tensor([[0.0, LN2, math.log(5)]], dtype=torch.float64, requires_grad=True)
    margin = margins_of_logits(logits, torch.tensor([1]))
    (grad,) = torch.autograd.grad(
        unlikelihood(margin, torch.tensor([2.0], dtype=torch.float64), 5), logits
    )
    assert grad[0, 1].item() == pytest.approx(0.1)
    assert grad.sum().item() == pytest.approx(0.0, abs=1e-12)


def test_dpo_by_hand() -> None:
    """Log-ratios: positive -1 - (-2) = 1, toxic -4 - (-3) = -1, gap 2, beta 1/2.

    L = -ln sigmoid(1) over 2 pairs of which this row holds one.
    """
    one = dpo(*(torch.tensor([v]) for v in (-1.0, -4.0, -2.0, -3.0)), beta=0.5, total=2)
    assert one.item() == pytest.approx(math.log(1 + math.exp(-1)) / 2)


def test_npo_by_hand() -> None:
    """Ratio pi / ref = e^(-1+1) = 1: L = (2 / beta) ln(1 + 1) = 4 ln 2 at beta 1/2."""
    assert npo(torch.tensor([-1.0]), torch.tensor([-1.0]), 0.5, 1).item() == pytest.approx(4 * LN2)


HEADS = {
    "plain": {},
    "soft-cap": {"softcap": 5.0},
    "bias and scale": {"bias": True, "scale": 0.25},
}


def make_head(kind: str, dtype: torch.dtype, vocabulary: int = 301, width: int = 16) -> Head:
    settings = dict(HEADS[kind])
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64)
    bias = torch.randn(vocabulary, generator=generator, dtype=torch.float64)
    settings["bias"] = bias.to(dtype) if settings.get("bias") else None
    return Head(weight.to(dtype), **settings)  # type: ignore[arg-type]


def reference_margins(hidden: torch.Tensor, targets: torch.Tensor, head: Head) -> torch.Tensor:
    """Float64 with full logits, by autograd."""
    return margins_of_logits(logits_of(hidden, head), targets)


def reference_logits(hidden: torch.Tensor, kind: str) -> torch.Tensor:
    return logits_of(hidden, make_head(kind, torch.float64))


def logits_of(hidden: torch.Tensor, head: Head) -> torch.Tensor:
    logits = hidden @ head.weight.t() + (0 if head.bias is None else head.bias)
    logits = logits * head.scale
    if head.softcap:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return logits


@pytest.mark.parametrize("kind", HEADS)
def test_fused_head_matches_full_logits_in_float64(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 rows in chunks of 16: margins and hidden gradients of a mixed loss."""
    monkeypatch.setattr("ptalign.losses.head.CHUNK_BYTES", 16 * 4 * 301)
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(200, 16, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 301, (200,), generator=generator)
    weight = torch.rand(200, generator=generator, dtype=torch.float64)

    def loss(margin: torch.Tensor) -> torch.Tensor:
        w = weight.to(margin.dtype)
        return mle(margin, w, 7) + 3 * unlikelihood(margin, w, 5)

    exact = hidden.clone().requires_grad_()
    want = reference_margins(exact, targets, make_head(kind, torch.float64))
    loss(want).backward()
    fused = hidden.float().requires_grad_()
    got = margins(fused, targets, make_head(kind, torch.float32))
    loss(got).backward()
    assert torch.allclose(got.double(), want, atol=2e-5)
    assert relative(fused.grad, exact.grad) < 2e-6


def test_margin_of_a_set_by_hand() -> None:
    """e = (1, 2, 5, 2), C = {1}. Target 3 marked: S_C = 4, So = 6, P = .4; unmarked: 2 of 10."""
    head = Head(torch.eye(4))
    hidden = torch.tensor([[0.0, LN2, math.log(5), LN2]]).expand(3, 4)
    marked = torch.tensor([True, False, True])
    found = set_margins(hidden, torch.tensor([3, 3, 1]), marked, torch.tensor([1]), head)
    assert found.sigmoid().tolist() == pytest.approx([0.4, 0.2, 0.2])


def reference_set_margins(
    logits: torch.Tensor, targets: torch.Tensor, marked: torch.Tensor, candidates: torch.Tensor
) -> torch.Tensor:
    """By a mask over the vocabulary and autograd."""
    members = torch.zeros_like(logits, dtype=torch.bool)
    members[:, candidates] = True
    members[marked, targets[marked]] = True
    inside = logits.masked_fill(~members, -torch.inf).logsumexp(1)
    return inside - logits.masked_fill(members, -torch.inf).logsumexp(1)


@pytest.mark.parametrize("kind", HEADS)
def test_fused_sets_match_full_logits_in_float64(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 rows in chunks of 16; targets in and out of the candidates, marked and not."""
    monkeypatch.setattr("ptalign.losses.head.CHUNK_BYTES", 16 * 4 * 301)
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(200, 16, generator=generator, dtype=torch.float64)
    candidates = torch.randperm(301, generator=generator)[:20]
    targets = torch.randint(0, 301, (200,), generator=generator)
    targets[:40] = candidates.repeat(2)
    marked = torch.rand(200, generator=generator) < 0.5
    weight = torch.rand(200, generator=generator, dtype=torch.float64)
    exact = hidden.clone().requires_grad_()
    want = reference_set_margins(reference_logits(exact, kind), targets, marked, candidates)
    unlikelihood(want, weight, 5).backward()
    fused = hidden.float().requires_grad_()
    got = set_margins(fused, targets, marked, candidates, make_head(kind, torch.float32))
    unlikelihood(got, weight.float(), 5).backward()
    assert torch.allclose(got.double(), want, atol=2e-5)
    assert relative(fused.grad, exact.grad) < 2e-6


@pytest.mark.parametrize("gap", [20.0, 80.0])
def test_a_saturated_set_keeps_exact_gradients(gap: float) -> None:
    """The set leads all others by `gap`: what is left of them is below float32's grain at 1."""
    logits = torch.tensor([[gap, gap - 1, 0.0, 0.5, -1.0]], dtype=torch.float64)
    targets, marked, candidates = torch.tensor([0]), torch.tensor([True]), torch.tensor([1])
    exact = logits.clone().requires_grad_()
    want = reference_set_margins(exact, targets, marked, candidates)
    unlikelihood(want, torch.ones(1), 1).backward()
    fused = logits.float().requires_grad_()
    got = set_margins(fused, targets, marked, candidates, Head(torch.eye(5)))
    unlikelihood(got, torch.ones(1), 1).backward()
    assert got.item() == pytest.approx(want.item(), rel=1e-6)
    assert relative(fused.grad, exact.grad) < 1e-5


@pytest.mark.parametrize("kind", HEADS)
def test_fused_divergence_matches_full_logits_in_float64(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 rows in chunks of 16: KL(bare || tuned) and its gradient in the tuned states only."""
    monkeypatch.setattr("ptalign.losses.head.CHUNK_BYTES", 16 * 4 * 301)
    generator = torch.Generator().manual_seed(2)
    bare = torch.randn(40, 16, generator=generator, dtype=torch.float64)
    tuned = bare + 0.3 * torch.randn(40, 16, generator=generator, dtype=torch.float64)
    weight = torch.rand(40, generator=generator, dtype=torch.float64)
    exact = tuned.clone().requires_grad_()
    log_p, log_q = (reference_logits(h, kind).log_softmax(1) for h in (bare, exact))
    want = (log_p.exp() * (log_p - log_q)).sum(1)
    (weight * want).sum().backward()
    fused = tuned.float().requires_grad_()
    got = kl_divergence(bare.float(), fused, make_head(kind, torch.float32))
    (weight.float() * got).sum().backward()
    assert torch.allclose(got.double(), want, atol=2e-5)
    assert relative(fused.grad, exact.grad) < 5e-6


def test_divergence_pulls_nowhere_at_the_bare_model() -> None:
    """Where nothing has changed there is nothing to undo: likelihood of a sample would pull."""
    hidden = torch.randn(5, 16, generator=torch.Generator().manual_seed(3)).requires_grad_()
    found = kl_divergence(hidden.detach(), hidden, make_head("plain", torch.float32))
    found.sum().backward()
    assert found.abs().max() < 1e-6
    assert hidden.grad is not None
    assert hidden.grad.abs().max() < 1e-6


def relative(got: torch.Tensor | None, want: torch.Tensor | None) -> float:
    assert got is not None
    assert want is not None
    return float((got.double() - want).norm() / want.norm())


@pytest.mark.parametrize("gap", [10.0, 20.0, 40.0, 80.0])
def test_saturated_tokens_keep_exact_gradients(gap: float) -> None:
    """A target whose logit leads by `gap`: 1 - p is 1e-5 to 1e-35, below float32's grain at 1.

    The relative gradient error against float64 stays under 1e-5, both for likelihood (whose
    gradient is 1 - p) and unlikelihood (whose gradient is p).
    """
    width, vocabulary = 8, 50
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64)
    target = torch.tensor([3])
    direction = weight[3] / weight[3].norm()
    others = (weight[torch.arange(vocabulary) != 3] @ direction).max()
    hidden = (direction * gap / (weight[3].norm() - others))[None].float().double()
    for loss in (mle, unlikelihood):
        exact = hidden.clone().requires_grad_()
        loss(reference_margins(exact, target, Head(weight)), torch.ones(1), 1).backward()
        fused = hidden.float().requires_grad_()
        loss(margins(fused, target, Head(weight.float())), torch.ones(1), 1).backward()
        assert relative(fused.grad, exact.grad) < 1e-5, (loss.__name__, gap)


def test_the_naive_form_fails_where_ours_holds() -> None:
    """Test of the test: log(1 - softmax) of a saturated token is -inf in float32."""
    logits = torch.tensor([[25.0, 0.0]])
    naive = torch.log(1 - logits.softmax(1)[:, 0])
    assert torch.isinf(naive).all()
    margin = margins_of_logits(logits, torch.tensor([0]))
    assert logsigmoid(-margin).item() == pytest.approx(-25.0)


def test_head_never_holds_logits_of_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor the forward pass makes has one chunk's rows."""
    monkeypatch.setattr("ptalign.losses.head.CHUNK_BYTES", 16 * 4 * 301)
    seen: list[int] = []
    plain = Head.logits

    def watched(self: Head, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        seen.append(len(hidden))
        return plain(self, hidden, out)

    monkeypatch.setattr(Head, "logits", watched)
    hidden = torch.randn(100, 16)
    margins(hidden, torch.zeros(100, dtype=torch.long), make_head("plain", torch.float32))
    assert max(seen) <= 16
    assert sum(seen) == 100


def test_kl_by_hand() -> None:
    """Head = identity on 2 tokens; base logits (0, 0), other (0, ln 3).

    p = (1/2, 1/2), q = (1/4, 3/4): KL = 1/2 ln 2 + 1/2 ln 2/3.
    """
    head = Head(torch.eye(2))
    found = kl_divergence(torch.zeros(1, 2), torch.tensor([[0.0, LN3]]), head)
    assert found.item() == pytest.approx(0.5 * LN2 + 0.5 * math.log(2 / 3), abs=1e-6)
