"""Keys, sealed files and rows: what is written comes back, what was changed does not."""

from __future__ import annotations

import errno
import json
import os
import socket
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Barrier, BrokenBarrierError, Thread
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from obstore.exceptions import GenericError
from typer.testing import CliRunner

from ptalign.errors import DataDamaged, NotReady, Unsupported
from ptalign.nouns import Instruction, InstructionSet, Spent
from ptalign.spending import spent_so_far
from ptalign_server.admin import audit as audit_command
from ptalign_server.admin.keys import rotate_all
from ptalign_server.errors import NotFound, SetPurged
from ptalign_server.settings import Settings
from ptalign_server.store import Store, db
from ptalign_server.store.artefacts import Artefacts
from ptalign_server.store.operations import LATELY, QUEUED, VALIDATING, Operation, new_id
from ptalign_server.store.schema import audit, events, holds, operations, withdrawals
from ptalign_server.store.writer import _Task
from ptalign_server.vault import KeyFile, KeysAway, Vault
from ptalign_server.worker import adapters


def frozen(operation: Operation) -> bytes:
    return operation.state.encode()


@pytest.fixture
def store(tmp_path: Path):
    opened = Store(Settings(state=tmp_path / "state"), frozen)
    yield opened
    opened.close()


def record(number: int) -> Instruction:
    return Instruction(id=f"{number:016x}", text=f"canary text {number}", topic="t", domain="d")


def operation() -> Operation:
    return Operation(
        id=new_id(), tenant="default", identity="me", kind="Align", state=VALIDATING, sequence=1,
        attempt=0, request=b"sealed", metadata=b"", error=b"", resource="", created=1.5,
        started=0.0, updated=1.5, ended=0.0,
    )  # fmt: skip


def new_set(store: Store) -> str:
    set_id = new_id()
    _, wrapped = store.vault.fresh_key(set_id)
    store.write(lambda c: store.keys.insert(c, set_id, wrapped)).result()
    return set_id


