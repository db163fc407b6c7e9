"""Log lines of child processes, made safe to keep and to show."""

from __future__ import annotations

import re
from collections import deque
from threading import Lock

from ptalign.text.credentials import BARE, GIVEN, HEADER, KEY, PASSWORD, VALUE

LIMIT = 400
"""Characters of a line that are kept."""

_RULES = (
    (re.compile(rf"(?i)((?:{PASSWORD}|{KEY}|{HEADER}){GIVEN}){VALUE}( \S+)?"), r"\1<masked>"),
    (re.compile(r"(?i)\bbearer\s+\S+"), "Bearer <masked>"),
    (re.compile(BARE), "<masked>"),
    (re.compile(r"(\w{1,32}://)[^/\s@]+@"), r"\1<masked>@"),
    (re.compile(r"[\w.+-]{1,64}@[\w-]+\.[\w.]+"), "<masked>"),
    (re.compile(r"[\[(]\s*-?\d+(?:\s*,\s*-?\d+){7,}[^\])]*[\])]?"), "<numbers>"),
    (re.compile(r"'[^'\n]{24,}'|\"[^\"\n]{24,}\""), "<text>"),
)  # fmt: skip
# A token id list is as good as its text, so long lists of numbers go too. What begins anywhere in a
# word has a longest length: else a line of 16 KiB without a blank takes steps by its square.

_ENGINE_LINE = re.compile(r"^(\([\w =:]+\) )?(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b")
_FRAME = re.compile(r'^\s*File "[^"]+", line \d+')
_RAISED = re.compile(
    r"^(\([\w =:]+\) )?(\w+\.)*\w*(Error|Exception|Interrupt|Warning|Exit|Failed)\b"
)
_TRACEBACK = re.compile(r"^(\([\w =:]+\) )?\s*(Traceback \(most recent|During handling|The above)")


def mask(line: str) -> str:
    """The line without credentials, addresses, number lists and long quotations."""
    for pattern, replacement in _RULES:
        line = pattern.sub(replacement, line)
    return line if len(line) <= LIMIT else line[:LIMIT] + f"... <{len(line) - LIMIT} more>"


def mask_strictly(line: str) -> str:
    """As `mask`, for a process that holds record text: only lines of a known shape keep words.

    Frames and exception names of a traceback stay; the words of an exception and any other
    output are replaced by their length.
    """
    if _FRAME.match(line) or _TRACEBACK.match(line):
        return mask(line)
    if raised := _RAISED.match(line):
        rest = len(line) - raised.end()
        return raised.group(0) + (f": <{rest} chars>" if rest else "")
    return f"<line of {len(line)} chars>" if line.strip() else ""


class LogTail:
    """The last lines a child wrote, redacted as they come in.

    Args:
        lines: How many are kept.
        strict: Whether the child holds record text from the start (see `mask_strictly`).
    """

    def __init__(self, lines: int = 80, *, strict: bool = False) -> None:
        self.strict = strict
        self._lines: deque[str] = deque(maxlen=lines)
        self._lock = Lock()

    def add(self, line: str) -> None:
        """Keeps one line."""
        words = line.lower().replace("avg prompt throughput", "")  # a number, not a prompt
        engine_line = self.strict and _ENGINE_LINE.match(line) and "prompt" not in words
        safe = mask(line) if engine_line or not self.strict else mask_strictly(line)
        if safe.strip():
            with self._lock:
                self._lines.append(safe.rstrip())

    def last(self, count: int = 20) -> tuple[str, ...]:
        """The newest `count` lines, oldest first."""
        with self._lock:
            return tuple(self._lines)[-count:]
