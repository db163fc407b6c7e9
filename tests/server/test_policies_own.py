"""The operator's own files, broken and changing while the server runs: policies and suites."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from google.rpc import status_pb2
from running import at_once
from test_gateway import PACK as LAWNMOWER
from test_gateway import Calls, calls, refused
from test_retention import put_operation

from ptalign import policies
from ptalign.errors import Cancelled, DataDamaged, InvalidInput, PtalignError
from ptalign.nouns import Instruction, InstructionSet, ModelSpec, Policy
from ptalign.policies import load_policy, policy_names
from ptalign_proto.v1 import library_pb2 as lib
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server import catalogue as catalogues
from ptalign_server import failpoints, wire
from ptalign_server import policies as policy_files
from ptalign_server.admin import suites as commands
from ptalign_server.admin.doctor import check_evaluation_data, check_policies
from ptalign_server.catalogue import Catalogue, write_models
from ptalign_server.metrics import Metrics
from ptalign_server.notices import notices
from ptalign_server.policies import PolicyFiles
from ptalign_server.settings import Settings
from ptalign_server.store import Store
from ptalign_server.store.operations import CANCELLED, FAILED, QUEUED, SUCCEEDED
from ptalign_server.store.resources import Resource
from ptalign_server.worker.job import Room
from ptalign_server.worker.perform import ShuttingDown, perform

__all__ = ["calls"]  # a fixture of another file, used by name
POLICY = "tone-en"
TONE = next(t.domain for t in load_policy(POLICY).topics if t.sides == "both")
PACK = LAWNMOWER.replace("purple lawnmower", "green teapot")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = Settings(state=tmp_path / "state")
    made.make_folders()
    return made


@pytest.fixture
def mine(settings: Settings) -> Path:
    """Where the policy `mine` of the operator lies."""
    return settings.state / "policies" / "mine.yaml"


def write(path: Path, text: str) -> None:
    """Changes a file, and its time even where the clock is coarse."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(text)
    os.utime(path, ns=(before + 10**9, before + 10**9))


def teapot() -> res.PolicySpec:
    """An inline policy that asks for what PACK forbids."""
    return res.PolicySpec(topics=[res.TopicSpec(domain=TONE, title="a green teapot", sides="both")])


@pytest.mark.parametrize(
    "text", ["", "name: mine", "name: [", "name: mine\nnever_synthesise: [green teapot]"]
)
def test_while_a_policy_file_is_broken_no_inline_one_is_taken(
    settings: Settings, mine: Path, text: str
) -> None:
    """What a misspelt, misplaced or cut list forbade was allowed."""
    mine.write_text(text)
    with pytest.raises(InvalidInput, match=r"the server's policy file mine\.yaml is broken"):
        Catalogue(settings).policies.inline(teapot())
    write(mine, PACK.replace("green", "red"))
    assert Catalogue(settings).policies.inline(teapot()).topics


def test_a_copied_policy_that_kept_its_name_is_refused(settings: Settings, mine: Path) -> None:
    """What was made under it was another policy's, and served by that one's backends."""
    mine.with_stem("support").write_text(PACK)
    with pytest.raises(InvalidInput, match=r"support\.yaml .*is mine\. Write name: support"):
        Catalogue(settings).policies.find("support")
    (_, found) = check_policies(settings)
    assert (found.ok, "is mine" in found.found) == (False, True)
    assert not {"mine", "support"} & set(Catalogue(settings).policies.usable)


def test_an_inline_policy_brings_its_twin_examples(settings: Settings) -> None:
    spec = teapot()
    spec.topics[0].examples.append("Mock the teapot.")
    spec.topics[0].twin_examples.append("Praise the teapot.")
    (topic,) = Catalogue(settings).policies.inline(spec).topics
    assert topic.twin_examples == ("Praise the teapot.",)


def test_a_call_of_before_long_boundaries_were_refused_is_finished(settings: Settings) -> None:
    spec = teapot()
    spec.topics[0].boundary = "b" * 501
    assert Catalogue(settings).policies.inline(spec).topics[0].boundary == "b" * 500


def test_an_inline_policy_asks_as_the_shipped_one_of_its_language_does(
    settings: Settings, mine: Path
) -> None:
    """English openers began Japanese requests, which were rejected for their language."""
    mine.write_text(PACK)
    catalogue, spec = Catalogue(settings), res.PolicySpec(topics=[res.TopicSpec(title="椅子")])
    for locale, name in (("ja", "default-ja"), ("en-GB", "default-en"), ("", "default-en")):
        spec.locale = locale
        made, shipped = catalogue.policies.inline(spec), load_policy(name)
        assert made.tactics == shipped.tactics
        assert made.generic_constraints_positive == shipped.generic_constraints_positive
        assert made.locale == (locale or "en")
        assert made.never_synthesize == ("green teapot",)
    spec.locale = "de"
    assert not catalogue.policies.inline(spec).tactics
    assert catalogue.policies.inline(spec).never_synthesize == ("green teapot",)


