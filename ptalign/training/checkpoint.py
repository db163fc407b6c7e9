"""Checkpoints: whole or absent, checked by SHA-256.

A resume on the CPU with as many threads is exact to the bit. On a GPU it goes on from the same
numbers, but kernels of attention's backward pass add in no fixed order.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ptalign.disk import sync
from ptalign.errors import DataDamaged, InvalidInput
from ptalign.training.lora import sha256_of

T = TypeVar("T")

KEPT = 2
"""Checkpoints kept: the newest, and one to fall back to when it is damaged."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a run needs to go on as if it had never stopped."""

    step: int
    """Steps done."""
    adapter: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    state: Mapping[str, Any]
    """JSON: control of both weights, ledger."""
    rng: Tensor
    """uint8, torch's generator state."""
    device_rng: Tensor | None = None
    """uint8, the GPU's generator state, which LoRA's dropout draws from there."""


def save(folder: Path, checkpoint: Checkpoint, fingerprint: str) -> Path:
    """Writes ``step-<n>`` beside the others, by an atomic rename, and drops old ones.

    Args:
        folder: The run's checkpoint folder.
        checkpoint: What to keep.
        fingerprint: Digest of the run's inputs; a resume under other inputs is refused.
    """
    final = folder / f"step-{checkpoint.step:06d}"
    partial = folder / f".partial-{os.getpid()}-{checkpoint.step:06d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write_tensors(partial / "adapter.safetensors", checkpoint.adapter)
    generators = {"rng": checkpoint.rng}
    if checkpoint.device_rng is not None:
        generators["device_rng"] = checkpoint.device_rng
    _write_tensors(partial / "optimizer.safetensors", {**checkpoint.optimizer, **generators})
    body = json.dumps(
        {"step": checkpoint.step, "fingerprint": fingerprint, "state": dict(checkpoint.state)}
    )
    (partial / "state.json").write_text(body, "utf-8")
    _write_manifest(partial)
    _publish(partial, final)
    for old in _steps(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def latest(folder: Path, *fingerprints: str) -> Checkpoint | None:
    """The newest undamaged checkpoint; None when there is none.

    Raises:
        InvalidInput: It belongs to a run with other inputs.
        DataDamaged: There are checkpoints and all are damaged.
    """
    for left in folder.glob(".partial-*"):
        shutil.rmtree(left, ignore_errors=True)
    return _newest(folder, lambda step: _read(step, fingerprints))


def check(folder: Path, *fingerprints: str) -> None:
    """Raises what `latest` would, and loads no tensor for it."""
    _newest(folder, lambda step: _state(step, fingerprints))


def _newest(folder: Path, read: Callable[[Path], T]) -> T | None:
    damage: DataDamaged | None = None
    for step in reversed(_steps(folder)):
        try:
            return read(step)
        except DataDamaged as error:
            damage = damage or error
    if damage is not None:
        raise damage
    return None


def _read(folder: Path, fingerprints: Sequence[str]) -> Checkpoint:
    body = _state(folder, fingerprints)
    optimizer = load_file(folder / "optimizer.safetensors")
    rng, device_rng = optimizer.pop("rng"), optimizer.pop("device_rng", None)
    adapter = load_file(folder / "adapter.safetensors")
    return Checkpoint(int(body["step"]), adapter, optimizer, body["state"], rng, device_rng)


def _state(folder: Path, fingerprints: Sequence[str]) -> dict[str, Any]:
    _check_manifest(folder)
    body: dict[str, Any] = json.loads((folder / "state.json").read_text("utf-8"))
    if body["fingerprint"] not in fingerprints:
        raise InvalidInput(
            "resume_from",
            "its checkpoint comes from other inputs (pairs, model, method or settings)",
            "Resume with the same inputs, or start a new run (in the library: another `out`, or "
            "resume=False).",
        )
    return body


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, file)


def _write_manifest(folder: Path) -> None:
    files = sorted(folder.iterdir())
    sums = {file.name: sha256_of(file) for file in files}
    (folder / "manifest.json").write_text(json.dumps(sums, indent=1), "utf-8")
    for file in [*files, folder / "manifest.json"]:
        sync(file)


def _publish(partial: Path, final: Path) -> None:
    """Gives a whole checkpoint its name."""
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    sync(final.parent)


def _check_manifest(folder: Path) -> None:
    try:
        sums = json.loads((folder / "manifest.json").read_text("utf-8"))
        bad = [name for name, digest in sums.items() if sha256_of(folder / name) != digest]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DataDamaged(f"checkpoint {folder.name}: its manifest cannot be read") from error
    missing = {"adapter.safetensors", "optimizer.safetensors", "state.json"} - sums.keys()
    if bad or missing:
        names = ", ".join(sorted({*bad, *missing}))
        raise DataDamaged(f"checkpoint {folder.name}: {names} changed on disk")


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """AdamW's moments and step counts by ``name/field``."""
    state = optimizer.state_dict()["state"]
    return {
        f"{names[index]}/{field}": value
        for index, fields in state.items()
        for field, value in fields.items()
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer, names: list[str], tensors: Mapping[str, Tensor]
) -> None:
    """The inverse of `optimizer_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, field = key.rpartition("/")
        state.setdefault(names.index(name), {})[field] = value
    whole = optimizer.state_dict()
    whole["state"] = state
    optimizer.load_state_dict(whole)
