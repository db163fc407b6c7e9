"""Rot: random flips and cuts in database, item files and checkpoints. No changed value passes."""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from test_adapter_files import damaged
from test_regressions import add_operation, add_set, instruction
from world import opened

from ptalign.errors import DataDamaged, NotReady, PtalignError, Unsupported
from ptalign.nouns import Instruction, InstructionSet
from ptalign_server.store import Store
from ptalign_server.store.operations import STATES

REFUSED = (PtalignError, sa.exc.SQLAlchemyError, sqlite3.Error)


def fill(state: Path) -> tuple[dict[str, str], str, list[str]]:
    """A store with sets, operations, one open log and an audit trail."""
    with opened(state) as store:
        sets = {made.name: made.content for made in (add_set(store, n) for n in (3, 40))}
        operations = [add_operation(store) for _ in range(20)]
        log = store.sets.log(operations[0], Instruction)
        for number in range(30):
            log.append(instruction(number))
        log.close()
        for number in range(20):
            store.write(
                lambda c, n=number: store.audit.add(c, "default", "me", "read", f"s/{n}", {})
            ).result()
        with sqlite3.connect(state / "ptalign.db") as connection:
            connection.execute("pragma wal_checkpoint(truncate)")
    return sets, operations[0], operations


def read_all(
    state: Path, sets: dict[str, str], logged: str, operations: list[str]
) -> dict[str, object]:
    """Whatever can be read; what is refused is left out."""
    seen: dict[str, object] = {}

    def see(name: str, value: Callable[[], object]) -> None:
        with contextlib.suppress(*REFUSED):
            seen[name] = value()

    with contextlib.suppress(*REFUSED, OSError, UnicodeDecodeError), opened(state) as store:
        _see_all(store, sets, logged, operations, see)
    return seen


def _see_all(
    store: Store,
    sets: dict[str, str],
    logged: str,
    operations: list[str],
    see: Callable[[str, Callable[[], object]], None],
) -> None:
    for name, digest in sets.items():
        see(name, lambda n=name, d=digest: store.sets.load(n, InstructionSet, d))
        see(f"row {name}", lambda n=name: store.resources.get(n, None))
        see(f"stream {name}", lambda n=name: list(store.sets.records(n)))
    for operation in operations:
        see(operation, lambda o=operation: store.operations.get(o))
        see(f"events {operation}", lambda o=operation: store.operations.events(o, 0))
    see("open log", lambda: list(store.sets.log(logged, Instruction).read()))
    see("audit", lambda: store.audit.first_bad() == 0 and store.audit.count())
    see("queue", lambda: sorted(o.id for o in store.operations.in_states(STATES)))


def changed(seen: dict[str, object], truth: dict[str, object]) -> list[str]:
    """Names whose value differs from the truth and was still believed."""
    wrong = []
    for name, value in seen.items():
        whole = truth[name]
        if name == "audit" and value is False:
            continue  # noticed
        if name in ("queue", "open log") or name.startswith("events"):
            known = whole if isinstance(whole, list) else []
            if all(item in known for item in value):  # type: ignore[attr-defined]
                continue  # some are missing, none is wrong
        if value != whole:
            wrong.append(name)
    return wrong


@pytest.mark.tier(3)
@pytest.mark.timeout(2600)
@pytest.mark.parametrize(
    ("what", "pattern"),
    [("the database", "ptalign.db"), ("item files", "sets/*/*"), ("the key file", "operator.key")],
)
def test_no_changed_value_is_believed(score: Any, tmp_path: Path, what: str, pattern: str) -> None:
    whole = tmp_path / "whole"
    sets, logged, operations = fill(whole)
    truth = read_all(whole, sets, logged, operations)
    assert len(truth) == 3 * len(sets) + 2 * len(operations) + 3
    draw, row = random.Random(what), score.row(f"flips and cuts in {what}", 200)
    for number in range(score.size(200, 12)):
        state = tmp_path / str(number)
        shutil.copytree(whole, state)
        file = draw.choice(sorted(f for f in state.glob(pattern) if f.stat().st_size))
        file.write_bytes(damaged(file.read_bytes(), draw, cut=number % 4 == 0))
        seen = read_all(state, sets, logged, operations)
        wrong = changed(seen, truth)
        row.ran += 1
        row.bad += bool(wrong)
        row.notes["harmless"] = str(int(row.notes.get("harmless", 0)) + (seen == truth))
        shutil.rmtree(state)
        assert not wrong, (what, number, wrong)


