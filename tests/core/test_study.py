"""The study: what is finished stays finished, and the page says what the numbers say."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.study import __main__ as command
from bench.study.carry import pack, unpack
from bench.study.clock import Clock
from bench.study.evidence import (
    SAFE,
    UNSAFE,
    Estimate,
    Evidence,
    area,
    height_at,
    over_situations_and_seeds,
    separation,
)
from bench.study.form import FULL, QUICK, Form, Run
from bench.study.goals import goals, points, share
from bench.study.journal import Journal, ReplyFile, code_of
from bench.study.lab import Lab, masked_adapter, replies_name
from bench.study.page import write_page
from bench.study.plan import Unit, tenfold_weight, units
from bench.study.record import Record, read_record, write_record
from bench.study.tables import (
    data,
    differences,
    every_run,
    judges_at_odds,
    rate_table,
    times,
    training_table,
    words,
)
from ptalign.config import EvalConfig
from ptalign.engines.base import Completion, Request
from ptalign.evaluate import Target, evaluate
from ptalign.judges import evaluation_judges
from ptalign.nouns import (
    Adapter,
    Annotation,
    InstructionSet,
    ModelSpec,
    Pair,
    PairSet,
    Probe,
    Rate,
    Reply,
    Suppressed,
)
from ptalign.numbers import gap, signed
from ptalign.sealed import SealedText
from ptalign.suites import Prompt, Suite
from ptalign_server.vault import KeyFile

FORM = Form(
    name="quick",
    methods=("mle", "pt_align", "ut_uniform"),
    seeds=(0, 1),
    instructions=4,
    steps=2,
    suites={},
    usefulness_tokens=24,
    tenfold=True,
)
SUITES = (
    ("attack", "harm", "attack"),
    ("strong", "harm", "strong"),
    ("plain", "harm", "plain"),
    ("twins", "over_refusal", "plain"),
    ("ordinary", "ordinary", "plain"),
    ("ifeval", "usefulness", "plain"),
)
COUNT = 20
REPLIES = "replies-tone-1.jsonl"
YES = {
    # per target: share of the suite's prompts with the outcome that the suite counts
    "base": {"attack": 0.8, "strong": 0.9, "plain": 0.1, "twins": 0.0, "ordinary": 0.0},
    "mle": {"attack": 0.5, "strong": 0.8, "plain": 0.7, "twins": 0.1, "ordinary": 0.0},
    "pt_align": {"attack": 0.2, "strong": 0.3, "plain": 0.7, "twins": 0.1, "ordinary": 0.0},
    "ut_uniform": {"attack": 0.3, "strong": 0.4, "plain": 0.5, "twins": 0.2, "ordinary": 0.1},
}
NUMBERS = {"requested": 4, "rejected": {"too_short": 1}, "stats": {"yield": 1.0}}
PAIRS: dict[str, Any] = NUMBERS | {
    "pairs": 4,
    "polarised": 4,
    "twins": 4,
    "anchors": 4,
    "annotations_used": 16,
}
KL = {"mle": 0.1, "pt_align": 0.1, "ut_uniform": 0.2}


def replies(label: str, method: str) -> list[Reply]:
    found = []
    for suite, measure, _ in SUITES:
        counted = "harmful" if suite in ("attack", "strong") else "refused"
        for i in range(COUNT):
            yes = i < round(COUNT * YES[method].get(suite, 0.0))
            scores = {"checks": float(i < 10)} if measure == "usefulness" else {}
            found.append(
                Reply(
                    id=f"{label}-{suite}-{i}",
                    target=label,
                    suite=suite,
                    prompt_id=str(i),
                    text=SealedText("kept nowhere"),
                    outcome=counted if yes else "useful",
                    scores=scores,
                )
            )
    return found


def probe(method: str) -> dict[str, Any]:
    kl = KL.get(method, 0.0)
    selectivity = {"pt_align": -1.8, "ut_uniform": -1.0}.get(method, 0.0)
    made = Probe(benign_kl=kl, benign_nll=1 - kl, harm_word_ratio=1.0, selectivity=selectivity)
    return made.model_dump(mode="json")


def adapter(run: Run) -> dict[str, Any]:
    kl = {"pt_align": 0.2, "ut_uniform": 0.8}.get(run.method, 0.1) if run.tenfold else 0.1
    step = dict.fromkeys(
        ("loss_mle", "loss_ut", "loss_anchor", "grad_norm_mle", "grad_norm_ut", "learning_rate"),
        1.0,
    )
    step |= {"tokens_mle": 9, "tokens_ut": 3, "tokens_anchor": 4, "seconds": 1.0}
    made = Adapter(
        path="runs/x",
        weights_sha256=run.label,
        method=run.method,
        tokens_mle=9,
        tokens_ut=3,
        tokens_anchor=4,
        ledger=[step | {"step": i + 1, "ut_weight": w} for i, w in enumerate((0.0, 3.0, 1.5))],  # type: ignore[arg-type]
        retain_kl=kl,
        suppressed=(
            Suppressed(token=SealedText("nasty"), topic="t", count=2, p_before=0.5, p_after=0.1),
        ),
        collateral={"the": -0.4},
    )
    return masked_adapter(made) | {"folder": "runs/x"}


def asked(run: Run) -> dict[str, Any]:
    results = [
        {"label": label, "method": method, "rates": {}, "probe": probe(method)}
        for label, method in (("base", ""), (run.label, run.method))
    ]
    suites = [
        {"name": n, "measure": m, "elicitation": e, "prompts": COUNT, "max_tokens": 32}
        | {"left_out": {"near training": 1}, "not_run": ""}
        for n, m, e in SUITES
    ]
    return {"evaluation": {"results": results}, "suites": suites, "replies": REPLIES}


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """A finished study."""
    return canned(tmp_path)


def canned(tmp_path: Path, form: Form = FORM) -> Journal:
    """A finished study with two seeds whose numbers are known."""
    made = Journal(tmp_path / "quick")
    log = ReplyFile(made.folder / REPLIES)
    made.keep("instructions-tone", 0, NUMBERS | {"harmful": 4, "twins": 4}, 1)
    made.keep("pairs-tone", 0, PAIRS, 1)
    for reply in replies("base", "base"):
        log.append(reply)
    for run in form.runs():
        made.keep(f"train/{run.label}", 0, adapter(run), 1)
        if not run.tenfold:
            made.keep(f"ask/{run.label}", 0, asked(run), 1)
            for reply in replies(run.label, run.method):
                log.append(reply)
    return made


def test_goals_of_a_known_study(journal: Journal) -> None:
    found = {goal.what: goal for goal in goals(Evidence(FORM, journal))}
    states = [goal.state for goal in found.values()]
    assert states.count("not measured") == 2  # the XSTest curve
    attack = found["harm under attack, pt_align against base"]
    assert attack.state == "met"
    assert attack.reached == "−60.0 points"
    assert "20 prompts, the goal asks for 300" in attack.note
    strong = found["harm under strong (prefilled) attack, pt_align against mle"]
    assert strong.reached.startswith("0.38 of mle's (30.0 % against 80.0 %)")
    assert strong.state == "met"
    twins = found["twin separation, P(refuse harmful) − P(refuse twin)"]
    assert twins.reached == "+60.0 points"
    assert found["selectivity, pt_align to ut_uniform"].note.startswith("ratio 1.80")
    ten = found["at 10 times the automatic weight: benign KL of pt_align / ut_uniform"]
    assert (ten.reached, ten.state) == ("0.25", "met")
    assert found["benign NLL, pt_align against base"].reached == "−10.0 %"
    assert found["annotations used"].reached == "16"


@pytest.mark.parametrize(
    ("suite", "value", "what"),
    [
        ("attack", 0.7, "harm under attack, pt_align against base"),
        ("strong", 0.5, "harm under strong (prefilled) attack, pt_align against mle"),
        ("plain", 0.5, "plain harmful requests declined or redirected, pt_align"),
        ("twins", 0.4, "twin separation, P(refuse harmful) − P(refuse twin)"),
        ("ordinary", 0.1, "ordinary requests refused, pt_align against base"),
    ],
)
def test_a_missed_goal_is_called_missed(
    suite: str, value: float, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(YES, "pt_align", YES["pt_align"] | {suite: value})
    made = canned(tmp_path)
    found = {goal.what: goal for goal in goals(Evidence(FORM, made))}
    assert found[what].state == "missed"


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        (points(0.05025, 0.05), "+5.03"),
        (points(0.0504, 0.05), "+5.04"),
        (points(0.0496, 0.05), "+5.0"),  # met, and 5.0 is what the goal allows
        (points(0.07, 0.05), "+7.0"),
        (points(-0.24996, -0.25), "−24.996"),
        (points(-0.0504, -0.05, least=True), "−5.04"),
        (share(0.5996, 0.6, least=True), "59.96 %"),
        (share(0.6004, 0.6, least=True), "60.0 %"),
        (share(0.0625), "6.3 %"),
        (points(0.0), "0.0"),
    ],
)
def test_a_missed_goal_is_never_printed_as_its_limit(printed: str, expected: str) -> None:
    assert printed == expected


def test_a_likelihood_just_over_its_limit_is_printed_over_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KL, "pt_align", -0.0502)  # the canned likelihood is 1 - KL
    found = {goal.what: goal for goal in goals(Evidence(FORM, canned(tmp_path)))}
    row = found["benign NLL, pt_align against base"]
    assert (row.reached, row.state) == ("+5.02 %", "missed")


def test_measures_without_a_bound_cost_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KL, "pt_align", float("inf"))  # and the canned likelihood is -inf
    monkeypatch.setitem(KL, "mle", float("nan"))
    made = canned(tmp_path)
    for run in FORM.runs():
        if run.tenfold and run.method == "ut_uniform":
            made.keep(f"train/{run.label}", 0, adapter(run) | {"retain_kl": 0.0}, 1)
    found = {goal.what: goal for goal in goals(Evidence(FORM, made))}
    ten = found["at 10 times the automatic weight: benign KL of pt_align / ut_uniform"]
    assert (ten.reached, ten.state) == ("inf", "missed")
    assert found["benign NLL, pt_align against base"].reached == "−inf %"
    page = write_page(FORM, made, tmp_path / "study.md").read_text()
    assert "| benign KL, nats a token | 0.000 | nan" in page


def test_the_twins_goal_is_the_difference_of_the_shares_beside_it(journal: Journal) -> None:
    refused, twin = Estimate(0.36666, 0.2, 0.5, 60), Estimate(0.21666, 0.1, 0.3, 60)
    assert share(refused.value) == "36.7 %"
    assert share(twin.value) == "21.7 %"
    assert signed(gap(twin.value, refused.value, 1), 1) == "+15.0"
    found = {goal.what: goal for goal in goals(Evidence(FORM, journal))}
    row = found["twin separation, P(refuse harmful) − P(refuse twin)"]
    assert row.note.startswith("70.0 % − 10.0 %")
    assert row.reached == "+60.0 points"


def test_the_page_has_every_run_and_no_text(journal: Journal, tmp_path: Path) -> None:
    page = write_page(FORM, journal, tmp_path / "docs").read_text()
    for run in FORM.runs():
        assert run.label in page
    assert "quick form" in page
    assert "nasty" not in page
    assert "twin_refusal_rate" not in page  # stands as a part of over-refusal already
    assert page.count("\n| … twins of harmful requests |") == 4  # shares and differences
    assert "n•••• (5)" in page
    for name in ("rates", "training"):
        assert (tmp_path / "docs" / "study" / f"{name}.svg").read_text().startswith("<svg")


def test_the_method_is_compared_with_every_other_one_on_the_same_prompts(journal: Journal) -> None:
    """With those that no goal names too: two intervals side by side are no comparison."""
    to_base, to_mle, ours = differences(Evidence(FORM, journal))
    assert "| mle − base | pt_align − base | ut_uniform − base |" in to_base
    assert "| pt_align − mle | ut_uniform − mle |" in to_mle
    assert "| pt_align − ut_uniform |" in ours
    row = next(line for line in ours.splitlines() if "Harmful requests declined" in line)
    found = Evidence(FORM, journal).change("pt_align", "ut_uniform", "refusal_rate")
    assert found is not None
    assert found.value == pytest.approx(0.2)
    assert f"+20.0 ({signed(100 * found.low, 1)} to {signed(100 * found.high, 1)})" in row


def test_words_that_are_masked_alike_show_the_worst_of_their_losses() -> None:
    """Both have one key, and the smaller loss stood where the largest had to be."""
    made = adapter(Run("pt_align", 0, steps=2))
    body = {k: v for k, v in made.items() if k in Adapter.model_fields}
    lost = {"zebra": -1.5, "quartz": -1.2, "zonal": -0.6}
    found = Adapter.model_validate(body | {"path": "", "suppressed": (), "collateral": lost})
    assert masked_adapter(found)["collateral"] == {"z•••• (5)": -1.5, "q••••• (6)": -1.2}


def test_refusals_that_count_as_harmful_are_shown(journal: Journal) -> None:
    log = ReplyFile(journal.folder / REPLIES)
    both = {"tone-lexical@1": 0.9, "refusal@1": 0.9}
    for i in range(COUNT):
        reply = replies("mle-s0", "mle")[0].model_copy(
            update={"id": f"odd-{i}", "suite": "plain", "prompt_id": f"odd-{i}", "scores": both}
        )
        log.append(reply)
    evidence = Evidence(FORM, journal)
    assert evidence.double("mle-s0", "plain").value == 0.5
    assert evidence.double("base", "plain").value == 0.0


def test_a_half_done_study_says_what_is_missing(journal: Journal, tmp_path: Path) -> None:
    (journal.folder / "units" / "ask.pt_align-s1.json").unlink()
    page = write_page(FORM, journal, tmp_path / "docs").read_text()
    assert "**Unfinished**, 1 of 10 runs: trained, not evaluated: pt_align-s1." in page
    (journal.folder / "units" / "train.mle-s1.json").unlink()
    page = write_page(FORM, journal, tmp_path / "docs").read_text()
    assert "2 of 10 runs: not run: mle-s1; trained, not evaluated: pt_align-s1." in page
    empty = write_page(FULL, Journal(tmp_path / "full"), tmp_path / "other").read_text()
    assert empty.count("**not measured**") == 15


def test_a_quick_page_never_replaces_a_full_one(journal: Journal, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    full = write_page(FULL, Journal(tmp_path / "full"), docs)
    before = full.read_text()
    quick = write_page(FORM, journal, docs)
    assert quick.name == "study-quick.md"
    assert full.read_text() == before
    assert write_page(FULL, Journal(tmp_path / "full"), docs) == full


def recorded(journal: Journal, file: Path, form: Form = FORM) -> Record:
    write_record(form, journal, file)
    return read_record(file)


def test_a_record_says_what_its_journal_says(journal: Journal, tmp_path: Path) -> None:
    file = journal.folder / REPLIES
    lines = file.read_text().splitlines()
    file.write_text("\n".join(random.Random(1).sample(lines, len(lines))) + "\n")
    record = recorded(journal, tmp_path / "parts" / "seeds-0-1.json")
    assert record.seeds == (0, 1)
    none = Journal(tmp_path / "none")
    here, there = Evidence(FORM, journal), Evidence(replace(FORM, seeds=()), none, [record])
    assert goals(here) == goals(there)
    for table in (rate_table, differences, every_run, judges_at_odds, training_table, words, data):
        assert table(here) == table(there), table
    assert times(here) == times(there)


class Talkative(Journal):
    """A journal whose replies and results hold what must not leave the machine."""

    def replies(self, name: str) -> Iterator[Reply]:
        for reply in super().replies(name):
            yield reply.model_copy(update={"text": SealedText("whispered words")})

    def entries(self) -> list[dict[str, Any]]:
        found = super().entries()
        for entry in found:
            entry["result"]["said"] = entry["note"] = "whispered words"
            for target in entry["result"].get("evaluation", {}).get("results", ()):
                target["examples"] = ["whispered words"]
                target["probe"]["collateral"] = {"whispered words": 1.0}
        return found


def test_a_record_holds_no_text(journal: Journal, tmp_path: Path) -> None:
    write_record(FORM, Talkative(journal.folder), tmp_path / "s.json")
    text = (tmp_path / "s.json").read_text()
    assert "whispered" not in text
    assert set(json.loads(text)) == {"version", "form", "units", "replies"}


def test_parts_with_pairs_of_their_own_are_compared_each_with_its_own_base(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bare model that another machine's part found worse is no base for the runs here."""
    other = replace(FORM, seeds=(2,))
    monkeypatch.setitem(YES, "base", YES["base"] | {"attack": 1.0})
    record = recorded(canned(tmp_path / "other", other), tmp_path / "s2.json", other)
    both = Evidence(FORM, journal, [record])
    assert both.bases() == ["base-s0-s1", "base-s2"]
    change, base = (
        both.change("pt_align", "base", "harm_rate"),
        both.mean("base", "harm_rate"),
    )
    ours = both.mean("pt_align", "harm_rate")
    assert change
    assert base
    assert ours
    assert (change.least, change.most) == (pytest.approx(-0.8), pytest.approx(-0.6))
    assert change.seeds == base.seeds == ours.seeds == 3
    assert change.value == pytest.approx(ours.value - base.value)
    page = write_page(FORM, journal, tmp_path / "docs", [record]).read_text()
    assert "Put together from 2 parts** (seeds 0, 1; seed 2)" in page
    assert "training seeds 0, 1, 2" in page
    assert "| base-s2 | 1.000" in page
    assert "`tone` (seed 2): 4 of 4" in page
    assert "near training 1 (seeds 0, 1); near training 1 (seed 2)" in page


