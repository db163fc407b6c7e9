"""Unique strings go in at every door; nothing the server leaves or shows may hold them."""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2 as lro
from leaks import Search, canary
from running import Running, state_of
from world import MODEL, POLICY, author, generate, records_of, served, wait_for, worker_pid

from ptalign_proto.v1 import library_pb2 as lib
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server import logs
from ptalign_server.gateway.identity import Tokens
from ptalign_server.settings import ROLES

KINDS = ("seed", "instruction", "positive", "toxic", "note", "mail", "chat")


@pytest.mark.tier(3)
@pytest.mark.timeout(900)
def test_no_canary_is_found_anywhere(score: Any, tmp_path: Path) -> None:
    since = time.time()
    state = tmp_path / "state"
    state.mkdir()
    token = Tokens(state / "tokens.json").add("me", "default", ROLES)
    texts: dict[str, str | bytes] = {kind: canary(kind) for kind in KINDS}
    with author(0.05) as url, served(state, url, PTALIGN_LOG_LEVEL="DEBUG") as server:
        said = success(server, texts, token) + mistakes(server, texts)
        search = Search({**texts, "token": token, "key": operator_key(state)})
        with author(2.0) as slow:
            said += engine_and_worker_crash(server, texts, slow)
        look_around(search, server, state, said, since)
    search.folder(state, without=[state / "operator.key"])
    row = score.row("canaries searched raw, base64 and hex", len(search.canaries))
    row.ran, row.bad = len(search.canaries), len(search.hits)
    row.notes["places"] = str(search.looked)
    assert search.looked > 30
    assert not search.hits


def operator_key(state: Path) -> bytes:
    """The bytes of the operator's key."""
    return base64.b64decode((state / "operator.key").read_text().split()[1])


def success(server: Running, texts: dict[str, Any], token: str) -> str:
    """Text at every door, in calls that are taken."""
    metadata = (("authorization", f"Bearer {token}"),)
    request = generate(
        3,
        seeds=[f"Mock my neighbour who borrowed the teapot with {texts['seed']} today"],
        excerpts=[f"please mock my student who lost {texts['mail']}@example.org in the library"],
    )
    made = server.tuning.GenerateInstructions(request, metadata=metadata)
    marks = [
        res.Annotation(
            instruction=f"Mock my cousin with {texts['instruction']} now.",
            good=f"I would rather be kind about {texts['positive']}.",
            bad=f"What a silly question, {texts['toxic']}.",
            note=texts["note"],
            topic="t0",
        )
    ]
    call = lib.CreateAnnotationSetRequest(model=MODEL, policy=POLICY, items=marks)
    found = server.library.CreateAnnotationSet(call, metadata=metadata)
    pairs = lib.Record(
        instruction=marks[0].instruction, positive=marks[0].good, toxic=marks[0].bad, topic="t0"
    )
    header = lib.ImportHeader(kind="pairSets", model=MODEL, policy=POLICY)
    parts = [lib.ImportSetRequest(header=header), lib.ImportSetRequest(records=[pairs])]
    imported = server.library.ImportSet(iter(parts), metadata=metadata)
    assert imported.accepted == 1
    assert texts["toxic"] in records_of(server, imported.name)[0].toxic
    done = server.wait(made.name)
    assert state_of(done) == "SUCCEEDED", done.error
    return f"{done}{found}{imported}"


def mistakes(server: Running, texts: dict[str, Any]) -> str:
    """The same text in calls that are refused; what they say."""
    seed = f"{texts['seed']} " * 500
    calls: list[tuple[Any, Any]] = [
        (server.tuning.GenerateInstructions, generate(2, seeds=[seed])),
        (server.tuning.GenerateInstructions, generate(2, seeds=[texts["seed"]], model="nobody")),
        (
            server.library.CreateAnnotationSet,
            lib.CreateAnnotationSetRequest(
                model=MODEL,
                policy=POLICY,
                items=[res.Annotation(instruction=texts["instruction"], bad=texts["toxic"] * 400)],
            ),
        ),
        (server.tuning.SynthesizePairs, pb.SynthesizePairsRequest(model=MODEL)),
    ]
    said = ""
    for call, request in calls:
        with pytest.raises(grpc.RpcError) as caught:
            call(request, timeout=20)
        said += f"{caught.value.details()}{caught.value.trailing_metadata()}"
    return said


def engine_and_worker_crash(server: Running, texts: dict[str, Any], slow: str) -> str:
    """A generation under way when the worker is killed, and one that is cancelled."""
    seeds = [f"Mock my gardener who lost the ladder with {texts['chat']} at noon"]
    made = server.tuning.GenerateInstructions(generate(400, seeds=seeds))
    wait_for(lambda: worker_pid(server), 30, "a worker")
    time.sleep(1.0)
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker_pid(server), signal.SIGKILL)
    time.sleep(1.0)
    server.operations.CancelOperation(lro.CancelOperationRequest(name=made.name))
    done = server.wait(made.name)
    assert state_of(done) in {"CANCELLED", "SUCCEEDED"}
    return str(done)


def look_around(search: Search, server: Running, state: Path, said: str, since: float) -> None:
    """What can be seen while it runs."""
    assert server.process is not None
    search.look("answers and error details", said.encode())
    search.look("metrics", server.metrics().encode())
    search.processes(server.process.pid)
    search.folder(state, without=[state / "operator.key"])
    search.elsewhere(since)


@pytest.mark.parametrize("form", ["raw", "base64", "hex", "argv"])
def test_a_planted_leak_is_caught(tmp_path: Path, form: str) -> None:
    """The test of the test."""
    import subprocess

    text = canary("planted")
    search = Search({"planted": text})
    encoded = {
        "raw": text,
        "base64": base64.b64encode(f"x {text} y".encode()).decode(),
        "hex": text.encode().hex(),
    }.get(form, "")
    (tmp_path / "worker.log").write_text(f"INFO {encoded} done")
    with subprocess.Popen(["sleep", "5"], env={"A": text}) as child:
        if form == "argv":
            search.processes(child.pid)
        child.kill()
    search.folder(tmp_path)
    assert len(search.hits) == 1


def test_a_traceback_in_the_log_keeps_no_words_of_others() -> None:
    """Unexpected exceptions went to the log with their text, which may quote a record."""
    text = canary("record")
    try:
        try:
            int(text)
        except ValueError as error:
            raise KeyError(text) from error
    except KeyError as error:
        record = logging.LogRecord("ptalign", 40, "f", 1, "failed", (), (KeyError, error, None))
        written = logs.Formatter(logs.FORMAT).format(record)
    assert text not in written
    assert "builtins.KeyError: <" in written
    assert "test_canaries.py" in written
