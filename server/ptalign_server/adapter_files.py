"""What an adapter folder may hold, checked before any library opens a file of it.

PEFT and vLLM fall back to `torch.load` for ``.bin`` files, import the library that `auto_mapping`
names, and trust the header of a safetensors file to be sound. None of them gets the chance.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ptalign.errors import DataDamaged, NotReady, Unsupported

SUFFIXES = frozenset({".safetensors", ".json"})
MAX_FILES = 16
MAX_JSON = 1 << 20
MAX_HEADER = 8 << 20
RUNS_CODE = ("auto_map", "auto_mapping", "megatron_config", "corda_config", "eva_config")
"""Keys of adapter_config.json that make PEFT import modules or load other files."""
BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8}
BITS |= {"U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8}


def check_folder(folder: Path) -> None:
    """Refuses everything but plain safetensors and json files of a LoRA adapter.

    Raises:
        NotReady: The folder or a file that every adapter has is missing.
        Unsupported: A file kind, link, name or config key that could run code or lead elsewhere.
        DataDamaged: A file does not have the form its ending promises.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise NotReady(
            f"adapter {folder.name}: adapter_config.json is missing, or its folder is a link"
        )
    files = sorted(folder.iterdir())
    if len(files) > MAX_FILES:
        raise Unsupported(f"adapter {folder.name}: holds more than {MAX_FILES} files")
    for file in files:
        _check_kind(folder, file)
    for file in files:
        if file.suffix == ".safetensors":
            check_safetensors(file)
    config = folder / "adapter_config.json"
    if not config.is_file() or not (folder / "adapter_model.safetensors").is_file():
        raise NotReady(
            f"adapter {folder.name}: adapter_config.json or adapter_model.safetensors is missing"
        )
    check_config(config)


def _check_kind(folder: Path, file: Path) -> None:
    if not stat.S_ISREG(file.lstat().st_mode):
        raise Unsupported(f"adapter {folder.name}: {file.name!r} is a link or no plain file")
    if file.suffix not in SUFFIXES or file.name.startswith("."):
        raise Unsupported(
            f"adapter {folder.name}: {file.name} is refused, only safetensors and json are read"
        )


def check_config(file: Path) -> Mapping[str, Any]:
    """The content of adapter_config.json, once it is known to be a plain LoRA's."""
    if file.stat().st_size > MAX_JSON:
        raise DataDamaged(f"{file.name} is larger than {MAX_JSON} bytes")
    content = _object(file.read_bytes(), file.name)
    if content.get("peft_type") != "LORA":
        raise Unsupported(f"{file.name}: peft_type must be LORA")
    for key in RUNS_CODE:
        if content.get(key):
            raise Unsupported(f"{file.name}: {key} is refused, it would load code or other files")
    return content


def check_safetensors(file: Path) -> None:
    """Checks that header and data are sound: sizes match shapes, nothing overlaps or is hidden."""
    total = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or length > min(MAX_HEADER, total - 8):
            raise DataDamaged(f"{file.name}: its header is larger than the file or {MAX_HEADER}")
        header = _object(stream.read(length), file.name)
    header.pop("__metadata__", None)
    spans = sorted(_span(file.name, name, entry) for name, entry in header.items())
    end = 0
    for begin, stop in spans:
        if begin != end:
            raise DataDamaged(f"{file.name}: tensors overlap or leave a gap at byte {begin}")
        end = stop
    if end != total - 8 - length:
        raise DataDamaged(f"{file.name}: holds {total - 8 - length} bytes, its header says {end}")


def _span(file: str, name: str, entry: Any) -> tuple[int, int]:
    try:
        bits, size = BITS[entry["dtype"]], 1
        for side in entry["shape"]:
            if type(side) is not int or not 0 <= side < 1 << 40:
                raise ValueError
            size *= side
        begin, end = entry["data_offsets"]
        sound = type(begin) is int and type(end) is int and begin >= 0
        if not sound or (end - begin) * 8 != size * bits:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise DataDamaged(
            f"{file}: tensor {name[:80]!r} has no sound type, shape or place"
        ) from None
    return begin, end


def _object(data: bytes, name: str) -> dict[str, Any]:
    """A JSON object without a key named twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a key stands twice")
        return dict(pairs)

    try:
        found = json.loads(data, object_pairs_hook=once)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise DataDamaged(f"{name}: is not a JSON object, or names a key twice")
    return found
