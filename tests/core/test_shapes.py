"""Model shapes: the tree step against the naive padded step, and the adapter's round trip."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid

from ptalign.config import LoraConfig
from ptalign.errors import InvalidInput, TrainingFailed, Unsupported
from ptalign.losses import margins_of_logits, mle, unlikelihood
from ptalign.nouns import Method
from ptalign.training.decoder import Decoder, positions_of
from ptalign.training.loop import benign_kl
from ptalign.training.lora import attach, check_live, refuse_foreign, save_adapter, trainable
from ptalign.training.pools import bare_states
from ptalign.training.step import STILL, Objective, accumulate, accumulate_apart
from ptalign.training.texts import Part, Sample
from ptalign.training.tree import Row, inputs_of, pack

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"head_dim": 8}),
    "mistral, sliding window": ("MistralConfig", {"sliding_window": 6}),
    "gemma2, soft-cap, tied, sliding": (
        "Gemma2Config",
        {"head_dim": 8, "sliding_window": 6, "final_logit_softcapping": 3.0},
    ),
    "gemma3, tied, sliding": (
        "Gemma3TextConfig",
        {
            "head_dim": 8,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "gemma3 beside a vision tower": (
        "Gemma3Config",
        {
            "text_config": {**SMALL, "head_dim": 8, "sliding_window": 6},
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 8,
                "patch_size": 4,
            },
            "mm_tokens_per_image": 4,
            "image_token_index": 96,
        },
    ),
    "gpt-neox": ("GPTNeoXConfig", {}),
    "granite, logits scaling": ("GraniteConfig", {"logits_scaling": 4.0}),
    "gpt2": ("GPT2Config", {}),
}


def make_model(name: str, seed: int = 0) -> Any:
    import transformers

    kind, extra = SHAPES[name]
    config = getattr(transformers, kind)(**{**SMALL, **extra})
    torch.manual_seed(seed)
    attention = "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    with torch.no_grad():  # random initialisation is too small to tell tokens apart
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    return model.eval().requires_grad_(False)


def make_groups(seed: int = 0) -> list[list[Sample]]:
    """Three pairs with prompts of 5 to 9, a twin and an anchor."""
    draw = random.Random(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, 97) for _ in range(draw.randrange(low, high)))

    system, groups = ids(3, 4), []
    for i in range(3):
        prompt, good, bad = system + ids(2, 6), ids(6, 12), ids(6, 12)
        weights = [float(draw.random() < 0.3) for _ in bad]
        weights[2] = 1.0
        groups.append(
            [
                Sample(str(i), "positive", prompt, good, (1.0,) * len(good)),
                Sample(str(i), "toxic", prompt, bad, tuple(weights)),
            ]
        )
    for part in ("twin", "anchor"):
        answer = ids(6, 12)
        weights = [1.0] * len(answer)
        groups.append([Sample(part, part, system + ids(2, 6), answer, tuple(weights))])  # type: ignore[arg-type]
    return groups


UT_WEIGHT, TWIN_WEIGHT = 2.5, 3.0


def naive_loss(causal_lm: Any, groups: list[list[Sample]]) -> torch.Tensor:
    """One padded batch, full logits, plain autograd: the step everyone knows is right."""
    samples = [s for g in groups for s in g]
    length = max(s.length for s in samples)
    ids = torch.zeros(len(samples), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, s in enumerate(samples):
        ids[row, : s.length] = torch.tensor(s.prompt + s.answer)
        mask[row, : s.length] = 1
    logits = causal_lm(input_ids=ids, attention_mask=mask, use_cache=False).logits
    names = ("mle", "twin", "anchor", "toxic")
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    weights: dict[str, list[float]] = {name: [] for name in names}
    for row, s in enumerate(samples):
        name = "mle" if s.part == "positive" else s.part
        start = len(s.prompt) - 1
        here = logits[row, start : start + len(s.answer)]  # [answer, vocabulary]
        parts[name].append(margins_of_logits(here, torch.tensor(s.answer)))
        weights[name] += s.weights

    def term(name: str, loss: Any) -> torch.Tensor:
        return loss(torch.cat(parts[name]), torch.tensor(weights[name]), sum(weights[name]))

    benign = term("anchor", mle) + TWIN_WEIGHT * term("twin", mle)
    return term("mle", mle) + benign + UT_WEIGHT * term("toxic", unlikelihood)


def warm(parameters: dict[str, torch.Tensor]) -> None:
    """LoRA's B starts at 0, where A has no gradient: move off it."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


