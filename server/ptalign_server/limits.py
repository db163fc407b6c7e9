"""The limits of a field in words: both ends at once, so that the next try fits."""

from __future__ import annotations

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo


def bounds(field: FieldInfo) -> str:
    """``1..8``, ``greater than 0 and at most 10``, ``at least 1``; empty where there are none."""
    found = {type(mark): mark for mark in field.metadata}
    low, over = found.get(Ge), found.get(Gt)
    high, under = found.get(Le), found.get(Lt)
    if low is not None and high is not None:
        return f"{_number(low.ge)}..{_number(high.le)}"
    words = (
        f"at least {_number(low.ge)}" if low is not None else "",
        f"greater than {_number(over.gt)}" if over is not None else "",
        f"at most {_number(high.le)}" if high is not None else "",
        f"less than {_number(under.lt)}" if under is not None else "",
    )
    return " and ".join(word for word in words if word)


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
