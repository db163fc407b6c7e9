"""What an adapter costs the engine: the same chats through one and through the bare model.

    python -m bench.adapter [--quick]

The adapter has the default rank on every linear of every layer, as `Align` makes it; its weights
are random and small. Rounds are short and interleaved in one engine, so that a machine whose speed
drifts slows both sides; no prompt is asked twice, and answers are cut at the same length.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import torch

from bench.generation import cost_of, pool_of
from bench.results import Result, compared, device_name, say
from ptalign.config import LoraConfig
from ptalign.engines.base import Engine, Message, Request
from ptalign.nouns import ModelSpec
from ptalign.training import lora
from ptalign_server.models import prepare_demo_model
from ptalign_server.pool import PoolSettings

CHATS = 32
"""One full batch of the engine."""
ANSWER_TOKENS = 32
GOAL = 0.7
"""Share of the bare model's rate."""


def main() -> None:
    """Prints the row as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 rounds")
    quick = parser.parse_args().quick
    model = ModelSpec(name="smollm2-135m-instruct", path=str(prepare_demo_model()))
    threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="ptalign-bench-") as folder:
        settings = PoolSettings(state=Path(folder) / "pool", threads=threads)
        adapter = random_adapter(model, Path(folder) / "adapter")
        with pool_of(settings, model) as pool:
            name = pool.serve_adapter("random", adapter)
            result = raced(pool.engine(), name, 3 if quick else 12, quick)
    device = device_name().replace("1 thread", f"{threads} threads")
    sys.stdout.write(json.dumps([asdict(replace(result, device=device))], indent=1) + "\n")


def random_adapter(model: ModelSpec, folder: Path) -> Path:
    """An adapter of the default settings that moves every linear a little."""
    decoder = lora.attach(lora.load_model(model), LoraConfig(), seed=0)
    torch.manual_seed(0)
    for name, parameter in lora.trainable(decoder).items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=1e-3)
    lora.save_adapter(decoder, folder)
    return folder


def raced(engine: Engine, adapter: str, rounds: int, quick: bool) -> Result:
    """Seconds per 1,000 tokens through the adapter, and of the bare model."""
    ours: list[float] = []
    theirs: list[float] = []
    for number in range(rounds + 1):  # the first compiles kernels and is not counted
        for costs, name in ((ours, adapter), (theirs, "")):
            costs.append(cost_of(engine, chats(f"{number}, {name or 'bare'}", name)))
        say(f"  adapter {1000 / ours[-1]:.0f} tokens/s, bare {1000 / theirs[-1]:.0f}")
    name = "engine through an adapter; theirs: without"
    return compared(name, ours[1:], theirs[1:], GOAL, "s/1,000 tokens", quick)


def chats(title: str, adapter: str) -> list[Request]:
    """Questions that ask for more than fits."""
    return [
        Request(
            str(i),
            messages=(Message("user", f"{title}: what is there to see in city number {i}?"),),
            max_tokens=ANSWER_TOKENS,
            temperature=0.0,
            adapter=adapter,
        )
        for i in range(CHATS)
    ]


if __name__ == "__main__":
    main()