@pytest.mark.parametrize(
    ("kind", "extra", "positions"),
    [
        ("GPT2Config", {}, 128),
        ("LlamaConfig", {}, 128),
        ("Gemma3TextConfig", {}, 128),
        # one number of positions, of before they were stretched or of after it
        ("LlamaConfig", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, sys.maxsize),
        ("MambaConfig", {}, sys.maxsize),
    ],
)
def test_a_model_says_how_many_positions_it_has(
    kind: str, extra: dict[str, Any], positions: int
) -> None:
    import transformers

    size = {} if kind == "MambaConfig" else {"max_position_embeddings": 128}
    config = getattr(transformers, kind)(**size, **extra)
    assert positions_of(config.get_text_config()) == positions


@pytest.mark.parametrize("name", SHAPES)
def test_tree_step_equals_the_naive_padded_step(name: str) -> None:
    decoder = attach(make_model(name), LoraConfig(rank=4), seed=1)
    groups = make_groups()
    decoder.settle([s for s in groups[0] if s.part == "positive"] + groups[1][:1])
    assert decoder.layout == "tree", decoder.reason
    parameters = trainable(decoder)
    warm(parameters)
    naive = naive_loss(decoder.causal_lm, groups)
    want = torch.autograd.grad(naive, list(parameters.values()))
    objective = Objective("pt_align", 0.1, {})
    for budget in (10**9, 40):
        decoder.peft.zero_grad(set_to_none=True)
        losses = accumulate(decoder, groups, objective, UT_WEIGHT, TWIN_WEIGHT, budget=budget)
        got = float(objective.total(losses, UT_WEIGHT, TWIN_WEIGHT))
        assert got == pytest.approx(naive.item(), rel=2e-5)
        for (label, parameter), grad in zip(parameters.items(), want, strict=True):
            assert parameter.grad is not None, label
            error = float((parameter.grad - grad).norm() / grad.norm())
            assert error < 2e-5, (label, error)


@pytest.mark.parametrize("name", ["llama", "gemma2, soft-cap, tied, sliding", "gpt2"])
def test_bfloat16_trains_as_float32_but_for_rounding(name: str, tmp_path: Path) -> None:
    """What is recommended on a GPU: no step, benign KL or saved adapter was ever tried in it.

    Tolerances are three times what was measured, 0.016 of the gradient's norm at most.
    """
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        decoder = attach(make_model(name).to(dtype), LoraConfig(rank=4), seed=1)
        twin: dict[str, Part] = {"twin": "kept"}
        groups = [[replace(s, part=twin.get(s.part, s.part)) for s in g] for g in make_groups()]
        decoder.settle([s for g in groups[:2] for s in g])
        assert decoder.layout == "tree", decoder.reason
        still = [s for g in groups for s in g if s.part in STILL]
        objective = Objective("pt_align", 0.1, {}, bare_states(decoder, still))
        parameters = trainable(decoder)
        assert {p.dtype for p in parameters.values()} == {torch.float32}, "AdamW's steps are small"
        warm(parameters)
        losses = accumulate(decoder, groups, objective, UT_WEIGHT, TWIN_WEIGHT)
        grads = torch.cat([p.grad.flatten() for p in parameters.values() if p.grad is not None])
        kl = benign_kl(decoder, still)
        save_adapter(decoder, tmp_path / "adapter")
        live = check_live(decoder, tmp_path / "adapter", pack(groups, 10**9)[0])
        found[dtype] = grads, [losses.mle, losses.toxic, losses.anchor, losses.twin, kl, live]
    (want, exact), (got, rounded) = found.values()
    assert float((got - want).norm() / want.norm()) < 0.05
    assert [float(v) for v in rounded] == pytest.approx([float(v) for v in exact], rel=0.03)


