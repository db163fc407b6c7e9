"""A small chat backend that serves the newest adapter that PASSed, and gives back what it learns.

It does the two things a chat backend does with ptalign:

1. `ResolveAdapter`: asks which adapter to serve, downloads it (verified, resumable), loads it into
   its own vLLM under a name that carries the digest, and moves the traffic over. No restart. One
   that a later evaluation takes back is out of the traffic at the next look.
2. Seeds: people report replies; the requests that led to them are redacted here, sent to
   GenerateInstructions, and redacted again by the server before anything is stored. A seed is one
   request of up to 60 words (150 characters of Japanese): a reply or a whole chat is rejected,
   or taken for a request.

    export VLLM_ALLOW_RUNTIME_LORA_UPDATING=True
    python -m vllm.entrypoints.openai.api_server --model MODEL --enable-lora ...
    python examples/chat_backend.py --engine http://127.0.0.1:8000 --served-name MODEL
    curl -d '{"message": "Hi"}' http://127.0.0.1:8090/chat
    curl -d '{"excerpt": "Write ..."}' http://127.0.0.1:8090/report

Standard library and ptalign_client only.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import threading
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ptalign_client import Adapter, Client, InvalidArgument, NotFound, PtalignError

# As the server writes them: brackets around anything but capitals are no request to it.
REDACTIONS = (
    (re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]+"), "[EMAIL]"),
    (re.compile(r"https?://\S+"), "[URL]"),
    (re.compile(r"\+?\d(?:[ -]?\d){6,}"), "[NUMBER]"),
)
ENOUGH_REPORTS = 5
"""Excerpts that make a new instruction set worth while."""
MOST_REPORTS = 100
"""The newest that are kept while ptalign cannot be reached."""


def redact(text: str) -> str:
    """The text without mail addresses, links and long numbers."""
    for pattern, word in REDACTIONS:
        text = pattern.sub(word, text)
    return text


@dataclass
class Engine:
    """The backend's own OpenAI-compatible engine."""

    url: str
    base: str
    serving: str = ""
    """Name of the loaded adapter; empty: the bare model."""

    def post(self, path: str, body: dict[str, Any]) -> bytes:
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return bytes(answer.read())

    def reply(self, message: str) -> str:
        """One reply by whatever is served now."""
        body = {
            "model": self.serving or self.base,
            "messages": [{"role": "user", "content": message}],
            "max_tokens": 128,
        }
        return str(
            json.loads(self.post("/v1/chat/completions", body))["choices"][0]["message"]["content"]
        )

    def switch(self, name: str, folder: Path) -> None:
        """Loads an adapter and moves new requests to it. Its name is never used again for
        another: engines cache by name."""
        try:
            self.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        except urllib.error.HTTPError as error:
            if b"already been loaded" not in error.read():
                raise
        self.serving = name


@dataclass(frozen=True)
class Batch:
    """Excerpts that go out together, under one id however often they are sent: ptalign starts one
    operation for it, although an answer may not have come back."""

    excerpts: tuple[str, ...]
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))


