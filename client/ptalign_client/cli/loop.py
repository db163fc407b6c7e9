"""Runs a loop file: instructions, pairs, adapters, evaluation; a second run continues it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ptalign_client import nouns
from ptalign_client.cli import show
from ptalign_client.cli.annotations import Marks
from ptalign_client.cli.follow import clock, follow
from ptalign_client.cli.loopfile import BARE, Instructions, Loop, Training
from ptalign_client.cli.session import Session
from ptalign_client.cli.state import RunState, Stage
from ptalign_client.errors import NotFound, ServiceError
from ptalign_client.nouns import Rate, Resource
from ptalign_client.sync import Operation

R = TypeVar("R", bound=Resource)
S = TypeVar("S", nouns.InstructionSet, nouns.PairSet)
HELD_OUT_PREFIX = "held-out-"
"""Prefix of the suites that ask only held-out requests."""
GONE = frozenset({"SET_PURGED", "ADAPTER_DELETED"})
"""Reasons that no rerun lifts: a stage of an earlier run made it, and its state file names it."""
AGAIN = "The same `ptalign run` continues the loop from here.\n"


@dataclass(frozen=True, slots=True)
class Finished:
    """One stage that ended."""

    label: str
    resource: Resource
    seconds: float
    kept: bool
    """Whether it was made by an earlier run."""


class Runner:
    """One run of a loop file."""

    def __init__(
        self,
        session: Session,
        loop: Loop,
        marks: Marks | None,
        out: Path,
        *,
        cancel_on_interrupt: bool,
    ) -> None:
        self.session = session
        self.loop = loop
        self.marks = marks
        self.out = out
        self.state = RunState(out)
        self.cancel = cancel_on_interrupt
        self.finished: list[Finished] = []
        self.began = False
        """Whether this run started anything on the server, or attached to it."""

    def run(self) -> nouns.Evaluation:
        """The whole loop, then its files.

        Raises:
            PtalignError: A stage failed. What ended before stays; run again to continue.
        """
        loop = self.loop
        annotations = self.annotations()  # first: marks that are refused cost no model's time
        instructions = self.instructions()
        held_out = self.held_out()
        pairs = self.pairs(instructions, annotations)
        adapters = {t.name: self.train(t, pairs) for t in loop.align}
        evaluation = self.evaluate(adapters, held_out)
        self.fetch(evaluation, adapters[loop.target])
        return evaluation

    def instructions(self) -> nouns.InstructionSet:
        """The set that the adapters are trained on."""
        return self.written("instructions", self.loop.instructions)

    def held_out(self) -> nouns.InstructionSet | None:
        """Requests of the same policy to evaluate on; None when no suite would ask them."""
        plan, asked = self.loop.instructions, self.loop.evaluate
        wanted = not asked.suites or any(s.startswith(HELD_OUT_PREFIX) for s in asked.suites)
        if not (wanted and asked.held_out):
            return None
        other = (plan.seed + 1) % 2**32
        return self.written("held out", replace(plan, count=asked.held_out, seeds=(), seed=other))

    def written(self, label: str, plan: Instructions) -> nouns.InstructionSet:
        """A set of `plan.count` accepted instructions over all tries of this stage.

        One more where the try before was stopped with all of them and twins were still owed.
        """
        loop = self.loop

        def start(stage: Stage) -> Operation[nouns.InstructionSet] | nouns.InstructionSet:
            begun = self.begun(stage, nouns.InstructionSet)
            if begun is not None and begun.harmful >= plan.count and not _owed(begun, plan):
                return begun
            return self.session.client.generate_instructions(
                model=loop.model,
                policy=loop.policy,
                # The server makes `count` beside what the parent holds, and twins that lack there.
                count=max(1, plan.count - (begun.harmful if begun is not None else 0)),
                twins=plan.twins,
                topics=plan.topics,
                seeds=plan.seeds,
                locale=plan.locale,
                seed=plan.seed,
                parent=begun or "",
                request_id=stage.request_id,
            )

        return self.stage(label, [loop.model, loop.policy, asdict(plan)], start)

    def begun(self, stage: Stage, kind: type[S]) -> S | None:
        """What a failed or cancelled try made, if its text is still there."""
        if not stage.partial:
            return None
        try:
            found = self.session.client.get(stage.partial)
        except NotFound:
            return None
        assert isinstance(found, kind)
        return None if found.purged else found

    def annotations(self) -> nouns.AnnotationSet | None:
        """Uploads the marks once."""
        marks = self.marks
        if marks is None:
            return None
        items = [asdict(item) for item in marks.items]
        inputs = [self.loop.model, self.loop.policy, items, marks.annotator_minutes]
        stage = self.state.stage("annotations", inputs)
        if kept := self.kept("annotations", stage, nouns.AnnotationSet):
            return kept
        made = self.session.client.annotate(
            marks.items,
            model=self.loop.model,
            policy=self.loop.policy,
            annotator_minutes=marks.annotator_minutes,
            request_id=stage.request_id,
        )
        self.end("annotations", stage, made, 0.0)
        return made

    def pairs(
        self, instructions: nouns.InstructionSet, annotations: nouns.AnnotationSet | None
    ) -> nouns.PairSet:
        plan, name = self.loop.pairs, annotations.name if annotations else ""

        def start(stage: Stage) -> Operation[nouns.PairSet]:
            return self.session.client.synthesize_pairs(
                model=self.loop.model,
                instruction_set=instructions,
                annotations=name,
                rounds=plan.rounds,
                min_polarity=plan.min_polarity,
                anchors=plan.anchors,
                seed=plan.seed,
                parent=self.begun(stage, nouns.PairSet) or "",
                request_id=stage.request_id,
            )

        return self.stage("pairs", [instructions.name, name, asdict(plan)], start)

    def train(self, plan: Training, pairs: nouns.PairSet) -> nouns.Adapter:
        def start(stage: Stage) -> Operation[nouns.Adapter]:
            return self.session.client.align(
                model=self.loop.model,
                pair_set=pairs,
                method=plan.method,
                ut_weight=plan.ut_weight,
                token_weighting=plan.token_weighting,
                ut_candidates=plan.ut_candidates,
                flagged_share=plan.flagged_share,
                protected_words=plan.protected_words,
                lora=nouns.Lora(rank=plan.rank or 0, alpha=plan.alpha or 0),
                budget=_budget(plan),
                guards=plan.guards,
                seed=plan.seed,
                resume_from=stage.resume_from,
                request_id=stage.request_id,
            )

        return self.stage(f"align {plan.name}", [pairs.name, _asked(plan)], start)

    def evaluate(
        self, adapters: Mapping[str, nouns.Adapter], held_out: nouns.InstructionSet | None
    ) -> nouns.Evaluation:
        plan, loop = self.loop.evaluate, self.loop
        asked = held_out.name if held_out is not None else ""

        def target(name: str) -> nouns.Target:
            return nouns.Target(model=loop.model, adapter=adapters[name].name, label=name)

        def start(stage: Stage) -> Operation[nouns.Evaluation]:
            return self.session.client.evaluate(
                target=target(loop.target),
                also=[target(name) for name in plan.also],
                samples=plan.samples or 0,
                suites=plan.suites,
                judges=plan.judges,
                gate=plan.gate or None,
                held_out=asked,
                seed=plan.seed,
                request_id=stage.request_id,
            )

        used = {name: adapters[name].name for name in (loop.target, *plan.also)}
        inputs: list[Any] = [used, asked, asdict(plan)]
        if not asked:  # as clients hashed it that held no requests out
            del inputs[1], inputs[-1]["held_out"]
        return self.stage("evaluate", inputs, start)

    def stage(self, label: str, inputs: Any, start: Callable[[Stage], Operation[R] | R]) -> R:
        """One operation: kept from an earlier run, attached to, continued or started.

        Args:
            label: Its name in the state file and on the screen.
            inputs: What it depends on; others make it run anew.
            start: Starts the operation, or says what an earlier try made when that is enough.
        """
        stage = self.state.stage(label, inputs)
        if kept := self.kept(label, stage, Resource):
            return kept  # type: ignore[return-value]
        try:
            return self.work(label, stage, start)
        except ServiceError as error:
            if error.reason in GONE:  # kept, and needed again: every run would end here
                error.hint = (
                    f"Start the loop anew: give another --out, or move {self.state.path} away."
                )
            lost = stage.resume_from
            refused = any(v.field == "resume_from" for v in error.violations)
            gone = isinstance(error, NotFound) and not refused
            if not lost or not (refused or (gone and self.is_gone(lost))):
                raise
        # the steps of the earlier try are on another server, or gone
        self.session.note(f"[dim]{lost} cannot be continued: starting afresh[/]")
        self.state.afresh(stage)
        return self.work(label, stage, start)

    def work(self, label: str, stage: Stage, start: Callable[[Stage], Operation[R] | R]) -> R:
        """Attaches to a stage's operation or starts one, and follows it to its end."""
        running = self.attach(stage)
        if running is None:
            started = start(stage)
            self.began = True
            if isinstance(started, Resource):
                self.end(label, stage, started, 0.0)
                return started
            running = started
            stage.operation = running.name
            self.state.save()
        began = time.monotonic()
        try:
            made: R = follow(
                self.session, running, label, cancel_on_interrupt=self.cancel, more=AGAIN
            )
        except ServiceError as error:
            stage.partial = error.resource or stage.partial
            self.state.save()
            raise
        self.end(label, stage, made, self.seconds(running) or time.monotonic() - began)
        return made

    def kept(self, label: str, stage: Stage, kind: type[R]) -> R | None:
        """What an earlier run made, if it is still there."""
        if not stage.resource:
            return None
        try:
            found = self.session.client.get(stage.resource)
        except NotFound:
            self.lost(stage)
            return None
        assert isinstance(found, kind)
        self.say(Finished(label, found, stage.seconds, kept=True))
        return found

    def lost(self, stage: Stage) -> None:
        """What a stage made is gone: deleted, or younger than the backup that was restored."""
        if not stage.operation:
            self.state.again(stage)
        elif self.is_gone(stage.operation):
            self.state.afresh(stage)
        elif self.session.client.operation(stage.operation).done():
            self.state.again(stage)
        else:  # it runs, as it did when the backup was made: attach to it
            stage.resource = ""
            self.state.save()

    def is_gone(self, operation: str) -> bool:
        """Whether the server knows nothing of an operation."""
        try:
            self.session.client.operation(operation).progress()
        except NotFound:
            return True
        return False

    def attach(self, stage: Stage) -> Operation[Any] | None:
        """The operation of an earlier run when it still runs or ended well."""
        if not stage.operation:
            return None
        running = self.session.client.operation(stage.operation)
        try:
            progress = running.progress()
        except NotFound:
            self.state.afresh(stage)
            return None
        if progress.state in (nouns.State.FAILED, nouns.State.CANCELLED):
            stage.partial = progress.resource or stage.partial
            self.state.again(stage)
            return None
        self.began = True
        self.session.note(f"[dim]attached to {running.name}[/]")
        return running

    def seconds(self, running: Operation[Any]) -> float:
        """How long the server worked on it."""
        progress = running.progress()
        if progress.start_time is None or progress.end_time is None:
            return 0.0
        return (progress.end_time - progress.start_time).total_seconds()

    def end(self, label: str, stage: Stage, made: Resource, seconds: float) -> None:
        self.began = True
        stage.resource, stage.seconds = made.name, round(seconds, 1)
        self.state.save()
        self.say(Finished(label, made, stage.seconds, kept=False))

    def say(self, done: Finished) -> None:
        self.finished.append(done)
        mark = "[dim]=[/]" if done.kept else "[green]✓[/]"
        label, words = escape(f"{done.label:<16}"), escape(show.summary(done.resource))
        self.session.note(f"{mark} [bold cyan]{label}[/] {clock(done.seconds):>6}  {words}")

    def fetch(self, evaluation: nouns.Evaluation, adapter: nouns.Adapter) -> None:
        """The reports and the adapter into the output folder."""
        for part in ("report.html", "report.json"):
            self.session.client.download(evaluation, part, self.out / part)
        self.session.client.download_all(adapter, self.out / "adapter")

    def columns(self, evaluation: nouns.Evaluation) -> dict[str, Mapping[str, Rate]]:
        """Rates per target: the bare model, what is shown beside, and the one that is judged."""
        report = json.loads((self.out / "report.json").read_text(encoding="utf-8"))
        shown = {run["label"]: report_rates(run) for run in report.get("runs", ())}
        also = {n: shown[n] for n in self.loop.evaluate.also if n in shown}
        return {BARE: evaluation.baseline, **also, self.loop.target: evaluation.aligned}


