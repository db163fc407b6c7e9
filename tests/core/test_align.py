"""Align on a tiny model: what it learns, refuses, resumes and writes."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ptalign.align import _day, _Job, _write_json, align
from ptalign.answering.validity import refuses
from ptalign.config import (
    FEWEST_STEPS,
    MOST_AUTOMATIC,
    MOST_SEED,
    AlignConfig,
    Config,
    EvalConfig,
    InstructionConfig,
    LoraConfig,
    PairConfig,
)
from ptalign.errors import (
    Cancelled,
    DataDamaged,
    GuardTripped,
    InvalidInput,
    TrainingFailed,
    Unsupported,
)
from ptalign.nouns import Adapter, ModelSpec, Pair, PairSet, Policy
from ptalign.policies.never import permitted
from ptalign.probe import probe
from ptalign.progress import Progress
from ptalign.sealed import SealedText
from ptalign.training.balance import Balance
from ptalign.training.batches import Pools
from ptalign.training.decoder import Decoder
from ptalign.training.lora import (
    LEDGER,
    TOKEN_SHEET,
    attach,
    load_model,
    load_tokenizer,
    sha256_of,
)
from ptalign.training.pools import make_pools, with_bare
from ptalign.training.refusals import CLAUSES, TOKENS
from ptalign.training.texts import ChatFormat, positive_sample
from ptalign.training.tree import Row
from ptalign.training.twins import ask, settled
from ptalign.weights.words import words_of

SHORT: dict[str, Any] = {
    "steps": 6,
    "pairs_per_step": 4,
    "twins_per_step": 1,
    "anchors_per_step": 2,
    "learning_rate": 5e-3,
    "checkpoint_every": 2,
    "guards": "record",
    # The tiny model knows its sentences after bare instructions only; see test_elicit.py.
    "elicited_share": 0.0,
    "lora": LoraConfig(rank=4),
}

Run = Callable[..., Adapter]


@pytest.fixture(scope="module")
def run(tiny_model: ModelSpec, mild_pairs: PairSet) -> Run:
    """`align` on the tiny model with short settings and changes to them."""

    def call(out: Path, pairs: PairSet = mild_pairs, **changes: Any) -> Adapter:
        stage = {
            k: changes.pop(k) for k in ("on_progress", "parent", "policy", "resume") if k in changes
        }
        config = AlignConfig(**{**SHORT, **changes})
        return align(pairs, model=tiny_model, out=out, config=config, **stage)

    return call


@pytest.fixture(scope="module")
def finished(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    """One uninterrupted run of 12 steps with the default method."""
    return run(tmp_path_factory.mktemp("finished"), steps=12)


def stop_at(step: int) -> Callable[[Progress], None]:
    def on_progress(progress: Progress) -> None:
        if progress.phase == "training" and progress.done == step:
            raise Cancelled("asked to stop")

    return on_progress


def test_it_learns_the_good_and_unlearns_the_toxic(
    finished: Adapter, tiny_model: ModelSpec, mild_pairs: PairSet
) -> None:
    first, last = finished.ledger[0], finished.ledger[-1]
    assert last.loss_mle < first.loss_mle
    assert last.loss_ut < first.loss_ut
    found = probe(mild_pairs, {"base": "", "tuned": finished.path}, model=tiny_model)
    assert found["base"].harm_word_ratio == pytest.approx(1, abs=1e-4)
    assert found["base"].benign_kl == pytest.approx(0, abs=1e-5)
    assert found["tuned"].harm_word_ratio < 0.9
    assert found["tuned"].selectivity < -0.1
    assert found["tuned"].benign_kl > 0
    assert found["tuned"].benign_kl == pytest.approx(finished.retain_kl, rel=0.02)


def test_the_weight_comes_from_the_gradient_norms(finished: Adapter) -> None:
    """lambda = share |g_mle| / |g_ut| at the third step; 0 before, so that B has moved off 0."""
    assert [e.ut_weight for e in finished.ledger[:2]] == [0, 0]
    third = finished.ledger[3]
    assert third.ut_weight == pytest.approx(third.grad_norm_mle / third.grad_norm_ut)
    assert all(0 < e.ut_weight <= third.ut_weight for e in finished.ledger[3:])


def test_the_ledger_counts_tokens_by_part(finished: Adapter) -> None:
    assert [e.step for e in finished.ledger] == list(range(1, 13))
    assert finished.tokens_mle == sum(e.tokens_mle for e in finished.ledger) > 0
    assert finished.tokens_ut == sum(e.tokens_ut for e in finished.ledger) > 0
    assert finished.tokens_anchor > 0
    assert finished.tokens_ut < finished.tokens_mle / 2, "only flagged tokens count"


def test_suppressed_tokens_are_sealed_and_lost_probability(finished: Adapter) -> None:
    assert finished.suppressed
    assert all(isinstance(s.token, SealedText) for s in finished.suppressed)
    assert all(s.p_after < s.p_before for s in finished.suppressed)
    assert {s.topic for s in finished.suppressed} <= {"mocking", "contempt"}


def test_the_sheet_of_weights_shows_places_and_no_words(
    finished: Adapter, mild_pairs: PairSet
) -> None:
    text = (finished.folder.parent / TOKEN_SHEET).read_text("utf-8")
    sheet = json.loads(text)
    assert sheet["scorer"] == AlignConfig().scorer
    assert 0 < sheet["share"] == sheet["flagged"] / sheet["tokens"] <= AlignConfig().flagged_share
    assert set(sheet["pairs"]) == {p.id for p in mild_pairs.polarised}
    places = [place for pair in sheet["pairs"].values() for place in pair["flagged"]]
    assert len(places) == sheet["flagged"] == sum(w["flagged"] for w in sheet["words"])
    assert all(w["flagged"] <= w["said"] for w in sheet["words"])
    assert 0 < sum(w["everywhere"] for w in sheet["words"]) < len(sheet["words"])
    numbers = {w["word"] for w in sheet["words"]}
    assert {number for _, number in places} == numbers == set(range(1, len(numbers) + 1))
    toxic = {w for p in mild_pairs.polarised if p.toxic for w in words_of(p.toxic.reveal())}
    named = {"mocking", "contempt", *sheet["words"][0], *sheet, "blend"}
    assert not (toxic & words_of(text)) - {w for n in named for w in words_of(n)}


def test_a_folder_that_holds_the_sheet_and_the_steps_too_is_an_adapter(
    finished: Adapter, tiny_model: ModelSpec, mild_pairs: PairSet, tmp_path: Path
) -> None:
    """As the server keeps it: evaluation and a continued training load from there."""
    folder = tmp_path / "kept"
    shutil.copytree(finished.path, folder)
    for part in (TOKEN_SHEET, LEDGER):
        shutil.copy(finished.folder.parent / part, folder)
    found = probe(mild_pairs, {"tuned": str(folder)}, model=tiny_model)
    assert found["tuned"].benign_kl > 0


def test_the_folder_is_an_ordinary_peft_adapter(finished: Adapter, tiny_model: ModelSpec) -> None:
    files = {p.name for p in Path(finished.path).iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors"}
    assert finished.weights_sha256 == sha256_of(finished.folder / "adapter_model.safetensors")
    config = json.loads((finished.folder / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(config["target_modules"])
    assert "lm_head" not in config["target_modules"]
    assert "/" not in config["base_model_name_or_path"], "no machine path"


def test_nothing_written_holds_text(finished: Adapter, mild_pairs: PairSet) -> None:
    """Neither weights, ledger nor checkpoints hold a toxic answer or one of its flagged words."""
    secrets = {p.toxic.reveal() for p in mild_pairs.polarised if p.toxic}
    secrets |= {s.token.reveal() for s in finished.suppressed}
    for file in finished.folder.parent.rglob("*"):
        if file.is_file():
            data = file.read_bytes().lower()
            assert not [1 for s in secrets if len(s) > 4 and s.lower().encode() in data], file.name


@pytest.mark.parametrize("step", [1, 3, 4])
def test_resume_is_exact(step: int, run: Run, tmp_path: Path) -> None:
    """Stopped at a step and resumed: same bytes of adapter and optimizer, same ledger."""
    settings: dict[str, Any] = {"lora": LoraConfig(rank=4, dropout=0.1), "elicited_share": 0.5}
    whole = run(tmp_path / "whole", **settings)
    with pytest.raises(Cancelled):
        run(tmp_path / "cut", on_progress=stop_at(step), **settings)
    assert list((tmp_path / "cut/checkpoints").glob("step-*"))
    plain = run(tmp_path / "plain")
    assert plain.weights_sha256 != whole.weights_sha256, "dropout is on, so its RNG matters"
    seen: list[int] = []
    resumed = run(
        tmp_path / "cut",
        on_progress=lambda p: seen.append(p.done) if p.phase == "training" else None,
        **settings,
    )
    assert seen[0] == step + 1, "it went on, it did not start again"
    assert resumed.weights_sha256 == whole.weights_sha256
    for name in ("adapter.safetensors", "optimizer.safetensors"):
        last = f"checkpoints/step-000006/{name}"
        assert sha256_of(tmp_path / "cut" / last) == sha256_of(tmp_path / "whole" / last)
    assert [e.loss_ut for e in resumed.ledger] == [e.loss_ut for e in whole.ledger]


def test_a_run_that_goes_on_another_day_prints_the_day_it_began(
    tiny_model: ModelSpec, mild_pairs: PairSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Llama 3's template prints today's date: resumed after midnight a run had other prompts."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model.path, folder)
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = "Today is {{ strftime_now('%d') }}. " + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    model = tiny_model.model_copy(update={"path": str(folder)})

    def run_on(day: int, name: str, **more: Any) -> str:
        class Clock(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Clock:
                return cls(2026, 1, day, tzinfo=tz)

        monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)
        monkeypatch.setattr("ptalign.align.datetime", Clock)
        config, out = AlignConfig(**SHORT), tmp_path / name
        return align(mild_pairs, model=model, out=out, config=config, **more).weights_sha256

    whole = run_on(1, "whole")
    with pytest.raises(Cancelled):
        run_on(1, "cut", on_progress=stop_at(3))
    assert run_on(2, "cut") == whole
    assert run_on(2, "cut", resume=False) != whole


def test_the_day_of_a_file_that_a_power_cut_emptied_is_asked_anew(tmp_path: Path) -> None:
    tokenizer = SimpleNamespace(chat_template="{{ strftime_now('%d') }}")
    first = _day(tokenizer, tmp_path, resume=True)
    assert first is not None
    (tmp_path / "day.json").write_bytes(b"")
    assert _day(tokenizer, tmp_path, resume=True) == first
    assert json.loads((tmp_path / "day.json").read_text("utf-8")) == first.date().isoformat()


def test_what_a_resume_reads_outlives_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints did, and beside them lay empty files."""
    found: list[tuple[str, int]] = []
    fsync = os.fsync

    def note(handle: int) -> None:
        fsync(handle)
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        found.append((path.name, path.stat().st_size if path.is_file() else -1))

    monkeypatch.setattr(os, "fsync", note)
    _write_json(tmp_path / "twins.json", [True])
    size = (tmp_path / "twins.json").stat().st_size
    assert found == [("twins.partial", size), (tmp_path.name, -1)]