@pytest.mark.parametrize("name", SHAPES)
def test_anchors_keep_the_bare_models_whole_distribution(name: str) -> None:
    """The anchor term is KL(bare || adapted) over the vocabulary, whatever the row's order."""
    decoder = attach(make_model(name), LoraConfig(rank=4), seed=1)
    groups = make_groups()
    anchors = [s for g in groups for s in g if s.part == "anchor"]
    anchors.append(replace(anchors[0], key="cut", weights=(*anchors[0].weights[:-1], 0.0)))
    groups = [anchors[-1:], *groups]
    parameters = trainable(decoder)
    warm(parameters)
    kept = bare_states(decoder, anchors)
    total, tokens = torch.zeros(()), 0.0
    for anchor in anchors:
        ids = torch.tensor([[*anchor.prompt, *anchor.answer]])
        with torch.no_grad(), decoder.bare():
            bare = decoder.causal_lm(input_ids=ids).logits[0].log_softmax(-1)
        tuned = decoder.causal_lm(input_ids=ids).logits[0].log_softmax(-1)
        kl = (bare.exp() * (bare - tuned)).sum(-1)[len(anchor.prompt) - 1 : -1]  # [answer]
        total = total + (kl * torch.tensor(anchor.weights)).sum()
        tokens += sum(anchor.weights)
    want = torch.autograd.grad(total / tokens, list(parameters.values()))
    objective = Objective("pt_align", 0.1, {}, kept)
    for budget in (10**9, 40):
        losses, apart = accumulate_apart(
            decoder, groups, objective, list(parameters.values()), budget=budget
        )
        assert float(losses.anchor) == pytest.approx(float(total.detach()) / tokens, rel=2e-4)
        for grad, expected in zip(apart.anchor, want, strict=True):
            assert float((grad - expected).norm() / expected.norm()) < 2e-4


@pytest.mark.parametrize("method", ["pt_align", "mle", "npo", "dpo"])
def test_kept_twins_add_their_own_divergence_and_no_likelihood(method: Method) -> None:
    """Every method: L without twins + tau KL(bare || adapted), averaged over the twins' tokens."""
    decoder = attach(make_model("llama"), LoraConfig(rank=4), seed=1)
    groups = [group for group in make_groups() if group[0].part != "twin"]
    (twin,) = next(group for group in make_groups() if group[0].part == "twin")
    short = replace(twin, key="short", answer=twin.answer[:4], weights=twin.weights[:4])
    twins = [[replace(twin, part="kept")], [replace(short, part="kept")]]
    parameters = list(trainable(decoder).values())
    warm(trainable(decoder))
    total, tokens = torch.zeros(()), 0
    for ((sample),) in twins:
        ids = torch.tensor([[*sample.prompt, *sample.answer]])
        with torch.no_grad(), decoder.bare():
            bare = decoder.causal_lm(input_ids=ids).logits[0].log_softmax(-1)
        tuned = decoder.causal_lm(input_ids=ids).logits[0].log_softmax(-1)
        kl = (bare.exp() * (bare - tuned)).sum(-1)[len(sample.prompt) - 1 : -1]  # [answer]
        total, tokens = total + kl.sum(), tokens + len(kl)
    want = torch.autograd.grad(TWIN_WEIGHT * total / tokens, parameters)
    both = [*groups, *twins]
    reference = {f"{s.part}/{s.key}": -20.0 for g in both for s in g}
    still = bare_states(decoder, [s for g in both for s in g if s.part in STILL])
    objective = Objective(method, 0.1, reference, still)

    def gradients(some: list[list[Sample]]) -> list[torch.Tensor]:
        decoder.peft.zero_grad(set_to_none=True)
        accumulate(decoder, some, objective, UT_WEIGHT, TWIN_WEIGHT, budget=40)
        return [p.grad.clone() for p in parameters if p.grad is not None]

    for more, less, expected in zip(gradients(both), gradients(groups), want, strict=True):
        assert float((more - less - expected).norm() / expected.norm()) < 2e-3