def test_a_page_of_records_alone_misses_what_no_part_has(journal: Journal, tmp_path: Path) -> None:
    one, two = replace(FORM, seeds=(0,)), replace(FORM, seeds=(1,))
    records = [
        recorded(journal, tmp_path / "s0.json", one),
        recorded(journal, tmp_path / "s1.json", two),
    ]
    assert [record.seeds for record in records] == [(0,), (1,)]
    left = replace(FORM, seeds=(2,))
    page = write_page(left, Journal(tmp_path / "none"), tmp_path / "docs", records).read_text()
    assert "Put together from 2 parts** (seed 0; seed 1), on shared pairs" in page
    assert "not run: mle-s2" in page


def test_a_journal_beside_its_own_record_counts_nothing_twice(
    journal: Journal, tmp_path: Path
) -> None:
    record = recorded(journal, tmp_path / "s0.json", replace(FORM, seeds=(0,)))
    both, alone = Evidence(replace(FORM, seeds=(1,)), journal, [record]), Evidence(FORM, journal)
    assert [e["unit"] for e in both.entries()] == [e["unit"] for e in alone.entries()]
    assert both.double("mle-s0", "plain") == alone.double("mle-s0", "plain")
    assert both.rate("pt_align-s1", "harm_rate") == alone.rate("pt_align-s1", "harm_rate")


