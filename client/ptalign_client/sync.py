"""The service for ordinary programs.

Nothing is implemented here: each method runs the method of the same name of an `AsyncClient` on
a background loop (docs/adr/0006-client-core.md). Signatures and docstrings are those of the
asynchronous method, for type checkers and for `help()` alike.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, Concatenate, Generic, Self

from ptalign_client.client import AsyncClient
from ptalign_client.facade import BlockingIterator, P, blocking, iterating, run
from ptalign_client.nouns import Event, Progress, State
from ptalign_client.operation import AsyncOperation, R
from ptalign_client.options import TLS, Options, Retry


class Operation(Generic[R]):
    """A handle of one operation: it runs on the server whether or not anybody watches.

    Attributes:
        name: ``operations/ID``: `Client.operation` attaches to it again, from any machine.
    """

    def __init__(self, inner: AsyncOperation[R]) -> None:
        self._inner = inner
        self.name = inner.name

    def __repr__(self) -> str:
        return f"Operation({self.name!r})"

    def __iter__(self) -> BlockingIterator[Event]:
        return self.events()

    def seen(self) -> Progress:
        """What the last answer said of it, without asking again. See `AsyncOperation.seen`."""
        return self._inner.seen()

    def result(self, timeout: float | None = None) -> R:
        """Waits for the end and returns what it made. See `AsyncOperation.result`."""
        return run(self._inner.result(timeout))

    progress = blocking(AsyncOperation.progress)
    done = blocking(AsyncOperation.done)
    cancel = blocking(AsyncOperation.cancel)
    delete = blocking(AsyncOperation.delete)
    events = iterating(AsyncOperation.events)


def starting(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, AsyncOperation[R]]],
) -> Callable[Concatenate[Any, P], Operation[R]]:
    """The blocking twin of a verb."""

    @functools.wraps(method)
    def twin(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> Operation[R]:
        return Operation(run(method(self._inner, *args, **kwargs)))

    return twin


class Client:
    """The service for ordinary programs: the four verbs, operations and the library.

    ::

        with Client("127.0.0.1:50051") as client:
            running = client.align(model="smollm2-135m-instruct", pair_set="pairSets/ID")
            for event in running:
                print(event.progress.phase, event.progress.done, event.progress.total)
            print(running.result().tokens_ut)

    Threads may share one. Processes may not: make it after a fork, of a process that has none open.
    """

    def __init__(
        self,
        endpoint: str = "",
        *,
        token: str = "",
        tls: TLS | None = None,
        timeout: float | None = 30.0,
        retry: Retry | None = None,
        options: Options | None = None,
    ) -> None:
        """Connects lazily; the arguments are those of `AsyncClient`.

        Raises:
            ConfigError: An option that cannot work.
        """
        self._inner = AsyncClient(
            endpoint, token=token, tls=tls, timeout=timeout, retry=retry, options=options
        )

    @property
    def options(self) -> Options:
        """The options in force."""
        return self._inner.options

    def with_options(self, *, timeout: float | None = None, retry: Retry | None = None) -> Self:
        """The same connection with another patience. See `AsyncClient.with_options`."""
        view = object.__new__(type(self))
        view._inner = self._inner.with_options(timeout=timeout, retry=retry)
        return view

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def operation(self, name: str) -> Operation[Any]:
        """The handle of an operation that already runs, or ran. Sends nothing."""
        return Operation(self._inner.operation(name))

    def operations(
        self, *, kind: str = "", state: State | str = "", page_size: int = 50
    ) -> BlockingIterator[Operation[Any]]:
        """All operations, newest first. See `AsyncClient.operations`."""

        async def handles() -> AsyncGenerator[Operation[Any], None]:
            async for item in self._inner.operations(kind=kind, state=state, page_size=page_size):
                yield Operation(item)

        return BlockingIterator(handles())

    close = blocking(AsyncClient.close)

    generate_instructions = starting(AsyncClient.generate_instructions)
    synthesize_pairs = starting(AsyncClient.synthesize_pairs)
    align = starting(AsyncClient.align)
    evaluate = starting(AsyncClient.evaluate)
    chat = iterating(AsyncClient.chat)

    get = blocking(AsyncClient.get)
    get_instruction_set = blocking(AsyncClient.get_instruction_set)
    get_annotation_set = blocking(AsyncClient.get_annotation_set)
    get_pair_set = blocking(AsyncClient.get_pair_set)
    get_adapter = blocking(AsyncClient.get_adapter)
    get_evaluation = blocking(AsyncClient.get_evaluation)
    instruction_sets = iterating(AsyncClient.instruction_sets)
    annotation_sets = iterating(AsyncClient.annotation_sets)
    pair_sets = iterating(AsyncClient.pair_sets)
    adapters = iterating(AsyncClient.adapters)
    evaluations = iterating(AsyncClient.evaluations)
    records = iterating(AsyncClient.records)
    download = blocking(AsyncClient.download)
    download_all = blocking(AsyncClient.download_all)
    export = blocking(AsyncClient.export)
    import_set = blocking(AsyncClient.import_set)
    merge = blocking(AsyncClient.merge)
    purge = blocking(AsyncClient.purge)
    annotate = blocking(AsyncClient.annotate)
    resolve_adapter = blocking(AsyncClient.resolve_adapter)
    catalogue = blocking(AsyncClient.catalogue)
