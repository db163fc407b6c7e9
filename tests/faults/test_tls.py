"""Certificates are replaced while calls run: none fails, and new connections get the new ones."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from running import Running

from ptalign_server.gateway.ports import bind
from ptalign_server.settings import AuthSettings, Settings


@dataclass(frozen=True)
class Issued:
    """A self-signed certificate for 127.0.0.1 and its key, PEM."""

    certificate: bytes
    key: bytes


def issue(name: str) -> Issued:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8
    pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    return Issued(made.public_bytes(serialization.Encoding.PEM), pem)


def put(folder: Path, name: str, data: bytes) -> None:
    """Replaces a file as an operator's tool does: whole, under its name at once."""
    partial = folder / f"{name}.new"
    partial.write_bytes(data)
    partial.replace(folder / name)


@contextlib.asynccontextmanager
async def secured(folder: Path) -> AsyncIterator[int]:
    """Port of a server that answers health behind the product's own TLS set-up."""
    auth = AuthSettings(tls_cert=folder / "tls.crt", tls_key=folder / "tls.key")
    server = grpc.aio.server()
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    port = bind(server, Settings(state=folder, port=0, auth=auth))
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


def connect(port: int, trusted: Issued, number: int) -> Any:
    """A connection of its own: grpc shares those of equal channels."""
    credentials = grpc.ssl_channel_credentials(trusted.certificate)
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, [("number", number)])


async def ask(channel: Any, seconds: float = 20.0) -> str:
    """The code of one call."""
    stub = health_pb2_grpc.HealthStub(channel)
    try:
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=seconds)
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"


@pytest.mark.tier(1)
@pytest.mark.timeout(600)
async def test_certificates_change_under_calls(score: Any, tmp_path: Path) -> None:
    row = score.row("certificates replaced under calls", 50)
    now = issue("first")
    put(tmp_path, "tls.crt", now.certificate)
    put(tmp_path, "tls.key", now.key)
    codes: list[str] = []
    async with secured(tmp_path) as port:
        held = connect(port, now, 0)
        assert await ask(held) == "OK"
        stop = asyncio.Event()

        async def keep_calling() -> None:
            while not stop.is_set():
                codes.append(await ask(held))

        callers = [asyncio.create_task(keep_calling()) for _ in range(4)]
        for number in range(1, score.size(50, 4) + 1):
            before, now = now, issue(f"next-{number}")
            put(tmp_path, "tls.crt", now.certificate)
            if number % 2:  # the moment between the two files: the pair does not fit
                async with connect(port, before, 1000 + number) as between:
                    await ask(between, 0.2)
            put(tmp_path, "tls.key", now.key)
            async with connect(port, now, number) as new, connect(port, before, -number) as old:
                row.bad += await ask(new) != "OK"
                row.bad += await ask(old, 0.3) == "OK"
            row.ran += 1
        stop.set()
        await asyncio.gather(*callers)
        await held.close()
    row.bad += sum(code != "OK" for code in codes)
    row.notes["calls meanwhile"] = str(len(codes))
    assert len(codes) > row.ran
    assert not row.bad


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "words"])
async def test_a_broken_certificate_keeps_the_one_before(tmp_path: Path, damage: str) -> None:
    """Until it is mended, new connections get the last certificate that was whole."""
    first, second = issue("first"), issue("second")
    put(tmp_path, "tls.crt", first.certificate)
    put(tmp_path, "tls.key", first.key)
    async with secured(tmp_path) as port:
        async with connect(port, first, 1) as before:
            assert await ask(before) == "OK"
        if damage == "gone":
            (tmp_path / "tls.crt").unlink()
        else:
            half = second.certificate[: len(second.certificate) // 2]
            put(tmp_path, "tls.crt", {"cut": half, "empty": b"", "words": b"not PEM"}[damage])
        async with connect(port, first, 2) as during:
            assert await ask(during) == "OK"
        put(tmp_path, "tls.crt", second.certificate)
        put(tmp_path, "tls.key", second.key)
        async with connect(port, second, 3) as after:
            assert await ask(after) == "OK"


def test_strangers_at_the_door_fill_no_log(tmp_path: Path) -> None:
    """gRPC wrote a line for every connection that was no TLS."""
    made = issue("server")
    put(tmp_path, "tls.crt", made.certificate)
    put(tmp_path, "tls.key", made.key)
    running = Running(
        tmp_path / "state",
        PTALIGN_AUTH__TLS_CERT=str(tmp_path / "tls.crt"),
        PTALIGN_AUTH__TLS_KEY=str(tmp_path / "tls.key"),
        PTALIGN_ENGINE__KIND="remote",
        PTALIGN_ENGINE__URLS='["http://127.0.0.1:9"]',
    ).start()
    try:
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", running.port), timeout=20) as stranger:
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
                stranger.recv(100)
    finally:
        running.stop()
    assert "andshake" not in (running.state / "gateway.log").read_text()
