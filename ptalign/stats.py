"""How sure we are: intervals of shares, paired tests and agreement between raters.

Pure functions on plain sequences. scipy does the distributions; nothing here reads a file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ptalign.nouns import Rate

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


def wilson(successes: int, n: int) -> Rate:
    """A share with its 95 % score interval.

    Wilson (1927), without continuity correction: sensible at 0 and n, unlike the normal interval.

    Args:
        successes: How many of `n`.
        n: How many were scored; 0 gives the interval that says nothing, 0..1.
    """
    if not 0 <= successes <= max(n, 0):
        raise ValueError(f"successes must be in 0..n, got {successes} of {n}")
    if n == 0:
        return Rate(value=0.0, low=0.0, high=1.0, n=0)
    share = successes / n
    spread = Z95**2 / n
    centre = (share + spread / 2) / (1 + spread)
    half = Z95 / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Rate(value=share, low=low, high=high, n=n)


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Exact two-sided p-value that two outcomes on the same prompts have one rate.

    McNemar's test as a binomial test on the discordant pairs (b + c trials, p = 1/2).

    Args:
        before: Outcome per prompt of the first target.
        after: Outcome per prompt of the second, in the same order.
    """
    _same_length(before, after)
    lost = sum(b and not a for b, a in zip(before, after, strict=True))
    won = sum(a and not b for b, a in zip(before, after, strict=True))
    if lost + won == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(lost, lost + won, 0.5).pvalue)


def paired_difference(
    before: Sequence[float], after: Sequence[float], *, draws: int = 4000, seed: int = 0
) -> tuple[float, float, float]:
    """mean(after) - mean(before) with its 95 % percentile bootstrap interval over prompts.

    Prompts are resampled, so what the two targets share on a prompt cancels.

    Args:
        before: A number per prompt of the first target (0 or 1 for a rate).
        after: The same prompts in the same order for the second.
        draws: Bootstrap resamples.
        seed: Makes the interval repeatable.

    Returns:
        ``(difference, low, high)``; ``(0, -1, 1)`` for no prompts.
    """
    _same_length(before, after)
    n = len(before)
    if n == 0:
        return 0.0, -1.0, 1.0
    import numpy as np

    gaps = np.subtract(after, before, dtype=np.float64)
    values, counts = np.unique(gaps, return_counts=True)
    # Drawing n prompts with replacement is drawing how often each distinct gap comes up.
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=draws)  # [draws, values]
    low, high = np.quantile(drawn @ values / n, (0.025, 0.975))
    return float(gaps.mean()), float(low), float(high)


def cohen_kappa(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Agreement of two raters beyond chance (Cohen 1960); 1 when both always say the same thing.

    Args:
        first: One rater's binary labels.
        second: The other's, same order.
    """
    observed = agreement(first, second)
    p, q = sum(first) / len(first), sum(second) / len(second)
    chance = p * q + (1 - p) * (1 - q)
    return 1.0 if chance == 1.0 else (observed - chance) / (1 - chance)


def agreement(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Share of items on which two raters say the same."""
    _same_length(first, second)
    if not first:
        raise ValueError("agreement needs at least one item")
    return sum(a == b for a, b in zip(first, second, strict=True)) / len(first)


def corrected_rate(observed: Rate, sensitivity: float, specificity: float) -> Rate:
    """The rate a judge with known errors would have reported without them.

    Rogan and Gladen (1978): (observed + specificity - 1) / (sensitivity + specificity - 1), applied
    to the share and to both ends of its interval, clipped to 0..1. Uncertainty of the calibration
    itself is not added.

    Args:
        observed: What the judge reported.
        sensitivity: P(judge says yes | yes) on labelled data.
        specificity: P(judge says no | no) on labelled data.
    """
    informedness = sensitivity + specificity - 1
    if informedness <= 0:
        raise ValueError("a judge no better than chance cannot be corrected")

    def correct(share: float) -> float:
        return min(1.0, max(0.0, (share + specificity - 1) / informedness))

    return Rate(
        value=correct(observed.value),
        low=correct(observed.low),
        high=correct(observed.high),
        n=observed.n,
    )


def _same_length(first: Sequence[object], second: Sequence[object]) -> None:
    if len(first) != len(second):
        raise ValueError(f"paired data needs equal lengths, got {len(first)} and {len(second)}")
