"""The page's listener: TLS off loopback, certificates renewed in place, taken ports named."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import httpx
import pytest
from certificates import self_signed
from cryptography import x509
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from ptalign.errors import InvalidInput, NotReady
from ptalign_server.page import listen as module
from ptalign_server.page.listen import listen
from ptalign_server.settings import AuthSettings


async def scheme(request: Request) -> PlainTextResponse:
    return PlainTextResponse(request.url.scheme)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


APP = Starlette(routes=[Route("/", scheme)])


def make_certificate(folder: Path, serial: int) -> AuthSettings:
    """A self-signed certificate in the place that the settings name."""
    cert, key = self_signed(folder, serial)
    return AuthSettings(tls_cert=cert, tls_key=key)


async def serial_at(port: int) -> int:
    """Serial number of the certificate that the port shows."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with httpx.AsyncClient(verify=context) as client:
        async with client.stream("GET", f"https://127.0.0.1:{port}/") as answer:
            shown = answer.extensions["network_stream"].get_extra_info("ssl_object")
            der = shown.getpeercert(binary_form=True)
            assert (await answer.aread()) == b"https"
    return x509.load_der_x509_certificate(der).serial_number


async def test_mutual_tls_is_for_grpc_alone(tmp_path: Path) -> None:
    """Browsers have a token and no certificate: docs/security.md says so."""
    auth = make_certificate(tmp_path, serial=1)
    auth = auth.model_copy(update={"client_ca": auth.tls_cert})
    port, stop = await listen(APP, "127.0.0.1", 0, auth)
    async with httpx.AsyncClient(verify=False) as browser:
        assert (await browser.get(f"https://127.0.0.1:{port}/")).text == "https"
    await stop()
    words = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    assert "**The page does not ask for one**" in words


async def test_loopback_may_be_in_clear() -> None:
    port, stop = await listen(APP, "127.0.0.1", 0, AuthSettings())
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"http://127.0.0.1:{port}/")).text == "http"
    await stop()
    async with httpx.AsyncClient() as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(f"http://127.0.0.1:{port}/")


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["::1", "[::1]"])
async def test_an_ipv6_host_may_have_brackets(host: str) -> None:
    """The name was looked up with them: the error said that the port was taken."""
    port, stop = await listen(APP, host, 0, AuthSettings())
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"http://[::1]:{port}/")).text == "http"
    await stop()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "page.example"])
async def test_other_addresses_need_tls(host: str) -> None:
    with pytest.raises(InvalidInput, match="PTALIGN_AUTH__TLS_CERT"):
        await listen(APP, host, 0, AuthSettings())


async def test_a_new_certificate_is_shown_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RELOAD_SECONDS", 0.05)
    auth = make_certificate(tmp_path, 1001)
    assert auth.tls_key is not None
    port, stop = await listen(APP, "127.0.0.1", 0, auth)
    try:
        assert await serial_at(port) == 1001
        (tmp_path / "tls.crt").write_text("half")
        await asyncio.sleep(0.2)
        assert await serial_at(port) == 1001
        key = auth.tls_key.read_bytes()
        make_certificate(tmp_path, 1002)
        renewed = auth.tls_key.read_bytes()
        auth.tls_key.write_bytes(key)  # the certificate is there, its key not yet
        await asyncio.sleep(0.2)
        assert await serial_at(port) == 1001
        auth.tls_key.write_bytes(renewed)
        for _ in range(100):
            if await serial_at(port) == 1002:
                break
        assert await serial_at(port) == 1002
    finally:
        await stop()


async def test_a_port_that_is_taken_is_named() -> None:
    port, stop = await listen(APP, "127.0.0.1", 0, AuthSettings())
    try:
        with pytest.raises(NotReady, match=str(port)):
            await listen(APP, "127.0.0.1", port, AuthSettings())
    finally:
        await stop()


async def test_a_certificate_that_is_missing_is_named(tmp_path: Path) -> None:
    auth = AuthSettings(tls_cert=tmp_path / "tls.crt", tls_key=tmp_path / "tls.key")
    with pytest.raises(NotReady, match="certificate"):
        await listen(APP, "127.0.0.1", 0, auth)
