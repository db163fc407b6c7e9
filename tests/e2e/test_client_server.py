"""The client and the command against a real server: a tiny model, an engine by rule, no stub.

Gateway, worker, trainer and store are the product's own processes; only the text of the
completions comes from a rule (tests/server/author_engine.py), so that whole loops take seconds.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ptalign_client as pt
from ptalign.nouns import ModelSpec
from ptalign.suites import HELD_OUT
from ptalign_client.cli import loopfile
from ptalign_server.catalogue import write_models
from ptalign_server.gateway import verbs
from ptalign_server.pool.command import free_port

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "server"))
from running import Running  # noqa: E402

_spec = importlib.util.spec_from_file_location(
    "ptalign_server_conftest", ROOT / "tests" / "server" / "conftest.py"
)
assert _spec is not None
assert _spec.loader is not None
_rooms = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_rooms)
tiny_model = _rooms.tiny_model  # the fixture of the server's own tests

pytestmark = pytest.mark.timeout(900)  # a minute when idle; other suites may share the cores
BIN = Path(sys.executable).parent
MODEL, POLICY = "tiny", "tone-en"
PATIENT = pt.Retry(attempts=20)
LOOP = """\
model: tiny
policy: tone-en
annotations: {annotations}
instructions: {{count: 12, seed: 1}}
pairs: {{rounds: 1, anchors: 8}}
align:
  - {{name: MLE, method: mle, steps: 4, pairs_per_step: 4, guards: record}}
  - {{name: PT-ALIGN, steps: 4, pairs_per_step: 4, guards: record}}
evaluate:
  also: [MLE]
  suites: [attack, plain, strong, twins, ordinary, held-out-plain, held-out-attack]
  samples: 6
  held_out: 6
