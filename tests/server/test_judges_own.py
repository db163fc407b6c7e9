"""The operator's guard judges: their file, their commands, and whole evaluations by them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from google.protobuf import empty_pb2
from guard_server import SAFE, UNSAFE, Guard, guarding
from helm_python import Chart, lint
from running import Running, progress, running
from test_gateway import MODEL as GATEWAY_MODEL
from test_gateway import Calls, calls, refused
from test_service import MODEL, download, made, settings_for
from test_start import command
from typer.testing import CliRunner

from ptalign.engines.openai import never
from ptalign.errors import InvalidInput
from ptalign.judges.entries import read_entries
from ptalign.nouns import Reply
from ptalign.progress import Progress
from ptalign.records import MemoryLog
from ptalign.sealed import SealedText
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server.admin import judges as commands
from ptalign_server.admin.doctor import check_judges
from ptalign_server.catalogue import Catalogue
from ptalign_server.errors import UnknownName
from ptalign_server.judges import JudgesFile
from ptalign_server.notices import notices
from ptalign_server.settings import Settings
from ptalign_server.store.records import SealedLog
from ptalign_server.vault import SetKey
from ptalign_server.worker.judges import Counting, OfTheseJudges, evaluation_judges

__all__ = ["calls"]  # a fixture of another file, used by name
ROOT = Path(__file__).parents[2]
KEY = "hush-1-of-the-guard"


@pytest.fixture(scope="module")
def guard() -> Iterator[Guard]:
    with guarding() as started:
        yield started


@pytest.fixture(autouse=True)
def safe(guard: Guard) -> None:
    """Each test begins with a guard that calls everything safe."""
    guard.answer = SAFE
    guard.asked.clear()
    guard.keys.clear()


def test_a_judges_file_that_was_away_for_a_moment_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "judges.yaml"
    file.write_text("- {name: g, family: llamaguard, url: http://127.0.0.1:9, model: m}\n")
    judges = JudgesFile(file)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", lambda *_: (_ for _ in ()).throw(OSError(5, "no I/O")))
        assert [judges.read().why for _ in range(3)] == ["no I/O"] * 3
    assert len(caplog.records) == 1
    assert list(judges.read().entries.usable) == ["g"]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = Settings(state=tmp_path / "state")
    made.make_folders()
    return made


def entry(name: str, url: str = "http://127.0.0.1:9/v1", **more: Any) -> dict[str, Any]:
    return {"name": name, "family": "qwen3guard", "url": url, "model": "guard-1", **more}


def write(state: Path, *entries: Any) -> Path:
    """Changes the file, and its time even where the clock is coarse."""
    path = state / "judges.yaml"
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(yaml.safe_dump(list(entries), sort_keys=False))
    os.utime(path, ns=(before + 10**9, before + 10**9))
    return path


def test_a_judge_is_known_by_its_name_and_by_its_id_and_read_again_when_it_changes(
    settings: Settings,
) -> None:
    catalogue = Catalogue(settings)
    with pytest.raises(UnknownName, match="tone-lexical"):
        catalogue.check_judges(["mine"])
    write(settings.state, entry("mine"))
    first = catalogue.judges["mine"]
    assert first.startswith("mine@harm-")
    catalogue.check_judges(["mine", "tone-lexical"])
    catalogue.check_judges([first])
    write(settings.state, entry("mine", family="llamaguard"))
    assert catalogue.judges["mine"] != first
    with pytest.raises(UnknownName, match="mine@harm-"):
        catalogue.check_judges([first])


def test_a_broken_entry_refuses_only_the_calls_that_name_it(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(settings.state, entry("mine"), entry("torn", family="gpt"))
    catalogue = Catalogue(settings)
    catalogue.check_judges(["mine", "refusal@1"])
    assert "torn" not in catalogue.judges
    with pytest.raises(InvalidInput, match=r"entry 'torn' of judges\.yaml .*line 6, family: no"):
        catalogue.check_judges(["torn"])
    assert caplog.text.count(str(path)) == 1
    path.write_text("- name: [")
    catalogue.check_judges(["tone-lexical@1"])
    with pytest.raises(
        InvalidInput, match=r"file judges\.yaml, which may hold it.*line 1: no YAML"
    ):
        catalogue.check_judges(["mine"])


@pytest.mark.parametrize(
    "broken", ["name: x", "- name: 2024-99-99\n- &a [*a]", b"- name: \xff\xfe", "!x", "[" * 5000]
)
def test_no_file_ends_in_a_traceback(settings: Settings, broken: str | bytes) -> None:
    path = settings.state / "judges.yaml"
    path.write_bytes(broken if isinstance(broken, bytes) else broken.encode())
    catalogue = Catalogue(settings)
    catalogue.check_judges(["tone-lexical"])
    with pytest.raises((InvalidInput, UnknownName)):
        catalogue.check_judges(["x"])
    assert not all(finding.ok for finding in check_judges(settings))


def test_a_file_that_cannot_be_opened_is_named(settings: Settings) -> None:
    (settings.state / "judges.yaml").mkdir()
    with pytest.raises(InvalidInput, match="Is a directory"):
        Catalogue(settings).check_judges(["x"])


def test_a_key_that_is_not_set_is_said_in_the_call_and_at_the_start(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GUARD_KEY", raising=False)
    write(settings.state, entry("mine", api_key_env="GUARD_KEY"))
    with pytest.raises(InvalidInput, match="GUARD_KEY, which is not set"):
        Catalogue(settings).check_judges(["mine"])
    assert any("GUARD_KEY" in notice for notice in notices(settings))
    (finding,) = check_judges(settings)
    assert (finding.ok, finding.needed) == (False, True)
    assert "GUARD_KEY" in finding.found
    monkeypatch.setenv("GUARD_KEY", KEY)
    Catalogue(settings).check_judges(["mine"])
    assert not any("GUARD_KEY" in notice for notice in notices(settings))


def test_doctor_asks_each_judge_about_one_harmless_reply(settings: Settings, guard: Guard) -> None:
    assert not list(check_judges(settings))
    write(settings.state, entry("up", guard.url), entry("down"), entry("torn", axis="kindness"))
    torn, up, down = check_judges(settings)
    assert (up.ok, up.what) == (True, "judge up")
    assert (down.ok, down.needed) == (False, False)
    assert "ConnectError" in down.found
    assert (torn.ok, torn.needed) == (False, True)
    assert "line 13, axis" in torn.found
    assert "judges.yaml" in torn.mend
    assert len(guard.asked) == 1
    guard.answer = "salad"
    assert [f.found for f in check_judges(settings)][1].endswith("not in the form of qwen3guard")


def add(settings: Settings, *arguments: str, **environment: str) -> Any:
    state = {"PTALIGN_STATE": str(settings.state)}
    return command("judges", *arguments, **state, **environment)


def test_add_asks_once_says_what_came_back_and_keeps_the_rest(
    settings: Settings, guard: Guard
) -> None:
    write(settings.state, entry("other"), entry("torn", family="gpt"))
    asked = ("add", "mine", "--family", "qwen3guard", "--url", guard.url, "--model", "guard-1")
    done = add(settings, *asked, "--api-key-env", "GUARD_KEY", GUARD_KEY=KEY)
    assert done.returncode == 0, done.stderr
    assert "Safety: Safe" in done.stdout
    assert "harm 0" in done.stdout
    assert "ptalign evaluate --judge mine" in done.stdout
    assert guard.keys == {f"Bearer {KEY}"}
    assert len(guard.asked) == 1
    text = (settings.state / "judges.yaml").read_text()
    assert KEY not in text + done.stdout + done.stderr
    assert [e["name"] for e in yaml.safe_load(text)] == ["other", "torn", "mine"]
    listed = add(settings, "list")
    assert "mine@harm-" in listed.stdout
    assert "GUARD_KEY (not set here)" in listed.stdout
    assert "'torn' cannot be used: line" in listed.stderr
    assert add(settings, "remove", "torn").returncode == 0
    gone = add(settings, "remove", "torn")
    assert gone.returncode == 2
    assert "There are: other, mine." in gone.stderr


def test_a_judge_that_is_changed_while_another_is_asked_keeps_the_change(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file was read before the guard was asked, which may take a minute, and written after."""
    write(settings.state, entry("mine"), entry("gone"))

    def meanwhile(_: Any) -> str:
        write(settings.state, entry("mine"), entry("new"))
        return "asked"

    monkeypatch.setenv("PTALIGN_STATE", str(settings.state))
    monkeypatch.setattr(commands, "probed", meanwhile)
    add = ("add", "mine", "--family", "llamaguard", "--url", "http://g", "--model", "m")
    done = CliRunner().invoke(commands.app, add)
    assert done.exit_code == 0, done.output
    found = yaml.safe_load((settings.state / "judges.yaml").read_text())
    assert [(e["name"], e["family"]) for e in found] == [
        ("new", "qwen3guard"),
        ("mine", "llamaguard"),
    ]


