"""The four stages as plain functions, without a ptalign server: for a notebook, or your own job.

They need an OpenAI-compatible engine that serves the model and loads adapters, for example

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=True python -m vllm.entrypoints.openai.api_server \\
        --model FOLDER --served-model-name mine --enable-lora --max-lora-rank 16

and then: python examples/library.py http://127.0.0.1:8000/v1 FOLDER

Not `vllm serve`: the CPU build that `make install` takes lacks what that command asks for. That
build also answers requests to the bare model by the adapter where a batch holds both (vLLM #48421),
and `evaluate` asks both in one stream: on a CPU give the engine `concurrency=1`, one request at a
time, or use the service, whose engines mend it.
"""

import sys
from functools import partial
from pathlib import Path

import httpx

from ptalign.align import align
from ptalign.config import AlignConfig, EvalConfig
from ptalign.engines.openai import OpenAIEngine
from ptalign.evaluate import Target, evaluate
from ptalign.instructions import generate_instructions
from ptalign.judges import evaluation_judges, generation_judges
from ptalign.nouns import ModelSpec
from ptalign.pairs import synthesize_pairs
from ptalign.policies import load_annotations, load_policy
from ptalign.probe import probe
from ptalign.suites import build

url, folder, count = sys.argv[1], sys.argv[2], int((sys.argv[3:] or ["40"])[0])
model = ModelSpec(name="mine", path=folder)
policy, annotations = load_policy("tone-en"), load_annotations("tone-en")
engine = OpenAIEngine(url, model.name)

asks = generate_instructions(policy, count, engine=engine, model=model)
print(f"{len(asks.harmful)} instructions and {len(asks.twins)} twins; rejected: {asks.rejected}")

# A toxic answer prints as length and hash; `pair.toxic.reveal()` is its text.
pairs = synthesize_pairs(
    asks,
    annotations,
    policy=policy,
    engine=engine,
    model=model,
    judges=generation_judges(annotations),
)
print(f"{len(pairs.polarised)} pairs with both sides, {len(pairs.anchors)} anchors")

config = AlignConfig(guards="record")  # the default, "abort", raises where a budget is exceeded
out = Path("library-out", pairs.digest[7:19])  # each set of pairs has a run of its own
adapter = align(pairs, model=model, out=out, config=config, policy=policy)
print(f"{adapter.path}: {adapter.guards}")

name = f"aligned-{adapter.weights_sha256[:12]}"
served = {"lora_name": name, "lora_path": str(Path(adapter.path).resolve())}
httpx.post(f"{engine.url}/load_lora_adapter", json=served, timeout=60).raise_for_status()
settings = EvalConfig(samples=60)
made = evaluate(
    [Target("base"), Target("aligned", name, adapter.method, adapter.path)],
    build(config=settings, pairs=pairs),
    engine=engine,
    model=model,
    judges=evaluation_judges(),
    config=settings,
    pairs=pairs,
    annotations=annotations,  # the judges are checked on them: `result.corrected`
    prober=partial(probe, model=model, samples=settings.samples, policy=policy),
)
print(made.verdict, made.reasons)
for result in made.results:
    print(result.label, {name: round(rate.value, 3) for name, rate in result.rates.items()})