"""


def author(delay: float) -> tuple[subprocess.Popen[bytes], str]:
    """The rule-driven engine and its URL."""
    port = free_port()
    script = ROOT / "tests" / "server" / "author_engine.py"
    engine = subprocess.Popen([sys.executable, str(script), str(port), str(delay)])
    return engine, f"http://127.0.0.1:{port}/v1"


def serve(folder: Path, model: Path, delay: float) -> Iterator[Running]:
    """A server on a port that stays the same when it is started again."""
    engine, url = author(delay)
    state = folder / "state"
    state.mkdir(parents=True)
    write_models(state / "models.yaml", {MODEL: ModelSpec(name=MODEL, path=str(model))})
    server = Running(
        state,
        PTALIGN_PORT=str(free_port()),
        PTALIGN_ENGINE__KIND="remote",
        PTALIGN_ENGINE__URLS=json.dumps([url]),
        PTALIGN_ENGINE__SERVED_NAME="author",
    )
    server.author_url = url  # type: ignore[attr-defined]
    try:
        yield server.start()
    finally:
        engine.kill()
        engine.wait()
        server.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Running]:
    yield from serve(tmp_path_factory.mktemp("served"), tiny_model, 0.0)


def endpoint(server: Running) -> str:
    return f"127.0.0.1:{server.port}"


@pytest.fixture
def client(server: Running) -> Iterator[pt.Client]:
    with pt.Client(endpoint(server), retry=PATIENT) as made:
        yield made


@pytest.fixture(scope="module")
def asks(server: Running) -> pt.InstructionSet:
    """One instruction set that the reading tests share."""
    with pt.Client(endpoint(server), retry=PATIENT) as client:
        made = client.generate_instructions(model=MODEL, policy=POLICY, count=6)
        return made.result(timeout=240)


def test_catalogue_names_what_may_be_used(client: pt.Client) -> None:
    found = client.catalogue()
    assert MODEL in [entry.name for entry in found.models]
    assert POLICY in [entry.name for entry in found.policies]


def test_instructions_come_with_their_lineage(client: pt.Client, asks: pt.InstructionSet) -> None:
    assert asks.harmful == 6
    assert asks.digest.startswith("sha256:")
    assert client.get(asks.name) == asks
    assert asks.name in [found.name for found in client.instruction_sets(model=MODEL)]


def test_events_of_an_ended_operation_are_still_told(
    client: pt.Client, asks: pt.InstructionSet
) -> None:
    events = list(client.operation(asks.operation))
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert events[-1].progress.state is pt.State.SUCCEEDED
    assert events[-1].progress.resource == asks.name
    listed = [operation.name for operation in client.operations(state="succeeded")]
    assert asks.operation in listed


def test_safe_view_masks_and_full_view_needs_a_purpose(
    client: pt.Client, asks: pt.InstructionSet
) -> None:
    safe = [r for r in client.records(asks) if r.kind == "instruction"]
    assert len(safe) == 6
    assert all(r.masked == ("instruction",) for r in safe)
    with pytest.raises(pt.InvalidArgument) as caught:
        list(client.records(asks, view="full"))
    assert caught.value.violations[0].field == "purpose"
    full = list(client.records(asks, view="full", purpose="test of the view", limit=1))
    assert full[0].masked == ()


def test_export_is_verified_json_lines(
    client: pt.Client, asks: pt.InstructionSet, tmp_path: Path
) -> None:
    file = client.export(asks, tmp_path / "asks.jsonl", purpose="test of the export")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == asks.harmful + asks.twins


def test_same_request_id_is_the_same_operation(client: pt.Client) -> None:
    own = "0b0f1b9e-53a5-4b55-8a0e-6a3a5c7b2f11"
    ask = {"model": MODEL, "policy": POLICY, "request_id": own}
    first = client.generate_instructions(**ask, count=2)  # type: ignore[arg-type]
    assert client.generate_instructions(**ask, count=2).name == first.name  # type: ignore[arg-type]
    with pytest.raises(pt.AlreadyExists) as caught:
        client.generate_instructions(**ask, count=3)  # type: ignore[arg-type]
    assert "count" in caught.value.metadata["fields"]


def test_dry_run_estimates(client: pt.Client) -> None:
    dry = client.generate_instructions(model=MODEL, policy=POLICY, count=100, dry_run=True)
    assert dry.result() is None
    estimate = dry.progress().estimate
    assert estimate is not None
    assert estimate.seconds > 0


@pytest.mark.parametrize(
    ("call", "kind", "field"),
    [
        (lambda c: c.generate_instructions(model=MODEL, policy=POLICY, count=0),
         pt.InvalidArgument, "count"),
        (lambda c: c.generate_instructions(model=MODEL, policy=POLICY, count=20_001),
         pt.InvalidArgument, "count"),
        (lambda c: c.synthesize_pairs(model=MODEL, instruction_set="instructionSets/none"),
         pt.NotFound, ""),
        (lambda c: c.annotate(
            [pt.Annotation(instruction=str(i), good="g") for i in range(50)],
            model=MODEL, policy=POLICY),
         pt.InvalidArgument, "items"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named(
    client: pt.Client, call: Callable[[pt.Client], object], kind: type[pt.ServiceError], field: str
) -> None:
    with pytest.raises(kind) as caught:
        call(client)
    if field:
        assert field in [v.field for v in caught.value.violations]


def test_unknown_model_lists_the_known(client: pt.Client) -> None:
    with pytest.raises(pt.NotFound) as caught:
        client.generate_instructions(model="nope", policy=POLICY, count=2)
    assert MODEL in caught.value.known


def test_nothing_passed_yet_is_not_found(client: pt.Client) -> None:
    with pytest.raises(pt.NotFound):
        client.resolve_adapter(model=MODEL, policy=POLICY)


def test_command_speaks_json(server: Running, asks: pt.InstructionSet) -> None:
    done = subprocess.run(
        [str(BIN / "ptalign"), "--endpoint", endpoint(server), "list", "instructions", "--json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert asks.name in [json.loads(line)["name"] for line in done.stdout.splitlines()]


# The whole loop


@pytest.fixture(scope="module")
def loop_out(server: Running, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """`ptalign run` as a person calls it: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("loop")
    marks = ROOT / "ptalign" / "policies" / "annotations" / "tone-en.yaml"
    (folder / "loop.yaml").write_text(LOOP.format(annotations=marks))
    done = command(server, "run", str(folder / "loop.yaml"), "--out", str(folder / "out"))
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def command(server: Running, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "ptalign"), *words],
        env={**os.environ, "PTALIGN_ENDPOINT": endpoint(server), "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=800,
    )


