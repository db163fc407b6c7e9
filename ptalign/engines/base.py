"""The one thing stages ask of a language model: complete these, as they finish."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from ptalign.errors import EngineFailed

Role = Literal["system", "user", "assistant"]

MAX_ERRORS = 64
"""Failed requests in a row after which the engine counts as lost."""


@dataclass(frozen=True, slots=True)
class Message:
    """One chat turn."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Request:
    """One completion to make.

    Constant text belongs at the front of `messages` so that the engine's prefix cache hits.
    Either `messages` (chat template applied by the engine) or `prompt` (raw text) is set.
    """

    key: str
    """Comes back in the completion; unique within a stream."""
    messages: tuple[Message, ...] = ()
    prompt: str = ""
    prefill: str = ""
    """Start of the assistant turn; not part of the returned text."""
    max_tokens: int = 64
    temperature: float = 0.9
    min_p: float = 0.05
    """Share of the likeliest token's probability that a token needs to be sampled. Nucleus sampling
    would sort the vocabulary for every token: a third of the engine's time on a CPU."""
    stop: tuple[str, ...] = ()
    repetition_penalty: float = 1.0
    adapter: str = ""
    """Name under which the engine serves an adapter; empty for the bare model."""
    logprobs: bool = False
    """Whether to return ids and log-probabilities of the sampled tokens."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What came back. A failed request is data: `error` says why and `text` is empty."""

    key: str
    text: str
    finish: Literal["stop", "length", "error"]
    prompt_tokens: int = 0
    completion_tokens: int = 0
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    error: str = ""


class Engine(Protocol):
    """A pool of one or more model servers."""

    model: str
    """Catalogue name of the model it serves."""

    def stream(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Completions in the order they finish.

        Pulls from `requests` lazily, a few ahead of the engine's limit, and asks an exhausted
        one again after each completion (see `Asked`), so a stage may feed it from what came back.
        Closing the iterator aborts what is in flight.

        Raises:
            EngineFailed: No engine can take work.
            Cancelled: The engine was told to stop.
        """


class Asked(Iterator[Request]):
    """The requests of a function that may have none now and some later.

    A generator, and `iter` with a sentinel, end for good with the first None: what came up
    afterwards would wait until the engine had run empty.
    """

    def __init__(self, ask: Callable[[], Request | None]) -> None:
        self._ask = ask

    def __next__(self) -> Request:
        request = self._ask()
        if request is None:
            raise StopIteration
        return request


def noted(requests: Iterable[Request], note: Callable[[Request], object]) -> Iterator[Request]:
    """The requests, each shown to `note` on its way; as re-askable as they are themselves."""
    source = iter(requests)

    def ask() -> Request | None:
        request = next(source, None)
        if request is not None:
            note(request)
        return request

    return Asked(ask)


@contextmanager
def open_stream(engine: Engine, requests: Iterable[Request]) -> Iterator[Iterator[Completion]]:
    """`engine.stream`, closed on the way out: what is in flight is aborted at once."""
    completions = engine.stream(requests)
    try:
        yield completions
    finally:
        close = getattr(completions, "close", None)
        if close is not None:
            close()


class Outage:
    """Tells an engine that is lost from one that fails a request now and then."""

    def __init__(self) -> None:
        self._in_a_row = 0

    def failed(self, completion: Completion) -> bool:
        """Whether this request failed.

        Raises:
            EngineFailed: More than `MAX_ERRORS` failed in a row.
        """
        failed = completion.finish == "error"
        self._in_a_row = self._in_a_row + 1 if failed else 0
        if self._in_a_row > MAX_ERRORS:
            raise EngineFailed(f"{MAX_ERRORS} requests in a row failed: {completion.error}")
        return failed
