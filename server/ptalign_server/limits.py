"""pydantic's limits and errors in words that whoever sent the value can use."""

from __future__ import annotations

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import ValidationError
from pydantic.fields import FieldInfo


def bounds(field: FieldInfo) -> str:
    """``1..8``, ``greater than 0 and at most 10``, ``at least 1``; empty where there are none.

    Both ends at once, so that the next try fits.
    """
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


def plain(message: str) -> str:
    """pydantic's message without the name of the exception that a validator raised."""
    return message.removeprefix("Value error, ").removeprefix("Assertion failed, ")


BAD_YAML = (yaml.YAMLError, TypeError, ValueError, RecursionError)
"""What a file of entries raises that cannot be used: pydantic's errors, wrong encodings, impossible
dates and lists without end among them."""


def in_file(error: Exception) -> str:
    """What is wrong with a YAML list, in one line: entries are counted from 0, as in an index.

    Values are left out: a system prompt may be long.
    """
    if not isinstance(error, ValidationError):
        return " ".join(str(error).split())
    found = error.errors(include_url=False, include_input=False)
    places = [".".join(str(part) for part in item["loc"]) for item in found]
    lines = zip(places, (plain(item["msg"]) for item in found), strict=True)
    return "; ".join(f"{place}: {text}" if place else text for place, text in lines)


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
