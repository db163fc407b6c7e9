"""The `ptalign` command as a person and as a script meets it."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import typer
from google.rpc import status_pb2
from ptalign_client_fake import Fault, info, violation
from rich.console import Console
from typer.testing import CliRunner, Result

import ptalign_client as pt
from ptalign_client.cli import app, show
from ptalign_client.cli.follow import Count, Live, counts
from ptalign_client.cli.loop import Runner
from ptalign_client.cli.session import LISTED
from ptalign_client.cli.state import RunState
from ptalign_client.cli.store import LISTS
from ptalign_client.nouns import Progress
from ptalign_proto.v1 import library_pb2 as lib
from ptalign_proto.v1 import resources_pb2

Code = grpc.StatusCode
group: Any = typer.main.get_command(app)
LOOP = """\
model: tiny
policy: tone-en
annotations: marks.yaml
instructions: {count: 4}
align:
  - {name: MLE, method: mle}
  - {name: PT-ALIGN}
evaluate: {also: [MLE], samples: 10, held_out: 0}
"""


@pytest.fixture
def cli(served: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("PTALIGN_ENDPOINT", served.endpoint)

    def call(*words: str, text: str | None = None, columns: int = 80) -> Result:
        monkeypatch.setenv("COLUMNS", str(columns))
        return CliRunner().invoke(app, list(words), input=text)

    return call


@pytest.fixture
def loop(tmp_path: Path) -> Path:
    (tmp_path / "marks.yaml").write_text("items: [{instruction: i, good: g, bad: b}]\n")
    (tmp_path / "loop.yaml").write_text(LOOP)
    return tmp_path / "loop.yaml"


def lines(result: Result) -> list[Any]:
    return [json.loads(line) for line in result.stdout.splitlines()]


# The loop


def test_run_prints_the_tables_and_fetches_the_files(cli: Any, loop: Path, tmp_path: Path) -> None:
    result = cli("run", str(loop), "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.stderr
    assert "harm, strong attack" in result.stdout
    table = [line for line in result.stdout.splitlines() if line.startswith("harm, attack")]
    assert table[0].split() == (
        ["harm,", "attack", ".40", "(.30-.50)", ".30", "(.20-.40)", ".10", "(.00-.20)"]
    )
    assert "verdict: PASS" in result.stdout
    assert all(len(line) <= 80 or "report:" in line for line in result.stdout.splitlines())
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"report.html", "report.json", "adapter", ".ptalign-run.json"}
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").stat().st_size == 10_240


def test_second_run_starts_nothing_and_shows_the_same(
    cli: Any, loop: Path, tmp_path: Path, served: Any
) -> None:
    first = cli("run", str(loop), "--out", str(tmp_path / "out"))
    started = len(served.service.jobs)
    second = cli("run", str(loop), "--out", str(tmp_path / "out"))
    assert second.exit_code == 0, second.stderr
    assert len(served.service.jobs) == started == 5
    assert first.stdout.splitlines()[-12:] == second.stdout.splitlines()[-12:]


def test_changed_stage_runs_anew_with_those_that_depend_on_it(
    cli: Any, loop: Path, tmp_path: Path, served: Any
) -> None:
    cli("run", str(loop), "--out", str(tmp_path / "out"))
    loop.write_text(LOOP.replace("{name: PT-ALIGN}", "{name: PT-ALIGN, steps: 9}"))
    before = len(served.service.calls)
    assert cli("run", str(loop), "--out", str(tmp_path / "out")).exit_code == 0
    verbs = {"GenerateInstructions", "SynthesizePairs", "Align", "Evaluate"}
    assert [m for m, _ in served.service.calls[before:] if m in verbs] == ["Align", "Evaluate"]


def test_a_run_begun_before_later_fields_is_continued(
    cli: Any, loop: Path, tmp_path: Path, served: Any
) -> None:
    from ptalign_client.cli.state import digest_of

    out = tmp_path / "out"
    cli("run", str(loop), "--out", str(out))
    file = out / ".ptalign-run.json"
    state = json.loads(file.read_text())
    stages = state["stages"]
    old = {"name": "MLE", "method": "mle", "token_weighting": "blend", "guards": "abort"}
    old |= {"protected_words": (), "seed": 0}
    for name in ("steps", "pairs_per_step", "anchors_per_step", "learning_rate", "max_benign_kl"):
        old[name] = None
    old |= dict.fromkeys(("ut_weight", "flagged_share", "rank", "alpha"))
    assert stages["align MLE"]["inputs"] == digest_of([stages["pairs"]["resource"], old])
    used = {n: stages[f"align {n}"]["resource"] for n in ("PT-ALIGN", "MLE")}
    plan = {"target": "", "also": ["MLE"], "samples": 10, "suites": [], "judges": []}
    assert stages["evaluate"]["inputs"] == digest_of([used, plan | {"gate": "", "seed": 0}])


def test_a_training_without_anchors_says_so_to_the_server(
    cli: Any, loop: Path, tmp_path: Path, served: Any
) -> None:
    text = LOOP.replace("method: mle}", "method: mle, without_anchors: true}")
    loop.write_text(text + "pairs: {anchors: 0}\n")
    refused = cli("run", str(loop), "--out", str(tmp_path / "out"))
    assert refused.exit_code != 0
    assert "pairs.anchors" in refused.stderr
    assert not served.service.called("GenerateInstructions")
    text = text.replace(
        "{name: PT-ALIGN}",
        "{name: PT-ALIGN, without_anchors: true, twin_weight: 4, ut_candidates: written}",
    )
    loop.write_text(text + "pairs: {anchors: 0}\n")
    assert cli("run", str(loop), "--out", str(tmp_path / "out")).exit_code == 0
    budgets = [call.budget for call in served.service.called("Align")]
    assert all(budget.without_anchors for budget in budgets)
    assert [b.twin_weight for b in budgets if b.HasField("twin_weight")] == [4.0]
    sent = {call.ut_candidates for call in served.service.called("Align")}
    assert sent == {"written", "set"}


def test_requests_are_held_out_where_a_suite_asks_them(
    cli: Any, loop: Path, tmp_path: Path, served: Any
) -> None:
    loop.write_text(LOOP.replace(", held_out: 0", ""))
    cli("run", str(loop), "--out", str(tmp_path / "all"))
    (asked,) = served.service.called("Evaluate")
    trained, other = served.service.called("GenerateInstructions")
    assert (trained.count, other.count) == (4, 30)
    assert trained.seed != other.seed
    assert asked.held_out
    loop.write_text(LOOP.replace("held_out: 0", "suites: [attack]"))
    cli("run", str(loop), "--out", str(tmp_path / "named"))
    assert len(served.service.called("GenerateInstructions")) == 3
    assert not served.service.called("Evaluate")[-1].held_out


def test_run_that_lost_a_reply_finds_its_operation_again(
    cli: Any, loop: Path, tmp_path: Path, served: Any
) -> None:
    """Killed between the server's commit and the reply: the state file has the request id."""
    served.service.faults["SynthesizePairs"] = [Fault(Code.INTERNAL, committed=True)]
    broken = cli("run", str(loop), "--out", str(tmp_path / "out"))
    assert broken.exit_code == 1
    assert cli("run", str(loop), "--out", str(tmp_path / "out")).exit_code == 0
    kinds = [job.kind for job in served.service.jobs.values()]
    assert kinds.count("SynthesizePairs") == 1


