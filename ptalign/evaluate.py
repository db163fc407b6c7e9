"""Stage 4: the same prompts for every target, judged, with intervals and a verdict.

Greedy decoding: two runs of one model give the same replies, and a difference between targets is
theirs. Targets are asked one after the other, so an engine batch holds one adapter at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice

from ptalign.calibrate import RATES, calibrate, calibrate_filters, corrected
from ptalign.config import EvalConfig
from ptalign.engines.base import Completion, Engine, Message, Request, open_stream
from ptalign.errors import InvalidInput
from ptalign.gate import decide, examine
from ptalign.judges.base import Judge
from ptalign.nouns import (
    Annotation,
    Answers,
    Axis,
    Calibration,
    Evaluation,
    ModelSpec,
    PairSet,
    Probe,
    Reply,
    Spent,
    TargetResult,
    record_id,
)
from ptalign.outcome import disagree, is_incoherent, outcome_of, scored
from ptalign.progress import OnProgress, Progress, ignore
from ptalign.rates import (
    Difference,
    Measured,
    by_locale,
    by_topic,
    changes_by_locale,
    changes_by_topic,
    difference,
    measures,
    rate,
)
from ptalign.records import MemoryLog, RecordLog
from ptalign.sealed import SealedText
from ptalign.shape import shape_changes, shapes
from ptalign.spending import Spending
from ptalign.suites.base import Prompt, Suite
from ptalign.suites.ifeval import passes
from ptalign.text.locales import language

BATCH = 16
"""Replies judged together: a judge with a model is faster in batches."""

READ = 8
"""Plain replies of a suite that the prober reads."""

Prober = Callable[[PairSet, Mapping[str, str], Mapping[str, Answers]], Mapping[str, Probe]]
"""Teacher-forced measurements: (pairs, adapter folder per label, some replies per label) -> Probe
per label."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is evaluated: the bare model or one of its adapters."""

    label: str
    adapter_name: str = ""
    """Name under which the engine serves the adapter; empty for the bare model."""
    method: str = ""
    folder: str = ""
    """The adapter's folder, for the prober; an adapter without one is not probed."""


@dataclass(frozen=True, slots=True)
class _Ask:
    """One prompt of one suite for one target."""

    target: Target
    suite: Suite
    prompt: Prompt

    @property
    def reply_id(self) -> str:
        limit = str(self.suite.max_tokens)
        name = self.target.adapter_name
        return record_id(self.target.label, name, self.suite.name, self.prompt.id, limit)


@dataclass(slots=True)
class _Tally:
    """Running totals for progress, and of what earlier attempts spent too."""

    total: int
    spent: Spending
    done: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    earlier: dict[str, int] = field(default_factory=dict)
    """Of `counts`, what attempts before this one had reached."""
    judge_seconds: float = 0.0

    def go_on(self, replies: Iterable[Reply]) -> None:
        """Begins with what earlier attempts judged."""
        for reply in replies:
            self.add(reply)
        self.earlier = dict(self.counts)

    def add(self, reply: Reply) -> None:
        self.done += 1
        amounts = {reply.outcome: 1, "accepted": 1, "tokens_generated": reply.tokens}
        for name, amount in amounts.items():
            self.counts[name] = self.counts.get(name, 0) + amount


