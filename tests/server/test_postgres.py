"""The store on a real PostgreSQL, with two servers on it at once."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from test_deploy_scaled import database  # noqa: F401
from test_gateway import put_set

from ptalign.errors import InvalidInput, NotReady
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server import wire
from ptalign_server.admin.keys import rotate_all
from ptalign_server.errors import OnHold
from ptalign_server.gateway import serve
from ptalign_server.gateway.identity import Identity
from ptalign_server.gateway.submit import Submission, _Insert
from ptalign_server.settings import EngineSettings, Settings
from ptalign_server.store import Store
from ptalign_server.store.db import HEAD, current_revision, migrate
from ptalign_server.store.names import LOST_AFTER, Name
from ptalign_server.store.operations import QUEUED, new_id
from ptalign_server.store.requests import ticket
from ptalign_server.store.resources import Resource
from ptalign_server.store.schema import holds, withdrawals
from ptalign_server.vault import KeyFile

WHO = Identity("me", "default", frozenset({"engineer"}))


@pytest.fixture
def stores(database: str, tmp_path: Path) -> Iterator[tuple[Store, Store]]:  # noqa: F811
    """Two servers' stores, opened at the same moment on an empty database."""
    key = tmp_path / "operator.key"
    KeyFile.create(key)
    settings = [
        Settings(state=tmp_path / f"state-{n}", database=database, key_file=key) for n in range(2)
    ]
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda s: Store(s, wire.freeze), settings)
    yield first, second
    first.close()
    second.close()


def submit(store: Store, request_id: str) -> str:
    request = pb.GenerateInstructionsRequest(model="m", policy="p", count=3, request_id=request_id)
    seen = ticket(store.vault, "default", "GenerateInstructions", request)
    change = _Insert(store, Submission(WHO, "GenerateInstructions", request, seen), 10**6)
    return store.write(change).result()


