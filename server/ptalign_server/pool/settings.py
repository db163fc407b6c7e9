"""What the pool can be told and what it tells."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ptalign_server.profiles import Profile


class PoolSettings(BaseModel):
    """Settings of a `Pool`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["vllm", "remote", "scripted"] = "vllm"
    """vllm and scripted engines are started and watched here; remote ones only watched."""
    state: Path = Path(".ptalign")
    """Folder of the pid files and of the zero adapter; shared with remote engines."""
    urls: tuple[str, ...] = ()
    """Base addresses of remote engines."""
    served_name: str = ""
    """Name the engines know the bare model by; the catalogue name when empty."""
    engines: int = Field(1, ge=1, le=64)
    """Local engines."""
    device: Literal["cpu", "gpu"] = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    threads: int = Field(1, ge=1, le=1024)
    """OpenMP threads of one engine."""
    kv_cache_gb: int = Field(1, ge=1, le=1024)
    """GiB of key-value cache of one engine (cpu)."""
    gpu_memory_share: float = Field(0.85, gt=0, le=1)
    max_sequences: int = Field(32, ge=1, le=4096)
    """Sequences one engine computes at once."""
    queue_ahead: int = Field(4, ge=0, le=1024)
    """Requests sent to an engine beyond `max_sequences`, so that a finished one is replaced
    without waiting for our round trip."""
    max_model_len: int = Field(2048, ge=128, le=1_048_576)
    """Tokens of prompt plus completion."""
    max_loras: int = Field(2, ge=1, le=64)
    """Adapters in one batch, the zero adapter that carries base requests not counted."""
    max_lora_rank: Literal[8, 16, 32, 64, 128, 256] = 16
    start_timeout_s: float = Field(600.0, gt=0)
    """From the start of the process to its first answer, and again for each canary request, the
    first of which compiles kernels: seconds on an idle machine, minutes on a busy one."""
    start_attempts: int = Field(2, ge=1, le=100)
    """Starts that may fail in a row before the circuit opens."""
    max_deaths: int = Field(5, ge=1, le=1000)
    """Deaths in `death_window_s` that open the circuit."""
    death_window_s: float = Field(600.0, gt=0)
    backoff_s: float = Field(1.0, ge=0)
    """Wait before the first restart; doubles with each death in the window, at most 60 s."""
    health_every_s: float = Field(5.0, gt=0)
    stop_grace_s: float = Field(10.0, ge=0)
    """From SIGTERM to SIGKILL."""
    lease: Literal["drain", "stop"] = "drain"
    """What `paused` does with the engines, see `ptalign_server.profiles.Profile.lease`."""
    delay_seconds: float = Field(0.0, ge=0)
    """Scripted engines only: time per completion."""

    @classmethod
    def of(cls, profile: Profile, **values: object) -> PoolSettings:
        """The pool of a resource profile; `values` override."""
        budget = profile.engine.model_dump()
        budget["engines"] = max(1, budget["engines"])
        return cls.model_validate(budget | {"lease": profile.lease} | values)

    @property
    def in_flight(self) -> int:
        """Requests one engine is given at most."""
        return self.max_sequences + self.queue_ahead


class State(StrEnum):
    """Where one engine stands."""

    STARTING = "STARTING"
    READY = "READY"
    RESTARTING = "RESTARTING"
    PAUSED = "PAUSED"
    DOWN = "DOWN"
    CIRCUIT_OPEN = "CIRCUIT_OPEN"


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """One engine, as `Pool.status` shows it."""

    name: str
    url: str
    state: State
    pid: int
    """0 for remote engines and while there is no process."""
    restarts: int
    outstanding: int
    """Requests it is working on."""
    adapters: tuple[str, ...]
    log: tuple[str, ...]
    """Last log lines, redacted."""