def test_failed_align_is_resumed_from(cli: Any, loop: Path, tmp_path: Path, served: Any) -> None:
    original = served.service._fill

    def failing(job: Any) -> None:
        original(job)
        if job.kind == "Align":
            job.error = status_pb2.Status(code=14, message="engine lost")
            served.service._fill = original

    served.service._fill = failing
    broken = cli("run", str(loop), "--out", str(tmp_path / "out"))
    assert broken.exit_code == 1
    assert "operations/3 ended with: engine lost" in broken.stderr
    assert cli("run", str(loop), "--out", str(tmp_path / "out")).exit_code == 0
    first, second, *_ = served.service.called("Align")
    assert first.request_id != second.request_id
    assert (first.resume_from, second.resume_from) == ("", "operations/3")


def test_align_whose_steps_are_on_another_server_starts_afresh(
    cli: Any, loop: Path, tmp_path: Path, served: Any
) -> None:
    original, lost = served.service._fill, status_pb2.Status(code=3, message="not on this machine")
    lost.details.add().Pack(violation("resume_from", "has no checkpoints on this machine"))
    errors = [status_pb2.Status(code=14, message="engine lost"), lost]

    def failing(job: Any) -> None:
        original(job)
        if job.kind == "Align" and errors:
            job.error = errors.pop(0)

    served.service._fill = failing
    assert cli("run", str(loop), "--out", str(tmp_path / "out")).exit_code == 1
    again = cli("run", str(loop), "--out", str(tmp_path / "out"))
    assert again.exit_code == 0, again.stderr
    assert "operations/3 cannot be continued: starting afresh" in again.stderr
    asked = served.service.called("Align")
    assert [r.resume_from for r in asked[:3]] == ["", "operations/3", ""]
    assert len({r.request_id for r in asked[:3]}) == 3


def test_a_loop_goes_on_after_a_backup_without_its_adapter_was_restored(
    cli: Any, loop: Path, tmp_path: Path, served: Any
) -> None:
    """Its operation is unknown there, and was named in `resume_from` at each rerun for ever."""
    out = str(tmp_path / "out")
    assert cli("run", str(loop), "--out", out).exit_code == 0
    state = RunState(tmp_path / "out").stages["align MLE"]
    del served.service.resources[state.resource], served.service.jobs[state.operation]
    again = cli("run", str(loop), "--out", out)
    assert again.exit_code == 0, again.stderr
    assert served.service.called("Align")[-1].resume_from == ""


def test_a_loop_attaches_to_what_a_restored_backup_goes_on_with(
    cli: Any, loop: Path, tmp_path: Path, served: Any
) -> None:
    """It started a second training beside the one under way."""
    out = str(tmp_path / "out")
    assert cli("run", str(loop), "--out", out).exit_code == 0
    state = RunState(tmp_path / "out").stages["align MLE"]
    lost = served.service.resources.pop(state.resource)
    served.service.jobs[state.operation].shown = 1  # under way again
    asked = len(served.service.called("Align"))
    original = served.service.WatchOperation

    def made(request: Any, context: Any) -> Any:
        served.service.resources[state.resource] = lost
        return original(request, context)

    served.service.WatchOperation = made
    again = cli("run", str(loop), "--out", out)
    assert again.exit_code == 0, again.stderr
    assert f"attached to {state.operation}" in again.stderr
    assert len(served.service.called("Align")) == asked


def test_an_adapters_name_is_no_markup(cli: Any, loop: Path, tmp_path: Path) -> None:
    """`[/old]` ended the loop after the training, at every rerun; `[v2]` was not shown."""
    loop.write_text(LOOP.replace("name: PT-ALIGN", 'name: "PT [/x]"'))
    done = cli("run", str(loop), "--out", str(tmp_path / "out"))
    assert done.exit_code == 0, done.stderr
    assert "align PT [/x]" in done.stderr
    assert "PT [/x]" in done.stdout


def test_a_phase_that_counts_nothing_shows_no_total_of_the_one_before() -> None:
    err = Console(file=io.StringIO(), force_terminal=True, width=100)
    live = Live(SimpleNamespace(err=err))  # type: ignore[arg-type]
    task = live.add_task("[pairs]", total=None, phase="", eta="")
    for done, total, shown in ((174, 174, "174/174"), (0, 0, "")):
        told = {"phase": "[reading]", "done": done, "total": total}
        live.show(task, Progress(operation="", kind="Align", state=pt.State.RUNNING, **told))
        assert Count().render(live.tasks[0]).plain == shown
    err.print(live.make_tasks_table(live.tasks))
    assert "[pairs]" in err.file.getvalue()  # type: ignore[attr-defined]
    assert "[reading]" in err.file.getvalue()  # type: ignore[attr-defined]


def stop_first_set(served: Any, made: int, twins: int, given_up: int = 0) -> None:
    """The first instruction set is cut short after `made` of its instructions."""
    original = served.service._fill

    def stopping(job: Any) -> None:
        original(job)
        if job.kind == "GenerateInstructions":
            job.result.harmful, job.result.twins, job.result.meta.partial = made, twins, True
            job.result.rejected["twin_given_up"] = given_up
            job.cancelled = True
            served.service._fill = original

    served.service._fill = stopping


@pytest.mark.parametrize(
    ("made", "asked"),
    [((3, 3), [4, 1]), ((4, 4), [4]), ((5, 5), [4]), ((4, 1), [4, 1]), ((4, 1, 3), [4])],
)
def test_a_set_cut_short_is_filled_up_to_the_count(
    cli: Any, loop: Path, tmp_path: Path, served: Any, made: tuple[int, ...], asked: list[int]
) -> None:
    """The server adds `count` to what the parent holds; nothing is asked when nothing is owed.

    Twins are owed too: they are written after the seeds, all of which may be there.
    """
    stop_first_set(served, *made)
    assert cli("run", str(loop), "--out", str(tmp_path / "out")).exit_code != 0
    done = cli("run", str(loop), "--out", str(tmp_path / "out"))
    assert done.exit_code == 0, done.stderr
    requests = served.service.called("GenerateInstructions")
    assert [r.count for r in requests] == asked
    assert [r.parent for r in requests] == ["", "instructionSets/1"][: len(asked)]
    if len(asked) == 1:
        assert served.service.called("SynthesizePairs")[0].instruction_set == "instructionSets/1"
        assert cli("run", str(loop), "--out", str(tmp_path / "out")).exit_code == 0
        assert len(served.service.called("SynthesizePairs")) == 1


