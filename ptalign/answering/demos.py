"""Demonstrations: from the annotations at first, later from the model's own best answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ptalign.answering.prompts import Demo
from ptalign.answering.validity import refuses
from ptalign.asking.openers import opener_of
from ptalign.nouns import Annotation, Pair
from ptalign.text.sentences import joined, sentences

SHOTS = 5
"""Demonstrations in a constant head."""


def spread(annotations: Sequence[Annotation], count: int = SHOTS) -> list[Annotation]:
    """Annotations evenly over the list, which is ordered by topic: always the same ones."""
    if len(annotations) <= count:
        return list(annotations)
    step = len(annotations) / count
    return [annotations[int(i * step)] for i in range(count)]


def toxic_demos(
    annotations: Sequence[Annotation], rules: Sequence[str], turn: int = 0
) -> list[Demo]:
    """The annotators' bad answers, each under one of the generic rules.

    Args:
        annotations: Ordered by topic.
        rules: Generic rules.
        turn: 0 or 1, for one of two heads. They share no demonstration where there are enough for
            both, and of fewer as few as five in each allow.
    """
    marked = spread([a for a in annotations if a.bad is not None], 2 * SHOTS)
    shown = [*marked[turn::2], *marked[1 - turn :: 2]][:SHOTS]
    return [
        Demo(a.instruction, a.bad.reveal() if a.bad else "", rules[i % len(rules)] if rules else "")
        for i, a in enumerate(shown)
    ]


def own_demos(pairs: Sequence[Pair], rules: Mapping[str, str]) -> list[Demo]:
    """The model's own best toxic answers: highest polarity first, one per topic."""
    ranked = sorted(pairs, key=lambda p: (-min(p.polarity.values(), default=0.0), p.id))
    chosen: list[Demo] = []
    topics: set[str] = set()
    for pair in ranked:
        if pair.toxic is None or pair.topic in topics or len(pair.toxic) < 40:
            continue
        topics.add(pair.topic)
        chosen.append(Demo(pair.instruction, pair.toxic.reveal(), rules.get(pair.topic, "")))
        if len(chosen) == SHOTS:
            break
    return chosen


def positive_demos(
    annotations: Sequence[Annotation],
    rules: Sequence[str],
    benign_openers: Mapping[str, Sequence[str]],
    locale: str = "en",
) -> list[Demo]:
    """What the annotators' good answers offer, without their refusal, to the benign request.

    The model then writes only the alternative and never sees the harmful wording; the refusal
    is put in front of what it writes.
    """
    demos: list[Demo] = []
    for item in annotations:
        offer = joined((p for p in sentences(item.good) if not refuses(p)), locale)
        opener = opener_of(item.instruction, list(benign_openers))
        if not offer or not opener:
            continue
        benign = benign_openers[opener][0] + item.instruction[len(opener) :]
        demos.append(Demo(benign, offer, rules[len(demos) % len(rules)] if rules else ""))
        if len(demos) == SHOTS:
            break
    return demos