def evaluate(
    targets: Sequence[Target],
    suites: Sequence[Suite],
    *,
    engine: Engine,
    model: ModelSpec,
    judges: Sequence[Judge],
    config: EvalConfig,
    pairs: PairSet | None = None,
    annotations: Sequence[Annotation] = (),
    prober: Prober | None = None,
    on_progress: OnProgress = ignore,
    log: RecordLog[Reply] | None = None,
    costs: RecordLog[Spent] | None = None,
) -> Evaluation:
    """Asks, judges and compares.

    Args:
        targets: The baseline, the target of the verdict, then any others to show beside them.
        suites: From `ptalign.suites.build`; one that cannot run makes the verdict inconclusive.
        engine: Serves the model and every target's adapter.
        model: The model entry, for its system prompt and locales.
        judges: At least one of axis ``harm`` and one of axis ``refusal``; none that filtered
            `pairs` or weighed their tokens.
        config: Samples, token limits, the gate and the seed.
        pairs: The training set: its judges are not allowed here, and the prober measures on it.
        annotations: Good and bad answers marked by people, to check the judges on. Rates are then
            also given corrected for the judges' errors; the verdict uses them as measured.
        prober: Teacher-forced measurements; None leaves them out.
        on_progress: Called while the judges are checked, then once per judged reply.
        log: Judged replies, sealed; an interrupted evaluation continues after them. Replies that
            the engine or a judge failed on are logged last, after the prober, so that an
            evaluation that is interrupted before asks them again.
        costs: Seconds of every attempt that shares these logs; those of earlier ones are given in
            ``seconds`` as ``earlier attempts``.

    Raises:
        InvalidInput: The targets, suites or judges cannot give a fair comparison.
        EngineFailed: No engine can take work.
        Cancelled: From `on_progress` or the engine.
    """
    _check(targets, suites, judges, pairs)
    begun = time.monotonic()
    spent = Spending(MemoryLog() if costs is None else costs)
    before = {"earlier attempts": spent.seconds} if spent.earlier else {}
    on_progress(Progress("checking the judges", 0, 0))
    locale = next((pair.locale for pair in pairs.pairs), "en") if pairs is not None else "en"
    calibrations = _calibrations(judges, annotations, pairs, locale, on_progress)
    started = time.monotonic()
    log = MemoryLog() if log is None else log
    tally = _Tally(len(targets) * sum(len(s.prompts) for s in suites), spent)
    known = {reply.id: reply for reply in log.read()}
    asks = {target.label: _asks(target, suites) for target in targets}
    todo = list(chain.from_iterable(asks.values()))  # one stream: no target waits for another
    failed: list[Reply] = []
    with spent.kept():
        for reply in _judged(todo, known, engine, model, judges, tally, on_progress):
            known[reply.id] = reply
            if _failed(reply):
                failed.append(reply)
            else:
                log.append(reply)
        replies = {label: [known[ask.reply_id] for ask in asked] for label, asked in asks.items()}
        generated = time.monotonic()
        probes = _probe(targets, pairs, prober, asks, replies, on_progress)
        for reply in failed:  # last: after a restart they are asked again, the outage may be over
            log.append(reply)
    seconds = {
        "calibrate": started - begun,
        "generate": generated - started - tally.judge_seconds,
        "judge": tally.judge_seconds,
        "probe": time.monotonic() - generated,
        **before,
    }
    made = _compare(targets, suites, replies, probes, judges, config, pairs, seconds)
    return corrected(made, calibrations, locale)


def _failed(reply: Reply) -> bool:
    """Whether the engine or a judge could not answer, where it might have."""
    return reply.outcome == "unscored" and (not reply.tokens or None in reply.scores.values())


def _check(
    targets: Sequence[Target],
    suites: Sequence[Suite],
    judges: Sequence[Judge],
    pairs: PairSet | None,
) -> None:
    if len(targets) < 2:
        raise InvalidInput("targets", "a baseline and a target are needed", "Give two or more.")
    if len({t.label for t in targets}) != len(targets):
        raise InvalidInput("targets", "labels must differ", "Name each target differently.")
    if not any(suite.prompts for suite in suites):
        why = ", ".join(f"{s.name}: {s.not_run}" for s in suites) or "none was named"
        raise InvalidInput("suites", f"no suite has prompts ({why})", "Set PTALIGN_EVAL_DATA.")
    for axis in ("harm", "refusal"):
        if not any(judge.axis == axis for judge in judges):
            raise InvalidInput("judges", f"no judge of axis {axis}", "Name at least one.")
    used = set(pairs.judge_ids) if pairs is not None else set()
    shared = sorted({judge.id for judge in judges} & used)
    if shared:
        raise InvalidInput(
            "judges",
            f"{', '.join(shared)} already filtered the training pairs, or weighed their tokens",
            "A judge that made the data must not grade the result: name another.",
        )


def _calibrations(
    judges: Sequence[Judge],
    annotations: Sequence[Annotation],
    pairs: PairSet | None,
    locale: str,
    on_progress: OnProgress,
) -> tuple[Calibration, ...]:
    """Of the judges that decide here, and of those that filtered the pairs."""
    found = calibrate(judges, annotations, locale=locale, on_progress=on_progress)
    if annotations and pairs is not None:
        found += calibrate_filters(pairs.judge_ids, annotations, locale, on_progress)
    return found


def _asks(target: Target, suites: Sequence[Suite]) -> list[_Ask]:
    """Everything to ask one target, longest replies first so that the batch stays full."""
    ordered = sorted(suites, key=lambda suite: -suite.max_tokens)
    return [_Ask(target, suite, prompt) for suite in ordered for prompt in suite.prompts]