def test_a_policy_that_is_mended_while_an_inline_one_is_checked_still_forbids(
    settings: Settings, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine.write_text(PACK + "version: 5")
    catalogue, read = Catalogue(settings), PolicyFiles._pack

    def mended_behind(self: PolicyFiles, path: Path) -> Policy | PtalignError:
        pack = read(self, path)
        write(path, PACK)
        return pack

    monkeypatch.setattr(PolicyFiles, "_pack", mended_behind)
    with pytest.raises(InvalidInput, match="is broken"):
        catalogue.policies.inline(teapot())
    with pytest.raises(InvalidInput, match="never allowed"):
        catalogue.policies.inline(teapot())


class Bench:
    """A worker without engines: a stage accepts one record, then a test says what happens."""

    def __init__(self, settings: Settings, store: Store, patch: pytest.MonkeyPatch) -> None:
        self.store = store
        self.used: list[Policy] = []
        self.then: Callable[[], None] = lambda: None
        self.told = self.ending = False
        write_models(settings.models_path, {"m": ModelSpec(name="m", path=str(settings.state))})
        pool = SimpleNamespace(engine=lambda *_: None)
        pools: Any = SimpleNamespace(use=lambda *_: nullcontext(pool))
        self.room = Room(settings, store, Catalogue(settings), pools, Metrics())
        self.id = put_operation(store, QUEUED)
        request = pb.GenerateInstructionsRequest(model="m", policy="mine", count=1)
        sealed = store.keys.get(self.id).seal("request", request.SerializeToString())
        kind = "GenerateInstructions"
        store.operations.advance(self.id, lambda o: replace(o, kind=kind, request=sealed))
        patch.setattr(failpoints, "watch_engine", lambda engine: engine)
        patch.setattr("ptalign.instructions.generate_instructions", self._stage)

    def run(self) -> str:
        return perform(self.id, self.room, lambda: self.told, lambda: self.ending)

    def made(self) -> Resource:
        return self.store.resources.get(f"instructionSets/{self.id}", None)

    def logged(self) -> bool:
        return (self.store.sets.folder(self.id) / "log").stat().st_size > 0

    def stop(self, text: str, mine: Path, *, ending: bool) -> Callable[[], None]:
        """The operator changes the policy, then the operation is cancelled or the worker ends."""

        def then() -> None:
            write(mine, text)
            self.told, self.ending = not ending, ending
            raise Cancelled("told")

        return then

    def _stage(self, policy: Policy, *_: Any, log: Any, **__: Any) -> InstructionSet:
        self.used.append(policy)
        if not list(log.read()):
            log.append(Instruction(id="1", text="one", topic="slow-print", domain="work"))
        self.then()
        return InstructionSet(records=tuple(log.read()), requested=1)


@pytest.fixture
def bench(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    store = Store(settings, wire.freeze)
    yield Bench(settings, store, monkeypatch)
    store.close()


CHANGED = ["name: mine", PACK.replace("green", "red")]


@pytest.mark.parametrize("text", CHANGED)
def test_a_partial_set_has_the_policy_that_its_records_were_made_under(
    bench: Bench, mine: Path, text: str
) -> None:
    mine.write_text(PACK)
    bench.then = bench.stop(text, mine, ending=False)
    assert bench.run() == CANCELLED
    body = res.InstructionSet.FromString(bench.made().body)
    assert (bench.made().partial, body.meta.policy_digest) == (True, bench.used[0].digest)
    assert bench.store.sets.load_policy(bench.made().name) == bench.used[0]


@pytest.mark.parametrize("text", CHANGED)
def test_an_operation_goes_on_after_a_restart_under_the_policy_it_first_used(
    bench: Bench, mine: Path, text: str
) -> None:
    mine.write_text(PACK)
    bench.then = bench.stop(text, mine, ending=True)
    with pytest.raises(ShuttingDown):
        bench.run()
    bench.then, bench.ending = lambda: None, False
    assert bench.run() == SUCCEEDED
    first, second = bench.used
    assert first.digest == second.digest
    assert res.InstructionSet.FromString(bench.made().body).meta.policy_digest == first.digest


@pytest.mark.parametrize("cancelled", [False, True])
@pytest.mark.parametrize("entry", ["replaced", "gone", "broken"])
def test_what_is_made_bears_the_model_it_was_made_with(
    bench: Bench, mine: Path, entry: str, cancelled: bool
) -> None:
    """It bore the digest of weights that the operator had put in their place, or was lost."""
    mine.write_text(PACK)
    file = bench.room.settings.models_path
    old, new = (
        ModelSpec(name="m", path=str(file.parent), weights_digest=f"sha256:{n}", system_prompt=n)
        for n in ("1", "2")
    )
    write_models(file, {"m": old})

    def then() -> None:
        entries = {"replaced": {"m": new}, "gone": {"other": new}, "broken": {}}
        write_models(file, entries[entry])
        write(file, file.read_text() if entries[entry] else "- {name: m")
        bench.told = cancelled
        if cancelled:
            raise Cancelled("told")

    bench.then = then
    assert bench.run() == (CANCELLED if cancelled else SUCCEEDED)
    meta = res.InstructionSet.FromString(bench.made().body).meta
    assert (meta.model, meta.model_digest) == ("m", "sha256:1")
    assert meta.template_digest == catalogues.template_digest(old)


def spec_of(file: Path, digest: str, prompt: str) -> ModelSpec:
    path = str(file.parent)
    return ModelSpec(name="m", path=path, weights_digest=f"sha256:{digest}", system_prompt=prompt)


def restarted(bench: Bench, file: Path, text: str) -> str:
    """The worker ends behind the first record, comes back to another models.yaml, and goes on."""

    def then() -> None:
        bench.ending = True
        raise Cancelled("told")

    bench.then = then
    with pytest.raises(ShuttingDown):
        bench.run()
    write(file, text)
    bench.then, bench.ending = lambda: None, False
    return bench.run()


@pytest.mark.parametrize("text", ["gone", "broken", "another prompt"])
def test_an_operation_goes_on_after_a_restart_with_the_model_it_first_used(
    bench: Bench, mine: Path, text: str
) -> None:
    """It failed without what it had accepted, as the set could not name its model."""
    mine.write_text(PACK)
    file = bench.room.settings.models_path
    old = spec_of(file, "1", "old")
    write_models(file, {"m": spec_of(file, "1", "new")})
    after = {"gone": "[]", "broken": "- {name: m", "another prompt": file.read_text()}
    write_models(file, {"m": old})
    assert restarted(bench, file, after[text]) == SUCCEEDED
    meta = res.InstructionSet.FromString(bench.made().body).meta
    assert (meta.model, meta.model_digest) == ("m", "sha256:1")
    assert meta.template_digest == catalogues.template_digest(old)


def test_an_operation_does_not_go_on_after_a_restart_with_other_weights(
    bench: Bench, mine: Path
) -> None:
    """What both had written was one set, with the new ones' digest."""
    mine.write_text(PACK)
    file = bench.room.settings.models_path
    write_models(file, {"m": spec_of(file, "2", "")})
    new = file.read_text()
    write_models(file, {"m": spec_of(file, "1", "")})
    assert restarted(bench, file, new) == FAILED
    assert len(bench.used) == 1
    error = status_pb2.Status.FromString(bench.store.operations.get(bench.id).error)
    assert "m had weights sha256:1 when this operation began, and has sha256:2" in error.message
    made = res.InstructionSet.FromString(bench.made().body)
    assert (made.meta.partial, made.meta.model_digest, made.harmful) == (True, "sha256:1", 1)


def test_records_whose_policy_was_not_kept_stay_in_their_log_when_its_file_is_broken(
    bench: Bench, mine: Path
) -> None:
    mine.write_text(PACK)
    bench.then = bench.stop("name: mine", mine, ending=True)
    with pytest.raises(ShuttingDown):
        bench.run()
    (bench.store.sets.folder(bench.id) / "policy").unlink()  # an earlier version wrote none
    bench.ending = False
    assert bench.run() == FAILED
    error = status_pb2.Status.FromString(bench.store.operations.get(bench.id).error)
    assert "the server's file mine.yaml cannot be used" in error.message
    assert bench.logged()


async def test_a_broken_policy_file_does_not_stop_those_who_serve_its_adapters(
    calls: Calls, mine: Path
) -> None:
    for broken in (mine, mine.with_stem(POLICY)):
        broken.write_text("name: mine")
        request = lib.ResolveAdapterRequest(model="tiny", policy=broken.stem)
        _, _, reason, _ = await refused(calls.library.ResolveAdapter(request))
        assert reason == "RESOURCE_NOT_FOUND"  # none was made yet
    request = lib.ResolveAdapterRequest(model="tiny", policy="nope")
    _, text, reason, _ = await refused(calls.library.ResolveAdapter(request))
    assert reason == "UNKNOWN_NAME"
    assert "Known: default-en, default-ja, mine, tone-en" in text


async def test_policy_files_are_not_read_on_the_loop_that_answers_everybody(
    calls: Calls, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, on_loop = policy_files._read_pack, []

    def watched(path: Path) -> Policy | PtalignError:
        on_loop.append(asyncio._get_running_loop() is not None)
        return read(path)

    monkeypatch.setattr(policy_files, "_read_pack", watched)
    write(mine, PACK)
    item = res.Annotation(instruction="Why is it slow?", good="Let us look at the queue.")
    request = lib.CreateAnnotationSetRequest(model="tiny", policy="mine", items=[item])
    await calls.library.CreateAnnotationSet(request)
    write(mine, PACK)
    header = lib.ImportHeader(kind="instructionSets", model="tiny", policy="mine")
    record = lib.Record(kind="instruction", topic="slow-print", instruction="Why is it slow?")
    brought = [lib.ImportSetRequest(header=header, records=[record])]
    assert (await calls.library.ImportSet(iter(brought))).accepted == 1
    assert on_loop == [False, False]


def test_a_policy_file_that_was_away_for_a_moment_is_read_again(
    settings: Settings,
    mine: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It counted as broken until it changed, and inline policies were refused all that time."""
    mine.write_text(PACK)
    catalogue, read = Catalogue(settings), Path.read_text

    def away(path: Path, *args: Any, **kwargs: Any) -> str:
        if path == mine:
            raise OSError(116, "stale file handle")
        return read(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", away)
        for _ in range(3):
            assert "stale" in str(catalogue.policies.broken[mine])
    assert len([r for r in caplog.records if "mine.yaml" in r.getMessage()]) == 1
    assert not catalogue.policies.broken
    assert "mine" in catalogue.policies.usable


def test_all_policies_are_read_before_the_first_call(
    settings: Settings, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine.write_text(PACK)
    catalogue = Catalogue(settings)
    policies._shipped.cache_clear()
    read, files = policies._read, []
    monkeypatch.setattr(policies, "_read", lambda path: files.append(path) or read(path))
    catalogue.policies.read_all()
    assert len(files) > len(policy_names())
    files.clear()
    assert {"mine", *policy_names()} == set(catalogue.policies.usable)
    assert files == []


def test_a_suite_that_no_evaluation_could_ask_is_said_at_the_start(settings: Settings) -> None:
    """A file of an earlier version may map a column that nobody reads: it was taken in silence."""
    entry = "{name: own, measure: harm, file: p.csv, columns: {prompt: q, language: l}}"
    (settings.state / "suites.yaml").write_text(f"- {entry}\n")
    (found,) = (n for n in notices(settings) if "suites.own.columns" in n)
    assert "'language'" in found
    assert found.endswith("evaluations that name it are refused.")


def test_suites_that_are_added_together_are_all_there(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each wrote back what it had read before the other's were there."""
    monkeypatch.setenv("PTALIGN_STATE", str(settings.state))
    read = commands.read_suites

    def one(name: str) -> None:
        file = tmp_path / f"{name}.yaml"
        file.write_text(f"- {{name: {name}, measure: harm, file: p.csv, columns: {{prompt: q}}}}\n")
        commands.add(file)

    at_once(monkeypatch, commands, "read_suites", one)
    assert read(settings.state / "suites.yaml").keys() == set("abcd")


def test_a_folder_in_the_place_of_the_suites_file_is_named_by_doctor_and_at_start(
    settings: Settings,
) -> None:
    (settings.state / "suites.yaml").mkdir()
    with pytest.raises(DataDamaged, match=r"suites\.yaml cannot be read: Is a directory"):
        _ = Catalogue(settings).suites
    (found,) = check_evaluation_data(settings)
    assert (found.ok, found.needed) == (False, True)
    assert "Is a directory" in found.found
    assert any("suites.yaml" in notice for notice in notices(settings))


def test_a_models_file_in_a_closed_folder_is_named(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking when it changed ended in a traceback before reading it could say what is wrong."""
    write_models(settings.models_path, {"tiny": ModelSpec(name="tiny", path="/tiny")})
    catalogue = Catalogue(settings)

    def closed(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        for name in ("stat", "read_text"):
            patch.setattr(Path, name, closed)
        with pytest.raises(DataDamaged, match=r"models\.yaml cannot be read: Permission denied"):
            _ = catalogue.models
    assert list(catalogue.models) == ["tiny"]
