"""Where the gateway listens: in clear on loopback, by TLS and tokens anywhere else."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path
from typing import Any

import grpc

from ptalign.disk import changed_at
from ptalign.errors import InvalidInput, NotReady
from ptalign_server.settings import AuthSettings, Settings, address

log = logging.getLogger("ptalign.server")


def bind(server: Any, settings: Settings) -> int:
    """Adds the gRPC port.

    Raises:
        InvalidInput: The address is not loopback and TLS is not set.
        NotReady: The port is taken, or a certificate cannot be read.
    """
    where = address(settings.host, settings.port)
    try:
        if settings.auth.tls_cert is None or settings.auth.tls_key is None:
            require_loopback(settings)
            return int(server.add_insecure_port(where))
        return int(server.add_secure_port(where, credentials(settings)))
    except RuntimeError:  # gRPC says no more
        _look(settings.auth)
        raise taken(settings.host, settings.port) from None


def taken(host: str, port: int, which: str = "") -> NotReady:
    """The error of a port that cannot be bound; `which` stands before HOST and PORT."""
    return NotReady(
        f"port {port} on {host} is taken or not ours to bind. Set PTALIGN_{which}PORT to a free "
        f"one, stop what listens there, or correct PTALIGN_{which}HOST."
    )


def require_loopback(settings: Settings) -> None:
    """Refuses to listen in clear where others can reach it."""
    if not settings.loopback:
        raise InvalidInput(
            "PTALIGN_HOST",
            f"{settings.host} can be reached by other machines and TLS is not set up",
            "Set PTALIGN_AUTH__TLS_CERT and PTALIGN_AUTH__TLS_KEY and make tokens with "
            "'ptalign-server tokens add', or set PTALIGN_HOST=127.0.0.1.",
        )


def credentials(settings: Settings) -> Any:
    """TLS credentials that read the certificate again when its file changes."""
    auth = settings.auth
    assert auth.tls_cert is not None
    assert auth.tls_key is not None
    files = [auth.tls_cert, auth.tls_key, *([auth.client_ca] if auth.client_ca else [])]
    seen = _stamps(files)

    def load() -> Any:
        chain = ((_read(files[1]), _read(files[0])),)
        return grpc.ssl_server_certificate_configuration(
            chain, _read(files[2]) if len(files) > 2 else None
        )

    def changed() -> Any:
        nonlocal seen
        now = _stamps(files)
        if now == seen:
            return None
        try:
            found = load()
        except NotReady as error:  # the old one goes on until it can be read
            log.warning("the server's new certificate cannot be used yet: %s", error)
            return None
        seen = now
        return found

    return grpc.dynamic_ssl_server_credentials(
        load(), changed, require_client_authentication=auth.client_ca is not None
    )


def _look(auth: AuthSettings) -> None:
    if auth.tls_cert is None or auth.tls_key is None:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    variables = "PTALIGN_AUTH__TLS_CERT and PTALIGN_AUTH__TLS_KEY"
    try:
        context.load_cert_chain(auth.tls_cert, auth.tls_key, password="")  # or it would ask for one
        if auth.client_ca is not None:
            variables = "PTALIGN_AUTH__CLIENT_CA"
            context.load_verify_locations(auth.client_ca)
    except OSError as error:
        why = getattr(error, "reason", None) or error.strerror
        raise NotReady(f"the files of {variables} cannot be used: {why}") from None


def _stamps(files: list[Path]) -> list[int]:
    return [changed_at(file) for file in files]


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise NotReady(f"{file} cannot be read: {error.strerror}") from None
