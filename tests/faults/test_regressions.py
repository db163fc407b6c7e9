"""One test per bug that the fault tests found, named after it."""

from __future__ import annotations

import asyncio
import base64
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
import sqlalchemy as sa
from gate import gateway, import_two, methods
from google.longrunning import operations_pb2 as lro
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from postgres import Cluster
from test_adapter_files import info
from test_adapter_files import write as write_adapter
from world import MODEL, POLICY, generate, opened

from ptalign.errors import DataDamaged, NotReady
from ptalign.nouns import Instruction, InstructionSet
from ptalign_proto.v1 import library_pb2 as lib
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server import wire
from ptalign_server.admin.keys import rotate_all
from ptalign_server.errors import is_disk_full, status_of
from ptalign_server.gateway import serve
from ptalign_server.gateway.identity import Identity
from ptalign_server.gateway.purge import finish_purges
from ptalign_server.gateway.submit import Submission, _Insert
from ptalign_server.locks import hold_lock
from ptalign_server.manifest import PART, Signer
from ptalign_server.metrics import Metrics
from ptalign_server.settings import EngineSettings, Settings
from ptalign_server.store import Store
from ptalign_server.store.db import DatabaseAway, DatabaseBusy
from ptalign_server.store.operations import RUNNING, SUCCEEDED, VALIDATING, Operation, new_id
from ptalign_server.store.requests import ticket
from ptalign_server.store.resources import Resource
from ptalign_server.store.schema import audit, operations, request_ids, resources
from ptalign_server.store.writer import Writer, _Task
from ptalign_server.vault import KeyFile
from ptalign_server.worker import __main__ as worker_main
from ptalign_server.worker import perform, run
from ptalign_server.worker.job import Job, Made, Room
from ptalign_server.worker.jobs import JOBS
from ptalign_server.worker.patience import may_pass
from ptalign_server.worker.run import set_damaged_aside


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


async def test_a_watch_beyond_the_end_ends(tmp_path: Path) -> None:
    """A watcher that had seen the last event of a finished operation waited for ever."""
    async with gateway(tmp_path / "state") as gate:
        made = await gate.tuning.GenerateInstructions(generate(2))
        await gate.operations.CancelOperation(lro.CancelOperationRequest(name=made.name))
        for after in (2, 3, 2**64 - 1):
            request = pb.WatchOperationRequest(name=made.name, after_sequence=after)
            events = [e.sequence async for e in gate.tuning.WatchOperation(request, timeout=10)]
            assert events == []


