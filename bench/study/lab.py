"""Where the units of a study are done: one engine, one model, the library's own functions."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.study.form import BASE, Data, Form, Run
from bench.study.journal import Journal, ReplyFile, code_of, threads
from ptalign import judges
from ptalign.config import AlignConfig, EvalConfig, InstructionConfig, PairConfig
from ptalign.nouns import (
    Adapter,
    Anchor,
    Answers,
    Constraint,
    Evaluation,
    Instruction,
    InstructionSet,
    ModelSpec,
    Pair,
    PairSet,
    Policy,
    Probe,
    Spent,
    digest_of,
)
from ptalign.policies import load_annotations, load_policy
from ptalign.progress import OnProgress
from ptalign.report.words import mask, shown
from ptalign.sealed import SealedText
from ptalign.suites import Suite, build, shipped
from ptalign_server.pool import Pool, PoolSettings
from ptalign_server.profiles import profile

POLICY: Mapping[Data, str] = {"tone": "tone-en", "broad": "default-en"}
MODEL = "smollm2-135m-instruct"
START_SECONDS = 900.0
WRITING = ("instructions.py", "asking", "pairs.py", "answering", "policies", "text")
WRITING += ("judges", "outcome.py")
JUDGING = ("evaluate.py", "outcome.py", "judges", "suites", "text")
PROBING = ("probe.py", "training", "weights")
"""Sources under ptalign/ that decide what is written, what a reply counts as, and what is measured
without sampling."""


class Lab:
    """Does units and gives their results as JSON-able data without any harmful text.

    Args:
        form: Sizes.
        journal: Where finished things are kept.
        on_progress: Told what a stage is doing.
    """

    def __init__(self, form: Form, journal: Journal, on_progress: OnProgress) -> None:
        self._form, self._journal, self._on_progress = form, journal, on_progress
        self._pool: Pool | None = None
        self._sets: dict[Data, PairSet] = {}

    @cached_property
    def model(self) -> ModelSpec:
        """The demo model, prepared on first use, with the digest that the service would give it."""
        from ptalign_server.models import prepare_demo_model, weights_digest

        folder = prepare_demo_model()
        return ModelSpec(name=MODEL, path=str(folder), weights_digest=weights_digest(folder))

    @contextmanager
    def opened(self) -> Iterator[Lab]:
        """Ends the engine on the way out."""
        try:
            yield self
        finally:
            if self._pool is not None:
                self._pool.stop()

    @property
    def pool(self) -> Pool:
        """The engine, started as the service starts it and proven by its canary."""
        if self._pool is None:
            folder = self._journal.folder / "engine"
            settings = PoolSettings.of(profile("cpu"), state=folder, threads=threads())
            self._pool = Pool(settings, self.model)
            self._pool.start()
        self._pool.wait_ready(START_SECONDS)
        return self._pool

    # -- texts ------------------------------------------------------------------------------

    def instructions(self, data: Data, tag: str) -> dict[str, Any]:
        """Stage 1, sealed as ``instructions-DATA``; its log is named by `tag`."""
        from ptalign.instructions import generate_instructions

        name = f"instructions-{data}"
        made = generate_instructions(
            policy(data),
            self._form.instructions if data == "tone" else self._form.broad,
            engine=self.pool.engine(),
            model=self.model,
            config=InstructionConfig(),
            on_progress=self._on_progress,
            log=self._journal.log(f"{name}-{tag}", Instruction),
            costs=self._journal.log(f"{name}-{tag}-costs", Spent),
        )
        self._journal.seal(name, made)
        return counts(made) | {"harmful": len(made.harmful), "twins": len(made.twins)}

    def pairs(self, data: Data, tag: str) -> dict[str, Any]:
        """Stage 2, sealed as ``pairs-DATA``; its log is named by `tag`."""
        from ptalign.pairs import synthesize_pairs

        name, annotations = f"pairs-{data}", load_annotations(POLICY["tone"])
        made = synthesize_pairs(
            self._journal.open(f"instructions-{data}", InstructionSet),
            annotations if data == "tone" else (),
            policy=policy(data),
            engine=self.pool.engine(),
            model=self.model,
            judges=judges.generation_judges(annotations),
            config=PairConfig(anchors=self._form.anchors),
            on_progress=self._on_progress,
            log=self._journal.log(f"{name}-{tag}", Pair, Anchor, Constraint),
            costs=self._journal.log(f"{name}-{tag}-costs", Spent),
        )
        self._journal.seal(name, made)
        return pair_counts(made)

    def imported(self, file: Path) -> dict[str, Any]:
        """A pair set from JSON with its texts revealed, sealed as ``pairs-tone``.

        Raises:
            pydantic.ValidationError: The file is not a pair set.
        """
        made = PairSet.model_validate_json(file.read_text("utf-8"))
        self._journal.seal("pairs-tone", made)
        return pair_counts(made) | {"imported": True}

    def training_set(self, data: Data) -> PairSet:
        """The pairs that runs on this data share; `broad` adds its pairs to those of `tone`."""
        if data not in self._sets:
            found = self._journal.open("pairs-tone", PairSet)
            if data == "broad":
                found = merged(found, self._journal.open("pairs-broad", PairSet))
            self._sets[data] = found
        return self._sets[data]

    # -- runs -------------------------------------------------------------------------------

    def train(self, run: Run, ut_weight: float | None, tag: str) -> dict[str, Any]:
        """Stage 3 for one run. Guards record: no run of a study is left out."""
        from ptalign.align import align

        folder = f"runs/{run.label}-{tag}"
        out = self._journal.folder / folder
        made = align(
            self.training_set(run.data),
            model=self.model,
            out=out,
            config=training_config(run, ut_weight),
            policy=policy("tone"),
            on_progress=self._on_progress,
        )
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
        return masked_adapter(made) | {"folder": f"{folder}/adapter"}

    def ask(self, run: Run, adapter: str) -> dict[str, Any]:
        """Stage 4 for the bare model and one run, on the same prompts.

        Args:
            run: Which one.
            adapter: Its PEFT folder, relative to the journal's.
        """
        from ptalign.evaluate import Target, evaluate
        from ptalign.probe import probe

        pairs, config = self.training_set(run.data), self.config
        suites = self.suites(run)
        folder = self._journal.folder / adapter
        name = self.pool.serve_adapter(run.label.replace("_", "-"), folder)

        def prober(
            pairs: PairSet, folders: Mapping[str, str], answers: Mapping[str, Answers]
        ) -> dict[str, Probe]:
            return probe(
                pairs,
                folders,
                answers,
                model=self.model,
                samples=config.samples,
                policy=policy("tone"),
                threads=threads(),
                on_progress=self._on_progress,
            )

        made = evaluate(
            [Target(BASE), Target(run.label, name, run.method, str(folder))],
            suites,
            engine=self.pool.engine(),
            model=self.model,
            judges=judges.evaluation_judges(),
            config=config,
            pairs=pairs,
            prober=prober,
            on_progress=self._on_progress,
            log=ReplyFile(self.replies(run.data)),
        )
        self.pool.drop_adapter(name)
        asked = {(suite.name, prompt.id) for suite in suites for prompt in suite.prompts}
        ReplyFile(self.replies(run.data)).keep_only((BASE, run.label), asked)
        return masked_evaluation(made) | {
            "suites": [described(suite) for suite in suites],
            "replies": self.replies(run.data).name,
        }

    def replies(self, data: Data) -> Path:
        """Judged replies of all targets on this data, apart for each version of what judges."""
        return self._journal.folder / replies_name(data)

    @property
    def config(self) -> EvalConfig:
        """Settings of every evaluation."""
        return EvalConfig(usefulness_tokens=self._form.usefulness_tokens)

    def suites(self, run: Run) -> list[Suite]:
        """The suites of a run, each with the form's own number of prompts."""
        names = self._form.suites
        if run.data == "broad":
            names = dict.fromkeys(self._form.curve_suites, 250)
            if self._form.name == "smoke":
                names = dict.fromkeys(names, 4)
        found: list[Suite] = []
        for name, count in names.items():
            spec = shipped()[name].model_copy(update={"share": 1.0})
            config = self.config.model_copy(update={"samples": count})
            pairs = self.training_set(run.data)
            found += build([name], config=config, pairs=pairs, catalogue={name: spec})
        return found


