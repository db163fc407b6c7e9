"""The tables that people read are what the benchmark printed."""

from __future__ import annotations

import json

from bench.page import BEGIN, END, KEPT, PAGES, shown
from bench.results import amount, table


def test_readme_and_performance_page_show_the_kept_results() -> None:
    for page, starts in PAGES.items():
        text = page.read_text("utf-8")
        inside = text.partition(BEGIN)[2].partition(END)[0].strip()
        assert inside == shown(starts), f"{page.name}: run python -m bench --page"


def test_kept_results_are_of_full_runs_and_say_where_from() -> None:
    rows = json.loads(KEPT.read_text("utf-8"))
    assert rows
    for row in rows:
        assert not row["quick"], row["name"]
        assert row["commit"], row["name"]
        assert row["device"], row["name"]


def test_a_missed_goal_is_said() -> None:
    row = {
        "name": "a",
        "ours": 1.0,
        "theirs": 1234.5,
        "ratio": 0.5,
        "goal": 2.0,
        "unit": "s",
        "n": 1000,
        "spread": 0.0,
        "device": "cpu",
    }
    assert table([row]).splitlines()[-1] == "| a | 1 s | 1,230 s | 0.50 | ≥ 2 (missed) | 1,000 |"
    assert amount(0.00001234) == "1.23e-05"
