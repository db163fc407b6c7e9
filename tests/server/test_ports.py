"""Where the gateway listens: never in clear where others can reach it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import self_signed
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from ptalign.errors import InvalidInput, NotReady
from ptalign_proto.v1 import library_pb2 as lib
from ptalign_proto.v1 import library_pb2_grpc
from ptalign_server import wire
from ptalign_server.gateway.identity import Tokens
from ptalign_server.gateway.ports import bind, credentials
from ptalign_server.gateway.serve import make_server
from ptalign_server.metrics import Metrics
from ptalign_server.settings import AuthSettings, Settings, is_loopback
from ptalign_server.store import Store


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True), ("localhost", True), ("::1", True), ("[::1]", True),
        ("0.0.0.0", False), ("::", False), ("10.0.0.5", False), ("example.org", False),
    ],
)  # fmt: skip
def test_what_counts_as_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_an_open_address_in_clear_is_refused_with_what_to_set(tmp_path: Path) -> None:
    settings = Settings(state=tmp_path, host="0.0.0.0", port=0)
    with pytest.raises(InvalidInput) as caught:
        bind(None, settings)
    for words in ("PTALIGN_HOST", "PTALIGN_AUTH__TLS_CERT", "PTALIGN_AUTH__TLS_KEY", "tokens add"):
        assert words in str(caught.value)


def test_an_ipv6_address_is_bound_as_one() -> None:
    """`::1:50051` is an address without a port: the server said that its port was taken."""

    class Asked:
        def add_insecure_port(self, where: str) -> int:
            self.where = where
            return 1

    for host in ("::1", "[::1]"):
        server = Asked()
        bind(server, Settings(host=host, port=50051))
        assert server.where == "[::1]:50051"


@pytest.mark.parametrize("torn", ["tls.crt", "tls.key", "ca.crt"])
async def test_a_certificate_that_cannot_be_used_is_not_told_as_a_taken_port(
    tmp_path: Path, torn: str
) -> None:
    cert, key = self_signed(tmp_path, 1)
    (tmp_path / "ca.crt").write_bytes(cert.read_bytes())
    (tmp_path / torn).write_text("half")
    auth = AuthSettings(tls_cert=cert, tls_key=key, client_ca=tmp_path / "ca.crt")
    with pytest.raises(NotReady, match="cannot be used") as caught:
        bind(grpc.aio.server(), Settings(state=tmp_path, port=0, auth=auth))
    name = "PTALIGN_AUTH__CLIENT_CA" if torn == "ca.crt" else "PTALIGN_AUTH__TLS_KEY"
    assert name in str(caught.value)


async def test_a_taken_port_is_named(tmp_path: Path) -> None:
    first = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    port = first.add_insecure_port("127.0.0.1:0")
    await first.start()
    second = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    with pytest.raises(NotReady, match=f"port {port} .*PTALIGN_PORT"):
        bind(second, Settings(state=tmp_path, port=port))
    await first.stop(0)


async def test_a_missing_certificate_is_named(tmp_path: Path) -> None:
    auth = AuthSettings(tls_cert=tmp_path / "no.crt", tls_key=tmp_path / "no.key")
    with pytest.raises(NotReady, match=r"no\.key cannot be read"):
        bind(grpc.aio.server(), Settings(state=tmp_path, auth=auth))


async def ask(port: int, trusted: bytes, metadata: Any = ()) -> Any:
    """A call over TLS that trusts one certificate."""
    credentials = grpc.ssl_channel_credentials(trusted)
    async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
        stub: Any = library_pb2_grpc.LibraryStub(channel)
        return await stub.GetCatalogue(lib.GetCatalogueRequest(), metadata=metadata, timeout=10)


async def test_tls_needs_a_token_off_loopback_and_takes_up_a_new_certificate(
    tmp_path: Path,
) -> None:
    cert, key = self_signed(tmp_path, 1)
    auth = AuthSettings(tls_cert=cert, tls_key=key)
    settings = Settings(state=tmp_path / "state", host="0.0.0.0", port=0, auth=auth)
    store = Store(settings, wire.freeze)
    server = make_server(settings, store, Metrics(), health.aio.HealthServicer())
    port = bind(server, settings)
    await server.start()
    token = Tokens(settings.state / "tokens.json").add("who", "default", ["engineer"])
    header = (("authorization", f"Bearer {token}"),)
    old = cert.read_bytes()
    assert (await ask(port, old, header)).gates
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(port, old)
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    credentials = grpc.ssl_channel_credentials(old)
    async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as kept:
        check: Any = health_pb2_grpc.HealthStub(kept).Check
        await check(health_pb2.HealthCheckRequest(), timeout=10)
        self_signed(tmp_path, 2)
        assert (await ask(port, cert.read_bytes(), header)).gates
        await check(health_pb2.HealthCheckRequest(), timeout=10)
    await server.stop(0)
    store.close()


async def test_a_certificate_that_could_not_be_read_at_first_is_taken_up_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It was taken for seen, and the old one went on until it had expired."""
    cert, key = self_signed(tmp_path, 1)
    auth = AuthSettings(tls_cert=cert, tls_key=key)
    settings = Settings(state=tmp_path / "state", port=0, auth=auth)
    store = Store(settings, wire.freeze)
    server = make_server(settings, store, Metrics(), health.aio.HealthServicer())
    port = bind(server, settings)
    await server.start()
    old = cert.read_bytes()
    self_signed(tmp_path, 2)

    def closed(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", closed)
        assert (await ask(port, old)).gates
    assert "cannot be used yet" in caplog.text
    assert "cannot be read: Permission denied" in caplog.text
    assert (await ask(port, cert.read_bytes())).gates
    await server.stop(0)
    store.close()


async def test_a_removed_token_is_refused_at_once(tmp_path: Path) -> None:
    settings = Settings(
        state=tmp_path / "state", port=0, auth=AuthSettings(tokens_on_loopback=True)
    )
    store = Store(settings, wire.freeze)
    server = make_server(settings, store, Metrics(), health.aio.HealthServicer())
    port = bind(server, settings)
    await server.start()
    tokens = Tokens(settings.state / "tokens.json")
    token = tokens.add("who", "default", ["engineer"])
    assert token not in (settings.state / "tokens.json").read_text()
    header = (("authorization", f"Bearer {token}"),)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = library_pb2_grpc.LibraryStub(channel)
        assert (await stub.GetCatalogue(lib.GetCatalogueRequest(), metadata=header)).gates
        assert tokens.remove("who", "default")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetCatalogue(lib.GetCatalogueRequest(), metadata=header)
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    await server.stop(0)
    store.close()


def test_a_removed_token_stays_removed_after_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The removal was reported, and the file lay in memory alone."""
    tokens, done = Tokens(tmp_path / "tokens.json"), list[str]()
    tokens.add("who", "default", ["engineer"])
    replace = Path.replace

    def synced(handle: int) -> None:
        done.append(Path(f"/proc/self/fd/{handle}").resolve().name)

    def replaced(self: Path, target: Path) -> Path:
        assert self.read_bytes() == b"[]"
        done.append("replaced")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    assert tokens.remove("who", "default")
    assert done == ["tokens.json.new", "replaced", tmp_path.name]


def test_a_certificate_in_a_closed_folder_is_one_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking when it changed ended in a traceback before reading it could say what is wrong."""
    cert, key = self_signed(tmp_path, 1)
    settings = Settings(state=tmp_path, auth=AuthSettings(tls_cert=cert, tls_key=key))

    def closed(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        for name in ("stat", "read_bytes"):
            patch.setattr(Path, name, closed)
        with pytest.raises(NotReady, match="cannot be read: Permission denied"):
            credentials(settings)
    assert credentials(settings)
