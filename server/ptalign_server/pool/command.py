"""How an engine process is started: program, flags, environment."""

from __future__ import annotations

import secrets
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ptalign.nouns import ModelSpec
from ptalign_server.pool import lora_cpu
from ptalign_server.pool.adapters import layer_linears
from ptalign_server.pool.settings import PoolSettings
from ptalign_server.processes import clean_environment


@dataclass(frozen=True)
class EngineCommand:
    """Starts one engine, once: each has a port and a key of its own."""

    port: int
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    api_key: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def command_for(settings: PoolSettings, model: ModelSpec) -> EngineCommand:
    """The command that starts one local engine, on a free port and with a fresh key."""
    port = free_port()
    name = settings.served_name or model.name
    if settings.kind == "scripted":
        argv = [sys.executable, "-m", "ptalign.engines.scripted", "--host", "127.0.0.1"]
        argv += ["--port", str(port), "--model", name, "--latency", str(settings.delay_seconds)]
        return EngineCommand(port, tuple(argv), clean_environment())
    key = secrets.token_urlsafe(24)
    argv = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1"]
    argv += ["--port", str(port), "--model", model.path, "--served-model-name", name]
    # The key guards /v1 alone, and an adapter can be loaded by another route.
    argv += ["--middleware", "ptalign_server.engine_paths.EnginePaths"]
    argv += _flags(settings)
    if settings.device == "cpu":
        argv += _cpu_flags(Path(model.path))
    return EngineCommand(port, tuple(argv), _environment(settings, key), key)


def _flags(settings: PoolSettings) -> list[str]:
    flags = ["--dtype", settings.dtype, "--max-model-len", str(settings.max_model_len)]
    flags += ["--max-num-seqs", str(settings.max_sequences), "--enable-prefix-caching"]
    # One slot more than the adapters of a batch: the zero adapter of base requests needs its own.
    flags += ["--enable-lora", "--max-loras", str(settings.max_loras + 1)]
    flags += ["--max-lora-rank", str(settings.max_lora_rank)]
    # A request means what it says: no defaults of the model folder's generation_config.json.
    flags += ["--generation-config", "vllm"]
    flags += ["--max-cpu-loras", str(settings.max_loras + 9), "--disable-uvicorn-access-log"]
    if settings.device == "cpu":
        return flags
    return [*flags, "--gpu-memory-utilization", str(settings.gpu_memory_share)]


def _cpu_flags(model: Path) -> list[str]:
    # torch.compile adds two minutes of start-up for 6-19 %. A worker in a process of its own leaves
    # the engine's core spinning while it waits. And the head would add an adapter's logits, all
    # zeros, over the whole vocabulary for every token: ours never touch it. See docs/adr/0007.
    flags = ["--enforce-eager", "--distributed-executor-backend", "uni"]
    # The CPU's blocks of 128 tokens leave 64 of a shared prefix to be computed again, on average.
    flags += ["--block-size", "32"]
    linears = layer_linears(model)
    return [*flags, "--lora-target-modules", *linears] if linears else flags


def _environment(settings: PoolSettings, key: str) -> dict[str, str]:
    values = {
        "VLLM_API_KEY": key,  # another user of this machine cannot use or read the engine
        "VLLM_RPC_BASE_PATH": "{folder}",  # sockets go with the child's private folder
        # Kernels compiled by the first request; in TMPDIR each restart would compile them again.
        "TORCHINDUCTOR_CACHE_DIR": str(settings.state.absolute() / "kernels"),
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "75",  # longer than any client here keeps a connection
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if settings.device == "cpu":
        values |= {
            "VLLM_CPU_KVCACHE_SPACE": str(settings.kv_cache_gb),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # `auto` puts two engines on the same core
            "OMP_NUM_THREADS": str(settings.threads),
            "OMP_WAIT_POLICY": "passive",
            lora_cpu.VARIABLE: "1",
            # Without it vLLM overrides `--distributed-executor-backend uni`; the server's engine
            # has a process of its own either way.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        }
    else:
        # FlashInfer's sampler is compiled with nvcc while the engine starts, and slim images have
        # none. It is for top_p and top_k, which no request here sets: vLLM samples without it then
        # in any case. Read in vLLM 0.32 (v1/sample/ops/topk_topp_sampler.py), not run on a GPU.
        values["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
    return clean_environment(values)


def free_port() -> int:
    """A loopback port that was free a moment ago; a start that loses the race is retried."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
