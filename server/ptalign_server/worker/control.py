"""A socket for the gateway: is the engine ready, and one chat turn."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import uvicorn
from anyio import to_thread
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from ptalign.engines.base import Message, Request
from ptalign.errors import EngineFailed, NotReady, PtalignError
from ptalign_server.worker.adapters import served_adapter
from ptalign_server.worker.job import Room

log = logging.getLogger("ptalign.worker")


def serve_control(room: Room) -> None:
    """Serves on the worker's socket, in a thread, for as long as the process lives."""
    socket = room.settings.worker_socket
    socket.unlink(missing_ok=True)
    config = uvicorn.Config(
        control_app(room),
        uds=str(socket),
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    threading.Thread(target=server.run, name="control", daemon=True).start()


def control_app(room: Room) -> Starlette:
    """Two routes: ``GET /status`` and ``POST /chat``."""

    async def status(_: HttpRequest) -> JSONResponse:  # chats may have every thread
        return JSONResponse(room.pools.status())

    async def chat(request: HttpRequest) -> StreamingResponse:
        return StreamingResponse(_lines(room, await request.json()), media_type="text/plain")

    return Starlette(routes=[Route("/status", status), Route("/chat", chat, methods=["POST"])])


async def _lines(room: Room, body: dict[str, Any]) -> AsyncIterator[str]:
    """What `_reply` makes; its thread ends soon after the caller has gone."""
    gone = threading.Event()
    lines = _reply(room, body, gone.is_set)
    try:
        while line := await to_thread.run_sync(next, lines, "", abandon_on_cancel=True):
            yield line
    finally:
        gone.set()


def _reply(room: Room, body: dict[str, Any], should_stop: Callable[[], bool]) -> Iterator[str]:
    """JSON lines with the pieces of one reply."""
    try:
        model = room.catalogue.model(body["model"])
        system = (Message("system", model.system_prompt),) if model.system_prompt else ()
        with room.pools.use(model) as pool:
            if pool.leased:
                raise NotReady("a training job has the device. Try again when it is done.")
            with served_adapter(room.store, pool, body["adapter"]) as adapter:
                request = Request(
                    key="chat",
                    messages=(*system, *(Message(**turn) for turn in body["messages"])),
                    max_tokens=int(body["max_tokens"]),
                    temperature=0.7,
                    adapter=adapter,
                )
                for completion in pool.engine(should_stop).stream([request]):
                    if completion.error:
                        raise PtalignError(completion.error)
                    yield json.dumps({"text": completion.text}) + "\n"
    except PtalignError as error:
        yield _refusal(error)
    except Exception:
        log.exception("chat failed")
        yield _refusal(EngineFailed("the engine failed; the server's log says more"))


def _refusal(error: PtalignError) -> str:
    return json.dumps({"error": str(error), "reason": error.reason}) + "\n"
