"""Rounding for readers: halves go up, differences match what is printed, limits are not hidden."""

from __future__ import annotations

import math

import pytest

from ptalign.numbers import decimal, digits_beside, gap, signed, whole


@pytest.mark.parametrize(
    ("share", "printed"),
    [
        (0.125, 13),
        (0.375, 38),
        (0.625, 63),
        (29 / 200, 15),  # 14.499999999999998 in floating point
        (0.0, 0),
        (1.0, 100),
        (0.12499, 12),
    ],
)
def test_halves_go_up(share: float, printed: int) -> None:
    assert whole(share) == printed


def test_a_change_is_the_difference_of_the_printed_shares() -> None:
    assert (whole(33 / 64), whole(2 / 64)) == (52, 3)
    assert gap(33 / 64, 2 / 64) == -49  # exactly -48.4
    assert (whole(1 / 64), whole(2 / 64), gap(1 / 64, 2 / 64)) == (2, 3, 1)


def test_signs_and_zeros() -> None:
    assert signed(-1.25, 1) == "−1.3"
    assert signed(0.014, 2) == "+0.01"
    assert signed(-0.001, 2) == "0.00"
    assert decimal(-0.001, 2) == "0.00"
    assert decimal(0.1147, 3) == "0.115"
    assert decimal(1e-9, 1) == "0.0"
    assert decimal(12345678.5) == "12345679"


def test_a_number_stays_on_its_own_side_of_the_limit() -> None:
    assert digits_beside(5.04, 5.0, 1) == 2
    assert digits_beside(4.96, 5.0, 1) == 1
    assert digits_beside(59.96, 60.0, 1, least=True) == 2
    assert digits_beside(60.0, 60.0, 1, least=True) == 1
    assert digits_beside(1 / 3 + 0.001, 1 / 3, 2) == 3
    assert digits_beside(2.5, 2.5) == 1  # 3 would look over it
    assert digits_beside(5.0 + 1e-12, 5.0, 1) == 1


@pytest.mark.parametrize(
    ("value", "plain", "with_sign"),
    [
        (math.inf, "inf", "+inf"),
        (-math.inf, "-inf", "−inf"),
        (math.nan, "nan", "nan"),
        (1e30, f"1{'0' * 30}.00", f"+1{'0' * 30}.00"),
        (-1e30, f"-1{'0' * 30}.00", f"−1{'0' * 30}.00"),
        (1e308, f"1{'0' * 308}.00", f"+1{'0' * 308}.00"),
    ],
)
def test_a_number_without_a_bound_is_printed(value: float, plain: str, with_sign: str) -> None:
    """One of them raised, and the whole report was lost."""
    assert decimal(value, 2) == plain
    assert signed(value, 2) == with_sign
    assert digits_beside(value, 0.5, 2) == 2


def test_a_share_without_a_bound_is_printed() -> None:
    shares = (math.inf, -math.inf, math.nan, 1e30)
    assert [str(whole(s)) for s in shares] == ["inf", "-inf", "nan", f"1{'0' * 32}"]
    assert gap(0, math.inf) == math.inf
    assert gap(math.inf, math.inf).is_nan()
    assert gap(0, 1e30) == 10**32
