"""From a stage's progress to metadata, events and metrics, a few times a second at most."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ptalign.errors import Cancelled
from ptalign.progress import Progress
from ptalign_server import failpoints, wire
from ptalign_server.metrics import Metrics, rejections
from ptalign_server.store import Store
from ptalign_server.store.operations import Operation

INTERVAL_SECONDS = 0.4
TRAINED = ("mle", "ut", "anchor")
"""Parts of a training's batches whose tokens are counted."""


class Reporter:
    """The `on_progress` of one run.

    Args:
        should_stop: Asked at every report; True raises `Cancelled` through the stage.
    """

    def __init__(
        self, operation: Operation, store: Store, metrics: Metrics, should_stop: Callable[[], bool]
    ) -> None:
        self._operation = operation
        self._store = store
        self._should_stop = should_stop
        self._meter = Meter(metrics, operation.kind)
        self._phase = ""
        self._phase_start = 0.0
        self._phase_first = 0
        self._written = 0.0
        self._values: dict[str, float] = {}

    def __call__(self, progress: Progress) -> None:
        self._meter.update(progress)
        self._values.update(progress.values)
        now = time.monotonic()
        if progress.phase != self._phase:
            self._phase, self._phase_start = progress.phase, now
            self._phase_first, self._written = progress.done, 0.0
        if now - self._written >= INTERVAL_SECONDS or progress.done == progress.total > 0:
            self._written = now
            self._write(progress, self._eta(progress, now))
        if self._should_stop():
            raise Cancelled("the operation was cancelled")

    def waiting(self, phase: str) -> None:
        """Shows why nothing moves: ``waiting for device``; empty when it goes on."""
        if phase:
            self(Progress(phase, 0, 0))

    def _eta(self, progress: Progress, now: float) -> float | None:
        """Seconds left in this phase at its pace so far."""
        done = progress.done - self._phase_first
        if done <= 0 or progress.total <= 0:
            return None
        return (now - self._phase_start) / done * max(0, progress.total - progress.done)

    def _write(self, progress: Progress, eta: float | None) -> None:
        def change(operation: Operation) -> Operation | None:
            if operation.done:
                return None
            message = wire.KINDS[operation.kind].metadata.FromString(operation.metadata)
            fill(message, progress, self._values, eta)
            return replace(operation, metadata=message.SerializeToString())

        failpoints.hit("acknowledge.before")
        self._store.operations.advance(self._operation.id, change)
        failpoints.hit("acknowledge.after")


def fill(message: Any, progress: Progress, values: Mapping[str, float], eta: float | None) -> None:
    """Writes progress into a verb's typed metadata."""
    common = message.progress
    common.phase, common.done, common.total = progress.phase, progress.done, progress.total
    for name, count in progress.counts.items():
        common.counts[name] = max(0, int(count))
    if eta is None:
        common.ClearField("eta_seconds")
    else:
        common.eta_seconds = eta
    fields = message.DESCRIPTOR.fields_by_name
    # Counts are running totals and win over the last step's values of the same name.
    for name, value in {**values, **progress.counts}.items():
        if name in fields and name != "progress":
            whole = fields[name].cpp_type != fields[name].CPPTYPE_DOUBLE
            setattr(message, name, int(value) if whole else float(value))
    if "suite" in fields:
        message.suite = progress.suite


class Meter:
    """Moves the metrics by what is new in each report."""

    def __init__(self, metrics: Metrics, kind: str) -> None:
        self._metrics = metrics
        self._drafts = {
            "GenerateInstructions": metrics.instructions,
            "SynthesizePairs": metrics.pairs,
        }.get(kind)
        self._before: dict[str, float] = {}

    def update(self, progress: Progress) -> None:
        counts, values, metrics = progress.counts, progress.values, self._metrics
        self._skip(progress.earlier)
        tokens = counts.get("tokens_generated", 0)
        metrics.tokens_generated.inc(self._new("tokens_generated", tokens))
        if self._drafts is not None:
            written = self._new("written", counts.get("written", 0))
            self._drafts.labels("accepted", "").inc(written)
            for reason, count in rejections(counts).items():
                self._drafts.labels("rejected", reason).inc(self._new(f"r.{reason}", count))
        for part in ("mle", "ut", "anchor", "twin"):
            if f"loss_{part}" in values:
                metrics.train_loss.labels(part).set(values[f"loss_{part}"])
        for part in TRAINED:
            tokens = counts.get(f"tokens_{part}", int(values.get(f"tokens_{part}", 0)))
            metrics.train_tokens.labels(part).inc(self._new(f"tokens_{part}", tokens))
        if "ut_weight" in values:
            metrics.ut_weight.set(values["ut_weight"])
        if "step_seconds" in values:
            metrics.step_seconds.observe(values["step_seconds"])

    def _skip(self, earlier: Mapping[str, int]) -> None:
        """Passes over what earlier attempts had reached: they have counted it."""
        for name in ("tokens_generated", "written", *(f"tokens_{part}" for part in TRAINED)):
            self._new(name, earlier.get(name, 0))
        for reason, count in rejections(earlier).items():
            self._new(f"r.{reason}", count)

    def _new(self, name: str, total: float) -> float:
        """What was added since the last report; counters never go down."""
        added = max(0.0, total - self._before.get(name, 0))
        self._before[name] = max(total, self._before.get(name, 0))
        return added