def replies_name(data: Data) -> str:
    """Name of a file of judged replies: it says which code judged them."""
    return f"replies-{data}-{code_of(*JUDGING)}.jsonl"


def training_config(run: Run, ut_weight: float | None) -> AlignConfig:
    """The defaults of `align` but for what makes the run."""
    return AlignConfig(
        method=run.method,
        steps=run.steps,
        twins_per_step=run.twins,
        anchors_per_step=run.anchors,
        ut_weight=ut_weight,
        seed=run.seed,
        guards="record",
        threads=threads(),
    )


def policy(data: Data) -> Policy:
    """The shipped policy that this data was written under."""
    return load_policy(POLICY[data])


def counts(made: InstructionSet | PairSet) -> dict[str, Any]:
    """Numbers that a set carries; no text."""
    return {
        "digest": made.digest,
        "requested": made.requested,
        "rejected": dict(made.rejected),
        "stats": dict(made.stats),
    }


def pair_counts(made: PairSet) -> dict[str, Any]:
    """The same with what a pair set holds."""
    return counts(made) | {
        "pairs": sum(p.kind != "twin" for p in made.pairs),
        "polarised": len(made.polarised),
        "twins": len(made.twins),
        "anchors": len(made.anchors),
        "annotations_used": made.annotations_used,
        "judges": list(made.judge_ids),
    }