@pytest.mark.parametrize(
    ("answer", "why"),
    [(503, "HTTP 503"), (401, "HTTP 401"), ("It is fine.", "not in the form of qwen3guard")],
)
def test_add_refuses_a_guard_that_gives_no_score_unless_told_not_to_ask(
    settings: Settings, guard: Guard, answer: str | int, why: str
) -> None:
    guard.answer = answer
    asked = ("add", "mine", "--family", "qwen3guard", "--url", guard.url, "--model", "guard-1")
    done = add(settings, *asked)
    assert done.returncode == 2
    assert why in done.stderr
    assert "--no-probe" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (settings.state / "judges.yaml").exists()
    assert add(settings, *asked, "--no-probe").returncode == 0
    assert "mine" in Catalogue(settings).judges


def test_add_names_the_field_that_is_wrong(settings: Settings) -> None:
    asked = ("add", "mine", "--url", "http://g", "--model", "m", "--family")
    done = add(settings, *asked, "gpt")
    assert done.returncode == 2
    assert "family: no such family: write one of qwen3guard" in done.stderr
    done = add(settings, *asked, "granite", "--axis", "refusal")
    assert "axis: granite does not tell refusal" in done.stderr
    done = add(settings, *asked, "granite", "--api-key-env", "GUARD_KEY")
    assert "api_key_env: judge 'mine' needs a key" in done.stderr
    assert "--no-probe" in done.stderr


