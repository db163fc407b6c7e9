"""Where a stage puts records as it accepts them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from ptalign.nouns import Noun

T = TypeVar("T", bound=Noun)


class RecordLog(Protocol[T]):
    """An append-only log of accepted records with unique ids.

    A stage first reads what is there and continues after it; `append` is durable when it
    returns. Appending an id that is already there is a no-op, so a retried step is harmless.
    """

    def read(self) -> Iterator[T]:
        """Accepted records in order."""

    def append(self, record: T) -> None:
        """Accepts one record."""


class MemoryLog(Generic[T]):
    """A `RecordLog` in memory: what a notebook uses."""

    def __init__(self) -> None:
        self._records: dict[str, T] = {}

    def read(self) -> Iterator[T]:
        yield from self._records.values()

    def append(self, record: T) -> None:
        self._records.setdefault(record.id, record)  # type: ignore[attr-defined]