def test_a_set_under_its_coverage_floor_says_so_where_it_is_made(
    cli: Any, loop: Path, tmp_path: Path, served: Any
) -> None:
    """Only `get` told, as one number among many."""
    original = served.service._fill

    def narrow(job: Any) -> None:
        original(job)
        if job.kind == "GenerateInstructions":
            job.result.stats.update({"coverage": 0.55, "coverage_met": 0.0})

    served.service._fill = narrow
    words = "topics covered .55, under the floor"
    alone = cli("generate", "-m", "tiny", "-p", "tone-en", "-n", "4", columns=200)
    assert words in alone.output
    run = cli("run", str(loop), "--out", str(tmp_path / "out"), columns=200)
    assert run.exit_code == 0
    assert words in run.stderr


def test_seeds_and_excerpts_that_were_not_taken_are_told_where_the_set_is_made(
    cli: Any, loop: Path, tmp_path: Path, served: Any
) -> None:
    """None of 500 excerpts taken looked like success."""
    original = served.service._fill

    def refusing(job: Any) -> None:
        original(job)
        if job.kind == "GenerateInstructions":
            job.result.rejected.update({"excerpt_not_a_request": 498, "seed_too_long": 2})

    served.service._fill = refusing
    words = "4 harmful, 4 twins, not taken: 498 excerpt_not_a_request, 2 seed_too_long"
    alone = cli("generate", "-m", "tiny", "-p", "tone-en", "-n", "4", columns=200)
    assert alone.output.endswith(f"{words}\n")  # "dup" is the model's
    run = cli("run", str(loop), "--out", str(tmp_path / "out"), columns=200)
    assert words in run.stderr


def test_a_set_cut_short_and_gone_is_made_anew(
    cli: Any, loop: Path, tmp_path: Path, served: Any
) -> None:
    stop_first_set(served, 3, 3)
    cli("run", str(loop), "--out", str(tmp_path / "out"))
    served.service.resources["instructionSets/1"].meta.purged = True
    assert cli("run", str(loop), "--out", str(tmp_path / "out")).exit_code == 0
    first, second = served.service.called("GenerateInstructions")
    assert (first.count, second.count, second.parent) == (4, 4, "")


def test_pairs_cut_short_and_gone_are_made_anew(
    cli: Any, loop: Path, tmp_path: Path, served: Any
) -> None:
    original = served.service._fill

    def stopping(job: Any) -> None:
        original(job)
        if job.kind == "SynthesizePairs":
            job.result.meta.partial = job.cancelled = True
            job.result.meta.purged = True
            served.service._fill = original

    served.service._fill = stopping
    assert cli("run", str(loop), "--out", str(tmp_path / "out")).exit_code != 0
    assert cli("run", str(loop), "--out", str(tmp_path / "out")).exit_code == 0
    assert [r.parent for r in served.service.called("SynthesizePairs")] == ["", ""]


def test_a_disk_that_fills_up_at_the_end_is_not_called_nothing_started(
    cli: Any, loop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "report.html")

    monkeypatch.setattr(Runner, "fetch", full)
    result = cli("run", str(loop), "--out", str(tmp_path / "out"), columns=200)
    assert result.exit_code == 1
    assert "report.html: No space left on device" in result.stderr


@pytest.mark.parametrize("reason", ["SET_PURGED", "ADAPTER_DELETED"])
def test_a_run_that_needs_what_is_gone_says_how_to_start_anew(
    cli: Any, loop: Path, tmp_path: Path, served: Any, reason: str
) -> None:
    """Retention took the text of what the run keeps; unchanged, it has no need of it."""
    out = tmp_path / "out"
    assert cli("run", str(loop), "--out", str(out)).exit_code == 0
    for made in served.service.resources.values():
        made.meta.purged = True
    assert cli("run", str(loop), "--out", str(out)).exit_code == 0
    loop.write_text(LOOP.replace("{name: PT-ALIGN}", "{name: PT-ALIGN, steps: 9}"))
    purged = Fault(Code.FAILED_PRECONDITION, details=(info(reason),))
    served.service.faults["Align"] = [purged]
    refused = cli("run", str(loop), "--out", str(out), columns=400)
    assert refused.exit_code == 1
    assert f"move {out / '.ptalign-run.json'} away" in refused.stderr
    (out / ".ptalign-run.json").unlink()
    assert cli("run", str(loop), "--out", str(out)).exit_code == 0


def test_run_as_json(cli: Any, loop: Path, tmp_path: Path) -> None:
    result = cli("run", str(loop), "--out", str(tmp_path / "out"), "--json")
    (said,) = lines(result)
    assert said["evaluation"]["verdict"] == "pass"
    assert said["stages"]["align MLE"]["name"] == "adapters/3"


def test_check_says_line_and_field_and_starts_nothing(cli: Any, loop: Path, served: Any) -> None:
    assert cli("run", str(loop), "--check").exit_code == 0
    loop.write_text(LOOP.replace("count: 4", "count: 0"))
    result = cli("run", str(loop), columns=200)
    assert result.exit_code == 2
    assert "loop.yaml:4: instructions.count" in result.stderr
    assert not started(served)


def started(served: Any) -> list[str]:
    methods = [method for method, _ in served.service.calls]
    return [m for m in methods if m != "GetCatalogue" and not m.endswith(" dry run")]


def test_a_limit_above_a_million_is_printed_in_full(cli: Any, loop: Path) -> None:
    """`must be 0..4.29497e+09, not 4.29497e+09`."""
    loop.write_text(LOOP.replace("count: 4", "count: 4, seed: 4294967296"))
    result = cli("run", str(loop), "--check", columns=200)
    assert "instructions.seed: must be 0..4294967295, not 4294967296" in result.stderr


def test_a_timeout_of_nothing_is_told_by_its_flag(cli: Any) -> None:
    """The SDK's own words said to use None, which no command line can."""
    result = cli("catalogue", "--timeout", "-1", columns=200)
    assert result.exit_code == 2
    assert "'--timeout': Input should be greater than or equal to 0.1" in result.stderr
    assert "None" not in result.stderr


@pytest.mark.parametrize("words", [(), ("--check",)])
@pytest.mark.parametrize(
    ("marks", "says"),
    [
        (None, "marks.yaml: No such file or directory"),
        ("items: [{good: g}]", "marks.yaml: items[0]: instruction is missing"),
        ("items: []", "marks.yaml holds no marks"),
        ("items:\n" + 50 * "- {instruction: i, good: g}\n", "holds 50 marks; at most 49"),
    ],
)
def test_marks_that_cannot_be_used_stop_a_run_before_its_first_stage(
    cli: Any, loop: Path, served: Any, marks: str | None, says: str, words: tuple[str, ...]
) -> None:
    """`--check` called the file well-formed, and a run made the instructions first."""
    (loop.parent / "marks.yaml").unlink()
    if marks is not None:
        (loop.parent / "marks.yaml").write_text(marks)
    result = cli("run", str(loop), *words, columns=300)
    assert result.exit_code == 2
    assert "loop.yaml:3: annotations: " in result.stderr
    assert says in result.stderr
    assert not started(served)