def request_for(ask: _Ask, model: ModelSpec) -> Request:
    """The chat that one prompt becomes; a persona stands before the first user turn."""
    prompt = ask.prompt
    users = [turn.user for turn in prompt.turns] + [prompt.instruction]
    if prompt.preface:
        users[0] = f"{prompt.preface}\n\n{users[0]}"
    messages = [Message("system", model.system_prompt)] if model.system_prompt else []
    for user, turn in zip(users, prompt.turns, strict=False):
        messages += [Message("user", user), Message("assistant", turn.assistant)]
    messages.append(Message("user", users[-1]))
    return Request(
        key=ask.reply_id,
        messages=tuple(messages),
        prefill=prompt.prefill,
        max_tokens=ask.suite.max_tokens,
        temperature=0.0,
        adapter=ask.target.adapter_name,
    )


def _judged(
    asks: Sequence[_Ask],
    known: Mapping[str, Reply],
    engine: Engine,
    model: ModelSpec,
    judges: Sequence[Judge],
    tally: _Tally,
    on_progress: OnProgress,
) -> Iterator[Reply]:
    """Replies that the log does not hold yet, judged in batches as they finish."""
    todo = {ask.reply_id: ask for ask in asks if ask.reply_id not in known}
    tally.go_on(known[ask.reply_id] for ask in asks if ask.reply_id in known)
    with open_stream(engine, (request_for(ask, model) for ask in todo.values())) as stream:
        while batch := list(islice(stream, BATCH)):
            started = time.monotonic()
            for done in batch:
                tally.spent.back(done)
            pairs = [(todo[done.key], done) for done in batch]
            judged = _judge(pairs, judges, model)
            tally.judge_seconds += time.monotonic() - started
            for reply in judged:
                yield reply
                tally.add(reply)
                phase = f"asking {reply.target}: {reply.suite}"
                said = Progress(
                    phase,
                    tally.done,
                    tally.total,
                    dict(tally.counts),
                    earlier=tally.earlier,
                    suite=reply.suite,
                )
                on_progress(said)


def _judge(
    batch: Sequence[tuple[_Ask, Completion]], judges: Sequence[Judge], model: ModelSpec
) -> list[Reply]:
    """Scores a batch, one call per judge and locale."""
    texts = [ask.prompt.prefill + done.text for ask, done in batch]
    rows: list[dict[str, float | None]] = [{} for _ in batch]
    for locale in {ask.prompt.locale for ask, _ in batch}:
        places = [i for i, (ask, _) in enumerate(batch) if ask.prompt.locale == locale]
        asked = [batch[i][0].prompt.instruction for i in places]
        spoken = judges if _speaks(model, locale) else []
        for i, row in zip(
            places, scored(spoken, asked, [texts[i] for i in places], locale), strict=True
        ):
            rows[i] = row
    return [
        _reply(ask, done, text, row, judges)
        for (ask, done), text, row in zip(batch, texts, rows, strict=True)
    ]


def _speaks(model: ModelSpec, locale: str) -> bool:
    return language(locale) in map(language, model.locales)


def _reply(
    ask: _Ask,
    done: Completion,
    text: str,
    scores: dict[str, float | None],
    judges: Sequence[Judge],
) -> Reply:
    failed, cut = done.finish == "error", done.finish == "length"
    if ask.prompt.checks:
        scores = scores | {"checks": None if failed else float(passes(ask.prompt, text))}
    outcome = outcome_of(
        text,
        scores,
        harm_ids=[judge.id for judge in judges if judge.axis == "harm"],
        refusal_ids=[judge.id for judge in judges if judge.axis == "refusal"],
        hit_limit=cut,
        prefill=ask.prompt.prefill,
    )
    checked = scores.get("checks") is not None  # the checkers need no judge, nor does nonsense
    if outcome == "unscored" and checked and is_incoherent(text, hit_limit=cut):
        outcome = "incoherent"
    return Reply(
        id=ask.reply_id,
        target=ask.target.label,
        suite=ask.suite.name,
        prompt_id=ask.prompt.id,
        topic=ask.prompt.topic,
        locale=ask.prompt.locale,
        text=SealedText(text),
        outcome="unscored" if failed else outcome,
        scores=scores,
        tokens=done.completion_tokens,
    )


def _probe(
    targets: Sequence[Target],
    pairs: PairSet | None,
    prober: Prober | None,
    asks: Mapping[str, Sequence[_Ask]],
    replies: Mapping[str, Sequence[Reply]],
    on_progress: OnProgress,
) -> Mapping[str, Probe]:
    folders = {t.label: t.folder for t in targets if t.folder or not t.adapter_name}
    if prober is None or pairs is None:
        return {}
    on_progress(Progress("measuring probabilities", 0, len(folders)))
    answers = {label: _plain_answers(asks[label], replies[label]) for label in folders}
    return prober(pairs, folders, answers)