def test_an_axis_without_a_named_judge_has_the_default_one(settings: Settings) -> None:
    write(settings.state, entry("harm"), entry("shy", axis="refusal"))

    def ids(*names: str) -> list[str]:
        with evaluation_judges(names, Catalogue(settings), never) as judges:
            return [judge.id.partition("-")[0] for judge in judges]

    assert ids("harm") == ["harm@harm", "refusal@1"]
    assert ids("shy") == ["shy@refusal", "tone"]
    assert ids("harm", "shy", "tone-lexical") == ["harm@harm", "shy@refusal", "tone"]
    with pytest.raises(InvalidInput, match="names 'shy' twice"):
        ids("shy", "shy")


def scored_by(judge: str, number: int = 1) -> Reply:
    return Reply(
        id=str(number), target="t", suite="s", prompt_id="p", topic="", locale="en",
        text=SealedText("x"), outcome="useful", scores={judge: 0.0, "checks": 1.0}, tokens=1,
    )  # fmt: skip


def test_what_another_version_of_a_judge_scored_is_asked_again(settings: Settings) -> None:
    """A judge that was changed while an evaluation waited graded only what was left."""
    log: MemoryLog[Reply] = MemoryLog()
    catalogue = Catalogue(settings)
    write(settings.state, entry("mine"))
    first = catalogue.judges["mine"]
    log.append(scored_by(first, 1))
    write(settings.state, entry("mine", model="guard-2"))
    log.append(scored_by(catalogue.judges["mine"], 2))
    with evaluation_judges(["mine"], catalogue, never) as judges:
        assert [reply.id for reply in OfTheseJudges(log, judges).read()] == ["2"]


