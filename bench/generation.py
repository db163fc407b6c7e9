"""Stage 2 beside the engine it runs on, and that engine beside transformers.

    python -m bench.generation [--quick]

Stage 2 runs whole (constraints, drafts, judging, anchors) on instructions that the model has just
written, other ones in each round; then the same requests, all of them at once, go to an engine
without a stage. Each side has an engine just started, so that neither finds the other's prompts in
the prefix cache. transformers generates in this process, greedily, in left-padded batches of
16 or 32 (the faster counts), on as many threads as the engine has; no prompt is asked twice. The
judges are loaded beforehand, as the worker does while its engine starts. The price of contrast
weights is measured with the same engine (`bench.contrast`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch

from bench.contrast import contrast
from bench.results import Result, compared, device_name, say
from ptalign.config import InstructionConfig, PairConfig
from ptalign.engines.base import Completion, Engine, Message, Request, noted
from ptalign.errors import EngineFailed
from ptalign.instructions import generate_instructions
from ptalign.judges import generation_judges
from ptalign.nouns import InstructionSet, ModelSpec
from ptalign.pairs import synthesize_pairs
from ptalign.policies import load_annotations, load_policy
from ptalign_server.models import prepare_demo_model
from ptalign_server.pool import Pool, PoolSettings
from ptalign_server.worker.judges import load_judges

POLICY = "tone-en"
PREFIX_WORDS = 300
ANSWER_TOKENS = 24
BATCHES = (16, 32)
"""Prompts per call of transformers' generate."""


