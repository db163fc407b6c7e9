"""Changes on the same prompts: intervals against published ones, groups, many tests at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptalign import stats


@pytest.mark.parametrize(
    ("lost", "won", "n", "low", "high"),
    [
        # Fagerland, Lydersen and Laake (2014), Statistics in Medicine 33:2850: Tango's interval of
        # airway hyper-responsiveness before and after a transplant (Bentur et al. 2009), and of
        # complete response before and after a therapy (Cavo et al. 2012).
        (7, 1, 21, -0.517, -0.026),
        (16, 6, 161, -0.1240, -0.0054),
    ],
)
def test_tango_gives_the_published_intervals(lost, won, n, low, high):
    found = stats.tango(lost, won, n)
    assert found[0] == pytest.approx((won - lost) / n)
    assert found[1:] == pytest.approx((low, high), abs=5e-4)


def test_no_change_has_the_width_of_its_sample():
    """z^2 / (n + z^2): 3.84 / 53.84 for 50 prompts."""
    assert stats.tango(0, 0, 50) == (
        0.0,
        pytest.approx(-0.0713, abs=5e-5),
        pytest.approx(0.0713, abs=5e-5),
    )
    assert stats.tango(0, 0, 0) == (0.0, -1.0, 1.0)
    with pytest.raises(ValueError, match="counts"):
        stats.tango(2, 2, 3)


COUNTS = st.integers(1, 200).flatmap(
    lambda n: st.integers(0, n).flatmap(
        lambda lost: st.tuples(st.just(lost), st.integers(0, n - lost), st.just(n))
    )
)


@given(COUNTS)
def test_tango_holds_its_change_and_agrees_with_mcnemars_score_test(counts):
    lost, won, n = counts
    change, low, high = stats.tango(lost, won, n)
    assert -1 <= low <= change <= high <= 1
    assert low < high
    assert stats.tango(won, lost, n) == pytest.approx((-change, -high, -low))
    score = (won - lost) ** 2 - stats.Z95**2 * (lost + won)
    if abs(score) > 1e-6:
        assert (low > 0 or high < 0) == (score > 0)


def test_alike_prompts_count_for_less():
    """Two groups of two that say the same within and differ between: two outcomes, not four.

    Mean 1/2. Whole groups: 2 / (2 - 1) * ((2 - 1)^2 + (0 - 1)^2) = 4; each by itself: 4 / 4 = 1.
    """
    assert stats.design_effect([1, 1, 0, 0], "aabb") == pytest.approx(4.0)
    # Groups that hold one of each tell no less than single prompts.
    assert stats.design_effect([1, 0, 1, 0], "aabb") == 1.0
    assert stats.design_effect([1, 0, 1, 0], "abcd") == 1.0
    assert stats.design_effect([], "") == 1.0


def test_where_all_outcomes_are_the_same_a_group_counts_as_one():
    assert stats.design_effect([0.0] * 6, "aabbcc") == 2.0
    assert stats.tango(0, 0, 6, 2.0) == stats.tango(0, 0, 3)
    assert stats.wilson(0, 6, 2.0).high == stats.wilson(0, 3).high
    assert stats.wilson(0, 6, 2.0).n == 6


def test_grouped_intervals_hold_the_true_share():
    """64 situations asked in 5 ways that mostly go one way: as if independent, 70 % hold it."""
    import numpy as np

    rng, kept, plain = np.random.default_rng(0), 0, 0
    groups = np.repeat(np.arange(64), 5).tolist()
    for _ in range(400):
        share = np.repeat(rng.beta(0.2 * 3 / 7, 0.8 * 3 / 7, 64), 5)
        hits = (rng.random(320) < share).astype(int).tolist()
        found = stats.wilson(sum(hits), 320, stats.design_effect(hits, groups))
        kept += found.low <= 0.2 <= found.high
        alone = stats.wilson(sum(hits), 320)
        plain += alone.low <= 0.2 <= alone.high
    assert plain < 0.8 * 400
    assert kept > 0.92 * 400


def test_holm_by_hand():
    """Sorted .005 .01 .03 .04 times 4 3 2 1: .02 .03 .06 .04, and none under one before it."""
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.6, 0.7]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_a_ratio_is_resampled_by_whole_texts():
    """Ten texts of 10 or 30 tokens at 0.1 or 0.3 nats a token: 50 nats of 200 tokens."""
    totals, sizes = [1.0] * 5 + [9.0] * 5, [10] * 5 + [30] * 5
    low, high = stats.ratio_interval(totals, sizes)
    assert low < 50 / 200 < high
    assert low >= 0.1
    assert high <= 0.3
    assert stats.ratio_interval([2.0] * 9, [4] * 9) == (0.5, 0.5)
    assert stats.ratio_interval([2.0], [4]) is None
    with pytest.raises(ValueError, match="at least one item"):
        stats.ratio_interval([], [])
