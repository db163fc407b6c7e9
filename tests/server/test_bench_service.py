"""The service's benchmark runs: it broke unseen when Align came to refuse what it sent."""

from __future__ import annotations

import asyncio

from bench.service import measure


def test_every_row_is_measured() -> None:
    rows = asyncio.run(measure(calls=60, rounds=1, watchers=20))
    assert len(rows) == 10
    # memory of so few watchers may be nothing
    assert all(row["ours"] > 0 for row in rows if "memory" not in row["name"]), rows
