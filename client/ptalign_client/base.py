"""What every part of the client needs: options, the connection and its end."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from ptalign_client.errors import invalid
from ptalign_client.options import TLS, Options, Retry
from ptalign_client.transport import Transport


class Base:
    """A connection with its options. Use `AsyncClient`."""

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
        """Connects lazily: nothing is sent before the first call.

        Args:
            endpoint: ``host:port``; PTALIGN_ENDPOINT, or 127.0.0.1:50051.
            token: Bearer token; PTALIGN_TOKEN.
            tls: PTALIGN_TLS_ROOT, _CERT, _KEY, _SERVER_NAME; clear text when nothing is set.
            timeout: Seconds a call may take with all its retries; None: no limit.
            retry: How failed calls are tried again.
            options: All of it at once, instead of the arguments above.

        Raises:
            ConfigError: An option that cannot work.
        """
        given = options or Options(
            endpoint=endpoint, token=token, tls=tls, timeout=timeout, retry=retry or Retry()
        )
        self.options = given.resolved()
        self._transport = Transport(self.options)

    def with_options(self, *, timeout: float | None = None, retry: Retry | None = None) -> Self:
        """The same connection with another patience, e.g. ``client.with_options(timeout=5)``.

        Args:
            timeout: Seconds a call may take; None leaves it as it is.
            retry: How failed calls are tried again; None leaves it as it is.
        """
        view = object.__new__(type(self))
        view.options = replace(
            self.options,
            timeout=self.options.timeout if timeout is None else timeout,
            retry=retry or self.options.retry,
        ).resolved()
        view._transport = self._transport
        return view

    async def close(self) -> None:
        """Ends the connection and every call in flight, with `Unavailable`. Operations go on."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _call(self, service: str, method: str, request: Any) -> Any:
        return await self._transport.call(service, method, request, self.options)

    def _stream(
        self, service: str, method: str, open_at: Callable[[], Any]
    ) -> AsyncGenerator[Any, None]:
        """A server stream that is resumed: `open_at` makes the request of the next part."""

        def start() -> AsyncGenerator[Any, None]:
            return self._transport.stream(service, method, open_at())

        return self._transport.resumed(self.options, start)


def new_request_id() -> str:
    """A fresh id for one mutating call: the same id and payload give the same operation."""
    return str(uuid.uuid4())


def name_of(resource: Any, field: str = "name") -> str:
    """The name of a resource that was passed as noun or as name.

    Raises:
        InvalidArgument: It is neither; names the field of the call.
    """
    name = resource if isinstance(resource, str) else getattr(resource, "name", None)
    if not isinstance(name, str):
        found = type(resource).__name__
        raise invalid(field, f"must be a name or a resource, not {found}. Send e.g. 'pairSets/ID'.")
    return name


def names_of(resources: Any, field: str) -> list[str]:
    """The names of a list of resources.

    Raises:
        InvalidArgument: Not a list of names or resources.
    """
    if isinstance(resources, str) or not isinstance(resources, Iterable):
        raise invalid(field, "must be a list of names or resources. Send [...].")
    return [name_of(item, f"{field}[{i}]") for i, item in enumerate(resources)]


def as_path(path: str | Path) -> Path:
    """A path with ``~`` expanded."""
    return Path(path).expanduser()
