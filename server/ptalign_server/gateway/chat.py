"""Chat: one turn by the base model and the adapter beside it, through the worker's engine."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from google.rpc.status_pb2 import Status

from ptalign.errors import InvalidInput, NotReady
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server.catalogue import Catalogue
from ptalign_server.errors import Relayed
from ptalign_server.gateway.identity import Identity
from ptalign_server.gateway.reading import look_up
from ptalign_server.gateway.weights import check_weights
from ptalign_server.settings import Settings
from ptalign_server.store import Store

MAX_TURNS = 100
MAX_CHARACTERS = 32_000
MAX_TOKENS = 2048
REPLY_SECONDS = 300.0
"""What the next piece of a reply may take."""


async def chat(
    request: pb.ChatRequest,
    identity: Identity,
    settings: Settings,
    store: Store,
    catalogue: Catalogue,
) -> AsyncIterator[pb.ChatReply]:
    """Pieces of each reply as the engine makes them. Nothing of it is stored."""
    _check(request)
    model = catalogue.served_model(request.model)
    if request.adapter:
        found = await look_up(store, request.adapter, "adapters", identity.tenant)
        if found.model != model.name:
            raise InvalidInput("adapter", f"belongs to model {found.model}", "Send its own model.")
        check_weights("adapter", found, model)
    bodies = [_body(request, label, adapter) for label, adapter in _targets(request)]
    queue: asyncio.Queue[pb.ChatReply | BaseException | None] = asyncio.Queue()
    tasks = [asyncio.create_task(_pump(settings, body, queue)) for body in bodies]
    try:
        open_streams = len(tasks)
        while open_streams:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                open_streams -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()


def _targets(request: pb.ChatRequest) -> Sequence[tuple[str, str]]:
    if not request.adapter:
        return [("base", "")]
    with_adapter = (request.adapter, request.adapter)
    return [("base", ""), with_adapter] if request.compare else [with_adapter]


def _body(request: pb.ChatRequest, label: str, adapter: str) -> dict[str, Any]:
    return {
        "label": label,
        "model": request.model,
        "adapter": adapter,
        "max_tokens": request.max_tokens or 256,
        "messages": [{"role": m.role, "content": m.content} for m in request.messages],
    }


async def _pump(
    settings: Settings,
    body: dict[str, Any],
    queue: asyncio.Queue[pb.ChatReply | BaseException | None],
) -> None:
    """Moves one reply from the worker's socket into the queue."""
    try:
        async for piece in _pieces(settings, body):
            await queue.put(pb.ChatReply(label=body["label"], text=piece))
        await queue.put(pb.ChatReply(label=body["label"], done=True))
        await queue.put(None)
    except Exception as error:
        await queue.put(error)


async def _pieces(settings: Settings, body: dict[str, Any]) -> AsyncIterator[str]:
    import httpx  # slow to import, and not needed to serve

    transport = httpx.AsyncHTTPTransport(uds=str(settings.worker_socket))
    async with httpx.AsyncClient(transport=transport, timeout=REPLY_SECONDS) as client:
        try:
            async with client.stream("POST", "http://worker/chat", json=body) as reply:
                async for line in reply.aiter_lines():
                    piece = json.loads(line)
                    if "status" in piece:
                        raise Relayed(Status.FromString(base64.b64decode(piece["status"])))
                    yield piece["text"]
        except httpx.TimeoutException:
            why = f"the engine did not answer in {REPLY_SECONDS:.0f} s: it starts, or is busy"
            raise NotReady(f"{why}. Try again later.") from None
        except httpx.TransportError:
            raise NotReady("the engine is starting. Try again in a few seconds.") from None


def _check(request: pb.ChatRequest) -> None:
    if not 1 <= len(request.messages) <= MAX_TURNS:
        limit = f"must hold 1..{MAX_TURNS} turns"
        raise InvalidInput("messages", limit, "Send the newest turns.")
    if request.messages[-1].role != "user":
        raise InvalidInput("messages", "must end with a user turn", "Put the question last.")
    for number, message in enumerate(request.messages):
        if message.role not in {"user", "assistant"}:
            limit = "must be user or assistant"
            raise InvalidInput(
                f"messages[{number}].role", limit, "The server sets the system turn."
            )
    if sum(len(m.content) for m in request.messages) > MAX_CHARACTERS:
        limit = f"hold more than {MAX_CHARACTERS} characters"
        raise InvalidInput("messages", limit, "Send fewer turns.")
    if request.max_tokens > MAX_TOKENS:
        raise InvalidInput("max_tokens", f"must be at most {MAX_TOKENS}", "Ask for less.")
