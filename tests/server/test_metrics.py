"""Label values: a closed set that holds what the stages really say."""

from __future__ import annotations

import re
from pathlib import Path

import ptalign
from ptalign_server.metrics import REASONS, rejections

CORE = Path(ptalign.__file__).parent
SOURCES = [*(CORE / "asking").glob("*.py"), *(CORE / "answering").glob("*.py")]
NO_REASONS = {"operator", "twin"}
"""Strings that functions of those files return for other purposes."""


def reasons() -> set[str]:
    """Every reason in the sources of the two stages that reject."""
    found: set[str] = set()
    for source in SOURCES:
        text = source.read_text("utf-8")
        found |= set(re.findall(r'return "([a-z_]+)"', text))
        found |= set(re.findall(r'reason = "([a-z_]+)"', text))
        found |= set(re.findall(r'_reject(?:ed\[|\()f?"([a-z_]+)"', text))
    return found - NO_REASONS


def test_no_reason_is_lost_among_the_others() -> None:
    assert {"not_apart", "anchor_malformed", "twin_given_up", "off_topic"} <= reasons()
    for reason in reasons():
        for said in (reason, f"toxic_{reason}", f"positive_{reason}", f"twin_{reason}"):
            assert "other" not in rejections({f"rejected.{said}": 1}), said


def test_what_a_parent_lost_has_its_reason() -> None:
    counts = {"rejected.parent_not_apart": 1, "rejected.parent_swapped": 2}
    assert rejections(counts) == {"not_apart": 1, "swapped": 2}


def test_voices_are_added_up_and_texts_never_become_labels() -> None:
    counts = {"rejected.toxic_harsh": 2, "rejected.positive_harsh": 1, "rejected.a b": 4, "x": 9}
    assert rejections(counts) == {"harsh": 3, "other": 4}
    assert all(re.fullmatch("[a-z_]+", reason) for reason in REASONS)
