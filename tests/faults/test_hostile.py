"""A stranger's input: only documented codes come back, and the server stays as it was."""

from __future__ import annotations

import random
import resource
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from gate import DOCUMENTED, gateway, methods, names, request_class
from hostile import KNOWN, hostile, mutated

BY_NAME = {m.full_name: m for m in methods()}
BLOCKING = {"WaitOperation", "WatchOperation"}


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.tier(1)
@pytest.mark.timeout(1500)
async def test_mutated_bytes(score: Any, tmp_path: Path) -> None:
    await _storm(score, tmp_path, "mutated protobufs per method", 20_000, 40, _mutated)


@pytest.mark.tier(1)
@pytest.mark.timeout(1500)
async def test_hostile_messages(score: Any, tmp_path: Path) -> None:
    await _storm(score, tmp_path, "well-formed hostile messages per method", 5_000, 40, _hostile)


def _mutated(kind: Any, draw: random.Random) -> bytes:
    return mutated(hostile(kind, draw).SerializeToString(), draw)


def _hostile(kind: Any, draw: random.Random) -> bytes:
    data: bytes = hostile(kind, draw).SerializeToString()
    return data


async def _storm(score: Any, tmp_path: Path, what: str, full: int, small: int, make: Any) -> None:
    each = score.size(full, small)
    row = score.row(what, full)
    odd: Counter[tuple[str, str, str]] = Counter()
    async with gateway(tmp_path / "state") as gate:
        KNOWN[:] = await names(gate)
        for method in methods():
            draw = random.Random(method.name)
            kind = request_class(method)
            for number in range(each):
                if number == each // 10:
                    before = peak_bytes()
                wait = 0.3 if method.name in BLOCKING else 20.0
                code, details = await gate.raw(method, make(kind, draw), timeout=wait)
                if method.name in BLOCKING and code == "DEADLINE_EXCEEDED":
                    code = "OK"  # it waits for what it was asked to wait for
                if code not in DOCUMENTED:
                    odd[method.name, code, details[:60]] += 1
            assert peak_bytes() - before < 200e6, f"{method.name} made memory grow"
        assert gate.store.audit.first_bad() == 0
    row.ran += each
    row.bad += len(odd)
    row.notes["methods"] = str(len(methods()))
    assert not odd, dict(odd)
