"""Numbers checked against textbooks and against scipy where it has the same thing."""

from __future__ import annotations

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
    fixed = stats.corrected_rate(seen, 0.9, 0.8)
    assert fixed.value == pytest.approx(0.3)
    assert fixed.low < 0.3 < fixed.high
    with pytest.raises(ValueError, match="chance"):
        stats.corrected_rate(seen, 0.5, 0.5)
