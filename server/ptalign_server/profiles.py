"""Resource profiles: which device, how many threads, how much memory, for engine and trainer.

The two have budgets of their own: two torch threads on a busy machine were seven times slower
than one, and an engine that spins on its threads starves the trainer beside it.
"""

from __future__ import annotations

import os
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ptalign.errors import InvalidInput


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EngineBudget(_Frozen):
    """What one generation engine may use."""

    device: Literal["cpu", "gpu"] = "cpu"
    engines: int = Field(1, ge=0, le=64)
    """Local engines. Two on a 2-core machine are slower than one."""
    threads: int = Field(1, ge=1, le=1024)
    """OpenMP threads."""
    kv_cache_gb: int = Field(1, ge=1, le=1024)
    """GiB of key-value cache (cpu only)."""
    gpu_memory_share: float = Field(0.85, gt=0, le=1)
    """Share of the device's memory (gpu only)."""
    max_sequences: int = Field(32, ge=1, le=4096)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


class TrainerBudget(_Frozen):
    """What one executor job may use."""

    device: str = "cpu"
    """torch device."""
    threads: int = Field(1, ge=1, le=1024)
    """OpenMP threads."""
    niceness: int = Field(5, ge=0, le=19)
    """Added to the job's scheduling priority, so that the gateway stays quick."""


class Profile(_Frozen):
    """Devices, threads and memory of one machine."""

    name: str
    engine: EngineBudget
    trainer: TrainerBudget
    lease: Literal["drain", "stop"]
    """What the engine does while the trainer has the device: `drain` keeps the process and sends
    it nothing; `stop` ends it, which frees its memory and costs a start afterwards."""


def cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0))


def cpu() -> Profile:
    """CPU only: float32 (bfloat16 is five times slower on AVX2), one engine.

    Engine and trainer never compute at the same time under the lease, so each may have all cores
    but half of the hardware threads of a large machine, past which neither gains.
    """
    threads = cores() if cores() <= 4 else cores() // 2
    return Profile(
        name="cpu",
        engine=EngineBudget(threads=threads),
        trainer=TrainerBudget(threads=threads),
        lease="drain",
    )


def gpu() -> Profile:
    """One GPU that engine and trainer share by turns: the engine stops for the trainer."""
    return Profile(
        name="gpu",
        engine=EngineBudget(device="gpu", threads=4, max_sequences=256, dtype="bfloat16"),
        trainer=TrainerBudget(device="cuda", threads=8),
        lease="stop",
    )


PROFILES = {"cpu": cpu, "gpu": gpu}


def profile(name: str) -> Profile:
    """The profile of this name, measured on this machine.

    Raises:
        InvalidInput: No such profile.
    """
    if name not in PROFILES:
        raise InvalidInput("profile", f"is one of {', '.join(sorted(PROFILES))}", f"not {name!r}")
    return PROFILES[name]()
