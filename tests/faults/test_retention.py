"""Text goes when its time is over, is purged for good, and stays while someone holds it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from gate import gateway, import_two
from google.longrunning import operations_pb2 as lro
from leaks import Search, canary
from test_regressions import add_operation, add_set, instruction
from world import MODEL, POLICY, generate, opened

from ptalign.errors import DataDamaged
from ptalign.nouns import Instruction
from ptalign_proto.v1 import library_pb2 as lib
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server.errors import SetPurged
from ptalign_server.gateway.purge import finish_purges
from ptalign_server.gateway.retention import DAY_SECONDS, expire
from ptalign_server.settings import Settings
from ptalign_server.store import Store

LATER = 31 * DAY_SECONDS


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with opened(tmp_path / "state") as made:
        yield made


def test_text_goes_after_thirty_days_and_the_audit_says_so(store: Store, tmp_path: Path) -> None:
    settings, made = Settings(state=tmp_path / "state"), add_set(store)
    now = time.time()
    assert expire(store, settings, now + 29 * DAY_SECONDS) == 0
    assert expire(store, settings, now + LATER) == 1
    assert expire(store, settings, now + LATER) == 0
    with pytest.raises(SetPurged):
        list(store.sets.records(made.name))
    assert store.resources.get(made.name, None).purged
    assert (store.audit.count(), store.audit.first_bad()) == (1, 0)


def test_zero_days_means_for_ever(store: Store, tmp_path: Path) -> None:
    add_set(store)
    settings = Settings(state=tmp_path / "state", retention_days=0)
    assert expire(store, settings, time.time() + 1e9) == 0


def test_a_hold_is_honoured_until_it_is_released(store: Store, tmp_path: Path) -> None:
    settings, made = Settings(state=tmp_path / "state"), add_set(store)
    store.write(lambda connection: store.holds.add(connection, made.name)).result()
    assert expire(store, settings, time.time() + LATER) == 0
    assert len(list(store.sets.records(made.name))) == 3
    assert store.write(lambda connection: store.holds.remove(connection, made.name)).result()
    assert expire(store, settings, time.time() + LATER) == 1


async def test_a_set_in_use_stays(tmp_path: Path) -> None:
    async with gateway(tmp_path / "state") as gate:
        name = await import_two(gate)
        request = pb.SynthesizePairsRequest(model=MODEL, instruction_set=name)
        made = await gate.tuning.SynthesizePairs(request)
        now = time.time() + LATER
        assert expire(gate.store, gate.settings, now) == 0
        await gate.operations.CancelOperation(lro.CancelOperationRequest(name=made.name))
        assert expire(gate.store, gate.settings, now) == 2  # the set, and the call that was stopped
        found = await gate.operations.GetOperation(lro.GetOperationRequest(name=made.name))
        assert found.done


def test_a_crash_in_the_middle_is_finished_at_the_next_start(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, made = Settings(state=tmp_path / "state"), add_set(store)

    def crash(*_: object) -> None:
        raise SystemExit

    monkeypatch.setattr("ptalign_server.gateway.retention.erase", crash)
    with pytest.raises(SystemExit):
        expire(store, settings, time.time() + LATER)
    assert store.sets.folder(made.id).exists()
    assert finish_purges(store) == 1
    assert not store.sets.folder(made.id).exists()


def test_an_operation_on_its_way_keeps_its_call(store: Store, tmp_path: Path) -> None:
    running = add_operation(store)
    assert expire(store, Settings(state=tmp_path / "state"), time.time() + LATER) == 0
    store.keys.get(running)


@pytest.mark.tier(3)
async def test_purge_removes_the_bytes(score: Any, tmp_path: Path) -> None:
    """Raw search of every file for texts, wrapped key and ciphertext; a backup of the files too."""
    import shutil

    count = score.size(200, 30)
    row = score.row("canaries after PurgeSet", 200)
    texts = {f"c{n}": canary("purge") for n in range(count)}
    state = tmp_path / "state"
    async with gateway(state) as gate:
        header = lib.ImportHeader(kind="instructionSets", model=MODEL, policy=POLICY)
        records = [
            lib.Record(instruction=f"Mock my {t} who lost the teapot.", topic="t0")
            for t in texts.values()
        ]
        parts = [lib.ImportSetRequest(header=header), lib.ImportSetRequest(records=records)]
        name = str((await gate.library.ImportSet(iter(parts))).name)
        set_id = name.partition("/")[2]
        await gate.tuning.GenerateInstructions(generate(2))
        found = gate.store.resources.get(name, None)
        with sqlite3.connect(state / "ptalign.db") as connection:
            query = "select wrapped from set_keys where set_id = ?"
            (wrapped,) = connection.execute(query, (set_id,)).fetchone()
        sealed = (gate.store.sets.folder(set_id) / "noun").read_bytes()
        before = Search({"key": wrapped[-40:], "noun": sealed[60:120]})
        before.folder(state)
        assert {hit.split()[0] for hit in before.hits} == {"key", "noun"}, "the search can find"
        shutil.copytree(gate.store.sets.folder(set_id), tmp_path / "backup")
        request = lib.PurgeSetRequest(name=name, reason="a test")
        await gate.library.PurgeSet(request)
        after = Search({**texts, "key": wrapped[-40:], "noun": sealed[60:120]})
        after.folder(state)
        row.ran, row.bad = count, len(after.hits)
        assert not after.hits
        shutil.copytree(tmp_path / "backup", gate.store.sets.folder(set_id))
        with pytest.raises((SetPurged, DataDamaged)):
            list(gate.store.sets.records(found.name))
        actions = [entry.action for entry in gate.store.audit.entries()]
        assert (actions, gate.store.audit.first_bad()) == (["import", "submit", "purge"], 0)


async def test_a_deleted_operation_leaves_no_text(tmp_path: Path) -> None:
    """Its sealed call, its log and their key stayed for ever: no row named them any more."""
    async with gateway(tmp_path / "state") as gate:
        made = await gate.tuning.GenerateInstructions(generate(2, seeds=["Mock my cousin."]))
        operation = made.name.removeprefix("operations/")
        log = gate.store.sets.log(operation, Instruction)
        log.append(instruction(1))
        log.close()
        await gate.operations.CancelOperation(lro.CancelOperationRequest(name=made.name))
        await gate.operations.DeleteOperation(lro.DeleteOperationRequest(name=made.name))
        with pytest.raises(SetPurged):
            gate.store.keys.get(operation)
        assert not gate.store.sets.folder(operation).exists()


async def test_what_a_deleted_operation_made_stays(tmp_path: Path) -> None:
    async with gateway(tmp_path / "state") as gate:
        made, name = add_operation(gate.store), add_set(gate.store).name
        gate.store.operations.advance(
            made, lambda o: replace(o, state="SUCCEEDED", resource=name, ended=1.0)
        )
        await gate.operations.DeleteOperation(lro.DeleteOperationRequest(name=f"operations/{made}"))
        gate.store.keys.get(made)
        assert len(list(gate.store.sets.records(name))) == 3


@pytest.mark.parametrize("days", [0, 30])
def test_a_log_goes_once_its_result_stands(store: Store, tmp_path: Path, days: int) -> None:
    """The replies of an evaluation stayed in its log for ever, and no purge reached them."""
    settings = Settings(state=tmp_path / "state", retention_days=days)
    running, ended = add_operation(store), add_operation(store)
    for operation in (running, ended):
        log = store.sets.log(operation, Instruction)
        log.append(instruction(1))
        log.close()
    store.operations.advance(
        ended, lambda o: replace(o, state="SUCCEEDED", resource=f"evaluations/{ended}", ended=1.0)
    )
    expire(store, settings)
    assert store.sets.logged() == [running]


def test_files_of_a_deleted_operation_go_after_a_crash(store: Store, tmp_path: Path) -> None:
    """The crash came between its row and its files."""
    operation = add_operation(store)
    store.sets.log(operation, Instruction).close()

    def delete(connection: sa.Connection) -> None:
        store.operations.delete(connection, operation)
        store.keys.destroy(connection, operation)

    store.write(delete).result()
    draft, (_, wrapped) = "draft-1", store.vault.fresh_key("draft-1")
    store.write(lambda c: store.keys.insert(c, draft, wrapped)).result()
    store.sets.log(draft, Instruction).close()
    expire(store, Settings(state=tmp_path / "state"))
    assert store.sets.logged() == [draft]
