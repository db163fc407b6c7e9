"""A stranger's adapter folder is refused before a library opens a file of it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from world import opened

from ptalign.errors import DataDamaged, NotReady, Unsupported
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_server.adapter_files import check_folder
from ptalign_server.manifest import PART, Signer

REFUSED = (Unsupported, DataDamaged, NotReady)
CONFIG = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "auto_mapping": None}
WEIGHTS = "adapter_model.safetensors"


def write(folder: Path) -> Path:
    folder.mkdir(parents=True)
    tensors = {f"t{i}": np.full((4, 4), i, "float32") for i in range(3)}
    save_file(tensors, folder / WEIGHTS)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    return folder


def put(name: str, data: bytes = b"x") -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data)


def config(**more: Any) -> Callable[[Path], None]:
    return put("adapter_config.json", json.dumps(CONFIG | more).encode())


def info(file: Path) -> res.FileInfo:
    data = file.read_bytes()
    return res.FileInfo(part=file.name, size=len(data), sha256=hashlib.sha256(data).hexdigest())


def linked(name: str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to("/etc/hostname")

    return act


def header(entries: dict[str, Any], data: int = 192) -> Callable[[Path], None]:
    text = json.dumps(entries).encode()
    return put(WEIGHTS, struct.pack("<Q", len(text)) + text + bytes(data))


def tensor(begin: int, end: int, shape: list[Any], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HOSTILE: dict[str, Callable[[Path], Any]] = {
    **{f"a file {n}": put(n) for n in ("a.bin", "a.pt", "a.pkl", "a.py", "a.ckpt", "a.so", "x")},
    "a hidden file": put(".safetensors"),
    "a tokenizer's code": put("tokenization_x.py"),
    "a folder": lambda folder: (folder / "sub.json").mkdir(),
    "a fifo": lambda folder: os.mkfifo(folder / "pipe.json"),
    "linked weights": linked(WEIGHTS),
    "a linked config": linked("adapter_config.json"),
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "auto_map": config(auto_map={"AutoModel": "evil.Model"}),
    "auto_mapping": config(auto_mapping={"parent_library": "evil"}),
    "megatron": config(megatron_config={"a": 1}),
    "corda's cache file": config(corda_config={"cache_file": "/tmp/x.pt"}),
    "another method": config(peft_type="PROMPT_TUNING"),
    "a list": put("adapter_config.json", b"[1]"),
    "a deep config": put("adapter_config.json", b"[" * 100_000),
    "a huge config": put("adapter_config.json", b" " * (1 << 20) + b"{} "),
    "a key twice": put("adapter_config.json", b'{"peft_type": "LORA", "peft_type": "LORA"}'),
    "no header": put(WEIGHTS, b"1234567"),
    "a header of 2**63 bytes": put(WEIGHTS, struct.pack("<Q", 2**63) + b"{}"),
    "a header beyond the file": put(WEIGHTS, struct.pack("<Q", 4096) + b"{}"),
    "a header that is no JSON": put(WEIGHTS, struct.pack("<Q", 4) + b"\x80\x04K."),
    "overlapping": header({"a": tensor(0, 96, [24]), "b": tensor(48, 192, [36])}),
    "the same bytes twice": header({"a": tensor(0, 192, [48]), "b": tensor(0, 192, [48])}),
    "a gap": header({"a": tensor(0, 96, [24]), "b": tensor(100, 192, [23])}),
    "bytes behind the end": header({"a": tensor(0, 96, [24])}),
    "beyond the end": header({"a": tensor(0, 400, [100])}),
    "backwards": header({"a": tensor(192, 0, [48])}),
    "a negative offset": header({"a": tensor(-192, 0, [48])}),
    "a wrong shape": header({"a": tensor(0, 192, [47])}),
    "a shape of 2**40": header({"a": tensor(0, 192, [2**40, 2**40])}),
    "a negative shape": header({"a": tensor(0, 192, [-48, -1])}),
    "a boolean shape": header({"a": tensor(0, 4, [True])}, 4),
    "an unknown type": header({"a": tensor(0, 192, [48], "OBJECT")}),
    "offsets that are text": header({"a": {"dtype": "F32", "shape": [1], "data_offsets": "ab"}}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_adapter_is_refused(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "adapter")
    check_folder(folder)
    HOSTILE[name](folder)
    with pytest.raises(REFUSED):
        check_folder(folder)


@pytest.mark.tier(3)
def test_a_manifest_notices_every_changed_byte(score: Any, tmp_path: Path) -> None:
    with opened(tmp_path / "state") as store:
        signer, folder = Signer(store.vault), write(tmp_path / "a")
    files = list(map(info, sorted(folder.iterdir())))
    (folder / PART).write_bytes(signer.sign("adapters/1", files))
    signer.check(folder, "adapters/1")
    draw, row = random.Random(1), score.row("flips and cuts in an adapter and its manifest", 200)
    for number in range(score.size(200, 60)):
        file = draw.choice(sorted(folder.iterdir()))
        whole = file.read_bytes()
        file.write_bytes(damaged(whole, draw, cut=number % 5 == 0))
        row.ran += 1
        try:
            signer.check(folder, "adapters/1")
            changed = file.name != PART or json.loads(file.read_bytes()) != json.loads(whole)
            row.bad += changed
            row.notes["harmless"] = str(int(row.notes.get("harmless", 0)) + (not changed))
        except REFUSED:
            pass
        file.write_bytes(whole)
    assert not row.bad
    signer.check(folder, "adapters/1")
    with pytest.raises(DataDamaged):
        signer.check(folder, "adapters/2")
    (folder / "more.json").write_text("{}")
    with pytest.raises(DataDamaged):
        signer.check(folder, "adapters/1")


def test_another_servers_manifest_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    with opened(tmp_path / "one") as store:
        (folder / PART).write_bytes(Signer(store.vault).sign("adapters/1", []))
    with opened(tmp_path / "two") as store, pytest.raises(DataDamaged, match="not signed by this"):
        Signer(store.vault).check(folder, "adapters/1")


def damaged(data: bytes, draw: random.Random, *, cut: bool) -> bytes:
    """One flipped bit, or a cut end."""
    place = draw.randrange(len(data))
    if cut:
        return data[:place]
    body = bytearray(data)
    body[place] ^= 1 << draw.randrange(8)
    return bytes(body)
