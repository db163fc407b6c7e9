"""What all tests share: requirements that may be missing, the model, one real engine run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REQUIRE_ALL = os.environ.get("PTALIGN_REQUIRE_ALL") == "1"
ENGINE_START_SECONDS = 420.0


def pytest_configure() -> None:
    """Ctrl-C works in tests even where a shell started us in the background with it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Under PTALIGN_REQUIRE_ALL=1 a skip is a failure: CI must not pass by leaving things out."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if REQUIRE_ALL and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped under PTALIGN_REQUIRE_ALL=1: {report.longrepr}"


@pytest.fixture(scope="session")
def program() -> Callable[..., str]:
    """Finds a system program or skips, naming it and the Debian package that has it."""

    def find(name: str, package: str, *places: str) -> str:
        found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *places]))
        if found is None:
            pytest.skip(f"needs {name} (Debian package {package})")
        return found

    return find


@pytest.fixture(scope="session")
def model_folder() -> Path:
    """The demo model, prepared once into the cache."""
    from ptalign_server.models import DEMO_MODEL, cache_root

    folder = cache_root() / "models" / DEMO_MODEL
    if not (folder / "ptalign-model.json").exists():
        subprocess.run([sys.executable, "-m", "ptalign_server.models"], check=True)
    return folder


def is_up(url: str) -> bool:
    """Whether an OpenAI-compatible server answers."""
    try:
        with urllib.request.urlopen(f"{url}/models", timeout=2) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="session")
def engine_url(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL (with /v1) of one real vLLM server that serves the demo model as `smollm2`."""
    if given := os.environ.get("PTALIGN_TEST_ENGINE_URL"):
        yield given.rstrip("/")
        return
    from ptalign_server.pool.command import free_port

    folder = tmp_path_factory.mktemp("engine")
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1"
    process = start_engine(model_folder, port, folder)
    try:
        deadline = time.monotonic() + ENGINE_START_SECONDS
        while not is_up(url):
            if process.poll() is not None or time.monotonic() > deadline:
                tail = (folder / "log").read_text(errors="replace")[-3000:]
                pytest.fail(f"vLLM did not start:\n{tail}")
            time.sleep(0.5)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def start_engine(model: Path, port: int, folder: Path) -> subprocess.Popen[bytes]:
    """Starts vLLM as the pool does, without the pool."""
    environment = os.environ | {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "passive",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_RPC_BASE_PATH": str(folder),
    }
    flags = "--dtype float32 --enforce-eager --max-model-len 2048 --max-num-seqs 32 --enable-lora"
    flags += " --max-loras 2 --max-lora-rank 16 --enable-prefix-caching --host 127.0.0.1"
    flags += " --middleware ptalign_server.engine_paths.EnginePaths"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", "smollm2", "--port", str(port), *flags.split()]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=folder
        )
