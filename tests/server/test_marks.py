"""Which marks an evaluation finds for a pair set: those in its call, in sets, and of parents."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import page_world as world
import pytest

from ptalign.nouns import Annotation, Noun
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server.gateway.purge import destroy
from ptalign_server.store import Store
from ptalign_server.store.operations import SUCCEEDED, Operation, new_id
from ptalign_server.store.resources import Resource
from ptalign_server.store.sets import AnnotationSet
from ptalign_server.worker.job import Job
from ptalign_server.worker.marks import marked_for


@pytest.fixture
def store(tmp_path: Path) -> Any:
    _, opened = world.open_store(tmp_path)
    yield opened
    opened.close()


def job(store: Store, tenant: str = "default") -> Job:
    operation: Any = SimpleNamespace(tenant=tenant, id="evaluate")
    room: Any = SimpleNamespace(store=store)
    nothing: Any = None
    return Job(operation, nothing, room, nothing, lambda: False)


def add(store: Store, noun: Noun, message: Any, call: Any = None, *parents: str) -> str:
    """A sealed set with its row, and the operation that made it where it had a call."""
    collection = "pairSets" if isinstance(message, res.PairSet) else "annotationSets"
    set_id = new_id()
    name = f"{collection}/{set_id}"
    key, wrapped = store.vault.fresh_key(set_id)
    digest = store.sets.write(set_id, key, noun)
    message.meta.name = name
    message.meta.parents.extend(f"{parent}@sha256:0" for parent in parents)
    now = time.time()
    operation = None
    if call is not None:
        message.meta.operation = f"operations/{set_id}"
        sealed = key.seal("request", call.SerializeToString())
        metadata = pb.SynthesizePairsMetadata().SerializeToString()
        operation = Operation(
            *(set_id, "default", "dev", "SynthesizePairs", SUCCEEDED, 1, 1, sealed, metadata),
            *(b"", name, now, now, now, now),
        )
    row = Resource(
        *(name, collection, "default", "m", "tone", "", "", False, False, digest),
        *(message.SerializeToString(), now),
    )

    def change(connection: Any) -> None:
        store.keys.insert(connection, set_id, wrapped)
        store.resources.insert(connection, row)
        if operation is not None:
            store.operations.insert(connection, operation)

    store.write(change).result()
    return name


def inline(*words: str) -> pb.SynthesizePairsRequest:
    items = [res.Annotation(instruction=w, good=f"good {w}", bad=f"bad {w}") for w in words]
    return pb.SynthesizePairsRequest(annotations=pb.Annotations(items=items))


def annotations(store: Store, *words: str) -> str:
    records = tuple(Annotation(instruction=w, good=f"good {w}") for w in words)
    return add(store, AnnotationSet(records=records), res.AnnotationSet(count=len(words)))


def found(store: Store, name: str, tenant: str = "default") -> list[str]:
    return [mark.instruction for mark in marked_for(job(store, tenant), name)]


def purge(store: Store, name: str) -> None:
    row = store.resources.get(name, "default")
    store.write(lambda c: destroy(store, c, row, "dev", "a test")).result()


def test_marks_inside_the_call_are_read_from_it_whole(store: Store) -> None:
    name = add(store, world.pairs(2), res.PairSet(), inline("a", "b"))
    [first, second] = marked_for(job(store), name)
    assert (first.instruction, first.good) == ("a", "good a")
    assert second.bad is not None
    assert second.bad.reveal() == "bad b"


def test_marks_of_sets_and_of_parents_count_too_each_once(store: Store) -> None:
    older = add(store, world.pairs(2), res.PairSet(), inline("a", "b"))
    marked = annotations(store, "c")
    call = pb.SynthesizePairsRequest(annotation_set=marked, parent=older)
    newer = add(store, world.pairs(3), res.PairSet(), call, marked, older)
    merged = add(store, world.pairs(4), res.PairSet(), None, newer, older)
    assert sorted(found(store, merged)) == ["a", "b", "c"]
    assert found(store, newer)[0] == "c"


def test_what_was_purged_deleted_or_is_anothers_is_passed_over(store: Store) -> None:
    marked = annotations(store, "c")
    older = add(store, world.pairs(2), res.PairSet(), inline("a"))
    newer = add(store, world.pairs(3), res.PairSet(), inline("b"), marked, older)
    assert found(store, newer, "another tenant") == []
    purge(store, marked)
    assert sorted(found(store, newer)) == ["a", "b"]
    store.write(lambda c: store.operations.delete(c, older.partition("/")[2])).result()
    assert found(store, newer) == ["b"]
    purge(store, newer)
    assert found(store, newer) == []
    assert found(store, "") == []
