"""Deleting an adapter: its files go, what is known of it stays, and whoever asks is told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from test_gateway import MODEL, put_set, refused, serving
from test_release import Shelf
from test_release import put as put_row
from test_retention import put_operation
from typer.testing import CliRunner

from ptalign.errors import DataDamaged, InvalidInput, NotReady
from ptalign_proto.v1 import library_pb2 as lib
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server import wire
from ptalign_server.admin import adapters as admin
from ptalign_server.admin import hold
from ptalign_server.catalogue import Catalogue
from ptalign_server.errors import AdapterDeleted, OnHold, OperationRunning
from ptalign_server.gateway import deletion
from ptalign_server.gateway.purge import finish_purges
from ptalign_server.settings import Settings
from ptalign_server.store import Store
from ptalign_server.store.operations import CANCELLED, QUEUED, RUNNING, new_id
from ptalign_server.store.schema import resources
from ptalign_server.worker.adapters import adapter_folder

PARTS = ("adapter_config.json", "adapter_model.safetensors", "manifest.json")


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    made = Shelf(tmp_path / "state")
    monkeypatch.setenv("PTALIGN_STATE", str(made.state))
    yield made
    made.store.close()


def put_adapter(store: Store) -> str:
    """An adapter with files and a key, as a worker would have made it."""
    found = new_id()
    name = f"adapters/{found}"
    files = [store.artefacts.put(name, part, b"x" * 100_000) for part in PARTS]
    _, wrapped = store.vault.fresh_key(found)
    store.write(lambda c: store.keys.insert(c, found, wrapped)).result()
    store.sets.folder(found).mkdir()
    return put_row(store, name, res.Adapter(files=files))


def said(*arguments: str, app: Any = admin.app) -> str:
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def state_of(name: str) -> str:
    lines = [line.split("\t") for line in said("list").splitlines()]
    return next(line[-1] for line in lines if line[0] == name)


def test_its_files_go_and_what_is_known_of_it_stays(shelf: Shelf) -> None:
    name = put_adapter(shelf.store)
    evaluation = shelf.evaluation(name, "FAIL")
    folder = shelf.store.artefacts.folder(name, [])
    assert len(list(folder.iterdir())) == 3
    day = "1970-01-01"
    assert said("list") == f"{name}\t{day}\t0.3 MB\t{MODEL}\tFAIL\t-\n"
    for _ in range(2):  # again, where something kept it from its files: no second entry
        assert said("delete", name, "--reason", "case 7") == f"deleted: {name}, 0.3 MB\n"
    assert not folder.exists()
    assert said("list") == f"{name}\t{day}\t0.0 MB\t{MODEL}\tFAIL\tdeleted\n"
    found = shelf.store.resources.get(name, None)
    message = res.Adapter.FromString(found.body)
    assert found.purged
    assert message.meta.purged
    assert [file.part for file in message.files] == list(PARTS)
    assert shelf.store.resources.get(evaluation, None).verdict == "FAIL"
    entries = [(e.identity, e.action, e.target, e.detail) for e in shelf.store.audit.entries()]
    assert entries == [("console", "delete", name, {"reason": "case 7"})]


def test_what_is_sealed_of_it_outlives_a_restart(shelf: Shelf) -> None:
    """A start erases what purges left: an adapter's words are its record."""
    name = put_adapter(shelf.store)
    said("delete", name)
    assert finish_purges(shelf.store) == 0
    assert shelf.store.sets.folder(name.partition("/")[2]).exists()


def test_a_released_adapter_is_withdrawn_first(shelf: Shelf) -> None:
    """The older of two too: it is what ResolveAdapter falls back on."""
    old, new = put_adapter(shelf.store), put_adapter(shelf.store)
    for name in (old, new):
        shelf.evaluation(name, "PASS")
        assert state_of(name) == "released"
        with pytest.raises(InvalidInput, match=f"Withdraw it first: .* withdraw {name}"):
            said("delete", name)
    said("withdraw", new)
    assert state_of(new) == "withdrawn"
    said("delete", new)
    assert state_of(new) == "deleted, withdrawn"
    with pytest.raises(AdapterDeleted):  # there is nothing to serve any more
        said("restore", new)
    assert shelf.resolve()[0] == old


def test_an_adapter_of_a_model_that_is_not_in_the_catalogue_stays_released(shelf: Shelf) -> None:
    """The command may run without the server's models file: that must not free what is served."""
    name = put_adapter(shelf.store)
    shelf.evaluation(name, "PASS")
    assert MODEL not in shelf.catalogue.models
    with pytest.raises(InvalidInput, match="Withdraw it first"):
        said("delete", name)


@pytest.mark.parametrize("collection", ["adapters", "operations"])
def test_a_held_adapter_stays(shelf: Shelf, collection: str) -> None:
    name = put_adapter(shelf.store)
    held = name.replace("adapters", collection)
    said("add", held, app=hold.app)
    assert state_of(name) == "held"
    with pytest.raises(OnHold, match=f"hold remove {held}"):
        said("delete", name)
    said("remove", held, app=hold.app)
    said("delete", name)
    if collection == "adapters":
        with pytest.raises(InvalidInput, match="is purged or deleted"):
            said("add", held, app=hold.app)