def test_the_same_request_id_at_two_servers_makes_one_operation(
    stores: tuple[Store, Store],
) -> None:
    ids = [str(uuid.uuid4()) for _ in range(40)]
    with ThreadPoolExecutor(16) as threads:
        made = list(threads.map(lambda n: submit(stores[n % 2], ids[n // 4]), range(160)))
    assert len(set(made)) == 40
    assert all(len(set(made[i : i + 4])) == 1 for i in range(0, 160, 4))
    assert len(stores[0].operations.page("default", 500)) == 40


def test_events_stay_gapless_when_two_servers_write_them(stores: tuple[Store, Store]) -> None:
    operation_id = submit(stores[0], str(uuid.uuid4()))

    def advance(number: int) -> None:
        stores[number % 2].operations.advance(operation_id, lambda o: replace(o, state=QUEUED))

    threads = [threading.Thread(target=advance, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [e.sequence for e in stores[1].operations.events(operation_id, 0)]
    assert found == list(range(1, 14))


def test_a_deadlock_of_two_servers_is_nobodys_error(stores: tuple[Store, Store]) -> None:
    """Each locks the row that the other wants next: PostgreSQL ends one, which is made again."""
    ids = [submit(stores[0], str(uuid.uuid4())) for _ in range(2)]
    both = threading.Barrier(2)
    runs = [0, 0]

    def change(number: int, connection: sa.Connection) -> None:
        runs[number] += 1
        for turn in range(2):
            stores[number].operations.advance_in(
                connection, ids[number ^ turn], lambda o: replace(o, state=QUEUED)
            )
            if turn == 0 and runs[number] == 1:
                both.wait(20)

    written = [stores[n].write(lambda c, n=n: change(n, c)) for n in range(2)]
    for one in written:
        one.result(60)
    assert max(runs) == 2  # on a busy machine both may be ended
    assert [stores[0].operations.get(i).sequence for i in ids] == [3, 3]


def test_the_audit_chain_holds_over_two_servers(stores: tuple[Store, Store]) -> None:
    def add(number: int) -> None:
        store = stores[number % 2]
        store.write(
            lambda c: store.audit.add(c, "default", "me", "read", f"x/{number}", {})
        ).result()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(add, range(30)))
    assert stores[0].audit.count() == 30
    assert stores[1].audit.first_bad() == 0


def test_one_server_reads_what_the_other_sealed_and_rotation_reaches_both(
    stores: tuple[Store, Store],
) -> None:
    first, second = stores
    set_id = new_id()
    _, wrapped = first.vault.fresh_key(set_id)
    first.write(lambda c: first.keys.insert(c, set_id, wrapped)).result()
    sealed = first.keys.get(set_id).seal("place", b"text")
    assert second.keys.get(set_id).open("place", sealed) == b"text"
    first.vault.keyfile.add()
    first.keys.rotate()
    first.vault.keyfile.keep_current()
    assert second.keys.get(set_id).open("place", sealed) == b"text"


def test_keys_stored_while_a_rotation_runs_are_not_lost(stores: tuple[Store, Store]) -> None:
    """PostgreSQL lets both go on at once: the rotation waits for inserts that are under way."""
    first, second = stores
    ids = [new_id() for _ in range(60)]

    def make(set_id: str) -> None:
        _, wrapped = first.vault.fresh_key(set_id)
        first.write(lambda c: first.keys.insert(c, set_id, wrapped)).result()

    with ThreadPoolExecutor(4) as threads:
        made = [threads.submit(make, set_id) for set_id in ids]
        for _ in range(6):
            rotate_all(second)
        for future in made:
            future.result()
    rotate_all(second)
    assert len(second.vault.keyfile.keys) == 1
    assert all(second.keys.get(set_id).set_id == set_id for set_id in ids)


def test_a_changed_row_is_refused_here_too(stores: tuple[Store, Store]) -> None:
    operation_id = submit(stores[0], str(uuid.uuid4()))
    with stores[0].engine.begin() as connection:
        connection.execute(sa.text("update operations set tenant = 'other'"))
    with pytest.raises(Exception, match="was changed in the database"):
        stores[1].operations.get(operation_id)


def test_a_name_that_no_text_column_holds_is_the_callers_error(
    stores: tuple[Store, Store],
) -> None:
    """psycopg refuses NUL, which was an internal error; on SQLite there is no such name."""
    resources, operations = stores[0].resources, stores[0].operations
    filters = {"before": "", "model": "", "policy": ""}
    for ask in (
        lambda: resources.get("adapters/a\0", "default"),
        lambda: operations.get("a\0", "default"),
        lambda: operations.page("default", 5, before="a\0"),
        lambda: resources.page("default", "adapters", 5, **filters | {"model": "a\0"}),
    ):
        with pytest.raises(InvalidInput, match="holds a NUL character"):
            ask()
    assert resources.page("default", "adapters", 5, **filters) == []


@pytest.mark.parametrize(
    ("revision", "later"), [("0001", (holds, withdrawals)), ("0002", (withdrawals,))]
)
def test_an_earlier_schema_grows_once(
    stores: tuple[Store, Store], revision: str, later: tuple[sa.Table, ...]
) -> None:
    """Two servers of this release begin at the same moment."""
    with stores[0].engine.begin() as connection:
        for table in later:
            table.drop(connection)
        connection.execute(sa.text(f"update alembic_version set version_num = '{revision}'"))
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(migrate, [store.engine for store in stores]))
    assert current_revision(stores[1].engine) == HEAD
    assert stores[1].holds.names() == stores[1].withdrawals.names() == []


def test_an_adapter_is_withdrawn_once_and_for_every_server(stores: tuple[Store, Store]) -> None:
    """Whoever is second waits for the first, and is told that it changed nothing."""
    name = f"adapters/{new_id()}"
    row = Resource(
        name=name, collection="adapters", tenant="default", model="m", policy="p", verdict="",
        adapter="", partial=False, purged=False, content="", body=b"", created=1.0,
    )  # fmt: skip
    stores[0].write(lambda c: stores[0].resources.insert(c, row)).result()
    first, second = stores
    with first.engine.begin() as connection:
        assert first.withdrawals.add(connection, name)
        withdrawing = second.write(lambda c: second.withdrawals.add(c, name))
        wait_for_a_lock(second, withdrawing)
    assert withdrawing.result() is False
    assert second.withdrawals.names() == [name]
    assert second.write(lambda c: second.withdrawals.remove(c, name)).result()
    assert first.withdrawals.names() == []


def test_a_hold_keeps_text_from_every_server(stores: tuple[Store, Store]) -> None:
    first, second = stores
    name = put_set(first, "pairSets")
    first.write(lambda c: first.holds.add(c, name)).result()
    with pytest.raises(OnHold):
        second.write(lambda c: second.keys.destroy(c, name.partition("/")[2])).result()
    assert second.holds.names() == [name]
    first.keys.get(name.partition("/")[2])


def wait_for_a_lock(store: Store, change: Future[bool]) -> None:
    """Returns once `change` waits for another's lock, or went through."""
    waiting = sa.text("select count(*) from pg_stat_activity where wait_event_type = 'Lock'")
    with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while not change.done() and not connection.execute(waiting).scalar():
            pass


def test_a_hold_waits_for_a_purge_that_was_first(stores: tuple[Store, Store]) -> None:
    """It must not be said to hold what is destroyed at the same moment."""
    first, second = stores
    name = put_set(first, "pairSets")
    destroyed, go = threading.Event(), threading.Event()

    def purge(connection: sa.Connection) -> None:
        first.keys.destroy(connection, name.partition("/")[2])
        destroyed.set()
        assert go.wait(60)

    purging = first.write(purge)
    assert destroyed.wait(60)
    holding = second.write(lambda c: second.holds.add(c, name))
    wait_for_a_lock(first, holding)
    go.set()
    purging.result()
    with pytest.raises(InvalidInput, match="has no text"):
        holding.result()
    assert second.holds.names() == []


def test_a_second_server_of_one_name_does_not_start(stores: tuple[Store, Store]) -> None:
    """Each took up what the other ran, at every start, and both wrote one log."""
    first, second = (Name(store.engine, "local") for store in stores)
    first.take(0)
    with pytest.raises(NotReady, match=r"'local'.*PTALIGN_EXECUTOR_ID"):
        second.take(0.5)
    other = Name(stores[1].engine, "ptalign-1")
    other.take(0)
    other.close()
    first.close()
    second.take(0)
    second.close()


async def test_a_server_asks_for_its_name_before_it_touches_anything(
    stores: tuple[Store, Store],
    database: str,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serve, "NAME_SECONDS", 0)
    monkeypatch.setattr(serve.metrics, "prepare", lambda _: None)
    monkeypatch.setattr(Store, "claim_sets", lambda _: pytest.fail("it started"))
    key, engine = tmp_path / "operator.key", EngineSettings(kind="scripted")
    name = Name(stores[0].engine, "local")
    name.take(0)
    settings = Settings(state=tmp_path / "third", database=database, key_file=key, engine=engine)
    with pytest.raises(NotReady, match="another server of this database"):
        await serve.serve(settings, lambda _: None)
    name.close()


def test_a_servers_name_is_taken_again_after_its_connection_was_lost(
    stores: tuple[Store, Store], caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (Name(store.engine, "local") for store in stores)
    first.take(0)
    for taken_meanwhile in (False, True):
        drop_holders(stores[1])
        if taken_meanwhile:
            second.take(1)
            kept = [first.keep() for _ in range(LOST_AFTER)]
            assert kept == [True] * (LOST_AFTER - 1) + [False], "another runs what stands under it"
            assert "another server of this database is called 'local'" in caplog.text
            second.close()
        assert first.keep()
        with pytest.raises(NotReady):
            second.take(0)
    first.close()


def drop_holders(store: Store) -> None:
    """Ends the connections that hold names."""
    holders = "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory'"
    with store.engine.connect() as connection:
        assert connection.execute(sa.text(holders)).scalars().all() == [True]
