"""Around every call: admit the caller, turn exceptions into rich status, measure."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from ptalign.errors import InvalidInput
from ptalign_server.errors import status_of
from ptalign_server.gateway.identity import RULES, Gate
from ptalign_server.metrics import Metrics

Handler = Any
Context = Any


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """The one interceptor. Exception text that was not meant for callers never reaches them."""

    def __init__(self, gate: Gate, metrics: Metrics) -> None:
        self._gate = gate
        self._metrics = metrics

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Handler]], details: Any
    ) -> Handler:
        handler = await continuation(details)
        if handler is None:
            return None
        return self._wrap(handler, details.method, tuple(details.invocation_metadata or ()))

    def _wrap(self, handler: Handler, method: str, metadata: tuple[Any, ...]) -> Handler:
        serve = handler.unary_unary or handler.stream_unary
        stream = handler.unary_stream or handler.stream_stream

        async def answer(request: Any, context: Context) -> Any:
            with _Watch(self._metrics, method, context) as watch:
                try:
                    self._gate.admit(method, metadata)
                    return await serve(_whole(request), context)
                except Exception as error:
                    await watch.fail(error)

        async def answers(request: Any, context: Context) -> AsyncIterator[Any]:
            with _Watch(self._metrics, method, context) as watch:
                try:
                    self._gate.admit(method, metadata)
                    replies = stream(_whole(request), context)
                    if inspect.isawaitable(replies):
                        await replies  # a handler that writes to the context itself: health's Watch
                        return
                    async for message in replies:
                        yield message
                except Exception as error:
                    await watch.fail(error)

        shape = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[(handler.request_streaming, handler.response_streaming)]
        inner = answers if handler.response_streaming else answer
        return shape(
            inner,
            request_deserializer=_parser(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )


class _Malformed:
    """Stands for bytes that are not the method's message, until the caller is admitted."""


def _parser(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """A parser that never raises: grpc answers UNKNOWN and logs a traceback per bad message."""

    def parsed(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return _Malformed()

    return parsed


def _whole(request: Any) -> Any:
    """The request, or the stream of requests, once it is known to be one."""
    if isinstance(request, _Malformed):
        raise InvalidInput(
            "request", "is not a valid message of this method", "Use the published .proto files."
        )
    return _each(request) if hasattr(request, "__aiter__") else request


async def _each(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _whole(request)


class _Watch:
    """Times one call and counts its code."""

    def __init__(self, metrics: Metrics, method: str, context: Context) -> None:
        self._metrics = metrics
        self._method = method if method in RULES else "other"
        self._context = context
        self._code = "OK"

    def __enter__(self) -> _Watch:
        self._start = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: Any) -> None:
        if kind is not None and issubclass(kind, (asyncio.CancelledError, GeneratorExit)):
            self._code = "CANCELLED"
        self._metrics.rpcs.labels(self._method, self._code).inc()
        self._metrics.rpc_seconds.labels(self._method).observe(time.perf_counter() - self._start)

    async def fail(self, error: Exception) -> None:
        """Ends the call with the error's status."""
        if isinstance(error, (grpc.aio.AbortError, grpc.aio.UsageError)):
            self._code = _name(self._context.code())
            raise error
        self._metrics.failed(error)
        status = rpc_status.to_status(status_of(error))
        self._code = _name(status.code)
        await self._context.abort_with_status(status)


def _name(code: Any) -> str:
    return str(getattr(code, "name", code))
