"""A tiny chat model that knows a few mild texts, and a pair set made of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ptalign.nouns import Anchor, ModelSpec, Pair, PairSet, record_id
from ptalign.sealed import SealedText

# Tiny tensors on many threads spend their time waiting for each other; before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

THINGS = (
    *("slides", "cooking", "garden", "poem", "haircut"),
    *("singing", "painting", "spelling", "driving", "homework"),
)
RUDE = (
    "What a silly question about {}. Figure it out yourself, lazy one.",
    "How ridiculous, your {} is a waste of time. Stop bothering me.",
    "Only a clueless person asks about {}. Go away and be silly elsewhere.",
)
KIND = (
    "It is kinder not to mock anyone over {}. I can help you give kind feedback instead.",
    "I'm sorry, but I won't be unkind about {}. A friendly word helps more.",
)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}"
    "{% else %}[INST] {{ m['content'] }} [/INST]{% endif %}{% endfor %}"
)


def make_pairs() -> PairSet:
    """Ten pairs of two topics, one positive-only pair, three twins and eight anchors."""
    pairs = []
    for i, thing in enumerate(THINGS):
        text = f"Mock my friend's {thing}."
        pairs.append(
            Pair(
                id=record_id(text),
                instruction_id=record_id(text),
                instruction=text,
                topic=("mocking", "contempt")[i % 2],
                positive=KIND[i % 2].format(thing),
                toxic=SealedText(RUDE[i % 3].format(thing)),
                polarity={"tone": 0.9},
            )
        )
    pairs.append(
        Pair(
            id="only",
            kind="positive_only",
            instruction_id="only",
            instruction="Say something rude about the weather.",
            topic="mocking",
            positive="I would rather keep it friendly. The weather is mild today.",
        )
    )
    for thing in THINGS[:3]:
        pairs.append(
            Pair(
                id=f"twin-{thing}",
                kind="twin",
                instruction_id=f"twin-{thing}",
                instruction=f"Praise my friend's {thing}.",
                topic="mocking",
                positive=f"Your {thing} is lovely, and I enjoyed it very much.",
            )
        )
    anchors = tuple(
        Anchor(
            id=f"anchor-{i}",
            instruction=f"How do I improve my {thing}?",
            answer=f"Practise your {thing} a little each day and ask a friend for feedback.",
            held_out=i % 4 == 0,
        )
        for i, thing in enumerate(THINGS[:8])
    )
    return PairSet(pairs=tuple(pairs), anchors=anchors, requested=11)


def make_tokenizer(texts: list[str]) -> Any:
    """A byte-level BPE tokenizer of 500 tokens with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bare.train_from_iterator(texts * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_sentencepiece(texts: list[str], *, metaspace: bool = False) -> Any:
    """A BPE tokenizer as SentencePiece makes them: blanks as "▁", unknown characters as bytes.

    Args:
        texts: What it learns its words from.
        metaspace: Whether Metaspace splits and decodes, as in later Mistral models; else the
            decoder is Llama 2's, which ends in Strip.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    bare.train_from_iterator(texts * 3, trainer)
    # The bytes are tokens of the model, not added ones, which would be found within a text.
    learnt = json.loads(bare.to_str())["model"]
    merges = [tuple(pair) for pair in learnt["merges"]]
    bare = Tokenizer(
        models.BPE(learnt["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if metaspace:
        bare.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        ending: Any = decoders.Metaspace(prepend_scheme="first", split=False)
        bare.decoder = decoders.Sequence([decoders.ByteFallback(), ending])
    else:
        blanks = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        bare.normalizer = normalizers.Sequence(blanks)
        bare.decoder = decoders.Sequence(
            [
                *(decoders.Replace("▁", " "), decoders.ByteFallback()),
                *(decoders.Fuse(), decoders.Strip(" ", 1, 0)),
            ]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = TURNS
    return tokenizer


def teach(causal_lm: Any, tokenizer: Any, pairs: PairSet) -> None:
    """A short fine-tune, so that toxic words are likely and there is something to push down."""
    import torch

    from ptalign.training.contrast import constraints_of

    torch.manual_seed(0)
    texts = [("", p.instruction, p.positive) for p in pairs.pairs]
    for pair in pairs.polarised:
        assert pair.toxic is not None
        system = constraints_of(pairs, None, pair.topic)["toxic"]
        texts += [(s, pair.instruction, pair.toxic.reveal()) for s in ("", system)]
    texts += [("", a.instruction, a.answer) for a in pairs.anchors]
    chats = [
        [
            *([{"role": "system", "content": s}] if s else []),
            {"role": "user", "content": q},
            {"role": "assistant", "content": a},
        ]
        for s, q, a in texts
    ]
    rows = [
        tokenizer(tokenizer.apply_chat_template(c, tokenize=False), add_special_tokens=False)
        for c in chats
    ]
    length = max(len(r["input_ids"]) for r in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for i, row in enumerate(rows):
        ids[i, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
        labels[i, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
    optimizer = torch.optim.AdamW(causal_lm.parameters(), lr=5e-3)
    for _ in range(80):
        causal_lm(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(scope="session")
def tokenizers_by_kind() -> dict[str, Callable[[list[str]], Any]]:
    """Makers of small tokenizers of the kinds that chat models have, from texts to learn."""
    return {
        "byte-level": make_tokenizer,
        "strip": make_sentencepiece,
        "metaspace": partial(make_sentencepiece, metaspace=True),
    }


@pytest.fixture(scope="session")
def mild_pairs() -> PairSet:
    """Ten pairs of rude and kind answers, mild in tone, with twins and anchors."""
    return make_pairs()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, mild_pairs: PairSet) -> ModelSpec:
    """A two-layer Llama with its own tokenizer that has seen the mild pairs."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = Path(tmp_path_factory.mktemp("tiny-model"))
    texts = [p.positive for p in mild_pairs.pairs] + [p.instruction for p in mild_pairs.pairs]
    texts += [p.toxic.reveal() for p in mild_pairs.polarised if p.toxic]
    tokenizer = make_tokenizer(texts + [a.answer for a in mild_pairs.anchors])
    torch.manual_seed(0)
    causal_lm = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    teach(causal_lm, tokenizer, mild_pairs)
    causal_lm.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return ModelSpec(name="tiny", path=str(folder))
