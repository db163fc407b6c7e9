"""Chat between gateway and worker: what waits, what is refused, and what ends with its caller."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import httpx
import pytest
from google.rpc import code_pb2, error_details_pb2
from test_gateway import MODEL, Calls, refused, serving

from ptalign.engines.base import Message, Request
from ptalign.errors import (
    Cancelled,
    DataDamaged,
    EngineFailed,
    InvalidInput,
    NotReady,
    PtalignError,
    Unsupported,
)
from ptalign.nouns import ModelSpec
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server.errors import AdapterDeleted, CircuitOpen, reason_of, status_of
from ptalign_server.gateway import chat
from ptalign_server.metrics import Metrics
from ptalign_server.settings import Settings
from ptalign_server.worker.control import serve_control

TURNS = [{"role": "user", "content": "hi"}]
BODY = {"model": "m", "adapter": "", "max_tokens": 8, "messages": TURNS}
THREADS = 40
"""What anyio runs at once."""


class Bench:
    """A worker whose engine answers when it is told to; it is its own pools and pool."""

    def __init__(self, state: Path) -> None:
        self.leased = False
        self.users = 0
        self.first: list[str] = []
        """What the engine says before `answer` is set."""
        self.error: Exception | None = None
        self.model = ModelSpec(name="m", path="x")
        self.asked: list[Request] = []
        self.answer = threading.Event()
        self.moved = threading.Condition()
        self.settings = Settings(state=state)
        self.settings.make_folders()
        catalogue = SimpleNamespace(model=lambda _: self.model)
        self.metrics = Metrics()
        room: Any = SimpleNamespace(
            settings=self.settings,
            pools=self,
            catalogue=catalogue,
            store=None,
            metrics=self.metrics,
        )
        serve_control(room)

    @contextmanager
    def use(self, _: ModelSpec) -> Iterator[Bench]:
        self.count(1)
        try:
            yield self
        finally:
            self.count(-1)

    def count(self, step: int) -> None:
        with self.moved:
            self.users += step
            self.moved.notify_all()

    async def until(self, users: int) -> bool:
        """Whether so many chats come to be under way."""

        def wait() -> bool:
            with self.moved:
                return self.moved.wait_for(lambda: self.users == users, 30)

        return await asyncio.to_thread(wait)

    def engine(self, should_stop: Callable[[], bool] = lambda: False) -> Any:
        def pieces(request: Request) -> Iterator[str]:
            self.asked.append(request)
            yield from self.first
            while not self.answer.wait(0.02):
                if should_stop():
                    raise Cancelled("told to stop")
            if self.error is not None:
                raise self.error
            yield "hello"

        return SimpleNamespace(pieces=pieces)

    def status(self) -> dict[str, bool]:
        return {"ready": True}

    async def said(self) -> list[str]:
        async with aclosing(chat._pieces(self.settings, BODY)) as pieces:
            return [piece async for piece in pieces]


@pytest.fixture
async def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    transport = httpx.AsyncHTTPTransport(uds=str(made.settings.worker_socket), retries=10)
    async with httpx.AsyncClient(transport=transport) as client:
        assert (await client.get("http://worker/status")).json() == {"ready": True}
    return made


async def test_a_reply_comes_through(bench: Bench) -> None:
    bench.answer.set()
    assert await bench.said() == ["hello"]


async def test_a_piece_comes_before_the_reply_is_whole(bench: Bench) -> None:
    """The whole reply came at once, after up to five minutes."""
    bench.first = ["well, "]
    async with aclosing(chat._pieces(bench.settings, BODY)) as pieces:
        assert await asyncio.wait_for(anext(pieces), 30) == "well, "
        bench.answer.set()
        assert [piece async for piece in pieces] == ["hello"]


async def test_whoever_leaves_in_the_middle_ends_the_engines_work(bench: Bench) -> None:
    bench.first = ["well, "]
    async with aclosing(chat._pieces(bench.settings, BODY)) as pieces:
        assert await asyncio.wait_for(anext(pieces), 30) == "well, "
        assert await bench.until(1)
    assert await bench.until(0)


async def test_each_reply_ends_with_a_message_that_says_so(bench: Bench) -> None:
    bench.first = ["well, "]
    bench.answer.set()
    async with serving(bench.settings.state) as calls:
        replies = [(r.label, r.text, r.done) async for r in calls.tuning.Chat(asked())]
    assert replies == [
        ("base", "well, ", False),
        ("base", "hello", False),
        ("base", "", True),
    ]


@pytest.mark.parametrize(
    ("error", "code", "reason", "violations"),
    [
        (EngineFailed("cut"), grpc.StatusCode.UNAVAILABLE, "ENGINE_FAILED", {}),
        (
            InvalidInput("messages", "are too long", "Send fewer."),
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_INPUT",
            {"messages": "are too long. Send fewer."},
        ),
    ],
)
async def test_an_error_ends_the_call_with_its_status_though_pieces_came(
    bench: Bench,
    error: PtalignError,
    code: grpc.StatusCode,
    reason: str,
    violations: dict[str, str],
) -> None:
    """A talk that was too long was called UNAVAILABLE: trying again never ended."""
    bench.first, bench.error = ["well, "], error
    bench.answer.set()
    heard = []

    async def listen(calls: Calls) -> None:
        async for reply in calls.tuning.Chat(asked()):
            heard.append(reply)

    async with serving(bench.settings.state) as calls:
        found = await refused(listen(calls))
    assert (found[0], found[2], found[3]) == (code, reason, violations)
    assert [(r.text, r.done) for r in heard] == [("well, ", False)]


def asked() -> pb.ChatRequest:
    return pb.ChatRequest(model=MODEL, messages=[pb.ChatMessage(role="user", content="hi")])


async def test_the_models_system_prompt_stands_first(bench: Bench) -> None:
    """Chat showed a model that was neither trained nor evaluated: its system turn was missing."""
    bench.answer.set()
    await bench.said()
    bench.model = ModelSpec(name="m", path="x", system_prompt="Be brief.")
    await bench.said()
    bare, led = (request.messages for request in bench.asked)
    assert bare == (Message("user", "hi"),)
    assert led == (Message("system", "Be brief."), *bare)


async def test_chat_is_refused_at_once_while_a_training_has_the_device(bench: Bench) -> None:
    """It waited 300 s and then said that the engine was starting."""
    bench.leased = True
    with pytest.raises(PtalignError, match="a training job has the device") as caught:
        await asyncio.wait_for(bench.said(), 30)
    assert caught.value.reason == "NOT_READY"


@pytest.mark.parametrize(
    ("error", "code", "retried"),
    [
        (EngineFailed("it died"), code_pb2.UNAVAILABLE, True),
        (NotReady("the volume is away"), code_pb2.UNAVAILABLE, True),
        (CircuitOpen("it failed too often"), code_pb2.FAILED_PRECONDITION, False),
        (DataDamaged("the adapter was changed"), code_pb2.DATA_LOSS, False),
        (AdapterDeleted("adapters/1"), code_pb2.FAILED_PRECONDITION, False),
        (Unsupported("a pickle"), code_pb2.FAILED_PRECONDITION, False),
    ],
)
async def test_what_the_worker_raises_keeps_its_status(
    bench: Bench, error: PtalignError, code: int, retried: bool
) -> None:
    """All of it was UNAVAILABLE, with a hint to try again what never works."""
    bench.error = error
    bench.answer.set()
    with pytest.raises(PtalignError, match=f"^{error}$") as caught:
        await bench.said()
    status = status_of(caught.value)
    assert (status.code, reason_of(status)) == (code, error.reason)
    hint = error_details_pb2.RetryInfo.DESCRIPTOR
    assert any(detail.Is(hint) for detail in status.details) is retried


async def test_an_error_that_nobody_foresaw_keeps_its_text_to_itself(bench: Bench) -> None:
    bench.error = ValueError("secret")
    bench.answer.set()
    with pytest.raises(PtalignError, match=r"^internal error [0-9a-f]{16}\. ") as caught:
        await bench.said()
    assert status_of(caught.value).code == code_pb2.INTERNAL


async def test_damage_that_a_chat_meets_is_counted_once(bench: Bench) -> None:
    bench.error = DataDamaged("the adapter was changed")
    bench.answer.set()
    with pytest.raises(PtalignError):
        await bench.said()
    [family] = bench.metrics.data_damaged.collect()
    assert [s.value for s in family.samples if s.name == "ptalign_data_damaged_total"] == [1]


async def test_no_answer_in_time_is_not_called_a_start(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "REPLY_SECONDS", 1.0)
    with pytest.raises(NotReady, match="did not answer in 1 s"):
        await bench.said()
    assert await bench.until(0)


async def test_chats_that_wait_hide_no_status_and_end_with_their_callers(bench: Bench) -> None:
    """Forty of them took every thread, and kept the engine from other models' jobs."""
    waiting = [asyncio.create_task(bench.said()) for _ in range(THREADS)]
    assert await bench.until(THREADS)
    transport = httpx.AsyncHTTPTransport(uds=str(bench.settings.worker_socket))
    async with httpx.AsyncClient(transport=transport, timeout=30.0) as client:
        assert (await client.get("http://worker/status")).json() == {"ready": True}
    for task in waiting:
        task.cancel()
    assert await bench.until(0)
