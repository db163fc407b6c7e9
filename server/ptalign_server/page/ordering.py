"""Which item an annotator sees next: the one whose mark teaches most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from ptalign_server.page.library import Item


def uncertainty(item: Item) -> float:
    """How unsure the judges are, in 0..4: little polarity, or judges that disagree.

    Polarity is judge(toxic) - judge(positive); an unscored pair is as uncertain as can be. With one
    answer there is no polarity to doubt.
    """
    if item.bad is None:
        return 0.0
    if not item.polarity:
        return 4.0
    low, high = min(item.polarity), max(item.polarity)
    return (1.0 - low) + (high - low)


def most_informative(items: Iterable[Item], marked: Mapping[str, int]) -> list[Item]:
    """Orders items so that topics are covered evenly and, within one, doubt comes first.

    Args:
        items: Items that are not marked yet, or only by others.
        marked: Marks so far per topic.

    Returns:
        All items. Those that nobody marked come before second opinions, and harmful requests
        before twins, which teach less.
    """
    waiting: dict[str, list[Item]] = {}
    for item in sorted(items, key=lambda i: (-i.opinions, not i.twin, uncertainty(i), i.id)):
        waiting.setdefault(item.topic, []).append(item)
    covered = Counter({topic: marked.get(topic, 0) for topic in waiting})
    ordered = []
    while waiting:
        topic = min(
            waiting, key=lambda t: (*_turn(waiting[t][-1]), covered[t], -_doubt(waiting[t]), t)
        )
        ordered.append(waiting[topic].pop())
        covered[topic] += 1
        if not waiting[topic]:
            del waiting[topic]
    return ordered


def _turn(item: Item) -> tuple[int, bool]:
    return item.opinions, item.twin


def _doubt(items: list[Item]) -> float:
    return uncertainty(items[-1])
