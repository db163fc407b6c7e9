"""A socket for the gateway: is the engine ready, and one chat turn."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import uvicorn
from anyio import to_thread
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from ptalign.engines.base import Message, Request
from ptalign.errors import NotReady
from ptalign_server.errors import status_of
from ptalign_server.worker.adapters import served_adapter
from ptalign_server.worker.job import Room


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
    """What `_reply` says; its thread ends soon after the caller has gone."""
    gone, lines = threading.Event(), asyncio.Queue[str]()
    loop = asyncio.get_running_loop()

    def say(line: str) -> None:
        loop.call_soon_threadsafe(lines.put_nowait, line)

    work = to_thread.run_sync(_reply, room, body, gone.is_set, say, abandon_on_cancel=True)
    reply = asyncio.create_task(work)
    reply.add_done_callback(lambda _: lines.put_nowait(""))
    try:
        while line := await lines.get():
            yield line
    finally:
        gone.set()
        reply.cancel()  # it may still wait for a thread


def _reply(
    room: Room,
    body: dict[str, Any],
    should_stop: Callable[[], bool],
    say: Callable[[str], None],
) -> None:
    """Says the pieces of one reply, or why there are no more, as JSON lines."""
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
                for piece in pool.engine(should_stop).pieces(request):
                    say(_line(text=piece))
    except Exception as error:
        room.metrics.failed(error)
        status = status_of(error).SerializeToString()
        say(_line(status=base64.b64encode(status).decode()))


def _line(**told: Any) -> str:
    return json.dumps(told) + "\n"
