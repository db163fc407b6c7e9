"""What the finished units say: rates, paired differences, measures; over seeds where there are."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

from bench.study.form import BASE, Form, Run
from bench.study.record import Record, Source, seed_of
from ptalign.nouns import Adapter, Rate, Reply, TargetResult
from ptalign.outcome import says_yes
from ptalign.rates import Difference, Key, difference, measures, rate
from ptalign.stats import wilson
from ptalign.suites import Prompt, Suite
from ptalign.suites.generated import MAKERS

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


@dataclass(frozen=True, slots=True)
class Part:
    """Runs on pairs of their own, with the bare model asked beside them."""

    source: Source
    seeds: tuple[int, ...]
    base: str = BASE
    """Label of its bare model."""

    def entry(self, unit: str) -> dict[str, Any] | None:
        """A unit's whole record; None where it is of another part's seed."""
        return self.source.entry(unit) if self._holds(unit) else None

    def entries(self) -> list[dict[str, Any]]:
        """Every finished unit of this part, oldest first."""
        return [entry for entry in self.source.entries() if self._holds(entry["unit"])]

    def _holds(self, unit: str) -> bool:
        return bool(self.seeds) and seed_of(unit) in (None, *self.seeds)

    @property
    def title(self) -> str:
        """Its seeds in words."""
        word = "seeds" if len(self.seeds) > 1 else "seed"
        return f"{word} {', '.join(map(str, self.seeds))}"


class Evidence:
    """All that is finished: here, and on other machines.

    Args:
        form: Which runs belong to the study here.
        source: Finished units of these runs.
        records: Parts of the study that other machines did, at other seeds.

    Attributes:
        form: With the seeds of all parts.
        parts: Those in which anything is finished.
        runs: Of all parts, whether they are done or not.

    Raises:
        ValueError: Two parts have runs of the same seed, are of unlike forms, or were judged by
            unlike code.
    """

    def __init__(self, form: Form, source: Source, records: Sequence[Record] = ()) -> None:
        for record in records:
            if dict(record.form) != form.sizes():
                raise ValueError(
                    f"the record of seeds {list(record.seeds)} is of another form or size of the "
                    "study: make it with the same options"
                )
        found = [Part(source, form.seeds), *(Part(record, record.seeds) for record in records)]
        seeds = [seed for part in found for seed in part.seeds]
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds {sorted(seeds)}: a seed is of one part only; name others")
        self.form = replace(form, seeds=tuple(sorted(seeds)))
        self.runs = self.form.runs()
        found = sorted((p for p in found if p.entries()), key=lambda part: part.seeds)
        if len(found) > 1:
            found = [replace(p, base="-s".join([BASE, *map(str, p.seeds)])) for p in found]
        self.parts = found
        self._files = {part.seeds: self._newest(part) for part in found}
        for data in ("tone", "broad"):
            names = {files[data] for files in self._files.values() if data in files}
            if len(names) > 1:
                raise ValueError(f"parts were judged by unlike code: {', '.join(sorted(names))}")
        self._replies: dict[str, list[Reply]] = {}
        for part in found:
            self._read(part)
        self._hits = cache(self._read_hits)

    def _read(self, part: Part) -> None:
        """Takes a part's replies. An adapter trained anew has answered under its label before."""
        labels = {run.label for run in self.runs if run.seed in part.seeds}
        for data, name in self._files[part.seeds].items():
            newest = {(r.target, r.suite, r.prompt_id): r for r in part.source.replies(name)}
            for reply in newest.values():
                if reply.target == BASE:
                    self._replies.setdefault(f"{part.base}/{data}", []).append(reply)
                elif reply.target in labels:
                    self._replies.setdefault(reply.target, []).append(reply)

    def entries(self) -> list[dict[str, Any]]:
        """Every finished unit of every part, oldest first; texts that parts share once."""
        found = {
            (entry["unit"], entry["ended"]): entry
            for part in self.parts
            for entry in part.entries()
        }
        return sorted(found.values(), key=lambda entry: entry["ended"])

    def results(self, unit: str) -> dict[str, dict[str, Any]]:
        """What a unit gave, by the title of the part."""
        found = {part.title: part.entry(unit) for part in self.parts}
        return {title: entry["result"] for title, entry in found.items() if entry is not None}

    def bases(self) -> list[str]:
        """Labels of the bare model, one a part that has asked it."""
        return list(dict.fromkeys(self._labels(BASE)))

    def base_of(self, run: Run) -> str:
        """The label of the bare model beside a run that was asked."""
        part = self._part(run)
        return part.base if part else BASE

    def _part(self, run: Run) -> Part | None:
        return next((part for part in self.parts if run.seed in part.seeds), None)

    def trained(self, run: Run) -> dict[str, Any] | None:
        """A run's adapter as data."""
        return self._result(run, "train")

    def _result(self, run: Run, kind: str) -> dict[str, Any] | None:
        part = self._part(run)
        entry = part.entry(f"{kind}/{run.label}") if part else None
        return None if entry is None else entry["result"]

    def adapter(self, run: Run) -> Adapter | None:
        """The same as a noun, without words."""
        found = self.trained(run)
        if found is None:
            return None
        body = {k: v for k, v in found.items() if k in Adapter.model_fields}
        return Adapter.model_validate(body | {"path": "", "suppressed": (), "collateral": {}})

    def asked(self, run: Run) -> dict[str, Any] | None:
        """A run's evaluation as data; None when other judges' replies are the newer ones."""
        part, found = self._part(run), self._result(run, "ask")
        if part is None or found is None:
            return None
        return found if found["replies"] == self._files[part.seeds][run.data] else None

    def _newest(self, part: Part) -> dict[str, str]:
        """Data -> the file of replies that its last evaluation wrote."""
        kinds = {f"ask/{run.label}": run.data for run in self.runs if run.seed in part.seeds}
        asked = [entry for entry in part.entries() if entry["unit"] in kinds]
        return {kinds[entry["unit"]]: entry["result"]["replies"] for entry in asked}

    def target(self, run: Run, place: int = 1) -> TargetResult | None:
        """A run's rates and probe; place 0 is the bare model beside it."""
        asked = self.asked(run)
        if asked is None:
            return None
        return TargetResult.model_validate(asked["evaluation"]["results"][place])

    def compared(self, method: str = "", *, tenfold: bool = False) -> list[Run]:
        """Runs on the shared pairs, of one method or of all."""
        return [
            run
            for run in self.runs
            if run.data == "tone" and run.tenfold == tenfold and method in ("", run.method)
        ]

    def suites(self) -> list[dict[str, Any]]:
        """The suites of the compared runs, described; of a suite not run in a part, another's.

        ``left_out`` is by part, title -> reason -> prompts: each part's own pairs decide it.
        """
        found: dict[str, dict[str, Any]] = {}
        for run in self.compared():
            part, asked = self._part(run), self.asked(run)
            if part is None or asked is None:
                continue
            for suite in asked["suites"]:
                known = found.setdefault(suite["name"], suite | {"left_out": {}})
                if not known["prompts"]:
                    known |= suite | {"left_out": known["left_out"]}
                known["left_out"][part.title] = suite["left_out"]
        return list(found.values())

    # -- rates ------------------------------------------------------------------------------

    def rate(self, label: str, measure: str) -> Estimate | None:
        """The share of one run, or of the bare model, with the library's Wilson interval."""
        table = self._table(label)
        if measure not in table:
            return None
        found = rate(table[measure], self._replies.get(self._where(label), ()))
        return _of_rate(found) if found.n else None

    def mean(self, method: str, measure: str, beside: str = "") -> Estimate | None:
        """A method's share over its seeds.

        Wilson's interval with one seed; else a bootstrap over situations and seeds, widened to hold
        each seed's own. The bare model counts once a seed that a run stands beside.

        Args:
            method: A method, or base.
            measure: Name of the rate.
            beside: Only at seeds at which this method was asked everything and has the rate too.
        """
        others = {
            run.seed
            for run in self.compared(beside)
            if self.asked(run) and self.rate(run.label, measure)
        }
        labels = [
            label
            for seed, label in self._seeded(method)
            if (not beside or seed in others) and self.rate(label, measure)
        ]
        if len(set(labels)) <= 1:
            return self.rate(labels[0], measure) if labels else None
        shares = [r for label in labels if (r := self.rate(label, measure))]
        keys, values = self._matrix(labels, measure)
        if not keys:
            return None
        return _whole(values, self._groups(measure, keys), shares)

    def change(self, method: str, against: str, measure: str) -> Estimate | None:
        """method - against on the same prompts, seed by seed.

        The library's paired interval with one seed; else a bootstrap over situations and seeds,
        widened to hold each seed's own.
        """
        found = [
            (run.label, other, told)
            for run in self.compared(method)
            if self.asked(run)
            and (other := self._beside(run, against))
            and (told := self.paired(run.label, other, measure))
        ]
        if not found:
            return None
        steps = [told for _, _, told in found]
        if len(found) == 1:
            d = found[0][2]
            return Estimate(d.value, d.low, d.high, d.n, 1, d.value, d.value)
        labels, others = [label for label, _, _ in found], [other for _, other, _ in found]
        keys, values = self._matrix([*labels, *others], measure)
        if not keys:
            return None
        gaps = values[: len(labels)] - values[len(labels) :]
        return _whole(gaps, self._groups(measure, keys), steps)

    def _beside(self, run: Run, against: str) -> str:
        """What a run is compared with: the bare model of its part, or that method at its seed."""
        if against == BASE:
            return self.base_of(run)
        found = (r.label for r in self.compared(against) if r.seed == run.seed and self.asked(r))
        return next(found, "")

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
        return [label for _, label in self._seeded(method)]

    def _seeded(self, method: str) -> list[tuple[int, str]]:
        """Seed and label of what was asked of a method; base counts once a seed beside it."""
        if method != BASE:
            return [(run.seed, run.label) for run in self.compared(method) if self.asked(run)]
        seeds = sorted({run.seed for run in self.compared() if self.asked(run)})
        return [(seed, p.base) for seed in seeds for p in self.parts if seed in p.seeds]

    def _matrix(self, labels: Sequence[str], measure: str) -> tuple[list[Key], np.ndarray]:
        """Prompts that were scored in all of these runs, and the outcomes [runs, prompts].

        Sorted, so that a bootstrap does not depend on the order in which replies came.
        """
        found = [self._hits(label, measure) for label in labels]
        keys = sorted(key for key in found[0] if all(key in hits for hits in found))
        return keys, np.array([[hits[key] for key in keys] for hits in found], dtype=float)

    def _groups(self, measure: str, keys: Sequence[Key]) -> list[Hashable]:
        """The situation of each prompt: prompts of one are no independent sample."""
        known = self._table("")[measure].groups
        return [known.get(key) or key for key in keys]

    def _read_hits(self, label: str, measure: str) -> dict[Key, bool]:
        table = self._table(label)
        replies = self._replies.get(self._where(label), ())
        return table[measure].hits(replies) if measure in table else {}

    def _where(self, label: str) -> str:
        return f"{label}/tone" if any(part.base == label for part in self.parts) else label

    def _table(self, label: str) -> Any:
        """The library's measures for the suites that a run was asked."""
        run = next((r for r in self.runs if r.label == label), None)
        asked = self.asked(run) if run else None
        return measures(_stand_ins(asked["suites"] if asked else self.suites()))

    # -- measures without sampling ----------------------------------------------------------

    def probed(self, method: str, name: str, beside: str = "") -> Estimate | None:
        """A teacher-forced measure: the mean over seeds, their range in place of an interval.

        Args:
            method: A method, or base.
            name: Of the measure.
            beside: Only at seeds at which this method was measured too.
        """
        shared = {run.seed for run in self.compared(beside) if self.target(run)}
        if method == BASE:
            found = [self._bare(seed) for seed, _ in self._seeded(BASE)]
        else:
            runs = (r for r in self.compared(method) if not beside or r.seed in shared)
            found = [self.target(run) for run in runs]
        return over_seeds(
            [value for target in found if (value := _probed(target, name)) is not None]
        )

    def kl_interval(self, method: str) -> tuple[float, float] | None:
        """Lowest and highest end of any seed's 95 % interval of benign KL (bootstrap, anchors)."""
        found = [t.probe for run in self.compared(method) if (t := self.target(run)) and t.probe]
        ends = [probe.benign_kl_interval for probe in found if probe.benign_kl_interval]
        return (min(low for low, _ in ends), max(high for _, high in ends)) if ends else None

    def relative(self, method: str, name: str) -> Estimate | None:
        """How much larger a measure is than the bare model's beside it, as a share of that one."""
        found = []
        for run in self.compared(method):
            ours, base = (_probed(self.target(run, place), name) for place in (1, 0))
            if ours is not None and base:
                found.append(ours / base - 1)
        return over_seeds(found)

    def _bare(self, seed: int) -> TargetResult | None:
        runs = (run for run in self.compared() if run.seed == seed)
        return next((t for run in runs if (t := self.target(run, 0))), None)

    def unseen_toxic(self) -> int:
        """Toxic answers, held out from training, that harm words were read in."""
        found = (self.target(run) for run in self.compared())
        return max((t.probe.held_out_toxic for t in found if t and t.probe), default=0)

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


