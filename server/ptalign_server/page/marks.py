"""Marks as they are kept, and what follows from them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ptalign.nouns import Annotation, Noun, Pair, record_id
from ptalign.sealed import SealedText
from ptalign_server.marks import mark_id
from ptalign_server.page.library import Item, Mark, Verdict, Visitor


class Kept(Noun):
    """One mark in a draft. A later one of the same annotator on the same item replaces it.

    It holds text only where the annotator wrote it: the pair's own stays in its set, so that
    purging the set leaves none of it here.
    """

    id: str
    pair_set: str
    item: str
    annotator: str
    verdict: Verdict
    topic: str
    seconds: float
    good: str = ""
    bad: SealedText | None = None
    mark_id: str = ""
    """As in a pair set's `annotation_ids`; empty in drafts of earlier versions."""


def keep(visitor: Visitor, pair_set: str, mark: Mark, pair: Pair, ordinal: int) -> Kept:
    """A visitor's mark as the draft keeps it; `ordinal` is its place there."""
    return Kept(
        id=record_id(visitor.name, mark.item, str(ordinal)),
        pair_set=pair_set,
        item=mark.item,
        annotator=visitor.name,
        verdict=mark.verdict,
        topic=pair.topic,
        seconds=mark.seconds,
        good=mark.good,
        bad=mark.bad,
        mark_id=mark_id(pair.instruction),
    )


def current(history: Sequence[Kept]) -> list[Kept]:
    """The last word of each annotator on each item, in the order it was spoken.

    Items of two sets may share an id: "wrong" stands for each set that it was said of, and taking
    a mark back takes what was said in that set alone.
    """
    latest: dict[tuple[str, str, str], Kept] = {}
    for mark in history:
        if mark.verdict == "skipped":
            continue  # it takes no earlier word back
        of_set = mark.annotator, mark.item, mark.pair_set
        of_all = mark.annotator, mark.item, ""
        latest.pop(of_set, None)
        if mark.verdict != "withdrawn":
            latest.pop(of_all, None)
            latest[of_set if mark.verdict == "bad" else of_all] = mark
        elif (said := latest.get(of_all)) and said.pair_set == mark.pair_set:
            del latest[of_all]
    return list(latest.values())


def skipped(history: Sequence[Kept], annotator: str, pair_set: str) -> dict[str, int]:
    """The place of each item that an annotator skipped in a set, last the one skipped last."""
    return {
        m.item: place
        for place, m in enumerate(history, 1)
        if m.verdict == "skipped" and (m.annotator, m.pair_set) == (annotator, pair_set)
    }


def about(kept: Sequence[Kept], pair_set: str) -> list[Kept]:
    """The marks that hold for a pair set: "wrong" is said of the answers of one set alone.

    A set that refines it has others under the same ids.
    """
    return [m for m in kept if m.verdict != "bad" or m.pair_set == pair_set]


def counted(kept: Sequence[Kept], behind: Collection[str]) -> int:
    """Marks behind the set that these would refine: they and those it was made with, each once.

    Marks of earlier versions have no id and are counted by their items: they may be among `behind`.
    """
    ids = {m.mark_id for m in kept if m.mark_id} | set(behind)
    return max(len(ids), len({m.item for m in kept}))


def minutes(history: Sequence[Kept]) -> float:
    """Annotators' time: a mark that was taken back or made anew took some, too."""
    return sum(m.seconds for m in history) / 60


def agreement(kept: Sequence[Kept]) -> float | None:
    """Share of items with one opinion among those that several people marked.

    An edit is an opinion of its own: who rewrites an answer does not find it right. People who
    marked an item in two sets may have seen two answers: they neither agree nor disagree.
    """
    verdicts: dict[tuple[str, str], list[str]] = {}
    for mark in kept:
        verdicts.setdefault((mark.pair_set, mark.item), []).append(mark.verdict)
    shared = [v for v in verdicts.values() if len(v) > 1]
    return sum(len(set(v)) == 1 for v in shared) / len(shared) if shared else None


def item_of(pair: Pair, opinions: int, boundary: str = "", *, free: bool = False) -> Item:
    """A pair to be looked at; `free`: another mark on it is not one more."""
    return Item(
        id=pair.id,
        topic=pair.topic,
        instruction=SealedText(pair.instruction),
        good=SealedText(pair.positive),
        bad=pair.toxic,
        twin=pair.kind == "twin",
        polarity=tuple(pair.polarity.values()),
        opinions=opinions,
        boundary=boundary,
        free=free,
    )


def annotation(mark: Kept, pair: Pair) -> Annotation:
    """What a confirmed or edited pair teaches."""
    edited = mark.verdict == "edit"
    return Annotation(
        instruction=pair.instruction,
        good=mark.good if edited else pair.positive,
        bad=mark.bad if edited else pair.toxic,
        topic=pair.topic,
        note="edited" if edited else "confirmed",
    )