@pytest.mark.parametrize("words", [(), ("--check",)])
@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("model: tiny", "model: big", "loop.yaml:1: model: no model is named 'big'"),
        ("policy: tone-en", "policy: x", "loop.yaml:2: policy: no policy is named 'x'"),
        (
            "samples: 10",
            "suites: [attack, nope]",
            "loop.yaml:8: evaluate.suites[1]: no suite is named 'nope'",
        ),
        ("samples: 10", "judges: [x]", "loop.yaml:8: evaluate.judges[0]: no judge is named 'x'"),
        ("samples: 10", "gate: x", "loop.yaml:8: evaluate.gate: no gate is named 'x'"),
    ],
)
def test_names_that_the_server_does_not_know_stop_a_run_before_its_first_stage(
    cli: Any, loop: Path, served: Any, old: str, new: str, says: str, words: tuple[str, ...]
) -> None:
    """A suite that nobody knows was found out after the adapters were trained."""
    loop.write_text(LOOP.replace(old, new))
    result = cli("run", str(loop), *words, columns=300)
    assert result.exit_code == 2
    assert says in result.stderr
    assert "Known: " in result.stderr
    assert not started(served)


@pytest.mark.parametrize("words", [(), ("--check",)])
@pytest.mark.parametrize(
    ("verb", "old", "new", "refused", "says"),
    [
        (
            "Align",
            "name: MLE,",
            "name: MLE, rank: 32,",
            ("lora.rank", "must be at most 16, got 32. Lower it."),
            "loop.yaml:6: align[0].rank: must be at most 16, got 32. Lower it.",
        ),
        (
            "Align",
            "name: MLE,",
            "name: MLE,",
            ("lora.rank", "must be at most 8, got 16. Lower it."),
            "loop.yaml:6: align[0]: must be at most 8, got 16. Lower it.",
        ),
        (
            "Evaluate",
            "samples: 10",
            "suites: [attack]",
            ("suites", "no suite named has data. Name others."),
            "loop.yaml:8: evaluate.suites: no suite named has data. Name others.",
        ),
        (
            "Evaluate",
            "samples: 10",
            "samples: 10",
            ("target.model", "is tiny, and the engines run big. Send that one."),
            "loop.yaml:1: model: is tiny, and the engines run big. Send that one.",
        ),
    ],
)
def test_what_the_server_will_refuse_stops_a_run_before_its_first_stage(
    cli: Any,
    loop: Path,
    served: Any,
    verb: str,
    old: str,
    new: str,
    refused: tuple[str, str],
    says: str,
    words: tuple[str, ...],
) -> None:
    """Ranks and suites were refused after the instructions and pairs, or the adapters, too."""
    loop.write_text(LOOP.replace(old, new))
    fault = Fault(Code.INVALID_ARGUMENT, details=(violation(*refused),))
    served.service.faults[f"{verb} dry run"] = [fault]
    result = cli("run", str(loop), *words, columns=300)
    assert result.exit_code == 2
    assert says in result.stderr
    assert not started(served)


@pytest.mark.parametrize("words", [(), ("--check",)])
def test_what_only_earlier_stages_make_is_not_missed_before_them(
    cli: Any, loop: Path, tmp_path: Path, served: Any, words: tuple[str, ...]
) -> None:
    for verb, field in (("Align", "pair_set"), ("Evaluate", "held_out")):
        fault = Fault(Code.INVALID_ARGUMENT, details=(violation(field, "is empty. Send one."),))
        served.service.faults[f"{verb} dry run"] = [fault]
    result = cli("run", str(loop), "--out", str(tmp_path / "out"), *words)
    assert result.exit_code == 0, result.stderr
    asked = {verb: served.service.called(f"{verb} dry run") for verb in ("Align", "Evaluate")}
    assert [(a.model, a.pair_set) for a in asked["Align"]] == [("tiny", "")]
    assert [(a.target.model, a.samples) for a in asked["Evaluate"]] == [("tiny", 10)]


def test_check_says_when_limits_could_not_be_asked(cli: Any, loop: Path, served: Any) -> None:
    served.service.faults["Align dry run"] = [Fault(Code.PERMISSION_DENIED, message="no role")]
    result = cli("run", str(loop), "--check", "--json", columns=200)
    assert result.exit_code == 0
    assert "Its ranks, suites and judges were not checked: no role." in result.stderr
    (said,) = lines(result)
    assert (said["names_checked"], said["limits_checked"]) == (True, False)


@pytest.mark.parametrize("words", [(), ("--check",)])
@pytest.mark.parametrize("field", ["flagged_share: 0.3", "token_weighting: judge"])
def test_a_weighting_that_means_nothing_stops_a_run_unless_its_adapter_was_begun(
    cli: Any, loop: Path, tmp_path: Path, served: Any, field: str, words: tuple[str, ...]
) -> None:
    """Align refused it hours later. What was begun before that is finished."""
    out = str(tmp_path / "out")
    loop.write_text(LOOP.replace("method: mle", f"method: mle, {field}"))
    refused = cli("run", str(loop), "--out", out, *words, columns=300)
    assert refused.exit_code == 2
    name = field.partition(":")[0]
    assert f"loop.yaml:6: align[0].{name}: means nothing to mle" in refused.stderr
    assert not started(served)
    RunState(tmp_path / "out").stage("align MLE", [])
    assert cli("run", str(loop), "--out", out, *words).exit_code == 0


@pytest.mark.parametrize("words", [(), ("--check",)])
@pytest.mark.parametrize(
    ("old", "new", "begun", "says"),
    [
        (
            "name: PT-ALIGN",
            "name: PT-ALIGN, flagged_share: 0.3",
            "PT-ALIGN",
            "loop.yaml:7: align[1].flagged_share: must be 0.05..0.25, not 0.3",
        ),
        (
            "name: PT-ALIGN",
            "name: base",
            "base",
            "loop.yaml:7: align[1].name: is the bare model's name",
        ),
        ("name: PT-ALIGN", "name: ''", "", "loop.yaml:7: align[1].name: is empty"),
    ],
)
def test_what_was_taken_once_stops_a_run_unless_its_adapter_was_begun(
    cli: Any,
    loop: Path,
    tmp_path: Path,
    served: Any,
    old: str,
    new: str,
    begun: str,
    says: str,
    words: tuple[str, ...],
) -> None:
    out = str(tmp_path / "out")
    loop.write_text(LOOP.replace(old, new))
    refused = cli("run", str(loop), "--out", out, *words, columns=300)
    assert refused.exit_code == 2
    assert says in refused.stderr
    assert not started(served)
    RunState(tmp_path / "out").stage(f"align {begun}", [])
    assert cli("run", str(loop), "--out", out, *words).exit_code == 0


@pytest.mark.parametrize("judge", ["tone", "own-guard", "own-guard@harm-0a1b2c3d"])
def test_a_judge_is_known_with_and_without_its_version(cli: Any, loop: Path, judge: str) -> None:
    names = f"suites: [attack], judges: [{judge}], gate: default"
    loop.write_text(LOOP.replace("samples: 10", names))
    assert cli("run", str(loop), "--check").exit_code == 0


