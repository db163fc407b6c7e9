"""Runs all measures that are not done yet, writes bench-out/results.json, prints the table."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.page import publish
from bench.results import Book, Measure, say, table

APART = {
    "generation": (16.0, 5.0),
    "adapter": (6.0, 3.0),
    "sets": (6.0, 0.5),
    "service": (1.0, 0.2),
}
"""Modules run as ``python -m bench.NAME [--quick]`` that print a JSON list of results: minutes,
whole and quick."""

ENGINES = {"generation", "adapter"}
"""Modules that start engines."""

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


def main() -> int:
    """Command line of the benchmarks; 0 when every measure ran and every goal is met."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 rounds, 4 pairs, no DPO")
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="results folder")
    parser.add_argument("--only", default="", help="run measures whose name contains this")
    parser.add_argument("--fresh", action="store_true", help="forget finished measures")
    parser.add_argument(
        "--page", action="store_true", help="run nothing: write the tables from the last full run"
    )
    options = parser.parse_args()
    if options.page:
        rows = Book(options.out / "results.json", quick=False).rows()
        if not rows:
            parser.error(f"{options.out} holds no full run: `make bench` makes one")
        publish(rows)
        return 0
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if options.fresh:
        for journal in options.out.glob("journal*.json"):
            journal.unlink()
    book = Book(options.out / "results.json", options.quick)
    failed = run_all(book, options.quick, options.only)
    sys.stdout.write("\n" + table(book.rows()) + "\n")
    for name in failed:
        say(f"not measured: {name}")
    return 1 if failed or any(r["ratio"] < r["goal"] for r in book.rows()) else 0


def run_all(book: Book, quick: bool, only: str) -> list[str]:
    """Runs what remains, saying how long that is expected to take.

    Returns:
        Names of measures that failed; the others' results are kept.
    """
    todo = [m for m in planned(quick) if only in m.name and not book.has(m)]
    failed = []
    for place, measure in enumerate(todo):
        left = sum(m.minutes for m in todo[place:])
        say(f"{measure.name} ({len(todo) - place} left, about {left:.0f} min on an idle core)")
        begun = time.monotonic()
        try:
            book.add(measure, measure.run())
        except Exception as error:
            failed.append(measure.name)
            say(f"  failed: {type(error).__name__}: {error}")
        say(f"  {time.monotonic() - begun:.0f} s")
    return failed


def planned(quick: bool) -> list[Measure]:
    """The step's measures, then one per module that is run apart."""
    import torch

    from bench import step

    torch.set_num_threads(1)
    there = [name for name in APART if importlib.util.find_spec(f"bench.{name}")]
    if quick:
        there = [name for name in there if name not in ENGINES]  # a start alone takes minutes
    return step.measures(quick) + [
        Measure(name, APART[name][quick], lambda name=name: apart(name, quick))  # type: ignore[misc]
        for name in there
    ]


def apart(name: str, quick: bool) -> list[dict[str, Any]]:
    """Results of a module that runs in a process of its own."""
    command = [sys.executable, "-m", f"bench.{name}", *(["--quick"] if quick else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return [{**row, "quick": quick} for row in rows]


if __name__ == "__main__":
    sys.exit(main())
