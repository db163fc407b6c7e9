"""The library: views, downloads, imports, merges, purge."""

from __future__ import annotations

import hashlib
import io
import json
import uuid
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from google.longrunning import operations_pb2_grpc
from grpc_health.v1 import health
from grpc_status import rpc_status
from test_release import put as put_row

from ptalign import policies
from ptalign.nouns import Adapter, ModelSpec, Policy, Suppressed
from ptalign.policies import load_policy
from ptalign.sealed import SealedText
from ptalign_proto.v1 import library_pb2 as lib
from ptalign_proto.v1 import library_pb2_grpc
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_server import wire
from ptalign_server.catalogue import write_models
from ptalign_server.gateway.identity import Tokens
from ptalign_server.gateway.purge import finish_purges
from ptalign_server.gateway.serve import make_server
from ptalign_server.metrics import Metrics
from ptalign_server.settings import AuthSettings, Settings
from ptalign_server.store import Store
from ptalign_server.store.operations import new_id

POLICY = "tone-en"
CANARY = "canary-4b1d-phrase"
TONE = next(t for t in load_policy(POLICY).topics if t.sides == "both")


class Shelf:
    """Library stubs, and the store behind them."""

    def __init__(self, channel: Any, store: Store, state: Path) -> None:
        self.library: Any = library_pb2_grpc.LibraryStub(channel)
        self.operations: Any = operations_pb2_grpc.OperationsStub(channel)
        self.store = store
        self.state = state


async def serve(state: Path, **settings: Any) -> AsyncIterator[Shelf]:
    configured = Settings(state=state, **settings)
    configured.make_folders()
    write_models(configured.models_path, {"tiny": ModelSpec(name="tiny", path=str(state))})
    store = Store(configured, wire.freeze)
    server = make_server(configured, store, Metrics(), health.aio.HealthServicer())
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    yield Shelf(channel, store, state)
    await channel.close()
    await server.stop(0)
    store.close()


@pytest.fixture
async def shelf(tmp_path: Path) -> AsyncIterator[Shelf]:
    async for opened in serve(tmp_path / "state"):
        yield opened


def pair(number: int, **changes: Any) -> lib.Record:
    values = {
        "kind": "pair",
        "topic": TONE.id,
        "instruction": f"Write a cold note about desk {number} {CANARY}",
        "positive": f"Here is a kind note about desk {number}.",
        "toxic": f"What a silly desk {number}. {CANARY}",
    }
    return lib.Record(**(values | changes))


def batches(
    kind: str, records: Iterable[lib.Record], request_id: str = ""
) -> Iterable[lib.ImportSetRequest]:
    header = lib.ImportHeader(kind=kind, model="tiny", policy=POLICY, request_id=request_id)
    yield lib.ImportSetRequest(header=header)
    for record in records:
        yield lib.ImportSetRequest(records=[record])


async def bring(shelf: Shelf, count: int = 3, **changes: Any) -> str:
    answer = await shelf.library.ImportSet(
        batches("pairSets", [pair(i, **changes) for i in range(count)])
    )
    assert answer.accepted == count
    return str(answer.name)


def actions(shelf: Shelf) -> list[str]:
    """What the audit trail says was done."""
    return [entry.action for entry in shelf.store.audit.entries()]