def test_progress_names_the_guard_that_failed() -> None:
    told = {"accepted": 9, "unscored": 3, "unscored.own-guard": 3, "useful": 6}
    progress = pt.Progress(operation="o", kind="Evaluate", state="running", counts=told)
    assert counts(progress) == "accepted 9, unscored 3, own-guard failed 3"


def test_check_without_a_server_says_that_names_were_not_checked(loop: Path) -> None:
    words = ["run", str(loop), "--check", "--endpoint", "127.0.0.1:1", "--json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0
    said = " ".join(result.stderr.split())
    assert "names in it were not checked: nobody answers at 127.0.0.1:1" in said
    assert lines(result) == [
        {"file": str(loop), "well_formed": True, "names_checked": False, "limits_checked": False}
    ]


def test_check_prints_one_json_line(cli: Any, loop: Path) -> None:
    (said,) = lines(cli("run", str(loop), "--check", "--json"))
    assert said == {
        "file": str(loop),
        "well_formed": True,
        "names_checked": True,
        "limits_checked": True,
    }


def test_a_refusal_after_a_stage_ended_is_not_told_as_nothing_started(
    cli: Any, loop: Path, tmp_path: Path, served: Any
) -> None:
    served.service.faults["Align"] = [Fault(Code.INVALID_ARGUMENT, message="no such rank")]
    broken = cli("run", str(loop), "--out", str(tmp_path / "out"))
    assert broken.exit_code == 1
    assert "no such rank" in broken.stderr


def test_marks_that_the_server_refuses_cost_no_stage(
    cli: Any, loop: Path, tmp_path: Path, served: Any
) -> None:
    served.service.faults["CreateAnnotationSet"] = [Fault(Code.INVALID_ARGUMENT)]
    assert cli("run", str(loop), "--out", str(tmp_path / "out")).exit_code == 2
    assert started(served) == ["CreateAnnotationSet"]


def test_state_of_another_program_is_left_alone(cli: Any, loop: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".ptalign-run.json").write_text("{}")
    result = cli("run", str(loop), "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert (tmp_path / "out" / ".ptalign-run.json").read_text() == "{}"


# One stage


def test_stages_one_by_one(cli: Any, tmp_path: Path) -> None:
    made = cli("generate", "-m", "tiny", "-p", "tone-en", "-n", "3", "--json")
    (instructions,) = lines(made)
    (tmp_path / "m.jsonl").write_text('{"instruction": "i", "good": "g"}\n')
    marks = str(tmp_path / "m.jsonl")
    (pairs,) = lines(cli("synthesize", instructions["name"], "-m", "tiny", "-a", marks, "--json"))
    (adapter,) = lines(cli("align", pairs["name"], "-m", "tiny", "--method", "mle", "--json"))
    assert adapter["method"] == "mle"
    shown = cli("evaluate", adapter["name"], "-m", "tiny")
    assert "verdict: PASS" in shown.stdout
    assert "ptalign download evaluations/4 report.html" in shown.stdout
    measured, _, fixed = shown.stdout.partition("without the judges' known errors")
    assert ".40 (" in measured
    assert ".71 (" not in measured
    assert ".71 (" in fixed


def test_what_marks_cost_is_kept_with_those_of_a_file(
    cli: Any, tmp_path: Path, served: Any
) -> None:
    """The minutes of a file were dropped, and the report said 0."""
    file = tmp_path / "m.yaml"
    marks = "items: [{instruction: i, good: g}]\nannotator_minutes: 22\n"
    call = ("synthesize", "instructionSets/1", "-m", "tiny", "-a", str(file))
    file.write_text(marks)
    nameless = cli(*call, columns=200)
    assert nameless.exit_code == 2
    assert "m.yaml names no policy" in nameless.stderr
    file.write_text(f"policy: tone-en\n{marks}")
    own = str(uuid.uuid4())
    for _ in range(2):
        assert cli(*call, "--request-id", own).exit_code == 0
    kept = served.service.called("CreateAnnotationSet")
    assert [(k.policy, k.annotator_minutes) for k in kept] == [("tone-en", 22)] * 2
    asked = served.service.called("SynthesizePairs")
    assert asked[0] == asked[1]
    assert asked[0].annotation_set in served.service.resources
    assert cli(*call, "--dry-run").exit_code == 0
    assert len(served.service.called("CreateAnnotationSet")) == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("align", "pairSets/1", "--steps", "0"), "--steps must be 1..10000, got 0"),
        (("align", "pairSets/1", "--rank", "0"), "--rank must be 1..256, got 0"),
        (("align", "pairSets/1", "--pairs-per-step", "0"), "--pairs-per-step must be 1..512"),
        (("evaluate", "adapters/1", "--samples", "0"), "--samples must be 1..100000, got 0"),
        (("chat", "--once", "Hi", "--max-tokens", "0"), "--max-tokens must be 1..2048, got 0"),
        (("synthesize", "instructionSets/1", "--rounds", "0"), "rounds: must be 1..8, got 0"),
    ],
)
def test_zero_is_not_the_default(cli: Any, served: Any, words: tuple[str, ...], says: str) -> None:
    """`--steps 0` trained as long as if it had been left out."""
    result = cli(*words, "-m", "tiny", columns=200)
    assert result.exit_code == 2
    assert says in result.stderr
    assert "Leave" in result.stderr
    assert not served.service.calls


def test_a_missing_seeds_file_is_told_with_its_flag(cli: Any) -> None:
    words = ("generate", "-m", "tiny", "-p", "tone-en", "-n", "3", "--seeds", "/nope.txt")
    result = cli(*words, columns=200)
    assert result.exit_code == 2
    assert "--seeds: /nope.txt: No such file or directory" in result.stderr
    assert "one a line" in result.stderr


def test_a_seed_ends_at_a_line_feed_alone(cli: Any, served: Any, tmp_path: Path) -> None:
    """One that was copied with a U+2028 in it was sent as two halves."""
    seeds = ["Mock my poem,\u2028my garden too.", "Mock my\x85singing."]
    (tmp_path / "seeds.txt").write_bytes("\r\n".join([*seeds, " ", ""]).encode())
    words = ("generate", "-m", "tiny", "-p", "tone-en", "-n", "3", "--seeds")
    assert cli(*words, str(tmp_path / "seeds.txt")).exit_code == 0
    (request,) = served.service.called("GenerateInstructions")
    assert list(request.seeds) == seeds


def test_detach_prints_the_name_alone(cli: Any) -> None:
    result = cli("align", "pairSets/1", "-m", "tiny", "--detach")
    assert result.stdout == "operations/1\n"
    assert "ptalign ops watch operations/1" in result.stderr


def test_dry_run_estimates(cli: Any, served: Any) -> None:
    result = cli("generate", "-m", "tiny", "-p", "tone-en", "-n", "3", "--dry-run")
    assert "about 42 s, 3.0 GiB of memory" in result.stdout
    assert not served.service.jobs


