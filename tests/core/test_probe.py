"""Probe: numbers against plain forward passes, and what it refuses."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ptalign.config import LoraConfig
from ptalign.errors import Cancelled, Unsupported
from ptalign.nouns import Anchor, ModelSpec, PairSet, Probe
from ptalign.probe import benign_samples, probe
from ptalign.progress import Progress
from ptalign.training import explain, lora, pools
from ptalign.training.decoder import Decoder
from ptalign.training.explain import Word
from ptalign.training.served import replies
from ptalign.training.texts import ChatFormat, anchor_sample


def random_adapter(model: ModelSpec, folder: Path, size: float) -> Path:
    decoder = lora.attach(lora.load_model(model), LoraConfig(rank=4), seed=3)
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in lora.trainable(decoder).values():
            parameter.add_(torch.randn_like(parameter) * size)
    lora.save_adapter(decoder, folder)
    return folder


@pytest.fixture(scope="module")
def adapter(tiny_model: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It changes everything a little."""
    return random_adapter(tiny_model, tmp_path_factory.mktemp("probe") / "adapter", 0.02)


def test_kl_and_nll_equal_plain_forward_passes(
    adapter: Path, tiny_model: ModelSpec, mild_pairs: PairSet
) -> None:
    from peft import PeftModel

    found = probe(mild_pairs, {"base": "", "tuned": adapter}, model=tiny_model)
    chat = ChatFormat(lora.load_tokenizer(tiny_model), tiny_model)
    base = lora.load_model(tiny_model)
    tuned = PeftModel.from_pretrained(lora.load_model(tiny_model), str(adapter))
    kl = nll = 0.0
    tokens, by_anchor = 0, []
    for sample in benign_samples(mild_pairs, chat):
        ids = torch.tensor([sample.prompt + sample.answer])
        rows = slice(len(sample.prompt) - 1, sample.length - 1)
        with torch.no_grad():
            p = base(ids).logits[0, rows].log_softmax(-1)
            q = tuned(ids).logits[0, rows].log_softmax(-1)
        nats = (p.exp() * (p - q)).sum(dim=-1)
        by_anchor.append(float(nats.mean()))
        kl += float(nats.sum())
        nll -= float(q[torch.arange(len(q)), torch.tensor(sample.answer)].sum())
        tokens += len(q)
    assert tokens == sum(len(s.answer) for s in benign_samples(mild_pairs, chat))
    assert found["tuned"].benign_kl == pytest.approx(kl / tokens, rel=1e-3)
    assert found["tuned"].benign_nll == pytest.approx(nll / tokens, rel=1e-4)
    assert sorted(found["tuned"].anchor_kl) == pytest.approx(sorted(by_anchor), rel=1e-3)
    low, high = found["tuned"].benign_kl_interval
    assert low < found["tuned"].benign_kl < high
    assert (low, high) == pytest.approx((min(by_anchor), max(by_anchor)), rel=1e-3)  # of two
    assert found["base"].benign_kl == pytest.approx(0, abs=1e-6)
    assert found["base"].selectivity == pytest.approx(0, abs=1e-5)


def test_an_engines_replies_are_told_from_the_bare_models(
    tmp_path: Path, tiny_model: ModelSpec, mild_pairs: PairSet
) -> None:
    """The engine here is transformers' own greedy search, with the adapter and without it."""
    from peft import PeftModel

    adapter = random_adapter(tiny_model, tmp_path / "adapter", 0.1)
    chat = ChatFormat(lora.load_tokenizer(tiny_model), tiny_model)
    base = lora.load_model(tiny_model)
    requests = [pair.instruction for pair in mild_pairs.pairs]

    def wrote(causal_lm: torch.nn.Module) -> list[tuple[str, str]]:
        found = []
        for request in requests:
            prompt = chat.prompt(request)
            asked = torch.tensor([prompt])
            ids = causal_lm.generate(
                asked, attention_mask=torch.ones_like(asked), max_new_tokens=40, do_sample=False
            )
            reply = tuple(ids[0, len(prompt) :].tolist())
            texts = [chat.text(reply[:count]) for count in range(len(reply), 0, -1)]
            # nonsense, as a tiny model writes it, is often spelt in other tokens when read again
            again = [
                text
                for text in texts
                if chat.answer(text)[:-1] == reply[: len(chat.answer(text)) - 1]
            ]
            found += [(request, again[0])] if again else []
        return found

    plain = wrote(base)
    tuned = wrote(PeftModel.from_pretrained(base, str(adapter)).eval())

    def read(for_base: list[tuple[str, str]], for_tuned: list[tuple[str, str]]) -> list[Probe]:
        answers = {"base": for_base, "tuned": for_tuned}
        found = probe(mild_pairs, {"base": "", "tuned": adapter}, answers, model=tiny_model)
        return [found["base"], found["tuned"]]

    for served in read(plain, tuned):
        assert served.engine_tokens > 100
        assert (served.engine_agreement or 0) > 0.95
        assert served.engine_own > 10 * max(1, served.engine_other)
    for mixed_up in read(tuned, plain):
        assert (mixed_up.engine_agreement or 1) < 0.9
        assert mixed_up.engine_other > 10 * max(1, mixed_up.engine_own)
    unread = probe(mild_pairs, {"tuned": adapter}, model=tiny_model)["tuned"]
    assert "engine_tokens" not in unread.model_dump(), "digests of earlier versions hold"