def test_a_change_waits_for_another_process_and_then_says_that_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "LOCKED_SECONDS", 1)
    engine = db.connect(Settings(state=tmp_path).database_url)
    count = sa.text("select count(*) from sqlite_master")
    with engine.begin():  # a connection to use again
        looked: list[float] = []
    other = sqlite3.connect(tmp_path / "ptalign.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    def look(seconds: float) -> None:
        looked.append(seconds)
        if len(looked) == 3:
            other.execute("COMMIT")

    monkeypatch.setattr(time, "sleep", look)
    with engine.begin() as connection:
        assert connection.execute(count).scalar() == 0
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 1000, "for reads"
    assert looked == [db.LOOK_SECONDS] * 3, "it looks as often whatever it has waited"

    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(db.DatabaseBusy) as refused, engine.begin():
        pass
    assert refused.value.waited
    other.close()
    engine.dispose()


def test_log_keeps_order_and_ignores_doubles(store: Store) -> None:
    set_id = new_set(store)
    log = store.sets.log(set_id, Instruction)
    for number in (1, 2, 1, 3, 2):
        log.append(record(number))
    again = store.sets.log(set_id, Instruction)
    again.append(record(3))
    assert list(again.read()) == [record(1), record(2), record(3)]


def test_costs_outlive_a_kill_beside_the_log_and_go_with_it(store: Store) -> None:
    set_id = new_set(store)
    log, costs = store.sets.log(set_id, Instruction), store.sets.costs(set_id)
    log.append(record(1))
    for number in (1, 2):
        costs.append(Spent(id=str(number), counts={"drafts": 32 * number}, seconds=number))
    os.truncate(costs.path, costs.path.stat().st_size - 7)  # the second was being written
    assert spent_so_far(store.sets.costs(set_id)).counts == {"drafts": 32}
    assert list(store.sets.log(set_id, Instruction).read()) == [record(1)]
    store.sets.drop_log(set_id)
    assert not list(store.sets.folder(set_id).iterdir())


def test_damaged_costs_do_not_cost_the_records(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    set_id = new_set(store)
    store.sets.log(set_id, Instruction).append(record(1))
    costs = store.sets.costs(set_id)
    costs.append(Spent(id="1", counts={"drafts": 32}, seconds=1))
    damaged = bytearray(costs.path.read_bytes())
    damaged[-3] ^= 1
    costs.path.write_bytes(damaged)
    again = store.sets.costs(set_id)
    assert spent_so_far(again).counts == {}
    assert "not known any more" in caplog.text
    again.append(Spent(id="1", counts={"drafts": 5}, seconds=1))
    assert spent_so_far(store.sets.costs(set_id)).counts == {"drafts": 5}
    assert list(store.sets.log(set_id, Instruction).read()) == [record(1)]


def test_torn_tail_is_cut_and_the_log_goes_on(store: Store) -> None:
    set_id = new_set(store)
    log = store.sets.log(set_id, Instruction)
    log.append(record(1))
    log.append(record(2))
    size = log.path.stat().st_size
    os.truncate(log.path, size - 7)
    again = store.sets.log(set_id, Instruction)
    again.append(record(3))
    assert list(again.read()) == [record(1), record(3)]


def test_every_flipped_byte_of_a_log_is_noticed(store: Store) -> None:
    set_id = new_set(store)
    log = store.sets.log(set_id, Instruction)
    for number in range(3):
        log.append(record(number))
    whole = log.path.read_bytes()
    accepted = 0
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        log.path.write_bytes(damaged)
        try:
            list(store.sets.log(set_id, Instruction).read())
            accepted += 1
        except DataDamaged:
            pass
    assert accepted == 0


def test_a_record_moved_to_another_place_is_noticed(store: Store) -> None:
    set_id = new_set(store)
    log = store.sets.log(set_id, Instruction)
    log.append(record(1))
    first = log.path.read_bytes()
    log.append(record(2))
    second = log.path.read_bytes()[len(first) :]
    log.path.write_bytes(second + first)
    with pytest.raises(DataDamaged):
        list(store.sets.log(set_id, Instruction).read())


def test_disk_full_leaves_the_log_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    log = store.sets.log(new_set(store), Instruction)
    log.append(record(1))
    monkeypatch.setattr(os, "fdatasync", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError):
        log.append(record(2))
    monkeypatch.undo()
    log.append(record(3))
    assert list(log.read()) == [record(1), record(3)]


def test_sealed_set_comes_back_and_names_itself_when_changed(store: Store) -> None:
    set_id = new_set(store)
    noun = InstructionSet(records=(record(1), record(2)), requested=2, stats={"entropy": 0.5})
    digest = store.sets.seal(set_id, noun)
    name = f"instructionSets/{set_id}"
    assert store.sets.load(name, InstructionSet, digest) == noun
    path = store.sets.folder(set_id) / "noun"
    assert b"canary" not in path.read_bytes()
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataDamaged, match=name):
        store.sets.load(name, InstructionSet, digest)


def test_a_set_cut_at_a_record_is_noticed_by_its_digest(store: Store) -> None:
    set_id = new_set(store)
    noun = InstructionSet(records=(record(1), record(2)), requested=2)
    digest = store.sets.seal(set_id, noun)
    shorter = InstructionSet(records=(record(1),), requested=2)
    store.sets.seal(set_id, shorter)
    with pytest.raises(DataDamaged, match="does not match the digest"):
        store.sets.load(f"instructionSets/{set_id}", InstructionSet, digest)


def test_destroyed_key_means_purged(store: Store) -> None:
    set_id = new_set(store)
    store.sets.seal(set_id, InstructionSet(records=(record(1),), requested=1))
    store.write(lambda c: store.keys.destroy(c, set_id)).result()
    with pytest.raises(SetPurged):
        store.sets.load(f"instructionSets/{set_id}", InstructionSet, "")


def test_rotation_rewraps_and_old_keys_go(store: Store, tmp_path: Path) -> None:
    set_id = new_set(store)
    digest = store.sets.seal(set_id, InstructionSet(records=(record(1),), requested=1))
    other = Store(Settings(state=tmp_path / "state"), frozen)  # a server that runs meanwhile
    old = store.vault.keyfile.current[0]
    store.vault.keyfile.add()
    assert store.keys.rotate() == 2  # the set's key and the MAC key
    store.vault.keyfile.keep_current()
    assert old not in KeyFile(store.vault.keyfile.path).keys
    name = f"instructionSets/{set_id}"
    for opened in (store, other):
        assert opened.sets.load(name, InstructionSet, digest).requested == 1
    other.close()


def test_a_rotation_that_another_overtook_keeps_the_key_in_force(
    store: Store, tmp_path: Path
) -> None:
    """It wrote the file as it had read it: nothing could be opened any more."""
    set_id = new_set(store)
    for whole in (True, False):
        other = Store(Settings(state=tmp_path / "state"), frozen)
        store.vault.keyfile.add()
        store.keys.rotate()
        other.vault.keyfile.add()
        if whole:  # or it is at its first half still
            other.keys.rotate()
            other.vault.keyfile.keep_current()
        store.vault.keyfile.keep_current()
        other.close()
        again = Store(Settings(state=tmp_path / "state"), frozen)
        assert again.keys.get(set_id).set_id == set_id
        assert len(again.vault.keyfile.keys) == (1 if whole else 2)
        again.close()


def test_rotations_come_one_after_the_other(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_id, other = new_set(store), Store(Settings(state=tmp_path / "state"), frozen)
    rewrap, seen = store.keys.rotate, list[str]()
    beside = Thread(target=lambda: seen.append(rotate_all(other)[0]))

    def slow(*args: Any) -> int:
        beside.start()
        beside.join(0.3)
        assert not seen
        return rewrap(*args)

    monkeypatch.setattr(store.keys, "rotate", slow)
    first, _ = rotate_all(store)
    beside.join(20)
    assert list(KeyFile(store.vault.keyfile.path).keys) == seen != [first]
    assert store.keys.get(set_id).set_id == set_id
    other.close()


def test_a_key_file_that_could_not_be_written_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Empty, it was said to be there already, and no later start made another."""
    path = tmp_path / "operator.key"

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(NotReady, match="cannot be made: No space left"):
            KeyFile.create(path)
    assert not list(tmp_path.iterdir())
    assert KeyFile.create(path).keys


def test_key_file_is_private_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "operator.key"
    KeyFile.create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_bytes()
    with pytest.raises(NotReady, match="no key is ever overwritten"):
        KeyFile.create(path)
    assert path.read_bytes() == before
    path.chmod(0o644)
    with pytest.raises(NotReady, match="chmod 600"):
        KeyFile(path)
    path.unlink()
    with pytest.raises(NotReady, match="backup"):
        KeyFile(path)


def test_another_operators_key_opens_nothing(tmp_path: Path) -> None:
    first = Vault(KeyFile.create(tmp_path / "a"))
    second = Vault(KeyFile.create(tmp_path / "b"))
    _, wrapped = first.fresh_key("set")
    with pytest.raises(DataDamaged, match="backup"):
        second.unwrap("set", wrapped)
    with pytest.raises(DataDamaged):
        first.unwrap("other", wrapped)


def test_operation_advances_with_gapless_events(store: Store) -> None:
    made = operation()
    store.write(lambda c: store.operations.insert(c, made)).result()
    store.operations.advance(made.id, lambda o: replace(o, state=QUEUED))
    assert store.operations.advance(made.id, lambda o: None).sequence == 2
    found = store.operations.events(made.id, 0)
    assert [(e.sequence, e.body) for e in found] == [(1, b"VALIDATING"), (2, b"QUEUED")]
    with pytest.raises(NotFound):
        store.operations.get(made.id, "another tenant")


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        (operations, "state", "SUCCEEDED"),
        (operations, "tenant", "other"),
        (operations, "request", b"x"),
        (events, "body", b"x"),
    ],
)
def test_a_changed_row_is_refused(
    store: Store, table: sa.Table, column: str, value: object
) -> None:
    made = operation()
    store.write(lambda c: store.operations.insert(c, made)).result()
    with store.engine.begin() as connection:
        connection.execute(table.update().values({column: value}))
    with pytest.raises(DataDamaged):
        store.operations.get(made.id)
        store.operations.events(made.id, 0)


def test_group_commit_undoes_only_what_failed(store: Store) -> None:
    def fail(connection: sa.Connection) -> None:
        store.operations.insert(connection, operation())
        raise ValueError("no")

    made = [operation() for _ in range(20)]
    futures = [store.write(lambda c, o=o: store.operations.insert(c, o)) for o in made[:10]]
    broken = store.write(fail)
    futures += [store.write(lambda c, o=o: store.operations.insert(c, o)) for o in made[10:]]
    for future in futures:
        future.result()
    with pytest.raises(ValueError):
        broken.result()
    assert len(store.operations.page("default", 100)) == 20


def test_a_closed_store_takes_no_change_that_nobody_would_make(tmp_path: Path) -> None:
    """Whoever waited for it waited for ever."""
    store = Store(Settings(state=tmp_path / "closed"), frozen)
    last = store.write(lambda _: 1)
    store.close()
    assert last.result(0) == 1
    with pytest.raises(RuntimeError, match="closed"):
        store.write(lambda _: 2)


def test_a_database_that_fell_silent_is_away_and_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A failover that closed no connection stopped every change for a quarter of an hour."""
    url = "postgresql://me@127.0.0.1/d?connect_timeout=3&keepalives_idle=60"
    assert set(db.TIMEOUTS) - set(db.timeouts(url)) == {"connect_timeout", "keepalives_idle"}
    assert db.timeouts("postgres://me@h/d") == db.timeouts("postgresql+psycopg://h/d")
    assert db.timeouts("sqlite:///x") == {}
    monkeypatch.setitem(db.TIMEOUTS, "connect_timeout", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the call, never answers
        engine = db.connect(f"postgresql://me@127.0.0.1:{silent.getsockname()[1]}/d")
        with pytest.raises(db.DatabaseAway):
            engine.connect()


def test_entries_of_a_group_stand_with_their_changes_in_one_statement(store: Store) -> None:
    """A change that fails leaves none, however often it was tried; the others' chain is whole."""
    inserted: list[int] = []

    @sa.event.listens_for(store.engine, "before_cursor_execute")
    def note(_: Any, __: Any, statement: str, rows: Any, ___: Any, many: bool) -> None:
        if statement.startswith("INSERT INTO audit"):
            inserted.append(len(rows) if many else 1)

    def add(connection: sa.Connection, number: int) -> None:
        store.audit.add(connection, "default", "me", "submit", f"operations/{number}", {})
        if number == 2:
            raise ValueError("no")
        if number == 4:
            raise sa.exc.IntegrityError("another has it", {}, Exception())

    tasks = [_Task(lambda c, n=number: add(c, n), Future()) for number in range(6)]
    store._writer._commit(tasks)
    failed = [number for number, task in enumerate(tasks) if task.future.exception()]
    assert failed == [2, 4]
    targets = [entry.target for entry in store.audit.entries()]
    assert targets == [f"operations/{number}" for number in (0, 1, 3, 5)]
    assert (store.audit.first_bad(), inserted) == (0, [4])


def test_a_group_whose_entries_cannot_be_written_does_not_stand(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that must be audited is done without its entry, and the next change's entry is."""
    made = operation()

    def submit(connection: sa.Connection) -> None:
        store.operations.insert(connection, made)
        store.audit.add(connection, "default", "me", "submit", f"operations/{made.id}", {})

    with monkeypatch.context() as patched:
        patched.setattr("ptalign_server.failpoints.hit", full_disk)
        with pytest.raises(OSError, match="full"):
            store.write(submit).result()
    with pytest.raises(NotFound):
        store.operations.get(made.id)
    store.write(submit).result()
    assert [entry.target for entry in store.audit.entries()] == [f"operations/{made.id}"]


def test_the_queue_is_counted_once_a_group(store: Store) -> None:
    """Each submit counted all that wait, so that a call took as long as the queue was."""
    counted: list[str] = []

    @sa.event.listens_for(store.engine, "before_cursor_execute")
    def note(_: Any, __: Any, statement: str, *rest: Any) -> None:
        if "count(*)" in statement:
            counted.append(statement)

    def submit(connection: sa.Connection) -> int:
        store.operations.insert(connection, operation())
        return store.operations.waiting(connection)

    for group in (1, 2):
        tasks = [_Task(submit, Future()) for _ in range(3)]
        store._writer._commit(tasks)
        found = [task.future.result() for task in tasks]
        assert found == [1 + 3 * (group - 1), 2 + 3 * (group - 1), 3 + 3 * (group - 1)]
        assert len(counted) == group
    for _ in range(2):
        with db.reading(store.engine) as connection:
            assert store.operations.waiting(connection) == 6
    store.write(lambda c: c.execute(operations.delete())).result()
    with db.reading(store.engine) as connection:
        assert store.operations.waiting(connection) == 0
    assert store.operations.waited_lately() == 0
    store.write(submit).result()
    time.sleep(LATELY)
    assert store.operations.waited_lately() == 1


@pytest.fixture
def synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What outlives a power cut, in order: a file with its size then, a folder with -1."""
    found: list[tuple[str, int]] = []
    fsync = os.fsync

    def note(handle: int) -> None:
        fsync(handle)
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        size = path.stat().st_size if path.is_file() else -1
        found.append((path.relative_to(tmp_path).as_posix(), size))

    monkeypatch.setattr(os, "fsync", note)
    return found


def test_a_key_is_on_disk_before_anything_is_wrapped_by_it(
    tmp_path: Path, synced: list[tuple[str, int]]
) -> None:
    """The folder too: after a power cut sets were there, and the file of their key was not."""
    file = KeyFile.create(tmp_path / "keys" / "operator.key")
    size = file.path.stat().st_size
    assert synced == [("keys/operator.key", size), ("keys", -1)]
    synced.clear()
    file.add()
    assert synced == [("keys/operator.key.new", 2 * size), ("keys", -1)]


@pytest.mark.parametrize("from_file", [False, True])
def test_an_artefact_is_on_disk_when_put_returns(
    tmp_path: Path,
    synced: list[tuple[str, int]],
    monkeypatch: pytest.MonkeyPatch,
    from_file: bool,
) -> None:
    """Checkpoints go once an adapter is committed: a power cut then left neither."""
    root = tmp_path / "artefacts"
    given = tmp_path / "given"
    given.write_bytes(b"weights")
    artefacts = Artefacts(root, "", tmp_path / "cache")
    artefacts.put("adapters/1", "model.safetensors", given if from_file else b"weights")
    assert synced == [
        ("artefacts/adapters/1/model.safetensors", 7),
        ("artefacts/adapters/1", -1),
        ("artefacts/adapters", -1),
        ("artefacts", -1),
    ]
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(NotReady, match="cannot be stored now"):
        artefacts.put("adapters/1", "model.safetensors", b"weights")


def full_disk(point: str) -> None:
    if point == "audit_write.before":
        raise OSError("full")


def test_audit_chain_names_the_first_bad_entry(store: Store) -> None:
    for number in range(5):
        store.write(
            lambda c, n=number: store.audit.add(c, "default", "me", "read", f"x/{n}", {"n": n})
        ).result()
    assert store.audit.first_bad() == 0
    with store.engine.begin() as connection:
        connection.execute(audit.update().where(audit.c.sequence == 3).values(detail="{}"))
    assert store.audit.first_bad() == 3
    with store.engine.begin() as connection:
        connection.execute(audit.delete().where(audit.c.sequence == 2))
    assert store.audit.first_bad() == 2


@pytest.mark.parametrize(("cut", "bad"), [(audit.c.sequence == 3, 3), (sa.true(), 3)])
def test_a_trail_that_was_cut_stays_bad_whatever_comes_after(
    store: Store, cut: Any, bad: int
) -> None:
    """The next entry took the place of the one that was gone, and nothing was to be seen."""

    def add(target: str) -> None:
        store.write(lambda c: store.audit.add(c, "default", "me", "read", target, {})).result()

    for number in range(3):
        add(f"x/{number}")
    with store.engine.begin() as connection:
        connection.execute(audit.delete().where(cut))
    for number in range(2):
        add(f"y/{number}")
    assert store.audit.first_bad() == bad


def test_the_audit_trail_is_read_by_action_and_target_newest_last(store: Store) -> None:
    for n in range(6):
        action, target = ("read", "purge")[n % 2], f"x/{n // 3}"
        detail = {"n": n}
        store.write(
            lambda c, a=action, t=target, d=detail: store.audit.add(c, "default", "me", a, t, d)
        ).result()

    def numbers(**asked: Any) -> list[int]:
        return [entry.detail["n"] for entry in store.audit.entries(**asked)]

    assert numbers() == [0, 1, 2, 3, 4, 5]
    assert numbers(last=2) == [4, 5]
    assert numbers(action="purge") == [1, 3, 5]
    assert numbers(action="purge", target="x/1", last=1) == [5]
    entry = next(iter(store.audit.entries()))
    assert (entry.sequence, entry.tenant, entry.identity, entry.target) == (
        1,
        "default",
        "me",
        "x/0",
    )


def test_the_command_shows_the_trail_and_whether_it_is_whole(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A purpose that somebody wrote cannot steer the terminal."""
    for action, detail in (("delete", {}), ("purge", {"reason": "asked\x1b[2J"})):
        store.write(
            lambda c, a=action, d=detail: store.audit.add(c, "default", "me", a, "pairSets/1", d)
        ).result()
    monkeypatch.setenv("PTALIGN_STATE", str(tmp_path / "state"))

    def said(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(audit_command.app, arguments, catch_exceptions=False)
        return done.exit_code, done.output

    assert said("verify") == (0, "2 entries, all in order\n")
    code, text = said("list")
    assert code == 0
    first, second = text.splitlines()
    assert first.startswith("1  ")
    assert first.endswith("Z  default  me  delete  pairSets/1")
    assert second.endswith('purge  pairSets/1  reason: "asked\\u001b[2J"')
    code, text = said("list", "--json", "--action", "purge")
    assert json.loads(text)["detail"] == {"reason": "asked\x1b[2J"}
    with store.engine.begin() as connection:
        connection.execute(audit.update().where(audit.c.sequence == 1).values(identity="you"))
    code, text = said("list")
    assert (code, text.splitlines()[-1]) == (1, "entry 1 was edited, removed or moved")
    with store.engine.begin() as connection:  # all others are shown, though one cannot be read
        broken = {"detail": "{torn", "time": 1e300}
        connection.execute(audit.update().where(audit.c.sequence == 1).values(**broken))
    code, text = said("list")
    first, second, last = text.splitlines()
    assert first.endswith('damaged: "{torn"')
    assert "purge" in second
    assert (code, last) == (1, "entry 1 was edited, removed or moved")


def test_a_newer_schema_is_refused_untouched(tmp_path: Path) -> None:
    settings = Settings(state=tmp_path / "state")
    Store(settings, frozen).close()
    engine = db.connect(settings.database_url)
    with engine.begin() as connection:
        connection.execute(sa.text("update alembic_version set version_num = '9999'"))
    engine.dispose()
    before = (tmp_path / "state" / "ptalign.db").read_bytes()
    with pytest.raises(Unsupported, match="newer"):
        Store(settings, frozen)
    assert (tmp_path / "state" / "ptalign.db").read_bytes() == before


@pytest.mark.parametrize(
    ("revision", "later"), [("0001", (holds, withdrawals)), ("0002", (withdrawals,))]
)
def test_an_earlier_schema_grows(
    tmp_path: Path, revision: str, later: tuple[sa.Table, ...]
) -> None:
    settings = Settings(state=tmp_path / "state")
    store = Store(settings, frozen)
    with store.engine.begin() as connection:
        for table in later:
            table.drop(connection)
        connection.execute(sa.text(f"update alembic_version set version_num = '{revision}'"))
    store.close()
    grown = Store(settings, frozen)
    assert grown.holds.names() == grown.withdrawals.names() == []
    assert db.current_revision(grown.engine) == db.HEAD
    grown.close()


def test_alembic_makes_the_same_schema_as_a_first_start(tmp_path: Path) -> None:
    from alembic import command
    from alembic.config import Config

    made = db.connect(f"sqlite:///{tmp_path}/a.db")
    db.migrate(made)
    config = Config()
    config.set_main_option("script_location", str(Path(db.__file__).parent / "migrations"))
    grown = db.connect(f"sqlite:///{tmp_path}/b.db")
    with grown.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    query = sa.text("select name, sql from sqlite_master where sql is not null order by name")
    tables = []
    for engine in (made, grown):
        with db.reading(engine) as connection:
            tables.append([r for r in connection.execute(query).all() if "alembic" not in r[0]])
        assert db.current_revision(engine) == db.HEAD
    assert tables[0] == tables[1]


def with_an_adapter(tmp_path: Path) -> Artefacts:
    """An object store that holds `adapters/a`, of one file."""
    (tmp_path / "bucket").mkdir()
    artefacts = Artefacts(tmp_path / "unused", f"file://{tmp_path}/bucket", tmp_path / "cache")
    artefacts.put("adapters/a", "adapter_config.json", b"{}")
    return artefacts


def test_an_adapter_that_rotted_where_it_was_brought_is_brought_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The object store's own was whole, and each operation with it failed on this server."""

    def check(_: Any, folder: Path, name: str) -> None:
        if (folder / "adapter_config.json").read_bytes() != b"{}":
            raise DataDamaged(f"{name} was changed.")

    monkeypatch.setattr(adapters.Signer, "check", check)
    monkeypatch.setattr(adapters, "_parts", lambda *_: ["adapter_config.json"])
    artefacts = with_an_adapter(tmp_path)
    store: Any = SimpleNamespace(artefacts=artefacts, vault=Vault(KeyFile.create(tmp_path / "k")))
    file = adapters.adapter_folder(store, "adapters/a") / "adapter_config.json"
    file.write_bytes(b"")
    assert adapters.adapter_folder(store, "adapters/a") == file.parent
    assert file.read_bytes() == b"{}"
    artefacts.put("adapters/a", "adapter_config.json", b"other")
    file.write_bytes(b"")
    with pytest.raises(DataDamaged):
        adapters.adapter_folder(store, "adapters/a")
    on_disk: Any = SimpleNamespace(
        artefacts=Artefacts(tmp_path / "own", "", tmp_path), vault=store.vault
    )
    on_disk.artefacts.put("adapters/a", "adapter_config.json", b"other")
    with pytest.raises(DataDamaged):  # there is no other copy
        adapters.adapter_folder(on_disk, "adapters/a")
    assert (tmp_path / "own" / "adapters" / "a" / "adapter_config.json").exists()


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(116, "stale")])
def test_a_key_file_that_cannot_be_read_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    """Rotated as root beside a server it was a fault of ptalign in every call."""
    file = KeyFile.create(tmp_path / "operator.key")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", lambda *_, **__: (_ for _ in ()).throw(error))
        with pytest.raises(KeysAway, match=f"cannot be read: {error.strerror}. It must belong"):
            file.reload()
        with pytest.raises(KeysAway):
            KeyFile(file.path)
    file.reload()


def test_one_adapter_brought_twice_at_a_time_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two evaluations of one adapter wrote one partial file: the second lost it, and failed."""
    artefacts = with_an_adapter(tmp_path)
    chunks, both = artefacts.chunks, Barrier(2)

    def met(name: str, part: str, offset: int) -> Iterator[bytes]:
        with suppress(BrokenBarrierError):  # the second does not come while the first brings it
            both.wait(1)
        return chunks(name, part, offset)

    monkeypatch.setattr(artefacts, "chunks", met)
    with ThreadPoolExecutor(2) as pool:
        wanted = [
            pool.submit(artefacts.folder, "adapters/a", ["adapter_config.json"]) for _ in "12"
        ]
        folders = [future.result() for future in wanted]
    for folder in folders:
        assert [(f.name, f.read_bytes()) for f in folder.iterdir()] == [
            ("adapter_config.json", b"{}")
        ]


def test_a_store_that_does_not_answer_may_do_so_when_it_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operation met its error as a fault of ptalign, and ended at the last of its steps."""
    artefacts = with_an_adapter(tmp_path)

    def away(*_: Any, **__: Any) -> None:
        raise GenericError("https://signed")

    for call, what in (("put", "stored"), ("head", "read"), ("get_range", "read")):
        with monkeypatch.context() as patch:
            patch.setattr(f"obstore.{call}", away)
            with pytest.raises(NotReady, match=f"adapters/a cannot be {what} now") as caught:
                if call == "put":
                    artefacts.put("adapters/a", "adapter_config.json", b"{}")
                else:
                    artefacts.folder("adapters/a", ["adapter_config.json"])
        assert caught.value.retryable
        assert "signed" not in str(caught.value)
    with pytest.raises(NotFound):  # what is not there is not there next time
        artefacts.folder("adapters/b", ["adapter_config.json"])
    assert artefacts.folder("adapters/a", ["adapter_config.json"]).is_dir()


def test_the_longest_unused_leave_the_cache_and_what_is_in_use_stays(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    url = f"file://{tmp_path}/bucket"
    artefacts = Artefacts(tmp_path / "unused", url, tmp_path / "cache", 250)
    names = ("oldest", "used", "older", "newer", "chat")
    folders: dict[str, Path] = {}
    for hours, name in zip((9, 8, 7, 6, 0), names, strict=True):
        artefacts.put(f"adapters/{name}", "adapter_config.json", b"x" * 100)
        folders[name] = artefacts.folder(f"adapters/{name}", ["adapter_config.json"])
        then = time.time() - hours * 3600 - 5
        os.utime(folders[name], (then, then))

    def left() -> set[str]:
        artefacts.trim(lambda: {"adapters/used"})
        return {name for name, folder in folders.items() if folder.exists()}

    assert artefacts.folder("adapters/oldest", ["adapter_config.json"]) == folders["oldest"]
    assert left() == {"oldest", "used", "chat"}  # too much still, and nothing that may go
    os.utime(folders["oldest"], (1, 1))
    assert left() == {"used", "chat"}
    again = artefacts.folder("adapters/older", ["adapter_config.json"])
    assert (again / "adapter_config.json").read_bytes() == b"x" * 100


def test_adapters_are_not_brought_into_the_folder_that_servers_share(tmp_path: Path) -> None:
    """One process knows who brings which file; two servers would write one partial file."""
    old, bucket = tmp_path / "state" / "work" / "cache", tmp_path / "bucket"
    old.mkdir(parents=True)
    bucket.mkdir()
    settings = Settings(state=tmp_path / "state", artefacts=f"file://{bucket}")
    opened = Store(settings, lambda _: b"")
    opened.artefacts.put("adapters/a", "adapter_config.json", b"{}")
    folder = opened.artefacts.folder("adapters/a", ["adapter_config.json"])
    opened.close()
    assert not folder.is_relative_to(settings.state / "work")
    assert not old.exists()


def test_state_files_are_private(store: Store, tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert state.stat().st_mode & 0o777 == 0o700
    for name in ("ptalign.db", "operator.key"):
        assert (state / name).stat().st_mode & 0o077 == 0, name
