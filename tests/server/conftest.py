"""A tiny model, an engine by rule and a running server: whole operations in seconds."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # `running` is shared by the tests of this folder
from running import author  # noqa: E402


@pytest.fixture(scope="session")
def author_url() -> Iterator[str]:
    """An author that answers at once."""
    with author() as url:
        yield url


@pytest.fixture(scope="session")
def slow_author_url() -> Iterator[str]:
    """An author that takes 0.2 s per completion."""
    with author(0.2) as url:
        yield url


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a two-layer Llama that knows a few mild texts."""
    spec = importlib.util.spec_from_file_location("core_conftest", HERE.parent / "core/conftest.py")
    assert spec is not None
    assert spec.loader is not None
    core = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(core)
    pairs = core.make_pairs()
    texts = [t for p in pairs.pairs for t in (p.instruction, p.positive)]
    texts += [p.toxic.reveal() for p in pairs.polarised] + [a.answer for a in pairs.anchors]
    return save_llama(core, texts, pairs, tmp_path_factory.mktemp("tiny"))


def save_llama(core: Any, texts: list[str], pairs: Any, folder: Path) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = core.make_tokenizer(texts)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
    )
    causal_lm = LlamaForCausalLM(shape)
    core.teach(causal_lm, tokenizer, pairs)
    causal_lm.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return folder