@pytest.mark.parametrize("name", ["llama", "gemma2, soft-cap, tied, sliding"])
@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_candidates_are_pushed_down_at_every_place_of_a_toxic_answer(
    name: str, layout: str
) -> None:
    """-sum_t log(1 - P_t(C_t)) over the flagged tokens' number, C_t with y_t where it is flagged.

    The end of turn is no place; other parts of the loss are what they were.
    """
    decoder = attach(make_model(name), LoraConfig(rank=4), seed=1)
    decoder.layout = layout  # type: ignore[assignment]
    parameters = trainable(decoder)
    warm(parameters)
    candidates = (5, 40, 41, 77)
    groups = [
        [replace(s, throughout=True) if s.part == "toxic" else s for s in group]
        for group in make_groups()
    ]
    toxic = [s for g in groups for s in g if s.part == "toxic"]
    total = torch.zeros(())
    for sample in toxic:
        ids = torch.tensor([[*sample.prompt, *sample.answer]])
        logits = decoder.causal_lm(input_ids=ids).logits
        p = logits[0, len(sample.prompt) - 1 : -2].softmax(-1)  # [answer but its end, vocabulary]
        for place, row in enumerate(p):
            flagged = sample.answer[place : place + 1] if sample.weights[place] else ()
            total = total - (1 - row[sorted({*candidates, *flagged})].sum()).log()
    flagged_tokens = sum(sum(s.weights) for s in toxic)
    want = torch.autograd.grad(total / flagged_tokens, list(parameters.values()))
    objective = Objective("pt_align", 0.1, {}, candidates=candidates)
    written = Objective("pt_align", 0.1, {})
    for budget in (10**9, 40):
        losses, apart = accumulate_apart(
            decoder, groups, objective, list(parameters.values()), budget=budget
        )
        assert float(losses.toxic) == pytest.approx(
            float(total.detach()) / flagged_tokens, rel=1e-4
        )
        for grad, expected in zip(apart.toxic, want, strict=True):
            assert float((grad - expected).norm() / expected.norm()) < 2e-4
        plain, _ = accumulate_apart(
            decoder, make_groups(), written, list(parameters.values()), budget=budget
        )
        assert float(losses.mle) == pytest.approx(float(plain.mle), rel=1e-5)
        assert float(losses.anchor) == pytest.approx(float(plain.anchor), rel=1e-5)


def test_gradients_apart_add_up_to_the_steps() -> None:
    """The step that matches lambda takes its parts one by one, and must lose none."""
    decoder = attach(make_model("llama"), LoraConfig(rank=4), seed=1)
    groups = make_groups()
    parameters = list(trainable(decoder).values())
    warm(trainable(decoder))
    objective = Objective("pt_align", 0.1, {})
    decoder.peft.zero_grad(set_to_none=True)
    accumulate(decoder, groups, objective, UT_WEIGHT, TWIN_WEIGHT)
    _, apart = accumulate_apart(decoder, groups, objective, parameters)
    for parameter, grad in zip(parameters, apart.whole(UT_WEIGHT, TWIN_WEIGHT), strict=True):
        assert parameter.grad is not None
        assert float((parameter.grad - grad).norm() / grad.norm()) < 2e-5


def test_dpo_prefers_pairs_and_is_taught_what_has_no_rejected_answer() -> None:
    """Twins and positive-only answers had no gradient under dpo: it refused what MLE answers."""
    decoder = attach(make_model("llama"), LoraConfig(rank=4), seed=1)
    groups = [
        [replace(s, weights=(1.0,) * len(s.answer)) for s in group] for group in make_groups()
    ]
    groups.append([replace(make_groups(seed=1)[0][0], key="alone")])
    parameters = trainable(decoder)
    warm(parameters)
    reference = {f"{s.part}/{s.key}": -20.0 - len(s.answer) for g in groups for s in g}

    def log_p(sample: Sample) -> torch.Tensor:
        logits = decoder.causal_lm(
            input_ids=torch.tensor([[*sample.prompt, *sample.answer]])
        ).logits
        here = logits[0, len(sample.prompt) - 1 : -1].log_softmax(-1)  # [answer, vocabulary]
        return here.gather(1, torch.tensor(sample.answer)[:, None]).sum()

    def gap(sample: Sample) -> torch.Tensor:
        return log_p(sample) - reference[f"{sample.part}/{sample.key}"]

    def nll(samples: list[Sample]) -> torch.Tensor:
        return -sum(map(log_p, samples)) / sum(len(s.answer) for s in samples)

    pairs, (twin,), (anchor,), (alone,) = groups[:3], *groups[3:]
    preferred = sum(-logsigmoid(0.1 * (gap(good) - gap(bad))) for good, bad in pairs) / 3
    naive = preferred + nll([alone]) + TWIN_WEIGHT * nll([twin]) + nll([anchor])
    want = torch.autograd.grad(naive, list(parameters.values()))
    decoder.peft.zero_grad(set_to_none=True)
    objective = Objective("dpo", 0.1, reference)
    losses = accumulate(decoder, groups, objective, 0.0, TWIN_WEIGHT, budget=40)
    assert float(objective.total(losses, 0.0, TWIN_WEIGHT)) == pytest.approx(naive.item(), rel=2e-5)
    for parameter, grad in zip(parameters.values(), want, strict=True):
        assert float((parameter.grad - grad).norm() / grad.norm()) < 2e-5


