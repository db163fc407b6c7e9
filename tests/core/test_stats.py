"""Numbers checked against textbooks and against scipy where it has the same thing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from ptalign import stats


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17:857, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_newcombes_published_intervals(successes, n, low, high):
    rate = stats.wilson(successes, n)
    assert rate.low == pytest.approx(low, abs=5e-5)
    assert rate.high == pytest.approx(high, abs=5e-5)
    assert rate.value == successes / n


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_equals_scipys_and_holds_its_share(case):
    successes, n = case
    rate = stats.wilson(successes, n)
    theirs = binomtest(successes, n).proportion_ci(method="wilson")
    assert rate.low == pytest.approx(theirs.low, abs=1e-9)
    assert rate.high == pytest.approx(theirs.high, abs=1e-9)
    assert rate.low <= rate.value <= rate.high


def test_wilson_of_nothing_says_nothing_and_impossible_counts_are_refused():
    assert (stats.wilson(0, 0).low, stats.wilson(0, 0).high) == (0.0, 1.0)
    with pytest.raises(ValueError, match="successes"):
        stats.wilson(3, 2)


def test_mcnemar_by_hand():
    """9 prompts turned from yes to no, 1 from no to yes, 5 stayed.

    p = 2 * P(Bin(10, 1/2) <= 1) = 2 * (1 + 10) / 1024.
    """
    before = [True] * 9 + [False] + [True] * 5
    after = [False] * 9 + [True] + [True] * 5
    assert stats.mcnemar(before, after) == pytest.approx(22 / 1024)


def test_mcnemar_of_equal_outcomes_is_one_and_lengths_must_match():
    assert stats.mcnemar([True, False], [True, False]) == 1.0
    with pytest.raises(ValueError, match="equal lengths"):
        stats.mcnemar([True], [])


def test_paired_difference_is_tighter_than_unpaired_and_repeatable():
    before = [1.0] * 50 + [0.0] * 50
    after = [1.0] * 40 + [0.0] * 60
    difference, low, high = stats.paired_difference(before, after)
    assert difference == pytest.approx(-0.10)
    # Ten discordant prompts of 100, all one way: sd of the mean gap is 0.03.
    assert low == pytest.approx(-0.10 - 1.96 * 0.03, abs=0.012)
    assert high == pytest.approx(-0.10 + 1.96 * 0.03, abs=0.012)
    assert high < 0
    assert stats.paired_difference(before, after) == (difference, low, high)
    assert stats.paired_difference([], []) == (0.0, -1.0, 1.0)


def test_kappa_of_the_textbook_table():
    """Two raters, 50 items: 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no. kappa = 0.4."""
    first = [True] * 25 + [False] * 25
    second = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    assert stats.agreement(first, second) == pytest.approx(0.7)
    assert stats.cohen_kappa(first, second) == pytest.approx(0.4)
    assert stats.cohen_kappa([True, True], [True, True]) == 1.0


def test_correction_recovers_the_true_rate():
    """True share 0.3 seen by a judge with sensitivity 0.9 and specificity 0.8 is 0.41."""
    seen = stats.wilson(410, 1000)
    fixed = stats.corrected_rate(seen, stats.wilson(90, 100), stats.wilson(80, 100))
    assert fixed.value == pytest.approx(0.3)
    # Lang and Reiczigel's formulas by hand: 0.2915 -+ 0.0953 with z = 1.96.
    assert (fixed.low, fixed.high) == pytest.approx((0.1961, 0.3868), abs=5e-5)
    coin = stats.wilson(50, 100)
    with pytest.raises(ValueError, match="chance"):
        stats.corrected_rate(seen, coin, coin)
    with pytest.raises(ValueError, match="none"):
        stats.corrected_rate(seen, stats.wilson(0, 0), coin)


@pytest.mark.parametrize(
    ("true", "n", "sensitivity", "specificity", "yes", "no"),
    [
        (0.3, 64, 0.8, 0.9, 16, 16),
        (0.05, 64, 0.6, 0.95, 16, 16),
        (0.9, 64, 0.9, 0.9, 16, 16),
        (0.3, 300, 0.78, 0.97, 296, 604),
    ],
)
def test_the_corrected_interval_covers_what_the_labelled_data_leave_open(
    true, n, sensitivity, specificity, yes, no
):
    """Replies and labels are drawn 2000 times; taking the labelled shares for exact covers less."""
    draw = np.random.default_rng(0).binomial
    held = taken_for_exact = 0
    for _ in range(2000):
        seen = stats.wilson(draw(n, true * sensitivity + (1 - true) * (1 - specificity)), n)
        known = stats.wilson(draw(yes, sensitivity), yes), stats.wilson(draw(no, specificity), no)
        rate = stats.corrected_rate(seen, *known)
        held += rate.low <= true <= rate.high
        found, let_be = (share.value for share in known)
        ends = [(end + let_be - 1) / (found + let_be - 1) for end in (seen.low, seen.high)]
        taken_for_exact += max(0, ends[0]) <= true <= min(1, ends[1])
    assert held / 2000 >= 0.94
    assert taken_for_exact < held


def test_a_corrected_rate_stays_a_share_and_in_its_interval():
    never, all_right = stats.wilson(0, 60), stats.wilson(16, 16)
    low = stats.corrected_rate(never, stats.wilson(12, 16), stats.wilson(12, 16))
    assert (low.value, low.low) == (0.0, 0.0)
    assert 0 < low.high < 0.2
    high = stats.corrected_rate(stats.wilson(60, 60), stats.wilson(9, 16), all_right)
    assert (high.value, high.high) == (1.0, 1.0)
    assert high.n == 60


def test_grouped_outcomes_widen_the_corrected_interval_too():
    """A rate over 40 prompts with a design effect of 4 says as much as one over 10."""
    judge = stats.wilson(14, 16), stats.wilson(15, 16)
    ten = stats.corrected_rate(stats.wilson(3, 10), *judge)
    grouped = stats.corrected_rate(stats.wilson(12, 40, 4.0), *judge)
    assert (grouped.low, grouped.high) == pytest.approx((ten.low, ten.high))
    assert grouped.n == 40


def test_informedness_by_hand():
    """9 of 16 (0.332 to 0.769) and 16 of 16 (from 0.806): 0.5625 less hypot(0.231, 0.194)."""
    value, low = stats.informedness(stats.wilson(9, 16), stats.wilson(16, 16))
    assert value == 0.5625
    assert low == pytest.approx(0.2613, abs=5e-5)
    assert stats.informedness(stats.wilson(8, 16), stats.wilson(10, 16))[1] < 0
