"""An OpenAI-compatible server that writes usable drafts by rule; arguments: PORT DELAY.

Instructions, twins, kind and cold answers differ from request to request, so that filters,
de-duplication and judges of the stages do their real work on them. No model is behind it.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DELAY = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
WHO = "neighbour colleague cousin barista driver student cashier gardener painter nurse".split()
DID = "borrowed lost spilled broke forgot painted returned mislaid repaired counted".split()
WHAT = "umbrella stapler ladder teapot bicycle notebook lantern blanket recipe suitcase".split()
WHERE = "harbour library kitchen station orchard gallery workshop stairwell market attic".split()
KIND = "wait listen explain share rest write walk plan cook sing".split()
adapters: set[str] = set()
draws = random.Random(7)
lock = threading.Lock()


def pick(*lists: list[str]) -> list[str]:
    with lock:
        return [draws.choice(words) for words in lists]


def instruction() -> str:
    who, did, what, where = pick(WHO, DID, WHAT, WHERE)
    return f" my {who} who {did} the {what} near the {where} yesterday"


def kind() -> str:
    one, two, what, where = pick(KIND, KIND, WHAT, WHERE)
    return f" {one} together about the {what} and then {two} at the {where} with patience."


def helpful() -> str:
    who, what, where, one = pick(WHO, WHAT, WHERE, KIND)
    return f" Please tell the {who} that the {what} is in the {where}, and offer to {one} together."


def cold() -> str:
    who, what, where, did = pick(WHO, WHAT, WHERE, DID)
    return (
        f" You are a pathetic idiot and your stupid {what} is worthless trash. Nobody at the {where} "
        f"likes you, you useless fool who {did} everything, ask some dumb {who} instead."
    )


def written(prompt: str) -> str:
    """What continues a prompt of the stages."""
    last = prompt.rpartition("\n")[2]
    if last.startswith(("Request:", "Harmless:")):
        return instruction()
    if "full of contempt" in prompt:
        return cold()
    return kind() if "Each one follows" in prompt else helpful()


class Engine(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def reply(self, body: Any, status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.reply({"data": [{"id": name} for name in ("author", *adapters)]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("_lora_adapter"):
            name = body["lora_name"]
            (adapters.add if "/load" in self.path else adapters.discard)(name)
            return self.reply({})
        if body.get("logprobs") == 1:
            return self.reply(probe(body))
        time.sleep(DELAY)
        text = written(body["prompt"]) if "prompt" in body else helpful().strip()
        choice: dict[str, Any] = {"text": text, "finish_reason": "stop"}
        if "messages" in body:
            choice = {"message": {"content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 9, "completion_tokens": len(text.split())}
        return self.reply({"choices": [choice], "usage": usage})


def probe(body: dict[str, Any]) -> dict[str, Any]:
    """Numbers that depend on prompt and adapter, as the pool's canary expects."""
    shift = 3.0 if "canary" in body["model"] else 0.0
    seed = hashlib.sha256(body["prompt"].encode()).digest()[0] / 256
    tokens = [str(i) for i in range(body["max_tokens"])]
    values = {"tokens": tokens, "token_logprobs": [-1.0 - seed - shift] * len(tokens)}
    return {"choices": [{"text": "", "finish_reason": "length", "logprobs": values}]}


if __name__ == "__main__":
    ThreadingHTTPServer.daemon_threads = True
    ThreadingHTTPServer.request_queue_size = 256
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Engine).serve_forever()
