"""The numbers of a journal in one file without its texts, to be put together with other machines'.

Single words are in it as the page prints them: suppressed tokens masked, ordinary ones in clear.

A study of three seeds is longer than some machines last. Each part of it, on pairs of its own, is
recorded; `--with` takes recorded parts into the page, where every run is compared with the base and
the runs of its own part only (docs/adr/0016).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bench.results import write_whole
from bench.study.form import BASE, Form
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
"""Suppressed tokens, masked, and collateral words that a page shows of a run."""
ENTRY = (
    "unit",
    "inputs",
    "ended",
    "seconds",
    "commit",
    "nice",
    "threads",
    "device",
    "python",
    "cores",
    "load",
)
TEXTS: tuple[str, ...] = (
    "digest",
    "requested",
    "rejected",
    "stats",
    "harmful",
    "twins",
    "pairs",
    "polarised",
)
TEXTS += ("anchors", "annotations_used", "judges", "imported")
TRAINED: tuple[str, ...] = (
    "weights_sha256",
    "method",
    "tokens_mle",
    "tokens_ut",
    "tokens_anchor",
    "ledger",
)
TRAINED += ("retain_kl", "guards", "seconds", "suppressed", "collateral")
ASKED = ("evaluation", "suites", "replies")
EVALUATION = ("results", "judge_ids", "generation_judge_ids")
TARGET = ("label", "method", "rates", "probe")
SEED = re.compile(r"^(?:train|ask)/.*-s(\d+)(?:-x10)?$")


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
        form: Sizes of the study that it is a part of (`Form.sizes`).
        units: Name -> the unit's record.
        judged: Name of a reply file -> targets, prompts and outcomes, as `write_record` puts them.
    """

    seeds: tuple[int, ...]
    form: Mapping[str, Any]
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


def write_record(form: Form, journal: Journal, file: Path) -> None:
    """Writes what is finished of a form's runs; the file is there complete or not at all."""
    kept = [e for e in journal.entries() if seed_of(e["unit"]) in (None, *form.seeds)]
    units = {entry["unit"]: _lean(entry) for entry in kept}
    names = sorted({e["result"]["replies"] for e in units.values() if "replies" in e["result"]})
    labels = {BASE, *(unit.partition("/")[2] for unit in units)}
    body = {
        "version": VERSION,
        "form": form.sizes(),
        "units": units,
        "replies": {
            name: _marks([r for r in journal.replies(name) if r.target in labels]) for name in names
        },
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, _lines(body))


def read_record(file: Path) -> Record:
    """Reads what `write_record` wrote.

    Raises:
        ValueError: The file is no record, or of a newer version.
    """
    try:
        body = json.loads(file.read_text("utf-8"))
        version, form, units, judged = (body[k] for k in ("version", "form", "units", "replies"))
        seeds = {seed for unit in units if (seed := seed_of(unit)) is not None}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no record of a study: write one with --record") from error
    if version != VERSION:
        raise ValueError(f"{file} is of version {version}, this program reads {VERSION}")
    return Record(tuple(sorted(seeds)), form, units, judged)


def seed_of(unit: str) -> int | None:
    """The training seed of a run's unit; None for texts, which all seeds of a part share."""
    found = SEED.match(unit)
    return int(found[1]) if found else None


def _lean(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Of a unit what a page shows, by name: what a later version adds does not slip into a file."""
    result = _only(entry["result"], (*TEXTS, *TRAINED, *ASKED))
    if "suppressed" in result:
        by_fall = sorted(result["suppressed"], key=lambda s: s["p_after"] - s["p_before"])
        result["suppressed"] = by_fall[:TOKENS]
        result["collateral"] = dict(list(result["collateral"].items())[:TOKENS])
    if "evaluation" in result:
        found = _only(result["evaluation"], EVALUATION)
        found["results"] = [_target(target) for target in found["results"]]
        result["evaluation"] = found
    return _only(entry, ENTRY) | {"result": rounded(result)}


def _only(body: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: body[name] for name in names if name in body}


def _target(result: Mapping[str, Any]) -> dict[str, Any]:
    lean = _only(result, TARGET)
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


def rounded(value: Any) -> Any:
    """Six significant digits: no page prints more."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list) else value


def _lines(body: Mapping[str, Any]) -> str:
    """JSON with a line a unit and reply file, so that a change shows which."""
    parts = [f'"version": {body["version"]}', f'"form": {json.dumps(body["form"])}']
    for key in ("units", "replies"):
        rows = [
            f" {json.dumps(name)}: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}"
            for name, value in body[key].items()
        ]
        parts.append(f'"{key}": {{\n' + ",\n".join(rows) + "\n}")
    return "{\n" + ",\n".join(parts) + "\n}\n"