def test_a_request_that_is_too_long_is_not_read(tiny_model: ModelSpec) -> None:
    """A suite of an operator's may bring whole documents, and a row takes memory by its square."""
    chat = ChatFormat(lora.load_tokenizer(tiny_model), tiny_model)
    answers = [("word " * 3000, "Yes."), ("word", "Yes."), ("word", "")]
    assert [sample.key for sample in replies(answers, chat)] == ["1"]


def test_further_answers_to_a_request_do_not_narrow_the_interval(
    adapter: Path, tiny_model: ModelSpec, mild_pairs: PairSet
) -> None:
    """Anchors were drawn one by one, though 64 of them may answer 24 requests."""

    def probed(anchors: list[Anchor]) -> Probe:
        pairs = mild_pairs.model_copy(update={"anchors": tuple(anchors)})
        return probe(pairs, {"tuned": adapter}, model=tiny_model)["tuned"]

    held_out = [a for a in mild_pairs.anchors if a.held_out]
    again = [
        a.model_copy(update={"id": f"{a.id}/{take}"}) for a in held_out for take in range(1, 9)
    ]
    once, often = probed(held_out), probed([*held_out, *again])
    assert len(often.anchor_kl) == 9 * len(held_out)
    assert often.anchor_instructions == once.anchor_instructions == len(held_out)
    assert often.benign_kl_interval == pytest.approx(once.benign_kl_interval, rel=1e-3)
    assert probed([held_out[0], *again[:8]]).benign_kl_interval is None


def test_held_out_anchors_are_what_benign_means(tiny_model: ModelSpec, mild_pairs: PairSet) -> None:
    chat = ChatFormat(lora.load_tokenizer(tiny_model), tiny_model)
    keys = {s.key for s in benign_samples(mild_pairs, chat)}
    assert keys == {a.id for a in mild_pairs.anchors if a.held_out}


def test_all_held_out_anchors_are_read_up_to_a_bound(
    tiny_model: ModelSpec, mild_pairs: PairSet
) -> None:
    chat = ChatFormat(lora.load_tokenizer(tiny_model), tiny_model)
    one = mild_pairs.anchors[0]
    for held_out, read in ((40, 40), (100, 64)):
        anchors = tuple(
            one.model_copy(update={"id": str(i), "held_out": True}) for i in range(held_out)
        )
        pairs = mild_pairs.model_copy(update={"anchors": anchors})
        assert len(benign_samples(pairs, chat)) == read


def test_harm_words_are_the_same_for_every_adapter(
    tiny_model: ModelSpec, mild_pairs: PairSet
) -> None:
    chat = ChatFormat(lora.load_tokenizer(tiny_model), tiny_model)
    flagged = pools.harm_words(mild_pairs, chat)
    assert set(flagged) == {p.id for p in mild_pairs.polarised}
    assert any(any(w) for w in flagged.values())


