"""What a job says on its pipe: one JSON object a line, and how errors cross it."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Mapping
from typing import Any

from ptalign import errors
from ptalign.progress import Progress

_FIELDS: Mapping[type[errors.PtalignError], tuple[str, ...]] = {
    errors.InvalidInput: ("field", "limit", "mend"),
    errors.GuardTripped: ("guard", "value", "limit"),
}
"""Errors whose constructor takes fields instead of a message."""


def line(event: Mapping[str, Any]) -> bytes:
    """One event as it goes over the pipe."""
    return json.dumps(event, separators=(",", ":")).encode() + b"\n"


def progress_event(progress: Progress) -> dict[str, Any]:
    return {
        "event": "progress",
        "phase": progress.phase,
        "done": progress.done,
        "total": progress.total,
        "counts": dict(progress.counts),
        "values": dict(progress.values),
        "earlier": dict(progress.earlier),
    }


def progress_of(event: Mapping[str, Any]) -> Progress:
    names = ("phase", "done", "total", "counts", "values", "earlier")
    return Progress(*(event[name] for name in names))


def error_event(error: BaseException) -> dict[str, Any]:
    """An error as data. Only errors raised on purpose carry words: others may quote text."""
    if isinstance(error, errors.PtalignError):
        fields = {name: getattr(error, name) for name in _FIELDS.get(type(error), ())}
        content = {"class": type(error).__name__, "message": str(error), "fields": fields}
        return {"event": "error", "retryable": error.retryable} | content
    if errors.out_of_memory(error):
        return error_event(
            errors.TrainingFailed(
                f"its device has too little free memory (at {_place(error)}). See what else uses "
                "it, lower budget.pairs_per_step and budget.anchors_per_step of a training, or "
                "make bfloat16 the model's dtype in the catalogue: it halves the weights"
            )
        )
    if isinstance(error, OSError) and error.errno:
        return {"event": "error", "class": "OSError", "errno": error.errno}
    return {"event": "error", "class": type(error).__name__, "place": _place(error)}


def error_of(event: Mapping[str, Any]) -> Exception:
    """The error that an event stands for: of `ptalign.errors`, or OSError with its errno."""
    if "errno" in event:
        return OSError(event["errno"], os.strerror(event["errno"]))
    found = getattr(errors, event["class"], None)
    if isinstance(found, type) and issubclass(found, errors.PtalignError) and "message" in event:
        error = found(**event["fields"]) if event["fields"] else found(event["message"])
        error.retryable = event["retryable"]
        return error
    return errors.TrainingFailed(
        f"the job stopped on an unexpected {event['class']} at {event['place']}"
    )


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return "an unknown place"
    return f"{os.path.basename(frames[-1].filename)}:{frames[-1].lineno}"