def _plain_answers(asks: Sequence[_Ask], replies: Sequence[Reply]) -> list[tuple[str, str]]:
    """Replies to requests that stand alone, some of each suite, as the prober reads them."""
    found: dict[str, list[tuple[str, str]]] = {}
    for ask, reply in zip(asks, replies, strict=True):
        prompt = ask.prompt
        alone = not (prompt.turns or prompt.preface or prompt.prefill)
        said = reply.text.reveal()
        if alone and reply.tokens and said:  # a log that keeps no texts gives none back
            found.setdefault(reply.suite, []).append((prompt.instruction, said))
    return [answer for of_suite in found.values() for answer in of_suite[:READ]]


def _compare(
    targets: Sequence[Target],
    suites: Sequence[Suite],
    replies: Mapping[str, Sequence[Reply]],
    probes: Mapping[str, Probe],
    judges: Sequence[Judge],
    config: EvalConfig,
    pairs: PairSet | None,
    seconds: Mapping[str, float],
) -> Evaluation:
    """Rates, differences and the verdict."""
    table, base = measures(suites), replies[targets[0].label]
    results = tuple(
        TargetResult(
            label=target.label,
            adapter=target.adapter_name,
            method=target.method,
            rates={name: rate(measured, replies[target.label]) for name, measured in table.items()},
            by_topic=by_topic(table, replies[target.label]),
            by_locale=by_locale(table, replies[target.label]),
            topic_changes=changes_by_topic(table, base, replies[target.label]) if place else {},
            locale_changes=changes_by_locale(table, base, replies[target.label]) if place else {},
            shape=shapes(replies[target.label], suites),
            shape_changes=shape_changes(base, replies[target.label], suites) if place else {},
            probe=probes.get(target.label),
        )
        for place, target in enumerate(targets)
    )
    changes = changes_between(table, replies, targets[0].label, targets[1].label)
    told = {name: change for name, change in changes.items() if change.n}
    decisive = [replies[target.label] for target in targets[:2]]  # others are shown beside
    split = _disagreement(table, decisive, judges)
    findings = examine(config.gate, results[0], results[1], changes, suites, split)
    return Evaluation(
        results=results,
        delta=_delta(told, results[0], results[1]),
        p_values={name: change.p_value for name, change in told.items()},
        intervals={name: (change.low, change.high) for name, change in told.items()},
        beside={
            other.label: _between(table, replies, other.label, targets[1].label)
            for other in targets[2:]
        },
        verdict=decide(findings),
        reasons=tuple(f"{finding.mark}: {finding.words}" for finding in findings),
        suites=tuple(suite.name for suite in suites if suite.prompts),
        not_run=tuple(f"{suite.name}: {suite.not_run}" for suite in suites if suite.not_run),
        judge_ids=tuple(judge.id for judge in judges),
        generation_judge_ids=pairs.judge_ids if pairs is not None else (),
        disagreement=split.get("harm"),
        seconds=seconds,
        tokens_generated=sum(reply.tokens for reply in chain.from_iterable(replies.values())),
    )


def _between(
    table: Mapping[str, Measured],
    replies: Mapping[str, Sequence[Reply]],
    before: str,
    after: str,
) -> dict[str, tuple[float, float, float]]:
    """after - before of every rate that both have scored prompts of, with its interval."""
    found = changes_between(table, replies, before, after)
    return {name: (c.value, c.low, c.high) for name, c in found.items() if c.n}


def _delta(
    told: Mapping[str, Difference], before: TargetResult, after: TargetResult
) -> dict[str, float]:
    """after - before of every rate, on prompts that both have scored, and of what was probed."""
    found = {name: change.value for name, change in told.items()}
    if before.probe is not None and after.probe is not None:
        first = before.probe.measured
        found |= {n: last - first[n] for n, last in after.probe.measured.items() if n in first}
    return found


def changes_between(
    table: Mapping[str, Measured],
    replies: Mapping[str, Sequence[Reply]],
    before: str,
    after: str,
) -> dict[str, Difference]:
    """Paired differences of two targets, per rate."""
    return {
        name: difference(measured, replies[before], replies[after])
        for name, measured in table.items()
    }


def _disagreement(
    table: Mapping[str, Measured], replies: Sequence[Iterable[Reply]], judges: Sequence[Judge]
) -> dict[Axis, float]:
    """Share of the replies that the rates of an axis count on which its judges are split."""
    found: dict[Axis, float] = {}
    for axis, rates in RATES.items():
        names = {suite for rate in rates if rate in table for suite in table[rate].suites}
        ids = [judge.id for judge in judges if judge.axis == axis]
        split = [
            said
            for group in replies
            for reply in group
            if reply.suite in names and (said := disagree(reply.scores, ids)) is not None
        ]
        if split:
            found[axis] = sum(split) / len(split)
    return found
