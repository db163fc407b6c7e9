"""TLS and mutual TLS with certificates made here."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from ptalign_client_fake import Served
from typer.testing import CliRunner

import ptalign_client as pt
from ptalign_client.cli import app

Key = ec.EllipticCurvePrivateKey


def issue(
    folder: Path,
    name: str,
    issuer: tuple[x509.Certificate, Key] | None,
    address: str = "127.0.0.1",
) -> tuple[Any, Any]:
    """A certificate for the address with its key, written as NAME.pem and NAME.key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), False
        )
        .sign(issuer[1] if issuer else key, hashes.SHA256())
    )
    (folder / f"{name}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return made, key


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    authority = issue(folder, "root", None)
    issue(folder, "server", authority)
    issue(folder, "client", authority)
    issue(folder, "elsewhere", authority, "192.0.2.1")
    issue(folder, "stranger", None)
    return folder


@pytest.fixture
def secure(certificates: Path) -> Iterator[Any]:
    pair = tuple((certificates / f"server.{end}").read_bytes() for end in ("key", "pem"))
    root = (certificates / "root.pem").read_bytes()
    running = Served(credentials=grpc.ssl_server_credentials([pair], root, True))
    yield running
    running.stop()


def connect(endpoint: str, **files: Path) -> pt.Catalogue:
    quick = pt.Retry(attempts=1)
    with pt.Client(endpoint, token="t", tls=pt.TLS(**files), retry=quick) as client:
        return client.catalogue()


def test_both_ends_trust_each_other(secure: Any, certificates: Path) -> None:
    found = connect(
        secure.endpoint,
        root=certificates / "root.pem",
        cert=certificates / "client.pem",
        key=certificates / "client.key",
    )
    assert found.models
    assert secure.service.identities[-1]["authorization"] == "Bearer t"


def test_files_come_from_the_environment(
    secure: Any, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, file in (("ROOT", "root.pem"), ("CERT", "client.pem"), ("KEY", "client.key")):
        monkeypatch.setenv(f"PTALIGN_TLS_{name}", str(certificates / file))
    with pt.Client(secure.endpoint) as client:
        assert client.catalogue().models


def test_an_unknown_authority_is_refused(secure: Any, certificates: Path) -> None:
    with pytest.raises(pt.Unavailable):
        connect(secure.endpoint, root=certificates / "stranger.pem")


def test_without_a_certificate_a_mutual_server_hangs_up(secure: Any, certificates: Path) -> None:
    with pytest.raises(pt.Unavailable):
        connect(secure.endpoint, root=certificates / "root.pem")
    assert not secure.service.calls


@pytest.mark.parametrize("place", ["option", "variable"])
def test_the_command_takes_the_name_of_a_server_behind_a_tunnel(
    certificates: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """As by port-forward: the chart's own command ended with "nobody answers"."""
    pair = tuple((certificates / f"elsewhere.{end}").read_bytes() for end in ("key", "pem"))
    running = Served(credentials=grpc.ssl_server_credentials([pair]))
    words = ["catalogue", "--endpoint", running.endpoint]
    words += ["--tls-root", str(certificates / "root.pem")]
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 3
    assert "--tls-server-name" in refused.stderr
    if place == "option":
        words += ["--tls-server-name", "192.0.2.1"]
    else:
        monkeypatch.setenv("PTALIGN_TLS_SERVER_NAME", "192.0.2.1")
    found = CliRunner().invoke(app, words)
    running.stop()
    assert found.exit_code == 0, found.stderr


def test_a_token_is_not_shown_with_the_options() -> None:
    assert "s3cret" not in repr(pt.Options(token="s3cret"))
