"""The pool as an httpx transport: `OpenAIEngine` talks to one address, the router picks the engine.

So there is one HTTP client of the OpenAI protocol in the code base, and everything about many
engines (routing, deaths, leases) is here.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx

from ptalign.text.controls import break_up
from ptalign_server.pool.router import Router, Seat, Slot

TRIES = 6
"""Sends of one request over network trouble that no engine death explains."""
VERDICT_S = 3.0
"""Seconds the supervisor has to notice a death after a connection broke."""


class SetAside(Exception):
    """This request was aboard two engine deaths: it gets an error completion, not a third try."""


class PoolTransport(httpx.AsyncBaseTransport):
    """Sends each request to an engine of the router. One instance serves any number of loops.

    Args:
        controls: The model's control tokens: broken up wherever data holds them.
    """

    def __init__(self, router: Router, controls: Sequence[str] = ()) -> None:
        self._router = router
        self._controls = controls
        self._wires: dict[asyncio.AbstractEventLoop, httpx.AsyncHTTPTransport] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The engine's answer; waits while none has room, is up, or the device is leased.

        Raises:
            SetAside: Two engines died with this request aboard, the second time as the one
                suspect.
            httpx.TransportError: The network failed `TRIES` times with the engine alive.
        """
        body = as_text(json.loads(await request.aread()), self._controls)
        key, prefix = _fingerprint(body)
        for tries in range(TRIES):
            answer = await self._once(request, body, key, prefix)
            if answer is not None:
                return answer
            await asyncio.sleep(min(2.0, 0.1 * 2**tries))
        raise httpx.NetworkError(f"{TRIES} sends failed with the engine alive")

    async def _once(
        self, request: httpx.Request, body: dict[str, Any], key: str, prefix: str
    ) -> httpx.Response | None:
        """Sends until an engine that lives has answered; None where the network failed."""
        while True:
            suspect = bool(strikes := self._router.strikes(key))
            if strikes >= 2:
                raise SetAside
            tuned = body.get("model") != self._router.model
            seat = await self._router.take(prefix, suspect=suspect, tuned=tuned)
            seated = True
            try:
                answer, aboard = await self._try(seat, request, body)
                if answer is not None and answer.status_code < 500:
                    if not answer.is_closed:  # the reply is yet to come, and needs the seat
                        seated = False
                        return _passed_on(answer, stream=_Aboard(self, answer, seat, key))
                    self._router.acquit(key)
                    return answer
                if not await self._died(seat):
                    return answer
                if aboard:
                    self._router.strike(key, seat.slot, seat.generation)
            finally:  # only after the verdict: the next suspect must not board a dead engine
                if seated:
                    self._router.give(seat)

    async def _try(
        self, seat: Seat, request: httpx.Request, body: dict[str, Any]
    ) -> tuple[httpx.Response | None, bool]:
        """The answer, None where the network failed; and whether the engine had the request."""
        if not seat.tuned and not seat.bare:
            body = body | {"model": seat.slot.zero_name}
        try:
            return await self._send(seat.slot, request, body), True
        except httpx.TransportError as error:
            return None, not isinstance(error, httpx.ConnectError)

    async def aclose(self) -> None:
        """Closes this loop's connections."""
        wire = self._wires.pop(asyncio.get_running_loop(), None)
        if wire is not None:
            await wire.aclose()

    async def _send(
        self, slot: Slot, request: httpx.Request, body: dict[str, Any]
    ) -> httpx.Response:
        """The whole answer, or one that is open where a streamed reply begins."""
        headers = {"Content-Type": "application/json", "Host": httpx.URL(slot.url).netloc.decode()}
        if slot.api_key:
            headers["Authorization"] = f"Bearer {slot.api_key}"
        onward = httpx.Request(
            request.method,
            slot.url + request.url.raw_path.decode(),
            headers=headers,
            content=json.dumps(body).encode(),
            extensions=request.extensions,
        )
        answer = await self._wire().handle_async_request(onward)
        if body.get("stream") and answer.status_code == 200:
            return answer
        try:
            content = await answer.aread()
        finally:
            await answer.aclose()
        return _passed_on(answer, content=content)

    async def _died(self, seat: Seat) -> bool:
        slot = seat.slot
        for _ in range(int(VERDICT_S / 0.05)):
            if not slot.ready or slot.generation != seat.generation:
                return True
            await asyncio.sleep(0.05)
        return False

    def _wire(self) -> httpx.AsyncHTTPTransport:
        loop = asyncio.get_running_loop()
        if loop not in self._wires:
            # Shorter than the 5 s after which servers close idle connections themselves.
            limits = httpx.Limits(
                max_connections=None, max_keepalive_connections=512, keepalive_expiry=2.0
            )
            self._wires[loop] = httpx.AsyncHTTPTransport(limits=limits)
        return self._wires[loop]


class _Aboard(httpx.AsyncByteStream):
    """A streamed reply: has its seat, and answers for the engine's death, until it is closed."""

    def __init__(
        self, transport: PoolTransport, answer: httpx.Response, seat: Seat, key: str
    ) -> None:
        self._transport = transport
        self._answer = answer
        self._seat = seat
        self._key = key

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._answer.aiter_bytes():
                if b'data: {"error"' in chunk:  # may be the last that a dying engine says
                    await self._strike_if_died()
                yield chunk
        except httpx.TransportError:
            await self._strike_if_died()
            raise
        self._transport._router.acquit(self._key)

    async def aclose(self) -> None:
        try:
            await self._answer.aclose()
        finally:
            self._transport._router.give(self._seat)

    async def _strike_if_died(self) -> None:
        if await self._transport._died(self._seat):
            self._transport._router.strike(self._key, self._seat.slot, self._seat.generation)


def _passed_on(answer: httpx.Response, **body: Any) -> httpx.Response:
    kind = answer.headers.get("content-type", "application/json")
    return httpx.Response(answer.status_code, headers={"Content-Type": kind}, **body)


def as_text(body: dict[str, Any], controls: Sequence[str]) -> dict[str, Any]:
    """A request whose prompt and messages hold no control token: templates add those, not data."""
    plain = dict(body)
    if isinstance(body.get("prompt"), str):
        plain["prompt"] = break_up(body["prompt"], controls)
    if "messages" in body:
        plain["messages"] = [
            m | {"content": break_up(str(m["content"]), controls)} for m in body["messages"]
        ]
    return plain


def _fingerprint(body: dict[str, Any]) -> tuple[str, str]:
    """Hash of the whole request, and the part at its front that the prefix cache may share."""
    whole = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    messages = body.get("messages") or []
    text = str(body.get("prompt", ""))[:256]
    if messages:
        shared = messages[:-1] or messages
        text = json.dumps(shared) if messages[:-1] else str(messages[0].get("content", ""))[:256]
    return whole, hashlib.sha256((str(body.get("model")) + text).encode()).hexdigest()