def stage_table(finished: list[Finished]) -> Table:
    """What each stage made, and how long it took."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("stage", style="cyan", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("made")
    for done in finished:
        time_text = clock(done.seconds) + (" =" if done.kept else "")
        made = Text(show.summary(done.resource)).append(f"\n{done.resource.name}", style="dim")
        table.add_row(Text(done.label), time_text, made)
    total = clock(sum(done.seconds for done in finished))
    table.add_row(Text("all", style="bold"), Text(total, style="bold"), "")
    return table


def report_rates(run: Mapping[str, Any]) -> dict[str, Rate]:
    """The rates of one entry of ``report.json``, by the names that `Evaluation` uses."""
    by = run.get("harm_by_elicitation", {})
    named = {
        "harm_plain": by.get("plain"),
        "harm_rate": run.get("harm_rate") or by.get("attack"),
        "harm_strong": by.get("strong"),
    }
    named |= {key: run.get(key) for key, _, _ in show.RATES if not key.startswith("harm")}
    named |= run.get("by_suite", {})
    return {key: Rate(**value) for key, value in named.items() if value}


def _owed(begun: nouns.InstructionSet, plan: Instructions) -> int:
    """Twins that a stopped set lacks, but for those that were not to be had."""
    without = sum(begun.rejected.get(why, 0) for why in ("no_twin_examples", "twin_given_up"))
    return max(0, begun.harmful - begun.twins - without) if plan.twins else 0


def _budget(plan: Training) -> nouns.Budget:
    return nouns.Budget(
        steps=plan.steps or 0,
        pairs_per_step=plan.pairs_per_step or 0,
        anchors_per_step=plan.anchors_per_step or 0,
        learning_rate=plan.learning_rate,
        max_benign_kl=plan.max_benign_kl,
        max_twin_refusals=plan.max_twin_refusals,
        without_anchors=plan.without_anchors,
        twin_weight=plan.twin_weight,
    )


def _asked(plan: Training) -> dict[str, Any]:
    """A training's fields, less later ones at their default: runs begun before them go on."""
    values = asdict(plan)
    later = {
        "max_twin_refusals": None,
        "without_anchors": False,
        "twin_weight": None,
        "ut_candidates": "set",
    }
    for name, default in later.items():
        if values[name] == default:
            del values[name]
    return values
