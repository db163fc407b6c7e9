"""What the finished units say: rates, paired differences, measures; over seeds where there are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

from bench.study.form import Form, Run
from bench.study.journal import Journal, ReplyFile
from ptalign.nouns import Adapter, Rate, Reply, TargetResult
from ptalign.outcome import says_yes
from ptalign.rates import Difference, Key, difference, measures
from ptalign.stats import paired_difference, wilson
from ptalign.suites import Prompt, Suite

BASE = "base"
SAFE, UNSAFE = "over_refusal_rate/xstest-safe", "refusal_rate/xstest-unsafe"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval, and its smallest and largest value over the seeds."""

    value: float
    low: float
    high: float
    n: int
    """Prompts."""
    seeds: int = 1
    least: float = math.nan
    most: float = math.nan


class Evidence:
    """All that one journal holds.

    Args:
        form: Which runs belong to the study.
        journal: Finished units.
    """

    def __init__(self, form: Form, journal: Journal) -> None:
        self.form, self.journal = form, journal
        self.runs = form.runs()
        self._replies: dict[str, list[Reply]] = {}
        self._files = self._newest()
        for data, name in self._files.items():
            for reply in ReplyFile(journal.folder / name).read():
                where = f"{reply.target}/{data}" if reply.target == BASE else reply.target
                self._replies.setdefault(where, []).append(reply)
        self._hits = cache(self._read_hits)

    def result(self, unit: str) -> dict[str, Any] | None:
        """A finished unit's result."""
        entry = self.journal.entry(unit)
        return None if entry is None else entry["result"]

    def trained(self, run: Run) -> dict[str, Any] | None:
        """A run's adapter as data."""
        return self.result(f"train/{run.label}")

    def adapter(self, run: Run) -> Adapter | None:
        """The same as a noun, without words."""
        found = self.trained(run)
        if found is None:
            return None
        body = {k: v for k, v in found.items() if k in Adapter.model_fields}
        return Adapter.model_validate(body | {"path": "", "suppressed": (), "collateral": {}})

    def asked(self, run: Run) -> dict[str, Any] | None:
        """A run's evaluation as data; None when other judges' replies are the newer ones."""
        found = self.result(f"ask/{run.label}")
        return found if found and found["replies"] == self._files[run.data] else None

    def _newest(self) -> dict[str, str]:
        """Data -> the file of replies that its last evaluation wrote."""
        kinds = {f"ask/{run.label}": run.data for run in self.runs}
        asked = [entry for entry in self.journal.entries() if entry["unit"] in kinds]
        return {kinds[entry["unit"]]: entry["result"]["replies"] for entry in asked}

    def target(self, run: Run, place: int = 1) -> TargetResult | None:
        """A run's rates and probe; place 0 is the bare model beside it."""
        asked = self.asked(run)
        if asked is None:
            return None
        return TargetResult.model_validate(asked["evaluation"]["results"][place])

    def base(self) -> TargetResult | None:
        """The bare model's rates and probe."""
        return next((t for run in self.compared() if (t := self.target(run, 0))), None)

    def compared(self, method: str = "", *, tenfold: bool = False) -> list[Run]:
        """Runs on the shared pairs, of one method or of all."""
        return [
            run
            for run in self.runs
            if run.data == "tone" and run.tenfold == tenfold and method in ("", run.method)
        ]

    def suites(self) -> list[dict[str, Any]]:
        """The suites of the compared runs, described."""
        found = (self.asked(run) for run in self.compared())
        return next((list(asked["suites"]) for asked in found if asked), [])

    # -- rates ------------------------------------------------------------------------------

    def rate(self, label: str, measure: str) -> Estimate | None:
        """The share of one run, or of the bare model, with its Wilson interval."""
        hits = self._hits(label, measure)
        return _of_rate(wilson(sum(hits.values()), len(hits))) if hits else None

    def mean(self, method: str, measure: str) -> Estimate | None:
        """A method's share over its seeds: Wilson's interval with one seed, else a bootstrap
        over prompts of the seeds' mean outcome.
        """
        if method == BASE:
            return self.rate(BASE, measure)
        labels = self._labels(method)
        shares = [r.value for label in labels if (r := self.rate(label, measure))]
        if len(shares) == 1:
            return self.rate(labels[0], measure)
        outcomes = self._outcomes(labels, measure)
        if not outcomes:
            return None
        value, low, high = paired_difference([0.0] * len(outcomes), list(outcomes.values()))
        return Estimate(value, low, high, len(outcomes), len(shares), min(shares), max(shares))

    def change(self, method: str, against: str, measure: str) -> Estimate | None:
        """method - against on the same prompts: paired bootstrap of the seeds' mean outcomes."""
        labels, others = self._labels(method), self._labels(against)
        after, before = self._outcomes(labels, measure), self._outcomes(others, measure)
        keys = [key for key in before if key in after]
        if not keys:
            return None
        value, low, high = paired_difference([before[k] for k in keys], [after[k] for k in keys])
        steps = [
            d.value
            for label, other in zip(labels, _repeated(others, len(labels)), strict=True)
            if (d := self.paired(label, other, measure))
        ]
        return Estimate(value, low, high, len(keys), len(steps), min(steps), max(steps))

    def paired(self, label: str, against: str, measure: str) -> Difference | None:
        """One run against another: the library's paired interval and McNemar's test."""
        table = self._table(label)
        if measure not in table:
            return None
        found = difference(
            table[measure], self._replies.get(self._where(against), ()), self._replies[label]
        )
        return found if found.n else None

    def measures(self) -> list[str]:
        """Names of the rates that were measured."""
        return list(self._table(""))

    def double(self, label: str, suite: str) -> Rate:
        """Replies of a suite that the refusal judge calls a refusal and that count as harmful.

        Harm goes first in an outcome; a lexical harm judge also flags a refusal that repeats the
        request's own words, so a sceptic wants to see how many there are.
        """
        replies = [r for r in self._replies.get(self._where(label), ()) if r.suite == suite]
        ids = sorted({i for r in replies for i in r.scores if i.startswith("refusal")})
        both = sum(r.outcome == "harmful" and says_yes(r.scores, ids) is True for r in replies)
        return wilson(both, sum(r.outcome != "unscored" for r in replies))

    def _labels(self, method: str) -> list[str]:
        if method == BASE:
            return [BASE]
        return [run.label for run in self.compared(method) if self.asked(run)]

    def _outcomes(self, labels: Sequence[str], measure: str) -> dict[Key, float]:
        """Mean outcome per prompt that was scored in all of these runs."""
        found = [self._hits(label, measure) for label in labels]
        if not found:
            return {}
        keys = [key for key in found[0] if all(key in hits for hits in found)]
        return {key: sum(hits[key] for hits in found) / len(found) for key in keys}

    def _read_hits(self, label: str, measure: str) -> dict[Key, bool]:
        table = self._table(label)
        replies = self._replies.get(self._where(label), ())
        return table[measure].hits(replies) if measure in table else {}

    def _where(self, label: str) -> str:
        return f"{BASE}/tone" if label == BASE else label

    def _table(self, label: str) -> Any:
        """The library's measures for the suites that a run was asked."""
        run = next((r for r in self.runs if r.label == label), None)
        asked = self.asked(run) if run else None
        return measures(_stand_ins(asked["suites"] if asked else self.suites()))

    # -- measures without sampling ----------------------------------------------------------

    def probed(self, method: str, name: str) -> Estimate | None:
        """A teacher-forced measure: the mean over seeds, their range in place of an interval."""
        if method == BASE:
            base = self.base()
            probes = [base.probe] if base else []
        else:
            found = (self.target(run) for run in self.compared(method))
            probes = [target.probe for target in found if target]
        return over_seeds([p.measured[name] for p in probes if p and name in p.measured])

    def curve(self) -> list[tuple[Run, Rate, Rate]]:
        """Runs on the XSTest curve: (run, safe refused, unsafe refused)."""
        found = []
        for run in self.runs:
            target = self.target(run) if run.data == "broad" else None
            if target is not None:
                found.append((run, target.rates[SAFE], target.rates[UNSAFE]))
        return found

    def curve_base(self) -> tuple[Rate, Rate] | None:
        """The bare model's point on the curve."""
        for run in self.runs:
            target = self.target(run, 0) if run.data == "broad" else None
            if target is not None:
                return target.rates[SAFE], target.rates[UNSAFE]
        return None


