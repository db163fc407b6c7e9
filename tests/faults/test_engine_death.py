"""SIGKILL to the engine: work goes on or says when to try again, and nothing is left behind."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.longrunning import operations_pb2 as lro
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from history import History, check
from running import Running, alive, descendants, progress, state_of
from test_matrix import engines, get
from world import accepted, end, generate, pack, records_of, server, wait_for, worker_pid

from ptalign.engines import script
from ptalign_server.errors import reason_of

DEATHS = 5
"""Deaths in ten minutes that open the circuit."""
SHARED = Path("/dev/shm")
NEAR = "near"


def supervised(state: Path) -> Running:
    """A server that starts its engine itself: the scripted one, a second per answer."""
    made = server(
        state,
        "",
        PTALIGN_ENGINE__KIND="scripted",
        PTALIGN_ENGINE__SERVED_NAME="",
        PTALIGN_ENGINE__DELAY_SECONDS="1.0",
        PTALIGN_ENGINE__URLS="[]",
    )
    (state / "policies" / f"{NEAR}.yaml").write_text(yaml.safe_dump(near_the_script()))
    return made


def near_the_script() -> dict[str, Any]:
    """A policy whose topics lie near what the scripted engine writes."""
    draw = random.Random(2)
    parts = (script._WHO, script._DID, script._WHAT, script._WHEN)
    words = [[draw.choice(part) for part in parts] for _ in range(24)]
    titles = [f"{who} who {did} {what} {when}" for who, did, what, when in words]
    policy = pack()
    topics = [{"id": f"t{n}", "title": title} for n, title in enumerate(titles)]
    return policy | {"name": NEAR, "domains": [policy["domains"][0] | {"topics": topics}]}


def kill_engine(running: Running) -> int:
    """SIGKILL to the engine, once it takes requests; its pid."""
    wait_for(lambda: "READY" in engines(running, "state"), 120, "the engine is ready")
    [pid] = engines(running, "pid")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not alive(pid), 10, "the engine is gone")
    return int(pid)


def health(running: Running) -> str:
    stub = health_pb2_grpc.HealthStub(running.channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(service="ptalign.engine"), timeout=10)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def children(running: Running) -> list[int]:
    """What the worker started and still has."""
    return descendants(worker_pid(running))


@pytest.mark.tier(3)
@pytest.mark.timeout(2600)
def test_an_engine_is_killed_until_its_circuit_opens(score: Any, tmp_path: Path) -> None:
    row = score.row("SIGKILL of the engine: work goes on, at the fifth the circuit opens", 20)
    for number in range(score.size(4, 1)):
        before = set(SHARED.iterdir())
        running = supervised(tmp_path / str(number) / "state").start()
        try:
            bad = _die_often(running, DEATHS if score.in_tier else 1, row)
            bad += bool(score.in_tier and not _open_circuit(running))
        finally:
            end(running)
        left = {f.name for f in set(SHARED.iterdir()) - before if f.stat().st_uid == os.getuid()}
        bad += bool([name for name in left if name.startswith(("psm_", "sem."))])
        row.bad += bad
    assert not row.bad


def _die_often(running: Running, deaths: int, row: Any) -> int:
    """Kills the engine under a generation; whether an acknowledged record was lost."""
    name = running.tuning.GenerateInstructions(generate(2000, policy=NEAR)).name
    operation = name.removeprefix("operations/")
    items: dict[str, str] = {}
    tokens = 0
    for number in range(1, deaths + 1):
        wait_for(lambda t=tokens: written(running, name) > t, 200, "more tokens")
        wait_for(lambda: accepted(running.state, operation), 200, "a record")
        tokens = written(running, name)
        kill_engine(running)
        row.ran += 1
        items |= {r.text: name for r in accepted(running.state, operation)}
        if number < DEATHS:
            wait_for(lambda: health(running) == "SERVING", 200, "the engine is back")
    if deaths < DEATHS:
        running.operations.CancelOperation(lro.CancelOperationRequest(name=name))
    done = running.wait(name, 200)
    kept = {r.instruction for r in records_of(running, progress(done).resource)}
    lost = set(items) - kept
    if deaths == DEATHS:
        return len(lost) + (not _told_to_retry(done))
    found = check(running, History({name}, items))
    return len(lost) + found.bad + (state_of(done) != "CANCELLED")


def written(running: Running, name: str) -> int:
    """Tokens that the operation got from the engine so far."""
    return int(progress(get(running, name)).counts["tokens_generated"])


def _told_to_retry(done: lro.Operation) -> bool:
    """Failed, with a reason, a hint when to come back, and what was accepted kept."""
    names = {detail.TypeName() for detail in done.error.details}
    hint = error_details_pb2.RetryInfo.DESCRIPTOR.full_name in names
    good = state_of(done) == "FAILED" and hint and bool(progress(done).resource)
    if not good:
        print(state_of(done), done.error, progress(done).resource)
    return good


def _open_circuit(running: Running) -> bool:
    """Readiness fails, the server serves, no process or pid file of the engine is left."""
    wait_for(lambda: engines(running, "state") == ["CIRCUIT_OPEN"], 60, "the circuit is open")
    wait_for(lambda: health(running) == "NOT_SERVING", 10, "readiness fails")
    wait_for(lambda: not children(running), 30, "nothing of the engine runs")
    records = list((running.state / "engines" / "children").glob("*"))
    request = generate(2, policy=NEAR)
    failed = running.wait(running.tuning.GenerateInstructions(request).name, 60)
    good = not records and state_of(failed) == "FAILED" and _for_an_operator(failed)
    if not good:
        print(records, state_of(failed), failed.error)
    return good


def hinted(done: lro.Operation) -> bool:
    """Whether an operation's error says when to try again."""
    hint = error_details_pb2.RetryInfo.DESCRIPTOR.full_name
    return hint in {detail.TypeName() for detail in done.error.details}


def _for_an_operator(done: lro.Operation) -> bool:
    """No hint to try again: that is for an engine that restarts."""
    return reason_of(done.error) == "CIRCUIT_OPEN" and not hinted(done)