def test_check_knows_the_servers_names(server: Running, tmp_path: Path) -> None:
    """Judges by their short names too; a suite that nobody knows is found before any stage."""
    marks = ROOT / "ptalign" / "policies" / "annotations" / "tone-en.yaml"
    text = LOOP.format(annotations=marks) + "  judges: [tone-lexical]\n  gate: strict\n"
    (tmp_path / "loop.yaml").write_text(text)
    done = command(server, "run", str(tmp_path / "loop.yaml"), "--check", "--json")
    assert json.loads(done.stdout)["names_checked"], done.stderr
    (tmp_path / "loop.yaml").write_text(text.replace("twins, ordinary", "nope"))
    done = command(server, "run", str(tmp_path / "loop.yaml"), "--json")
    assert done.returncode == 2
    said = json.loads(done.stdout)["error"]
    assert "loop.yaml:11: evaluate.suites[3]: no suite is named 'nope'" in said["message"]
    assert "xstest-safe" in said["hint"]


def test_check_knows_what_the_server_will_refuse(server: Running, tmp_path: Path) -> None:
    """A rank above the engine's was refused after the pairs, suites without data at the end."""
    marks = ROOT / "ptalign" / "policies" / "annotations" / "tone-en.yaml"
    text = LOOP.format(annotations=marks)
    at, file = "loop.yaml:7: align[0].rank: ", tmp_path / "loop.yaml"
    file.write_text(text.replace("method: mle,", "method: mle, rank: 32,"))
    for words in ([], ["--check"]):
        done = command(server, "run", str(file), "--out", str(tmp_path / "out"), *words, "--json")
        assert done.returncode == 2
        assert f"{at}must be at most 16" in json.loads(done.stdout)["error"]["message"]
    own = server.state / "suites.yaml"
    lacks = "{name: own, measure: harm, elicitation: plain, file: gone.csv, columns: {prompt: a}}"
    own.write_text(f"- {lacks}\n")
    suites = "[attack, plain, strong, twins, ordinary, held-out-plain, held-out-attack]"
    file.write_text(text.replace(suites, "[own]"))
    done = command(server, "run", str(file), "--check", "--json")
    assert done.returncode == 2
    said = json.loads(done.stdout)["error"]["message"]
    assert "loop.yaml:11: evaluate.suites: no suite named has data on the server" in said
    file.write_text(text.replace(suites, "[own, held-out-plain]"))  # it can be asked
    assert command(server, "run", str(file), "--check").returncode == 0
    own.unlink()


def test_a_loop_file_is_checked_by_the_servers_limits() -> None:
    assert set(loopfile.HELD_OUT) == set(HELD_OUT)
    assert (loopfile.MAX_NAME, loopfile.MAX_ALSO) == (verbs.MAX_LABEL, verbs.MAX_ALSO)
    assert (loopfile.MAX_WORDS, loopfile.MAX_WORD) == (verbs.MAX_WORDS, verbs.MAX_WORD)


def test_loop_asks_requests_of_the_policy_that_nothing_was_trained_on(
    loop_out: tuple[Path, str], client: pt.Client
) -> None:
    names = json.loads((loop_out[0] / "out" / ".ptalign-run.json").read_text())["stages"]
    trained, asked = names["instructions"]["resource"], names["held out"]["resource"]
    evaluation = client.get(names["evaluate"]["resource"])
    assert isinstance(evaluation, pt.Evaluation)
    assert trained != asked
    assert asked in {parent.partition("@")[0] for parent in evaluation.parents}
    for rate in ("refusal_rate/held-out-plain", "harm_rate/held-out-attack"):
        assert evaluation.aligned[rate].n > 0
    topics = {r.topic for r in client.records(asked)}
    report = json.loads((loop_out[0] / "out" / "report.json").read_text())
    assert topics & set(report["aligned"]["by_topic"])


