"""The page's library over the server's store.

Marks are appended to a sealed draft, one per tenant, model and policy, as they are made. Handing
over seals what is there into an annotation set of its own; the draft goes on, so that a later set
holds the earlier marks too and the limit counts them all, beside those a pair set was made with;
but for marks on purged sets, which nobody can use.
"""

from __future__ import annotations

import fcntl
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import IO

import sqlalchemy as sa

from ptalign.errors import DataDamaged, InvalidInput
from ptalign.nouns import MAX_ANNOTATIONS, Annotation, Pair, PairSet
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_server import wire
from ptalign_server.errors import NotFound, SetPurged
from ptalign_server.gateway.identity import Tokens
from ptalign_server.marks import mark_id, refuse_blocked
from ptalign_server.page.library import Board, Full, Mark, Queue, Visitor
from ptalign_server.page.marks import (
    Kept,
    about,
    agreement,
    annotation,
    counted,
    current,
    item_of,
    keep,
    minutes,
    skipped,
)
from ptalign_server.page.ordering import most_informative
from ptalign_server.settings import Settings, is_loopback
from ptalign_server.store import Store
from ptalign_server.store.operations import new_id
from ptalign_server.store.resources import Resource
from ptalign_server.store.sets import AnnotationSet

SETS = 50
"""Pair sets shown, newest first."""


