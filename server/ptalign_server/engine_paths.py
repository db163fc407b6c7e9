"""ASGI middleware of every vLLM engine: it answers what ptalign asks, and 404 to all else.

vLLM's API key guards ``/v1`` and little more. Where adapters load at run time, it also mounts
SageMaker's routes: ``POST /adapters`` would load any folder, past the key and past `pull`. The
engine's own process imports this, so it brings nothing that vLLM has not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

LOAD = "/v1/load_lora_adapter"
PATHS = frozenset(
    {"/health", "/v1/models", LOAD, "/v1/unload_lora_adapter"}
    | {"/v1/completions", "/v1/chat/completions"}
    | {"/metrics"}  # counts, no text: for whoever watches engine pods
)


class EnginePaths:
    """Passes `PATHS`, as they are spelt there; what vLLM serves beside them is not found."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and scope["path"] in PATHS):
            await self._app(scope, receive, send)
            return
        await JSONResponse({"error": {"message": "not found"}}, 404)(scope, receive, send)
