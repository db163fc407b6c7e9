"""The server-sent events of a streamed chat completion, and what a refusal of one means."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator

import httpx

from ptalign.errors import EngineFailed, InvalidInput, PtalignError

UNFIT = frozenset({400, 413, 422})
"""Answers that find fault with what was asked: the same request will not succeed later."""
_CONTEXT = re.compile(rb"maximum context length is (\d+) tokens")


async def pieces_of(answer: httpx.Response) -> AsyncIterator[str]:
    """The text of one chat completion as it comes.

    Raises:
        InvalidInput: The server found fault with the messages.
        EngineFailed: It refused for a cause of its own, failed, or broke off.
    """
    if answer.status_code != 200:
        raise _refusal(answer.status_code, await answer.aread())
    whole = False
    async for line in _lines(answer):
        data = line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
        if data == b"[DONE]":
            whole = True
        elif data:
            event = json.loads(data)
            if "error" in event:
                raise EngineFailed("the engine failed in the middle of the reply")
            for choice in event["choices"]:
                if text := choice["delta"].get("content"):
                    yield text
    if not whole:
        raise EngineFailed("the engine's reply broke off")


async def _lines(answer: httpx.Response) -> AsyncIterator[bytes]:
    """Not httpx's lines: those end at U+2028 and U+0085 too, which may stand in a text."""
    rest = b""
    async for chunk in answer.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line


def _refusal(status: int, body: bytes) -> PtalignError:
    """Never with the server's own words: they may quote the prompt."""
    if status not in UNFIT:
        return EngineFailed(f"the engine answered HTTP {status}")
    if found := _CONTEXT.search(body):
        limit = f"are, with max_tokens, more than the engine's context of {int(found[1])} tokens"
        return InvalidInput("messages", limit, "Send fewer turns or a smaller max_tokens.")
    mend = "Send fewer or shorter turns, user and assistant by turns; the engine's log says more."
    return InvalidInput("messages", f"were refused by the engine (HTTP {status})", mend)
