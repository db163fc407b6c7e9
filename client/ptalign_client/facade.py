"""Runs asynchronous methods for blocking callers, on one background loop per process."""

from __future__ import annotations

import asyncio
import atexit
import functools
import os
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
CANCELLED_SECONDS = 1.0
"""How long a cancelled step of a stream may take to end; a call to gRPC takes a few turns."""


class Background:
    """An event loop in a daemon thread. One per process: grpc.aio wants few loops."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(
            target=self.loop.run_forever, name="ptalign-client", daemon=True
        )
        self.thread.start()

    def stop(self) -> None:
        """Ends the loop when the process ends, so that nothing runs in a dying interpreter."""
        if self.pid == os.getpid() and self.thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(timeout=2)


_lock = threading.Lock()
_background: Background | None = None


def background() -> Background:
    """The loop of this process; a forked child gets one of its own."""
    global _background
    with _lock:
        if _background is None or _background.pid != os.getpid():
            _background = Background()
            atexit.register(_background.stop)
        return _background


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs it on the background loop and waits. An interrupt here cancels it there."""
    here = background()
    if threading.current_thread() is here.thread:
        work.close()
        raise RuntimeError("the blocking client was called from its own callback; it would hang")
    future = asyncio.run_coroutine_threadsafe(work, here.loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


class BlockingIterator(Generic[T]):
    """The items of an asynchronous generator, one blocking step at a time.

    Leaving a loop early is fine; `close`, or a ``with`` block, frees the stream at once.
    """

    def __init__(self, items: AsyncGenerator[T, None]) -> None:
        self._items: AsyncGenerator[T, None] | None = items

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if self._items is None:
            raise StopIteration
        try:
            return run(_next(self._items))
        except StopAsyncIteration:
            self._items = None
            raise StopIteration from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the stream."""
        items, self._items = self._items, None
        if items is not None:
            run(_close(items))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        items, here = self._items, _background
        if items is not None and here is not None and here.thread.is_alive():
            here.loop.call_soon_threadsafe(lambda: here.loop.create_task(_close(items)))


def blocking(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Any, P], T]:
    """The blocking twin of an asynchronous method, for a class that holds it in ``_inner``."""

    @functools.wraps(method)
    def twin(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return run(method(self._inner, *args, **kwargs))

    return twin


def iterating(
    method: Callable[Concatenate[Any, P], AsyncGenerator[T, None]],
) -> Callable[Concatenate[Any, P], BlockingIterator[T]]:
    """The blocking twin of a method that returns an asynchronous generator."""

    @functools.wraps(method)
    def twin(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> BlockingIterator[T]:
        return BlockingIterator(method(self._inner, *args, **kwargs))

    return twin


async def _next(items: AsyncGenerator[T, None]) -> T:
    return await anext(items)


async def _close(items: AsyncGenerator[T, None]) -> None:
    end = asyncio.get_running_loop().time() + CANCELLED_SECONDS
    # A step that an interrupt cancelled ends some turns of the loop later.
    while getattr(items, "ag_running", False) and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(0.001)
    await items.aclose()
