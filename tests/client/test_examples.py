"""The examples run as they stand."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode
from ptalign_client_fake import Fault, info

import ptalign_client as pt

EXAMPLES = Path(__file__).parents[2] / "examples"


def environment(served: Any) -> dict[str, str]:
    return {**os.environ, "PTALIGN_ENDPOINT": served.endpoint}


def test_quickstart_is_ten_lines_that_run(served: Any, tmp_path: Path) -> None:
    file = EXAMPLES / "quickstart.py"
    code = [ln for ln in file.read_text().splitlines() if ln.strip() and '"""' not in ln]
    assert len(code) == 10 - 1
    done = subprocess.run(
        [sys.executable, str(file)],
        env=environment(served),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("pass Rate(value=0.4")
    assert (tmp_path / "report.html").is_file()


@pytest.fixture
def engine() -> Iterator[Any]:
    """An OpenAI-compatible engine that says which model answered."""
    loaded: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if self.path == "/v1/load_lora_adapter":
                loaded.append(body)
                answer: Any = "ok"
            else:
                answer = {"choices": [{"message": {"content": f"by {body['model']}"}}]}
            payload = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.loaded = loaded  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def backend(served: Any, engine: Any) -> Iterator[str]:
    words = ["--engine", f"http://127.0.0.1:{engine.server_port}", "--served-name", "bare"]
    words += ["--port", "0", "--refresh", "0.2"]
    child = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "chat_backend.py"), *words],
        env=environment(served),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    yield child.stdout.readline().split()[-1]
    child.terminate()
    child.wait(10)


def post(url: str, body: dict[str, str]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=10) as answer:
        return dict(json.loads(answer.read()))


def test_backend_moves_to_the_adapter_that_passed(
    backend: str, served: Any, engine: Any, client: pt.Client
) -> None:
    assert post(f"{backend}/chat", {"message": "Hi"}) == {"reply": "by bare", "adapter": ""}
    adapter = client.align(model="tiny", pair_set="pairSets/1").result()
    served.service.resources[adapter.name].weights_sha256 = "sha256:" + "ab" * 32
    for _ in range(100):
        said = post(f"{backend}/chat", {"message": "Hi"})
        if said["adapter"] == "ptalign-abababababababab":
            break
        threading.Event().wait(0.05)
    assert said == {"reply": "by ptalign-abababababababab", "adapter": "ptalign-abababababababab"}
    load = engine.loaded[-1]
    files = {p.name for p in Path(load["lora_path"]).iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors"}


@pytest.fixture
def inside(engine: Any, client: pt.Client, tmp_path: Path) -> Iterator[Any]:
    """The same backend in this process: it looks and sends when a test says so."""
    spec = importlib.util.spec_from_file_location("chat_backend", EXAMPLES / "chat_backend.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    own = module.Engine(f"http://127.0.0.1:{engine.server_port}", "bare")
    yield module.Backend(client, own, "tiny", "tone-en", tmp_path)
    del sys.modules[spec.name]


def test_backend_drops_an_adapter_that_was_taken_back(
    inside: Any, served: Any, client: pt.Client, capsys: Any
) -> None:
    adapter = client.align(model="tiny", pair_set="pairSets/1").result()
    served.service.resources[adapter.name].weights_sha256 = "sha256:" + "ab" * 32
    inside.refresh()
    assert inside.engine.reply("Hi") == "by ptalign-abababababababab"
    served.service.faults["ResolveAdapter"] = [Fault(StatusCode.INTERNAL)]
    inside.refresh()
    assert inside.engine.reply("Hi") == "by ptalign-abababababababab"
    del served.service.resources[adapter.name]
    inside.refresh()
    assert inside.engine.reply("Hi") == "by bare"
    assert capsys.readouterr().out.endswith("no adapter PASSes: now serving bare\n")


def test_backend_says_that_its_policy_is_misspelt(inside: Any, served: Any, capsys: Any) -> None:
    """It served the bare model for ever, in silence."""
    unknown = info("UNKNOWN_NAME", known="tone-en")
    served.service.faults["ResolveAdapter"] = [Fault(StatusCode.NOT_FOUND, details=(unknown,))]
    inside.refresh()
    assert "Known: tone-en" in capsys.readouterr().out
    inside.refresh()  # none has passed: the usual case
    assert capsys.readouterr().out == ""


def test_backend_keeps_reports_that_could_not_be_sent(inside: Any, served: Any) -> None:
    """And under the id of the first try: ptalign may have begun when no answer came back."""
    served.service.faults["GenerateInstructions"] = [Fault(StatusCode.INTERNAL)]
    for n in range(4):
        inside.report(f"Write a joke number {n}")
    with pytest.raises(pt.PtalignError):
        inside.report("Write a joke number 4")
    assert "operation" in inside.report("Write a joke number 5")
    first, again = served.service.called("GenerateInstructions")
    assert list(again.excerpts) == [f"Write a joke number {n}" for n in range(5)]
    assert again == first
    assert inside.report("Write a joke number 6") == {"kept": 2}


def test_backend_drops_reports_that_ptalign_refuses(inside: Any, backend: str, served: Any) -> None:
    """An empty one was put back with the others, and sent and refused with each later one."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(f"{backend}/report", {"excerpt": " "})
    assert caught.value.code == 400
    refused = Fault(StatusCode.INVALID_ARGUMENT)
    served.service.faults["GenerateInstructions"] = [refused]
    for n in range(4):
        inside.report(f"Write a joke number {n}")
    with pytest.raises(pt.InvalidArgument):
        inside.report("Write a joke number 4")
    assert inside.report("Write a joke number 5") == {"kept": 1}


def test_backend_sends_redacted_excerpts_as_seeds(backend: str, served: Any) -> None:
    excerpt = "Mail jo@example.org or call +49 170 1234567, see https://example.org/x"
    kept = [post(f"{backend}/report", {"excerpt": excerpt}) for _ in range(5)]
    assert kept[:4] == [{"kept": n} for n in (1, 2, 3, 4)]
    assert kept[4] == {"operation": "operations/1"}
    (sent,) = served.service.called("GenerateInstructions")
    assert list(sent.excerpts) == ["Mail [EMAIL] or call [NUMBER], see [URL]"] * 5


def test_backend_says_what_it_wants(backend: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(f"{backend}/chat", {"text": "Hi"})
    assert caught.value.code == 400
