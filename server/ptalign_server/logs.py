"""Logging of both processes: our own lines, only warnings of libraries, no record text.

Words of an exception that was not raised on purpose may quote a record (pydantic quotes its input,
a decoder its bytes), so a traceback keeps its frames and the words are replaced by their length.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from ptalign.errors import PtalignError

OURS = ("ptalign", "ptalign_server")
FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


def set_up(level: str) -> None:
    """Logs to standard error: ours from `level` on. HTTP libraries log bodies at DEBUG: never."""
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter(FORMAT))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in OURS:
        logging.getLogger(name).setLevel(level)
    sys.excepthook = _uncaught
    threading.excepthook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)


class Formatter(logging.Formatter):
    """Writes tracebacks without the words of exceptions that nobody worded."""

    def formatException(self, ei: Any) -> str:
        """Frames of the error and of those behind it."""
        return "\n".join(_lines(ei[1])) if ei[1] is not None else ""


def _lines(error: BaseException) -> Iterator[str]:
    behind = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if behind is not None:
        yield from _lines(behind)
        yield "which led to:"
    yield from (frame.rstrip() for frame in traceback.format_tb(error.__traceback__))
    yield f"{type(error).__module__}.{type(error).__qualname__}: {words(error)}"


def words(error: BaseException) -> str:
    """What an error says, where it was worded to be shown; else how long it is."""
    if isinstance(error, PtalignError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} (errno {error.errno})"
    return f"<{len(str(error))} characters>"


def _uncaught(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger("ptalign.server").critical("uncaught", exc_info=(kind, error, trace))  # type: ignore[arg-type]
