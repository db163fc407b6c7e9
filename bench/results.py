"""What a measurement is, and the file and table it ends up in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Result:
    """One row of the table. `ratio` is better when larger; every goal is a lower bound."""

    name: str
    ours: float
    theirs: float
    ratio: float
    goal: float
    unit: str
    n: int
    """Rounds, or items."""
    spread: float
    """Half the range of the ratio over the rounds."""
    device: str
    quick: bool = False


@dataclass(frozen=True, slots=True)
class Measure:
    """A piece of work that is done whole or repeated; gives one or several results."""

    name: str
    minutes: float
    """Expected on one idle core."""
    run: Callable[[], Sequence[Result | dict[str, Any]]]


def device_name() -> str:
    """The processor's model and how many threads are used."""
    lines = (
        Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    )
    model = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "cpu")
    return f"{model}, 1 thread"


def say(line: str) -> None:
    """Progress goes to stderr: stdout is the table."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def own_folder() -> Path:
    """The repository root, for subprocesses."""
    return Path(__file__).resolve().parent.parent


def status(field: str, pid: int | str = "self") -> int:
    """A size of a process in bytes, e.g. ``VmRSS`` or its peak ``VmHWM``."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/{pid}/status")


def compared(
    name: str, ours: Sequence[float], theirs: Sequence[float], goal: float, unit: str, quick: bool
) -> Result:
    """A cost of theirs over ours, per round; medians are shown."""
    ratios = [t / o for t, o in zip(theirs, ours, strict=True)]
    return Result(
        name=name,
        ours=median(ours),
        theirs=median(theirs),
        ratio=median(ratios),
        goal=goal,
        unit=unit,
        n=len(ratios),
        spread=(max(ratios) - min(ratios)) / 2,
        device=device_name(),
        quick=quick,
    )


class Book:
    """bench-out/results.json, written after each measure so that a later call goes on."""

    def __init__(self, file: Path, quick: bool) -> None:
        self._file, self._quick = file, quick
        self._done: dict[str, list[dict[str, Any]]] = {}
        journal = self._journal()
        if journal.is_file():
            self._done = json.loads(journal.read_text("utf-8"))

    def _journal(self) -> Path:
        return self._file.with_name("journal-quick.json" if self._quick else "journal.json")

    def has(self, measure: Measure) -> bool:
        """Whether this measure was finished by an earlier call."""
        return measure.name in self._done

    def add(self, measure: Measure, results: Iterable[Result | dict[str, Any]]) -> None:
        """Keeps a measure's results and rewrites the results file."""
        rows = [r if isinstance(r, dict) else asdict(r) for r in results]
        measured = commit("ptalign", "server", "bench")
        self._done[measure.name] = [{**r, "commit": measured} for r in rows]
        self._file.parent.mkdir(parents=True, exist_ok=True)
        _write(self._journal(), self._done)
        _write(self._file, [r for rows in self._done.values() for r in rows])

    def rows(self) -> list[dict[str, Any]]:
        """All results so far."""
        return [r for rows in self._done.values() for r in rows]


def _write(file: Path, body: Any) -> None:
    write_whole(file, json.dumps(body, indent=1) + "\n")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, for the terminal, the README and docs/performance.md."""
    lines = ["| measure | ours | theirs | ratio | goal | n |", "|---|---|---|---|---|---|"]
    for r in rows:
        goal = f"≥ {r['goal']:g}" if r["goal"] else ""
        mark = "" if r["ratio"] >= r["goal"] else " (missed)"
        spread = f" ± {r['spread']:.2f}" if r["spread"] else ""
        lines.append(
            f"| {r['name']}{', quick' if r.get('quick') else ''} | {amount(r['ours'])} {r['unit']} "
            f"| {amount(r['theirs'])} {r['unit']} | {r['ratio']:.2f}{spread} | {goal}{mark} "
            f"| {r['n']:,} |"
        )
    return "\n".join(lines)


def amount(value: float) -> str:
    """Three figures that count."""
    return f"{float(f'{value:.3g}'):,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def commit(*watched: str) -> str:
    """The commit that runs, with a plus sign when the code differs from it; empty without git.

    Args:
        watched: Folders of the code, from the repository root.
    """

    def git(*words: str) -> str:
        command = ["git", "-C", str(own_folder()), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", *watched)
    return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")


def write_whole(file: Path, text: str) -> None:
    """Writes a file that is there complete or not at all."""
    partial = file.with_suffix(".partial")
    partial.write_text(text, "utf-8")
    partial.replace(file)
