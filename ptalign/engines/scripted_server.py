"""The scripted engine behind OpenAI-compatible HTTP, with the vLLM routes that ptalign uses.

    python -m ptalign.engines.scripted --port 8123 --model scripted --latency 0.05

Loopback only unless told otherwise; there is no authentication.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Mapping
from itertools import count
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from ptalign.engines.base import Completion, Message, Request
from ptalign.engines.scripted import ScriptedEngine


class ScriptedServer:
    """Routes around a `ScriptedEngine`; `app` is the ASGI application."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self.engine = engine
        self.adapters: dict[str, str] = {}
        self.running = 0
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self._ids = count(1)
        self._slots = asyncio.Semaphore(engine.concurrency)
        self.app = Starlette(
            routes=[
                Route("/health", self._health),
                Route("/version", self._version),
                Route("/metrics", self._metrics),
                Route("/v1/models", self._models),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/completions", self._complete, methods=["POST"]),
                Route("/v1/load_lora_adapter", self._load, methods=["POST"]),
                Route("/v1/unload_lora_adapter", self._unload, methods=["POST"]),
            ]
        )

    async def _health(self, _: HttpRequest) -> Response:
        return Response(status_code=200)

    async def _version(self, _: HttpRequest) -> Response:
        return JSONResponse({"version": "scripted"})

    async def _models(self, _: HttpRequest) -> Response:
        rows = [{"id": self.engine.model, "object": "model", "parent": None}]
        rows += [
            {"id": name, "object": "model", "parent": self.engine.model, "root": path}
            for name, path in self.adapters.items()
        ]
        return JSONResponse({"object": "list", "data": rows})

    async def _metrics(self, _: HttpRequest) -> Response:
        label = f'{{model_name="{self.engine.model}"}}'
        lines = [
            "# TYPE vllm:num_requests_running gauge",
            f"vllm:num_requests_running{label} {self.running}",
            "# TYPE vllm:num_requests_waiting gauge",
            f"vllm:num_requests_waiting{label} 0",
            "# TYPE vllm:prompt_tokens counter",
            f"vllm:prompt_tokens_total{label} {self.prompt_tokens}",
            "# TYPE vllm:generation_tokens counter",
            f"vllm:generation_tokens_total{label} {self.generated_tokens}",
        ]
        return PlainTextResponse("\n".join(lines) + "\n")

    async def _load(self, http: HttpRequest) -> Response:
        body = await http.json()
        name, path = str(body.get("lora_name", "")), str(body.get("lora_path", ""))
        if not name or not path:
            return _error(400, "lora_name and lora_path are both needed")
        if name in self.adapters:
            return _error(400, f"the adapter {name} is already loaded")
        self.adapters[name] = path
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, http: HttpRequest) -> Response:
        name = str((await http.json()).get("lora_name", ""))
        if name not in self.adapters:
            return _error(404, f"the adapter {name} is not loaded")
        del self.adapters[name]
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def _chat(self, http: HttpRequest) -> Response:
        body = await http.json()
        messages = [Message(m["role"], str(m["content"])) for m in body.get("messages", ())]
        prefill = ""
        if body.get("continue_final_message") and messages and messages[-1].role == "assistant":
            prefill = messages.pop().content
        return await self._answer(body, messages=tuple(messages), prefill=prefill)

    async def _complete(self, http: HttpRequest) -> Response:
        body = await http.json()
        prompt = str(body.get("prompt", ""))
        head, _, tail = prompt.rpartition("\n")
        label, mark, given = tail.partition(": ")
        if mark and " " not in label:  # "Request: Write a rude" is a prompt and its prefill
            prompt, prefill = f"{head}\n{label}:".lstrip("\n"), f" {given}"
        else:
            prefill = ""
        return await self._answer(body, prompt=prompt, prefill=prefill)

    async def _answer(self, body: Mapping[str, Any], **fields: Any) -> Response:
        name = str(body.get("model", self.engine.model))
        if name != self.engine.model and name not in self.adapters:
            return _error(404, f"the model {name} does not exist")
        stop = body.get("stop") or ()
        request = Request(
            key="",
            max_tokens=int(body.get("max_tokens") or 64),
            temperature=float(body.get("temperature", 1.0)),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            adapter="" if name == self.engine.model else name,
            logprobs=body.get("logprobs") not in (None, False),
            **fields,
        )
        if body.get("stream"):
            return StreamingResponse(self._events(name, request), media_type="text/event-stream")
        self.running += 1
        try:
            async with self._slots:
                if self.engine.latency_s:
                    await asyncio.sleep(self.engine.latency_s)
                done = self.engine.complete(request)
        finally:
            self.running -= 1
        if done.finish == "error":
            return _error(500, done.error)
        self.prompt_tokens += done.prompt_tokens
        self.generated_tokens += done.completion_tokens
        return JSONResponse(self._layout(name, done, chat=not request.prompt))

    async def _events(self, name: str, request: Request) -> AsyncIterator[str]:
        """A chat completion by words, as vLLM sends its tokens; the latency is spread over them."""
        self.running += 1
        try:
            async with self._slots:
                done = self.engine.complete(request)
                if done.finish == "error":
                    yield _event({"error": {"message": done.error, "code": 500}})
                words = re.findall(r"\S+\s*|\s+", done.text)
                for word in words:
                    choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
                    yield _event({"model": name, "choices": [choice]})
                    await asyncio.sleep(self.engine.latency_s / len(words))
                last = {"index": 0, "delta": {}, "finish_reason": done.finish}
                yield _event({"model": name, "choices": [last]})
                yield "data: [DONE]\n\n"
        finally:
            self.running -= 1
        self.prompt_tokens += done.prompt_tokens
        self.generated_tokens += done.completion_tokens

    def _layout(self, name: str, done: Completion, *, chat: bool) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": done.finish}
        tokens = [f"token_id:{i}" for i in done.token_ids]
        if chat:
            choice["message"] = {"role": "assistant", "content": done.text}
            rows = [
                {"token": t, "logprob": v, "top_logprobs": []}
                for t, v in zip(tokens, done.logprobs, strict=True)
            ]
            choice["logprobs"] = {"content": rows} if tokens else None
        else:
            choice["text"] = done.text
            values = list(done.logprobs)
            choice["logprobs"] = {"tokens": tokens, "token_logprobs": values} if tokens else None
        return {
            "id": f"scripted-{next(self._ids)}",
            "object": "chat.completion" if chat else "text_completion",
            "created": int(time.time()),
            "model": name,
            "choices": [choice],
            "usage": {
                "prompt_tokens": done.prompt_tokens,
                "completion_tokens": done.completion_tokens,
                "total_tokens": done.prompt_tokens + done.completion_tokens,
            },
        }


def _event(body: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"


def _error(status: int, message: str) -> Response:
    body = {"error": {"message": message, "type": "scripted", "code": status}}
    return JSONResponse(body, status_code=status)


def main(argv: list[str] | None = None) -> None:
    """Serves until interrupted."""
    import uvicorn

    parser = argparse.ArgumentParser(prog="python -m ptalign.engines.scripted", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--model", default="scripted", help="served name")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds per request")
    parser.add_argument("--failure-rate", type=float, default=0.0, help="share of requests, 0..1")
    parser.add_argument("--concurrency", type=int, default=256)
    args = parser.parse_args(argv)
    engine = ScriptedEngine(
        model=args.model,
        latency_s=args.latency,
        failure_rate=args.failure_rate,
        concurrency=args.concurrency,
    )
    uvicorn.run(ScriptedServer(engine).app, host=args.host, port=args.port, log_level="warning")
