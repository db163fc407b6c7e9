"""Retention goes on past what is damaged, looks at everything, and says when it did."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from google.longrunning import operations_pb2 as lro
from google.protobuf.json_format import ParseDict
from test_gateway import put_set
from typer.testing import CliRunner

from ptalign.errors import DataDamaged, InvalidInput
from ptalign.nouns import InstructionSet
from ptalign_proto.v1 import library_pb2 as lib
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server import wire
from ptalign_server.admin import hold as admin
from ptalign_server.admin.keys import rotate_all
from ptalign_server.errors import OnHold, OperationRunning, SetPurged
from ptalign_server.gateway import serve
from ptalign_server.gateway.identity import Identity, _caller
from ptalign_server.gateway.operations import Operations
from ptalign_server.gateway.purge import purge
from ptalign_server.gateway.retention import DAY_SECONDS, expire
from ptalign_server.gateway.watch import Feeds
from ptalign_server.metrics import Metrics
from ptalign_server.settings import Settings
from ptalign_server.store import Store
from ptalign_server.store.operations import FAILED, QUEUED, RUNNING, SUCCEEDED, Operation, new_id
from ptalign_server.store.schema import audit, operations, resources, set_keys

LATER = 31 * DAY_SECONDS
OPERATOR = Identity("me", "default", frozenset({"operator"}))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state=tmp_path / "state")


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    made = Store(settings, wire.freeze)
    yield made
    made.close()


def put_operation(
    store: Store,
    state: str,
    kind: str = "SynthesizePairs",
    request: Any = None,
    *,
    resource: str = "",
) -> str:
    found = new_id()
    key, wrapped = store.vault.fresh_key(found)
    request = request or wire.KINDS[kind].request()
    row = Operation(
        id=found, tenant="default", identity="me", kind=kind, state=state, sequence=1, attempt=0,
        request=key.seal("request", request.SerializeToString()), metadata=b"", error=b"",
        resource=resource, created=1.0, started=0.0, updated=1.0, ended=1.0,
    )  # fmt: skip

    def change(connection: sa.Connection) -> None:
        store.keys.insert(connection, found, wrapped)
        store.operations.insert(connection, row)

    store.write(change).result()
    return found


def damage(store: Store, statement: Any) -> None:
    with store.engine.begin() as connection:
        connection.execute(statement)


def damaged_set(store: Store) -> str:
    name = put_set(store, "instructionSets")
    damage(store, resources.update().where(resources.c.name == name).values(policy="x"))
    return name


def damaged_operation(store: Store) -> str:
    found = put_operation(store, FAILED)
    damage(store, operations.update().where(operations.c.id == found).values(identity="x"))
    return f"operations/{found}"


def damaged_key_in_use(store: Store) -> str:
    found = put_operation(store, QUEUED)
    damage(store, set_keys.update().where(set_keys.c.set_id == found).values(wrapped=b"x:y"))
    return f"operations/{found}"


def damaged_log(store: Store) -> str:
    name = damaged_operation(store)
    file = store.sets.folder(name.partition("/")[2]) / "log"
    file.parent.mkdir(parents=True)
    file.touch()
    return name


@pytest.mark.parametrize("harm", [damaged_set, damaged_operation, damaged_key_in_use, damaged_log])
def test_a_damaged_row_is_named_and_the_others_go(
    store: Store, settings: Settings, caplog: pytest.LogCaptureFixture, harm: Any
) -> None:
    name = harm(store)
    whole, stopped = (
        put_set(store, "instructionSets", tenant="another"),
        put_operation(store, FAILED),
    )
    gauges = Metrics()
    with caplog.at_level(logging.ERROR, "ptalign.server"):
        assert expire(store, settings, time.time() + LATER, gauges) == 2
    assert store.resources.get(whole, None).purged
    assert not store.sets.folder(stopped).exists()
    assert f"retention: {name} is left out" in caplog.text
    assert gauges.retention_success._value.get() == 0


def test_a_full_pass_moves_the_gauge(store: Store, settings: Settings) -> None:
    put_set(store, "instructionSets")
    gauges, now = Metrics(), time.time() + LATER
    assert expire(store, settings, now, gauges) == 1
    assert gauges.retention_success._value.get() == now
    expire(store, settings.model_copy(update={"retention_days": 0.0}), now + 1, gauges)
    assert gauges.retention_success._value.get() == now + 1


def test_a_pass_stops_with_the_server_and_the_next_goes_on(
    store: Store, settings: Settings
) -> None:
    """A long one went on after SIGTERM, and then waited for ever for a store that was closed."""
    names = [put_set(store, "pairSets") for _ in range(3)]

    def purged() -> int:
        return sum(store.resources.get(name, "default").purged for name in names)

    now, gauges = time.time() + LATER, Metrics()
    assert expire(store, settings, now, gauges, lambda: purged() > 0) == 1
    assert gauges.retention_success._value.get() != now
    assert purged() == 1
    assert expire(store, settings, now, gauges) == 2


async def test_retention_is_told_that_the_server_stops(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bool] = []
    gateway = serve.Gateway(settings, store, Metrics())
    seen: list[float] = []
    monkeypatch.setattr(gateway._metrics.retention_success, "set", seen.append)

    def expire_once(*_: Any, should_stop: Any, **__: Any) -> None:
        assert seen == [0]  # a gauge that was never set is in no scrape, and alerts nobody
        gateway._stopping.set()
        told.append(should_stop())

    monkeypatch.setattr(serve, "expire", expire_once)
    loop = asyncio.create_task(gateway._expire())
    while not told:
        await asyncio.sleep(0.01)
    loop.cancel()
    assert told == [True]


def test_what_an_operation_accepted_during_a_pass_needs_stays(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass of minutes looked once, at its start; the operation failed with SET_PURGED."""
    first, needed = (put_set(store, "instructionSets") for _ in range(2))
    erase = store.sets.erase

    def accept_and_erase(set_id: str) -> None:
        request = pb.SynthesizePairsRequest(instruction_set=needed)
        put_operation(store, QUEUED, request=request)
        erase(set_id)

    monkeypatch.setattr(store.sets, "erase", accept_and_erase)
    assert expire(store, settings, time.time() + LATER) == 1
    assert store.resources.get(first, None).purged
    store.keys.get(needed.partition("/")[2])


