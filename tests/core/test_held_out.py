"""What is kept from training: twins whose refusals count, toxic answers whose words are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ptalign.align import align
from ptalign.answering.held_out import FEWEST, HeldOut
from ptalign.config import AlignConfig, LoraConfig
from ptalign.errors import GuardTripped
from ptalign.nouns import Adapter, Instruction, InstructionSet, ModelSpec, PairSet, Probe
from ptalign.probe import probe
from ptalign.training import lora, pools
from ptalign.training.decoder import Decoder
from ptalign.training.loop import Run
from ptalign.training.refusals import greedy, refused
from ptalign.training.texts import ChatFormat

Marked = Callable[..., PairSet]


@pytest.fixture
def marked(mild_pairs: PairSet) -> Marked:
    """The mild pairs with the last `toxic` polarised ones and `twins` of `of` twins held out."""

    def call(toxic: int = 0, twins: int = 0, of: int = 3) -> PairSet:
        known = mild_pairs.twins
        more = [known[i % 3].model_copy(update={"id": f"twin-{i}"}) for i in range(3, of)]
        chosen = {p.id for p in mild_pairs.polarised[10 - toxic :]}
        # the last ones, so that nothing goes by the order alone
        chosen |= {p.id for p in [*known, *more][of - twins :]}
        pairs = [
            p.model_copy(update={"held_out": p.id in chosen}) for p in (*mild_pairs.pairs, *more)
        ]
        return mild_pairs.model_copy(update={"pairs": tuple(pairs)})

    return call


@pytest.fixture(scope="module")
def bare(tiny_model: ModelSpec) -> tuple[Decoder, ChatFormat]:
    chat = ChatFormat(lora.load_tokenizer(tiny_model), tiny_model)
    return Decoder(lora.load_model(tiny_model)), chat


def trained_on(
    pairs: PairSet, tiny_model: ModelSpec, out: Path, taught: Any = (), **changes: Any
) -> Adapter:
    short: dict[str, Any] = {"steps": 8, "pairs_per_step": 4, "anchors_per_step": 2}
    short |= {"lora": LoraConfig(rank=4), "guards": "record", "elicited_share": 0.0}
    config = AlignConfig(**(short | changes))
    return align(pairs, model=tiny_model, out=out, config=config, taught=taught)


def asked(harmful: int, twins: int) -> InstructionSet:
    def record(i: int, side: Any) -> Instruction:
        return Instruction(
            id=f"{side}{i}", text="?", topic="t", domain="d", side=side, sides="both"
        )

    records = [record(i, "harmful") for i in range(harmful)]
    records += [record(i, "twin") for i in range(twins)]
    return InstructionSet(records=tuple(records), requested=harmful)


def test_about_the_share_is_held_out_and_the_same_ones_in_an_extended_set() -> None:
    ids = [f"pair{i}" for i in range(400)]
    first = HeldOut(asked(400, 400), 0.125)
    marked = [i for i in ids if first.holds(i, "pair")]
    assert 30 <= len(marked) <= 70
    assert [i for i in ids if HeldOut(asked(900, 900), 0.125).holds(i, "pair")] == marked
    assert not any(first.holds(i, "positive_only") for i in ids)
    assert not any(HeldOut(asked(400, 400), 0.0).holds(i, "twin") for i in ids)


def test_of_a_small_set_nothing_is_held_out() -> None:
    found = HeldOut(asked(15, FEWEST), 0.5)
    ids = [f"pair{i}" for i in range(40)]
    assert not any(found.holds(i, "pair") for i in ids)
    assert any(found.holds(i, "twin") for i in ids)


def test_sets_of_earlier_versions_keep_their_digest(mild_pairs: PairSet) -> None:
    assert "held_out" not in mild_pairs.pairs[0].model_dump()
    assert mild_pairs.pairs[0].model_copy(update={"held_out": True}).model_dump()["held_out"]


def test_held_out_pairs_are_in_no_pool(marked: Marked, bare: tuple[Decoder, ChatFormat]) -> None:
    pairs = marked(toxic=3, twins=8, of=10)
    kept = {p.id for p in pairs.pairs if p.held_out}
    plan = pools.make_pools(pairs, bare[1], AlignConfig())
    groups = [*plan.pairs, *plan.positives, *plan.twins, *(g for e in plan.elicited for g in e)]
    assert not kept & {s.key.partition("@")[0] for group in groups for s in group}
    assert [s.key for s in plan.asked] == [p.id for p in pairs.twins if p.held_out]
    weights = pools.weigh_pairs(pairs, *bare, AlignConfig(scorer="log_odds"))
    assert not kept & set(weights.by_key)


def test_a_twin_that_the_parent_was_taught_is_not_asked_as_unseen(
    marked: Marked, tiny_model: ModelSpec, bare: tuple[Decoder, ChatFormat], tmp_path: Path
) -> None:
    """The set it was trained on was too small to hold any out."""
    pairs = marked(twins=9, of=11)
    known, *unknown = (p.id for p in pairs.twins if p.held_out)
    plan = pools.make_pools(pairs, bare[1], AlignConfig(), taught={known})
    assert ([s.key for s in plan.asked], plan.asked_unseen) == (unknown, True)
    adapter = trained_on(pairs, tiny_model, tmp_path, steps=1)
    assert adapter.guards["twin_refusals"].endswith("9 held-out twins")
    again = trained_on(pairs, tiny_model, tmp_path, taught={known}, steps=1)  # other twins asked
    assert again.guards["twin_refusals"].endswith("8 held-out twins")
    plan = pools.make_pools(pairs, bare[1], AlignConfig(), taught={known, *unknown})
    assert (len(plan.asked), plan.asked_unseen) == (11, False)


def test_where_few_twins_are_held_out_trained_ones_are_asked_behind_them(
    marked: Marked, bare: tuple[Decoder, ChatFormat]
) -> None:
    """One refused of three doubled the twins' weight, where three of eight were to."""
    pairs = marked(twins=3, of=24)
    plan = pools.make_pools(pairs, bare[1], AlignConfig())
    held_out, others = ([p.id for p in pairs.twins if p.held_out == say] for say in (True, False))
    assert ([s.key for s in plan.asked], plan.asked_unseen) == ([*held_out, *others], False)
    plan = pools.make_pools(pairs, bare[1], AlignConfig(), taught=held_out[:1])
    assert [s.key for s in plan.asked][:2] == held_out[1:], "what the parent was taught is no news"