class Recorded:
    """An engine that remembers what it was asked and counts what it wrote."""

    def __init__(self, inner: Engine) -> None:
        self.model, self._inner = inner.model, inner
        self.requests: list[Request] = []
        self.tokens = 0

    def stream(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """As `Engine.stream`."""
        for completion in self._inner.stream(noted(requests, self.requests.append)):
            self.tokens += completion.completion_tokens
            yield completion


def main() -> None:
    """Prints the rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round, 32 instructions")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)  # as the worker judges
    model = ModelSpec(name="smollm2-135m-instruct", path=str(prepare_demo_model()))
    threads = len(os.sched_getaffinity(0))
    load_judges()
    with tempfile.TemporaryDirectory(prefix="ptalign-bench-") as folder:
        fresh = partial(engine_of, PoolSettings(state=Path(folder), threads=threads), model)
        with fresh() as engine:
            instructions = generate_instructions(
                load_policy(POLICY),
                32 if quick else 64,
                engine=engine,
                model=model,
                config=InstructionConfig(twins=True),
            )
        found = [stage(fresh, model, parts(instructions, 1 if quick else 2), quick)]
        with fresh() as engine:
            found.append(transformers_beside(engine, model, threads, 1 if quick else 3, quick))
            found += contrast(engine, model, threads, 32 if quick else 64, 1 if quick else 3, quick)
    device = device_name().replace("1 thread", f"{threads} threads")
    rows = [asdict(replace(result, device=device)) for result in found]
    sys.stdout.write(json.dumps(rows, indent=1) + "\n")


@contextmanager
def pool_of(settings: PoolSettings, model: ModelSpec) -> Iterator[Pool]:
    """A pool whose engine has just started, with the product's settings."""
    pool = Pool(settings, model)
    pool.start()
    try:
        pool.wait_ready(600)
        yield pool
    finally:
        pool.stop()


@contextmanager
def engine_of(settings: PoolSettings, model: ModelSpec) -> Iterator[Engine]:
    """The engine of such a pool."""
    with pool_of(settings, model) as pool:
        yield pool.engine()


def parts(whole: InstructionSet, count: int) -> list[InstructionSet]:
    """As many sets without a common instruction; twins stay with theirs."""
    found = []
    for i in range(count):
        ids = {r.id for r in whole.harmful[i::count]}
        records = tuple(r for r in whole.records if r.id in ids or r.twin_of in ids)
        found.append(whole.model_copy(update={"records": records, "requested": len(ids)}))
    return found


def stage(
    fresh: Callable[[], AbstractContextManager[Engine]],
    model: ModelSpec,
    sets: list[InstructionSet],
    quick: bool,
) -> Result:
    """Seconds per 1,000 tokens through stage 2, and of its requests given to an engine at once."""
    annotations = load_annotations(POLICY)
    through, direct = [], []
    for instructions in sets:
        with fresh() as engine:
            recorded = Recorded(engine)
            begun = time.monotonic()
            synthesize_pairs(
                instructions,
                annotations,
                policy=load_policy(POLICY),
                engine=recorded,
                model=model,
                judges=generation_judges(annotations),
                config=PairConfig(anchors=len(instructions.harmful)),
            )
            through.append((time.monotonic() - begun) / recorded.tokens * 1000)
        with fresh() as engine:
            direct.append(cost_of(engine, recorded.requests))
        say(f"  stage 2 {1000 / through[-1]:.0f} tokens/s, engine {1000 / direct[-1]:.0f}")
    name = "SynthesizePairs: judging included; theirs: the engine alone with its requests"
    return compared(name, through, direct, 0.9, "s/1,000 tokens", quick)


def transformers_beside(
    engine: Engine, model: ModelSpec, threads: int, rounds: int, quick: bool
) -> Result:
    """Seconds per 1,000 tokens of short answers behind a long shared prefix."""
    ours, theirs = [], []
    plain = Transformers(model, threads)
    plain.generate(prompts(2, "warm up"), 2)
    for number in range(rounds):
        messages = prompts(32 if quick else 64, f"round {number + 1}")
        requests = [
            Request(str(i), messages=m, max_tokens=ANSWER_TOKENS, temperature=0.0)
            for i, m in enumerate(messages)
        ]
        ours.append(cost_of(engine, requests))
        theirs.append(min(plain.seconds(messages, batch) for batch in BATCHES))
        say(f"  engine {1000 / ours[-1]:.0f} tokens/s, transformers {1000 / theirs[-1]:.0f}")
    name = f"engine: theirs transformers' generate, {PREFIX_WORDS}-word shared prefix"
    return compared(name, ours, theirs, 2.5, "s/1,000 tokens", quick)


def cost_of(engine: Engine, requests: Sequence[Request]) -> float:
    """Seconds per 1,000 tokens of these, all at once.

    Raises:
        EngineFailed: A request failed: the row would be of something else.
    """
    begun, tokens = time.monotonic(), 0
    for completion in engine.stream(requests):
        if completion.error:
            raise EngineFailed(completion.error)
        tokens += completion.completion_tokens
    return (time.monotonic() - begun) / tokens * 1000


def prompts(count: int, title: str) -> list[tuple[Message, ...]]:
    """Chats of one long system prompt, which the title begins, and as many different questions."""
    words = (
        "Answer briefly, in plain and friendly words, and keep to what was asked. " * 24
    ).split()
    system = Message("system", " ".join([*title.split(), *words][:PREFIX_WORDS]))
    return [
        (system, Message("user", f"Name one use of a garden tool, number {i + 1} on your list."))
        for i in range(count)
    ]


class Transformers:
    """transformers' batched generate, as its documentation shows it."""

    def __init__(self, model: ModelSpec, threads: int) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._threads = threads
        self._tokenizer = AutoTokenizer.from_pretrained(
            model.path, local_files_only=True, padding_side="left"
        )
        self._model = AutoModelForCausalLM.from_pretrained(
            model.path, local_files_only=True, dtype=torch.float32
        ).eval()

    def seconds(self, chats: list[tuple[Message, ...]], batch: int) -> float:
        """Seconds per 1,000 tokens."""
        begun = time.monotonic()
        tokens = self.generate(chats, batch)
        return (time.monotonic() - begun) / tokens * 1000

    def generate(self, chats: list[tuple[Message, ...]], size: int) -> int:
        """Answers all chats; returns the tokens written."""
        tokenizer = self._tokenizer
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        written = 0
        for start in range(0, len(chats), size):
            batch = tokenizer.apply_chat_template(
                [[asdict(m) for m in chat] for chat in chats[start : start + size]],
                add_generation_prompt=True,
                padding=True,
                return_tensors="pt",
                return_dict=True,
            )
            with torch.inference_mode():
                out = self._model.generate(
                    **batch,
                    max_new_tokens=ANSWER_TOKENS,
                    do_sample=False,
                    pad_token_id=tokenizer.eos_token_id,
                )
            new = out[:, batch["input_ids"].shape[1] :]
            ended = (new == tokenizer.eos_token_id).cumsum(1)
            written += int((ended <= 1).sum())  # what follows the end is padding
        torch.set_num_threads(before)
        return written


if __name__ == "__main__":
    main()