def test_options_stand_before_or_after_the_command(served: Any) -> None:
    for words in (
        ["--endpoint", served.endpoint, "catalogue", "--json"],
        ["--json", "catalogue", "--endpoint", served.endpoint],
    ):
        result = CliRunner().invoke(app, words)
        assert lines(result)[0]["models"][0]["name"] == "tiny", result.stderr


@pytest.mark.parametrize("place", ["before", "after"])
def test_what_is_typed_goes_before_the_environment(
    cli: Any, served: Any, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Before the command's name it lost: a purge went to the service that the variable names."""
    option = ["--endpoint", served.endpoint]
    words = ["purge", "pairSets/1", "--reason", "r", "--yes"]
    served.service.records["pairSets/1"] = []
    monkeypatch.setenv("PTALIGN_ENDPOINT", "127.0.0.1:1")
    result = CliRunner().invoke(app, option + words if place == "before" else words + option)
    assert result.exit_code == 0, result.stderr
    assert served.service.called("PurgeSet")


def test_after_the_command_a_default_that_is_typed_counts_too(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float | None] = []

    def keep(options: Any) -> Any:
        given.append(options.timeout)
        return pt.Client(options=options)

    monkeypatch.setattr("ptalign_client.cli.session.Client", keep)
    for words in (["--timeout", "9", "catalogue"], ["--timeout", "9", "catalogue", "--timeout=30"]):
        CliRunner().invoke(app, [*words, "--endpoint", served.endpoint])
    assert given == [9, 30]


# Operations and the library


def test_the_example_of_ops_list_finds_what_it_shows(cli: Any) -> None:
    """It printed null."""
    cli("align", "pairSets/1", "-m", "tiny", "--detach")
    path = cli("ops", "list", "--help", columns=200).output.partition("| jq .")[2].split()[0]
    (found,) = lines(cli("ops", "list", "--kind", "Align", "--json"))
    for key in path.split("."):
        found = found[key]
    assert "loss_mle" in found


def test_ops(cli: Any) -> None:
    cli("align", "pairSets/1", "-m", "tiny", "--detach")
    assert "operations/1" in cli("ops", "list").stdout
    assert "Align" in cli("ops", "get", "1").stdout
    events = lines(cli("ops", "watch", "1", "--json"))
    assert [event["sequence"] for event in events] == [1, 2, 3, 4]
    assert "adapters/1" in cli("ops", "wait", "1").stdout
    deleted = cli("ops", "delete", "1", "--json")
    assert "forgotten" in deleted.stderr
    assert lines(deleted) == [{"deleted": "operations/1"}]


@pytest.mark.parametrize("flag", ["--detach", "--dry-run"])
def test_a_verdict_is_not_demanded_where_none_is_waited_for(
    cli: Any, served: Any, flag: str
) -> None:
    """It ended with 0, which a script took for PASS."""
    refused = cli("evaluate", "adapters/1", "-m", "tiny", "--require-pass", flag, columns=200)
    assert refused.exit_code == 2
    assert f"needs a verdict, and {flag} waits for none" in refused.stderr
    assert not served.service.called("Evaluate")


def test_a_check_of_a_loop_file_demands_no_verdict(cli: Any, tmp_path: Path) -> None:
    refused = cli("run", str(tmp_path / "loop.yaml"), "--check", "--require-pass", columns=200)
    assert refused.exit_code == 2
    assert "needs a verdict, and --check stops before there is one" in refused.stderr


@pytest.mark.parametrize("words", [["wait", "1"], ["watch", "1"], ["watch", "1", "--json"]])
def test_a_verdict_is_demanded_of_a_detached_evaluation(
    cli: Any, served: Any, words: list[str]
) -> None:
    cli("evaluate", "adapters/1", "-m", "tiny", "--detach")
    assert cli("ops", *words, "--require-pass").exit_code == 0
    made = served.service.jobs["operations/1"].result
    made.verdict = resources_pb2.VERDICT_INCONCLUSIVE
    assert cli("ops", *words).exit_code == 0
    assert cli("ops", *words, "--require-pass").exit_code == 5


def test_operations_and_resources_name_who_asked(cli: Any, served: Any) -> None:
    cli("align", "pairSets/1", "-m", "tiny", "--detach")
    served.service.jobs["operations/1"].people = {"submitted_by": "alice", "cancelled_by": "bob"}
    served.service.resources["adapters/1"].meta.made_by = "alice"
    assert "Align, by alice" in cli("ops", "list").stdout
    said = cli("ops", "get", "1").stdout
    assert said.split("submitted")[1].splitlines()[0].rstrip().endswith(" by alice")
    assert said.split("cancelled")[1].splitlines()[0].rstrip().endswith("by bob")
    assert "tiny, by alice" in cli("list", "adapters").stdout
    assert cli("get", "adapters/1").stdout.split("made_by")[1].split()[0] == "alice"


def test_who_asked_an_earlier_server_is_unknown(cli: Any) -> None:
    cli("align", "pairSets/1", "-m", "tiny", "--detach")
    cli("ops", "cancel", "1")
    assert "Align, by unknown" in cli("ops", "list").stdout
    said = cli("ops", "get", "1").stdout
    assert said.count("by unknown") == 2
    assert cli("get", "adapters/1").stdout.split("made_by")[1].split()[0] == "unknown"


def test_ops_cancel(cli: Any) -> None:
    cli("align", "pairSets/1", "-m", "tiny", "--detach")
    assert cli("ops", "cancel", "1").exit_code == 0
    ended = cli("ops", "wait", "1")
    assert ended.exit_code == 1
    assert "cancelled by the caller" in cli("ops", "get", "1").stdout
    assert "cancelled by the caller" in ended.stderr


def test_ops_cancel_of_an_ended_operation_says_so(cli: Any, served: Any) -> None:
    cli("align", "pairSets/1", "-m", "tiny")
    done = cli("ops", "cancel", "1", columns=200)
    assert done.exit_code == 0
    assert "operations/1 had already ended: it succeeded." in done.stderr
    assert not served.service.called("CancelOperation")


def test_resolve_says_once_that_nothing_passed(cli: Any) -> None:
    result = cli("resolve", "-m", "tiny", "-p", "tone-en", "--json", columns=200)
    assert result.exit_code == 2
    assert "no adapter for tiny and tone-en is released: none passed" in result.stderr
    assert "No such resource" not in result.stderr
    (said,) = lines(result)
    assert said["error"]["reason"] == "RESOURCE_NOT_FOUND"


def test_a_missing_name_is_repeated(cli: Any) -> None:
    result = cli("get", "pairSets/foo", columns=200)
    assert result.exit_code == 2
    assert "not yours to see (asked for pairSets/foo)." in result.stderr
    assert "`ptalign list pairs` shows yours." in result.stderr
    assert {words.removeprefix("list ") for words in LISTED.values()} == {*LISTS, "ops list"}
    assert "`ptalign ops list` shows yours." in cli("ops", "get", "foo", columns=200).stderr


def test_a_zero_that_was_counted_is_shown() -> None:
    """`0 == False`: an MLE adapter's toxic tokens, a set's pairs and its shortfall went."""
    console = Console(width=80, file=io.StringIO())
    console.print(show.details(pt.Adapter(name="adapters/1", method="mle", tokens_ut=0)))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert re.search(r"tokens_ut +0 *\n", shown)
    assert "partial" not in shown
    assert "guards" not in shown


def test_an_estimate_names_its_unit(cli: Any) -> None:
    """`about 1:12` is minutes to one reader and hours to another."""
    told = [show.duration(s) for s in (72, 179, 3601, 10_799)]
    assert told == ["72 s", "3 min", "1 h 0 min", "3 h 0 min"]
    told = cli("generate", "-m", "tiny", "-p", "tone-en", "-n", "4", "--dry-run", columns=200)
    assert re.search(r"about \d+ (s|min|h), ", told.stdout)


def test_one_mark_is_not_marks(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("items: [{instruction: i, good: g}]")
    made = cli("annotate", str(tmp_path / "m.yaml"), "-m", "tiny", "-p", "tone-en")
    assert "  1 mark, 0 min" in made.stdout


def test_library_commands(cli: Any, tmp_path: Path) -> None:
    cli("align", "pairSets/1", "-m", "tiny")
    assert "adapters/1" in cli("list", "adapters").stdout
    assert "adapter_model.safetensors  10.0 KiB" in cli("get", "adapters/1").stdout
    result = cli("download", "adapters/1", "-o", str(tmp_path / "a"), "--json")
    assert [Path(line["file"]).name for line in lines(result)] == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert "tiny" in cli("catalogue").stdout
    assert cli("resolve", "-m", "tiny", "-p", "tone-en").stdout == "adapters/1\n"
    assert cli("export", "pairSets/1", "-o", "pairs.csv").exit_code == 2


def test_purge_asks(cli: Any, served: Any) -> None:
    refused = cli("purge", "pairSets/1", "--reason", "r", "--json", text="n\n")
    assert "[y/N]" not in refused.stdout
    assert refused.exit_code == 1
    assert not served.service.called("PurgeSet")
    done = cli("purge", "pairSets/1", "--reason", "r", "--yes", "--json")
    assert done.exit_code == 0
    assert lines(done) == [{"purged": "pairSets/1"}]
    assert served.service.called("PurgeSet")[0].reason == "r"


def test_a_list_that_a_filter_empties_is_not_called_empty(cli: Any) -> None:
    assert "No adapters like that." in cli("list", "adapters", "-m", "typo").stderr


def test_import_names_the_line(cli: Any, tmp_path: Path, served: Any) -> None:
    file = tmp_path / "r.jsonl"
    head = ("import", str(file), "--kind", "pairs", "-m", "tiny", "-p", "tone-en")
    file.write_text('{"kind": "pair", "instruction": "i"}\n{"nope": 1}\n')
    bad = cli(*head, columns=200)
    assert bad.exit_code == 2
    assert "r.jsonl:2: no such field: nope" in bad.stderr
    file.write_text('{"kind": "pair", "instruction": "i"}\n')
    assert "1 accepted" in cli(*head).stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ("import", "r.jsonl", "--kind", "pairs", "-m", "tiny", "-p", "x"),
            "r.jsonl:1: is not UTF",
        ),
        (("run", "loop.yaml", "--out", "r.jsonl/x"), "r.jsonl/x: Not a directory"),
        (("download", "adapters/1", "--out", "r.jsonl/x"), "r.jsonl/x: Not a directory"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    cli: Any, loop: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], says: str
) -> None:
    """Each was "a fault of ptalign itself", to be reported, with an exit code of its own."""
    monkeypatch.chdir(loop.parent)
    Path("r.jsonl").write_bytes(b'{"instruction": "caf\xe9"}\n')
    cli("align", "pairSets/1", "-m", "tiny")
    result = cli(*words, columns=200)
    assert result.exit_code == 2, result.exception
    assert says in result.stderr