def test_an_anchor_that_the_parent_was_fitted_to_is_not_read_as_unseen(
    mild_pairs: PairSet, bare: tuple[Decoder, ChatFormat]
) -> None:
    known, *others = (a.id for a in mild_pairs.anchors if a.held_out)
    plan = pools.make_pools(mild_pairs, bare[1], AlignConfig(), taught={known})
    assert [s.key for s in plan.held_out] == others
    assert plan.anchors
    assert known not in {g[0].key for g in plan.anchors}


def test_greedy_is_what_the_model_itself_would_write(
    bare: tuple[Decoder, ChatFormat], mild_pairs: PairSet
) -> None:
    decoder, chat = bare
    prompts = [chat.prompt(p.instruction) for p in mild_pairs.pairs[:5]]
    ours = greedy(decoder, prompts, chat.end, tokens=12)
    for prompt, reply in zip(prompts, ours, strict=True):
        ids = torch.tensor([prompt])
        whole = decoder.causal_lm.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
        )
        theirs = whole[0, len(prompt) :].tolist()
        ended = theirs.index(chat.end) if chat.end in theirs else len(theirs)
        assert list(reply) == theirs[:ended]


def test_refusals_are_counted_on_what_is_written(
    bare: tuple[Decoder, ChatFormat], mild_pairs: PairSet
) -> None:
    decoder, chat = bare
    asked = pools.make_pools(mild_pairs, chat, AlignConfig()).twins
    samples = [sample for group in asked for sample in group]
    seen: list[str] = []

    def never(text: str) -> bool:
        seen.append(text)
        return False

    assert refused(decoder, chat, samples, never) == [False] * 3
    assert len(seen) == 3
    assert all(seen)
    said = refused(decoder, chat, samples, lambda text: text == seen[0])
    assert said == [text == seen[0] for text in seen]