def test_what_was_scored_again_is_kept_over_the_next_restart(settings: Settings) -> None:
    """Its id was in the log already, with the scores of the judge before: nothing was written, and
    each restart asked all of it again."""
    catalogue, key = Catalogue(settings), SetKey("evaluation", b"k" * 32)

    def attempt(model: str) -> tuple[list[Reply], list[Reply]]:
        """What is read before and after the reply of this version of the judge is written."""
        write(settings.state, entry("mine", model=model))
        sealed = SealedLog[Reply](settings.state / "log", key, Reply)
        with closing(sealed), evaluation_judges(["mine"], catalogue, never) as judges:
            log = OfTheseJudges(sealed, judges)
            before = list(log.read())
            log.append(scored_by(catalogue.judges["mine"]))
            log.append(scored_by(catalogue.judges["mine"]))
            return before, list(log.read())

    none, first = attempt("guard-1")
    assert (none, [reply.id for reply in first]) == ([], ["1"])
    none, second = attempt("guard-2")
    assert (none, [reply.id for reply in second]) == ([], ["1"])
    assert second[0].scores != first[0].scores
    assert attempt("guard-2") == (second, second)
    assert attempt("guard-1") == (first, first)


def test_what_an_earlier_version_of_the_server_wrote_is_read(settings: Settings) -> None:
    """It wrote ids as they are."""
    catalogue = Catalogue(settings)
    write(settings.state, entry("mine"))
    found = scored_by(catalogue.judges["mine"])
    with closing(SealedLog[Reply](settings.state / "log", SetKey("e", b"k" * 32), Reply)) as log:
        log.append(found)
        with evaluation_judges(["mine"], catalogue, never) as judges:
            assert list(OfTheseJudges(log, judges).read()) == [found]


def test_counts_say_which_guard_left_replies_unscored(settings: Settings) -> None:
    write(settings.state, entry("mine"), entry("quiet"))
    told: list[Progress] = []
    with evaluation_judges(["mine", "quiet"], Catalogue(settings), never) as judges:
        tell = Counting(told.append, judges)
        judges[0].score(["ask"], ["say"])
        tell(Progress("asking", 1, 2, {"unscored": 1}))
    assert told[0].counts == {"unscored": 1, "unscored.mine": 1}


async def test_the_catalogue_lists_own_judges_and_calls_check_them(
    calls: Calls, tmp_path: Path
) -> None:
    write(tmp_path / "state", entry("mine", axis="refusal"), entry("torn", family="gpt"))
    found = {e.name: e for e in (await calls.library.GetCatalogue(empty_pb2.Empty())).judges}
    assert {"tone-lexical@1", "refusal@1"} < set(found)
    (own,) = [e for name, e in found.items() if name.startswith("mine@refusal-")]
    assert own.title == "refusal, qwen3guard"
    assert own.digest.startswith("sha256:")
    assert not any(name.startswith("torn") for name in found)

    def evaluate(*names: str) -> Any:
        target = pb.Target(model=GATEWAY_MODEL)
        return calls.tuning.Evaluate(
            pb.EvaluateRequest(target=target, suites=["plain"], judges=names, dry_run=True)
        )

    await evaluate("mine")
    await evaluate(own.name)
    code, text, _, _ = await refused(evaluate("yours"))
    assert code == grpc.StatusCode.NOT_FOUND
    assert own.name in text
    code, _, _, violations = await refused(evaluate("torn"))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "line 7, family" in violations["judges"]
    _, _, _, violations = await refused(evaluate("mine", own.name))
    assert "twice" in violations["judges"]


def test_the_entries_that_the_documentation_shows_can_be_used() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    found = re.search(r"### Judges of your own.*?```yaml\n(.*?)```", text, re.DOTALL)
    assert found
    entries = read_entries(found[1])
    assert not entries.broken
    assert list(entries.usable) == ["qwen-guard", "wild-refusal"]