async def text_of(call: Any) -> tuple[str, str]:
    """Status code name and text of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    assert rpc_status.from_call(caught.value) is not None
    return caught.value.code().name, str(caught.value.details())


async def fetch(shelf: Shelf, name: str, part: str, offset: int = 0, **extra: Any) -> Any:
    request = lib.DownloadRequest(name=name, part=part, offset=offset, **extra)
    info, data = None, b""
    async for chunk in shelf.library.Download(request):
        if chunk.HasField("info"):
            assert info is None
            assert not data
            info = chunk.info
        assert chunk.offset == offset + len(data)
        data += chunk.data
    return info, data


async def records(shelf: Shelf, name: str, **view: Any) -> list[lib.Record]:
    request = lib.StreamRecordsRequest(name=name, **view)
    return [record async for record in shelf.library.StreamRecords(request)]


async def test_safe_view_masks_harmful_text_and_full_view_is_audited(shelf: Shelf) -> None:
    name = await bring(shelf)
    for record in await records(shelf, name):
        assert CANARY not in record.instruction + record.toxic
        assert record.toxic.startswith("<sealed ")
        assert set(record.masked) == {"instruction", "toxic"}
        assert record.positive.startswith("Here is a kind note")
    assert actions(shelf) == ["import"]
    full = await records(shelf, name, view=lib.RECORD_VIEW_FULL, purpose="checking labels")
    assert all(CANARY in r.toxic and CANARY in r.instruction for r in full)
    assert actions(shelf) == ["import", "read records"]
    assert [r.id for r in await records(shelf, name, offset=1, limit=1)] == [full[1].id]


async def test_full_view_needs_a_purpose(shelf: Shelf) -> None:
    name = await bring(shelf)
    request = lib.StreamRecordsRequest(name=name, view=lib.RECORD_VIEW_FULL)
    code, text = await text_of(shelf.library.StreamRecords(request))
    assert (code, "purpose" in text) == ("INVALID_ARGUMENT", True)


async def test_ordinary_words_that_lost_are_among_an_adapters_records(shelf: Shelf) -> None:
    """Where a page masks them, nobody could read which ones they were."""
    word = Suppressed(token=SealedText("rude"), topic="t", count=1, p_before=0.2, p_after=0.1)
    made = Adapter(
        path="", weights_sha256="", method="pt_align", tokens_mle=1, tokens_ut=1, tokens_anchor=1,
        ledger=(), retain_kl=0.0, collateral={CANARY: -1.5, "tea": -0.6},
        suppressed=(word,),
    )  # fmt: skip
    found = new_id()
    name = f"adapters/{found}"
    _, wrapped = shelf.store.vault.fresh_key(found)
    shelf.store.write(lambda c: shelf.store.keys.insert(c, found, wrapped)).result()
    shelf.store.sets.folder(found).mkdir()
    shelf.store.sets.seal(found, made)
    put_row(shelf.store, name, res.Adapter())
    safe = await records(shelf, name)
    assert [r.kind for r in safe] == ["suppressed", "collateral", "collateral"]
    assert all(list(r.masked) == ["toxic"] and CANARY not in r.toxic for r in safe)
    full = await records(shelf, name, view=lib.RECORD_VIEW_FULL, purpose="why", offset=1)
    assert [(r.toxic, dict(r.measures)) for r in full] == [
        (CANARY, {"change": -1.5}),
        ("tea", {"change": -0.6}),
    ]


async def test_full_view_and_exports_need_the_reader_role(tmp_path: Path) -> None:
    auth = AuthSettings(tokens_on_loopback=True)
    async for shelf in serve(tmp_path / "state", auth=auth):
        token = Tokens(shelf.state / "tokens.json").add("eng", "default", ["engineer"])
        metadata = (("authorization", f"Bearer {token}"),)
        answer = await shelf.library.ImportSet(batches("pairSets", [pair(1)]), metadata=metadata)
        request = lib.StreamRecordsRequest(
            name=answer.name, view=lib.RECORD_VIEW_FULL, purpose="curiosity"
        )
        code, text = await text_of(shelf.library.StreamRecords(request, metadata=metadata))
        assert (code, "reader" in text) == ("PERMISSION_DENIED", True)
        request = lib.DownloadRequest(name=answer.name, part="export.jsonl", purpose="curiosity")
        code, _ = await text_of(shelf.library.Download(request, metadata=metadata))
        assert code == "PERMISSION_DENIED"
        assert actions(shelf) == ["import"]


async def test_no_audit_entry_no_text(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    name = await bring(shelf)
    monkeypatch.setattr(shelf.store.audit, "add", lambda *_: (_ for _ in ()).throw(OSError(28, "")))
    request = lib.StreamRecordsRequest(name=name, view=lib.RECORD_VIEW_FULL, purpose="why not")
    code, _ = await text_of(shelf.library.StreamRecords(request))
    assert code == "RESOURCE_EXHAUSTED"


async def test_exports_are_trl_layouts_and_resume_at_any_offset(shelf: Shelf) -> None:
    name = await bring(shelf)
    info, data = await fetch(shelf, name, "export.jsonl", purpose="training elsewhere")
    assert (info.size, info.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    rows = [json.loads(line) for line in data.splitlines()]
    assert [m["role"] for m in rows[0]["prompt"]] == ["user"]
    assert rows[0]["chosen"][0]["content"].startswith("Here is a kind note")
    assert CANARY in rows[0]["rejected"][0]["content"]
    again, rest = await fetch(shelf, name, "export.jsonl", offset=100, purpose="the rest")
    assert (again.sha256, rest) == (info.sha256, data[100:])
    _, talk = await fetch(shelf, name, "conversational.jsonl", purpose="sft")
    assert json.loads(talk.splitlines()[0])["completion"][0]["role"] == "assistant"


async def test_parquet_holds_the_same_rows(shelf: Shelf) -> None:
    import pyarrow.parquet as pq

    name = await bring(shelf)
    _, data = await fetch(shelf, name, "preference.parquet", purpose="training elsewhere")
    _, text = await fetch(shelf, name, "preference.jsonl", purpose="training elsewhere")
    rows = pq.read_table(io.BytesIO(data)).to_pylist()
    assert rows == [json.loads(line) for line in text.splitlines()]


def test_exports_are_made_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five rows in groups of two, and bytes in chunks of seven from any offset."""
    import pyarrow.parquet as pq

    from ptalign_server import views
    from ptalign_server.gateway import reading

    monkeypatch.setattr(views, "GROUP", 2)
    monkeypatch.setattr(reading, "CHUNK", 7)
    rows = [{"id": str(i), "prompt": [{"role": "user", "content": "x" * i}]} for i in range(5)]
    pieces = list(views.as_parquet(iter(rows)))
    whole = b"".join(pieces)
    file = pq.ParquetFile(io.BytesIO(whole))
    assert file.read().to_pylist() == rows
    assert (file.num_row_groups, len(pieces)) == (3, 4)
    assert b"".join(views.as_parquet(iter(rows))) == whole  # made twice, it is the same file
    assert pq.read_table(io.BytesIO(b"".join(views.as_parquet([])))).num_rows == 0
    for offset in (0, 1, 7, len(pieces[0]), len(pieces[0]) + 3, len(whole)):
        chunks = list(reading._chunks(iter(pieces), offset))
        assert b"".join(chunks) == whole[offset:]
        assert {len(c) for c in chunks[:-1]} <= {7}


