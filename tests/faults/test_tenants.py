"""Another tenant's things and things that never were read alike, to the letter."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from gate import Gate, gateway, import_two
from google.longrunning import operations_pb2 as lro
from world import MODEL, generate

from ptalign_proto.v1 import library_pb2 as lib
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server.gateway.identity import Tokens
from ptalign_server.settings import ROLES

COLLECTIONS = ("instructionSets", "annotationSets", "pairSets", "adapters", "evaluations")
TRAVERSALS = (
    "../{}", "..%2f{}", "{}/../../x", "/{}", "//{}", "{}\x00", "./{}", "{}/", "~/{}", "{}#", "{}?a",
    "..\\{}", "{}\u2215..", "\uff0e\uff0e/{}", "file:///{}", "{}" + "/x" * 40, "{}\n", " {}",
    "{}%00", "sets/{}/noun", "{}/log", "COM1/{}", "{}::$DATA", "a" * 300 + "{}",
    "%c0%ae%c0%ae/{}",
)  # fmt: skip


def probes(name: str, operation: str) -> list[tuple[str, Any, str]]:
    """Stub, method and request for everything that takes a name."""
    read = lib.StreamRecordsRequest(name=name)
    load = lib.DownloadRequest(name=name, part="export.jsonl")
    align = pb.AlignRequest(model=MODEL, pair_set=name)
    pairs = pb.SynthesizePairsRequest(model=MODEL, instruction_set=name)
    more = generate(2, parent=name)
    return [
        ("library", lib.GetResourceRequest(name=name), "GetInstructionSet"),
        ("library", lib.GetResourceRequest(name=name), "GetPairSet"),
        ("library", read, "StreamRecords"),
        ("library", load, "Download"),
        ("library", lib.PurgeSetRequest(name=name, reason="a test"), "PurgeSet"),
        ("tuning", pairs, "SynthesizePairs"),
        ("tuning", align, "Align"),
        ("tuning", more, "GenerateInstructions"),
        ("tuning", pb.WatchOperationRequest(name=operation), "WatchOperation"),
        ("operations", lro.GetOperationRequest(name=operation), "GetOperation"),
        ("operations", lro.CancelOperationRequest(name=operation), "CancelOperation"),
        ("operations", lro.DeleteOperationRequest(name=operation), "DeleteOperation"),
        ("operations", lro.WaitOperationRequest(name=operation), "WaitOperation"),
    ]


async def answer(gate: Gate, probe: tuple[str, Any, str], token: str) -> tuple[str, str]:
    from gate import methods

    _, request, name = probe
    method = next(m for m in methods() if m.name == name)
    return await gate.raw(method, request.SerializeToString(), token)


@pytest.mark.tier(3)
@pytest.mark.timeout(1500)
async def test_foreign_and_absent_read_alike(score: Any, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    stranger = Tokens(state / "tokens.json").add("stranger", "other", ROLES)
    draw, answers = random.Random(2), Counter[tuple[str, str]]()
    row = score.row("cross-tenant probes", 2_000)
    async with gateway(state) as gate:
        name = await import_two(gate)
        operation = (await gate.tuning.GenerateInstructions(generate(2))).name
        for _ in range(score.size(2_000, 80) // 26 + 1):
            absent = "".join(draw.choices("0123456789abcdef", k=24))
            for probe in probes(name, operation) + probes(
                f"instructionSets/{absent}", f"operations/{absent}"
            ):
                answers[await answer(gate, probe, stranger)] += 1
                row.ran += 1
        assert (
            await gate.library.GetInstructionSet(lib.GetResourceRequest(name=name))
        ).harmful == 2
    row.bad = len(answers) - 1
    assert len(answers) == 1, answers
    assert next(iter(answers))[0] == "NOT_FOUND"


@pytest.mark.tier(3)
@pytest.mark.timeout(1500)
async def test_names_that_climb(score: Any, tmp_path: Path) -> None:
    row = score.row("traversal cases", 500)
    async with gateway(tmp_path / "state") as gate:
        name = await import_two(gate)
        known = name.partition("/")[2]
        cases = [
            (f"{place}/{form.format(target)}", part)
            for place in COLLECTIONS
            for form in TRAVERSALS
            for target in (known, "etc/passwd")
            for part in ("export.jsonl", "../../operator.key")
        ]
        for case, part in cases[: score.size(500, 60)]:
            request = lib.DownloadRequest(name=case, part=part, purpose="a test")
            code, details = await answer(gate, ("library", request, "Download"), "")
            row.ran += 1
            row.bad += code not in {"NOT_FOUND", "INVALID_ARGUMENT"} or "/" + "root" in details
    assert not row.bad