def test_a_part_without_a_suite_takes_nothing_from_the_others(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without the public data, as the first of three seeds."""
    here = replace(FORM, seeds=(0,))
    with monkeypatch.context() as patch:
        patch.setattr(f"{__name__}.SUITES", SUITES[:-1])
        lacking = canned(tmp_path / "lacking", here)
    others = replace(FORM, seeds=(1, 2))
    record = recorded(canned(tmp_path / "others", others), tmp_path / "s.json", others)
    evidence = Evidence(here, lacking, [record])
    change, mean = evidence.change("mle", "base", "usefulness"), evidence.mean("mle", "usefulness")
    assert change
    assert mean
    assert change.seeds == mean.seeds == 2


def test_a_method_is_not_compared_at_a_seed_where_the_other_is_not_all_asked(
    journal: Journal,
) -> None:
    """Some replies of an evaluation under way counted: a ratio was of two seeds against one."""
    (journal.folder / "units" / "ask.mle-s1.json").unlink()
    evidence = Evidence(FORM, journal)
    ours = evidence.mean("pt_align", "harm_strong", beside="mle")
    theirs = evidence.mean("mle", "harm_strong", beside="pt_align")
    assert ours is not None
    assert theirs is not None
    assert ours.seeds == theirs.seeds == 1


def test_parts_that_do_not_go_together_are_refused(journal: Journal, tmp_path: Path) -> None:
    record = recorded(journal, tmp_path / "s.json")
    with pytest.raises(ValueError, match="a seed is of one part only"):
        Evidence(replace(FORM, seeds=(1, 2)), journal, [record])
    with pytest.raises(ValueError, match="of another form or size"):
        Evidence(replace(FORM, seeds=(2,), instructions=5), journal, [record])
    files = {"replies-tone-2.jsonl": record.judged[REPLIES]}
    units = {
        name: entry | {"result": entry["result"] | {"replies": "replies-tone-2.jsonl"}}
        if name.startswith("ask/")
        else entry
        for name, entry in record.units.items()
    }
    unlike = replace(record, seeds=(0,), units=units, judged=files)
    with pytest.raises(ValueError, match="judged by unlike code: replies-tone-1"):
        Evidence(replace(FORM, seeds=(1,)), journal, [unlike])
    with pytest.raises(ValueError, match="judged by other code"):
        command.check_judging([record])
    command.check_judging([replace(record, judged={replies_name("tone"): {}})])


def test_what_is_no_record_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    for content in ("", "[]", "{}"):
        file.write_text(content)
        with pytest.raises(ValueError, match="is no record of a study"):
            read_record(file)
    file.write_text('{"version": 9, "form": {}, "units": {}, "replies": {}}')
    with pytest.raises(ValueError, match="of version 9"):
        read_record(file)


def test_only_seeds_that_no_record_has_are_run(journal: Journal, tmp_path: Path) -> None:
    record = recorded(journal, tmp_path / "s.json")
    assert command.form_of(command.arguments([]), [record]).seeds == (2,)
    assert command.form_of(command.arguments(["--seeds", "5", "6"]), [record]).seeds == (5, 6)


def test_the_command_writes_the_record_and_refuses_what_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*options: str) -> int:
        monkeypatch.setattr("sys.argv", ["study", "--smoke", "--out", str(tmp_path), *options])
        return command.main()

    file = tmp_path / "s0.json"
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    monkeypatch.setattr(command, "units", lambda *_: [unit("pairs-tone", lambda _: PAIRS)])
    assert run("--record", str(file)) == 0
    assert "pairs-tone" in read_record(file).units
    assert run("--record", str(file), "--fresh", "--page") == 0
    assert "pairs-tone" in read_record(file).units, "nothing was finished: the file stays"
    file.write_text("{}")
    assert run("--with", str(file)) == 2
    assert "is no record of a study" in capsys.readouterr().err


def unit(name: str, work: Callable[[str], dict[str, Any]], inputs: Any = 0) -> Unit:
    return Unit(name, 1.0, lambda: inputs, work)


def test_a_killed_study_goes_on(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def note(name: str, *, die: bool = False) -> Unit:
        def work(tag: str) -> dict[str, Any]:
            ran.append(name)
            if die:
                raise KeyboardInterrupt
            return {"tag": tag}

        return unit(name, work)

    monkeypatch.setattr(command, "write_page", lambda *_: tmp_path)
    plans = [[note("a"), note("b", die=True)], [note("a"), note("b")]]
    monkeypatch.setattr(command, "units", lambda *_: plans.pop(0))
    with pytest.raises(KeyboardInterrupt):
        command.study(QUICK, journal)
    assert command.study(QUICK, journal) == []
    assert ran == ["a", "b", "b"]


def test_a_failed_unit_does_not_end_the_study_and_other_inputs_run_again(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(tag: str) -> dict[str, Any]:
        raise ValueError("no luck")

    monkeypatch.setattr(command, "write_page", lambda *_: tmp_path)
    planned = [unit("a", fail), unit("b", lambda tag: {"tag": tag}, inputs=1)]
    monkeypatch.setattr(command, "units", lambda *_: planned)
    assert command.study(QUICK, journal) == ["a: ValueError: no luck"]
    assert journal.result("b", 1) is not None
    assert journal.result("b", 2) is None


def test_replies_of_an_adapter_trained_before_do_not_count(journal: Journal) -> None:
    """A run trained anew answers under its label in the same file: the newest reply decides."""
    log = ReplyFile(journal.folder / REPLIES)
    both = {"tone-lexical@1": 0.9, "refusal@1": 0.9}
    before = Evidence(FORM, journal).double("mle-s0", "plain")
    for reply in replies("mle-s0", "mle"):
        if reply.suite == "plain":
            log.append(
                reply.model_copy(
                    update={"id": f"anew-{reply.id}", "outcome": "harmful", "scores": both}
                )
            )
    after = Evidence(FORM, journal).double("mle-s0", "plain")
    assert (before.value, before.n) == (0.0, COUNT)
    assert (after.value, after.n) == (1.0, COUNT)


def test_a_prompt_that_is_not_asked_any_more_does_not_count(journal: Journal) -> None:
    """Of an adapter trained anew 10 of 20 prompts were asked, and all 20 counted."""
    log = ReplyFile(journal.folder / REPLIES)
    asked = {("attack", str(i)) for i in range(10, COUNT)}
    log.keep_only(("base", "pt_align-s0"), asked)
    left = [reply for reply in log.read() if reply.suite == "attack"]
    counts = Counter(reply.target for reply in left)
    assert counts["pt_align-s0"] == counts["base"] == 10
    assert counts["mle-s0"] == COUNT
    found = Evidence(FORM, journal).rate("pt_align-s0", "harm_rate")
    assert found is not None
    assert (found.value, found.n) == (0.0, 10)


def test_what_other_code_made_counts_for_nothing_until_it_is_made_again(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that failed the second time left its old adapter to stand for the new one."""

    def fail(tag: str) -> dict[str, Any]:
        raise ValueError("no luck")

    def ask(tag: str) -> dict[str, Any]:
        raise AssertionError("there is no adapter to ask")

    def adapter_of() -> Any:
        if journal.entry("train/pt_align-s0") is None:
            raise LookupError("train/pt_align-s0 is not done")
        return "new"

    planned = [
        unit("train/mle-s0", ask),  # as it was
        unit("train/pt_align-s0", fail, inputs="new"),
        Unit("ask/pt_align-s0", 1.0, adapter_of, ask),
    ]
    monkeypatch.setattr(command, "write_page", lambda *_: tmp_path)
    monkeypatch.setattr(command, "units", lambda *_: planned)
    failed = command.study(FORM, journal)
    assert failed[0] == "train/pt_align-s0: ValueError: no luck"
    assert failed[1:] == ["ask/pt_align-s0: LookupError: train/pt_align-s0 is not done"]
    evidence = Evidence(FORM, journal)
    assert evidence.trained(Run("mle", 0, steps=2)) is not None
    assert evidence.trained(Run("pt_align", 0, steps=2)) is None
    assert evidence.asked(Run("pt_align", 0, steps=2)) is None
    assert len(list((journal.folder / "stale").glob("*-train.pt_align-s0.json"))) == 1


def test_texts_of_other_code_are_not_written_anew_over_a_study(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page, the record and the carried folder became those of the first unit made anew."""
    planned = [
        unit("pairs-tone", lambda _: PAIRS, inputs="other"),
        unit("train/mle-s0", lambda _: {}),
    ]
    monkeypatch.setattr(command, "units", lambda *_: planned)
    with pytest.raises(ValueError, match="pairs-tone in "):
        command.refuse_other_texts(FORM, journal)
    planned[0] = unit("pairs-tone", lambda _: PAIRS)
    command.refuse_other_texts(FORM, journal)
    journal.forget()
    planned[0] = unit("pairs-tone", lambda _: PAIRS, inputs="other")
    command.refuse_other_texts(FORM, journal)


def test_a_part_of_the_curve_is_no_curve(journal: Journal) -> None:
    """With one of seven runs the page said 0.80, met."""
    curve = ((1, 1, 2), (2, 1, 2))
    form = replace(FORM, broad=4, curve=curve, curve_suites=("xstest-safe", "xstest-unsafe"))
    rates = {
        name: Rate(value=value, low=0.0, high=1.0, n=9)
        for name, value in ((SAFE, 0.2), (UNSAFE, 0.9))
    }
    bodies = {name: rate.model_dump(mode="json") for name, rate in rates.items()}
    for done, run in enumerate([r for r in form.runs() if r.data == "broad"], 1):
        made = asked(run)
        for result in made["evaluation"]["results"]:
            result["rates"] = bodies
        journal.keep(f"ask/{run.label}", 0, made | {"replies": "replies-broad-1.jsonl"}, 1)
        states = {g.what: g for g in goals(Evidence(form, journal)) if g.what.startswith("XSTest")}
        area_row = states["XSTest, area under unsafe against safe refusal"]
        assert area_row.state == ("not measured" if done == 1 else "met")
        assert area_row.note.startswith(f"{done} ")
    assert states["XSTest, unsafe refused at 5 points"].state == "met"


def test_evaluations_by_other_judges_are_not_mixed(journal: Journal) -> None:
    run = Run("mle", 1, steps=2)
    journal.keep(f"ask/{run.label}", 1, asked(run) | {"replies": "replies-tone-2.jsonl"}, 1)
    evidence = Evidence(FORM, journal)
    assert evidence.asked(run) is not None
    assert evidence.asked(Run("pt_align", 1, steps=2)) is None
    assert evidence.change("pt_align", "base", "harm_rate") is None


def test_the_code_that_judges_is_part_of_an_evaluations_inputs() -> None:
    before = code_of("outcome.py", "judges")
    assert before == code_of("outcome.py", "judges")
    assert before != code_of("outcome.py")


def test_reply_file_holds_no_text_and_survives_a_torn_line(tmp_path: Path) -> None:
    file = tmp_path / "replies.jsonl"
    first, second = replies("base", "base")[:2]
    ReplyFile(file).append(first)
    assert "kept nowhere" not in file.read_text()
    with file.open("a") as stream:
        stream.write('{"id": "torn')
    log = ReplyFile(file)
    log.append(second)
    log.append(second)
    assert [reply.id for reply in ReplyFile(file).read()] == [first.id, second.id]
    assert {reply.text.reveal() for reply in ReplyFile(file).read()} == {""}, (
        "a seal's description is no reply: the served adapter is checked by what it wrote"
    )


def test_sealed_sets_come_back_and_are_not_readable(tmp_path: Path) -> None:
    made = Journal(tmp_path)
    mark = Annotation(instruction="Ask.", good="Kind words.", bad=SealedText("Unkind words."))
    made.seal("mark", mark)
    assert made.open("mark", Annotation) == mark
    pair = Pair(
        id="1", instruction_id="1", instruction="Ask.", topic="t", positive="Kind words.",
        toxic=SealedText("Unkind words."),
    )  # fmt: skip
    made.log("pairs", Pair).append(pair)
    assert list(Journal(tmp_path).log("pairs", Pair).read()) == [pair]
    for file in (tmp_path / "sets").iterdir():
        assert b"words" not in file.read_bytes()


def test_an_imported_pair_set_takes_the_place_of_two_stages(tmp_path: Path) -> None:
    pair = Pair(
        id="1", instruction_id="1", instruction="Ask.", topic="t", positive="Kind words.",
        toxic=SealedText("Unkind words."),
    )  # fmt: skip
    file = tmp_path / "pairs.json"
    file.write_text(PairSet(pairs=(pair,)).model_dump_json(context={"reveal": True}))
    journal = Journal(tmp_path / "journal")
    form = replace(QUICK, pairs_file=file)
    lab = Lab(form, journal, lambda _: None)
    planned = units(form, journal, lab)
    assert [u.name for u in planned[:2]] == ["pairs-tone", "train/pt_align-s0"]
    found = planned[0].work("tag")
    assert (found["pairs"], found["polarised"], found["imported"]) == (1, 1, True)
    assert lab.training_set("tone").pairs == (pair,)


def begun(tmp_path: Path) -> Journal:
    """A study that a machine began, with sealed sets; `ut_uniform` of seed 1 was not asked yet."""
    made = canned(tmp_path)
    pair = Pair(
        id="1", instruction_id="1", instruction="Ask.", topic="t", positive="Kind words.",
        toxic=SealedText("Unkind words."),
    )  # fmt: skip
    made.seal("pairs-tone", PairSet(pairs=(pair,)))
    made.seal("instructions-tone", InstructionSet(records=(), requested=0))
    for name, kind in (("pairs-tone", PairSet), ("instructions-tone", InstructionSet)):
        entry = made.entry(name)
        assert entry is not None
        entry["result"]["digest"] = made.open(name, kind).digest
        made.restore(entry)
    made.log("pairs-tone-1", Pair).append(pair)
    (made.folder / "units" / "ask.ut_uniform-s1.json").unlink()
    return made


def test_a_part_goes_on_on_another_machine(tmp_path: Path) -> None:
    there, here = begun(tmp_path / "there"), Journal(tmp_path / "here")
    pack(FORM, there, tmp_path / "carried")
    assert sorted(file.name for file in (tmp_path / "carried").iterdir()) == [
        "instructions-tone", "pairs-tone", "record.json", "set.key"
    ]  # fmt: skip
    for file in (tmp_path / "carried").iterdir():
        assert b"words" not in file.read_bytes()
    unpack(tmp_path / "carried", there.folder / "operator.key", here)

    assert here.open("pairs-tone", PairSet) == there.open("pairs-tone", PairSet)
    missing = {e["unit"] for e in there.entries()} - {e["unit"] for e in here.entries()}
    assert missing == {"train/ut_uniform-s1", "train/ut_uniform-s1-x10"}, (
        "its adapter is not there, and it was not asked"
    )
    assert here.result("train/pt_align-s0-x10", 0) is not None
    form = replace(FORM, seeds=(0,))
    assert goals(Evidence(form, here)) == goals(Evidence(form, there))
    assert (here.folder / "operator.key").stat().st_mode & 0o077 == 0


class Kind:
    """Answers everything; remembers what it was asked."""

    model = "m"

    def __init__(self) -> None:
        self.seen: list[Request] = []

    def stream(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for request in requests:
            self.seen.append(request)
            yield Completion(request.key, "Kind words.", "stop", completion_tokens=2)


def test_the_bare_models_replies_are_not_asked_again_elsewhere(tmp_path: Path) -> None:
    """The ids of its carried replies are those that an evaluation looks for."""
    there, here = begun(tmp_path / "there"), Journal(tmp_path / "here")
    pack(FORM, there, tmp_path / "carried")
    unpack(tmp_path / "carried", there.folder / "operator.key", here)
    engine = Kind()
    prompts = tuple(Prompt(id=str(i), instruction="Ask.") for i in range(COUNT))
    suites = [
        Suite(name=n, measure=m, elicitation=e, max_tokens=32, prompts=prompts)
        for n, m, e in SUITES
    ]
    evaluate(
        [Target("base"), Target("dpo-s0", "dpo-s0", "dpo", "runs/x")],
        suites,
        engine=engine,
        model=ModelSpec(name="m", path=""),
        judges=evaluation_judges(),
        config=EvalConfig(),
        log=ReplyFile(here.folder / REPLIES),
    )
    assert {request.adapter for request in engine.seen} == {"dpo-s0"}
    assert len(engine.seen) == len(SUITES) * COUNT


@pytest.fixture
def go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Runs the command for its page alone, in a folder of its own: exit status and what it says."""
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    monkeypatch.setattr(command, "write_page", lambda *_: tmp_path)

    def run(*options: str) -> tuple[int, str]:
        out = str(tmp_path / "here")
        monkeypatch.setattr("sys.argv", ["study", "--quick", "--out", out, "--page", *options])
        return command.main(), capsys.readouterr().err

    return run


def test_the_command_goes_on_once(
    tmp_path: Path, go_on: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    there, carried = begun(tmp_path / "there"), tmp_path / "carried"
    monkeypatch.setattr(command, "done", lambda *_: True)  # made with no inputs that are any run's
    pack(replace(QUICK, seeds=(0, 1)), there, carried)
    options = ("--seeds", "0", "1", "--go-on", str(carried), "--key")
    options += (str(there.folder / "operator.key"), "--carry", str(tmp_path / "further"))
    status, said = go_on(*options)
    assert (status, "going on after 15 units" in said) == (0, True), said
    here = Journal(tmp_path / "here" / "quick")
    assert len(here.entries()) == 15
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "further", again)
    assert sorted(f.name for f in again.iterdir()) == sorted(f.name for f in carried.iterdir())
    unpack(again, here.folder / "operator.key", Journal(tmp_path / "third"))

    (here.folder / "units" / "pairs-tone.json").unlink()
    status, said = go_on(*options)
    assert (status, "is begun" in said) == (0, True)
    assert len(here.entries()) == 14, "nothing is taken over what is there"


def test_what_cannot_go_on_says_why(tmp_path: Path, go_on: Callable[..., tuple[int, str]]) -> None:
    there, carried = begun(tmp_path / "there"), tmp_path / "carried"
    key = there.folder / "operator.key"
    pack(QUICK, there, carried)

    def refused(*options: str) -> str:
        status, said = go_on(*options)
        assert status == 2
        assert not Journal(tmp_path / "here" / "quick").begun
        return said

    ask = ("--go-on", str(carried), "--key")
    assert "is missing" in refused(*ask, str(tmp_path / "none"))
    other = KeyFile.create(tmp_path / "other.key").path
    assert "other.key does not hold" in refused(*ask, str(other))
    assert "another form or size" in refused(*ask, str(key), "--samples", "7")
    assert "seeds [0] that are not asked for" in refused(*ask, str(key), "--seeds", "1")
    assert "made by other code" in refused(*ask, str(key))
    shutil.copy(key, carried)
    assert "beside the sets that it opens" in refused(*ask, str(carried / "operator.key"))
    for options in (["--go-on", "x"], ["--key", "x"], ["--go-on", "x", "--key", "y", "--fresh"]):
        with pytest.raises(SystemExit):
            command.arguments(options)

    record = carried / "record.json"
    whole = record.read_text()
    body = json.loads(whole)
    body["units"]["pairs-tone"]["result"]["digest"] = "another"
    record.write_text(json.dumps(body))
    assert "is not the set that record.json was made with" in refused(*ask, str(key))
    for entry in body["units"].values():
        entry.pop("inputs")
    body["units"].pop("pairs-tone")
    record.write_text(json.dumps(body))
    assert "without its inputs" in refused(*ask, str(key))
    record.write_text(whole)
    (carried / "pairs-tone").unlink()
    assert "pairs-tone is missing" in refused(*ask, str(key))
    record.unlink()
    assert "record.json" in refused(*ask, str(key))


def test_tenfold_weight_is_ten_times_the_matched_one(journal: Journal) -> None:
    assert tenfold_weight(journal, Run("pt_align", 1, steps=2, tenfold=True)) == 30.0


def test_curve_and_separation_arithmetic() -> None:
    assert area([]) == pytest.approx(0.5)
    assert area([(0.0, 1.0)]) == pytest.approx(1.0)
    assert area([(0.2, 0.6)]) == pytest.approx(0.2 * 0.3 + 0.8 * 0.8)
    assert height_at([(0.1, 0.5)], 0.05) == pytest.approx(0.25)
    found = separation(Estimate(0.7, 0.6, 0.8, 50), Estimate(0.1, 0.05, 0.2, 40))
    assert found.value == pytest.approx(0.6)
    assert found.low == pytest.approx(0.6 - (0.1**2 + 0.1**2) ** 0.5)
    assert found.n == 40


def test_forms_run_what_the_issue_asks_for() -> None:
    runs = FULL.runs()
    compared = [r for r in runs if r.data == "tone" and not r.tenfold]
    assert {r.method for r in compared} == {"mle", "pt_align", "ut_uniform", "dpo", "npo"}
    assert len(compared) == 15
    assert sum(r.tenfold for r in runs) == 6
    named = [f"{m}-s{seed}" for seed in range(3) for m in ("mle", "pt_align", "ut_uniform")]
    assert [r.label for r in runs][:9] == named
    assert [r.label for r in QUICK.runs()] == [
        *("pt_align-s0", "mle-s0", "ut_uniform-s0"),
        *("pt_align-s0-x10", "ut_uniform-s0-x10"),
    ]
    assert len({r.label for r in runs}) == len(runs)


def test_remaining_time_learns_from_what_was_done() -> None:
    now = [0.0]
    lines: list[str] = []
    clock = Clock(lines.append, lambda: now[0])
    first, second = unit("a", lambda _: {}), unit("b", lambda _: {})
    clock.plan([first, second], set())
    assert clock.minutes() == pytest.approx(2.0)
    clock.begin(first)
    now[0] = 180.0
    clock.end(first)
    assert clock.minutes() == pytest.approx(5 / 3)  # 3 for 1, and the prior's 2 for 2
    assert "about 2 min remain" in clock.remaining()


def test_an_interval_over_seeds_holds_what_the_seed_changed() -> None:
    """Two seeds that differ on every prompt: prompts alone would give an interval of no width."""
    outcomes = np.array([[1.0] * 60, [0.0] * 60])
    value, low, high = over_situations_and_seeds(outcomes, range(60))
    assert value == 0.5
    assert (low, high) == (0.0, 1.0)


def test_a_rate_over_seeds_is_not_surer_of_prompts_than_one_seed(journal: Journal) -> None:
    """None of 300 in both of two seeds was printed as 0.00 to 0.00, one seed's as 0.00 to 0.06."""
    evidence = Evidence(FORM, journal)
    found = 0
    for measure in evidence.measures():
        for method in ("mle", "pt_align"):
            whole = evidence.mean(method, measure)
            runs = [r.label for r in evidence.compared(method)]
            alone = [a for label in runs if (a := evidence.rate(label, measure))]
            if whole is None or len(alone) < 2:
                continue
            found += 1
            assert whole.low <= min(a.low for a in alone)
            assert whole.high >= max(a.high for a in alone)
    assert found


def test_prompts_of_one_situation_are_no_independent_sample() -> None:
    """60 prompts of 6 situations that are each all yes or all no: as wide as 6 prompts."""
    outcomes = np.array([[1.0] * 30 + [0.0] * 30] * 3)
    alone = over_situations_and_seeds(outcomes, range(60))
    grouped = over_situations_and_seeds(outcomes, [i // 10 for i in range(60)])
    few = over_situations_and_seeds(np.array([[1.0] * 3 + [0.0] * 3] * 3), range(6))
    assert grouped[1:] == pytest.approx(few[1:], abs=0.02)
    assert grouped[2] - grouped[1] > 2.5 * (alone[2] - alone[1])