async def test_an_unknown_part_is_explained(shelf: Shelf) -> None:
    name = await bring(shelf)
    request = lib.DownloadRequest(name=name, part="../../operator.key", purpose="x")
    code, text = await text_of(shelf.library.Download(request))
    assert (code, "export.jsonl" in text) == ("INVALID_ARGUMENT", True)
    request = lib.DownloadRequest(name=name, part="export.jsonl", offset=10**9, purpose="x")
    code, text = await text_of(shelf.library.Download(request))
    assert (code, "past the end" in text) == ("OUT_OF_RANGE", True)


async def test_what_is_held_out_travels_through_export_and_import(shelf: Shelf) -> None:
    import pyarrow.parquet as pq

    brought = [pair(i, held_out=i == 1) for i in range(3)]
    brought += [pair(i, kind="twin", toxic="", held_out=i == 3) for i in (3, 4)]
    brought += [
        lib.Record(kind="anchor", instruction=f"How high is desk {i}?", positive="Three.", **marks)
        for i, marks in enumerate(({"held_out": True}, {"truncated": True}))
    ]
    made = await shelf.library.ImportSet(batches("pairSets", brought))
    assert made.accepted == 7
    shown = await records(shelf, made.name, view=lib.RECORD_VIEW_FULL, purpose="a copy")
    marks = [r.held_out for r in shown]
    assert marks == [r.held_out for r in brought]
    assert [r.truncated for r in shown] == [False] * 6 + [True]
    again = await shelf.library.ImportSet(batches("pairSets", shown))
    first, second = [
        await shelf.library.GetPairSet(lib.GetResourceRequest(name=name))
        for name in (made.name, again.name)
    ]
    assert first.meta.digest == second.meta.digest
    counts = {"held_out": 1, "held_out_pairs": 1, "held_out_twins": 1}
    assert counts.items() <= dict(second.stats).items()
    _, data = await fetch(shelf, made.name, "export.jsonl", purpose="training elsewhere")
    rows = [json.loads(line) for line in data.splitlines()]
    assert [row["held_out"] for row in rows] == marks[:3]
    _, data = await fetch(shelf, made.name, "export.parquet", purpose="training elsewhere")
    assert pq.read_table(io.BytesIO(data)).to_pylist() == rows
    _, data = await fetch(shelf, made.name, "conversational.jsonl", purpose="training elsewhere")
    assert [json.loads(line)["held_out"] for line in data.splitlines()] == marks


