"""The numbers of a journal in one file without any text, to be put together with other machines'.

A study of three seeds is longer than some machines last. Each part of it, on pairs of its own, is
recorded; `--with` takes recorded parts into the page, where every run is compared with the base and
the runs of its own part only (docs/adr/0016).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bench.study.journal import Journal
from ptalign.nouns import Outcome, Reply
from ptalign.outcome import says_yes
from ptalign.sealed import SealedText

VERSION = 1
LETTERS: Mapping[Outcome, str] = {
    "refused": "r",
    "harmful": "h",
    "useful": "u",
    "incoherent": "i",
    "unscored": "x",
}
OUTCOMES = {letter: outcome for outcome, letter in LETTERS.items()}
SAID = {True: "y", False: "n", None: "-"}
TOKENS = 12
"""Suppressed tokens that a page shows of a run, masked."""


class Source(Protocol):
    """Finished units and judged replies: a journal, or a record of one."""

    def entry(self, unit: str) -> dict[str, Any] | None:
        """A unit's whole record."""

    def entries(self) -> list[dict[str, Any]]:
        """Every finished unit, oldest first."""

    def replies(self, name: str) -> Iterable[Reply]:
        """Judged replies of a file that an evaluation names."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a file of another machine holds.

    Args:
        seeds: Training seeds that it has runs of.
        units: Name -> the unit's record.
        judged: Name of a reply file -> targets, prompts and outcomes, as `write_record` puts them.
    """

    seeds: tuple[int, ...]
    units: Mapping[str, dict[str, Any]]
    judged: Mapping[str, dict[str, Any]]

    def entry(self, unit: str) -> dict[str, Any] | None:
        """A unit's whole record; None when it is not there."""
        return self.units.get(unit)

    def entries(self) -> list[dict[str, Any]]:
        """Every finished unit, oldest first."""
        return sorted(self.units.values(), key=lambda entry: entry["ended"])

    def replies(self, name: str) -> Iterator[Reply]:
        """The replies with their outcomes: what they said and how long they were is not kept."""
        found = self.judged.get(name, {"prompts": {}, "targets": {}})
        for target, suites in found["targets"].items():
            for suite, marks in suites.items():
                rows = zip(found["prompts"][suite], *marks, strict=True)
                for prompt, outcome, refused, checked in rows:
                    if outcome == "-":
                        continue
                    scores = {"refusal": refused, "checks": checked}
                    yield Reply(
                        id=f"{target}/{suite}/{prompt}",
                        target=target,
                        suite=suite,
                        prompt_id=prompt,
                        text=SealedText(""),
                        outcome=OUTCOMES[outcome],
                        scores={k: float(v == "y") for k, v in scores.items() if v != "-"},
                    )


def write_record(journal: Journal, file: Path) -> None:
    """Writes what is finished; the file is there complete or not at all."""
    units = {entry["unit"]: _lean(entry) for entry in journal.entries()}
    names = {e["result"]["replies"] for e in units.values() if "replies" in e["result"]}
    body = {
        "version": VERSION,
        "units": units,
        "replies": {name: _marks(list(journal.replies(name))) for name in sorted(names)},
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(_lines(body), "utf-8")
    partial.replace(file)


def read_record(file: Path) -> Record:
    """Reads what `write_record` wrote.

    Raises:
        ValueError: The file is no record, or of a newer version.
    """
    try:
        body = json.loads(file.read_text("utf-8"))
        version, units, judged = body["version"], body["units"], body["replies"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no record of a study: write one with --record") from error
    if version != VERSION:
        raise ValueError(f"{file} is of version {version}, this program reads {VERSION}")
    seeds = {int(unit.split("-s")[-1].removesuffix("-x10")) for unit in units if "/" in unit}
    return Record(tuple(sorted(seeds)), units, judged)


def _lean(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A unit without what no page shows: words by topic, the run's folder, the digest's inputs."""
    result = {k: v for k, v in entry["result"].items() if k != "folder"}
    if "suppressed" in result:
        by_fall = sorted(result["suppressed"], key=lambda s: s["p_after"] - s["p_before"])
        result["suppressed"] = by_fall[:TOKENS]
    if "evaluation" in result:
        kept = ("results", "judge_ids", "generation_judge_ids")
        found = {k: v for k, v in result["evaluation"].items() if k in kept}
        found["results"] = [_target(target) for target in found["results"]]
        result["evaluation"] = found
    return {k: v for k, v in entry.items() if k != "inputs"} | {"result": _rounded(result)}


def _target(result: Mapping[str, Any]) -> dict[str, Any]:
    lean = {k: v for k, v in result.items() if k in ("label", "method", "rates", "probe")}
    if lean.get("probe"):
        lean["probe"] = lean["probe"] | {"suppressed": [], "collateral": {}}
    return lean


def _marks(replies: Sequence[Reply]) -> dict[str, Any]:
    """Prompts by suite, and per target and suite three letters a prompt.

    They are the outcome's letter, whether the refusal judge said yes, and whether the checks
    of a verifiable instruction passed; ``-`` where there is none.
    """
    prompts: dict[str, dict[str, None]] = {}
    by_target: dict[str, dict[str, dict[str, Reply]]] = {}
    for reply in replies:
        prompts.setdefault(reply.suite, {})[reply.prompt_id] = None
        suites = by_target.setdefault(reply.target, {})
        suites.setdefault(reply.suite, {})[reply.prompt_id] = reply
    targets = {
        target: {
            suite: [
                "".join(letters)
                for letters in zip(*(_letters(found.get(p)) for p in prompts[suite]), strict=True)
            ]
            for suite, found in suites.items()
        }
        for target, suites in by_target.items()
    }
    return {"prompts": {s: list(ids) for s, ids in prompts.items()}, "targets": targets}


def _letters(reply: Reply | None) -> tuple[str, str, str]:
    if reply is None:
        return "-", "-", "-"
    judges = sorted(i for i in reply.scores if i.startswith("refusal"))
    checks = reply.scores.get("checks")
    checked = None if checks is None else checks >= 0.5
    return LETTERS[reply.outcome], SAID[says_yes(reply.scores, judges)], SAID[checked]


def _rounded(value: Any) -> Any:
    """Six significant digits: no page prints more."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list) else value


def _lines(body: Mapping[str, Any]) -> str:
    """JSON with a line a unit and reply file, so that a change shows which."""
    parts = [f'"version": {body["version"]}']
    for key in ("units", "replies"):
        rows = [
            f" {json.dumps(name)}: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}"
            for name, value in body[key].items()
        ]
        parts.append(f'"{key}": {{\n' + ",\n".join(rows) + "\n}")
    return "{\n" + ",\n".join(parts) + "\n}\n"
