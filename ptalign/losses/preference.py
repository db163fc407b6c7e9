"""Preference losses on sums of log-probabilities against a reference (the adapter switched off)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def dpo(
    positive: Tensor,
    toxic: Tensor,
    reference_positive: Tensor,
    reference_toxic: Tensor,
    beta: float,
    total: float,
) -> Tensor:
    """Direct preference optimisation (arXiv 2305.18290, eq. 7).

    Args:
        positive: [pairs], log p of the positive answers, summed over tokens.
        toxic: [pairs], the same of the toxic answers.
        reference_positive: [pairs], log p under the reference.
        reference_toxic: [pairs].
        beta: Temperature.
        total: Pairs in the whole step.

    Returns:
        Scalar, nats per pair.
    """
    gap = (positive - reference_positive) - (toxic - reference_toxic)  # [pairs]
    return -logsigmoid(beta * gap).sum() / total


def npo(toxic: Tensor, reference_toxic: Tensor, beta: float, total: float) -> Tensor:
    """Negative preference optimisation (arXiv 2404.05868, eq. 3).

    Args:
        toxic: [pairs], log p of the toxic answers, summed over tokens.
        reference_toxic: [pairs], log p under the reference.
        beta: Temperature.
        total: Pairs in the whole step.

    Returns:
        Scalar, nats per pair over beta.
    """
    ratio = toxic - reference_toxic  # [pairs]
    return -(2 / beta) * logsigmoid(-beta * ratio).sum() / total