@pytest.mark.tier(3)
def test_no_changed_checkpoint_is_resumed(score: Any, tmp_path: Path) -> None:
    import torch

    from ptalign.errors import InvalidInput
    from ptalign.training.checkpoint import Checkpoint, latest, save

    weights = {"a.lora_A": torch.randn(8, 16), "a.lora_B": torch.randn(16, 8)}
    moments = {"a.lora_A/exp_avg": torch.randn(8, 16)}
    made = Checkpoint(3, weights, moments, {"place": 7}, torch.get_rng_state())
    draw, row = random.Random(5), score.row("flips and cuts in a checkpoint", 200)
    for number in range(score.size(200, 25)):
        folder = tmp_path / str(number)
        file = draw.choice(sorted(save(folder, made, "inputs").iterdir()))
        file.write_bytes(damaged(file.read_bytes(), draw, cut=number % 4 == 0))
        row.ran += 1
        try:
            found = latest(folder, "inputs")
        except (DataDamaged, InvalidInput, NotReady, Unsupported):
            continue
        same = found is not None and found.step == 3 and dict(found.state) == {"place": 7}
        same = same and all(torch.equal(found.adapter[k], weights[k]) for k in weights)
        row.bad += not same
    assert not row.bad


@pytest.mark.tier(3)
def test_the_first_bad_audit_entry_is_named(score: Any, tmp_path: Path) -> None:
    """Any edit, deletion, reorder or cut of the trail, made by one who lacks the key."""
    whole = tmp_path / "whole"
    with opened(whole) as store:
        for n in range(1, 31):
            store.write(
                lambda c, n=n: store.audit.add(c, "default", "me", "read", f"s/{n}", {"n": n})
            ).result()
    draw, row = (
        random.Random(3),
        score.row("edits, cuts, reorders and wipes of the audit", 200),
    )
    for number in range(score.size(200, 24)):
        state = tmp_path / str(number)
        shutil.copytree(whole, state)
        with sqlite3.connect(state / "ptalign.db") as connection:
            first = EDITS[number % len(EDITS)](connection, draw)
        with opened(state) as store:
            row.ran += 1
            row.bad += store.audit.first_bad() != first
        shutil.rmtree(state)
    assert not row.bad


def edit(connection: sqlite3.Connection, draw: random.Random) -> int:
    place = draw.randint(1, 30)
    column, value = draw.choice(
        [("identity", "you"), ("detail", "{}"), ("time", 1.0), ("target", "x"), ("action", "y")]
    )
    connection.execute(f"update audit set {column} = ? where sequence = ?", (value, place))
    return place


def remove(connection: sqlite3.Connection, draw: random.Random) -> int:
    place = draw.randint(1, 30)
    connection.execute("delete from audit where sequence = ?", (place,))
    return place


def close_up(connection: sqlite3.Connection, draw: random.Random) -> int:
    """Deletes one and renumbers the rest."""
    place = remove(connection, draw)
    for later in range(place + 1, 31):
        connection.execute("update audit set sequence = ? where sequence = ?", (later - 1, later))
    return place


def swap(connection: sqlite3.Connection, draw: random.Random) -> int:
    place = draw.randint(1, 29)
    for before, after in ((place, 1000), (place + 1, place), (1000, place + 1)):
        connection.execute("update audit set sequence = ? where sequence = ?", (after, before))
    return place


def cut(connection: sqlite3.Connection, draw: random.Random) -> int:
    place = draw.randint(1, 30)
    connection.execute("delete from audit where sequence >= ?", (place,))
    return place


def wipe(connection: sqlite3.Connection, draw: random.Random) -> int:
    """Everything, the head too: a trail that was never begun looks the same but for its head."""
    connection.execute("delete from audit")
    return 1


EDITS = (edit, remove, close_up, swap, cut, wipe)


@pytest.mark.parametrize(
    ("table", "column", "kind"),
    [
        ("operations", "state", "blob"),
        ("operations", "metadata", "text"),
        ("resources", "model", "blob"),
        ("resources", "body", "text"),
        ("events", "body", "text"),
    ],
)
def test_a_value_of_another_kind_is_not_believed(
    tmp_path: Path, table: str, column: str, kind: str
) -> None:
    """One bit of a record's header makes text of bytes; a MAC over either is the same."""
    sets, logged, operations = fill(tmp_path)
    truth = read_all(tmp_path, sets, logged, operations)
    with sqlite3.connect(tmp_path / "ptalign.db") as database:
        database.execute(f"update {table} set {column} = cast({column} as {kind})")
    seen = read_all(tmp_path, sets, logged, operations)
    assert not changed(seen, truth)
    assert len(seen) < len(truth) or table == "events"


def test_the_time_of_an_event_is_the_signed_one(tmp_path: Path) -> None:
    """Its column serves no reader: it is under no MAC."""
    sets, logged, operations = fill(tmp_path)
    truth = read_all(tmp_path, sets, logged, operations)
    with sqlite3.connect(tmp_path / "ptalign.db") as database:
        database.execute("update events set time = 1.0")
    assert read_all(tmp_path, sets, logged, operations) == truth
