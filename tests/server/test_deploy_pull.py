"""A remote engine pulls adapters by digest and believes no path that a caller sends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from safetensors.numpy import save_file
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from ptalign.nouns import ModelSpec
from ptalign_server import pull
from ptalign_server.pool import Pool, PoolSettings
from ptalign_server.pool.adapters import check_adapter
from ptalign_server.pull import CANARY, LOAD, ZERO, PullAdapters
from ptalign_server.store.artefacts import Artefacts

ADAPTER = "0123456789abcdef01234567"
DIGEST = "0123456789abcdef" * 4
UNGUARDED = ("/adapters", "/adapters/x", "/invocations", "/tokenize", "/v1/load_lora_adapter/")
"""What vLLM serves beside what we ask of it; the first loads a folder that the caller names."""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """An object store with one adapter in it, put there as the server does."""
    folder = tmp_path / "trained"
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 4, "target_modules": ["o_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({"x.lora_A.weight": np.ones((4, 8), "float32")}, folder / "adapter_model.safetensors")
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    artefacts = Artefacts(tmp_path / "unused", f"file://{bucket}", tmp_path / "cache")
    for file in folder.iterdir():
        artefacts.put(f"adapters/{ADAPTER}", file.name, file)
    return bucket


@pytest.fixture
def engine(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> httpx.AsyncClient:
    """A server that answers with the body it got, behind the middleware."""
    monkeypatch.setenv("PTALIGN_ARTEFACTS", f"file://{store}")
    monkeypatch.setenv("PTALIGN_STATE", str(tmp_path / "engine"))

    async def echo(request: Request) -> JSONResponse:
        return JSONResponse(await request.json())

    paths = ("/v1/completions", *UNGUARDED)
    app = Starlette(routes=[Route(path, echo, methods=["POST"]) for path in (LOAD, *paths)])
    app.add_middleware(PullAdapters)
    model = tmp_path / "model"
    model.mkdir()
    save_file(
        {"model.layers.0.self_attn.o_proj.weight": np.ones((16, 16), "float32")},
        model / "model.safetensors",
    )
    served = [SimpleNamespace(name="m", model_path=str(model))]
    app.state.openai_serving_models = SimpleNamespace(base_model_paths=served)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://engine")


def pool() -> Pool:
    """A pool of remote engines, never started: what it calls things is what counts here."""
    settings = PoolSettings(kind="remote", urls=("http://127.0.0.1:9",))
    return Pool(settings, ModelSpec(name="m", path="/models/m"))


def served(store: Path) -> str:
    """The name that the pool gives an adapter of the library."""
    name = f"adapters/{ADAPTER}"
    return pool().serve_adapter(name.replace("/", "-"), store / name)


async def load(engine: httpx.AsyncClient, name: str, path: str = "/etc") -> httpx.Response:
    return await engine.post(LOAD, json={"lora_name": name, "lora_path": path})


async def test_an_adapter_is_pulled_and_the_callers_path_ignored(
    engine: httpx.AsyncClient, store: Path, tmp_path: Path
) -> None:
    name = served(store)
    answer = await load(engine, name)
    folder = Path(answer.json()["lora_path"])
    assert folder == tmp_path / "engine" / "adapters" / name
    assert name == f"adapters-{ADAPTER}-{check_adapter(folder, 256)}"  # all 256 bits of sha256
    assert (await load(engine, name)).json()["lora_path"] == str(folder)
    assert [p.name for p in folder.parent.iterdir()] == [name]


async def test_the_newest_adapters_stay_on_the_disk(
    engine: httpx.AsyncClient, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them filled the disk: the kubelet evicted the pod, and the next one filled its own."""
    monkeypatch.setattr(pull, "KEPT", 2)
    for name in "bc":
        shutil.copytree(store / "adapters" / ADAPTER, store / "adapters" / (name * 24))
    tag = served(store)[-64:]
    a, b, c = (f"adapters-{name}-{tag}" for name in (ADAPTER, "b" * 24, "c" * 24))
    for name in (a, b, a, "ptalign-zero", c):
        assert (await load(engine, name)).status_code == 200
    shelf = tmp_path / "engine" / "adapters"
    assert {path.name for path in shelf.iterdir()} == {a, c, "zero"}
    assert Path((await load(engine, b)).json()["lora_path"]).exists()
    assert {path.name for path in shelf.iterdir()} == {b, c, "zero"}


async def test_other_bytes_than_the_digest_are_refused_and_not_kept(
    engine: httpx.AsyncClient, store: Path, tmp_path: Path
) -> None:
    name = served(store)
    weights = store / "adapters" / ADAPTER / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    answer = await load(engine, name)
    assert answer.status_code == 400
    assert "not what was asked for" in answer.text
    assert list((tmp_path / "engine" / "adapters").iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        *("../../etc", f"adapters-../x-{DIGEST}", "latest", "", "zero", "ptalign-canary-/../etc"),
        *(f"adapters-{ADAPTER}-{DIGEST[:12]}", f"adapters-{ADAPTER}-{DIGEST}0"),
    ],
)
async def test_names_that_no_pool_makes_are_refused(engine: httpx.AsyncClient, name: str) -> None:
    answer = await load(engine, name)
    assert answer.status_code == 400
    assert "does not come from a ptalign pool" in answer.text


async def test_an_adapter_that_is_not_in_the_store_is_named(engine: httpx.AsyncClient) -> None:
    answer = await load(engine, f"adapters-ffffffffffff-{DIGEST}")
    assert answer.status_code == 400
    assert "holds no adapters/ffffffffffff/adapter_config.json" in answer.text


@pytest.mark.parametrize("name", ["ptalign-zero", "ptalign-canary-0123abcd"])
async def test_the_proving_adapters_are_made_on_the_spot(
    engine: httpx.AsyncClient, name: str
) -> None:
    folder = Path((await load(engine, name)).json()["lora_path"])
    assert check_adapter(folder, 8)


def test_the_pools_canaries_are_known_here() -> None:
    assert CANARY.fullmatch(pool()._engines[0]._canary)
    assert ZERO == "ptalign-zero"


@pytest.mark.parametrize("body", [b"no json", b"[]", b"{}", b'{"lora_name": "' + b"x" * 70_000])
async def test_broken_requests_are_refused(engine: httpx.AsyncClient, body: bytes) -> None:
    assert (await engine.post(LOAD, content=body)).status_code == 400


async def test_what_the_pool_asks_passes(engine: httpx.AsyncClient) -> None:
    answer = await engine.post("/v1/completions", json={"prompt": "x"})
    assert answer.json() == {"prompt": "x"}


@pytest.mark.parametrize("path", UNGUARDED)
async def test_other_routes_of_the_engine_are_not_found(
    engine: httpx.AsyncClient, path: str
) -> None:
    """`POST /adapters`, SageMaker's, loaded any folder: past this middleware and past the key."""
    answer = await engine.post(path, json={"name": "x", "src": "/etc"})
    assert answer.status_code == 404
    assert "/etc" not in answer.text