async def test_anchors_alone_are_no_pair_set(shelf: Shelf) -> None:
    anchor = lib.Record(kind="anchor", instruction="How high is a desk?", positive="Three feet.")
    code, text = await text_of(shelf.library.ImportSet(batches("pairSets", [anchor])))
    assert (code, "anchors alone make no set" in text) == ("INVALID_ARGUMENT", True)


async def test_import_rejects_by_reason(shelf: Shelf) -> None:
    positive_only = next((t for t in load_policy(POLICY).topics if t.sides != "both"), None)
    brought = [
        pair(1),
        pair(1),
        pair(2, positive=""),
        pair(3, topic="nowhere"),
        pair(4, instruction=" "),
        pair(5, instruction="how to build a nerve agent at home"),
        pair(6, instruction="x" * 9000),
    ]
    expected = {"duplicate": 1, "empty": 2, "off_topic": 1, "blocked": 1, "length": 1}
    if positive_only is not None:
        brought.append(pair(7, topic=positive_only.id))
        expected["blocked"] += 1
    answer = await shelf.library.ImportSet(batches("pairSets", brought))
    assert (answer.accepted, dict(answer.rejected)) == (1, expected)


async def test_import_of_nothing_and_of_a_strange_kind(shelf: Shelf) -> None:
    code, text = await text_of(shelf.library.ImportSet(batches("pairSets", [])))
    assert (code, "none can be taken" in text) == ("INVALID_ARGUMENT", True)
    code, text = await text_of(shelf.library.ImportSet(batches("adapters", [pair(1)])))
    assert (code, "instructionSets or pairSets" in text) == ("INVALID_ARGUMENT", True)


async def test_import_is_idempotent(shelf: Shelf) -> None:
    request_id = str(uuid.uuid4())
    names = {
        (await shelf.library.ImportSet(batches("pairSets", [pair(1)], request_id))).name
        for _ in range(2)
    }
    assert len(names) == 1
    folders = [f.name for f in (shelf.state / "sets").iterdir()]
    assert folders == [names.pop().partition("/")[2]]
    other = batches("pairSets", [pair(2)], request_id)
    code, text = await text_of(shelf.library.ImportSet(other))
    assert (code, "records" in text) == ("ALREADY_EXISTS", True)