def test_what_is_held_out_travels_from_records_to_import(
    cli: Any, tmp_path: Path, served: Any
) -> None:
    """Neither was told, so that an imported set trained on what it is measured on."""
    stored = [
        lib.Record(id="1", kind="pair", instruction="i", positive="p", held_out=True),
        lib.Record(id="2", kind="twin", instruction="j", positive="p"),
        lib.Record(id="3", kind="anchor", instruction="k", positive="p", truncated=True),
    ]
    served.service.records["pairSets/1"] = stored
    file = tmp_path / "r.jsonl"
    file.write_text(cli("records", "pairSets/1").stdout)
    head = ("import", str(file), "--kind", "pairs", "-m", "tiny", "-p", "tone-en")
    assert "3 accepted" in cli(*head).stdout
    (_, message) = served.service.called("ImportSet")[0]
    assert list(message.records) == stored
    file.write_text('{"kind": "pair", "instruction": "i", "held_out": "no"}\n')
    bad = cli(*head, columns=200)
    assert bad.exit_code == 2
    assert "records[0].held_out: must be True or False, not a text" in bad.stderr


def test_chat_once_and_beside(cli: Any) -> None:
    words = ("chat", "-m", "tiny", "-a", "adapters/1", "--compare", "--once", "Hi")
    assert cli(*words).stdout.splitlines() == [
        "base: I would rather not.",
        "adapters/1: I would rather not.",
    ]
    (said,) = lines(cli(*words, "--json"))
    assert said["replies"]["base"] == "I would rather not."


def test_chat_talks_until_an_empty_line(cli: Any, served: Any) -> None:
    result = cli("chat", "-m", "tiny", text="Hi\nAnd now?\n\n")
    assert result.exit_code == 0
    second = served.service.called("Chat")[1]
    assert [m.role for m in second.messages] == ["user", "assistant", "user"]


def test_chat_with_an_unknown_name_does_not_ask_first(cli: Any, served: Any) -> None:
    """It prompted, and learnt only from the first reply that there is no such model."""
    result = cli("chat", "-m", "big", text="Hi\n\n", columns=200)
    assert result.exit_code == 2
    assert "--model: no model is named 'big'" in result.stderr
    assert "Known: tiny." in result.stderr
    assert "you>" not in result.stdout + result.stderr
    assert cli("chat", "-m", "tiny", "-a", "adapters/x", text="Hi\n\n").exit_code == 2
    assert not served.service.called("Chat")


# Errors that teach


