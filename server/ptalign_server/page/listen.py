"""Serves the page inside the gateway's event loop: in clear on loopback, by TLS elsewhere."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette

from ptalign.disk import changed_at
from ptalign.errors import InvalidInput, NotReady
from ptalign_server.gateway.ports import taken
from ptalign_server.settings import AuthSettings, bare, is_loopback

RELOAD_SECONDS = 30.0

log = logging.getLogger("ptalign.server")


async def listen(
    app: Starlette, host: str, port: int, auth: AuthSettings
) -> tuple[int, Callable[[], Awaitable[None]]]:
    """Starts the page.

    Returns:
        The port in use, and a function that stops it.

    Raises:
        InvalidInput: The address is not loopback and TLS is not set up.
        NotReady: The port is taken, or the certificate cannot be read.
    """
    secure = auth.tls_cert is not None and auth.tls_key is not None
    if not secure and not is_loopback(host):
        raise InvalidInput(
            "PTALIGN_PAGE_HOST",
            f"{host} can be reached by other machines and TLS is not set up",
            "Set PTALIGN_AUTH__TLS_CERT and PTALIGN_AUTH__TLS_KEY, or serve the page on 127.0.0.1.",
        )
    config = uvicorn.Config(
        app,
        host=bare(host),
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        timeout_graceful_shutdown=5,
        ssl_certfile=auth.tls_cert if secure else None,
        ssl_keyfile=auth.tls_key if secure else None,
    )
    try:
        config.load()
    except OSError as error:
        raise NotReady(f"the page's certificate cannot be read: {error.strerror}") from None
    server = _Quiet(config)
    serving = asyncio.create_task(_serve(server))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    if serving.done():
        serving.result()
    renewing = asyncio.create_task(_renew(config, auth)) if secure else None

    async def stop() -> None:
        if renewing is not None:
            renewing.cancel()
        server.should_exit = True
        await serving

    return int(server.servers[0].sockets[0].getsockname()[1]), stop


class _Quiet(uvicorn.Server):
    """uvicorn that leaves the process's signal handlers alone: they are the gateway's."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve(server: uvicorn.Server) -> None:
    try:
        await server.serve()
    except (OSError, SystemExit):  # uvicorn's answer to a port that is taken
        raise taken(server.config.host, server.config.port, "PAGE_") from None


async def _renew(config: uvicorn.Config, auth: AuthSettings) -> None:
    """Reads the certificate again when its file changes; open connections go on."""
    assert auth.tls_cert is not None
    assert auth.tls_key is not None
    seen = changed_at(auth.tls_cert)
    while True:
        await asyncio.sleep(RELOAD_SECONDS)
        now = changed_at(auth.tls_cert)
        if now == seen or config.ssl is None:
            continue
        try:
            # First elsewhere: one that does not fit its key yet would drop the key in use, and
            # nobody could connect. An empty password, or it would ask for one.
            trial = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            trial.load_cert_chain(auth.tls_cert, auth.tls_key, password="")
            config.ssl.load_cert_chain(auth.tls_cert, auth.tls_key, password="")
            seen = now
        except OSError as error:  # half written: the old one goes on until both files fit
            log.warning("the page's new certificate cannot be used yet: %s", error.strerror)