def merged(first: PairSet, second: PairSet) -> PairSet:
    """Both sets' pairs and anchors; what both have is taken from the first."""

    def joined(some: tuple[Any, ...], others: tuple[Any, ...]) -> tuple[Any, ...]:
        known = {record.id for record in some}
        return some + tuple(record for record in others if record.id not in known)

    return first.model_copy(
        update={
            "pairs": joined(first.pairs, second.pairs),
            "anchors": joined(first.anchors, second.anchors),
            "requested": first.requested + second.requested,
        }
    )


def masked_adapter(made: Adapter) -> dict[str, Any]:
    """An adapter as data: suppressed tokens masked, collateral words only where harmless."""
    body = made.model_dump(mode="json", exclude={"path", "suppressed", "collateral"})
    return body | masked_words(made)


def masked_words(made: Adapter | Probe) -> dict[str, Any]:
    """Suppressed tokens and collateral words as a report shows them.

    Of collateral words that are masked alike the one that lost most stands for all.
    """
    lost_most: dict[str, float] = {}
    for word, lost in (made.collateral or {}).items():  # the worst first
        lost_most.setdefault(shown(word), lost)
    return {
        "suppressed": [
            s.model_copy(update={"token": SealedText(mask(s.token.reveal()))}).model_dump(
                mode="json", context={"reveal": True}
            )
            for s in made.suppressed
        ],
        "collateral": lost_most,
    }


def masked_evaluation(made: Evaluation) -> dict[str, Any]:
    """An evaluation as data, its probes' words masked."""
    body = made.model_dump(mode="json")
    for result, shown_result in zip(made.results, body["results"], strict=True):
        if result.probe is not None:
            shown_result["probe"] |= masked_words(result.probe)
    return {"evaluation": body}


def described(suite: Suite) -> dict[str, Any]:
    """A suite without its prompts."""
    return suite.model_dump(mode="json", exclude={"prompts"}) | {
        "prompts": len(suite.prompts),
        "digest": digest_of([prompt.id for prompt in suite.prompts]),
    }