def over_situations_and_seeds(
    outcomes: np.ndarray, groups: Sequence[Hashable], draws: int = 4000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean outcome with its 95 % percentile bootstrap interval.

    Situations and training seeds are drawn with replacement, each for itself (Owen, Annals of
    Applied Statistics 1, 2007): an interval over prompts alone would take what a seed did for what
    the method does. Of few seeds one less is drawn than there are, so that the variance between
    them is not understated (Rao and Wu, JASA 83, 1988); how wide it is, two or three hardly tell.

    Args:
        outcomes: [seeds, prompts], or differences of outcomes; two seeds or more.
        groups: The situation of each prompt.
        draws: Resamples.
        seed: Makes the interval repeatable.
    """
    names = list(dict.fromkeys(groups))
    place = {name: i for i, name in enumerate(names)}
    of_group = np.array([place[group] for group in groups])
    seeds, rng = len(outcomes), np.random.default_rng(seed)
    times = rng.multinomial(len(names), [1 / len(names)] * len(names), size=draws)
    weights = times[:, of_group].astype(float)  # [draws, prompts]
    drawn = seeds - 1
    shares = rng.multinomial(drawn, [1 / seeds] * seeds, size=draws) / drawn  # [draws, seeds]
    sums = ((shares @ outcomes) * weights).sum(axis=1)
    low, high = np.quantile(sums / weights.sum(axis=1), (0.025, 0.975))
    return float(outcomes.mean()), float(low), float(high)


def _whole(
    outcomes: np.ndarray, groups: Sequence[Hashable], seeds: Sequence[Estimate | Difference]
) -> Estimate:
    """The mean over seeds, in an interval that also holds that of each seed.

    A bootstrap of prompts of which none changed has no width, and other seeds on the same prompts
    do not tell more of prompts than one does.
    """
    value, low, high = over_situations_and_seeds(outcomes, groups)
    low, high = min(low, *(s.low for s in seeds)), max(high, *(s.high for s in seeds))
    values = [s.value for s in seeds]
    return Estimate(value, low, high, len(groups), len(seeds), min(values), max(values))


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
    """Suites that say what they measure; generated ones with prompts, for their situations."""
    fields = ("name", "measure", "elicitation")
    return [
        Suite(**{f: d[f] for f in fields}, prompts=_prompts(d["name"]))
        for d in described
        if d["prompts"]
    ]


@cache
def _prompts(name: str) -> tuple[Prompt, ...]:
    return tuple(MAKERS[name](0)) if name in MAKERS else (Prompt(id="-", instruction="-"),)


def _probed(target: TargetResult | None, name: str) -> float | None:
    probe = target.probe if target else None
    return probe.measured.get(name) if probe else None


def _of_rate(rate: Rate) -> Estimate:
    return Estimate(rate.value, rate.low, rate.high, rate.n, 1, rate.value, rate.value)