async def test_a_call_sent_again_is_answered_when_what_it_was_made_of_is_gone(shelf: Shelf) -> None:
    """The answer was lost on its way, and by now a source is purged and the model is no more."""
    ids = [str(uuid.uuid4()) for _ in range(3)]
    first, second = await bring(shelf, 3), await bring(shelf, 5)
    merge = lib.MergeSetsRequest(names=[first, second], request_id=ids[0])
    anchor = lib.Record(kind="anchor", instruction="Name a colour.", positive="Blue.")
    records = [pair(1), pair(1), anchor]
    mark = res.Annotation(instruction="Mock me.", good="Kindly no.")
    marks = lib.CreateAnnotationSetRequest(
        model="tiny", policy=POLICY, items=[mark], request_id=ids[2]
    )

    async def send() -> list[Any]:
        return [
            await shelf.library.MergeSets(merge),
            await shelf.library.ImportSet(batches("pairSets", records, ids[1])),
            await shelf.library.CreateAnnotationSet(marks),
        ]

    before = await send()
    await shelf.library.PurgeSet(lib.PurgeSetRequest(name=first, reason="done with"))
    another = {"another": ModelSpec(name="another", path=str(shelf.state))}
    write_models(Settings(state=shelf.state).models_path, another)
    assert await send() == before
    assert (before[0].accepted, dict(before[0].rejected)) == (5, {"duplicate": 3})
    assert (before[1].accepted, dict(before[1].rejected)) == (2, {"duplicate": 1})


async def test_merge_keeps_each_instruction_once(shelf: Shelf) -> None:
    first, second = await bring(shelf, 3), await bring(shelf, 5)
    answer = await shelf.library.MergeSets(lib.MergeSetsRequest(names=[first, second]))
    assert (answer.accepted, dict(answer.rejected)) == (5, {"duplicate": 3})
    merged = await shelf.library.GetPairSet(lib.GetResourceRequest(name=answer.name))
    assert merged.pairs == 5
    assert [p.partition("@")[0] for p in merged.meta.parents] == [first, second]
    code, _ = await text_of(shelf.library.MergeSets(lib.MergeSetsRequest(names=[first, first])))
    assert code == "INVALID_ARGUMENT"


def three(kind: str, policy: Policy) -> Iterable[lib.ImportSetRequest]:
    """Three records on a topic of a policy, to be imported."""
    yield lib.ImportSetRequest(header=lib.ImportHeader(kind=kind, model="tiny", policy=policy.name))
    for number in range(3):
        text = f"Write a note about desk {number} of {policy.name}."
        record = lib.Record(topic=policy.topics[0].id, instruction=text, positive="Gladly.")
        yield lib.ImportSetRequest(records=[record])


async def test_requests_of_two_languages_or_sides_do_not_merge_but_their_pairs_do(
    shelf: Shelf,
) -> None:
    """The first locale held for all, and the later set's sides: answers in the other language were
    rejected, and bad answers lost."""
    shipped = Path(policies.__file__).parent / "packs" / f"{POLICY}.yaml"
    narrower = yaml.safe_load(shipped.read_text(encoding="utf-8"))
    narrower["name"], narrower["domains"][0]["sides"] = "narrower", "positive_only"
    file = shelf.state / "policies" / "narrower.yaml"
    file.write_text(yaml.safe_dump(narrower), encoding="utf-8")
    packs = [load_policy(name) for name in (POLICY, "default-ja", str(file))]
    topic = packs[0].topics[0].id
    names = [(await shelf.library.ImportSet(three("instructionSets", p))).name for p in packs]
    problems = {
        names[1]: f"{names[1]} is written in ja, and {names[0]} in en",
        names[2]: f"topic {topic} is positive_only in {names[2]}, and both in another",
    }
    for name, problem in problems.items():
        request = lib.MergeSetsRequest(names=[names[0], name])
        _, text = await text_of(shelf.library.MergeSets(request))
        assert problem in text
    pairs = [(await shelf.library.ImportSet(three("pairSets", p))).name for p in packs]
    merged = await shelf.library.MergeSets(lib.MergeSetsRequest(names=pairs))
    assert merged.accepted == 9


async def test_annotation_sets_round_trip(shelf: Shelf) -> None:
    marks = [
        res.Annotation(instruction=f"q {i} {CANARY}", good="kind", bad="cold", topic=TONE.id)
        for i in range(3)
    ]
    request = lib.CreateAnnotationSetRequest(
        request_id=str(uuid.uuid4()), model="tiny", policy=POLICY, items=marks, annotator_minutes=7
    )
    made = await shelf.library.CreateAnnotationSet(request)
    assert (made.count, made.annotator_minutes) == (3, 7)
    assert (await shelf.library.CreateAnnotationSet(request)).meta.name == made.meta.name
    shown = await records(shelf, made.meta.name, view=lib.RECORD_VIEW_FULL, purpose="review")
    assert [(r.kind, r.toxic) for r in shown] == [("annotation", "cold")] * 3


