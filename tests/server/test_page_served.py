"""The page of a real server process, and what gRPC says of the set that it handed over."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import page_world as world
import running

from ptalign_proto.v1 import library_pb2 as lib
from ptalign_server.pool.command import free_port


def test_marks_made_on_the_page_are_an_annotation_set_over_grpc(tmp_path: Path) -> None:
    _, store = world.open_store(tmp_path)
    pairs = world.add_pair_set(store, world.pairs(4))
    store.close()
    port = free_port()
    host = "127.0.0.2"  # not the one that is always let in
    settings = {
        "PTALIGN_PAGE": "true",
        "PTALIGN_PAGE_HOST": host,
        "PTALIGN_PAGE_PORT": str(port),
    }
    with running.running(tmp_path / "state", PTALIGN_ENGINE__KIND="scripted", **settings) as server:
        with httpx.Client(base_url=f"http://{host}:{port}", follow_redirects=True) as page:
            assert pairs in page.get("/").text
            name = work(page, f"/sets/{pairs.partition('/')[2]}")
        made = server.library.GetAnnotationSet(lib.GetResourceRequest(name=name))
        assert made.count == 1
        assert made.meta.parents[0].partition("@")[0] == pairs
        safe = list(server.library.StreamRecords(lib.StreamRecordsRequest(name=name)))
        assert world.BAD not in safe[0].toxic
        full = lib.StreamRecordsRequest(name=name, view=lib.RECORD_VIEW_FULL, purpose="test")
        (record,) = server.library.StreamRecords(full)
        assert record.toxic.startswith(world.BAD)


def work(page: httpx.Client, path: str) -> str:
    """Looks at one item, marks it, hands over; returns the annotation set's name."""
    hidden = page.get(path).text
    assert world.BAD not in hidden
    fields = dict(re.findall(r'name="(csrf|item|stamp)" value="([^"]+)"', hidden))
    assert world.BAD in page.post(f"{path}/reveal", data=fields).text
    page.post(f"{path}/mark", data=fields | {"verdict": "good"}).raise_for_status()
    done = page.post(f"{path}/finish", data=fields).text
    found = re.search(r"annotationSets/\w+", done)
    assert found, done
    return found[0]