def test_ratio_and_selectivity_by_hand() -> None:
    """Harm words p 0.4 -> 0.1 and 0.2 -> 0.2; others lose ln 2 and nothing.

    Ratio (0.1 + 0.2) / (0.4 + 0.2) = 1/2. Selectivity: mean(-ln 4, 0) - mean(-ln 2, 0)
    = -ln 2 + ln 2 / 2 = -ln 2 / 2.
    """
    before = [0.4, 0.2, 0.5, 0.5]
    after = [math.log(p) for p in (0.1, 0.2, 0.25, 0.5)]
    harm = [True, True, False, False]
    words = [Word("w", "t", h, math.log(b)) for h, b in zip(harm, before, strict=True)]
    assert explain.harm_ratio(words, after) == pytest.approx(0.5)
    assert explain.selectivity(words, after) == pytest.approx(-math.log(2) / 2)


def test_the_interval_of_the_ratio_takes_whole_answers() -> None:
    """Two answers keep 1/4 and 3/4 of p; the words of one answer are no sample of answers."""
    kept = {"a": 0.25, "b": 0.75}
    words = [Word("w", "t", True, math.log(0.4), text=text) for text in "aab"]
    after = [w.before + math.log(kept[w.text]) for w in words]
    assert explain.harm_ratio_interval(words, after) == pytest.approx((0.25, 0.75))
    assert explain.harm_ratio_interval(words[:2], after[:2]) is None


def test_what_a_set_cannot_show_is_not_measured(
    adapter: Path, tiny_model: ModelSpec, mild_pairs: PairSet
) -> None:
    """A set of positive answers alone said 1.00 x and 0.00, as if harm words had been read."""
    good = tuple(p.model_copy(update={"toxic": None}) for p in mild_pairs.pairs)
    alone = mild_pairs.model_copy(update={"pairs": good, "anchors": ()})
    found = probe(alone, {"tuned": adapter}, model=tiny_model)["tuned"]
    assert found.measured == {}
    assert found.harm_word_ratio_interval is None
    assert found.collateral is None
    with_anchors = mild_pairs.model_copy(update={"pairs": good})
    found = probe(with_anchors, {"tuned": adapter}, model=tiny_model)["tuned"]
    assert set(found.measured) == {"benign_kl", "benign_nll"}
    assert found.collateral is not None


def test_collateral_needs_two_sightings_and_half_a_nat() -> None:
    """tea loses 0.6 and 0.8 (mean 0.7), milk 0.2 twice, cup 2.0 but once; harm words never."""
    rows = [("tea", -0.6), ("tea", -0.8), ("milk", -0.2), ("milk", -0.2), ("cup", -2.0)]
    words = [Word(w, "", False, -1.0) for w, _ in rows] + [Word("bad", "", True, -1.0)] * 2
    after = [-1.0 + change for _, change in rows] + [-9.0, -9.0]
    assert explain.collateral(words, after) == {"tea": pytest.approx(-0.7)}


def test_suppressed_words_keep_topic_count_and_geometric_means() -> None:
    """p 0.4 and 0.1 -> 0.2 and 0.05: sqrt(0.04) = 0.2 before, sqrt(0.01) = 0.1 after."""
    words = [Word("w", "t", True, math.log(0.4)), Word("w", "t", True, math.log(0.1))]
    (found,) = explain.suppressed(words, [math.log(0.2), math.log(0.05)])
    assert (found.token.reveal(), found.topic, found.count) == ("w", "t", 2)
    assert (found.p_before, found.p_after) == (pytest.approx(0.2), pytest.approx(0.1))


def test_no_topic_takes_the_places_of_another_nor_is_collateral_cut() -> None:
    """The first 40 of all topics were one topic's where its words lost most."""
    many = 70
    words = [Word(f"a{i}", "loud", True, -0.1) for i in range(many)]
    words += [Word("b", "quiet", True, -0.1)]
    found = explain.suppressed(words, [-5.0] * many + [-0.2])
    assert Counter(s.topic for s in found) == {"loud": many, "quiet": 1}
    seen = [Word(f"c{i}", "", False, -1.0) for i in range(many)] * 2
    assert len(explain.collateral(seen, [-2.0] * len(seen))) == many


def test_probe_can_be_cancelled_and_refuses_pickles(
    adapter: Path, tiny_model: ModelSpec, mild_pairs: PairSet, tmp_path: Path
) -> None:
    def stop(_: Progress) -> None:
        raise Cancelled("asked to stop")

    with pytest.raises(Cancelled):
        probe(mild_pairs, {"tuned": adapter}, model=tiny_model, on_progress=stop)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "weights.pt").write_bytes(b"")
    with pytest.raises(Unsupported, match=r"weights\.pt"):
        probe(mild_pairs, {"bad": tmp_path}, model=tiny_model)


