"""What adapters were trained on, and which judges filtered or weighed it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TypeVar

from ptalign.nouns import Anchor, Pair, PairSet
from ptalign.text.normalise import caseless
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_server.errors import NotFound, SetPurged
from ptalign_server.lineage import own_pairs, trained_on
from ptalign_server.store.resources import Resource
from ptalign_server.wire import COLLECTIONS
from ptalign_server.worker.job import Job
from ptalign_server.worker.lineage import lineage

R = TypeVar("R", Pair, Anchor)
Request = tuple[str, str]
"""``twin``, ``anchor`` or ``pair``, and what was asked: sets give one request several ids, where it
was generated in one and imported in the other."""


@dataclass(frozen=True, slots=True)
class Trained:
    """The training data that an evaluation looks at and keeps away from."""

    name: str
    """The pair set that is measured on and reported: the target adapter's own. Where it has none
    with text, the one that the call names. Empty: there is none."""
    pairs: PairSet | None
    """Its content; held out in it is only what no target was trained on, however long ago."""
    seen: PairSet | None
    """All pairs and anchors that a target saw, or that the call adds; None: nothing is known."""
    judge_ids: tuple[str, ...]
    """Judges that filtered any of them, those of purged sets too, or weighed their tokens."""
    lost: tuple[str, ...] = ()
    """Pair sets that a target or its parents were trained on, whose text is gone: what is asked
    cannot be kept apart from them."""

    @property
    def with_all_judges(self) -> PairSet | None:
        """`pairs`, or an empty set, that names all of `judge_ids`: none of them may grade here."""
        pairs = self.pairs
        if pairs is None:
            return PairSet(pairs=(), judge_ids=self.judge_ids) if self.judge_ids else None
        return pairs.model_copy(update={"judge_ids": self.judge_ids})


def trained(job: Job, adapters: Sequence[str], named: str) -> Trained:
    """Reads the pair sets of the adapters' whole lineage, whose digests must hold.

    An adapter may have been continued from another, and a pair set may be made of others.

    Args:
        job: An Evaluate.
        adapters: Of the targets, the one of the verdict first; empty for the bare model.
        named: A pair set that the call names: it adds to the others. May be empty.
    """
    whole = list(lineage(job, *adapters, named))
    line = [r for r in whole if r.collection in ("adapters", "pairSets")]
    loaded = _loaded(job, line)
    judges = {j for pairs in loaded.values() for j in pairs.judge_ids}
    judges |= {j for r in line for j in COLLECTIONS[r.collection].FromString(r.body).meta.judges}
    name = next((n for n in (_own(job, adapters[0]), named) if n in loaded), "")
    pairs = loaded.get(name)
    if pairs is not None:
        pairs = _without_marks(pairs, _taught(whole, loaded))
    lost = tuple(dict.fromkeys(name for name in trained_on(whole) if name not in loaded))
    return Trained(name, pairs, _union(list(loaded.values())), tuple(sorted(judges)), lost)


def taught(job: Job, adapter: str, pairs: PairSet) -> list[str]:
    """Ids of the held-out pairs and anchors of `pairs` whose request the adapter, or one it was
    continued from, was trained on.

    A small set holds nothing out, and a larger one of the same instructions does. Sets whose text
    was purged are passed over.
    """
    line = list(lineage(job, adapter))
    known = _taught(line, _loaded(job, line))
    return [r.id for r in _records(pairs) if r.held_out and _request(r) in known]


def _loaded(job: Job, line: Iterable[Resource]) -> dict[str, PairSet]:
    """The pair sets of a lineage that still have their text, by name."""
    names = [r.name for r in line if r.collection == "pairSets"]
    return {name: pairs for name in names if (pairs := _pairs(job, name)) is not None}


def _taught(line: Iterable[Resource], loaded: Mapping[str, PairSet]) -> set[Request]:
    return {
        _request(record)
        for name in set(trained_on(line)) & loaded.keys()
        for record in _records(loaded[name])
        if not record.held_out
    }


def _records(pairs: PairSet) -> Iterator[Pair | Anchor]:
    yield from pairs.pairs
    yield from pairs.anchors


def _request(record: Pair | Anchor) -> Request:
    kind = "anchor" if isinstance(record, Anchor) else "twin" if record.kind == "twin" else "pair"
    return kind, caseless(record.instruction)


def _without_marks(pairs: PairSet, known: AbstractSet[Request]) -> PairSet:
    """The set with what answers these requests as trained on."""

    def marked(records: Iterable[R]) -> tuple[R, ...]:
        return tuple(
            r.model_copy(update={"held_out": False}) if r.held_out and _request(r) in known else r
            for r in records
        )

    return pairs.model_copy(update={"pairs": marked(pairs.pairs), "anchors": marked(pairs.anchors)})


def trained_under(job: Job) -> tuple[str, str]:
    """Name and digest of the policy of an Evaluate's target, whose sets may all be purged."""
    adapter = job.request.target.adapter
    if not adapter:
        return "", ""
    meta = res.Adapter.FromString(job.resource(adapter).body).meta
    return meta.policy, meta.policy_digest


def _own(job: Job, adapter: str) -> str:
    """The pair set that an adapter was made from."""
    return own_pairs(job.resource(adapter)) if adapter else ""


def _pairs(job: Job, name: str) -> PairSet | None:
    """A pair set; None when it is not there or its text was purged."""
    try:
        return job.load(name, PairSet)
    except (NotFound, SetPurged):
        return None


def _union(sets: Sequence[PairSet]) -> PairSet | None:
    if not sets:
        return None
    return PairSet(
        pairs=tuple(pair for pairs in sets for pair in pairs.pairs),
        anchors=tuple(anchor for pairs in sets for anchor in pairs.anchors),
    )
