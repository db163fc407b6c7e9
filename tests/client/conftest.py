"""The fake service, and clients with little patience."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ptalign_client import AsyncClient, Client, Retry

QUICK = Retry(base=0.01, cap=0.05, patience=3.0)


def _load(name: str) -> ModuleType:
    """A module beside this file, importable by its name from the tests of this folder."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("fake.py"))
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


fake = _load("ptalign_client_fake")


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test never talks to a service that the developer's environment names."""
    for name in ("ENDPOINT", "TOKEN", "TLS_ROOT", "TLS_CERT", "TLS_KEY", "TLS_SERVER_NAME"):
        monkeypatch.delenv(f"PTALIGN_{name}", raising=False)


@pytest.fixture
def served() -> Iterator[Any]:
    running = fake.Served()
    yield running
    running.stop()


@pytest.fixture
def client(served: Any) -> Iterator[Client]:
    with Client(served.endpoint, retry=QUICK, timeout=10) as made:
        yield made


@pytest.fixture
async def aclient(served: Any) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(served.endpoint, retry=QUICK, timeout=10) as made:
        yield made