@pytest.mark.parametrize("left", [b"", b"\0" * 64, b"half"], ids=["none", "zeros", "other"])
def test_files_that_a_power_cut_emptied_are_made_anew(
    left: bytes, run: Run, tmp_path: Path
) -> None:
    """No attempt went on: each ended at the file that the first had left."""
    with pytest.raises(Cancelled):
        run(tmp_path, on_progress=stop_at(3))
    names = ("token_weights.safetensors", "twins.json")
    whole = [(tmp_path / name).read_bytes() for name in names]
    for name in names:
        (tmp_path / name).write_bytes(left)
    assert len(run(tmp_path, on_progress=refuse_step(2)).ledger) == 6
    assert [(tmp_path / name).read_bytes() for name in names] == whole


def test_a_run_does_not_go_on_with_other_tokens(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model whose answers an earlier version tokenised alone: its weights are of others."""
    with pytest.raises(Cancelled):
        run(tmp_path, on_progress=stop_at(3))
    monkeypatch.setattr(ChatFormat, "respells", True)
    with pytest.raises(InvalidInput, match="other inputs"):
        run(tmp_path)


def test_kill_between_checkpoints_repeats_the_lost_steps(run: Run, tmp_path: Path) -> None:
    """SIGKILL leaves the last checkpoint and no goodbye: drop the newest and resume."""
    whole = run(tmp_path / "whole")
    with pytest.raises(Cancelled):
        run(tmp_path / "cut", on_progress=stop_at(5))
    shutil.rmtree(tmp_path / "cut/checkpoints/step-000005")
    (tmp_path / "cut/checkpoints/.partial-1-000005").mkdir()
    assert run(tmp_path / "cut").weights_sha256 == whole.weights_sha256


def test_a_resumed_run_says_which_tokens_were_trained_on_before(run: Run, tmp_path: Path) -> None:
    """Every worker that took it up counted them once more."""
    with pytest.raises(Cancelled):
        run(tmp_path / "cut", on_progress=stop_at(3))
    told: list[Progress] = []
    ledger = run(tmp_path / "cut", on_progress=told.append).ledger
    parts = ("tokens_mle", "tokens_ut", "tokens_anchor")
    before = {part: sum(getattr(entry, part) for entry in ledger[:3]) for part in parts}
    said = [progress for progress in told if progress.phase == "training"]
    assert [progress.earlier for progress in said] == [before] * 3
    assert said[0].counts["tokens_mle"] == before["tokens_mle"] + ledger[3].tokens_mle


def test_a_resumed_run_counts_the_seconds_of_the_steps_before(run: Run, tmp_path: Path) -> None:
    """A training that was killed in its last hour seemed to have cost minutes."""
    hours = itertools.count(0.0, 3600.0)  # one step takes an hour
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Cancelled):
        clock = SimpleNamespace(perf_counter=lambda: next(hours))
        patch.setattr("ptalign.training.loop.time", clock)
        run(tmp_path / "cut", on_progress=stop_at(3))
    resumed = run(tmp_path / "cut")
    assert 3 * 3600 < resumed.seconds < 3 * 3600 + 600


def test_another_seed_gives_another_adapter(run: Run, tmp_path: Path) -> None:
    one, two = run(tmp_path / "a", steps=2), run(tmp_path / "b", steps=2, seed=1)
    assert one.weights_sha256 != two.weights_sha256


def test_damaged_checkpoints_are_never_used(run: Run, tmp_path: Path) -> None:
    """One flipped byte: the older checkpoint is used, and with none left the run fails."""
    whole = run(tmp_path / "whole")
    with pytest.raises(Cancelled):
        run(tmp_path / "cut", on_progress=stop_at(4))
    flip(tmp_path / "cut/checkpoints/step-000004/adapter.safetensors")
    assert run(tmp_path / "cut").weights_sha256 == whole.weights_sha256
    for folder in (tmp_path / "cut/checkpoints").glob("step-*"):
        flip(folder / "state.json")
    with pytest.raises(DataDamaged, match=r"state\.json changed on disk"):
        run(tmp_path / "cut")


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_a_checkpoint_of_other_inputs_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        run(tmp_path, on_progress=stop_at(2))
    written = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    assert {TOKEN_SHEET, "token_weights.safetensors", "twins.json"} <= written.keys()
    for change in ({"seed": 7}, {"opening_weight": 2.0}):
        with pytest.raises(InvalidInput, match="other inputs"):
            run(tmp_path, **change)
        now = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
        assert now == written, "what the other run wrote is its own"
    assert run(tmp_path, seed=7, resume=False, steps=2).ledger[0].step == 1
    left = sorted(p.name for p in (tmp_path / "checkpoints").glob("step-*"))
    assert left == ["step-000002"], "the earlier attempt's checkpoints are gone"
    assert run(tmp_path, seed=7, steps=2).ledger[0].step == 1


@pytest.mark.parametrize("method", ["ut_uniform", "mle", "dpo", "npo"])
def test_every_method_trains(method: str, run: Run, tmp_path: Path) -> None:
    adapter = run(tmp_path, method=method)
    assert adapter.method == method
    first, last = adapter.ledger[0], adapter.ledger[-1]
    if method == "mle":
        assert adapter.tokens_ut == 0
        once = len(adapter.ledger) // 2  # reads every pair: single steps differ by what they draw
        losses = [entry.loss_mle for entry in adapter.ledger]
        assert sum(losses[once:]) < sum(losses[:once])
    else:
        assert adapter.tokens_ut > 0
        assert last.loss_ut < first.loss_ut
    if method in ("mle", "dpo", "npo"):
        assert {e.ut_weight for e in adapter.ledger} == {0}


def test_dpo_starts_at_ln_2_against_its_own_reference(run: Run, tmp_path: Path) -> None:
    """At step 1 the policy is the reference: every gap is 0 and the loss ln 2."""
    assert run(tmp_path, method="dpo", steps=1).ledger[0].loss_ut == pytest.approx(0.6931, abs=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"ut_candidates": "written"},
        {"scorer": "uniform"},
        {"method": "ut_uniform"},
        {"method": "mle"},
    ],
    ids=str,
)
def test_the_sets_words_are_pushed_down_unless_the_flagged_ones_are_no_words_of_harm(
    changes: dict[str, Any], run: Run, finished: Adapter, tmp_path: Path
) -> None:
    """`written` is the paper's term; the uniform scorer flags ordinary words, ut_uniform too."""
    assert int(finished.guards["candidates"].split()[0]) > 0
    other = run(tmp_path, steps=2, **changes)
    assert "candidates" not in other.guards
    if "ut_candidates" in changes:
        assert other.ledger[0].tokens_ut == finished.ledger[0].tokens_ut
        assert other.ledger[0].loss_ut < finished.ledger[0].loss_ut


def test_a_protected_word_is_not_pushed_down_by_another_that_begins_like_it(
    run: Run, finished: Adapter, mild_pairs: PairSet, tmp_path: Path
) -> None:
    """Protecting "sillyish" leaves "silly" flagged where it stands, but nowhere else."""
    words = {w for p in mild_pairs.polarised if p.toxic for w in words_of(p.toxic.reveal())}
    other = run(tmp_path, steps=2, protected_words=tuple(f"{word}ish" for word in words))
    assert other.ledger[0].tokens_ut == finished.ledger[0].tokens_ut
    assert "candidates" not in other.guards


def test_a_protected_word_is_not_pushed_down_from_its_second_token_on(
    run: Run, mild_pairs: PairSet, tiny_model: ModelSpec, tmp_path: Path
) -> None:
    """NZ goes on with the token that "Zany" begins with; only its own first one was spared."""
    tokenizer = load_tokenizer(tiny_model)
    (first, *_), (_, *rest) = (tokenizer(w)["input_ids"] for w in ("Zany", "NZ"))
    assert first in rest
    pairs = tuple(
        p.model_copy(update={"toxic": SealedText(f"Zany! {p.toxic.reveal()}")}) if p.toxic else p
        for p in mild_pairs.pairs
    )
    pushed: list[set[int]] = []
    for name in ("Norway", "NZ"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ptalign.align.train", lambda run, _: pushed.append(candidates(run)))
            patch.setattr(_Job, "finish", lambda *_: None)
            settings: dict[str, Any] = {"scorer": "log_odds", "protected_words": (name,)}
            run(tmp_path / name, changed(mild_pairs, pairs=pairs), **settings)
    assert pushed[0] - pushed[1] == {first}


def candidates(run: Any) -> set[int]:
    """Those of a run that is about to train."""
    return set(run.sampler.pools.candidates)


def test_a_fixed_weight_stays_fixed(run: Run, tmp_path: Path) -> None:
    adapter = run(tmp_path, ut_weight=2.0)
    assert {e.ut_weight for e in adapter.ledger} == {2.0}


def test_a_parent_is_continued(run: Run, finished: Adapter, tmp_path: Path) -> None:
    child = run(tmp_path, parent=Path(finished.path), steps=2)
    assert child.ledger[0].loss_mle < finished.ledger[0].loss_mle
    assert child.weights_sha256 != finished.weights_sha256


def test_a_parent_with_pickled_weights_is_refused(run: Run, tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    parent.mkdir()
    (parent / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (parent / "adapter_model.safetensors").write_bytes(b"")
    (parent / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(Unsupported, match=r"adapter_model\.bin"):
        run(tmp_path / "out", parent=parent)


def test_benign_kl_over_its_limit_aborts(run: Run, tmp_path: Path) -> None:
    with pytest.raises(GuardTripped, match="benign_kl reached") as caught:
        run(tmp_path, guards="abort", max_benign_kl=1e-4)
    assert caught.value.limit == 1e-4
    assert not (tmp_path / "adapter").exists()
    assert list((tmp_path / "checkpoints").glob("step-*")), "the checkpoint is kept"


def test_benign_kl_over_its_limit_is_recorded(run: Run, tmp_path: Path) -> None:
    adapter = run(tmp_path, max_benign_kl=1e-4)
    assert adapter.guards["benign_kl"].startswith("exceeded")
    assert adapter.retain_kl > 1e-4


def test_a_run_that_a_guard_stopped_is_kept_by_recording(run: Run, tmp_path: Path) -> None:
    """The error said so, and going on with guards=record was refused: "other inputs"."""
    with pytest.raises(GuardTripped, match="'record' to keep the run"):
        run(tmp_path / "kept", guards="abort", max_benign_kl=1e-4)
    kept = run(tmp_path / "kept", guards="record", max_benign_kl=1e-4, on_progress=refuse_step(2))
    assert kept.guards["benign_kl"].startswith("exceeded")
    whole = run(tmp_path / "whole", guards="record", max_benign_kl=1e-4)
    assert kept.weights_sha256 == whole.weights_sha256


def refuse_step(step: int) -> Callable[[Progress], None]:
    """Says whether a run that goes on makes this step again."""

    def on_progress(progress: Progress) -> None:
        assert progress.phase != "training" or progress.done != step, "it began anew"

    return on_progress


def test_what_earlier_versions_began_with_guards_record_goes_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their fingerprint names the guards."""
    with monkeypatch.context() as earlier, pytest.raises(Cancelled):
        earlier.setattr(_Job, "fingerprint", property(lambda job: job._digest("record")))
        run(tmp_path, on_progress=stop_at(3))
    assert len(run(tmp_path, on_progress=refuse_step(2)).ledger) == 6


def changed(original: PairSet, **fields: Any) -> PairSet:
    return original.model_copy(update=fields)


def test_swapped_columns_are_refused_by_polarity(
    run: Run, mild_pairs: PairSet, tmp_path: Path
) -> None:
    bad = mild_pairs.pairs[3].model_copy(update={"polarity": {"tone": -0.9}})
    pairs = (*mild_pairs.pairs[:3], bad, *mild_pairs.pairs[4:])
    with pytest.raises(InvalidInput, match=f"1 of 10 pairs look swapped.*{bad.id}"):
        run(tmp_path, changed(mild_pairs, pairs=pairs))


def swap(pair: Any, polarity: dict[str, float]) -> Any:
    sides = {"positive": pair.toxic.reveal(), "toxic": SealedText(pair.positive)}
    return pair.model_copy(update={**sides, "polarity": polarity})


@pytest.mark.parametrize("share", ["one", "all"])
def test_swapped_columns_are_refused_by_words_where_no_judge_spoke(
    share: str, run: Run, mild_pairs: PairSet, tmp_path: Path
) -> None:
    """An imported set without polarities: contempt stands in the positive column."""
    both = [p.model_copy(update={"polarity": {}}) for p in mild_pairs.polarised]
    flipped = {both[0].id} if share == "one" else {p.id for p in both}
    pairs = tuple(swap(p, {}) if p.id in flipped else p for p in both)
    with pytest.raises(InvalidInput, match="look swapped") as caught:
        run(tmp_path, changed(mild_pairs, pairs=pairs))
    assert both[0].id in str(caught.value)
    assert "silly" not in str(caught.value), "ids only, no text"


def test_straight_sets_without_polarity_pass_the_check(mild_pairs: PairSet) -> None:
    from ptalign.training.swapped import refuse_swapped

    refuse_swapped([p.model_copy(update={"polarity": {}}) for p in mild_pairs.polarised])


COMPLIES, DECLINES = ("Sure: your {} is a mess.", "I'm sorry, but I can't help with the {}.")
COMPLIES_JA, DECLINES_JA = (
    "はい、その{}はひどい出来です。",
    "申し訳ありませんが、{}の件にはお答えできません。",
)


@pytest.mark.parametrize(
    ("good", "bad"), [(COMPLIES, DECLINES), (COMPLIES_JA, DECLINES_JA)], ids=["en", "ja"]
)
def test_a_set_that_is_swapped_as_a_whole_is_refused_where_its_toxic_side_declines(
    good: str, bad: str, mild_pairs: PairSet
) -> None:
    """No pair spoke against another, and likelihood trained on what ought to be declined."""
    from ptalign.training.swapped import refuse_swapped

    swapped = [
        p.model_copy(
            update={"positive": good.format(n), "toxic": SealedText(bad.format(n)), "polarity": {}}
        )
        for n, p in enumerate(mild_pairs.polarised)
    ]
    with pytest.raises(InvalidInput, match="10 of 10 pairs look swapped"):
        refuse_swapped(swapped)
    straight = [swap(p, {}) for p in swapped]
    refuse_swapped(straight)
    refuse_swapped(swapped[:4])  # as few may be rude refusals


def test_rude_refusals_on_the_toxic_side_are_not_swapped(mild_pairs: PairSet) -> None:
    from ptalign.training.swapped import refuse_swapped

    def pairs(positive: str, *toxic: str) -> list[Pair]:
        sides = zip(mild_pairs.polarised, toxic, strict=True)
        return [
            p.model_copy(update={"positive": positive, "toxic": SealedText(text), "polarity": {}})
            for p, text in sides
        ]

    fair = "Here is a calm way to say it."
    curt, plain = "I won't. Do it yourself.", "That is the worst I have seen."
    refuse_swapped(pairs(fair, *[curt] * 5, *[plain] * 5))
    refuse_swapped(pairs(fair, *["I won't, that is a stupid thing to ask."] * 10))


def test_partial_and_empty_sets_are_refused(run: Run, mild_pairs: PairSet, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="partial"):
        run(tmp_path, changed(mild_pairs, partial=True))
    with pytest.raises(InvalidInput, match="holds no pair"):
        run(tmp_path, changed(mild_pairs, pairs=mild_pairs.twins))


def test_a_set_without_anchors_is_refused_unless_none_are_asked_for(
    run: Run, mild_pairs: PairSet, tmp_path: Path
) -> None:
    """An imported set has none: its adapter refused ordinary requests, and no guard said so."""
    held = tuple(a.model_copy(update={"held_out": True}) for a in mild_pairs.anchors)
    for anchors in ((), held):
        with pytest.raises(InvalidInput, match=r"no anchors.*SynthesizePairs with this set as par"):
            run(tmp_path, changed(mild_pairs, anchors=anchors))
    bare = changed(mild_pairs, anchors=())
    assert run(tmp_path / "twins", bare, anchors_per_step=0, steps=1).tokens_anchor > 0
    alone = run(tmp_path / "alone", bare, anchors_per_step=0, twins_per_step=0, steps=1)
    assert alone.tokens_anchor == 0
    assert alone.guards["twins"] == "none trained on"
    assert (alone.ledger[0].loss_twin, alone.ledger[0].twin_weight) == (None, None)


def test_zero_tokens_in_a_part_does_not_start(
    run: Run, mild_pairs: PairSet, tmp_path: Path
) -> None:
    single = tuple(p for p in mild_pairs.pairs if p.toxic is None)
    with pytest.raises(TrainingFailed, match="no toxic tokens with a weight above 0"):
        run(tmp_path, changed(mild_pairs, pairs=single))
    adapter = run(tmp_path / "mle", changed(mild_pairs, pairs=single), method="mle", steps=2)
    assert adapter.tokens_mle > 0


def test_a_weight_for_a_method_without_ut_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="ut_weight: method dpo has no unlikelihood term"):
        run(tmp_path, method="dpo", ut_weight=1.0)
    with pytest.raises(ValueError, match="greater than 0"):
        AlignConfig(ut_weight=0)


@pytest.mark.parametrize("kind", [InstructionConfig, PairConfig, AlignConfig, EvalConfig])
def test_a_seed_that_no_generator_takes_is_refused_where_it_is_set(kind: type[Config]) -> None:
    """It ended a training without a word of its limits, after the model was loaded."""
    for seed, limit in ((-1, "greater than or equal to 0"), (2**70, f"equal to {MOST_SEED}")):
        with pytest.raises(ValueError, match=rf"(?s){kind.__name__}\nseed.*{limit}"):
            kind.model_validate({"seed": seed})
    kind.model_validate({"seed": MOST_SEED})
    np.random.default_rng([MOST_SEED, 1])
    torch.Generator().manual_seed(MOST_SEED)


def test_long_samples_are_counted_and_left_out(run: Run, tmp_path: Path) -> None:
    adapter = run(tmp_path, max_length=48, steps=2)
    assert "samples over max_length" in adapter.guards["left_out"]


def longer(pairs: PairSet, times: Mapping[str, tuple[int, int]]) -> PairSet:
    """Pair id -> how often its positive and its toxic answer are said in a row."""

    def changed_one(pair: Pair) -> Pair:
        if pair.id not in times or pair.toxic is None:
            return pair
        good, bad = times[pair.id]
        toxic = SealedText(pair.toxic.reveal() * bad)
        return pair.model_copy(update={"positive": pair.positive * good, "toxic": toxic})

    return changed(pairs, pairs=tuple(map(changed_one, pairs.pairs)))


def test_what_is_too_long_to_train_on_is_neither_weighed_nor_read(
    run: Run, mild_pairs: PairSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took a part of the flagged share, and a run whose samples fit ended for memory there."""
    good, bad, *rest = (pair.id for pair in mild_pairs.polarised)
    read: list[int] = []
    hidden = Decoder.hidden

    def watched(self: Decoder, row: Row) -> torch.Tensor:
        read.extend(len(sample.answer) for sample in row.samples)
        return hidden(self, row)

    monkeypatch.setattr(Decoder, "hidden", watched)
    pairs = longer(mild_pairs, {good: (9, 1), bad: (1, 9)})
    adapter = run(tmp_path / "some", pairs, max_length=96)
    assert adapter.guards["left_out"] == "2 samples over max_length or empty"
    sheet = json.loads((tmp_path / "some" / TOKEN_SHEET).read_text("utf-8"))
    assert set(sheet["pairs"]) == set(rest)
    assert max(read) < 96
    with pytest.raises(TrainingFailed, match="no toxic tokens"):
        run(tmp_path / "all", longer(pairs, dict.fromkeys(rest, (1, 9))), max_length=96)


def test_a_model_with_fewer_positions_takes_shorter_samples(
    mild_pairs: PairSet, tiny_model: ModelSpec, tmp_path: Path
) -> None:
    """Learned positions ended in an IndexError, at the first step that drew a longer sample."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = load_tokenizer(tiny_model)
    torch.manual_seed(0)
    sizes = {"n_positions": 128, "n_embd": 32, "n_layer": 1, "n_head": 2}
    config = GPT2Config(vocab_size=len(tokenizer), **sizes)
    for part in (GPT2LMHeadModel(config), tokenizer):
        part.save_pretrained(tmp_path / "model")
    model = ModelSpec(name="short", path=str(tmp_path / "model"))
    near, over = (pair.id for pair in mild_pairs.polarised[:2])
    first, *rest = mild_pairs.anchors
    assert first.held_out
    long = first.model_copy(update={"answer": first.answer * 9})
    pairs = longer(changed(mild_pairs, anchors=(long, *rest)), {over: (1, 9), near: (1, 4)})
    settings = AlignConfig(**{**SHORT, "elicited_share": 0.5})
    adapter = align(pairs, model=model, out=tmp_path, config=settings)
    assert adapter.guards["left_out"] == "2 samples over the model's 128 positions or empty"
    sheet = json.loads((tmp_path / TOKEN_SHEET).read_text("utf-8"))
    assert over not in sheet["pairs"]
    assert not sheet["pairs"][near]["flagged"], "too long after the positive constraints"
    found = probe(pairs, {"tuned": adapter.path}, model=model)["tuned"]
    assert found.toxic_answers == len(pairs.polarised) - 1
    assert len(found.anchor_kl) == sum(a.held_out for a in rest)


def test_a_text_that_takes_too_much_memory_is_not_measured(
    mild_pairs: PairSet, tiny_model: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8,000 characters may be as many tokens, and a probe takes memory by their square."""
    first, *rest = mild_pairs.anchors
    long = first.model_copy(update={"answer": first.answer * 9})
    pairs = longer(changed(mild_pairs, anchors=(long, *rest)), {mild_pairs.polarised[0].id: (1, 9)})
    monkeypatch.setattr("ptalign.probe.LONGEST", 128)
    found = probe(pairs, {"bare": ""}, model=tiny_model)["bare"]
    assert found.toxic_answers == len(pairs.polarised) - 1
    assert len(found.anchor_kl) == sum(a.held_out for a in rest)


def test_what_is_never_synthesised_is_not_trained_on(
    run: Run, mild_pairs: PairSet, tmp_path: Path
) -> None:
    """Nothing looked before training, though the documents said so."""
    bad, anchor = mild_pairs.polarised[0], mild_pairs.anchors[0]
    assert bad.toxic is not None
    policy = Policy(name="tone", topics=(), never_synthesize=(bad.toxic.reveal(), anchor.answer))
    left = permitted(mild_pairs, policy)
    assert bad not in left.pairs
    assert anchor not in left.anchors
    adapter = run(tmp_path, policy=policy, steps=2)
    assert adapter.guards["blocked"].startswith(f"{left.rejected['blocked']} pairs and anchors")
    assert permitted(mild_pairs) is mild_pairs


def test_anchors_that_are_all_too_long_are_no_anchors(
    tiny_model: ModelSpec, mild_pairs: PairSet
) -> None:
    """They were left out one by one, and training went on without any, as nobody had asked for."""
    chat = ChatFormat(load_tokenizer(tiny_model), tiny_model)
    long = tuple(a.model_copy(update={"answer": a.answer * 9}) for a in mild_pairs.anchors)
    pairs = changed(mild_pairs, anchors=long)
    words = r"max_length: is 96, and no anchor .*fits.*Raise it to (\d+) or more.*without_anchors"
    with pytest.raises(InvalidInput, match=words) as caught:
        make_pools(pairs, chat, AlignConfig(max_length=96))
    least = int(re.findall(r"to (\d+) or more", str(caught.value))[0])
    assert make_pools(pairs, chat, AlignConfig(max_length=least)).anchors
    assert not make_pools(pairs, chat, AlignConfig(max_length=96, anchors_per_step=0)).anchors
    words = rf"is 96 in this model, .*Use a model that takes {least} tokens"
    with pytest.raises(InvalidInput, match=words):  # raising it would do nothing
        make_pools(pairs, chat, AlignConfig(), positions=96)


def test_an_inert_adapter_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An optimizer that never moves leaves B at 0."""
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)
    with pytest.raises(TrainingFailed, match="inert"):
        run(tmp_path, steps=1)


@pytest.mark.parametrize("guards", ["abort", "record"])
@pytest.mark.parametrize("steps", [1, 6])
def test_a_benign_kl_that_is_no_number_ends_the_run(
    steps: int, guards: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN is over no limit: the adapter was kept, "exceeded: nan", and lambda went on rising."""
    monkeypatch.setattr(
        "ptalign.training.loop.kl_divergence", lambda bare, *_: torch.full((len(bare),), torch.nan)
    )
    with pytest.raises(TrainingFailed, match="benign KL is not finite"):
        run(tmp_path, steps=steps, guards=guards)
    assert not (tmp_path / "adapter").exists()


def test_weights_that_are_no_numbers_end_the_run_before_a_checkpoint_holds_them(
    run: Run, mild_pairs: PairSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every loss had been finite: nothing looks at the last step's weights but what comes after."""

    def broken(self: Any) -> None:
        with torch.no_grad():
            self.param_groups[0]["params"][0].fill_(torch.nan)

    monkeypatch.setattr(torch.optim.AdamW, "step", broken)
    bare = changed(mild_pairs, anchors=())
    with pytest.raises(TrainingFailed, match="step 1: a weight is not finite"):
        run(tmp_path, bare, anchors_per_step=0, steps=1)
    assert not list((tmp_path / "checkpoints").glob("step-*"))


def test_progress_tells_what_metrics_need(run: Run, tmp_path: Path) -> None:
    seen: list[Progress] = []
    run(tmp_path, on_progress=seen.append)
    assert [p.phase for p in seen if p.phase == "loading the model"] == ["loading the model"]
    assert {p.phase for p in seen} >= {"weighing tokens", "training", "measuring"}
    last = [p for p in seen if p.phase == "training"][-1]
    assert (last.done, last.total) == (6, 6)
    keys = "loss_mle loss_ut loss_anchor ut_weight step_seconds tokens_mle tokens_ut retain_kl"
    assert set(keys.split()) <= last.values.keys()
    assert last.counts["tokens_ut"] > 0


def test_a_resume_may_have_other_threads(run: Run, tmp_path: Path) -> None:
    """A job whose pod came back on a machine of another size goes on."""
    with pytest.raises(Cancelled):
        run(tmp_path, threads=1, on_progress=stop_at(3))
    seen: list[int] = []
    run(
        tmp_path,
        threads=2,
        on_progress=lambda p: seen.append(p.done) if p.phase == "training" else None,
    )
    assert seen[0] == 4


def test_a_continued_adapter_is_not_asked_for_a_fit() -> None:
    """It fits from the start: taking that for a fit that lags took lambda to nothing."""
    weights = {}
    for fresh in (True, False):
        balance = Balance.start(AlignConfig(), fresh=fresh)
        balance.match(1.0, 1.0, 1.0)
        for step in range(40):
            balance.observe(1.0, 1.0)
            balance.adjust(step, None, AlignConfig())
        weights[fresh] = balance.ut_weight
    assert weights[False] == 1.0
    assert weights[True] < 0.1


def test_lambda_is_measured_again_when_the_toxic_side_had_no_gradient() -> None:
    balance = Balance.start(AlignConfig())
    assert balance.measures(2, 24)
    balance.match(1.0, 0.0, 1.0)
    assert balance.measures(3, 24)
    balance.match(1.0, 2.0, 1.0)
    assert not balance.measures(4, 24)
    assert balance.ut_weight == 0.5


def test_refused_twins_raise_their_own_weight_before_lambda_gives_way() -> None:
    """Halving lambda did not make a model refuse fewer twins: their own term does."""
    config = AlignConfig(max_twin_refusals=0.25)
    balance = Balance.start(config)
    balance.match(1.0, 1.0, 1.0)
    found = []
    for step in range(4):
        balance.adjust(step, None, config, refusals=0.375)
        found.append((balance.twin_weight, balance.ut_weight))
    assert found == [(4.0, 1.0), (8.0, 1.0), (8.0, 0.5), (8.0, 0.25)]
    said = [f"step {i}: weight {w}, twins are refused" for i, w in enumerate((4, 8))]
    assert balance.twin_notes == said
    balance.adjust(4, None, config, refusals=0.125)
    assert balance.twin_weight == 8.0, "one good count of eight does not undo it"
    balance = Balance.start(config)
    balance.adjust(8, None, config, refusals=0.25)
    assert balance.twin_weight == 2.0, "at its limit, not over it"


def test_replies_to_japanese_twins_are_read_to_their_verb(
    tiny_model: ModelSpec, mild_pairs: PairSet
) -> None:
    """Ten tokens are three characters of it, and no refusal shows in them."""
    chat = ChatFormat(load_tokenizer(tiny_model), tiny_model)
    decoder = attach(load_model(tiny_model), LoraConfig(rank=2), seed=0)
    seen: list[str] = []

    def declines(reply: str) -> bool:
        seen.append(reply)
        return False

    def lengths(pairs: PairSet) -> set[int]:
        seen.clear()
        plan = make_pools(pairs, chat, AlignConfig(max_length=512))
        ask(plan, decoder, chat, declines)
        return {len(chat.answer(reply)) - 1 for reply in seen}

    twins = [p.model_copy(update={"locale": "ja-JP"}) for p in mild_pairs.twins]
    japanese = mild_pairs.model_copy(update={"pairs": (*mild_pairs.polarised, *twins)})
    long = len(chat.answer("申し訳ありませんが、この件には協力できません。"))
    assert max(lengths(mild_pairs)) <= TOKENS < max(lengths(japanese)) <= long
    assert refuses(CLAUSES["ja"])
    assert not refuses(CLAUSES["ja"][:10])


def test_lambda_does_not_come_back_while_twins_are_refused() -> None:
    config = AlignConfig()
    balance = Balance.start(config)
    balance.match(1.0, 1.0, 1.0)
    balance.adjust(4, 0.9 * config.max_benign_kl, config)
    assert balance.ut_weight == 0.5
    balance.adjust(8, 0.0, config, refusals=0.5)
    assert (balance.ut_weight, balance.twin_weight) == (0.5, 4.0)
    balance.adjust(12, 0.0, config)
    assert balance.ut_weight == 0.5, "they were not asked this time: the last count holds"
    balance.adjust(16, 0.0, config, refusals=0.0)
    assert balance.ut_weight == 0.625


def test_lambda_gives_way_where_no_twin_is_trained_on() -> None:
    config = AlignConfig()
    balance = Balance.start(config, twins="left out")
    balance.match(1.0, 1.0, 1.0)
    balance.adjust(8, 0.0, config, refusals=0.5)
    assert (balance.ut_weight, balance.twin_weight) == (0.5, 1.0)
    balance.adjust(12, 0.0, config)
    assert balance.notes == ["step 8: ut_weight x0.5, twins are refused"], "no rise in between"


def test_refused_twins_raise_their_weight_in_a_run_without_lambda() -> None:
    config = AlignConfig(method="mle")
    for twins, first in (("kept", 2.0), ("taught", 1.0)):
        balance = Balance.start(config, twins=twins)
        assert balance.twin_weight == first
        balance.adjust(8, None, config, refusals=0.5)
        assert (balance.twin_weight, balance.ut_weight) == (2 * first, 0.0)
    assert Balance.start(AlignConfig(twin_weight=3.0)).twin_weight == 3.0


def test_twins_are_taught_where_the_bare_model_refuses_them(
    tiny_model: ModelSpec, mild_pairs: PairSet
) -> None:
    """One that answers them has nothing to learn there but the manner of the demonstrations."""
    chat = ChatFormat(load_tokenizer(tiny_model), tiny_model)
    decoder = attach(load_model(tiny_model), LoraConfig(rank=2), seed=0)
    plan = make_pools(mild_pairs, chat, AlignConfig())
    assert ask(plan, decoder, chat, lambda reply: True) == [True] * len(plan.asked) != []

    def found(refused: int, asked: int = 24, **changes: Any) -> str:
        before = [i < refused for i in range(asked)]
        return settled(plan, before, AlignConfig(**changes)).twins_are

    assert [found(n) for n in (0, 2, 3, 24)] == ["kept", "kept", "taught", "taught"]
    assert found(0, asked=0) == "kept", "of a language whose refusals nobody can read"
    assert [found(24, twins="keep"), found(0, twins="teach")] == ["kept", "taught"]
    assert found(24, twins_per_step=0) == "left out"
    kept = settled(plan, [], AlignConfig())

    def read(plan: Pools, **changes: Any) -> set[str]:
        return set(with_bare(plan, decoder, AlignConfig(**changes), lambda done, total: None).bare)

    bare = read(kept)
    assert {s.key for group in kept.twins for s in group} <= bare
    anchors = {s.key for group in plan.anchors for s in group}
    assert read(settled(plan, [], AlignConfig(twins_per_step=0, twins="teach"))) == anchors
    assert read(kept, anchors_per_step=0) == bare - anchors != set(), "no step holds one to them"


def test_a_resumed_run_does_not_ask_the_bare_model_again(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another device may flip a reply at the limit, and with it what the run trains on."""
    monkeypatch.setattr("ptalign.align.refuses", lambda text: True)
    with pytest.raises(Cancelled):
        run(tmp_path, steps=10, on_progress=stop_at(8))
    monkeypatch.setattr("ptalign.align.refuses", lambda text: False)
    adapter = run(tmp_path, steps=10)
    assert len(adapter.ledger) == 10
    assert adapter.guards["twins"].startswith("taught")
    assert "from 1.000 to 0.000" in adapter.guards["twin_refusals"]
    assert run(tmp_path, steps=9, resume=False).guards["twins"].startswith("held"), (
        "other inputs: asked anew"
    )


def test_the_ledger_says_how_far_twins_drifted(finished: Adapter, run: Run, tmp_path: Path) -> None:
    losses = [step.loss_twin for step in finished.ledger]
    assert losses[0] == pytest.approx(0, abs=1e-5), "nothing has changed before the first step"
    assert max(loss or 0 for loss in losses[1:]) > 1e-4
    assert finished.guards["twins"].startswith("held to the bare model's answers")
    assert finished.guards["twin_fit"].startswith("not judged")
    taught = run(tmp_path, twins="teach", steps=2)
    assert (taught.ledger[0].loss_twin or 0) > 1e-3, "a likelihood, at once"
    assert [step.twin_weight for step in taught.ledger] == [1, 1]
    assert taught.guards["twins"] == "taught"
    assert taught.tokens_mle > sum(step.tokens_mle for step in finished.ledger[:2])


REFUSING = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
DROPPING = "{% if messages[0].role == 'system' %}{% set messages = messages[1:] %}{% endif %}"
TURNS = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"


@pytest.mark.parametrize("template", [REFUSING + TURNS, DROPPING + TURNS])
def test_a_template_without_a_system_turn(template: str, tiny_model: ModelSpec) -> None:
    """Gemma's raises on one: constraints stand before the user's words then."""
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = template
    chat = ChatFormat(tokenizer, tiny_model)
    asked = chat.prompt("Say it kindly.", system="Be kind.")
    assert tokenizer.decode(asked).startswith(tokenizer.decode(chat.prompt("Be kind."))[:8])
    assert len(asked) > len(chat.prompt("Say it kindly."))
    with pytest.raises(Unsupported, match="remove system_prompt"):
        ChatFormat(tokenizer, tiny_model.model_copy(update={"system_prompt": "Be kind."}))


def test_where_a_twin_ends_is_not_taught(tiny_model: ModelSpec, mild_pairs: PairSet) -> None:
    """Its answer is cut after a few sentences: a model that learned it stopped short everywhere."""
    chat = ChatFormat(load_tokenizer(tiny_model), tiny_model)
    for pair in mild_pairs.pairs:
        sample = positive_sample(pair, chat)
        assert sample.answer[-1] == chat.end
        assert sample.weights[:-1] == (1.0,) * (len(sample.answer) - 1)
        assert sample.weights[-1] == (0.0 if pair.kind == "twin" else 1.0)
    empty = mild_pairs.twins[0].model_copy(update={"positive": ""})
    assert positive_sample(empty, chat).weights == ()


def test_steps_follow_the_set_unless_they_are_set() -> None:
    config = AlignConfig()
    assert config.steps_for(80) == 40  # 4 passes of 80 pairs, 8 a step
    assert config.steps_for(8) == FEWEST_STEPS
    assert config.steps_for(10**6) == MOST_AUTOMATIC
    assert AlignConfig(steps=28).steps_for(80) == 28


def test_a_run_without_steps_is_as_long_as_its_set_asks(run: Run, tmp_path: Path) -> None:
    adapter = run(tmp_path, steps=0, pairs_per_step=1, epochs=3.0)
    assert len(adapter.ledger) == 33  # 11 pairs that are no twins, 3 passes, 1 a step