def test_nobody_there_is_told_in_three_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    words = ["catalogue", "--endpoint", "127.0.0.1:1", "--timeout", "5"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 3
    assert "nobody answers at 127.0.0.1:1" in result.stderr
    assert result.stderr.count("ptalign-server serve") == 1
    assert "Traceback" not in result.stderr


def test_a_wrong_option_is_told_with_one_mend() -> None:
    result = CliRunner().invoke(app, ["catalogue", "--endpoint", "http://x:1", "--json"])
    assert result.exit_code == 2
    assert result.stderr.count("without a scheme") == 1
    (said,) = lines(result)
    assert "scheme" not in said["error"]["message"]
    assert "without a scheme" in said["error"]["hint"]


def test_fields_at_fault_stand_one_a_line(cli: Any, served: Any) -> None:
    served.service.faults["SynthesizePairs"] = [
        Fault(
            Code.INVALID_ARGUMENT,
            details=(info("INVALID_INPUT"), violation("rounds", "must be 1..8, got 9. Send 2.")),
        )
    ]
    result = cli("synthesize", "instructionSets/1", "-m", "tiny", "--rounds", "9")
    assert result.exit_code == 2
    assert "• rounds: must be 1..8, got 9. Send 2." in result.stderr


def test_unknown_name_shows_the_known(cli: Any, served: Any) -> None:
    served.service.faults["GenerateInstructions"] = [
        Fault(
            Code.NOT_FOUND,
            message="model: no model is named 'x'.",
            details=(info("UNKNOWN_NAME", known="tiny,small"),),
        )
    ]
    result = cli("generate", "-m", "x", "-p", "tone-en", "-n", "3", "--json")
    assert result.exit_code == 2
    assert "Fix:   Known: tiny, small." in result.stderr
    (said,) = lines(result)
    assert said["error"]["reason"] == "UNKNOWN_NAME"


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        (Code.INVALID_ARGUMENT, 2),
        (Code.NOT_FOUND, 2),
        (Code.UNAUTHENTICATED, 4),
        (Code.PERMISSION_DENIED, 4),
        (Code.DATA_LOSS, 6),
        (Code.INTERNAL, 1),
        (Code.FAILED_PRECONDITION, 1),
    ],
)
def test_exit_codes(cli: Any, served: Any, code: Code, exit_code: int) -> None:
    served.service.faults["GetCatalogue"] = [Fault(code)]
    assert cli("catalogue").exit_code == exit_code


def test_terminal_does_not_obey_what_the_server_says(cli: Any, served: Any) -> None:
    served.service.faults["GetCatalogue"] = [Fault(Code.NOT_FOUND, message="\x1b[2Jgone [bold]x")]
    result = cli("catalogue")
    assert "\x1b[2J" not in result.stderr
    assert "gone [bold]x" in result.stderr


def test_without_a_command_the_help_is_shown(cli: Any) -> None:
    """With an option it printed nothing, and that was a success."""
    result = cli("--json")
    assert result.exit_code == 2
    assert "Exit codes: " in result.output


def test_exit_codes_stand_in_the_help(cli: Any) -> None:
    text = " ".join(cli("--help").stdout.split())
    assert "Exit codes: 0 done; 1 the service refused" in text
    assert "70 a fault of ptalign itself" in text


@pytest.mark.parametrize("name", sorted(group.commands))
def test_every_command_has_help_with_words(cli: Any, name: str) -> None:
    result = cli(name, "--help")
    assert result.exit_code == 0
    assert group.commands[name].help


def test_help_says_where_names_come_from_and_what_a_count_means(cli: Any) -> None:
    for name in ("generate", "align", "evaluate", "annotate", "import", "chat", "resolve"):
        assert "`ptalign catalogue`" in cli(name, "--help", columns=200).output
    assert "beside its own" in cli("generate", "--help", columns=200).output
    assert "pairSets/OTHER" in cli("merge", "--help").output
    for name in ("generate", "synthesize"):  # the engine samples without one
        assert "what the model writes has none" in cli(name, "--help", columns=200).output
    assert "adapters/ID" not in cli("purge", "--help").output  # only sets are purged


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("download", "adapters/ID or evaluations/ID", "pairSets/ID"),
        ("export", "instructionSets/ID or pairSets/ID", "adapters/ID"),
        ("records", "annotationSets/ID or adapters/ID", "evaluations/ID"),
    ],
)
def test_help_names_only_what_a_command_takes(cli: Any, name: str, right: str, wrong: str) -> None:
    text = " ".join(cli(name, "--help", columns=200).output.split())
    assert right in text
    assert wrong not in text


# A log, a terminal and a signal


def test_phases_that_take_turns_fill_no_log(cli: Any, served: Any) -> None:
    """Each change of suite was a line: 114 of 207 in one log."""
    original = served.service._fill

    def interleaving(job: Any) -> None:
        original(job)
        job.phases = ("asking base: plain", "asking base: attack")

    served.service._fill, served.service.steps = interleaving, 200
    said = cli("evaluate", "adapters/1", "-m", "tiny", columns=200).stderr.splitlines()
    asked = [line for line in said if line.startswith("evaluate: asking")]
    assert len(asked) == 20  # two phases, ten tenths
    assert len({line.split()[3] for line in asked}) == 2


@pytest.fixture
def slow(served: Any) -> Iterator[Any]:
    served.service.pace, served.service.steps = 0.2, 100
    yield served
    served.service.pace = 0


ALIGN = ("align", "pairSets/1", "-m", "tiny")


def interrupted(
    served: Any, *words: str, times: int, verb: tuple[str, ...] = ALIGN
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ptalign_client", *verb, *words]
    child = subprocess.Popen(
        command,
        env={**os.environ, "PTALIGN_ENDPOINT": served.endpoint},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 90
    while not served.service.called("WatchOperation") and time.monotonic() < until:
        time.sleep(0.05)
    assert served.service.called("WatchOperation"), "it never started to watch"
    for _ in range(times):
        time.sleep(0.7)
        child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=30)
    return subprocess.CompletedProcess(command, child.returncode, out, err)


def test_first_interrupt_leaves_the_operation_running(slow: Any) -> None:
    done = interrupted(slow, times=1)
    assert done.returncode == 130
    assert "ptalign ops watch operations/1" in done.stderr
    assert not slow.service.called("CancelOperation")
    assert "Traceback" not in done.stderr


def test_second_interrupt_cancels(slow: Any) -> None:
    done = interrupted(slow, times=2)
    assert done.returncode == 130
    assert slow.service.called("CancelOperation")
    assert "It kept adapters/1." in done.stderr


def test_cancel_on_interrupt(slow: Any) -> None:
    done = interrupted(slow, "--cancel-on-interrupt", times=1)
    assert done.returncode == 130
    assert slow.service.called("CancelOperation")


def test_cancel_on_interrupt_of_events_as_json(slow: Any, cli: Any) -> None:
    """The flag was not read: the operation went on."""
    assert cli(*ALIGN, "--detach").exit_code == 0
    watch = ("ops", "watch", "operations/1", "--json")
    done = interrupted(slow, "--cancel-on-interrupt", times=1, verb=watch)
    assert done.returncode == 130
    assert slow.service.called("CancelOperation")
    assert all(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    ("value", "printed"),
    [(6 / 80, ".08"), (10 / 80, ".13"), (0.004, ".00"), (0.995, "1.0"), (1.0, "1.0"), (0.5, ".50")],
)
def test_shares_round_as_in_the_report(value: float, printed: str) -> None:
    """The terminal printed .07 of the 6 in 80 that the page gives as 8 %."""
    assert show.interval(pt.Rate(value=value, low=0.0, high=1.0, n=80)).startswith(f"{printed} (")
