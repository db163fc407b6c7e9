"""Who runs: our step, our step without sharing, a CUT-style step, TRL's SFT and DPO trainers.

Each is built once and then asked for one step at a time, so that rounds can be interleaved. All
train the same LoRA (r=16, all linear layers) on the same texts in float32.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bench.texts import Item, groups_of
from ptalign.config import LoraConfig
from ptalign.nouns import ModelSpec
from ptalign.training import lora
from ptalign.training.step import Objective, accumulate
from ptalign.training.texts import ChatFormat, Sample

UT_WEIGHT = 2.0
Step = Callable[[], float]
"""Runs one step and returns its CPU seconds."""


def demo_model() -> ModelSpec:
    """SmolLM2-135M-Instruct, prepared into the cache on first use."""
    from ptalign_server.models import prepare_demo_model

    return ModelSpec(name="smollm2-135m-instruct", path=str(prepare_demo_model()))


_base: dict[str, Tensor] = {}


def load(model: ModelSpec) -> Any:
    """A bare model that shares its frozen weights with all others of this process."""
    causal_lm = lora.load_model(model)
    for name, parameter in causal_lm.named_parameters():
        parameter.data = _base.setdefault(name, parameter.data)
    return causal_lm


def timed(work: Callable[[], object]) -> Step:
    """CPU seconds of one call."""

    def step() -> float:
        begun = time.process_time()
        work()
        return time.process_time() - begun

    return step


def ours(items: list[Item], model: ModelSpec, *, share: bool = True, candidates: int = 0) -> Step:
    """The tree step.

    Args:
        items: Texts.
        model: The demo model.
        share: False packs the same samples without sharing prompts.
        candidates: Negative candidates, pushed down at every place of the toxic answers (ADR 0018);
            any tokens cost the same.
    """
    chat = ChatFormat(lora.load_tokenizer(model), model)
    decoder = lora.attach(load(model), LoraConfig(), seed=0)
    parameters = list(lora.trainable(decoder).values())
    optimizer = torch.optim.AdamW(parameters, lr=5e-4)
    groups = groups_of(items, chat)
    objective = Objective("pt_align", 0.1, {}, candidates=tuple(range(candidates)))
    if candidates:
        groups = [[replace(s, throughout=s.part == "toxic") for s in g] for g in groups]

    def work() -> None:
        accumulate(decoder, groups, objective, UT_WEIGHT, share=share)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return timed(work)


def cut_style(items: list[Item], model: ModelSpec) -> Step:
    """Padded batch, full softmax, 1 - p from float32 probabilities, as CUT's public code does."""
    chat = ChatFormat(lora.load_tokenizer(model), model)
    decoder = lora.attach(load(model), LoraConfig(), seed=0)
    parameters = list(lora.trainable(decoder).values())
    optimizer = torch.optim.AdamW(parameters, lr=5e-4)
    samples = [s for group in groups_of(items, chat) for s in group]

    def work() -> None:
        cut_loss(decoder.causal_lm, samples).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return timed(work)


def padded(samples: list[Sample]) -> tuple[Tensor, Tensor]:
    """Token ids and mask, [samples, length], padded on the right."""
    length = max(s.length for s in samples)
    ids = torch.zeros(len(samples), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, s in enumerate(samples):
        ids[row, : s.length] = torch.tensor(s.prompt + s.answer)
        mask[row, : s.length] = 1
    return ids, mask


def cut_loss(causal_lm: Any, samples: list[Sample]) -> Tensor:
    """L_MLE + lambda L_UT with 1 - softmax and a clamp at 1e-20."""
    ids, mask = padded(samples)
    logits = causal_lm(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    p = logits.softmax(-1).gather(2, ids[:, 1:, None])[..., 0]  # [samples, length - 1]
    good, bad = torch.zeros_like(p), torch.zeros_like(p)
    for row, s in enumerate(samples):
        places = slice(len(s.prompt) - 1, s.length - 1)
        (bad if s.part == "toxic" else good)[row, places] = torch.tensor(s.weights)
    likely = -(good * p.clamp_min(1e-20).log()).sum() / good.sum()
    unlikely = -(bad * (1 - p).clamp_min(1e-20).log()).sum() / bad.sum()
    loss: Tensor = likely + UT_WEIGHT * unlikely
    return loss


def sft(items: list[Item], model: ModelSpec, *, checkpointing: bool = False) -> Step:
    """TRL SFTTrainer on positives and negatives, loss on completions."""
    rows = [
        {"prompt": user(i.instruction), "completion": said(text)}
        for i in items
        for text in (i.positive, i.toxic)
    ]
    return trainer_step("SFT", rows, len(rows), model, checkpointing)


def dpo(items: list[Item], model: ModelSpec) -> Step:
    """TRL DPOTrainer on the pairs, reference by switching the adapter off."""
    rows = [
        {"prompt": user(i.instruction), "chosen": said(i.positive), "rejected": said(i.toxic)}
        for i in items
    ]
    return trainer_step("DPO", rows, len(rows), model)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def trainer_step(
    kind: str,
    rows: list[dict[str, Any]],
    batch: int,
    model: ModelSpec,
    checkpointing: bool = False,
) -> Step:
    """One optimizer step of a TRL trainer, timed from its step's begin to its end.

    Gradient checkpointing, on in TRL by default, is off where time is measured: it would cost TRL
    a third more. Memory is measured with and without it.
    """
    import transformers
    import trl
    from datasets import Dataset
    from peft import LoraConfig as PeftLora

    transformers.logging.set_verbosity_error()
    logging.getLogger("trl").setLevel(logging.ERROR)
    causal_lm = load(model)
    names = lora.linear_names(causal_lm)
    clock = Clock()
    trainer, settings = getattr(trl, f"{kind}Trainer"), getattr(trl, f"{kind}Config")
    built = trainer(
        model=causal_lm,
        args=settings(
            output_dir=tempfile.mkdtemp(prefix="ptalign-bench-"),
            per_device_train_batch_size=batch,
            max_steps=1,
            max_length=None,
            learning_rate=5e-4,
            gradient_checkpointing=checkpointing,
            bf16=False,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=lora.load_tokenizer(model),
        peft_config=PeftLora(r=16, lora_alpha=32, target_modules=names, task_type="CAUSAL_LM"),
        callbacks=[clock.callback()],
    )
    built.remove_callback(transformers.PrinterCallback)  # standard output is the table

    def step() -> float:
        built.train()
        return clock.seconds

    return step


class Clock:
    """CPU seconds between a trainer's step begin and end."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.begun = 0.0

    def callback(self) -> Any:
        """A transformers callback that feeds this clock."""
        from transformers import TrainerCallback

        clock = self

        class Watch(TrainerCallback):  # type: ignore[misc, unused-ignore]
            def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
                clock.begun = time.process_time()

            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                clock.seconds = time.process_time() - clock.begun

        return Watch()


CONTESTANTS: dict[str, Callable[[list[Item], ModelSpec], Step]] = {
    "ours": ours,
    "packed": lambda items, model: ours(items, model, share=False),
    "candidates": lambda items, model: ours(items, model, candidates=20),
    "cut": cut_style,
    "sft": sft,
    "sft_checkpointed": lambda items, model: sft(items, model, checkpointing=True),
    "dpo": dpo,
}