async def test_a_huge_sequence_or_offset_is_a_number_like_any(tmp_path: Path) -> None:
    """uint64 values above what SQLite and Python's islice take ended in INTERNAL."""
    async with gateway(tmp_path / "state") as gate:
        name = await import_two(gate)
        for offset, limit in ((2**64 - 1, 0), (0, 2**64 - 1), (2**63, 2**63)):
            request = lib.StreamRecordsRequest(name=name, offset=offset, limit=limit)
            found = [r async for r in gate.library.StreamRecords(request)]
            assert len(found) == (0 if offset else 2)
        made = await gate.tuning.GenerateInstructions(generate(2))
        request = pb.WatchOperationRequest(name=made.name, after_sequence=2**64 - 1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [e async for e in gate.tuning.WatchOperation(request, timeout=0.5)]
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_thousand_bad_fields_still_give_an_answer_clients_can_read(tmp_path: Path) -> None:
    """Naming every bad field overran the 8 KiB of trailers: the client saw another error."""
    async with gateway(tmp_path / "state") as gate:
        request = lib.CreateAnnotationSetRequest(model=MODEL, policy=POLICY)
        for _ in range(1000):
            request.items.add()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await gate.library.CreateAnnotationSet(request)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "and 1993 more" in str(caught.value.details())


async def test_bytes_that_are_no_message_are_the_callers_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """grpc answered UNKNOWN and logged a traceback for each."""
    async with gateway(tmp_path / "state") as gate:
        for method in methods():
            code, _ = await gate.raw(method, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x0f\x01")
            assert code == "INVALID_ARGUMENT", method.name
    assert "Traceback" not in caplog.text


async def test_one_request_id_in_two_spellings_is_one_id(tmp_path: Path) -> None:
    """A UUID in braces counted as another id and was too long for PostgreSQL's column."""
    plain = "6c1f9cb2-9f0c-4a6f-8a52-0d1f3b0e8a11"
    async with gateway(tmp_path / "state") as gate:
        names = {
            (await gate.tuning.GenerateInstructions(generate(2, request_id=spelling))).name
            for spelling in (plain, plain.upper(), "{" + plain + "}", plain.replace("-", ""))
        }
    assert len(names) == 1


async def test_a_changed_request_id_row_answers_nothing(tmp_path: Path) -> None:
    """Rows of request ids carried no MAC: a flipped byte could name another operation."""
    async with gateway(tmp_path / "state") as gate:
        request = generate(2)
        await gate.tuning.GenerateInstructions(request)
        with gate.store.engine.begin() as connection:
            connection.execute(request_ids.update().values(answer="0" * 24))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await gate.tuning.GenerateInstructions(request)
        assert caught.value.code() == grpc.StatusCode.DATA_LOSS


def test_a_cut_audit_trail_is_seen(store: Store) -> None:
    """Each entry covered the one before it, but nothing said how many there are."""
    for number in range(4):
        store.write(
            lambda c, n=number: store.audit.add(c, "default", "me", "read", f"set/{n}", {})
        ).result()
    assert (store.audit.first_bad(), store.audit.count()) == (0, 4)
    with store.engine.begin() as connection:
        connection.execute(audit.delete().where(audit.c.sequence == 4))
    assert store.audit.first_bad() == 4
    with store.engine.begin() as connection:
        connection.execute(audit.delete().where(audit.c.sequence == 0))
    assert store.audit.first_bad() == 4


def test_two_servers_do_not_share_a_state_folder(tmp_path: Path) -> None:
    """A second server on other ports ran the same operations beside the first."""
    held = hold_lock(tmp_path / "lock", 0.0)
    code = (
        "from pathlib import Path; import sys; from ptalign_server.locks import hold_lock; "
        "hold_lock(Path(sys.argv[1]), 0.2)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "lock")]
    second = subprocess.run(command, capture_output=True, text=True)
    assert "another server uses the state folder" in second.stderr
    held.close()
    assert subprocess.run(command).returncode == 0


def test_servers_of_two_names_do_not_share_a_state_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second removed the first's metrics and took over its sockets."""
    begun, go = threading.Event(), threading.Event()

    def prepare(_: Path) -> None:
        if begun.is_set():
            raise AssertionError("the second touches what the first uses")
        begun.set()
        go.wait(30)
        raise InterruptedError

    def start(name: str) -> None:
        engine = EngineSettings(kind="scripted")
        settings = Settings(state=tmp_path / "state", executor_id=name, engine=engine)
        with suppress(InterruptedError):
            asyncio.run(serve.serve(settings, lambda _: None))

    monkeypatch.setattr(serve, "LOCK_SECONDS", 0)
    monkeypatch.setattr(serve.metrics, "prepare", prepare)
    first = threading.Thread(target=start, args=("first",))
    first.start()
    try:
        assert begun.wait(30)
        with pytest.raises(NotReady, match="another server uses the state folder"):
            start("second")
    finally:
        go.set()
        first.join()


def test_a_worker_waits_for_that_of_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed server's may live on for a moment, and would run the same operations."""
    held: list[Path] = []

    def hold(path: Path, _: float) -> None:
        held.append(path)
        raise NotReady("another has it")

    monkeypatch.setattr(sys, "argv", ["worker", "1"])
    monkeypatch.setattr(worker_main, "hold_lock", hold)
    for name in ("die_with_parent", "refuse_unpickling"):
        monkeypatch.setattr(worker_main, name, lambda *_: None)
    monkeypatch.setattr("ptalign_server.logs.set_up", lambda _: None)
    monkeypatch.setenv("PTALIGN_STATE", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # it sets its own
    for name in ("first", "second"):
        monkeypatch.setenv("PTALIGN_EXECUTOR_ID", name)
        with pytest.raises(NotReady):
            worker_main.main()
    assert held[0] == held[1]


@pytest.mark.parametrize("place", [0, 100, 4096])
def test_a_damaged_job_database_is_set_aside(tmp_path: Path, place: int) -> None:
    """The worker died at every start, and with it all operations."""
    database = tmp_path / "jobs.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("create table t (a text primary key, b text)")
        rows = [(str(n), "x" * 50) for n in range(300)]
        connection.executemany("insert into t values (?, ?)", rows)
        connection.commit()
    set_damaged_aside(database)
    assert database.exists(), "a sound one stays"
    body = bytearray(database.read_bytes())
    body[place : place + 64] = bytes(64)
    database.write_bytes(body)
    set_damaged_aside(database)
    assert not database.exists()
    assert list(tmp_path.glob("jobs.db.damaged-*"))


async def test_health_can_be_watched(tmp_path: Path) -> None:
    """The interceptor took every stream for a generator; the health service writes by itself."""
    async with gateway(tmp_path / "state") as gate:
        stub = health_pb2_grpc.HealthStub(gate.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="nobody"), timeout=10)
        async for answer in watch:
            assert answer.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            break
        watch.cancel()


def test_a_wiped_audit_trail_is_seen(store: Store) -> None:
    """With its head gone too, a trail looked as if it had never been begun."""
    assert store.audit.first_bad() == 0
    store.write(lambda c: store.audit.add(c, "default", "me", "read", "set/1", {})).result()
    with store.engine.begin() as connection:
        connection.execute(audit.delete())
    assert store.audit.first_bad() == 1


def test_a_missing_operator_key_is_not_replaced(tmp_path: Path) -> None:
    """A start without the key file wrote a fresh key that could open nothing, in its place."""
    with opened(tmp_path / "state") as store:
        add_set(store)
    key = tmp_path / "state" / "operator.key"
    key.rename(tmp_path / "kept")
    with pytest.raises(NotReady, match="Restore it from its backup"), opened(tmp_path / "state"):
        pass
    assert not key.exists()
    (tmp_path / "kept").rename(key)
    with opened(tmp_path / "state") as store:
        assert store.audit.first_bad() == 0


def test_a_manifest_with_anothers_key_is_refused(store: Store, tmp_path: Path) -> None:
    """The key that a manifest shows to others was not signed and could be changed."""
    folder = write_adapter(tmp_path / "adapter")
    signer = Signer(store.vault)
    manifest = signer.sign("adapters/1", map(info, sorted(folder.iterdir())))
    (folder / PART).write_bytes(manifest)
    signer.check(folder, "adapters/1")
    other = base64.b64encode(b"k" * 32)
    (folder / PART).write_bytes(manifest.replace(signer.public_key.encode(), other))
    with pytest.raises(DataDamaged):
        signer.check(folder, "adapters/1")


def test_files_of_an_ended_operation_are_closed(store: Store) -> None:
    """A cancelled synthesis left its log open: its stage was held by the traceback."""
    job = Job(None, None, Room(None, store, None, None, None), None, lambda: False)  # type: ignore[arg-type]
    log = store.sets.log(add_operation(store), Instruction)
    job.logs.append(log)
    job.close()
    with pytest.raises(ValueError, match="closed"):
        log.append(instruction(1))


def test_a_set_made_after_a_rotation_outlives_the_old_key(store: Store, tmp_path: Path) -> None:
    """A running server went on wrapping new sets under the key that the rotation had dropped."""
    before = add_set(store)
    with opened(tmp_path / "state") as beside:
        rotate_all(beside)
    after = add_set(store)
    with opened(tmp_path / "state") as again:
        assert len(again.vault.keyfile.keys) == 1
        assert all(len(list(again.sets.records(made.name))) == 3 for made in (before, after))


def test_a_key_wrapped_before_a_rotation_and_stored_after_it_is_not_lost(
    store: Store, tmp_path: Path
) -> None:
    """The rotation ran between the two and did not see the row."""
    _, wrapped = store.vault.fresh_key("late")
    with opened(tmp_path / "state") as beside:
        rotate_all(beside)
    store.write(lambda c: store.keys.insert(c, "late", wrapped)).result()
    with opened(tmp_path / "state") as again:
        assert again.keys.get("late").set_id == "late"


def test_a_row_read_before_a_rotation_is_opened_after_it(store: Store, tmp_path: Path) -> None:
    """Reading the key file again forgot the key that the row in hand still needed."""
    made = add_set(store)
    held = store.keys._wrapped(made.id)
    assert held is not None
    with opened(tmp_path / "state") as beside:
        rotate_all(beside)
    assert store.keys.get(made.id).set_id == made.id
    assert store.vault.unwrap(made.id, held).set_id == made.id


@pytest.fixture
def on_postgres(cluster: Cluster, tmp_path: Path) -> Iterator[Store]:
    key = tmp_path / "key"
    KeyFile.create(key)
    settings = Settings(state=tmp_path / "scaled", database=cluster.url, key_file=key)
    made = Store(settings, wire.freeze)
    yield made
    made.close()


def test_postgres_away_is_told_as_such_and_nothing_needs_a_restart(
    cluster: Cluster, on_postgres: Store
) -> None:
    """Calls ended in INTERNAL, which no client tries again."""
    store = on_postgres
    known = add_operation(store)
    cluster.stop_at_once()
    for _ in range(2):  # a connection that breaks, and none to be had
        for use in (lambda: add_operation(store), lambda: store.operations.get(known)):
            with pytest.raises(NotReady) as caught:
                use()
            status = status_of(caught.value)
            assert status.code == grpc.StatusCode.UNAVAILABLE.value[0]
            assert any(d.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for d in status.details)
    cluster.start()
    add_operation(store)
    assert store.operations.get(known).id == known


def test_an_operation_whose_connection_is_cut_goes_on(
    on_postgres: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended FAILED with INTERNAL where another connection could still write that."""
    store, states = on_postgres, list[str]()

    def make(job: Job) -> Made:
        states.append(store.operations.get(job.operation.id).state)
        if len(states) < 8:  # oftener than a dead engine is forgiven
            with store.engine.begin() as connection:
                connection.execute(sa.text("select pg_terminate_backend(pg_backend_pid())"))
        return Made(noun=InstructionSet(records=(), requested=0), message=None, config=None)

    kind = "GenerateInstructions"
    monkeypatch.setitem(JOBS, kind, replace(JOBS[kind], make=make))
    monkeypatch.setattr(perform, "_seal", lambda *_: None)
    monkeypatch.setattr(run, "RETRY_SECONDS", 0.0)
    worker = run.Worker.__new__(run.Worker)
    worker.room = Room(Settings(), store, None, None, Metrics())  # type: ignore[arg-type]
    worker.ending, worker._told = threading.Event(), set()
    assert worker._persist(add_operation(store)) == SUCCEEDED
    assert states == [RUNNING] * 8


def test_changes_that_may_stand_are_not_made_again(store: Store) -> None:
    """The answer to a commit was lost, and each change of its batch was made once more."""
    made: Counter[str] = Counter()

    @contextmanager
    def begin() -> Iterator[sa.Connection]:
        with store.engine.begin() as connection:
            yield connection
        raise DatabaseAway

    writer = Writer(SimpleNamespace(begin=begin), store.audit)  # type: ignore[arg-type]
    tasks = [_Task(lambda _, name=name: made.update([name]), Future()) for name in "ab"]
    writer._commit(tasks)
    assert made == {"a": 1, "b": 1}
    assert all(isinstance(task.future.exception(), DatabaseAway) for task in tasks)
    writer.close()


def leave_no_room(connection: sqlite3.Connection, _: object) -> None:
    """A file that may grow by 16 pages: SQLite fails as on a full disk."""
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count={pages + 16}")


def test_what_a_full_disk_undid_is_not_acknowledged(store: Store) -> None:
    """SQLite rolls back the whole batch there, and the changes before and after stood as made."""
    with store.engine.begin() as connection:
        connection.execute(sa.text("create table kept (name text, body blob)"))

    def task(name: str, size: int) -> _Task:
        put = sa.text("insert into kept values (:name, zeroblob(:size))")
        return _Task(lambda made: made.execute(put, {"name": name, "size": size}), Future())

    store.engine.dispose()
    sa.event.listen(store.engine, "connect", leave_no_room)
    made = [task("before", 9), task("large", 1 << 20), task("after", 9)]
    store._writer._commit(made)
    assert is_disk_full(made[1].future.exception())  # type: ignore[arg-type]
    assert made[0].future.result(0) is not None
    assert made[2].future.result(0) is not None
    with store.engine.connect() as connection:
        names = connection.execute(sa.text("select name from kept")).scalars().all()
    assert names == ["before", "after"]


@contextmanager
def locked(store: Store) -> Iterator[sqlite3.Connection]:
    """Another process holds the file for longer than a change waits."""
    store.engine.dispose()
    sa.event.listen(store.engine, "connect", lambda made, _: made.execute("PRAGMA busy_timeout=50"))
    with closing(sqlite3.connect(store.engine.url.database or "", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other


def test_a_locked_database_says_try_again(store: Store) -> None:
    """The caller read INTERNAL; then each change of a batch waited for the lock in its turn."""
    waited: list[object] = []
    with locked(store):
        sa.event.listen(store.engine, "handle_error", lambda context: waited.append(context))
        made = [_Task(lambda _: None, Future()) for _ in range(8)]
        store._writer._commit(made)
        for task in made:
            with pytest.raises(DatabaseBusy):
                task.future.result(20)
        assert len(waited) == 1
    store.write(lambda _: None).result(20)


def test_an_operation_that_met_a_lock_goes_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it made was there, and it ended FAILED because its end could not be written at once."""
    tried: list[int] = []

    def end_with(*_: object) -> str:
        tried.append(1)
        if len(tried) < 3:
            raise DatabaseBusy(waited=True)
        return SUCCEEDED

    made = Made(noun=InstructionSet(records=(), requested=0), message=None, config=None)
    kind = "GenerateInstructions"
    monkeypatch.setitem(JOBS, kind, replace(JOBS[kind], make=lambda _: made))
    monkeypatch.setattr(perform, "_end_with", end_with)
    monkeypatch.setattr(run, "RETRY_SECONDS", 0.0)
    worker = run.Worker.__new__(run.Worker)
    worker.room = Room(Settings(), store, None, None, Metrics())  # type: ignore[arg-type]
    worker.ending, worker._told = threading.Event(), set()
    assert worker._persist(add_operation(store)) == SUCCEEDED
    assert may_pass(DatabaseBusy(waited=True))


def test_a_call_is_answered_with_the_operation_that_stands(store: Store) -> None:
    """Its change was undone and run again, after another server had taken the same request id."""
    request = pb.GenerateInstructionsRequest(
        model=MODEL, policy=POLICY, count=3, request_id=str(uuid.uuid4())
    )
    who = Identity("me", "default", frozenset({"engineer"}))
    seen = ticket(store.vault, "default", "GenerateInstructions", request)
    ours, theirs = (
        _Insert(store, Submission(who, "GenerateInstructions", request, seen), 100)
        for _ in range(2)
    )
    with store.engine.connect() as connection:
        ours(connection)
        connection.rollback()
    stands = store.write(theirs).result(20)
    assert store.write(ours).result(20) == stands
    assert ours.made is None, "the answer would have been the operation that was undone"
