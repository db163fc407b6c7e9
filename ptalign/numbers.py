"""The one place that rounds a number for a reader.

One rule for reasons, reports and the study: shares print as whole percent, halves go up, and a
change that stands beside two printed shares is the difference of what is printed. 52 % and 3 % are
49 points apart, though the exact change may be 48.4: a reader who subtracts must not find an error.
Exact numbers are in report.json.
"""

from __future__ import annotations

import math
from decimal import ROUND_HALF_UP, Context, Decimal

MOST_DIGITS = 6
"""Decimals after which a number counts as lying on its limit."""
_WIDE = Context(prec=400, rounding=ROUND_HALF_UP, traps=[])
"""Room for every float with its decimals, and no exceptions: infinite less infinite is nan."""


def rounded(value: float, digits: int = 0) -> Decimal:
    """A number with so many decimals, halves away from zero.

    Python's own `round` and formats turn 12.5 into 12 and 37.5 into 38. Twelve digits are taken
    first: 29 of 200 is 14.499999999999998 percent to a computer and 14.5 to everybody else.

    An infinite number, or one that is none, stays what it is: a measure without a bound must not
    cost the reader the rest of the report.
    """
    if not math.isfinite(value):
        return Decimal(value)
    made = Decimal(f"{value:.12g}").quantize(Decimal(1).scaleb(-digits), context=_WIDE)
    return made if made else abs(made)  # "-0" reads like a mistake


def decimal(value: float | Decimal, digits: int = 0) -> str:
    """`rounded`, as text."""
    return _text(rounded(float(value), digits))


def signed(value: float | Decimal, digits: int = 0) -> str:
    """A number with its sign, and a minus that is as wide as the plus; zero has no sign."""
    made = rounded(float(value), digits)
    return _text(made, "" if made.is_nan() or not made else "+").replace("-", "−")


def _text(made: Decimal, sign: str = "") -> str:
    """All digits, no exponent; ``inf`` and ``nan``, as Python's floats print."""
    return f"{made:{sign}f}" if made.is_finite() else f"{float(made):{sign}f}"


def whole(share: float) -> float:
    """A share in percent as the report prints it: an int, unless it is infinite or no number."""
    made = rounded(100 * share)
    return int(made) if made.is_finite() else float(made)


def gap(before: float, after: float, digits: int = 0) -> Decimal:
    """Points from one share to another: the difference of the two as they are printed."""
    return _WIDE.subtract(rounded(100 * after, digits), rounded(100 * before, digits))


def apart(before: float, after: float, exact: float, digits: int = 0) -> Decimal:
    """A change that stands beside two numbers: their difference as they are printed.

    Args:
        before: The number that was.
        after: The number that is.
        exact: The change. It is printed where it is not that of the two but for their rounding, as
            of numbers over other prompts.
        digits: Decimals of all three.
    """
    made = _WIDE.subtract(rounded(after, digits), rounded(before, digits))
    close = abs(float(made) - exact) <= 10.0**-digits
    return made if close else rounded(exact, digits)


def digits_beside(value: float, limit: float, digits: int = 0, *, least: bool = False) -> int:
    """Decimals that keep a printed number on its own side of its limit.

    A limit that 5.04 breaks must not stand beside a printed "5.0".

    Args:
        value: What was measured.
        limit: What it may be at most.
        digits: Decimals where they are enough.
        least: The limit is what it must be at least.

    Returns:
        `digits` or more; `digits` where no number of decimals a person reads tells the two apart.
    """
    kept = value >= limit if least else value <= limit
    for more in range(digits, MOST_DIGITS + 1):
        made = float(rounded(value, more))
        if (made >= limit if least else made <= limit) == kept:
            return more
    return digits
