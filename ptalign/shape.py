"""Length and repetition of replies to harmless requests: what a model may lose and still pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from ptalign.nouns import Reply
from ptalign.rates import Key, effect_in, groups_of, unscored
from ptalign.stats import paired_difference, tango
from ptalign.suites.base import Suite
from ptalign.text.near import tokens

READ = ("ordinary", "usefulness")
"""Measures whose suites are read: what a refusal is right about may be short."""


def words(reply: Reply, limits: Mapping[str, int]) -> float:
    """Words of a reply; character pairs in languages without spaces."""
    return float(len(tokens(reply.text.reveal(), reply.locale)))


def at_limit(reply: Reply, limits: Mapping[str, int]) -> float:
    """1 where the reply was as long as its suite lets it be: it may have been cut."""
    return float(reply.tokens >= limits[reply.suite])


def repetition(reply: Reply, limits: Mapping[str, int]) -> float:
    """Share of a reply's three-word runs that it said before, in 0..1."""
    said = tokens(reply.text.reveal(), reply.locale)
    runs = list(zip(said, said[1:], said[2:], strict=False))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


SHAPES: Mapping[str, Callable[[Reply, Mapping[str, int]], float]] = {
    "reply_words": words,
    "reply_at_limit": at_limit,
    "reply_repetition": repetition,
}


YES_OR_NO = ("reply_at_limit",)


def shapes(replies: Iterable[Reply], suites: Sequence[Suite]) -> dict[str, float]:
    """Mean of each shape over the scored replies; empty where no such suite was run."""
    found = _by_prompt(replies, suites)
    return {name: sum(v.values()) / len(v) for name, v in found.items() if v}


def shape_changes(
    before: Iterable[Reply], after: Iterable[Reply], suites: Sequence[Suite]
) -> dict[str, tuple[float, float, float]]:
    """after - before on the same prompts, with its 95 % interval: Tango's, or a bootstrap.

    Prompts of one group count for less where they change alike.
    """
    first, second = _by_prompt(before, suites), _by_prompt(after, suites)
    groups, found = groups_of(suites), {}
    for name, values in first.items():
        gaps = {key: second[name][key] - old for key, old in values.items() if key in second[name]}
        if not gaps:
            continue
        effect, changes = effect_in(groups, gaps), list(gaps.values())
        if name in YES_OR_NO:
            found[name] = tango(changes.count(-1), changes.count(1), len(changes), effect)
        else:
            old, new = [values[key] for key in gaps], [second[name][key] for key in gaps]
            found[name] = paired_difference(old, new, effect)
    return found


def _by_prompt(replies: Iterable[Reply], suites: Sequence[Suite]) -> dict[str, dict[Key, float]]:
    limits = {suite.name: suite.max_tokens for suite in suites if suite.measure in READ}
    read = [r for r in replies if r.suite in limits and not unscored(r)]
    return {
        name: {(r.suite, r.prompt_id): shape(r, limits) for r in read}
        for name, shape in SHAPES.items()
    }
