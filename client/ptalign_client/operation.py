"""Handles of operations that run on the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from datetime import UTC
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from google.longrunning import operations_pb2

from ptalign_client import wire
from ptalign_client.errors import DeadlineExceeded, NotFound, Unavailable, from_status
from ptalign_client.nouns import Event, Progress
from ptalign_proto.v1 import safety_tuning_pb2

if TYPE_CHECKING:
    from ptalign_client.base import Base

R = TypeVar("R", covariant=True)
LAST_LOOK = 2.0
"""Seconds for the answer to whether an operation ended, asked once the caller's are over."""


class AsyncOperation(Generic[R]):
    """One operation: it runs on the server whether or not anybody watches.

    Attributes:
        name: ``operations/ID``: `AsyncClient.operation` attaches to it again, from any machine.
    """

    def __init__(
        self, client: Base, name: str, seen: operations_pb2.Operation | None = None
    ) -> None:
        self._client = client
        self._seen = seen
        self.name = name

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    async def progress(self) -> Progress:
        """Where it stands now.

        Raises:
            NotFound: The operation was deleted.
        """
        return wire.to_progress(await self._fetch())

    def seen(self) -> Progress:
        """What the last answer said of it, without asking again.

        Raises:
            LookupError: Nothing was heard of it yet.
        """
        if self._seen is None:
            raise LookupError(f"nothing was heard of {self.name} yet; await progress()")
        return wire.to_progress(self._seen)

    async def done(self) -> bool:
        """Whether it has ended, in whatever way."""
        return bool((await self._fetch()).done)

    async def result(self, timeout: float | None = None) -> R:
        """Waits for the end and returns what the operation made; None for a dry run.

        Args:
            timeout: Seconds to wait at most; None waits as long as it takes.

        Raises:
            Cancelled: It was cancelled; `resource` names what it kept.
            ServiceError: It failed; the error has the type it would have had in the call.
            DeadlineExceeded: It still runs after `timeout`. It goes on.
        """
        if not (self._seen and self._seen.done):
            await self._wait(timeout)
        assert self._seen is not None
        if self._seen.HasField("error"):
            resource = wire.to_progress(self._seen).resource
            raise from_status(self._seen.error, operation=self.name, resource=resource)
        return cast(R, wire.to_result(self._seen))

    async def events(self, after_sequence: int = 0) -> AsyncGenerator[Event, None]:
        """Its events until it ends, without gaps: a dropped connection is resumed by sequence.

        Args:
            after_sequence: Sequence of the last event already seen.
        """
        last = after_sequence

        def after_last() -> safety_tuning_pb2.WatchOperationRequest:
            return safety_tuning_pb2.WatchOperationRequest(name=self.name, after_sequence=last)

        while True:
            before = last
            events = self._client._stream("tuning", "WatchOperation", after_last)
            async with aclosing(events):
                async for message in events:
                    if message.sequence <= last:
                        continue  # sent again after a reconnect
                    last, self._seen = message.sequence, message.operation
                    yield _event(message)
                    if message.operation.done:
                        return
            if last == before:  # closed without news: the server drains, or all was seen before
                if (await self._fetch()).done:
                    return
                await asyncio.sleep(self._client.options.retry.base)

    def __aiter__(self) -> AsyncGenerator[Event, None]:
        return self.events()

    async def cancel(self) -> None:
        """Asks the server to stop it; what was accepted so far is kept.

        The end comes later: `result` then raises `Cancelled`.
        """
        request = operations_pb2.CancelOperationRequest(name=self.name)
        await self._client._call("operations", "CancelOperation", request)

    async def delete(self) -> None:
        """Forgets an ended operation; what it made stays."""
        request = operations_pb2.DeleteOperationRequest(name=self.name)
        try:
            await self._client._call("operations", "DeleteOperation", request)
        except NotFound as error:
            if not error.unanswered:  # else the try before this one deleted it
                raise

    async def _wait(self, timeout: float | None) -> None:
        try:
            async with asyncio.timeout(timeout):
                async with aclosing(self.events()) as events:
                    async for _ in events:
                        pass
                await self._fetch()
        except TimeoutError:
            if await self._has_ended():
                return
            raise DeadlineExceeded(
                f"{self.name} still runs after {timeout:g} s",
                "It goes on; attach again with its name, or call cancel().",
            ) from None

    async def _has_ended(self) -> bool:
        """Asks once more: a short wait, or one of 0 s, may be over before the first event."""
        with suppress(TimeoutError, Unavailable, DeadlineExceeded):
            async with asyncio.timeout(LAST_LOOK):
                await self._fetch()
        return self._seen is not None and self._seen.done

    async def _fetch(self) -> operations_pb2.Operation:
        """What is known of it; the server is asked unless the end was seen."""
        if self._seen is None or not self._seen.done:
            request = operations_pb2.GetOperationRequest(name=self.name)
            self._seen = await self._client._call("operations", "GetOperation", request)
        return self._seen


def _event(message: safety_tuning_pb2.OperationEvent) -> Event:
    return Event(
        sequence=message.sequence,
        time=message.time.ToDatetime(tzinfo=UTC) if message.HasField("time") else None,
        progress=wire.to_progress(message.operation),
        done=message.operation.done,
    )
