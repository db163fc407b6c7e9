"""An OpenAI-compatible server in a thread that judges by a rule of the test."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SAFE = "Safety: Safe\nCategories: None\nRefusal: No"
UNSAFE = "Safety: Unsafe\nCategories: None\nRefusal: No"


class Guard:
    """What the server answers, and what it was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.answer: str | int | Callable[[dict[str, Any]], str | int] = SAFE
        """A text, a status, or a rule that makes one of either from the request's body."""
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        """Authorization headers that came."""


@contextmanager
def guarding() -> Iterator[Guard]:
    """A guard model for the length of the block."""
    guard = Guard()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            guard.asked.append(body)
            guard.keys.add(self.headers.get("Authorization", ""))
            said = guard.answer(body) if callable(guard.answer) else guard.answer
            status, text = (200, said) if isinstance(said, str) else (said, "")
            choice = {"message": {"content": text}, "finish_reason": "stop"}
            data = json.dumps({"choices": [choice]}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    guard.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield guard
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
