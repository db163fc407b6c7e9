"""The state folder of each release is opened by this one, and what was acknowledged is there."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from gate import gateway
from google.longrunning import operations_pb2 as lro
from history import History, check
from world import end, generate, opened, server

from ptalign.errors import Unsupported
from ptalign.nouns import InstructionSet, PairSet
from ptalign_proto.v1 import library_pb2 as lib
from ptalign_server.manifest import PART, Signer
from ptalign_server.store.db import HEAD
from ptalign_server.store.schema import request_ids

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
RELEASES = sorted(file.name.removesuffix(".tar.gz") for file in GOLDEN.glob("*.tar.gz"))
KINDS = {"instructionSets": InstructionSet, "pairSets": PairSet}


def unpack(release: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    with tarfile.open(GOLDEN / f"{release}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    state = folder / "state"
    (state / "operator.key").chmod(0o600)
    known: dict[str, Any] = json.loads((GOLDEN / f"{release}.json").read_text())
    return state, known


def test_there_is_a_golden_folder() -> None:
    assert RELEASES, "make it: python tests/data/golden/make.py"


@pytest.mark.parametrize("release", RELEASES)
def test_the_store_of_a_release_is_whole(tmp_path: Path, release: str) -> None:
    state, known = unpack(release, tmp_path)
    with opened(state) as store:
        for name, texts in known["texts"].items():
            row = store.resources.get(name, "default")
            noun = store.sets.load(name, KINDS[row.collection], row.content)
            assert sorted(_texts(noun)) == texts
        assert store.resources.get(known["purged"], "default").purged
        assert (store.audit.first_bad(), store.audit.count()) == (0, known["audit"])
        adapter = known["adapter"]
        folder = store.artefacts.folder(
            adapter["name"], ["adapter_config.json", "adapter_model.safetensors", PART]
        )
        Signer(store.vault).check(folder, adapter["name"])
        weights = (folder / "adapter_model.safetensors").read_bytes()
        assert hashlib.sha256(weights).hexdigest() == adapter["sha256"]
        for name in (known["operation"], known["under_way"]):
            store.operations.get(name.removeprefix("operations/"), "default")


def _texts(noun: InstructionSet | PairSet) -> list[str]:
    if isinstance(noun, PairSet):
        return [p.instruction for p in noun.pairs] + [a.instruction for a in noun.anchors]
    return [r.text for r in noun.records]


@pytest.mark.parametrize("release", RELEASES)
async def test_the_gateway_answers_from_a_release_s_folder(tmp_path: Path, release: str) -> None:
    state, known = unpack(release, tmp_path)
    async with gateway(state) as gate:
        for name, texts in known["texts"].items():
            read = lib.StreamRecordsRequest(name=name, view=lib.RECORD_VIEW_FULL, purpose="a test")
            found = [r.instruction async for r in gate.library.StreamRecords(read)]
            assert sorted(found) == texts
        with gate.store.engine.begin() as connection:  # they count for a day
            connection.execute(request_ids.update().values(created=time.time()))
        request = generate(4, request_id=known["request_id"])
        assert (await gate.tuning.GenerateInstructions(request)).name == known["operation"]
        done = await gate.operations.GetOperation(lro.GetOperationRequest(name=known["operation"]))
        assert done.done
        with pytest.raises(grpc.aio.AioRpcError) as purged:
            read = lib.StreamRecordsRequest(name=known["purged"])
            _ = [r async for r in gate.library.StreamRecords(read)]
        assert purged.value.code() == grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.full
@pytest.mark.tier(3)
@pytest.mark.timeout(900)
@pytest.mark.parametrize("release", RELEASES)
def test_work_under_way_goes_on_after_the_upgrade(
    score: Any, tmp_path: Path, author_url: str, release: str
) -> None:
    row = score.row(f"golden state folder of {release}, work under way goes on", 1)
    state, known = unpack(release, tmp_path)
    running = server(state, author_url).start()
    try:
        items = dict.fromkeys(known["acknowledged"], known["under_way"])
        found = check(running, History({known["under_way"], known["operation"]}, items))
    finally:
        end(running)
    row.ran, row.bad = 1, found.bad
    assert not found.bad, found


@pytest.mark.parametrize("schema", [f"{int(HEAD) + 1:04}", "9999", "zzzz"])
@pytest.mark.parametrize("release", RELEASES[-1:])
def test_a_newer_schema_is_refused_and_left_alone(
    tmp_path: Path, release: str, schema: str
) -> None:
    state, _ = unpack(release, tmp_path)
    with sqlite3.connect(state / "ptalign.db") as database:
        database.execute("update alembic_version set version_num = ?", (schema,))
    database.close()
    before = digests(state)
    with pytest.raises(Unsupported, match=f"database schema {schema} is newer"), opened(state):
        pass
    assert digests(state) == before


def test_a_server_says_why_it_does_not_start_on_a_newer_schema(tmp_path: Path) -> None:
    state, _ = unpack(RELEASES[-1], tmp_path)
    with sqlite3.connect(state / "ptalign.db") as database:
        database.execute("update alembic_version set version_num = '0099'")
    database.close()
    before = digests(state)
    started = subprocess.run(
        [sys.executable, "-m", "ptalign_server.cli", "serve"],
        env={"PTALIGN_STATE": str(state), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert started.returncode == 2
    assert "Nothing was changed" in started.stderr.replace("\n", " ")
    assert "Traceback" not in started.stderr
    assert digests(state) == before


def digests(state: Path) -> dict[str, str]:
    """SHA-256 of the files that hold something."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in (*state.glob("ptalign.db*"), *state.glob("sets/*/*"), state / "operator.key")
        if file.stat().st_size
    }
