"""One test per bug that the fault tests found, named after it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from world import opened

from ptalign.errors import DataDamaged
from ptalign.nouns import Instruction, InstructionSet
from ptalign_server.gateway.purge import finish_purges
from ptalign_server.store import Store
from ptalign_server.store.operations import VALIDATING, Operation, new_id
from ptalign_server.store.resources import Resource
from ptalign_server.store.schema import operations, resources


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with opened(tmp_path / "state") as made:
        yield made


def instruction(number: int) -> Instruction:
    return Instruction(id=f"i{number}", text=f"text {number}", topic="t", domain="d")


def add_operation(store: Store) -> str:
    now, operation_id = time.time(), new_id()
    key, wrapped = store.vault.fresh_key(operation_id)
    operation = Operation(
        id=operation_id,
        tenant="default",
        identity="local",
        kind="GenerateInstructions",
        state=VALIDATING,
        sequence=1,
        attempt=0,
        request=key.seal("request", b""),
        metadata=b"",
        error=b"",
        resource="",
        created=now,
        started=0.0,
        updated=now,
        ended=0.0,
    )

    def change(connection: sa.Connection) -> None:
        store.keys.insert(connection, operation_id, wrapped)
        store.operations.insert(connection, operation)

    store.write(change).result()
    return operation_id


def add_set(store: Store, count: int = 3) -> Resource:
    set_id = new_id()
    key, wrapped = store.vault.fresh_key(set_id)
    noun = InstructionSet(records=tuple(map(instruction, range(count))), requested=count)
    digest = store.sets.write(set_id, key, noun)
    made = Resource(
        name=f"instructionSets/{set_id}",
        collection="instructionSets",
        tenant="default",
        model="tiny",
        policy="faults",
        verdict="",
        adapter="",
        partial=False,
        purged=False,
        content=digest,
        body=b"",
        created=time.time(),
    )

    def change(connection: sa.Connection) -> None:
        store.keys.insert(connection, set_id, wrapped)
        store.resources.insert(connection, made)

    store.write(change).result()
    return made


def test_an_empty_sealed_log_is_not_mistaken_for_no_log(store: Store) -> None:
    """`log or MemoryLog()` dropped every record of a first run: the log has a length of 0."""
    log = store.sets.log(add_operation(store), Instruction)
    assert len(log) == 0
    assert log


def test_records_outlive_a_crash_between_seal_and_commit(store: Store) -> None:
    """`seal` dropped the log before the row was committed: a crash there began from nothing."""
    operation_id = add_operation(store)
    log = store.sets.log(operation_id, Instruction)
    log.append(instruction(1))
    log.close()
    store.sets.seal(operation_id, InstructionSet(records=(instruction(1),), requested=1))
    assert list(store.sets.log(operation_id, Instruction).read()) == [instruction(1)]


def test_a_flipped_purged_bit_destroys_nothing(store: Store) -> None:
    """The start trusted the column `purged` alone and erased the files of such sets."""
    made = add_set(store)
    with store.engine.begin() as connection:
        connection.execute(resources.update().values(purged=True))
    assert finish_purges(store) == 0
    assert (store.sets.folder(made.id) / "noun").exists()


def test_one_damaged_operation_does_not_hold_up_the_others(store: Store) -> None:
    """Taking up work read all rows or none: one flipped byte stopped every operation."""
    bad, good = add_operation(store), add_operation(store)
    with store.engine.begin() as connection:
        change = operations.update().where(operations.c.id == bad)
        connection.execute(change.values(identity="someone"))
    assert [o.id for o in store.operations.in_states([VALIDATING])] == [good]
    with pytest.raises(DataDamaged):
        store.operations.get(bad)


@pytest.mark.parametrize("frames", [0, 1, 2, 3])
def test_a_set_cut_at_a_record_is_noticed_while_it_streams(store: Store, frames: int) -> None:
    """Streaming stopped silently at the cut: only a whole load compared the digest."""
    made = add_set(store)
    path = store.sets.folder(made.id) / "noun"
    data, ends = path.read_bytes(), [0]
    from ptalign_server.store.records import frames as walk

    with path.open("rb") as stream:
        for _ in walk(stream, path):
            ends.append(stream.tell())
    path.write_bytes(data[: ends[frames]])
    with pytest.raises(DataDamaged):
        list(store.sets.records(made.name))


def test_a_policy_file_cut_to_nothing_is_damage(store: Store) -> None:
    """It ended in StopIteration, which callers saw as an internal error."""
    made = add_set(store)
    (store.sets.folder(made.id) / "policy").write_bytes(b"")
    with pytest.raises(DataDamaged):
        store.sets.load_policy(made.name)
