"""Writes docs/faults.md from docs/faults.json: `python tests/faults/sheet.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
RESULTS = DOCS / "faults.json"
PAGE = DOCS / "faults.md"
BEGIN, END = "<!-- sheet: written by tests/faults/sheet.py -->", "<!-- end of sheet -->"


def rows() -> list[dict[str, Any]]:
    """What the runs kept."""
    found: list[dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    return found


def table(found: list[dict[str, Any]]) -> str:
    """One line per subject: how much was asked, run and found bad."""
    lines = [
        "| tier | what | asked | run | bad | notes | commit |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found:
        notes = ", ".join(f"{k} {v}" for k, v in row["notes"].items() if v != "0")
        cells = (row["tier"], row["what"], row["planned"], row["ran"], row["bad"], notes)
        lines.append(f"| {' | '.join(map(str, cells))} | {row['commit']} |")
    return "\n".join(lines)


def summary(tier: int) -> str:
    """The tier's score in one line."""
    mine = [row for row in rows() if row["tier"] == tier]
    good = sum(row["passed"] for row in mine)
    short = sum(row["ran"] < row["planned"] for row in mine)
    return (
        f"tier {tier}: {good} of {len(mine)} rows without a fault, {sum(r['bad'] for r in mine)} "
        f"faults; {short} rows run smaller than asked. Sheet: {PAGE.relative_to(DOCS.parent)}"
    )


def write() -> None:
    """Replaces the sheet in the page; the words around it stay."""
    text = PAGE.read_text() if PAGE.exists() else f"# Faults\n\n{BEGIN}\n{END}\n"
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{BEGIN}\n\n{table(rows())}\n\n{END}{tail}")


if __name__ == "__main__":
    write()