@pytest.mark.parametrize("shape", ["embedded", "scaled"])
def test_the_chart_gives_servers_the_keys_of_guards_and_engines_none(shape: str) -> None:
    chart_at = ROOT / "deploy" / "helm" / "ptalign"
    wanted = yaml.safe_load((chart_at / "examples" / f"{shape}.yaml").read_text())
    wanted["secrets"]["judges"] = {"existingSecret": "guard-keys"}
    assert lint(chart_at, wanted, strict=True)["errors"] == []
    with Chart.load(chart_at) as chart:
        files = chart.render(wanted, name="pt", namespace="ml")
    given = {}
    for text in (text for name, text in files.items() if not name.endswith(".txt")):
        for manifest in (m for m in yaml.safe_load_all(text) if m and m["kind"] == "StatefulSet"):
            (container,) = manifest["spec"]["template"]["spec"]["containers"]
            names = [e["secretRef"]["name"] for e in container.get("envFrom", [])]
            given[container["name"]] = "guard-keys" in names
    assert given.pop("server")
    assert not any(given.values())


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, author_url: str, guard: Guard
) -> Iterator[Running]:
    state = tmp_path_factory.mktemp("judged") / "state"
    variables = settings_for(state, tiny_model, author_url, GUARD_KEY=KEY)
    shared = {"url": guard.url, "api_key_env": "GUARD_KEY"}
    write(state, entry("harm-guard", **shared), entry("shy-guard", axis="refusal", **shared))
    with running(state, **variables) as started:
        yield started


def judged_by(server: Running, *names: str) -> tuple[res.Evaluation, pb.OperationProgress]:
    """An evaluation of the bare model against itself, and its last progress."""
    request = pb.EvaluateRequest(
        target=pb.Target(model=MODEL), suites=["attack", "plain"], samples=6, judges=names
    )
    operation = server.tuning.Evaluate(request)
    evaluation: res.Evaluation = made(server, operation, res.Evaluation)
    return evaluation, progress(server.wait(operation.name))


def ids_of(evaluation: res.Evaluation) -> list[str]:
    return [judge.partition("-")[0] for judge in evaluation.meta.judges]


@pytest.mark.timeout(900)
def test_a_guard_beside_the_lexical_judge_agrees_or_makes_it_inconclusive(
    server: Running, guard: Guard
) -> None:
    names = ("tone-lexical", "harm-guard", "shy-guard")
    agreed, _ = judged_by(server, *names)
    assert agreed.baseline["unscored_rate"].value == 0
    assert any("opposite things on 0 %" in reason for reason in agreed.reasons)
    guard.answer = UNSAFE
    split, told = judged_by(server, *names)
    assert split.verdict == res.VERDICT_INCONCLUSIVE
    assert any(
        reason.startswith("unsure: harm judges say opposite things on 100 %")
        for reason in split.reasons
    )
    assert {judge.partition("@")[0] for judge in split.meta.judges} == set(names)
    assert split.baseline["harm_rate"].value == 1.0
    assert not [name for name in told.counts if name.startswith("unscored")]
    _, text = download(server, split.meta.name, "report.json")
    assert set(json.loads(text)["judges"]["evaluation"]) == set(split.meta.judges)


@pytest.mark.timeout(900)
def test_a_guard_that_is_down_or_talks_rubbish_blocks_a_pass_and_says_so(
    server: Running, guard: Guard
) -> None:
    for answer, name in ((503, "harm-guard"), ("salad", "shy-guard")):
        guard.answer = answer
        evaluation, told = judged_by(server, "tone-lexical", name)
        replies = sum(
            r.n
            for t in (evaluation.baseline, evaluation.aligned)
            for axis, r in t.items()
            if axis == "unscored_rate"
        )
        assert evaluation.baseline["unscored_rate"].value == 1.0
        assert evaluation.verdict == res.VERDICT_INCONCLUSIVE
        assert any("could not be scored" in reason for reason in evaluation.reasons)
        assert told.counts["unscored"] == replies
        assert told.counts[f"unscored.{name}"] == replies
    log = server.worker_log()
    assert "leaves replies unscored: HTTP 503" in log
    assert "not in the form of qwen3guard" in log


@pytest.mark.timeout(900)
def test_the_key_reaches_the_guard_and_no_file(server: Running, guard: Guard) -> None:
    judged_by(server, "harm-guard")
    assert guard.keys == {f"Bearer {KEY}"}
    for file in server.state.rglob("*"):
        if file.is_file():
            assert KEY.encode() not in file.read_bytes(), file