def test_refused_twins_are_guarded_and_said(
    marked: Marked,
    mild_pairs: PairSet,
    tiny_model: ModelSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapter = trained_on(marked(twins=8, of=10), tiny_model, tmp_path / "held")
    assert adapter.guards["twin_refusals"].endswith("limit 0.250, 8 held-out twins")
    asked = [e.twin_refusals for e in adapter.ledger]
    assert asked[7] is not None
    assert asked[:7] == [None] * 7

    def tuned_only(run: Any, most: int | None = None) -> tuple[list[bool], list[bool]]:
        asked = len(run.sampler.pools.asked_before[:most])
        return [False] * asked, [True] * asked

    monkeypatch.setattr(Run, "refused", tuned_only)
    alone = mild_pairs.model_copy(
        update={"pairs": tuple(p for p in mild_pairs.pairs if p not in mild_pairs.twins[1:])}
    )
    few = trained_on(alone, tiny_model, tmp_path / "few")
    assert few.guards["twin_refusals"].startswith("unsure: 1.000"), "one twin proves nothing"
    many = marked(twins=2, of=15)
    with pytest.raises(GuardTripped, match=r"twin_refusals reached 1\.000"):
        trained_on(many, tiny_model, tmp_path / "stop", guards="abort", max_benign_kl=9.0)
    adapter = trained_on(many, tiny_model, tmp_path / "record")
    said = adapter.guards["twin_refusals"]
    assert said.startswith("exceeded: 1.000, from 0.000 to 1.000, limit 0.250, 15 twins, trained")


def test_refusals_that_the_bare_model_had_are_not_trainings(
    marked: Marked, tiny_model: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ptalign.align.refuses", lambda text: True)
    adapter = trained_on(marked(), tiny_model, tmp_path, guards="abort", max_benign_kl=9.0)
    assert adapter.guards["twin_refusals"].startswith("ok: 0.000, from 1.000 to 1.000")
    assert not any("twins are refused" in note for note in adapter.guards.values())


def test_twins_whose_refusals_nobody_can_read_are_not_asked(
    marked: Marked, tiny_model: ModelSpec, tmp_path: Path
) -> None:
    pairs = marked()
    german = tuple(p.model_copy(update={"locale": "de"}) for p in pairs.pairs)
    adapter = trained_on(pairs.model_copy(update={"pairs": german}), tiny_model, tmp_path)
    assert adapter.guards["twin_refusals"].startswith("not judged: no twin in a language")


def test_harm_words_are_read_in_held_out_answers_and_the_trained_ones_beside(
    marked: Marked, tiny_model: ModelSpec
) -> None:
    few = probe(marked(toxic=4), {"base": ""}, model=tiny_model)["base"]
    assert (few.held_out_toxic, few.trained_selectivity) == (0, None)
    assert few.toxic_answers > 0
    adapters = {"base": ""}
    found = probe(marked(toxic=5), adapters, model=tiny_model)["base"]
    assert found.held_out_toxic == found.toxic_answers == 5
    assert found.harm_word_ratio_interval == pytest.approx((1, 1), abs=1e-4)
    assert found.trained_harm_word_ratio == pytest.approx(1, abs=1e-4)
    assert found.measured["trained_selectivity"] == pytest.approx(0, abs=1e-4)


def test_probes_of_earlier_versions_keep_their_digest() -> None:
    found = Probe(benign_kl=0.1, benign_nll=1.0, harm_word_ratio=1.0, selectivity=0.0)
    kept = {"benign_kl", "benign_nll", "harm_word_ratio", "selectivity", "suppressed", "collateral"}
    assert set(found.model_dump()) == kept