def test_an_adapter_in_use_stays(shelf: Shelf) -> None:
    parent, target, beside, baseline = (put_adapter(shelf.store) for _ in range(4))
    evaluate = pb.EvaluateRequest(
        target=pb.Target(model=MODEL, adapter=target),
        baseline=pb.Target(model=MODEL, adapter=baseline),
        also=[pb.Target(model=MODEL, adapter=beside)],
    )
    align = pb.AlignRequest(model=MODEL, parent_adapter=parent)
    training = put_operation(shelf.store, QUEUED, "Align", align)
    asking = put_operation(shelf.store, RUNNING, "Evaluate", evaluate)
    for name, by in ((parent, training), (target, asking), (beside, asking), (baseline, asking)):
        assert state_of(name) == "in use"
        with pytest.raises(OperationRunning, match=f"operations/{by} works with {name}"):
            said("delete", name)
    shelf.store.operations.advance(training, lambda o: replace(o, state=CANCELLED))
    said("delete", parent)


def test_a_name_that_is_no_adapter_is_refused(shelf: Shelf) -> None:
    evaluation = shelf.evaluation(put_adapter(shelf.store), "FAIL")
    for name in (evaluation, "adapters/nope"):
        with pytest.raises(InvalidInput, match="is no adapter"):
            said("delete", name)


def test_an_adapter_whose_evaluation_is_damaged_hides_no_other(shelf: Shelf) -> None:
    """The list is what an operator reads when the disk fills."""
    old, new = put_adapter(shelf.store), put_adapter(shelf.store)
    evaluation = shelf.evaluation(new, "FAIL")
    change = resources.update().where(resources.c.name == evaluation).values(verdict="PASS")
    shelf.store.write(lambda c: c.execute(change)).result()
    assert (state_of(new), state_of(old)) == ("damaged", "-")


def test_a_damaged_adapter_is_listed(shelf: Shelf) -> None:
    whole, broken = put_adapter(shelf.store), put_adapter(shelf.store)
    with shelf.store.engine.begin() as connection:
        change = resources.update().where(resources.c.name == broken).values(created=2.0)
        connection.execute(change)
    said("withdraw", broken)
    assert state_of(whole) == "-"
    assert state_of(broken) == "damaged, withdrawn"


async def test_whoever_asks_for_its_files_is_told(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as calls:
        store = calls.store
        name = put_adapter(store)
        pairs = put_set(store, "pairSets")
        evaluate = pb.EvaluateRequest(target=pb.Target(model=MODEL, adapter=name))
        turn = pb.ChatMessage(role="user", content="hello")

        async def read(stream: Any) -> None:
            async for _ in stream:
                pass

        part = lib.DownloadRequest(name=name, part=PARTS[0])
        await read(calls.library.Download(part))
        catalogue = Catalogue(Settings(state=tmp_path / "state"))
        store.write(lambda c: deletion.delete(store, catalogue, c, name)).result()
        deletion.erase_files(store, name)
        align = pb.AlignRequest(model=MODEL, pair_set=pairs, parent_adapter=name)
        chat = pb.ChatRequest(model=MODEL, adapter=name, messages=[turn])
        for call in (
            read(calls.library.Download(part)),
            calls.tuning.Align(align),
            calls.tuning.Evaluate(evaluate),
            read(calls.tuning.Chat(chat)),
        ):
            code, text, reason, _ = await refused(call)
            assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ADAPTER_DELETED")
            assert text.startswith(f"{name} was deleted by an operator: its files are gone")
        found = await calls.library.GetAdapter(lib.GetResourceRequest(name=name))
        assert found.meta.purged
        with pytest.raises(AdapterDeleted):  # an operation that was checked before
            adapter_folder(store, name)


def test_an_object_store_that_is_away_is_said_and_the_next_try_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    settings = Settings(state=tmp_path / "state", artefacts=f"file://{bucket}")
    monkeypatch.setenv("PTALIGN_STATE", str(settings.state))
    monkeypatch.setenv("PTALIGN_ARTEFACTS", settings.artefacts)
    store = Store(settings, wire.freeze)
    name = put_adapter(store)
    brought = store.artefacts.folder(name, list(PARTS))

    def away(*_: Any) -> None:
        raise OSError("https://signed")

    with monkeypatch.context() as patch:
        patch.setattr("obstore.delete", away)
        with pytest.raises(
            NotReady, match=f"marked as deleted.*delete it again.* {name}"
        ) as caught:
            said("delete", name)
    assert "signed" not in str(caught.value)
    os.remove(bucket / name / PARTS[0])  # as far as it came
    said("delete", name)
    store.close()
    assert [path for path in bucket.rglob("*") if path.is_file()] == []
    assert not brought.exists()


def test_what_is_brought_makes_room_but_not_of_what_operations_use(tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    store = Store(
        Settings(state=tmp_path / "state", artefacts=f"file://{bucket}", cache_gb=1e-4), wire.freeze
    )
    idle, used, wanted = (put_adapter(store) for _ in range(3))
    folders = [store.artefacts.folder(name, list(PARTS)) for name in (idle, used)]
    for folder in folders:
        os.utime(folder, (1, 1))
    evaluate = pb.EvaluateRequest(target=pb.Target(model=MODEL, adapter=used))
    put_operation(store, QUEUED, "Evaluate", evaluate)
    with pytest.raises(DataDamaged):  # these are no weights
        adapter_folder(store, wanted)
    store.close()
    assert [folder.exists() for folder in folders] == [False, True]
