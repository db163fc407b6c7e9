"""The library: pages, records, downloads that survive what networks do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from ptalign_client_fake import Fault

import ptalign_client as pt
from ptalign_proto.v1 import library_pb2, resources_pb2

Code = grpc.StatusCode
CONTENT = bytes(i % 251 for i in range(10_500))


@pytest.fixture
def adapter(served: Any) -> str:
    made = resources_pb2.Adapter()
    made.meta.name = "adapters/a"
    served.service.resources["adapters/a"] = made
    served.service.add_file(made, "model.bin", CONTENT)
    return "adapters/a"


def offsets(served: Any) -> list[int]:
    return [request.offset for request in served.service.called("Download")]


def test_download_is_verified_and_leaves_no_partial(
    client: pt.Client, adapter: str, tmp_path: Path
) -> None:
    file = client.download(adapter, "model.bin", tmp_path / "here" / "m.bin")
    assert file.read_bytes() == CONTENT
    assert [p.name for p in file.parent.iterdir()] == ["m.bin"]


def test_dropped_download_goes_on_where_it_stopped(
    client: pt.Client, served: Any, adapter: str, tmp_path: Path
) -> None:
    served.service.faults["Download"] = [Fault(after=3), Fault(after=2)]
    told: list[tuple[int, int]] = []
    file = client.download(
        adapter, "model.bin", tmp_path, on_bytes=lambda here, total: told.append((here, total))
    )
    assert file.read_bytes() == CONTENT
    assert offsets(served) == [0, 3000, 5000]
    assert told[-1] == (10_500, 10_500)


def test_partial_file_of_a_killed_client_is_continued(
    client: pt.Client, served: Any, adapter: str, tmp_path: Path
) -> None:
    (tmp_path / "m.partial").write_bytes(CONTENT[:4321])
    assert client.download(adapter, "model.bin", tmp_path / "m").read_bytes() == CONTENT
    assert offsets(served) == [4321]


def test_partial_file_of_another_version_is_fetched_anew(
    client: pt.Client, served: Any, adapter: str, tmp_path: Path
) -> None:
    (tmp_path / "m.partial").write_bytes(b"x" * 4321)
    assert client.download(adapter, "model.bin", tmp_path / "m").read_bytes() == CONTENT
    assert offsets(served) == [4321, 0]


def test_partial_file_longer_than_the_file_is_fetched_anew(
    client: pt.Client, served: Any, adapter: str, tmp_path: Path
) -> None:
    (tmp_path / "m.partial").write_bytes(b"x" * 99_999)
    assert client.download(adapter, "model.bin", tmp_path / "m").read_bytes() == CONTENT
    assert offsets(served) == [99_999, 0]


def test_complete_file_is_not_sent_again(
    client: pt.Client, served: Any, adapter: str, tmp_path: Path
) -> None:
    (tmp_path / "m").write_bytes(CONTENT)
    assert client.download(adapter, "model.bin", tmp_path / "m").read_bytes() == CONTENT
    assert offsets(served) == [0]
    assert not (tmp_path / "m.partial").exists()


def test_bytes_that_do_not_match_are_refused(
    client: pt.Client, served: Any, adapter: str, tmp_path: Path
) -> None:
    served.service.damage = b"not what was sealed"
    (tmp_path / "m").write_bytes(b"older")
    with pytest.raises(pt.DownloadDamaged):
        client.download(adapter, "model.bin", tmp_path / "m")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    assert (tmp_path / "m").read_bytes() == b"older"


def test_stream_cut_short_without_an_error_goes_on(
    client: pt.Client, served: Any, adapter: str, tmp_path: Path
) -> None:
    served.service.faults["Download"] = [Fault(Code.OK, after=4)]
    assert client.download(adapter, "model.bin", tmp_path / "m").read_bytes() == CONTENT
    assert offsets(served) == [0, 4000]


def test_missing_part_says_so_and_keeps_the_old_file(
    client: pt.Client, adapter: str, tmp_path: Path
) -> None:
    (tmp_path / "old").write_bytes(b"precious")
    with pytest.raises(pt.NotFound):
        client.download(adapter, "nothing", tmp_path / "old")
    assert (tmp_path / "old").read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["adapters/a", "adapters/unknown"])
def test_a_download_that_brought_nothing_leaves_nothing(
    client: pt.Client, adapter: str, tmp_path: Path, name: str
) -> None:
    """An empty NAME.partial stayed in the folder, for a name that nobody knows too."""
    with pytest.raises(pt.NotFound):
        client.download(name, "nothing", tmp_path)
    with pytest.raises(pt.NotFound):
        client.export(name, tmp_path / "set.jsonl")
    assert not list(tmp_path.iterdir())


def test_a_download_that_broke_leaves_what_came(
    client: pt.Client, served: Any, adapter: str, tmp_path: Path
) -> None:
    served.service.faults["Download"] = [Fault(Code.INTERNAL, after=3)]
    with pytest.raises(pt.Internal):
        client.download(adapter, "model.bin", tmp_path)
    assert (tmp_path / "model.bin.partial").read_bytes() == CONTENT[:3000]


def test_all_files_of_an_adapter(client: pt.Client, tmp_path: Path) -> None:
    adapter = client.align(model="tiny", pair_set="pairSets/1").result()
    files = client.download_all(adapter, tmp_path / "adapter")
    assert [f.name for f in files] == ["adapter_config.json", "adapter_model.safetensors"]
    assert all(f.is_file() for f in files)


def test_part_outside_the_folder_is_refused(client: pt.Client, tmp_path: Path) -> None:
    hostile = pt.Adapter(name="adapters/a", files=(pt.FileInfo("../../x", 1, "00"),))
    with pytest.raises(pt.DownloadDamaged, match="outside the folder"):
        client.download_all(hostile, tmp_path / "adapter")
    assert not list((tmp_path / "adapter").iterdir())


@pytest.mark.parametrize("part", ["export.jsonl", "preference.jsonl", "conversational.parquet"])
def test_files_of_a_set_are_for_their_owner_alone(
    client: pt.Client, served: Any, tmp_path: Path, part: str
) -> None:
    """Two of the three layouts, and what a partial file had begun, were for everyone to read."""
    served.service.files["pairSets/1", part] = b"{}\n"
    (tmp_path / "begun.partial").write_bytes(b"{")
    (tmp_path / "begun.partial").chmod(0o644)
    for target in ("fresh", "begun"):
        file = client.download("pairSets/1", part, tmp_path / target, purpose="test")
        assert file.read_bytes() == b"{}\n"
        assert file.stat().st_mode & 0o777 == 0o600


def test_export_is_for_its_owner_alone(client: pt.Client, served: Any, tmp_path: Path) -> None:
    served.service.files["pairSets/1", "export.jsonl"] = b"{}\n"
    file = client.export("pairSets/1", tmp_path / "pairs.jsonl", purpose="test")
    assert file.stat().st_mode & 0o777 == 0o600


def test_records_resume_and_stop_at_the_limit(client: pt.Client, served: Any) -> None:
    stored = [library_pb2.Record(id=str(i), masked=["toxic"]) for i in range(10)]
    served.service.records["pairSets/1"] = stored
    served.service.faults["StreamRecords"] = [Fault(after=3)]
    found = list(client.records("pairSets/1", offset=1, limit=7))
    assert [record.id for record in found] == [str(i) for i in range(1, 8)]
    assert found[0].masked == ("toxic",)
    asked = [(r.offset, r.limit, r.view) for r in served.service.called("StreamRecords")]
    assert asked == [(1, 7, 1), (4, 4, 1)]


def test_full_view_carries_its_purpose(client: pt.Client, served: Any) -> None:
    served.service.records["pairSets/1"] = []
    assert not list(client.records("pairSets/1", view="full", purpose="review"))
    asked = served.service.called("StreamRecords")[0]
    assert (asked.view, asked.purpose) == (library_pb2.RECORD_VIEW_FULL, "review")


def test_lists_page_by_themselves(client: pt.Client, served: Any) -> None:
    for i in range(7):
        made = resources_pb2.Adapter()
        made.meta.name = f"adapters/{i}"
        served.service.resources[made.meta.name] = made
    assert [a.name for a in client.adapters(page_size=3)] == [f"adapters/{i}" for i in range(7)]
    assert len(served.service.called("ListAdapters")) == 3


def test_get_knows_the_kind_by_the_name(client: pt.Client, adapter: str) -> None:
    assert isinstance(client.get(adapter), pt.Adapter)
    with pytest.raises(pt.InvalidArgument, match="adapters"):
        client.get("nonsense/1")


def test_import_is_sent_anew_after_a_lost_reply(client: pt.Client, served: Any) -> None:
    served.service.faults["ImportSet"] = [Fault(committed=True)]
    opened = 0

    def ours() -> Any:
        nonlocal opened
        opened += 1
        return (pt.Record(kind="instruction", instruction=f"text {i}") for i in range(450))

    made = client.import_set(ours, kind="instructionSets", model="tiny", policy="tone-en")
    assert made.accepted == 450
    first, second = served.service.called("ImportSet")
    assert opened == 2
    assert first[0].header.request_id == second[0].header.request_id
    assert [len(message.records) for message in second] == [0, 200, 200, 50]


def test_annotations_merge_purge_resolve(client: pt.Client, served: Any, adapter: str) -> None:
    marks = [pt.Annotation(instruction="i", good="g", bad="b")]
    served.service.faults["CreateAnnotationSet"] = [Fault(committed=True)]
    kept = client.annotate(marks, model="tiny", policy="tone-en", annotator_minutes=2.5)
    assert kept.count == 1
    assert len({r.request_id for r in served.service.called("CreateAnnotationSet")}) == 1
    assert client.merge(["pairSets/1", "pairSets/2"]).rejected == {"duplicate": 2}
    client.purge("pairSets/1", reason="retention")
    assert served.service.called("PurgeSet")[0].reason == "retention"
    assert client.resolve_adapter(model="tiny", policy="tone-en").adapter.name == adapter
