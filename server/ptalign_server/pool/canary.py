"""Proof, at every engine start, that a batch of base and adapter requests keeps them apart."""

from __future__ import annotations

from collections.abc import Sequence

from ptalign.errors import EngineFailed
from ptalign_server.pool.client import EngineClient, Sample

PROMPTS = ("The quick brown fox jumps over", "Water is made of hydrogen and", "One, two, three,")
TOKENS = 12
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.15, "float16": 0.05}
"""Nats of log-probability that batch shape alone may change. The mix-up changes whole nats."""
POWER = 5.0
"""The canary adapter must differ from the base by this many tolerances, or it proves nothing."""


def check(client: EngineClient, *, base: str, canary: str, dtype: str, bare: str = "") -> float:
    """Compares each request alone with the same request in a mixed batch. Also the warm-up.

    Args:
        client: Of the engine to prove.
        base: Name that base requests use.
        canary: Name of an adapter that is not zero.
        dtype: Precision, which sets the tolerance.
        bare: Name of the bare model, to check that `base` stands for it. Only where nobody else
            uses the engine: the bare model is right when it is alone.

    Returns:
        The largest difference found, nats.

    Raises:
        EngineFailed: Mixed and solo differ, `base` is not `bare`, or the canary does nothing.
    """
    tolerance = TOLERANCE[dtype]
    alone = [client.sample(base, prompt, TOKENS) for prompt in PROMPTS]
    changed = [client.sample(canary, prompt, TOKENS) for prompt in PROMPTS]
    power = _apart(alone, changed)
    if power < POWER * tolerance:
        raise EngineFailed(
            f"the canary adapter changed nothing ({power:.4f} nats): no adapters here"
        )
    if bare:
        off = _apart(alone, [client.sample(bare, prompt, TOKENS) for prompt in PROMPTS])
        if off > tolerance:
            raise EngineFailed(f"the adapter for base requests changes them by {off:.3f} nats")
    names = [base] * len(PROMPTS) + [canary] * len(PROMPTS)
    mixed = client.together([(n, p, TOKENS) for n, p in zip(names, PROMPTS * 2, strict=True)])
    worst = _apart(alone + changed, mixed)
    if worst > tolerance:
        raise EngineFailed(
            f"a mixed batch of base and adapter requests differs from solo by {worst:.3f} nats "
            f"(limit {tolerance}): this engine mixes adapters up and is not used"
        )
    return worst


def _apart(some: Sequence[Sample], others: Sequence[Sample]) -> float:
    return max(difference(a, b) for a, b in zip(some, others, strict=True))


def difference(one: Sample, other: Sample) -> float:
    """Largest log-probability difference, nats, up to the first token that differs.

    Where greedy decoding takes another token, the two log-probabilities there still differ little
    if it was a tie, and much if another model answered.
    """
    worst = 0.0
    steps = zip(one.tokens, other.tokens, one.logprobs, other.logprobs, strict=True)
    for token, other_token, logprob, other_logprob in steps:
        worst = max(worst, abs(logprob - other_logprob))
        if token != other_token:
            break
    return worst
