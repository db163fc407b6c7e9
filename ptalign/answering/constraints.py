"""Constraints: the rules an answer is written under, and how they are refined.

A topic starts with the policy's generic rules. The model writes rules of its own for the topic;
each round keeps those under which most drafts were accepted and asks for new ones with the best
as examples (self-constraint-driven refinement: arXiv 2502.08657, section 3).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ptalign.answering.wording import Wording, wording
from ptalign.engines.base import Request
from ptalign.nouns import Constraint, Pair, PairSet, Policy, Topic
from ptalign.policies.never import blocked
from ptalign.text.near import rouge_l, tokens
from ptalign.text.normalise import plain

Side = Literal["positive", "toxic"]
KEPT = 3
"""Rules with a record that are kept per topic and side; those not tried yet stand beside them."""


@dataclass(slots=True)
class Rule:
    """A constraint with what came of the drafts written under it."""

    text: str
    tried: int = 0
    accepted: int = 0

    @property
    def share(self) -> float:
        """Accepted share, with one success and one failure assumed beforehand."""
        return (self.accepted + 1) / (self.tried + 2)


class Constraints:
    """The rules per topic and side.

    Args:
        policy: Generic rules to start from.
        words: Wording of the policy's language.
        earlier: Refined rules of a parent set, ``topic/side`` -> rules. What the policy's list
            forbids is passed over: they were written under another one.
    """

    def __init__(
        self, policy: Policy, words: Wording, earlier: dict[str, tuple[str, ...]] | None = None
    ) -> None:
        self._policy, self._words = policy, words
        generic: dict[Side, tuple[str, ...]] = {
            "positive": policy.generic_constraints_positive or (words.general_rule_positive,),
            "toxic": policy.generic_constraints_toxic,
        }
        self._generic = generic
        self._rules: defaultdict[tuple[str, Side], list[Rule]] = defaultdict(list)
        for name, texts in (earlier or {}).items():
            topic, _, side = name.rpartition("/")
            if side in ("positive", "toxic"):
                fit = (Rule(text) for text in texts if not blocked(text, policy))
                self._rules[topic, side].extend(fit)  # type: ignore[index]

    def best(self, topic: str, side: Side) -> Rule:
        """The rule to write under next: the topic's own with the best record, else a generic."""
        rules = self._rules[topic, side]
        if not rules:
            rules.extend(Rule(text) for text in self._generic[side][:KEPT])
        return max(rules, key=lambda r: (r.share, -r.tried)) if rules else Rule("")

    def request(self, key: str, topic: Topic, side: Side, turn: int) -> tuple[Request, str]:
        """A request for a new rule of this topic, and the verb it starts with."""
        openers = (
            self._words.constraint_openers_positive
            if side == "positive"
            else self._words.constraint_openers_toxic
        )
        opener = openers[turn % len(openers)]
        known = self._best_everywhere(side)
        shots = "".join(f"{title}\n{self._words.rule}: {text}\n\n" for title, text in known)
        prompt = f"{shots}{topic.title}\n{self._words.rule}:"
        request = Request(
            key=key,
            prompt=prompt,
            prefill=f" {opener}",
            stop=("\n",),
            max_tokens=24,
            temperature=0.7,
        )
        return request, opener

    def offer(self, topic: str, side: Side, text: str, *, finished: bool) -> str:
        """Takes a rule the model wrote, or says why not."""
        text = plain(text)
        words = tokens(text, self._policy.locale)
        if not finished or not 3 <= len(words) <= 24:
            return "constraint_malformed"
        if blocked(text, self._policy):
            return "never_synthesize"
        rules = self._rules[topic, side]
        self.best(topic, side)
        if any(rouge_l(words, tokens(r.text, self._policy.locale)) > 0.7 for r in rules):
            return "constraint_known"
        rules.append(Rule(text))
        tried = [r for r in rules if r.tried]
        if len(tried) > KEPT:
            rules.remove(min(tried, key=lambda r: r.share))
        return ""

    def restore(self, rule: Constraint) -> None:
        """Takes a rule of an earlier attempt; what came of it is not known any more."""
        self.best(rule.topic, rule.side)  # the topic's first rules stood before it
        self._rules[rule.topic, rule.side].append(Rule(rule.text))

    def refined(self, topics: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """``topic/side`` -> rules, best first, of the topics in use; `KEPT` at most.

        What was not tried comes last: at most one draft of a wave is accepted, so that even the
        best record is hardly above the half that a new rule is assumed to have. The newest of these
        has the last place, so that a rule that the model wrote at the end is handed on too.
        """
        return {
            f"{topic}/{side}": tuple(r.text for r in _handed_on(rules))
            for (topic, side), rules in sorted(self._rules.items())
            if topic in topics and rules
        }

    def _best_everywhere(self, side: Side) -> list[tuple[str, str]]:
        """Topic titles with a rule each: proven rules first, then generic ones.

        A set may hold topics that the policy lacks: their rules have no title to show.
        """
        titles = {topic.id: topic.title for topic in self._policy.topics}
        proven = sorted(
            (
                (r.share, topic, r.text)
                for (topic, s), rules in self._rules.items()
                for r in rules
                if s == side and r.accepted and topic in titles
            ),
            reverse=True,
        )[:3]
        known = [(titles[topic], text) for _, topic, text in proven]
        generic = list(zip(titles.values(), self._generic[side], strict=False))
        return (generic + known)[-5:]


def refined_so_far(
    rules: Iterable[Constraint], pairs: Iterable[Pair], policy: Policy, parent: PairSet | None
) -> dict[str, tuple[str, ...]]:
    """`Constraints.refined` of a set that was stopped, by the rules and pairs in its log."""
    found = Constraints(policy, wording(policy.locale), parent.constraints if parent else None)
    for rule in rules:
        found.restore(rule)
    return found.refined(sorted({pair.topic for pair in pairs}))


def _handed_on(rules: Sequence[Rule]) -> list[Rule]:
    ranked = sorted(rules, key=lambda r: (r.tried > 0, r.share), reverse=True)
    best, rest = ranked[: KEPT - 1], ranked[KEPT - 1 :]
    untried = [r for r in rest if not r.tried]
    return [*best, *(untried[-1:] or rest[:1])]