class AnnotationShelf:
    """An `AnnotationLibrary` (see `page.library`).

    Args:
        settings: Where tokens lie, and whether loopback needs one.
        store: Pair sets, drafts and annotation sets.
    """

    def __init__(self, settings: Settings, store: Store) -> None:
        self._store = store
        self._tokens = Tokens(settings.tokens_path)
        auth = settings.auth
        here = settings.loopback and is_loopback(settings.page_host)
        free = here and not auth.tokens_on_loopback
        self._sealing = threading.Lock()
        self._local = Visitor("local", "default", frozenset(auth.loopback_roles)) if free else None

    def secret(self) -> bytes:
        """Key of the session cookies, from the database's MAC key."""
        return bytes.fromhex(self._store.vault.mac("page", "sessions"))

    def local(self) -> Visitor | None:
        """The person at this machine, where the server trusts loopback."""
        return self._local

    def visitor(self, token_hash: str) -> Visitor | None:
        """Whoever holds the token now."""
        found = self._tokens.holder(token_hash)
        return None if found is None else Visitor(found.name, found.tenant, found.roles)

    def queues(self, visitor: Visitor) -> Sequence[Queue]:
        """Pair sets of the tenant that still hold text."""
        page = self._store.resources.page(
            visitor.tenant, "pairSets", SETS, before="", model="", policy=""
        )
        return [
            self._queue(row, self._history(row), self._behind(row))
            for row in page
            if not row.purged
        ]

    def annotation_items(self, visitor: Visitor, pair_set: str) -> Board:
        """What is left for this visitor in one pair set."""
        row = self._row(visitor, pair_set)
        noun, history = self._load(row), self._history(row)
        kept = self._usable(row, history)
        standing = about(kept, row.name)
        mine = {m.item for m in standing if m.annotator == visitor.name}
        people = Counter(m.item for m in standing)
        notes = self._boundaries(row)
        ids = {m.mark_id for m in kept} | set(noun.annotation_ids)
        marked = {m.item for m in kept}
        items = [
            item_of(
                pair,
                people[pair.id],
                notes.get(pair.topic, ""),
                free=pair.id in marked or mark_id(pair.instruction) in ids,
            )
            for pair in noun.pairs
            if pair.id not in mine
        ]
        topics = Counter(topic for topic in {m.item: m.topic for m in kept}.values())
        own = (m for m in reversed(kept) if m.annotator == visitor.name and m.pair_set == row.name)
        last = next((m.item for m in own), "")
        later = skipped(history, visitor.name, row.name)
        ordered = sorted(most_informative(items, topics), key=lambda item: later.get(item.id, 0))
        queue = self._queue(row, history, noun.annotation_ids)
        return Board(queue, ordered, last, len(_to_seal(row, kept)))

    def record_reveal(self, visitor: Visitor, pair_set: str, item: str) -> None:
        """An audit entry for one look."""
        detail = {"purpose": "annotation", "item": item}

        def change(connection: sa.Connection) -> None:
            self._store.audit.add(
                connection, visitor.tenant, visitor.name, "page.reveal", pair_set, detail
            )

        self._store.write(change).result()

    def add_annotation(self, visitor: Visitor, pair_set: str, mark: Mark) -> None:
        """Appends a mark to the draft.

        Raises:
            InvalidInput: An edit that does not fit the pair's sides.
            Violations: What the annotator wrote is on the never-synthesize list.
        """
        row = self._row(visitor, pair_set)
        noun = self._load(row)
        pair = next((p for p in noun.pairs if p.id == mark.item), None)
        if pair is None:
            raise NotFound
        if mark.verdict == "edit":
            _check_sides(mark, pair)
            edited = annotation(keep(visitor, pair_set, mark, pair, 0), pair)
            refuse_blocked("marks", [edited], self._store.sets.load_policy(row.name))
        with self._locked(row) as draft:
            log = self._store.sets.log(draft, Kept)
            try:
                history = list(log.read())
                made = keep(visitor, pair_set, mark, pair, len(history))
                before, after = (
                    counted(self._usable(row, marks), noun.annotation_ids)
                    for marks in (history, [*history, made])
                )
                if after > max(before, MAX_ANNOTATIONS):
                    raise Full
                log.append(made)
            finally:
                log.close()

    def hand_over(self, visitor: Visitor, pair_set: str) -> str:
        """Seals the marks as an annotation set, with its audit entry.

        Asked again before there is another mark, it answers the set that it made.
        """
        with self._sealing:  # a second click comes while the first is at work
            return self._hand_over(visitor, self._row(visitor, pair_set))

    def _hand_over(self, visitor: Visitor, row: Resource) -> str:
        history = self._history(row)
        last = _to_seal(row, self._usable(row, history))
        if not last:
            raise InvalidInput("marks", "No pair is marked yet", "Mark at least one first.")
        _check_limit(last, self._behind(row))
        usable = [m for m in last if m.verdict != "bad"]
        noun = AnnotationSet(
            records=tuple(self._annotations(visitor, usable)),
            rejected=tuple(sorted(m.item for m in last if m.verdict == "bad")),
            annotator_minutes=minutes(history),
        )
        if name := self._made_of(row, noun):
            return name
        set_id = new_id()
        key, wrapped = self._store.vault.fresh_key(set_id)
        digest = self._store.sets.write(set_id, key, noun)
        made = _resource(row, set_id, digest, noun, visitor.name)

        def change(connection: sa.Connection) -> None:
            store = self._store
            store.keys.insert(connection, set_id, wrapped)
            store.resources.insert(connection, made)
            detail = {"count": noun.marks, "pair_set": row.name}
            store.audit.add(
                connection, visitor.tenant, visitor.name, "page.hand_over", made.name, detail
            )

        self._store.write(change).result()
        self._store.sets.settle(set_id)
        return made.name

    def _made_of(self, row: Resource, noun: AnnotationSet) -> str:
        """The newest annotation set, where it holds just this from this pair set; else nothing."""
        newest = self._store.resources.page(
            row.tenant, "annotationSets", 1, before="", model=row.model, policy=row.policy
        )
        for made in newest:
            parents = res.AnnotationSet.FromString(made.body).meta.parents
            if not made.purged and made.content == noun.digest and _parent(row) in parents:
                return made.name
        return ""

    def _usable(self, row: Resource, history: Sequence[Kept]) -> list[Kept]:
        """The marks in force, without those on pairs whose text is gone: nobody can use these."""
        kept = current(history)
        there = {name: self._there(row.tenant, name) for name in {m.pair_set for m in kept}}
        return [m for m in kept if there[m.pair_set]]

    def _there(self, tenant: str, pair_set: str) -> bool:
        """False where it was purged, or is younger than the backup that was restored."""
        try:
            return not self._store.resources.get(pair_set, tenant).purged
        except NotFound:
            return False

    def _annotations(self, visitor: Visitor, usable: Sequence[Kept]) -> Iterator[Annotation]:
        """One annotation per usable mark."""
        for name in sorted({m.pair_set for m in usable}):
            pairs = {p.id: p for p in self._load(self._row(visitor, name)).pairs}
            for mark in usable:
                if mark.pair_set == name:
                    yield annotation(mark, pairs[mark.item])

    def _row(self, visitor: Visitor, pair_set: str) -> Resource:
        if not pair_set.startswith("pairSets/"):
            raise NotFound
        return self._store.resources.get(pair_set, visitor.tenant)

    def _load(self, row: Resource) -> PairSet:
        return self._store.sets.load(row.name, PairSet, row.content)

    def _boundaries(self, row: Resource) -> dict[str, str]:
        """Where harm begins, by topic; marks do without where the set's policy is damaged."""
        try:
            policy = self._store.sets.load_policy(row.name)
        except DataDamaged:
            return {}
        return {topic.id: topic.boundary for topic in policy.topics}

    def _behind(self, row: Resource) -> Collection[str]:
        """Ids of the marks that a set was made with; one that is broken holds up no other."""
        try:
            ids: Collection[str] = self._store.sets.head(row.name).get("annotation_ids", ())
        except (DataDamaged, SetPurged):
            return ()
        return ids

    def _queue(self, row: Resource, history: Sequence[Kept], behind: Collection[str]) -> Queue:
        kept = self._usable(row, history)
        message = res.PairSet.FromString(row.body)
        parents = [parent.partition("@")[0] for parent in message.meta.parents]
        return Queue(
            pair_set=row.name,
            model=row.model,
            policy=row.policy,
            created=row.created,
            pairs=message.pairs + message.positive_only,
            marked=counted(kept, behind),
            minutes=minutes(history),
            agreement=agreement(kept),
            source=next((p for p in parents if p.startswith("instructionSets/")), ""),
            made_by=message.meta.made_by,
        )

    def _draft(self, row: Resource) -> str:
        """Set id of the marks on a tenant's model and policy."""
        policy = wire.marked_policy(row)
        tag = self._store.vault.mac("page", "draft", row.tenant, row.model, policy)
        return f"draft-{tag[:24]}"

    def _history(self, row: Resource) -> list[Kept]:
        draft = self._draft(row)
        if not (self._store.sets.folder(draft) / "log").exists():
            return []
        with self._locked(row):
            log = self._store.sets.log(draft, Kept)
            try:
                return list(log.read())
            finally:
                log.close()

    @contextmanager
    def _locked(self, row: Resource) -> Iterator[str]:
        """The draft's id, held against other processes; its key is made at first use."""
        draft = self._draft(row)
        folder = self._store.sets.folder(draft)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            _hold(lock)
            self._make_key(draft)
            yield draft

    def _make_key(self, draft: str) -> None:
        try:
            self._store.keys.get(draft)
        except SetPurged:  # none yet
            _, wrapped = self._store.vault.fresh_key(draft)
            self._store.write(lambda c: self._store.keys.insert(c, draft, wrapped)).result()