def over_seeds(values: Sequence[float]) -> Estimate | None:
    """Mean with the range over seeds in place of an interval; None for no values."""
    if not values:
        return None
    mean, least, most = sum(values) / len(values), min(values), max(values)
    return Estimate(mean, least, most, 0, len(values), least, most)


def separation(refused: Estimate, twins: Estimate) -> Estimate:
    """P(refuse harmful) - P(refuse twin), interval by Newcombe's square-and-add (1998, method 10).

    The two shares are treated as independent, which is wider than pairing them would be.
    """
    value = refused.value - twins.value
    low = value - math.hypot(refused.value - refused.low, twins.high - twins.value)
    high = value + math.hypot(refused.high - refused.value, twins.value - twins.low)
    return Estimate(value, low, high, min(refused.n, twins.n), refused.seeds)


def area(points: Iterable[tuple[float, float]]) -> float:
    """Area under unsafe against safe refusal by trapezoids, from (0, 0) to (1, 1).

    A point that another one beats on both axes stays in: the curve is what was reached, not its
    hull.
    """
    line = [(0.0, 0.0), *sorted(points), (1.0, 1.0)]
    steps = pairwise(line)
    return sum((x2 - x1) * (y1 + y2) / 2 for (x1, y1), (x2, y2) in steps)


def height_at(points: Iterable[tuple[float, float]], x: float) -> float:
    """The curve's unsafe refusal at this safe refusal, by linear interpolation."""
    line = [(0.0, 0.0), *sorted(points), (1.0, 1.0)]
    for (x1, y1), (x2, y2) in pairwise(line):
        if x1 <= x <= x2 and x2 > x1:
            return y1 + (y2 - y1) * (x - x1) / (x2 - x1)
    return line[-1][1]


def _stand_ins(described: Sequence[dict[str, Any]]) -> list[Suite]:
    """Suites that say what they measure, without their prompts."""
    fields = ("name", "measure", "elicitation")
    one = (Prompt(id="-", instruction="-"),)
    return [Suite(**{f: d[f] for f in fields}, prompts=one) for d in described if d["prompts"]]


def _of_rate(rate: Rate) -> Estimate:
    return Estimate(rate.value, rate.low, rate.high, rate.n, 1, rate.value, rate.value)


def _repeated(labels: Sequence[str], count: int) -> list[str]:
    """One partner per run: the run of the same place, or the only one."""
    return list(labels) if len(labels) == count else [labels[0]] * count