def test_a_set_that_cannot_be_erased_does_not_keep_the_next(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (put_set(store, "instructionSets") for _ in range(2))
    erase = store.sets.erase

    def erase_all_but_first(set_id: str) -> None:
        if first.endswith(set_id):
            raise PermissionError
        erase(set_id)

    monkeypatch.setattr(store.sets, "erase", erase_all_but_first)
    assert expire(store, settings, time.time() + LATER) == 1
    assert store.resources.get(second, None).purged


def test_every_operation_under_way_is_looked_at(store: Store) -> None:
    """Page by page: more may wait than one page holds."""
    ids = [put_operation(store, state) for state in (QUEUED, FAILED, QUEUED, QUEUED, QUEUED)]
    hurt = ids[2]
    damage(store, operations.update().where(operations.c.id == hurt).values(identity="x"))
    told: list[str] = []
    found = [o.id for o in store.operations.under_way(told.append, size=2)]
    assert sorted(found) == sorted({*ids} - {ids[1], hurt})
    assert told == [f"operations/{hurt}"]


def test_the_working_folder_goes_with_a_stopped_operation(store: Store, settings: Settings) -> None:
    found = put_operation(store, FAILED)
    folder = store.work(found)
    (folder / "run" / "checkpoints").mkdir(parents=True)
    assert expire(store, settings, time.time() + LATER) == 1
    assert not folder.exists()
    (entry,) = store.audit.entries()
    assert (entry.identity, entry.action) == ("retention", "purge")
    assert entry.target == f"operations/{found}"


def run_through(store: Store, ended: float, *, reports: int = 12) -> str:
    """An operation with its events, ended then."""
    found = put_operation(store, QUEUED, resource="pairSets/1")
    for number in range(reports):
        store.operations.advance(found, lambda o, n=number: replace(o, attempt=n))
    store.operations.advance(found, lambda o: replace(o, state=SUCCEEDED, ended=ended))
    return found


async def test_old_operations_keep_the_event_that_ends_a_watch(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every event of every operation stayed for ever: up to 9,000 of an hour's work."""
    monkeypatch.setattr("ptalign_server.store.operations.DROPPED_AT_ONCE", 5)
    now = time.time() + LATER
    old, held, young = run_through(store, 1.0), run_through(store, 1.0), run_through(store, now)
    running = put_operation(store, QUEUED)
    store.operations.advance(running, lambda o: replace(o, state=RUNNING))
    hold(store, f"operations/{held}")
    expire(store, settings, now)
    kept = {name: len(store.operations.events(name, 0)) for name in (old, held, young, running)}
    assert kept == {old: 1, held: 14, young: 14, running: 2}
    last = store.operations.get(old).sequence
    for after in (0, 3, last):  # from the start, and where a watcher was cut off
        told = [event async for event in Feeds(store).events(old, after) if event.sequence <= last]
        assert [event.sequence for event in told] == ([last] if after < last else [])


def test_without_retention_every_event_stays(store: Store, settings: Settings) -> None:
    old = run_through(store, 1.0)
    never = settings.model_copy(update={"retention_days": 0.0})
    expire(store, never, time.time() + LATER)
    assert len(store.operations.events(old, 0)) == 14


def test_history_is_looked_for_page_by_page(store: Store) -> None:
    ids = [run_through(store, 1.0, reports=1) for _ in range(5)]
    damage(store, operations.update().where(operations.c.id == ids[2]).values(identity="x"))
    told: list[str] = []
    found = [o.id for o in store.operations.with_history(2.0, told.append, size=2)]
    assert sorted(found) == sorted({*ids} - {ids[2]})
    assert told == [f"operations/{ids[2]}"]


def fields(message: Any, path: str = "") -> Iterator[str]:
    """Paths of a request's string fields that may name something; text that it brings cannot."""
    for field in message.fields:
        name = path + field.name
        if field.name in NO_SETS:
            continue
        if field.message_type is not None:
            yield from fields(field.message_type, f"{name}.")
        elif field.type == field.TYPE_STRING:
            yield name


NO_SETS = {
    "request_id", "model", "policy", "policy_spec", "seeds", "excerpts", "locale", "topics",
    "annotations", "token_weighting", "protected_words", "lora", "guards", "ut_candidates",
    "label", "suites", "judges", "gate", "parent_adapter",
}  # fmt: skip
"""Fields that name no set. A new one stands here, or its set is kept while it is worked with."""


@pytest.mark.parametrize(
    ("kind", "path"),
    [(kind, path) for kind, made in wire.KINDS.items() for path in fields(made.request.DESCRIPTOR)],
)
def test_what_a_call_under_way_names_stays(
    store: Store, settings: Settings, kind: str, path: str
) -> None:
    if path == "resume_from":
        name = f"operations/{put_operation(store, FAILED, kind)}"
    else:
        name = put_set(store, "instructionSets")
    kept, going = {name}, 0
    if path.endswith("adapter"):  # and what it was made from: Evaluate measures on it
        marks = put_set(store, "annotationSets", message=res.AnnotationSet())
        pairs = put_set(store, "pairSets", message=made_of(res.PairSet(), name, marks))
        first = put_set(store, "adapters", message=made_of(res.Adapter(), pairs))
        name = put_set(store, "adapters", message=made_of(res.Adapter(), first))
        kept, going = {marks, pairs}, 1
    value: Any = name
    for part in reversed(path.split(".")):
        value = {part: [value] if part == "also" else value}
    put_operation(store, QUEUED, kind, ParseDict(value, wire.KINDS[kind].request()))
    assert expire(store, settings, time.time() + LATER) == going
    for name in kept:
        store.keys.get(name.partition("/")[2])


def made_of(message: Any, *names: str) -> Any:
    message.meta.parents.extend(f"{name}@sha256:d" for name in names)
    return message


def test_files_that_came_before_their_row_go_where_it_never_came(
    store: Store, settings: Settings
) -> None:
    """A commit was cut off, or the server was killed before it."""
    stands, lost = put_set(store, "instructionSets"), new_id()
    key, _ = store.vault.fresh_key(lost)
    store.sets.write(lost, key, InstructionSet(records=(), requested=3))
    for_ever = settings.model_copy(update={"retention_days": 0.0})
    expire(store, for_ever)
    assert store.sets.folder(lost).exists(), "its commit may be on its way"
    expire(store, for_ever, time.time() + 3601)
    assert not store.sets.folder(lost).exists()
    assert list(store.sets.records(stands)) == []
    assert not store.sets.unsettled(time.time() + 3601)


def test_checkpoints_of_a_deleted_operation_go_where_a_crash_left_them(
    store: Store, settings: Settings
) -> None:
    """The row was gone, so nothing would ever have named them."""
    waiting, failed = put_operation(store, QUEUED), put_operation(store, FAILED)
    damaged = damaged_operation(store).partition("/")[2]
    kept = [*map(store.work, (waiting, failed, damaged)), store.work("lost+found")]
    left = store.work(new_id())
    for folder in (*kept, left):
        (folder / "run").mkdir(parents=True)
    for_ever = settings.model_copy(update={"retention_days": 0.0})
    expire(store, for_ever)
    assert not left.exists()
    assert all((folder / "run").exists() for folder in kept)


def hold(store: Store, *names: str) -> None:
    for name in names:
        store.write(lambda connection, name=name: store.holds.add(connection, name)).result()


async def test_what_is_held_is_destroyed_by_nobody(store: Store, settings: Settings) -> None:
    name, stopped = put_set(store, "instructionSets"), f"operations/{put_operation(store, FAILED)}"
    hold(store, name, stopped, stopped)
    assert store.holds.names() == [name, stopped]
    assert expire(store, settings, time.time() + LATER) == 0
    _caller.set(OPERATOR)
    delete = lro.DeleteOperationRequest(name=stopped)
    request = lib.PurgeSetRequest(name=name, reason="a test", request_id=str(uuid.uuid4()))
    with pytest.raises(OnHold, match=f"hold remove {name}"):
        await purge(request, OPERATOR, store)
    with pytest.raises(OnHold, match=f"hold remove {stopped}"):
        await Operations(store, Feeds(store)).DeleteOperation(delete, None)
    for kept in (name, stopped):
        store.keys.get(kept.partition("/")[2])
        assert store.write(lambda c, kept=kept: store.holds.remove(c, kept)).result()
    await purge(request, OPERATOR, store)
    assert expire(store, settings, time.time() + LATER) == 1
    assert not store.write(lambda connection: store.holds.remove(connection, name)).result()


async def test_checkpoints_that_an_operation_will_go_on_from_stay(store: Store) -> None:
    """The call was accepted, and ended without them when its turn came."""
    stopped = put_operation(store, FAILED, "Align")
    (store.work(stopped) / "run").mkdir(parents=True)
    request = pb.AlignRequest(resume_from=f"operations/{stopped}")
    never_began = put_operation(store, FAILED, "Align", request)
    request = pb.AlignRequest(resume_from=f"operations/{never_began}")
    waiting = put_operation(store, QUEUED, "Align", request)
    _caller.set(OPERATOR)
    delete = lro.DeleteOperationRequest(name=f"operations/{stopped}")
    with pytest.raises(OperationRunning, match=f"operations/{waiting} goes on from"):
        await Operations(store, Feeds(store)).DeleteOperation(delete, None)
    assert (store.work(stopped) / "run").exists()
    store.operations.advance(waiting, lambda o: replace(o, state=FAILED))
    await Operations(store, Feeds(store)).DeleteOperation(delete, None)
    assert not store.work(stopped).exists()


async def test_the_call_that_made_a_held_set_stays_with_it(store: Store) -> None:
    """Marks that it brought along are nowhere else."""
    made = put_operation(store, SUCCEEDED, resource="pairSets/made")
    hold(store, f"pairSets/{made}")
    _caller.set(OPERATOR)
    with pytest.raises(OnHold):
        request = lro.DeleteOperationRequest(name=f"operations/{made}")
        await Operations(store, Feeds(store)).DeleteOperation(request, None)
    assert store.operations.get(made).done


def test_a_hold_that_comes_during_a_pass_is_seen(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, stopped = put_set(store, "instructionSets"), f"operations/{put_operation(store, FAILED)}"
    store.sets.folder(stopped.partition("/")[2]).mkdir(parents=True)
    hold(store, name, stopped)
    monkeypatch.setattr(store.holds, "names", list)  # the pass had looked before
    assert expire(store, settings, time.time() + LATER) == 0
    for kept in (name, stopped):
        store.keys.get(kept.partition("/")[2])
        assert store.sets.folder(kept.partition("/")[2]).exists()


def test_an_operations_hold_keeps_what_it_made(store: Store, settings: Settings) -> None:
    """Both have one key."""
    name = put_set(store, "instructionSets")
    hold(store, f"operations/{name.partition('/')[2]}")
    assert expire(store, settings, time.time() + LATER) == 0
    store.keys.get(name.partition("/")[2])


@pytest.mark.parametrize("name", ["pairSets/nope", "pairSets/"])
def test_what_has_no_text_is_not_held(store: Store, name: str) -> None:
    """A misspelt name was taken, and its text destroyed a month later."""
    with pytest.raises(InvalidInput, match="has no text"):
        hold(store, name)


def test_holds_of_an_earlier_version_are_taken_over(store: Store, settings: Settings) -> None:
    """Also from a backup that it made."""
    name, file = put_set(store, "instructionSets"), settings.state / "holds.json"
    for _ in range(2):
        file.write_text(json.dumps([name]))
        Store(settings, wire.freeze).close()
        assert not file.exists()
        assert store.holds.names() == [name]
    file.write_text("[")
    with pytest.raises(DataDamaged, match="hold again what it named"):
        Store(settings, wire.freeze)


def test_the_command_holds_and_releases(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = put_set(store, "instructionSets")
    monkeypatch.setenv("PTALIGN_STATE", str(settings.state))

    def said(*arguments: str) -> str:
        done = CliRunner().invoke(admin.app, arguments, catch_exceptions=False)
        assert done.exit_code == 0
        return done.output

    assert said("add", name) == f"held: {name}\n"
    assert said("list") == f"{name}\n"
    assert said("remove", name) == f"released: {name}\n"
    assert said("list") == ""
    with pytest.raises(InvalidInput, match="is not held"):
        said("remove", name)


def test_who_held_and_released_what_is_in_the_audit_trail(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for each change: what is held already is not held again."""
    name, stopped = put_set(store, "instructionSets"), f"operations/{put_operation(store, FAILED)}"
    monkeypatch.setenv("PTALIGN_STATE", str(settings.state))
    calls = (("add", name, "--reason", "case 7"), ("add", name), ("add", stopped), ("remove", name))
    for call in calls:
        assert CliRunner().invoke(admin.app, call, catch_exceptions=False).exit_code == 0
    with pytest.raises(InvalidInput, match="at most 500 characters"):
        CliRunner().invoke(admin.app, ("add", name, "--reason", "x" * 501), catch_exceptions=False)
    with store.engine.connect() as connection:
        rows = connection.execute(sa.select(audit).where(audit.c.sequence > 0)).mappings().all()
    found = [(r["tenant"], r["identity"], r["action"], r["target"], r["detail"]) for r in rows]
    assert found == [
        ("default", "console", "hold", name, '{"reason": "case 7"}'),
        ("default", "console", "hold", stopped, '{"reason": ""}'),
        ("default", "console", "release", name, '{"reason": ""}'),
    ]
    assert store.audit.first_bad() == 0


def purge_set(store: Store) -> tuple[str, Any]:
    name = put_set(store, "instructionSets")
    return name, purge(lib.PurgeSetRequest(name=name, reason="a test"), OPERATOR, store)


def delete_operation(store: Store) -> tuple[str, Any]:
    name = f"operations/{put_operation(store, FAILED)}"
    store.sets.folder(name.partition("/")[2]).mkdir(parents=True)
    request = lro.DeleteOperationRequest(name=name)
    return name, Operations(store, Feeds(store)).DeleteOperation(request, None)


@pytest.mark.parametrize("begin", [purge_set, delete_operation])
def test_what_destroys_a_key_goes_to_its_end_when_its_caller_goes_away(
    store: Store, monkeypatch: pytest.MonkeyPatch, begin: Any
) -> None:
    name, destroying = begin(store)
    destroy, entered, go = store.keys.destroy, threading.Event(), threading.Event()

    def slow(*place: Any) -> None:
        entered.set()
        assert go.wait(60)
        destroy(*place)

    async def leave() -> None:
        _caller.set(OPERATOR)
        call = asyncio.create_task(destroying)
        assert await asyncio.to_thread(entered.wait, 60)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        go.set()

    monkeypatch.setattr(store.keys, "destroy", slow)
    asyncio.run(leave())  # it waits for its threads
    store.write(lambda _: None).result()  # changes are made in order
    with pytest.raises(SetPurged):
        store.keys.get(name.partition("/")[2])
    assert not store.sets.folder(name.partition("/")[2]).exists()


def test_sets_of_another_database_are_not_erased(store: Store, settings: Settings) -> None:
    """To a second database on a shared claim all drafts of the first are left over."""
    draft = store.sets.folder("draft-1")
    draft.mkdir()
    (draft / "log").touch()
    store.claim_sets()
    file = settings.state.parent / "other.db"
    done = subprocess.run(
        [sys.executable, "-m", "ptalign_server.cli", "serve"],
        env={k: v for k, v in os.environ.items() if not k.startswith("PTALIGN_")}
        | dict.fromkeys(("PTALIGN_PORT", "PTALIGN_PAGE_PORT", "PTALIGN_METRICS_PORT"), "0")
        | {
            "PTALIGN_STATE": str(settings.state),
            "PTALIGN_DATABASE": f"sqlite:///{file}",
            "PTALIGN_ENGINE__KIND": "scripted",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "PTALIGN_DATABASE: the sets in" in done.stderr
    assert (draft / "log").exists()


def test_a_database_knows_its_sets_after_a_rotation_and_from_a_backup(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    backup = Settings(state=tmp_path / "backup")
    backup.make_folders()
    with (
        sqlite3.connect(settings.state / "ptalign.db") as source,
        sqlite3.connect(backup.state / "ptalign.db") as target,
    ):
        source.backup(target)
    for connection in (source, target):
        connection.close()
    shutil.copy(settings.key_path, backup.key_path)  # of before the mark was made
    for restored in (settings, backup):
        again = Store(restored, wire.freeze)
        again.claim_sets()
        rotate_all(again)
        again.close()
        again = Store(restored, wire.freeze)
        again.claim_sets()
        again.close()
    shutil.copytree(settings.state / "sets", backup.state / "sets", dirs_exist_ok=True)
    again = Store(backup, wire.freeze)
    again.claim_sets()
    again.close()