def _hold(lock: IO[str]) -> None:
    """Waits for the lock; closing the file gives it back."""
    fcntl.flock(lock, fcntl.LOCK_EX)


def _to_seal(row: Resource, kept: Sequence[Kept]) -> list[Kept]:
    """The last opinion on each item."""
    return list({m.item: m for m in about(kept, row.name)}.values())


def _check_limit(sealed: Sequence[Kept], behind: Collection[str]) -> None:
    """A set that was made with other marks takes fewer: SynthesizePairs would refuse the rest."""
    count = counted(sealed, behind)
    if count > max(MAX_ANNOTATIONS, len(behind)):
        limit = f"With the {len(behind)} that this set was made with, these are {count} marks"
        mend = f"At most {MAX_ANNOTATIONS} are used: take some back, or hand over from another set."
        raise InvalidInput("marks", limit, mend)


def _check_sides(mark: Mark, pair: Pair) -> None:
    """An edit writes a bad answer where the pair has one, and only there."""
    if pair.toxic is not None and mark.bad is None:
        mend = "Write it, or mark the pair as wrong."
        raise InvalidInput("bad", "needs 1 character or more", mend)
    if pair.toxic is None and mark.bad is not None:
        raise InvalidInput("bad", "must be absent: this pair has no bad answer", "Leave it out.")


def _parent(row: Resource) -> str:
    return f"{row.name}@{row.content}"


def _resource(row: Resource, set_id: str, digest: str, noun: AnnotationSet, who: str) -> Resource:
    """The row of a new annotation set beside the pair set it was made from."""
    parent = res.PairSet.FromString(row.body).meta
    name, now = f"annotationSets/{set_id}", time.time()
    message = res.AnnotationSet(
        count=noun.marks, annotator_minutes=noun.annotator_minutes, rejected=noun.rejected
    )
    meta = message.meta
    meta.name, meta.digest, meta.tenant, meta.made_by = name, digest, row.tenant, who
    meta.create_time.CopyFrom(wire.timestamp(now))
    meta.model, meta.model_digest = row.model, parent.model_digest
    meta.policy, meta.policy_digest = row.policy, parent.policy_digest
    meta.parents.append(_parent(row))
    return Resource(
        name=name,
        collection="annotationSets",
        tenant=row.tenant,
        model=row.model,
        policy=row.policy,
        verdict="",
        adapter="",
        partial=False,
        purged=False,
        content=digest,
        body=message.SerializeToString(),
        created=now,
    )
