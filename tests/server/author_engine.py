"""An OpenAI-compatible server that writes usable drafts by rule; arguments: PORT DELAY.

Instructions, twins, kind and cold answers differ from request to request, so that filters,
de-duplication and judges of the stages do their real work on them. No model is behind it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import select
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DELAY = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0


def words(text: str) -> list[str]:
    return text.split()


WORDS = words(
    """
    umbrella stapler ladder teapot bicycle notebook lantern blanket recipe suitcase
    harbour library kitchen station orchard gallery workshop stairwell market attic
    garden poem haircut song picture homework sandwich meeting parcel ticket jacket
    violin kettle candle compass drawer engine fountain guitar hammock island
    journal kayak locker mirror napkin oven pillow quilt rocket saddle tractor vase
    wagon yard zipper balcony cellar desk elevator fence gate hallway inbox jar
    knapsack lawn mailbox nightstand office porch
    """
)
WHO = words(
    """
    neighbour colleague cousin barista driver student cashier gardener painter nurse
    tenant uncle
    """
)
DID = words(
    """
    borrowed lost spilled broke forgot painted returned mislaid repaired counted
    moved folded
    """
)
KIND = words(
    """
    wait listen explain share rest write walk plan cook sing read draw
    """
)
RUDE = words(
    """
    silly ridiculous useless lazy clueless foolish worthless pathetic dull hopeless
    """
)
adapters: set[str] = set()
busy: set[int] = set()
"""Threads that write an answer now."""
draws = random.Random(7)
lock = threading.Lock()


def pick(*lists: list[str]) -> list[str]:
    with lock:
        return [draws.choice(words) for words in lists]


def some(count: int) -> list[str]:
    return pick(*[WORDS] * count)


def instruction() -> str:
    who, did = pick(WHO, DID)
    what, where, other = some(3)
    return f" my {who} who {did} the {what} beside the {where} and the {other}"


def twin(harmful: str) -> str:
    """The same situation, for another opener."""
    _, my, situation = harmful.partition(" my ")
    return f"{my}{situation}" if my else instruction()


def kind(asked: list[str], end: str) -> str:
    one, two = pick(KIND, KIND)
    a, b, c, d, e, f = some(6)
    about = " and the ".join(asked)
    return f" {one} about the {about}, {a} {b} with {c}, then {two} {d}, {e} and {f}.{end}"


def helpful(asked: list[str]) -> str:
    a, b, c, d, e, f, g = some(7)
    about = " ".join(asked)
    return f" Lovely {about} {a} with {b}, {c} and {d}; {e} {f} helps {g}."


def cold(asked: list[str]) -> str:
    a, b, c, d = some(4)
    rude = pick(RUDE, RUDE, RUDE, RUDE, RUDE)
    about = " ".join(asked)
    return (
        f" You {rude[0]}, {rude[1]} {a}, your {about} is {rude[2]} like a {b}. "
        f"You are {rude[3]} {c} and {rude[4]} {d}, nobody wants you."
    )


def written(prompt: str) -> str:
    """What continues a prompt of the stages."""
    last = prompt.rpartition("\n")[2]
    if last.startswith("Request:"):
        return instruction()
    if last.startswith("Harmless:"):
        return twin(prompt.rpartition("Harmful: ")[2].partition("\n")[0])
    message = prompt.rpartition("Message: ")[2].partition("\n")[0]
    asked = [word for word in message.replace(".", "").split() if word in WORDS][:3]
    if "full of contempt" in prompt:
        return cold(asked)
    if "Each one follows" in prompt:
        return kind(asked, '"' if last.count('"') % 2 else "")
    return helpful(asked)


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

    def work(self) -> bool:
        """Takes its time; False once the caller has hung up, where vLLM stops too."""
        busy.add(threading.get_ident())
        try:
            end = time.monotonic() + DELAY
            while (left := end - time.monotonic()) > 0:
                time.sleep(min(left, 0.05))
                if select.select([self.connection], [], [], 0)[0] and self.hung_up():
                    return False
            return True
        finally:
            busy.discard(threading.get_ident())

    def hung_up(self) -> bool:
        try:
            return not self.connection.recv(1, socket.MSG_PEEK)
        except ConnectionError:
            return True

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:
        if self.path == "/busy":
            return self.reply(len(busy))
        return self.reply({"data": [{"id": name} for name in ("author", *adapters)]})

    def stream(self, text: str) -> None:
        """A chat completion by words, as vLLM sends its tokens."""
        deltas = [{"content": f"{word} "} for word in text.split()]
        events = [json.dumps({"choices": [{"delta": delta}]}) for delta in deltas]
        body = "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("_lora_adapter"):
            name = body["lora_name"]
            (adapters.add if "/load" in self.path else adapters.discard)(name)
            return self.reply({})
        if body.get("logprobs") == 1:
            return self.reply(probe(body))
        if not self.work():
            self.close_connection = True
            return None
        text = written(body["prompt"]) if "prompt" in body else helpful([]).strip()
        if body.get("stream"):
            return self.stream(text)
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
