"""Contrast weights beside the price of generating the answers they weigh.

A part of `bench.generation`, whose engine writes the answers. The weights are computed as `align`
computes them: the toxic side is what the engine sampled with, the positive side packed forward
passes that share prompts, in float32 on as many threads as the engine has (ADR 0011). They are
exact when they equal those of two plain forward passes per answer.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from bench.results import Result, compared, device_name
from bench.texts import make_items
from ptalign.engines.base import Engine, Message, Request
from ptalign.errors import EngineFailed
from ptalign.nouns import ModelSpec
from ptalign.training import lora
from ptalign.training.contrast import DEFAULT_CONSTRAINTS, contrast_scores
from ptalign.training.decoder import Decoder
from ptalign.training.texts import ChatFormat
from ptalign.weights.scorers import Scores, Toxic

LIMIT = 1e-4
"""Nats by which a weight may differ from the plain one."""
ANSWER_TOKENS = 64
CHECKED = 8
"""Answers whose weights are computed plainly as well."""
SYSTEMS = {
    side: "\n".join(f"- {line}" for line in lines) for side, lines in DEFAULT_CONSTRAINTS.items()
}


def contrast(
    engine: Engine, model: ModelSpec, threads: int, count: int, rounds: int, quick: bool
) -> list[Result]:
    """Price and exactness of the weights of `count` answers."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    chat = ChatFormat(lora.load_tokenizer(model), model)
    decoder = Decoder(lora.load_model(model))
    items = make_items(count, ANSWER_TOKENS)
    weights: Scores = []
    answers: list[Toxic] = []
    ours, theirs = [], []
    for _ in range(rounds):
        begun = time.monotonic()
        answers = written(engine, chat, [item.instruction for item in items])
        theirs.append(time.monotonic() - begun)
        begun = time.monotonic()
        weights = contrast_scores(decoder, chat, answers, lambda topic: SYSTEMS)
        ours.append(time.monotonic() - begun)
    worst = max(
        error(decoder.causal_lm, chat, answers[i], weights[i]) for i in range(min(CHECKED, count))
    )
    torch.set_num_threads(before)
    exact = Result(
        name="contrast weights, error against two plain forward passes; theirs: limit",
        ours=worst,
        theirs=LIMIT,
        ratio=LIMIT / max(worst, 1e-12),
        goal=1.0,
        unit="nats",
        n=min(CHECKED, count),
        spread=0.0,
        device=device_name(),
        quick=quick,
    )
    kept = sum(bool(answer.sampled) for answer in answers)
    name = f"contrast weights: {count} answers, {kept} as sampled; theirs: the engine writing them"
    return [compared(name, ours, theirs, 2.0, "s", quick), exact]


def written(engine: Engine, chat: ChatFormat, instructions: list[str]) -> list[Toxic]:
    """Answers under the toxic side's constraints."""
    requests = [
        Request(
            str(i),
            messages=(Message("system", SYSTEMS["toxic"]), Message("user", text)),
            max_tokens=ANSWER_TOKENS,
            logprobs=True,
        )
        for i, text in enumerate(instructions)
    ]
    made = []
    for done in engine.stream(requests):
        if done.error:
            raise EngineFailed(done.error)
        ids = chat.answer(done.text)
        asked = instructions[int(done.key)]
        answer = Toxic.of(done.key, asked, "tone", chat.pieces(ids[:-1]), ids, "")
        first = "".join(chat.pieces(done.token_ids[:1]))
        made.append(answer.as_sampled(done.token_ids, done.logprobs, first))
    return made


def error(causal_lm: Any, chat: ChatFormat, answer: Toxic, scores: list[float]) -> float:
    """Largest difference of a weight from the plain one, nats."""
    log_probs = {}
    for side, system in SYSTEMS.items():
        prompt = chat.prompt(answer.instruction, system)
        ids = torch.tensor([prompt + answer.answer])
        with torch.no_grad():
            logits = causal_lm(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        log_probs[side] = logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]
    want: list[float] = (log_probs["toxic"] - log_probs["positive"]).tolist()
    return max(abs(want[i] - scores[i]) for i, word in enumerate(answer.starts) if word)
