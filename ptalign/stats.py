"""How sure we are: intervals of shares and of changes, paired tests, agreement between raters.

Pure functions on plain sequences. scipy does the distributions; nothing here reads a file.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

from ptalign.nouns import Rate

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""

DRAWS = 4000
"""Resamples of a bootstrap interval."""


def wilson(successes: int, n: int, effect: float = 1.0) -> Rate:
    """A share with its 95 % score interval.

    Wilson (1927), without continuity correction: sensible at 0 and n, unlike the normal interval.

    Args:
        successes: How many of `n`.
        n: How many were scored; 0 gives the interval that says nothing, 0..1.
        effect: `design_effect` of outcomes that come in groups: `n` counts as n / effect.
    """
    if not 0 <= successes <= max(n, 0):
        raise ValueError(f"successes must be in 0..n, got {successes} of {n}")
    if n == 0:
        return Rate(value=0.0, low=0.0, high=1.0, n=0)
    share, count = successes / n, n / effect
    spread = Z95**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = Z95 / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Rate(value=share, low=low, high=high, n=n)


def design_effect(values: Sequence[float], groups: Sequence[Hashable]) -> float:
    """How much less the outcomes of alike prompts tell than as many independent ones would.

    The variance of the mean with whole groups as the units, over the variance with each outcome by
    itself. Dividing counts by it lets methods for independent outcomes be used on groups (Rao and
    Scott 1992, A simple method for the analysis of clustered binary data, Biometrics 48:577). Never
    under 1. Where all outcomes are the same nothing shows how alike those of a group are: then a
    group counts as one outcome.

    Args:
        values: One outcome per prompt, or one difference of two outcomes.
        groups: What each prompt belongs to, same order.
    """
    _same_length(values, groups)
    n, sizes = len(values), Counter(groups)
    if n == 0 or len(sizes) == n:
        return 1.0
    mean = sum(values) / n
    off: dict[Hashable, float] = dict.fromkeys(sizes, 0.0)
    for value, group in zip(values, groups, strict=True):
        off[group] += value - mean
    alone = sum((value - mean) ** 2 for value in values)
    if alone == 0 or len(sizes) == 1:
        return sum(size**2 for size in sizes.values()) / n
    small = len(sizes) / (len(sizes) - 1)
    return max(1.0, small * sum(gap**2 for gap in off.values()) / alone)


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Exact two-sided p-value that two outcomes on the same prompts have one rate.

    McNemar's test as a binomial test on the discordant pairs (b + c trials, p = 1/2). Each prompt
    counts as independent: where several ask about one situation, the p-value is too small, and
    the interval of `tango` with a design effect is what to go by.

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


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for being many (Holm 1979), in the order given.

    Below 0.05 means: not chance, although so many tests were made; provided that each was right by
    itself. McNemar's is too small where prompts share a situation: `tango`'s interval knows that.
    """
    ordered = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(ordered):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def tango(lost: int, won: int, n: int, effect: float = 1.0) -> tuple[float, float, float]:
    """(won - lost) / n with its 95 % score interval, for yes-or-no outcomes on the same prompts.

    Tango (1998), Equivalence test and confidence interval for the difference in proportions for
    the paired-sample design, Statistics in Medicine 17:891: all changes of which the score test
    does not tell the seen one apart. Unlike a bootstrap it has a width where no prompt changed:
    z^2 / (n + z^2) to either side.

    Args:
        lost: Prompts whose outcome went from yes to no.
        won: Prompts whose outcome went from no to yes.
        n: All prompts; 0 gives the interval that says nothing, -1..1.
        effect: `design_effect` of the differences: every count is divided by it.

    Returns:
        ``(difference, low, high)``.
    """
    if min(lost, won) < 0 or lost + won > n:
        raise ValueError(f"counts must be in 0..n, got {lost} and {won} of {n}")
    if n == 0:
        return 0.0, -1.0, 1.0
    # The lower end is the upper end of the same change seen the other way round.
    counts = lost / effect, won / effect, n / effect
    return (won - lost) / n, -_tango_high(counts[1], counts[0], counts[2]), _tango_high(*counts)


def _tango_high(lost: float, won: float, n: float) -> float:
    """The change above the seen one at which the score statistic is -z."""
    from scipy.optimize import brentq

    def score(change: float) -> float:
        b = (2 * n + lost - won) * change - lost - won
        c = -lost * change * (1 - change)
        # share of "lost" prompts that is likeliest if `change` were true
        share = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
        variance = n * (2 * share + change * (1 - change))
        return (won - lost - n * change) / math.sqrt(variance) + Z95

    seen, edge = (won - lost) / n, 1e-12
    if seen >= 1 - 2 * edge:
        return 1.0
    return float(brentq(score, max(seen, -1.0) + edge, 1 - edge, xtol=1e-12))


