"""One channel with its stubs: deadlines, retries, identity and the cap on calls in flight.

Everything that touches grpc.aio is here; everything above it sees messages and `PtalignError`.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import weakref
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio
from google.longrunning import operations_pb2_grpc

from ptalign_client import wire
from ptalign_client.errors import (
    TOO_LATE,
    ConfigError,
    DeadlineExceeded,
    NotFound,
    PtalignError,
    ServiceError,
    Unavailable,
    from_rpc,
)
from ptalign_client.options import TLS, Options
from ptalign_proto import __version__
from ptalign_proto.v1 import library_pb2_grpc, safety_tuning_pb2_grpc

CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    # A dead peer is noticed within a minute and a quarter, also under a silent watch.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 15_000),
    ("grpc.max_receive_message_length", 16 * 2**20),
    # Retries are ours: they know request ids, RetryInfo and the caller's deadline.
    ("grpc.enable_retries", 0),
    ("grpc.primary_user_agent", f"ptalign-client/{__version__}"),
    # A server that restarts is found again within the time the retries wait.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]
OPEN_SECONDS = 30.0
"""A stream that broke after more than this was open and silent, as a watch of a queued operation
is: connecting to nobody is given up by gRPC after 20 s."""


_open: weakref.WeakSet[grpc.aio.Channel] = weakref.WeakSet()
"""Channels of this process. A child that is forked while there are any has gRPC's threads' state
without the threads: its calls hang or end the process."""
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = _forked or len(_open) > 0


os.register_at_fork(after_in_child=_after_fork)


class Transport:
    """A channel to one service. Belongs to the event loop that first calls through it."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._channel: grpc.aio.Channel | None = None
        self._stubs: dict[str, Any] = {}
        self._calls = asyncio.Semaphore(options.max_calls)
        self._streams = asyncio.Semaphore(options.max_streams)
        self._worked = -math.inf
        """When the service last answered, on the clock of the loop."""
        self._closings = 0
        """How often it was closed: calls that began before end, those that begin later connect."""

    async def call(self, service: str, method: str, request: Any, options: Options) -> Any:
        """One answer, tried again after retryable errors within the options' timeout.

        Args:
            service: ``tuning``, ``library`` or ``operations``.
            method: Name of the rpc. Mutating ones carry a request id, so a retry after a lost
                reply gets the same operation.
            request: The message; for a client stream a function that makes its messages, since
                a retry sends them anew.
            options: Timeout and retries of this call.

        Raises:
            ServiceError: The last error, when retrying did not help or cannot, or it was closed.
            DeadlineExceeded: No answer within the timeout, nor an error before.
        """
        clock = asyncio.get_running_loop().time
        end = None if options.timeout is None else clock() + options.timeout
        heard, lost = None, False
        closings = self._closings
        for failures in range(1, options.retry.attempts + 1):
            left = None if end is None else end - clock()
            try:
                return await self._once(service, method, request, left, closings)
            except DeadlineExceeded:
                raise heard or DeadlineExceeded(*TOO_LATE) from None  # why it failed says more
            except ServiceError as error:
                error.unanswered = lost
                # Only what the service itself says has a reason.
                lost = lost or (isinstance(error, Unavailable) and not error.reason)
                heard, wait = error, _wait(options, failures, error)
                last = failures == options.retry.attempts
                if last or not error.retryable or (end is not None and clock() + wait >= end):
                    raise
            await asyncio.sleep(wait)
        raise AssertionError("unreachable: Retry.attempts is at least 1")

    async def _once(
        self, service: str, method: str, request: Any, timeout: float | None, closings: int
    ) -> Any:
        sent = Outgoing(request()) if callable(request) else request
        try:
            async with asyncio.timeout(timeout), self._calls:
                self._check_open(closings)
                answer = await self._rpc(service, method)(
                    sent, timeout=timeout, metadata=self._identity(), wait_for_ready=False
                )
        except grpc.RpcError as error:
            raise self._told(error, sent) from None
        except asyncio.CancelledError:
            if isinstance(sent, Outgoing) and sent.error:
                raise sent.error from None
            self._check_open(closings)
            raise
        except TimeoutError:
            raise DeadlineExceeded(*TOO_LATE) from None
        self._worked = asyncio.get_running_loop().time()
        return answer

    async def stream(self, service: str, method: str, request: Any) -> AsyncGenerator[Any, None]:
        """The answers of one server stream, not retried: the caller knows where to resume.

        Raises:
            ServiceError: The stream broke, or was closed.
        """
        closings = self._closings
        async with self._streams:
            self._check_open(closings)
            call = self._rpc(service, method)(request, metadata=self._identity())
            try:
                async for message in call:
                    self._worked = asyncio.get_running_loop().time()
                    yield message
            except grpc.RpcError as error:
                raise self._told(error, request) from None
            except asyncio.CancelledError:
                self._check_open(closings)
                raise
            finally:
                call.cancel()  # an abandoned aio stream keeps its slot on the server

    async def resumed(
        self, options: Options, open_at: Callable[[], AsyncGenerator[Any, None]]
    ) -> AsyncGenerator[Any, None]:
        """A stream that is opened again after retryable errors, until it ends by itself.

        Args:
            options: Its retries; a stream that worked starts the count of failures anew. Until
                the first one works, they and the timeout bound it as they do a call, unless the
                service answered another one within `Retry.patience`: it may restart.
            open_at: Opens the stream where the caller stands.

        Raises:
            PtalignError: The stream broke for good, or nothing has worked for too long.
        """
        clock = asyncio.get_running_loop().time
        failures, began, worked, fresh = 0, clock(), self._worked, True
        closings = self._closings
        while True:
            opened = clock()
            try:
                async with aclosing(open_at()) as messages:
                    async for message in messages:
                        failures, worked, fresh = 0, clock(), False
                        yield message
                return
            except PtalignError as error:
                now = clock()
                if now - opened > OPEN_SECONDS:
                    failures, worked, fresh = 0, now, False
                failures += 1
                wait = _wait(options, failures, error)
                patient = now + wait < worked + options.retry.patience
                timely = options.timeout is None or now + wait < began + options.timeout
                first = fresh and timely and failures < options.retry.attempts
                if not error.retryable or not (patient or first):
                    raise
            await asyncio.sleep(wait)
            self._check_open(closings)

    async def close(self) -> None:
        """Ends every call in flight, with `Unavailable`, and the connection."""
        self._closings += 1
        channel, self._channel = self._channel, None
        self._stubs = {}
        if channel is not None:
            with suppress(asyncio.CancelledError):
                await channel.close()
            _open.discard(channel)

    def _check_open(self, closings: int) -> None:
        """Ends what began before it was closed.

        grpc.aio ends such calls as it ends those of a cancelled task, which is left to its
        canceller: nobody else expects a CancelledError.

        Raises:
            Unavailable: It was closed since then; not to be tried again.
        """
        task = asyncio.current_task()
        if self._closings == closings or (task and task.cancelling()):
            return
        error = Unavailable("the client was closed", "Operations go on: attach with another one.")
        error.retryable = False
        raise error from None

    def _rpc(self, service: str, method: str) -> Any:
        if _forked:
            raise ConfigError(
                "this process was forked while a client was open, and gRPC does not work in it",
                "Close clients before the fork, or start processes with spawn or forkserver.",
            )
        if self._channel is None:
            self._channel = open_channel(self.options)
            _open.add(self._channel)
            self._stubs = {
                "tuning": safety_tuning_pb2_grpc.SafetyTuningStub(self._channel),
                "library": library_pb2_grpc.LibraryStub(self._channel),
                "operations": operations_pb2_grpc.OperationsStub(self._channel),
            }
        return getattr(self._stubs[service], method)

    def _told(self, error: grpc.RpcError, request: Any) -> PtalignError:
        """The typed error, with what only this end knows: the endpoint and the names asked for."""
        told = from_rpc(error, self.options.endpoint)
        if isinstance(told, NotFound) and told.reason == "RESOURCE_NOT_FOUND":
            told.asked = wire.names_in(request)
        return told

    def _identity(self) -> tuple[tuple[str, str], ...]:
        token = self.options.token
        return (("authorization", f"Bearer {token}"),) if token else ()


