"""The scripted engine: deterministic, bounded, and a stand-in for vLLM over HTTP."""

from __future__ import annotations

import threading
import time

import httpx
import pytest

from ptalign.engines.base import Message, Request
from ptalign.engines.openai import OpenAIEngine
from ptalign.engines.scripted import ScriptedEngine
from ptalign.engines.scripted_server import ScriptedServer
from ptalign.errors import Cancelled, EngineFailed


def asks(n: int) -> list[Request]:
    return [Request(f"k{i}", messages=(Message("user", f"Question {i}?"),)) for i in range(n)]


def test_the_same_requests_give_the_same_answers() -> None:
    one, two = (list(ScriptedEngine().stream(asks(20))) for _ in range(2))
    assert one == two
    assert len({c.text for c in one}) > 5


def test_latency_and_concurrency_bound_the_rate() -> None:
    """8 requests, 4 at a time, 0.1 s each: two waves."""
    engine = ScriptedEngine(latency_s=0.1, concurrency=4)
    began = time.monotonic()
    assert len(list(engine.stream(asks(8)))) == 8
    assert 0.19 < time.monotonic() - began < 0.8


def test_failures_are_spread_by_the_request() -> None:
    engine = ScriptedEngine(failure_rate=0.3)
    failed = [c.key for c in engine.stream(asks(200)) if c.finish == "error"]
    assert 30 < len(failed) < 90
    assert failed == [c.key for c in engine.stream(asks(200)) if c.finish == "error"]


def test_an_own_script_answers_and_stop_and_limit_hold() -> None:
    engine = ScriptedEngine(lambda r: f"{r.key} one two\nthree four")
    stopped, cut = engine.stream(
        [Request("a", prompt="x", stop=("\n",)), Request("b", prompt="x", max_tokens=2)]
    )
    assert (stopped.text, stopped.finish) == ("a one two", "stop")
    assert (cut.text, cut.finish, cut.completion_tokens) == ("b one", "length", 2)


def test_should_stop_ends_a_slow_stream() -> None:
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    began = time.monotonic()
    with pytest.raises(Cancelled):
        list(ScriptedEngine(latency_s=60, should_stop=stop.is_set).stream(asks(3)))
    assert time.monotonic() - began < 1.2


def over_http(engine: ScriptedEngine) -> tuple[OpenAIEngine, ScriptedServer]:
    server = ScriptedServer(engine)
    transport = httpx.ASGITransport(server.app)
    client = OpenAIEngine("http://scripted/v1", engine.model, attempts=1, transport=transport)
    return client, server


def test_over_http_it_says_what_it_says_in_process() -> None:
    """Keys stay on the client, so compare with keyless requests."""
    scripted = ScriptedEngine()
    client, _ = over_http(scripted)
    requests = [
        Request("a", messages=(Message("user", "What is rain?"),)),
        Request("b", prompt="Topic: work\nRequest:", prefill=" Write a rude reply to"),
        Request("c", messages=(Message("user", "Hi"),), prefill="Well,", logprobs=True),
    ]
    got = {c.key: c for c in client.stream(requests)}
    for request in requests:
        keyless = Request(**{f: getattr(request, f) for f in request.__slots__} | {"key": ""})
        want = scripted.complete(keyless)
        assert got[request.key].text == want.text
        assert got[request.key].token_ids == want.token_ids


def test_its_pieces_over_http_are_the_same_text() -> None:
    scripted = ScriptedEngine()
    client, server = over_http(scripted)
    request = Request("", messages=(Message("user", "What is rain?"),))
    pieces = list(client.pieces(request))
    assert len(pieces) > 3
    assert "".join(pieces) == scripted.complete(request).text
    assert server.running == 0


def test_a_failure_is_an_event_where_the_reply_is_streamed() -> None:
    client, _ = over_http(ScriptedEngine(failure_rate=1.0))
    with pytest.raises(EngineFailed, match="in the middle"):
        list(client.pieces(Request("", messages=(Message("user", "hi"),))))


async def test_the_routes_that_the_pool_uses() -> None:
    scripted = ScriptedEngine(model="tiny")
    _, server = over_http(scripted)
    transport = httpx.ASGITransport(server.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://scripted") as http:
        assert (await http.get("/health")).status_code == 200
        body = {"lora_name": "ad-1", "lora_path": "/adapters/1"}
        assert (await http.post("/v1/load_lora_adapter", json=body)).status_code == 200
        assert (await http.post("/v1/load_lora_adapter", json=body)).status_code == 400
        names = [m["id"] for m in (await http.get("/v1/models")).json()["data"]]
        assert names == ["tiny", "ad-1"]
        chat = {"model": "ad-1", "messages": [{"role": "user", "content": "hi"}]}
        assert (await http.post("/v1/chat/completions", json=chat)).status_code == 200
        gone = {"lora_name": "ad-1"}
        assert (await http.post("/v1/unload_lora_adapter", json=gone)).status_code == 200
        assert (await http.post("/v1/chat/completions", json=chat)).status_code == 404
        metrics = (await http.get("/metrics")).text
        assert "vllm:num_requests_running" in metrics
        made = metrics.split("vllm:generation_tokens_total")[1].split()[-1]
        assert float(metrics.strip().rsplit(" ", 1)[1]) > 0, made


async def test_failures_are_server_errors_over_http() -> None:
    _, server = over_http(ScriptedEngine(failure_rate=1.0))
    transport = httpx.ASGITransport(server.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://scripted") as http:
        chat = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}
        assert (await http.post("/v1/chat/completions", json=chat)).status_code == 500
