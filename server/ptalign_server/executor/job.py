"""The executor's side of a job: `python -m ptalign_server.executor.job NICENESS`.

The job comes as JSON on standard input, events go out as JSON lines on what was standard output.
Nothing of it touches the disk in clear. SIGTERM asks it to stop at the next progress report,
which is at most one training step away.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from ptalign.config import AlignConfig, EvalConfig
from ptalign.errors import Cancelled, Unsupported
from ptalign.nouns import ModelSpec, PairSet, Policy
from ptalign.progress import OnProgress, Progress
from ptalign_server import failpoints
from ptalign_server.executor.events import error_event, line, progress_event

REVEAL = {"reveal": True}


def run_align(payload: Mapping[str, Any], on_progress: OnProgress) -> dict[str, Any]:
    """`ptalign.align.align`.

    Keys: pairs, model, out, config, policy, parent, taught, resume, judge.
    """
    from ptalign.align import align
    from ptalign.judges import judge

    failpoints.watch_checkpoints()
    policy = payload.get("policy")
    adapter = align(
        PairSet.model_validate(payload["pairs"]),
        model=ModelSpec.model_validate(payload["model"]),
        out=Path(payload["out"]),
        config=AlignConfig.model_validate(payload.get("config") or {}),
        policy=Policy.model_validate(policy) if policy else None,
        parent=Path(payload["parent"]) if payload.get("parent") else None,
        taught=payload.get("taught", ()),
        resume=payload.get("resume", True),
        judge=judge(payload["judge"]) if payload.get("judge") else None,
        on_progress=on_progress,
    )
    return adapter.model_dump(mode="json", context=REVEAL)


def run_probe(payload: Mapping[str, Any], on_progress: OnProgress) -> dict[str, Any]:
    """`ptalign.probe.probe`; keys: pairs, adapters, answers, model, samples, policy, device."""
    from ptalign.probe import probe

    policy = payload.get("policy")
    found = probe(
        PairSet.model_validate(payload["pairs"]),
        payload["adapters"],
        payload.get("answers"),
        model=ModelSpec.model_validate(payload["model"]),
        samples=payload.get("samples", EvalConfig().samples),
        policy=Policy.model_validate(policy) if policy else None,
        device=payload.get("device", "cpu"),
        on_progress=on_progress,
    )
    return {label: p.model_dump(mode="json", context=REVEAL) for label, p in found.items()}


KINDS: dict[str, Callable[[Mapping[str, Any], OnProgress], dict[str, Any]]] = {
    "align": run_align,
    "probe": run_probe,
}


class Stop:
    """Whether SIGTERM came."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: object) -> None:
        self.asked = True


def main() -> int:
    """Runs one job; the one argument is its niceness. Status 0 once its end has been said."""
    os.nice(int(sys.argv[1]))
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what libraries print belongs in the log
    stop = Stop()

    def on_progress(progress: Progress) -> None:
        out.write(line(progress_event(progress)))
        if stop.asked:
            raise Cancelled("the job was asked to stop")

    try:
        job = json.load(sys.stdin)
        if job["kind"] not in KINDS:
            raise Unsupported(f"job kind {job['kind']!r}: known are {', '.join(sorted(KINDS))}")
        result = KINDS[job["kind"]](job["payload"], on_progress)
        _say(out, {"event": "result", "result": result})
    except BaseException as error:
        _say(out, error_event(error))
        if not isinstance(error, Exception):
            raise
    return 0


def _say(out: IO[bytes], event: Mapping[str, Any]) -> None:
    """Writes all of a last event: a raw pipe may take less than it is given."""
    rest = memoryview(line(event))
    while rest:
        rest = rest[out.write(rest) :]


if __name__ == "__main__":
    sys.exit(main())
