"""Eliciting contexts: which samples they make, and that the evaluation's attacks stay unseen."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import yaml

import ptalign.suites
from ptalign.config import AlignConfig, Method
from ptalign.nouns import Anchor, ModelSpec, PairSet
from ptalign.sealed import SealedText
from ptalign.training import elicit
from ptalign.training.batches import Pools, Sampler
from ptalign.training.lora import load_tokenizer
from ptalign.training.pools import make_pools, with_weights
from ptalign.training.texts import OPENING, ChatFormat, Sample, anchor_sample


def group(key: str) -> tuple[Sample, ...]:
    return tuple(Sample(key, part, (1, 2), (3,), (1.0,)) for part in ("positive", "toxic"))


PLAIN = [group(f"p{i}") for i in range(6)]
POOLS = Pools(PLAIN, elicited=[[group(f"p{i}@{k}") for i in range(6)] for k in range(2)])


def keys(sampler: Sampler, step: int) -> list[str]:
    return [samples[0].key for samples in sampler.step(step)]


def test_half_of_a_step_comes_after_one_context_and_epochs_stay_whole() -> None:
    sampler = Sampler(POOLS, 4, 0, 0, seed=3, elicited_share=0.5)
    seen: list[str] = []
    for step in range(3):
        drawn = keys(sampler, step)
        after = [key.partition("@")[2] for key in drawn if "@" in key]
        assert after == [str(step % 2)] * 2
        seen += [key.partition("@")[0] for key in drawn]
    assert sorted(seen) == sorted([f"p{i}" for i in range(6)] * 2)


@pytest.mark.parametrize("count", [1, 3, 4])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 1.0])
def test_the_share_is_kept_over_steps_whatever_a_step_takes(count: int, share: float) -> None:
    """It was rounded in each step: of one pair a step none was elicited, of three two were."""
    sampler = Sampler(POOLS, count, 0, 0, seed=3, elicited_share=share)
    moved = [[k.partition("@")[2] for k in keys(sampler, n) if "@" in k] for n in range(100)]
    assert sum(map(len, moved)) == round(100 * count * share)
    exact = count * share
    assert {len(step) for step in moved} <= {math.floor(exact), math.ceil(exact)}
    contexts = [set(step) for step in moved if step]
    assert contexts == [{str(n % 2)} for n in range(len(contexts))], "each in turn"
    assert moved[0], "lambda is matched in the first steps"


def test_an_even_share_is_drawn_as_it_always_was() -> None:
    """What an earlier version began goes on with the same samples."""
    groups = [group(f"p{i}") for i in range(20)]
    pools = Pools(groups, elicited=[[group(f"p{i}@{k}") for i in range(20)] for k in range(4)])
    sampler = Sampler(pools, 8, 0, 0, seed=3, elicited_share=0.5)
    bare = Sampler(Pools(groups), 8, 0, 0, seed=3)
    for step in range(40):
        drawn = keys(bare, step)
        assert keys(sampler, step) == [*drawn[4:], *(f"{key}@{step % 4}" for key in drawn[:4])]


def test_without_a_share_nothing_changes() -> None:
    bare = Sampler(Pools(PLAIN), 4, 0, 0, seed=3)
    assert keys(Sampler(POOLS, 4, 0, 0, seed=3), 1) == keys(bare, 1)


def words(text: str, run: int) -> set[tuple[str, ...]]:
    found = re.findall(r"\w+", text.lower())
    return set(zip(*(found[i:] for i in range(run)), strict=False))


@pytest.mark.parametrize("locale", ["en", "ja"])
def test_no_persona_of_training_is_one_that_measures(locale: str) -> None:
    file = Path(ptalign.suites.__file__).parent / "data" / "attacks.yaml"
    attacks = yaml.safe_load(file.read_text("utf-8"))["attacks"]
    measured = {run for attack in attacks for run in words(attack["persona"], 4)}
    personas = elicit._personas(locale)
    assert len(personas) >= 4
    for persona in personas:
        assert not words(persona, 4) & measured, persona


def test_a_pair_that_a_context_shows_is_never_trained_after_it(
    mild_pairs: PairSet, tiny_model: ModelSpec
) -> None:
    chat = ChatFormat(load_tokenizer(tiny_model), tiny_model)
    config = AlignConfig()
    pools = make_pools(mild_pairs, chat, config)
    plain = {samples[0].key: samples for samples in pools.pairs}
    drawn = elicit.contexts(list(mild_pairs.polarised), "en", config.seed)
    assert len(pools.elicited) == len(drawn) > 0
    for number, (context, groups) in enumerate(zip(drawn, pools.elicited, strict=True)):
        shown = {pair.id for pair in context.demonstrations}
        assert len(shown) == elicit.TURNS
        for samples in groups:
            name, _, place = samples[0].key.partition("@")
            assert (place == "") == (name in shown)
            assert place in ("", str(number))
            if place:
                assert len(samples[0].prompt) > len(plain[name][0].prompt)
                assert [s.answer for s in samples] == [s.answer for s in plain[name]]
                assert samples[0].prompt == samples[1].prompt


@pytest.mark.parametrize("method", ["pt_align", "mle"])
def test_what_is_too_long_to_train_on_demonstrates_nothing(
    method: Method, mild_pairs: PairSet, tiny_model: ModelSpec
) -> None:
    """Its answer filled the context that it stood in, so that no pair was trained after it."""
    chat = ChatFormat(load_tokenizer(tiny_model), tiny_model)
    bad, good, *rest = mild_pairs.polarised
    assert bad.toxic is not None
    others = [p for p in mild_pairs.pairs if p not in (bad, good)]
    bad = bad.model_copy(update={"toxic": SealedText(bad.toxic.reveal() * 40)})
    good = good.model_copy(update={"positive": good.positive * 40})
    pairs = mild_pairs.model_copy(update={"pairs": (bad, good, *others)})
    config = AlignConfig(method=method, max_length=400)
    pools = make_pools(pairs, chat, config)
    assert pools.left_out == (1 if method == "mle" else 2)
    keys = [samples[0].key for samples in pools.pairs]
    assert keys == [bad.id, *(p.id for p in rest)], "its positive is trained on"
    drawn = elicit.contexts(rest, "en", config.seed)
    assert len(pools.elicited) == len(drawn) > 0
    for number, (context, groups) in enumerate(zip(drawn, pools.elicited, strict=True)):
        shown = {pair.id for pair in context.demonstrations}
        moved = [key if key in shown else f"{key}@{number}" for key in keys]
        assert [samples[0].key for samples in groups] == moved
        after = context.prompt(bad.instruction, chat)
        assert groups[0][0].prompt == after


def test_weights_and_references_reach_the_moved_samples(
    mild_pairs: PairSet, tiny_model: ModelSpec
) -> None:
    chat = ChatFormat(load_tokenizer(tiny_model), tiny_model)
    pools = make_pools(mild_pairs, chat, AlignConfig())
    toxic = [s for samples in pools.pairs for s in samples if s.part == "toxic"]
    weights = {s.key: (0.5,) * len(s.answer) for s in toxic}
    weighed = with_weights(pools, weights, "pt_align")
    for groups in weighed.elicited:
        for samples in groups:
            assert all(set(s.weights) == {0.5} for s in samples if s.part == "toxic")


def test_an_anchor_that_was_cut_weighs_nothing_on_its_end(tiny_model: ModelSpec) -> None:
    chat = ChatFormat(load_tokenizer(tiny_model), tiny_model)
    whole = Anchor(id="a", instruction="How?", answer="First rinse it. Then")
    ended = anchor_sample(whole, chat)
    cut = anchor_sample(whole.model_copy(update={"ended": False}), chat)
    assert cut.answer == ended.answer
    assert set(ended.weights) == {1.0}
    assert cut.weights == (*ended.weights[:-1], 0.0)


def test_first_words_of_trained_anchors_weigh_more_and_benign_kl_is_read_evenly(
    tiny_model: ModelSpec, mild_pairs: PairSet
) -> None:
    chat = ChatFormat(load_tokenizer(tiny_model), tiny_model)
    first, *rest = mild_pairs.anchors
    pairs = mild_pairs.model_copy(
        update={"anchors": (first.model_copy(update={"held_out": True}), *rest)}
    )
    plan = make_pools(pairs, chat, AlignConfig(opening_weight=3))
    assert plan.anchors
    for (anchor,) in plan.anchors:
        assert anchor.weights[:OPENING] == (3.0,) * OPENING
        assert set(anchor.weights[OPENING:-1]) == {1.0}
    assert all(set(sample.weights[:-1]) == {1.0} for sample in plan.held_out)
    assert any(sample.key == first.id for sample in plan.held_out)
    short = first.model_copy(update={"answer": "No.", "ended": False})
    assert anchor_sample(short, chat, 3).weights[-1] == 0.0, "a cut end still weighs nothing"