@pytest.mark.parametrize("name", SHAPES)
def test_adapter_round_trips_through_peft(name: str, tmp_path: Path) -> None:
    decoder = attach(make_model(name), LoraConfig(rank=4), seed=1)
    warm(trainable(decoder))
    groups = make_groups()
    row = pack([[s for g in groups for s in g]], 10**9)[0]
    sha256 = save_adapter(decoder, tmp_path / "adapter")
    refuse_foreign(tmp_path / "adapter")
    assert len(sha256) == 64
    assert check_live(decoder, tmp_path / "adapter", row) > 1e-3
    ids = torch.tensor([inputs_of(groups[0][0])])
    from peft import PeftModel

    plain = make_model(name)
    bare = plain(input_ids=ids).logits
    loaded = PeftModel.from_pretrained(plain, str(tmp_path / "adapter"))
    assert float((loaded(input_ids=ids).logits - bare).abs().max()) > 1e-3


def test_sliding_window_matters_here() -> None:
    """Test of the test: with windows ignored, the mistral comparison would see a difference."""
    model = make_model("mistral, sliding window")
    ids = torch.tensor([inputs_of(make_groups()[0][0])])
    assert ids.shape[1] > 7
    slid = model(input_ids=ids).logits
    model.config.sliding_window = None
    assert float((model(input_ids=ids).logits - slid).abs().max()) > 1e-3


def test_a_shape_that_ignores_the_mask_falls_back_to_padded_rows() -> None:
    """Recurrent layers cannot take a tree: padded rows give the same loss, and say why."""
    import transformers

    config = transformers.MambaConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=4, pad_token_id=0
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    decoder = attach(model, LoraConfig(rank=4, target_modules=("in_proj", "x_proj")), seed=1)
    groups = make_groups()
    decoder.settle(groups[0])
    assert decoder.layout == "padded"
    assert "Mamba" in decoder.reason
    objective = Objective("pt_align", 0.1, {})
    losses = accumulate(decoder, groups, objective, UT_WEIGHT, TWIN_WEIGHT)
    got = float(objective.total(losses, UT_WEIGHT, TWIN_WEIGHT))
    assert got == pytest.approx(naive_loss(model, groups).item(), rel=2e-5)


