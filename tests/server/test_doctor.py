"""What the doctor finds beside a running server, and of what the server stands on."""

from __future__ import annotations

import socket
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from ptalign_server import wire
from ptalign_server.admin.doctor import (
    check_access,
    check_database,
    check_engine,
    check_object_store,
    check_ports,
)
from ptalign_server.gateway.identity import Tokens
from ptalign_server.settings import AuthSettings, EngineSettings, Settings
from ptalign_server.store import Store


@contextmanager
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield int(taken.getsockname()[1])


@contextmanager
def healthy(settings: Settings) -> Iterator[None]:
    """The local socket of a server that serves."""
    settings.make_folders()
    server, servicer = grpc.server(ThreadPoolExecutor(1)), health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(f"unix:{settings.health_socket}")
    server.start()
    try:
        yield
    finally:
        server.stop(0).wait()


def test_the_port_of_a_page_that_is_not_served_is_not_asked_for(tmp_path: Path) -> None:
    with listener() as port:
        settings = Settings(state=tmp_path, port=0, metrics_port=0, page_port=port)
        *others, page = check_ports(settings)
        assert not page.ok
        assert "PTALIGN_PAGE_PORT" in page.mend
        unserved = settings.model_copy(update={"page": False})
        assert [found.what for found in check_ports(unserved)] == [found.what for found in others]


@pytest.mark.parametrize("host", ["::1", "[::1]", "localhost"])
def test_a_host_by_another_name_or_kind_of_address_is_no_taken_port(
    host: str, tmp_path: Path
) -> None:
    if host != "localhost" and not Path("/proc/net/if_inet6").exists():
        return  # a machine without IPv6 has no such address to be free
    with listener() as port:
        pass
    settings = Settings(state=tmp_path, host=host, port=port, metrics_port=0, page=False)
    free, *_ = check_ports(settings)
    assert free.ok
    assert free.found in {f"[::1]:{port}", f"localhost:{port}"}


def test_ports_of_the_server_itself_are_no_fault(tmp_path: Path) -> None:
    with listener() as port:
        settings = Settings(state=tmp_path, port=port, metrics_port=0, page_port=0)
        with healthy(settings):
            assert all(found.ok for found in check_ports(settings))
        taken, *others = check_ports(settings)
    assert not taken.ok
    assert "PTALIGN_PORT" in taken.mend
    assert all(found.ok for found in others)


def test_a_database_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    settings = Settings(state=tmp_path)
    (found,) = check_database(settings)
    assert found.ok
    assert not (tmp_path / "ptalign.db").exists(), "the doctor makes nothing"
    Store(settings, wire.freeze).close()
    (found,) = check_database(settings)
    assert found.ok
    with sqlite3.connect(tmp_path / "ptalign.db") as connection:
        connection.execute("update alembic_version set version_num = '9999'")
    connection.close()
    (found,) = check_database(settings)
    assert not found.ok
    assert "9999" in found.found
    (found,) = check_database(Settings(state=tmp_path, database="nonsense://me:hush-1@x/y"))
    assert not found.ok
    assert "hush" not in found.found + found.mend


def test_an_object_store_that_cannot_be_reached_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not list(check_object_store(Settings(state=tmp_path)))
    (found,) = check_object_store(Settings(state=tmp_path, artefacts="memory:///"))
    assert found.ok
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "none",
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "hush-1",
    }.items():
        monkeypatch.setenv(name, value)
    (found,) = check_object_store(Settings(state=tmp_path, artefacts="s3://nobody/state"))
    assert not found.ok
    assert "PTALIGN_ARTEFACTS" in found.mend


def test_a_remote_engine_that_is_away_is_missed_but_no_fault(
    tmp_path: Path, author_url: str
) -> None:
    away = "http://127.0.0.1:1/v1"
    engine = EngineSettings(kind="remote", urls=(author_url, away))
    _, up, down = check_engine(Settings(state=tmp_path, engine=engine))
    assert up.ok
    assert (down.ok, down.needed) == (False, False)
    assert "127.0.0.1:1" in down.what


def test_a_server_that_nobody_can_call_is_said_to_lack_tokens(tmp_path: Path) -> None:
    settings = Settings(state=tmp_path, auth=AuthSettings(tokens_on_loopback=True))
    _, tokens = check_access(settings)
    assert (tokens.ok, tokens.needed) == (False, False)
    assert "tokens add" in tokens.mend
    Tokens(settings.tokens_path).add("alice", "default", ["engineer"])
    _, tokens = check_access(settings)
    assert tokens.ok
    settings.tokens_path.write_text("[{")
    _, tokens = check_access(settings)
    assert not tokens.ok
    assert tokens.needed
    assert len(list(check_access(Settings(state=tmp_path)))) == 1, "loopback needs none"


def test_a_page_off_loopback_needs_tls_and_tokens_as_grpc_does(tmp_path: Path) -> None:
    access, tokens = check_access(Settings(state=tmp_path, page_host="0.0.0.0"))
    assert not access.ok
    assert "PTALIGN_PAGE_HOST" in access.mend
    assert not tokens.ok
    (access,) = check_access(Settings(state=tmp_path, page_host="0.0.0.0", page=False))
    assert access.ok