@dataclass
class Backend:
    """What the backend knows of ptalign."""

    client: Client
    engine: Engine
    model: str
    policy: str
    folder: Path
    excerpts: list[str] = field(default_factory=list)
    unsent: list[Batch] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def refresh(self) -> None:
        """Serves the newest adapter that PASSed, or the bare model; without ptalign, all stays."""
        try:
            adapter = self.released()
            if adapter is None:
                if self.engine.serving:
                    self.engine.serving = ""
                    print(f"no adapter PASSes: now serving {self.engine.base}", flush=True)
                return
            name = "ptalign-" + adapter.weights_sha256.removeprefix("sha256:")[:16]
            if name != self.engine.serving:
                folder = self.folder / name
                self.client.download_all(adapter, folder)
                self.engine.switch(name, folder.absolute())
                print(f"now serving {adapter.name} as {name}", flush=True)
        except (PtalignError, OSError) as error:
            print(f"kept {self.engine.serving or self.engine.base}: {error}", flush=True)

    def released(self) -> Adapter | None:
        """The adapter to serve; None: none has PASSed, or it was taken back."""
        try:
            return self.client.resolve_adapter(model=self.model, policy=self.policy).adapter
        except NotFound as error:
            if error.reason != "RESOURCE_NOT_FOUND":  # a model or policy that ptalign lacks
                raise
            return None

    def keep_fresh(self, seconds: float, stop: threading.Event) -> None:
        while not stop.is_set():
            self.refresh()
            stop.wait(seconds)

    def report(self, excerpt: str) -> dict[str, Any]:
        """Keeps a request, redacted; enough of them start a new instruction set.

        Raises:
            ValueError: There is nothing in it, for which ptalign would refuse all of them.
            InvalidArgument: ptalign refuses these, and would again: they are dropped.
            PtalignError: They could not be sent; the next report tries again.
        """
        if not excerpt.strip():
            raise ValueError("an excerpt is empty")
        with self.lock:
            self.excerpts.append(redact(excerpt.strip())[:2000])
            if len(self.excerpts) == ENOUGH_REPORTS:
                self.unsent.append(Batch(tuple(self.excerpts)))
                self.excerpts = []
                del self.unsent[: -MOST_REPORTS // ENOUGH_REPORTS]
            if not self.unsent:
                return {"kept": len(self.excerpts)}
            batch = self.unsent.pop(0)
        try:
            running = self.client.generate_instructions(
                model=self.model,
                policy=self.policy,
                count=4 * len(batch.excerpts),
                excerpts=batch.excerpts,
                request_id=batch.request_id,
            )
        except InvalidArgument:
            raise
        except PtalignError:
            with self.lock:
                self.unsent.insert(0, batch)
            raise
        return {"operation": running.name}


def handler(backend: Backend) -> type[BaseHTTPRequestHandler]:
    """The two routes."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if self.path == "/chat":
                    serving = backend.engine.serving
                    reply = backend.engine.reply(str(body["message"]))
                    self.answer(200, {"reply": reply, "adapter": serving})
                elif self.path == "/report":
                    self.answer(202, backend.report(str(body["excerpt"])))
                else:
                    self.answer(404, {"error": "POST /chat or /report"})
            except InvalidArgument as error:
                self.answer(400, {"error": str(error)})
            except (KeyError, TypeError, ValueError):
                self.answer(400, {"error": 'send {"message": ...} or {"excerpt": ...}'})
            except (PtalignError, OSError) as error:
                self.answer(503, {"error": str(error)})

        def answer(self, code: int, body: dict[str, Any]) -> None:
            payload = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_: object) -> None:
            """Chats stay out of logs."""

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", default="http://127.0.0.1:8000", help="OpenAI-compatible URL")
    parser.add_argument("--served-name", default="smollm2", help="bare model's name there")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="name at ptalign")
    parser.add_argument("--policy", default="tone-en")
    parser.add_argument("--port", type=int, default=8090)
    parser.add_argument("--refresh", type=float, default=60.0, help="seconds")
    options = parser.parse_args()
    stop = threading.Event()
    with Client() as client, tempfile.TemporaryDirectory(prefix="ptalign-backend-") as folder:
        engine = Engine(options.engine.rstrip("/"), options.served_name)
        backend = Backend(client, engine, options.model, options.policy, Path(folder))
        fresh = threading.Thread(target=backend.keep_fresh, args=(options.refresh, stop))
        fresh.start()
        server = ThreadingHTTPServer(("127.0.0.1", options.port), handler(backend))
        print(f"chat backend on http://127.0.0.1:{server.server_port}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass
        finally:
            stop.set()
            server.server_close()
            fresh.join()


if __name__ == "__main__":
    main()