def paired_difference(
    before: Sequence[float],
    after: Sequence[float],
    effect: float = 1.0,
) -> tuple[float, float, float]:
    """mean(after) - mean(before) with its 95 % percentile bootstrap interval over prompts.

    Prompts are resampled, so what the two targets share on a prompt cancels. For numbers: of
    yes-or-no outcomes `tango` is the interval, since resampling prompts of which none changed
    says that none ever would.

    Args:
        before: A number per prompt of the first target.
        after: The same prompts in the same order for the second.
        effect: `design_effect` of the differences: so many times fewer prompts are drawn.

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
    size = max(1, round(n / effect))
    # Drawing prompts with replacement is drawing how often each distinct gap comes up.
    drawn = np.random.default_rng(0).multinomial(size, counts / n, size=DRAWS)  # [draws, values]
    low, high = np.quantile(drawn @ values / size, (0.025, 0.975))
    return float(gaps.mean()), float(low), float(high)


def ratio_interval(totals: Sequence[float], sizes: Sequence[float]) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval of sum(totals) / sum(sizes), over whole items.

    For a mean per token where the tokens of a text go together. One item alone does not tell how
    items differ, and has none. With fewer than some twenty items
    it is a little too narrow, as percentile intervals are.

    Args:
        totals: A sum per item.
        sizes: What it was summed over, same order; above 0.
    """
    _same_length(totals, sizes)
    if not totals or min(sizes) <= 0:
        raise ValueError("a ratio needs at least one item, and sizes above 0")
    if len(totals) == 1:
        return None
    import numpy as np

    picked = np.random.default_rng(0).integers(len(totals), size=(DRAWS, len(totals)))
    ratios = np.asarray(totals)[picked].sum(axis=1) / np.asarray(sizes)[picked].sum(axis=1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(low), float(high)


def difference(before: Rate, after: Rate) -> tuple[float, float, float]:
    """The change of a share between other prompts, with its 95 % interval.

    Newcombe (1998), method 10. Shares of the same prompts have `tango`, which is narrower.
    """
    value = after.value - before.value
    low = value - math.hypot(after.value - after.low, before.high - before.value)
    high = value + math.hypot(after.high - after.value, before.value - before.low)
    return value, low, high


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


def corrected_rate(observed: Rate, sensitivity: Rate, specificity: Rate) -> Rate:
    """The rate without the errors that a judge makes on labelled data.

    Rogan and Gladen (1978): (observed + specificity - 1) / (sensitivity + specificity - 1), with
    the 95 % interval of Lang and Reiczigel (2014), Preventive Veterinary Medicine 113:13: the delta
    method on counts that are drawn in a little, so that it covers the sampling of the labelled
    data as well as that of the replies. Both are clipped to 0..1. It holds if the judge errs on
    the replies as often as on the labelled data.

    Args:
        observed: What the judge reported.
        sensitivity: P(judge says yes | yes), with the number of labelled yeses as its n.
        specificity: P(judge says no | no), likewise.

    Raises:
        ValueError: The judge is no better than chance on the labelled data, or one of them is of
            nothing.
    """
    if 0 in (observed.n, sensitivity.n, specificity.n):
        raise ValueError("a rate is corrected from replies and labels of both kinds, got none")
    informedness = sensitivity.value + specificity.value - 1
    if informedness <= 0:
        raise ValueError("a judge no better than chance cannot be corrected")
    value = (observed.value + specificity.value - 1) / informedness
    seen, seen_variance = _shrunk(observed, Z95**2 / 2)
    true_yes, yes_variance = _shrunk(sensitivity, 1)
    true_no, no_variance = _shrunk(specificity, 1)
    slope = true_yes + true_no - 1
    share = (seen + true_no - 1) / slope
    spread = seen_variance + share**2 * yes_variance + (1 - share) ** 2 * no_variance
    centre = share + 2 * Z95**2 * (share * yes_variance - (1 - share) * no_variance)
    half = Z95 * math.sqrt(spread) / slope
    value, low, high = (min(1.0, max(0.0, x)) for x in (value, centre - half, centre + half))
    return Rate(value=value, low=min(low, value), high=max(high, value), n=observed.n)


def informedness(sensitivity: Rate, specificity: Rate) -> tuple[float, float]:
    """Youden's J = sensitivity + specificity - 1, and the lower end of its 95 % interval.

    The interval is Newcombe's (1998) of the difference of two shares, here that of yeses among
    yes and among no. A coin has 0.
    """
    value = sensitivity.value + specificity.value - 1
    below = math.hypot(sensitivity.value - sensitivity.low, specificity.value - specificity.low)
    return value, value - below


def _shrunk(rate: Rate, added: float) -> tuple[float, float]:
    """A share with so many successes and failures added, and its variance."""
    n = _independent(rate)
    share = (n * rate.value + added) / (n + 2 * added)
    return share, share * (1 - share) / (n + 2 * added)


def _independent(rate: Rate) -> float:
    """How many independent outcomes have the Wilson interval of this rate: n, or n / effect."""
    half = (rate.high - rate.low) / 2
    # half^2 (1 + s)^2 = p (1 - p) s + s^2 / 4, with s = z^2 / n
    a, b = 1 / 4 - half**2, rate.value * (1 - rate.value) - 2 * half**2
    return Z95**2 * 2 * a / (math.sqrt(b * b + 4 * a * half**2) - b)


def _same_length(first: Sequence[object], second: Sequence[object]) -> None:
    if len(first) != len(second):
        raise ValueError(f"paired data needs equal lengths, got {len(first)} and {len(second)}")
