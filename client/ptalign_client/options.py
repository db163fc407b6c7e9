"""Where the service is, who is calling, and how patient a call is."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ptalign_client.errors import ConfigError

DEFAULT_ENDPOINT = "127.0.0.1:50051"


@dataclass(frozen=True, slots=True, kw_only=True)
class TLS:
    """How to trust the server, and how to be trusted by it."""

    root: str | Path | None = None
    """PEM file of the authority that signed the server's certificate; the system's when None."""
    cert: str | Path | None = None
    """PEM file of the client's certificate chain, for mutual TLS."""
    key: str | Path | None = None
    """PEM file of the client's private key."""
    server_name: str = ""
    """Name to expect in the server's certificate when it differs from the endpoint's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How failed calls are tried again. Only retryable errors are; see `errors.py`.

    Attempt n waits a random time in 0..min(cap, base * 2**n) seconds (full jitter), and never
    less than the server's RetryInfo asks for.
    """

    attempts: int = 7
    """Tries of a call in all; 1 turns retrying off."""
    base: float = 0.2
    """Seconds."""
    cap: float = 5.0
    """Seconds."""
    patience: float = 120.0
    """How long, in seconds, a broken watch or download keeps being reopened, counted from when it
    last worked; the default outlasts a server restart, 0 disables resuming. A stream that stayed
    open without sending anything counts as working until it broke. One that never worked is
    retried like a call: `attempts` times, within the timeout."""

    def bound(self, failures: int) -> float:
        """Longest wait in seconds after this many failures in a row (from 1)."""
        return min(self.cap, self.base * 2.0 ** min(failures, 30))


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Everything a connection needs. What is not set comes from ``PTALIGN_*``."""

    endpoint: str = ""
    """``host:port``; PTALIGN_ENDPOINT, or 127.0.0.1:50051."""
    token: str = field(default="", repr=False)
    """Bearer token; PTALIGN_TOKEN. Trailing line breaks, as mounted secret files have, are
    stripped."""
    tls: TLS | None = None
    """PTALIGN_TLS_ROOT, PTALIGN_TLS_CERT, PTALIGN_TLS_KEY and PTALIGN_TLS_SERVER_NAME;
    clear text when none of them is set."""
    allow_clear_token: bool = False
    """Send the token without TLS to another machine, e.g. behind a mesh that encrypts."""
    timeout: float | None = 30.0
    """Seconds a call may take with all its retries; None: no limit. Streams have none."""
    retry: Retry = Retry()
    max_calls: int = 128
    """Calls in flight at most."""
    max_streams: int = 768
    """Streams (watches, downloads, chats) open at most. Apart from the calls, so that watchers
    never block a cancel; the sum stays below 1,000, above which one gRPC channel drops some."""

    def resolved(self) -> Options:
        """These options, checked, with the gaps filled from the environment.

        Raises:
            ConfigError: An endpoint, file or limit that cannot work; names the option.
        """
        env = os.environ
        filled = Options(
            endpoint=self.endpoint or env.get("PTALIGN_ENDPOINT", "") or DEFAULT_ENDPOINT,
            token=(self.token or env.get("PTALIGN_TOKEN", "")).rstrip("\r\n"),
            tls=self.tls or _tls_from(env),
            allow_clear_token=self.allow_clear_token,
            timeout=self.timeout,
            retry=self.retry,
            max_calls=self.max_calls,
            max_streams=self.max_streams,
        )
        _check(filled)
        return filled

    @property
    def host(self) -> str:
        """The endpoint without its port."""
        return self.endpoint.rsplit(":", 1)[0].strip("[]")


def _tls_from(env: Mapping[str, str]) -> TLS | None:
    found = {
        name: env[f"PTALIGN_TLS_{name.upper()}"]
        for name in ("root", "cert", "key", "server_name")
        if env.get(f"PTALIGN_TLS_{name.upper()}")
    }
    return TLS(**found) if found else None  # type: ignore[arg-type]


def _check(options: Options) -> None:
    port = options.endpoint.rpartition(":")[2]
    if "://" in options.endpoint or not port.isdecimal() or not options.host:
        raise ConfigError(
            f"endpoint is {options.endpoint!r}, which is not host:port",
            "Write it without a scheme, e.g. 127.0.0.1:50051; TLS has options of its own.",
        )
    if options.retry.attempts < 1:
        raise ConfigError("retry.attempts must be at least 1")
    if options.max_calls < 1 or options.max_streams < 1:
        raise ConfigError("max_calls and max_streams must be at least 1")
    if options.max_calls + options.max_streams >= 1000:
        raise ConfigError(
            "max_calls + max_streams must stay below 1000",
            "Use several clients for more: a gRPC channel drops calls above that.",
        )
    if options.timeout is not None and options.timeout <= 0:
        raise ConfigError("timeout must be above 0 seconds", "Use None for no limit.")
    if not all("!" <= character <= "~" for character in options.token):  # what a header carries
        raise ConfigError(
            "the token (--token, PTALIGN_TOKEN) holds a blank, a line break or a character "
            "outside ASCII",
            "Give the token alone, as the operator gave it out.",
        )
    if options.tls is not None:
        _check_tls(options.tls)
    elif options.token and not options.allow_clear_token and not _is_loopback(options.host):
        raise ConfigError(
            f"the token would travel to {options.host} in clear text",
            "Set --tls-root (PTALIGN_TLS_ROOT) to the authority of the server's certificate.",
        )


def _check_tls(tls: TLS) -> None:
    if bool(tls.cert) != bool(tls.key):
        raise ConfigError("a client certificate needs both --tls-cert and --tls-key")
    for name in ("root", "cert", "key"):
        file = getattr(tls, name)
        if file and not Path(file).is_file():
            raise ConfigError(f"--tls-{name}: no such file: {file}")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
