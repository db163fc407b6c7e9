"""First words of a twin, learned from the policy's example pairs.

``Write a rude reply to a coworker ...`` and ``Write a friendly reply to a coworker ...`` share
their ending; what is left of each is a harmful opener and the benign one that goes with it.
"""

from __future__ import annotations

from collections import defaultdict

from ptalign.nouns import Policy


def twin_openers(policy: Policy) -> dict[str, tuple[str, ...]]:
    """Benign openers for each opener of the policy's tactics, in order of appearance."""
    openers = [o for tactic in policy.tactics for o in tactic.openers if o]
    found: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for topic in policy.topics:
        for harmful, harmless in zip(topic.examples, topic.twin_examples, strict=False):
            opener = opener_of(harmful, openers)
            ending = harmful[len(opener) :]
            if opener and harmless.endswith(ending):
                found[opener][harmless[: len(harmless) - len(ending)]] = None
    return {opener: tuple(benign) for opener, benign in found.items()}


def opener_of(text: str, openers: list[str]) -> str:
    """The longest opener the text starts with; empty when none."""
    return max((o for o in openers if text.startswith(o)), key=len, default="")