def test_suppressed_words_are_looked_up_in_neutral_answers(
    adapter: Path, tiny_model: ModelSpec, mild_pairs: PairSet
) -> None:
    from peft import PeftModel

    chat = ChatFormat(lora.load_tokenizer(tiny_model), tiny_model)
    tuned = PeftModel.from_pretrained(lora.load_model(tiny_model), str(adapter)).eval()
    decoder = Decoder(tuned.get_base_model(), tuned)
    neutral = [anchor_sample(a, chat) for a in mild_pairs.anchors[:3]]
    words = [Word("w", "t", True, -0.1, 7), Word("v", "t", True, -0.1, 9)]
    found = explain.suppressed(words, [-1.0, -1.0])
    by_word = {s.token.reveal(): s for s in explain.beside_neutral(found, words, decoder, neutral)}
    for word, token in (("w", 7), ("v", 9)):
        for bare, value in (
            (True, by_word[word].neutral_before),
            (False, by_word[word].neutral_after),
        ):
            places = []
            for sample in neutral:
                ids = torch.tensor([[*sample.prompt, *sample.answer]])
                with torch.no_grad(), tuned.disable_adapter() if bare else nullcontext():
                    shares = tuned(ids).logits[0].softmax(-1)
                start = len(sample.prompt) - 1
                places += [
                    float(shares[start + i, token]) for i, w in enumerate(sample.weights) if w
                ]
            assert value == pytest.approx(sum(places) / len(places), rel=1e-3)
    assert explain.beside_neutral(found, words, decoder, []) == found
    words[1] = replace(words[1], whole=False)  # its token begins other words too
    some = {s.token.reveal(): s for s in explain.beside_neutral(found, words, decoder, neutral)}
    assert some["w"].neutral_before == pytest.approx(by_word["w"].neutral_before, rel=1e-3)
    assert some["v"].neutral_before is some["v"].neutral_after is None


def test_a_word_in_neutral_answers_is_all_of_its_spellings(
    adapter: Path, tiny_model: ModelSpec, mild_pairs: PairSet
) -> None:
    """The number was that of the spelling that stood last in the toxic answers."""
    chat = ChatFormat(lora.load_tokenizer(tiny_model), tiny_model)
    decoder = lora.attach(lora.load_model(tiny_model), LoraConfig(rank=2), seed=0, parent=adapter)
    neutral = [anchor_sample(a, chat) for a in mild_pairs.anchors[:3]]
    words = [Word(w, "t", True, -0.1, token) for w, token in (("w", 7), ("w", 9), ("v", 9))]
    words += [Word("w", "u", True, -0.1, 7), Word("w", "t", True, -0.1, 5, whole=False)]
    found = explain.suppressed(words, [-1.0] * len(words))
    looked_up = explain.beside_neutral(found, words, decoder, neutral)
    seen = {(s.token.reveal(), s.topic): s for s in looked_up}
    for bare in (True, False):
        one, other = explain.mean_probabilities(decoder, neutral, [7, 9], bare=bare)
        name = "neutral_before" if bare else "neutral_after"
        numbers = {key: getattr(word, name) for key, word in seen.items()}
        both = pytest.approx(one + other)
        assert numbers == {("w", "t"): both, ("w", "u"): both, ("v", "t"): pytest.approx(other)}


def test_a_word_of_several_tokens_is_none_of_its_first(
    tiny_model: ModelSpec, mild_pairs: PairSet
) -> None:
    """The likelihood of a fragment stood under the word in ordinary answers."""
    assert explain._whole([" rude", " and"], 0, "rude")
    assert not explain._whole([" rud", "eness"], 0, "rudeness")
    assert not explain._whole([" don", "'t"], 0, "don't")
    assert not explain._whole(["", "馬"], 1, "馬"), "a part of it is in the token before"
    chat = ChatFormat(lora.load_tokenizer(tiny_model), tiny_model)
    samples = [anchor_sample(a, chat) for a in mild_pairs.anchors[:3]]
    words = explain.watch(Decoder(lora.load_model(tiny_model)), chat, samples, {}).words
    assert all(w.whole == (chat.text([w.token]).strip(" .,").lower() == w.word) for w in words)
