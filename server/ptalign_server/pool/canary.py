"""Proof, at every engine start, that a batch of base and adapter requests keeps them apart."""

from __future__ import annotations

from ptalign.errors import EngineFailed
from ptalign_server.pool.wire import Sample, Wire

PROMPTS = ("The quick brown fox jumps over", "Water is made of hydrogen and", "One, two, three,")
TOKENS = 12
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.15, "float16": 0.05}
"""Nats of log-probability that batch shape alone may change. The mix-up changes whole nats."""
POWER = 5.0
"""The canary adapter must differ from the base by this many tolerances, or it proves nothing."""


def check(wire: Wire, *, bare: str, base: str, canary: str, dtype: str) -> float:
    """Compares each request alone with the same request in a mixed batch. Also the warm-up.

    Args:
        wire: The engine.
        bare: Name of the bare model, right when it is alone.
        base: Name that base requests use: the zero adapter's, or `bare`.
        canary: Name of the adapter that is not zero.
        dtype: Precision, which sets the tolerance.

    Returns:
        The largest difference found, nats.

    Raises:
        EngineFailed: Mixed and solo differ, the zero adapter is not zero, or the canary adapter
            does nothing.
    """
    tolerance = TOLERANCE[dtype]
    alone = [wire.sample(bare, prompt, TOKENS) for prompt in PROMPTS]
    changed = [wire.sample(canary, prompt, TOKENS) for prompt in PROMPTS]
    power = max(difference(a, c) for a, c in zip(alone, changed, strict=True))
    if power < POWER * tolerance:
        raise EngineFailed(
            f"the canary adapter changed nothing ({power:.4f} nats): no adapters here"
        )
    names = [base] * len(PROMPTS) + [canary] * len(PROMPTS)
    mixed = wire.together([(n, p, TOKENS) for n, p in zip(names, PROMPTS * 2, strict=True)])
    worst = max(difference(a, m) for a, m in zip(alone + changed, mixed, strict=True))
    if worst > tolerance:
        raise EngineFailed(
            f"a mixed batch of base and adapter requests differs from solo by {worst:.3f} nats "
            f"(limit {tolerance}): this engine mixes adapters up and is not used"
        )
    return worst


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
