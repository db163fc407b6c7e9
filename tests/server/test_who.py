"""Who asked for what: in the trail, in what an operation says of itself, in what came of it."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.longrunning import operations_pb2 as lro
from test_gateway import Calls, generate, serving
from test_library import pair
from test_policies_own import PACK, Bench, bench, mine, settings
from typer.testing import CliRunner

from ptalign.errors import InvalidInput
from ptalign.progress import Progress
from ptalign_proto.v1 import library_pb2 as lib
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server import wire
from ptalign_server.admin import audit as audit_command
from ptalign_server.cli import app
from ptalign_server.gateway.identity import Tokens
from ptalign_server.gateway.operations import cancel
from ptalign_server.metrics import Metrics
from ptalign_server.settings import AuthSettings, Settings
from ptalign_server.store import Store
from ptalign_server.store.operations import RUNNING
from ptalign_server.worker.reporter import Reporter

__all__ = ["bench", "mine", "settings"]  # fixtures of another file, used by name
Entry = tuple[str, str, str, str]


class Office:
    """A server with tokens, and the people who hold them."""

    def __init__(self, calls: Calls, state: Path) -> None:
        self.calls, self.state = calls, state
        tokens = Tokens(state / "tokens.json")
        self.tokens = {
            name: tokens.add(name, "red", [role])
            for name, role in (("alice", "engineer"), ("bob", "operator"))
        }

    def by(self, name: str) -> dict[str, Any]:
        """As whom a call is made."""
        return {"metadata": (("authorization", f"Bearer {self.tokens[name]}"),)}

    def trail(self, **asked: Any) -> list[Entry]:
        found = self.calls.store.audit.entries(**asked)
        return [(e.tenant, e.identity, e.action, e.target) for e in found]

    async def submit(self, **changes: Any) -> str:
        made = await self.calls.tuning.GenerateInstructions(generate(**changes), **self.by("alice"))
        return str(made.name)

    async def progress(self, name: str) -> pb.OperationProgress:
        found = await self.calls.operations.GetOperation(
            lro.GetOperationRequest(name=name), **self.by("bob")
        )
        return unpacked(found)


def unpacked(operation: lro.Operation) -> pb.OperationProgress:
    metadata = pb.GenerateInstructionsMetadata()
    assert operation.metadata.Unpack(metadata)
    return metadata.progress


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    auth = AuthSettings(tokens_on_loopback=True)
    async with serving(tmp_path / "state", auth=auth) as calls:
        yield Office(calls, tmp_path / "state")


async def test_an_operation_and_the_trail_say_who_submitted_cancelled_and_deleted_it(
    office: Office,
) -> None:
    name = await office.submit()
    before = await office.progress(name)
    assert (before.submitted_by, before.cancelled_by) == ("alice", "")
    assert not before.HasField("cancel_time")
    stop = lro.CancelOperationRequest(name=name)
    await office.calls.operations.CancelOperation(stop, **office.by("bob"))
    await office.calls.operations.CancelOperation(stop, **office.by("alice"))
    after = await office.progress(name)
    assert (after.submitted_by, after.cancelled_by) == ("alice", "bob")
    assert after.cancel_time.ToSeconds() >= after.create_time.ToSeconds()
    delete = lro.DeleteOperationRequest(name=name)
    await office.calls.operations.DeleteOperation(delete, **office.by("alice"))
    assert office.trail() == [
        ("red", "alice", "submit", name),
        ("red", "bob", "cancel", name),
        ("red", "alice", "delete", name),
    ]
    assert office.calls.store.audit.first_bad() == 0


async def test_a_call_that_is_sent_again_or_only_estimated_leaves_no_entry(office: Office) -> None:
    request_id = str(uuid.uuid4())
    assert await office.submit(request_id=request_id) == await office.submit(request_id=request_id)
    await office.submit(dry_run=True)
    assert [action for _, _, action, _ in office.trail()] == ["submit"]


async def test_sets_and_the_trail_say_who_imported_merged_and_marked_them(office: Office) -> None:
    library, alice, request_id = office.calls.library, office.by("alice"), str(uuid.uuid4())
    header = lib.ImportHeader(kind="pairSets", model="tiny", policy="tone-en")
    names = []
    for number in (1, 2):
        parts = [lib.ImportSetRequest(header=header), lib.ImportSetRequest(records=[pair(number)])]
        names.append((await library.ImportSet(iter(parts), **alice)).name)
    for _ in range(2):
        merge = lib.MergeSetsRequest(names=names, request_id=request_id)
        merged = (await library.MergeSets(merge, **alice)).name
    mark = res.Annotation(instruction="Mock me.", good="Kindly no.")
    marked = await library.CreateAnnotationSet(
        lib.CreateAnnotationSetRequest(model="tiny", policy="tone-en", items=[mark]), **alice
    )
    assert office.trail() == [
        ("red", "alice", "import", names[0]),
        ("red", "alice", "import", names[1]),
        ("red", "alice", "merge", merged),
        ("red", "alice", "annotate", marked.meta.name),
    ]
    (entry,) = office.calls.store.audit.entries(action="merge")
    assert [parent.partition("@")[0] for parent in entry.detail["parents"]] == names
    found = [
        (await library.GetPairSet(lib.GetResourceRequest(name=name), **alice)).meta.made_by
        for name in (*names, merged)
    ]
    assert [*found, marked.meta.made_by] == ["alice"] * 4


async def test_the_token_itself_is_written_nowhere(office: Office) -> None:
    await office.submit()
    for file in office.state.rglob("*"):
        if file.is_file():
            held = file.read_bytes()
            assert not [name for name, token in office.tokens.items() if token.encode() in held]


def test_what_an_operation_makes_names_who_submitted_it(bench: Bench, mine: Path) -> None:
    mine.write_text(PACK)
    bench.store.operations.advance(bench.id, lambda o: replace(o, identity="alice"))
    bench.run()
    assert res.InstructionSet.FromString(bench.made().body).meta.made_by == "alice"


def test_progress_that_comes_after_a_cancel_leaves_who_cancelled(bench: Bench) -> None:
    """The worker goes on to its next place to stop, and writes the same metadata."""
    operations = bench.store.operations
    operations.advance(bench.id, lambda o: replace(o, state=RUNNING))
    told = operations.advance(bench.id, lambda o: cancel(o, "bob"))
    Reporter(told, bench.store, Metrics(), lambda: False)(Progress("answering", 1, 1))
    progress = wire.metadata_of(operations.get(bench.id)).progress
    assert (progress.phase, progress.cancelled_by) == ("answering", "bob")
    assert operations.advance(bench.id, lambda o: cancel(o, "eve")).sequence == told.sequence + 1


async def test_the_command_asks_by_name_and_by_what_came_of_an_operation(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = await office.submit()
    await office.calls.operations.CancelOperation(
        lro.CancelOperationRequest(name=name), **office.by("bob")
    )
    monkeypatch.setenv("PTALIGN_STATE", str(office.state))

    def said(*options: str) -> list[str]:
        arguments = ["list", "--json", *options]
        done = CliRunner().invoke(audit_command.app, arguments, catch_exceptions=False)
        assert done.exit_code == 0
        return [json.loads(line)["action"] for line in done.output.splitlines()]

    made = name.replace("operations/", "instructionSets/")
    assert said("--target", name) == said("--target", made) == ["submit", "cancel"]
    assert said("--identity", "bob") == ["cancel"]
    assert said("--target", "instructionSets/other") == []


def test_who_may_call_is_in_the_trail_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tokens(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["tokens", *arguments])
        assert done.exit_code == 0, done.exception
        return done.output.strip()

    state = tmp_path / "state"
    monkeypatch.setenv("PTALIGN_STATE", str(state))
    tokens("add", "before", "--role", "reader")
    assert not (state / "ptalign.db").exists(), "tokens made for a mounted secret need no database"

    Store(Settings(state=state), wire.freeze).close()
    alice = tokens("add", "alice", "--role", "operator", "--tenant", "red")
    tokens("remove", "alice", "--tenant", "red")
    gone = CliRunner().invoke(app, ["tokens", "remove", "alice", "--tenant", "red"])
    assert isinstance(gone.exception, InvalidInput)

    def fail(*_: object) -> None:
        raise OSError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(Tokens, "_write", fail)
        assert CliRunner().invoke(app, ["tokens", "add", "bob", "--role", "reader"]).exit_code
    with monkeypatch.context() as patched:
        patched.setattr("ptalign_server.failpoints.hit", fail)
        assert CliRunner().invoke(app, ["tokens", "remove", "before"]).exit_code
    assert "before" in tokens("list"), "nothing is done whose entry cannot be written"
    store = Store(Settings(state=state), wire.freeze)
    found = [(e.tenant, e.identity, e.action, e.target, e.detail) for e in store.audit.entries()]
    assert found == [
        ("red", "console", "add token", "tokens/alice", {"roles": ["operator"]}),
        ("red", "console", "remove token", "tokens/alice", {"roles": ["operator"]}),
    ]
    store.close()
    (state / "operator.key").rename(state / "away.key")
    assert "no entry" in tokens("remove", "before")
    assert tokens("list") == ""
    assert alice.encode() not in (state / "ptalign.db").read_bytes()


@pytest.mark.parametrize(
    ("field", "options"),
    [("name", ["x" * 101]), ("name", [""]), ("--tenant", ["bob", "--tenant", "x" * 65])],
)
def test_a_name_that_no_row_could_hold_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, options: list[str]
) -> None:
    """PostgreSQL refused every submit by its token."""
    monkeypatch.setenv("PTALIGN_STATE", str(tmp_path / "state"))
    done = CliRunner().invoke(app, ["tokens", "add", *options, "--role", "reader"])
    assert isinstance(done.exception, InvalidInput)
    assert done.exception.field == field
    assert not list((tmp_path / "state").glob("tokens*"))