class Outgoing:
    """Messages of a client stream. grpc.aio drops the error of whoever makes them: kept here."""

    def __init__(self, messages: Iterator[Any]) -> None:
        self._messages = messages
        self.error: Exception | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._messages)
        except StopIteration:
            raise
        except Exception as error:
            self.error = error
            raise


def open_channel(options: Options) -> grpc.aio.Channel:
    """The channel of these options; connects when the first call is made."""
    settings = list(CHANNEL_OPTIONS)
    if options.tls is None:
        return grpc.aio.insecure_channel(options.endpoint, options=settings)
    if options.tls.server_name:
        settings.append(("grpc.ssl_target_name_override", options.tls.server_name))
    return grpc.aio.secure_channel(options.endpoint, _credentials(options.tls), options=settings)


def _credentials(tls: TLS) -> grpc.ChannelCredentials:
    root, cert, key = (Path(f).read_bytes() if f else None for f in (tls.root, tls.cert, tls.key))
    return grpc.ssl_channel_credentials(root, key, cert)


def _wait(options: Options, failures: int, error: PtalignError) -> float:
    """Seconds before the next try: full jitter, at least what the server asks for."""
    asked = getattr(error, "retry_after", None) or 0.0
    return float(asked + random.uniform(0, options.retry.bound(failures)))
