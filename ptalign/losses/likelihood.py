"""Likelihood and unlikelihood of target tokens, each with its own mask and denominator."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def margins_of_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """Margin of each target against the log-sum-exp of all other tokens.

    The plain form of `ptalign.losses.head.margins`, for tests and for the naive step.

    Args:
        logits: [rows, vocabulary].
        targets: [rows], token ids.

    Returns:
        [rows] margins m, with log p = logsigmoid(m) and log(1 - p) = logsigmoid(-m).
    """
    index = targets[:, None]  # [rows, 1]
    others = logits.scatter(1, index, -torch.inf)  # [rows, vocabulary]
    return logits.gather(1, index)[:, 0] - others.logsumexp(1)


def mle(margin: Tensor, weight: Tensor, total: float) -> Tensor:
    """L_MLE = -sum_t w_t log p_t / total.

    Args:
        margin: [rows].
        weight: [rows], 0 outside this part's mask.
        total: Sum of this part's weights over the whole step, so that rows add up.

    Returns:
        Scalar, nats per token.
    """
    return -(weight * logsigmoid(margin)).sum() / total


def unlikelihood(margin: Tensor, weight: Tensor, total: float) -> Tensor:
    """L_UT = -sum_t w_t log(1 - p_t) / total (PT-ALIGN, arXiv 2502.08657, fine-grained UT).

    Its gradient on the target's logit is w_t p_t / total: bounded, and fading as the token
    becomes unlikely. Gradient ascent on log p has neither property. With `set_margins` p is the
    probability of a set of negative candidates, and the same holds of each of them.

    Args:
        margin: [rows].
        weight: [rows], 0 outside this part's mask.
        total: Sum of this part's weights over the whole step.

    Returns:
        Scalar, nats per unit of weight.
    """
    return -(weight * logsigmoid(-margin)).sum() / total
