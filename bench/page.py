"""The tables in README.md and docs/performance.md: `python -m bench --page` writes them.

They are what the command printed, kept in docs/bench.json: README shows the rows that people ask
for first, docs/performance.md all of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from bench.results import own_folder, table

ROOT = own_folder()
KEPT = ROOT / "docs" / "bench.json"
BEGIN, END = "<!-- bench: written by python -m bench --page -->", "<!-- end of bench -->"
FIRST = (
    "step, 64 tokens:",
    "memory, 64 tokens: TRL SFTTrainer with",
    "memory, 64 tokens: CUT",
    "engine:",
    "SynthesizePairs",
    "contrast weights:",
    "near-duplicates of 10,000: rapidfuzz, text",
    "1,000,000 records: memory",
    "service:",
)
"""Starts of the names of the rows that README shows."""

PAGES = {ROOT / "README.md": FIRST, ROOT / "docs" / "performance.md": ("",)}


def publish(rows: Sequence[dict[str, Any]]) -> None:
    """Keeps the rows of a full run and rewrites both tables."""
    KEPT.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    write()


def write() -> None:
    """Replaces the tables; the words around them stay."""
    for page, starts in PAGES.items():
        text = page.read_text("utf-8")
        head, _, rest = text.partition(BEGIN)
        page.write_text(
            f"{head}{BEGIN}\n\n{shown(starts)}\n\n{END}{rest.partition(END)[2]}", "utf-8"
        )


def shown(starts: Sequence[str]) -> str:
    """The table of the kept rows whose names begin so, and where they were measured."""
    rows: list[dict[str, Any]] = json.loads(KEPT.read_text("utf-8"))
    chosen = [row for row in rows if row["name"].startswith(tuple(starts))]
    commits = ", ".join(dict.fromkeys(f"`{row['commit']}`" for row in chosen))
    devices = "; ".join(dict.fromkeys(row["device"] for row in chosen))
    return f"{table(chosen)}\n\n{devices}. Commits {commits}."
