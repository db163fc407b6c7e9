"""What may pass: a locked database, a volume or a source of keys that is away."""

from __future__ import annotations

import time
from collections.abc import Iterable

import sqlalchemy as sa

from ptalign_server.store.db import DatabaseUnavailable
from ptalign_server.vault import KeysAway

MAX_BACKOFF_SECONDS = 30.0
AWAY = (DatabaseUnavailable, KeysAway)
"""Nothing goes on without these, and the operation that meets it has done nothing wrong."""
AWAY_SECONDS = 5.0
LASTING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


def may_pass(error: BaseException) -> bool:
    """Whether the same may work later. What ptalign raises on purpose is decided."""
    if isinstance(error, OSError):
        return not isinstance(error, LASTING)
    return isinstance(error, (*AWAY, sa.exc.OperationalError, sa.exc.InterfaceError))


class Patience:
    """Who must wait, how long, and who has waited often enough.

    Args:
        attempts: After so many failures an operation is not put off again.
    """

    def __init__(self, attempts: int) -> None:
        self._attempts = attempts
        self._failures: dict[str, int] = {}
        self._due: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._failures)

    def wait(self, operation_id: str) -> None:
        """Postpones an operation because the database or the keys are away.

        Not counted as a failure; may be repeated without limit.
        """
        self._failures.setdefault(operation_id, 0)
        self._due[operation_id] = time.monotonic() + AWAY_SECONDS

    def put_off(self, operation_id: str) -> bool:
        """Notes a failure; False when it was the last that is allowed."""
        failures = self._failures.get(operation_id, 0) + 1
        if failures >= self._attempts:
            return False
        self._failures[operation_id] = failures
        pause = min(2.0 ** (failures - 1), MAX_BACKOFF_SECONDS)
        self._due[operation_id] = time.monotonic() + pause
        return True

    def is_due(self, operation_id: str) -> bool:
        """Whether it may be tried now."""
        return time.monotonic() >= self._due.get(operation_id, 0.0)

    def keep_only(self, operation_ids: Iterable[str]) -> None:
        """Forgets all others: they were taken up, or ended."""
        for gone in self._failures.keys() - set(operation_ids):
            del self._failures[gone], self._due[gone]