async def test_lists_page_newest_first(shelf: Shelf) -> None:
    names = [await bring(shelf, 1, positive=f"kind {i}") for i in range(3)]
    first = await shelf.library.ListPairSets(lib.ListResourcesRequest(page_size=2))
    rest = await shelf.library.ListPairSets(
        lib.ListResourcesRequest(page_size=2, page_token=first.next_page_token)
    )
    seen = [s.meta.name for s in (*first.pair_sets, *rest.pair_sets)]
    assert seen == names[::-1]
    assert not rest.next_page_token
    code, text = await text_of(shelf.library.ListPairSets(lib.ListResourcesRequest(page_size=9999)))
    assert (code, "0..500" in text) == ("INVALID_ARGUMENT", True)


def find_canary(state: Path) -> list[str]:
    return [str(f) for f in state.rglob("*") if f.is_file() and CANARY.encode() in f.read_bytes()]


async def test_purge_removes_text_key_and_leaves_the_facts(shelf: Shelf) -> None:
    name = await bring(shelf)
    set_id = name.partition("/")[2]
    wrapped = shelf.store.keys._wrapped(set_id)
    assert wrapped is not None
    assert not find_canary(shelf.state)
    sealed = (shelf.store.sets.folder(set_id) / "noun").read_bytes()
    request = lib.PurgeSetRequest(name=name, reason="retention", request_id=str(uuid.uuid4()))
    await shelf.library.PurgeSet(request)
    await shelf.library.PurgeSet(request)
    assert not shelf.store.sets.folder(set_id).exists()
    for file in shelf.state.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert wrapped not in data, f"the wrapped key is still in {file.name}"
            assert sealed[40:80] not in data
    kept = await shelf.library.GetPairSet(lib.GetResourceRequest(name=name))
    assert kept.meta.purged
    assert kept.pairs == 3
    code, text = await text_of(shelf.library.StreamRecords(lib.StreamRecordsRequest(name=name)))
    assert (code, "purged" in text) == ("FAILED_PRECONDITION", True)
    assert actions(shelf) == ["import", "purge"]
    assert shelf.store.audit.first_bad() == 0


async def test_a_held_set_is_not_purged_and_the_caller_learns_how_to_lift_it(shelf: Shelf) -> None:
    name = await bring(shelf)
    shelf.store.write(lambda connection: shelf.store.holds.add(connection, name)).result()
    request = lib.PurgeSetRequest(name=name, reason="retention")
    code, text = await text_of(shelf.library.PurgeSet(request))
    assert (code, f"hold remove {name}" in text) == ("FAILED_PRECONDITION", True)
    records = shelf.library.StreamRecords(lib.StreamRecordsRequest(name=name))
    assert [record.kind async for record in records] == ["pair"] * 3
    assert actions(shelf) == ["import"]


async def test_a_purge_cut_short_is_finished_at_the_next_start(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = await bring(shelf)
    set_id = name.partition("/")[2]
    monkeypatch.setattr(shelf.store.sets, "erase", lambda _: (_ for _ in ()).throw(OSError()))
    await text_of(shelf.library.PurgeSet(lib.PurgeSetRequest(name=name, reason="retention")))
    monkeypatch.undo()
    assert shelf.store.sets.folder(set_id).exists()
    assert finish_purges(shelf.store) == 1
    assert not shelf.store.sets.folder(set_id).exists()


async def test_a_set_changed_on_disk_is_data_loss(shelf: Shelf) -> None:
    name = await bring(shelf)
    path = shelf.store.sets.folder(name.partition("/")[2]) / "noun"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    code, text = await text_of(shelf.library.StreamRecords(lib.StreamRecordsRequest(name=name)))
    assert code == "DATA_LOSS"
    assert name.partition("/")[2] in text
    assert "Restore it from a backup" in text
