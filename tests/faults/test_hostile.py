"""A stranger's input: only documented codes come back, and the server stays as it was."""

from __future__ import annotations

import random
import resource
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from gate import DOCUMENTED, Gate, gateway, methods, names, request_class
from hostile import KNOWN, hostile, mutated

VERBS = {"GenerateInstructions", "SynthesizePairs", "Align", "Evaluate"}
BLOCKING = {"WaitOperation", "WatchOperation"}


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.tier(1)
@pytest.mark.timeout(2600)
async def test_mutated_bytes(score: Any, tmp_path: Path) -> None:
    await _storm(score, tmp_path, "mutated protobufs", 20_000, _mutated)


@pytest.mark.tier(1)
@pytest.mark.timeout(2600)
async def test_hostile_messages(score: Any, tmp_path: Path) -> None:
    await _storm(score, tmp_path, "well-formed hostile messages", 5_000, _hostile)


def _mutated(kind: Any, draw: random.Random) -> bytes:
    return mutated(hostile(kind, draw).SerializeToString(), draw)


def _hostile(kind: Any, draw: random.Random) -> bytes:
    data: bytes = hostile(kind, draw).SerializeToString()
    return data


async def _storm(score: Any, tmp_path: Path, what: str, full: int, make: Any) -> None:
    """`full` messages to each of the four verbs, a tenth of them to each of the other methods."""
    async with gateway(tmp_path / "state") as gate:
        KNOWN[:] = await names(gate)
        for who, chosen, planned in (
            ("verb", [m for m in methods() if m.name in VERBS], full),
            ("other method", [m for m in methods() if m.name not in VERBS], full // 10),
        ):
            row = score.row(f"{what} per {who}", planned)
            row.notes["methods"] = str(len(chosen))
            row.ran = score.size(planned, 40)
            odd = await _send(gate, chosen, row.ran, make)
            row.bad += len(odd)
            assert not odd, dict(odd)
        assert gate.store.audit.first_bad() == 0


async def _send(gate: Gate, chosen: list[Any], each: int, make: Any) -> Counter[tuple[str, ...]]:
    """Answers with a code that the error table does not name, by method, code and details."""
    odd: Counter[tuple[str, ...]] = Counter()
    for method in chosen:
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
    return odd