@pytest.mark.parametrize("layouts", [("tree",), ("tree", "padded")])
def test_rows_of_nan_are_not_taken_for_the_models_own(
    layouts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that makes NaN under a tree's mask: NaN, over no tolerance, was let through."""
    decoder = attach(make_model("llama"), LoraConfig(rank=4), seed=1)
    hidden = Decoder.hidden

    def broken(self: Decoder, row: Row) -> torch.Tensor:
        return hidden(self, row) * (torch.nan if self.layout in layouts else 1)

    monkeypatch.setattr(Decoder, "hidden", broken)
    if "padded" in layouts:
        with pytest.raises(Unsupported, match="LlamaForCausalLM: padded rows change"):
            decoder.settle(make_groups()[0])
    else:
        decoder.settle(make_groups()[0])
        assert decoder.layout == "padded"
        assert decoder.reason.endswith("changes hidden states by nan")


def test_too_little_memory_is_not_taken_for_a_tree_that_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Padded rows, which take more, were tried next, and the reason named the model."""
    decoder = attach(make_model("llama"), LoraConfig(rank=4), seed=1)

    def full(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(Decoder, "hidden", full)
    with pytest.raises(torch.OutOfMemoryError):
        decoder.settle(make_groups()[0])
    assert decoder.layout == "tree"


def test_a_model_or_parent_of_nan_is_told_as_such() -> None:
    """It was refused for its head, which has nothing to do with it."""
    decoder = attach(make_model("llama"), LoraConfig(rank=4), seed=1)
    with torch.no_grad():
        next(iter(trainable(decoder).values())).fill_(torch.nan)
    with pytest.raises(TrainingFailed, match=r"not finite before.*parent adapter"):
        decoder.settle(make_groups()[0])


@pytest.mark.parametrize("trained", [True, False])
def test_an_adapter_of_nan_is_not_live(trained: bool, tmp_path: Path) -> None:
    """Its change was "up to nan nats", and the check said ok."""
    decoder = attach(make_model("llama"), LoraConfig(rank=4), seed=1)
    warm(trainable(decoder))
    good = [value.clone() for value in trainable(decoder).values()]
    row = pack([[s for g in make_groups() for s in g]], 10**9)[0]
    with torch.no_grad():
        next(iter(trainable(decoder).values())).fill_(torch.nan)
        save_adapter(decoder, tmp_path / "adapter")
        if trained:  # what is on disk alone is broken
            for value, kept in zip(trainable(decoder).values(), good, strict=True):
                value.copy_(kept)
    words = "differs from the trained one by nan" if trained else "logits are not finite"
    with pytest.raises(TrainingFailed, match=words):
        check_live(decoder, tmp_path / "adapter", row)


def test_an_unknown_logit_scale_is_refused_by_name() -> None:
    model = make_model("llama")
    plain = model.lm_head.forward
    model.lm_head.forward = lambda hidden: plain(hidden) * 0.5
    decoder = attach(model, LoraConfig(rank=4), seed=1)
    with pytest.raises(Unsupported, match="LlamaForCausalLM: its logits are not a linear head"):
        decoder.settle(make_groups()[0])


def test_an_adapter_on_the_head_is_refused_by_name(tmp_path: Path) -> None:
    """A parent made elsewhere may tune lm_head: the fused head cannot, and says so."""
    from peft import LoraConfig as PeftLora
    from peft import get_peft_model

    settings = PeftLora(r=2, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    get_peft_model(make_model("llama"), settings).save_pretrained(str(tmp_path / "parent"))
    with pytest.raises(Unsupported, match="LlamaForCausalLM: the output head is trained"):
        attach(make_model("llama"), LoraConfig(rank=4), seed=1, parent=tmp_path / "parent")


def test_a_vision_tower_gets_no_adapter_and_a_parents_is_left_as_it_is(tmp_path: Path) -> None:
    """Its layers, which no text reaches, ended the default method at the step that sets lambda."""
    from peft import LoraConfig as PeftLora
    from peft import get_peft_model

    name = "gemma3 beside a vision tower"
    assert not [
        label for label in trainable(attach(make_model(name), LoraConfig(), 1)) if "vis" in label
    ]
    with pytest.raises(InvalidInput, match=r"fc1 cannot be tuned"):
        attach(make_model(name), LoraConfig(target_modules=("fc1",)), seed=1)
    settings = PeftLora(r=2, target_modules=["q_proj", "fc1"], task_type="CAUSAL_LM")
    get_peft_model(make_model(name), settings).save_pretrained(str(tmp_path / "parent"))
    decoder = attach(make_model(name), LoraConfig(), seed=1, parent=tmp_path / "parent")
    parameters = trainable(decoder)
    warm(parameters)
    objective = Objective("pt_align", 0.1, {})
    _, apart = accumulate_apart(decoder, make_groups(), objective, list(parameters.values()))
    for label, grad in zip(parameters, apart.whole(UT_WEIGHT, TWIN_WEIGHT), strict=True):
        assert bool(grad.any()) == ("vision" not in label), label


def test_unknown_target_modules_are_named_with_the_known_ones() -> None:
    lora = LoraConfig(rank=4, target_modules=("q_proj", "lm_head"))
    with pytest.raises(InvalidInput, match=r"lm_head cannot be tuned\. Use some of .*q_proj"):
        attach(make_model("llama"), lora, seed=1)


def test_layers_that_peft_cannot_tune_are_refused_by_name() -> None:
    import transformers

    config = transformers.MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=1)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    with pytest.raises(Unsupported, match="MambaForCausalLM: PEFT has no LoRA"):
        attach(model, LoraConfig(rank=4), seed=1)