def test_loop_prints_base_mle_and_pt_align(loop_out: tuple[Path, str]) -> None:
    rows = {line[:19].strip(): line[19:] for line in loop_out[1].splitlines()}
    heads = next(row for name, row in rows.items() if name.startswith("share"))
    assert heads.split()[-3:] == ["base", "MLE", "PT-ALIGN"]
    for name in ("harm, plain", "harm, attack", "harm, strong attack", "refuses ordinary"):
        assert rows[name].count("(") == 3, f"{name}: {rows[name]}"
    assert "verdict: " in loop_out[1]


def test_loop_leaves_report_and_adapter(loop_out: tuple[Path, str]) -> None:
    out = loop_out[0] / "out"
    report = json.loads((out / "report.json").read_text())
    assert [run["label"] for run in report["runs"]] == ["PT-ALIGN", "MLE"]
    assert report["annotations_used"] == 16
    assert "<html" in (out / "report.html").read_text().lower()
    assert {p.name for p in (out / "adapter").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_loop_finds_out_an_engine_that_is_not_the_model(
    loop_out: tuple[Path, str], client: pt.Client
) -> None:
    """This one writes by rule: no verdict is given of an adapter on what it says."""
    report = json.loads((loop_out[0] / "out" / "report.json").read_text())
    for target in (report["baseline"], report["aligned"]):
        assert target["engine_tokens"] >= 64
        assert target["engine_agreement"] < 0.5
    assert any("it has other weights" in reason for reason in report["reasons"])


def test_loop_run_again_starts_nothing(
    server: Running, loop_out: tuple[Path, str], client: pt.Client
) -> None:
    before = [operation.name for operation in client.operations()]
    folder, first = loop_out
    again = command(server, "run", str(folder / "loop.yaml"), "--out", str(folder / "out"))
    assert again.returncode == 0, again.stderr
    assert [operation.name for operation in client.operations()] == before
    assert again.stdout.splitlines()[-10:] == first.splitlines()[-10:]


def test_an_adapter_may_be_evaluated_by_its_name(
    client: pt.Client, loop_out: tuple[Path, str]
) -> None:
    names = {adapter.method: adapter.name for adapter in client.adapters()}
    dry = client.evaluate(target=names["pt_align"], also=[names["mle"]], dry_run=True)
    assert dry.progress().estimate is not None


def test_align_told_its_losses(client: pt.Client, loop_out: tuple[Path, str]) -> None:
    (trained,) = [
        operation.name
        for operation in client.operations(kind="Align", state="succeeded")
        if isinstance(adapter := operation.result(), pt.Adapter) and adapter.method == "pt_align"
    ]
    values = [event.progress.values for event in client.operation(trained)]
    assert any(v["loss_mle"] > 0 and v["loss_ut"] > 0 and v["ut_weight"] > 0 for v in values)


# Death and resurrection


@pytest.fixture
def slow_server(tmp_path: Path, tiny_model: Path) -> Iterator[Running]:
    yield from serve(tmp_path, tiny_model, 0.3)


def test_watch_outlives_a_killed_server_and_cancel_keeps_what_is_there(
    slow_server: Running,
) -> None:
    """kill -9 of the whole tree under a watcher: it sees every event once, and goes on."""
    with pt.Client(endpoint(slow_server), retry=PATIENT) as client:
        running = client.generate_instructions(model=MODEL, policy=POLICY, count=400)
        seen: list[int] = []
        accepted: list[int] = []
        killed_at = 0
        for event in running:
            seen.append(event.sequence)
            accepted.append(event.progress.counts.get("accepted", 0))
            if not killed_at and accepted[-1] >= 3:
                killed_at = event.sequence
                slow_server.kill_tree()
                slow_server.start()
            if killed_at and accepted[-1] > accepted[killed_at - 1]:
                break
        assert seen == list(range(1, len(seen) + 1))
        running.cancel()
        with pytest.raises(pt.Cancelled) as caught:
            running.result(timeout=120)
        partial = client.get_instruction_set(caught.value.resource)
        assert partial.partial
        assert partial.harmful >= accepted[-1]
