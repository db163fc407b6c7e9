"""The client against the real server with the scripted engine: no model, every process real."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import ptalign_client as pt

BIN = Path(sys.executable).parent
POLICY = "tone-en"
MODEL = "smollm2-135m-instruct"


@dataclass
class Server:
    """`ptalign-server serve` on loopback, with its state in a temporary folder."""

    state: Path
    port: int
    delay_seconds: float
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        environment = os.environ | {
            "PTALIGN_STATE": str(self.state),
            "PTALIGN_PORT": str(self.port),
            "PTALIGN_METRICS_PORT": "0",
            "PTALIGN_PAGE_PORT": "0",
            "PTALIGN_ENGINE__KIND": "scripted",
            "PTALIGN_ENGINE__DELAY_SECONDS": str(self.delay_seconds),
            "OMP_NUM_THREADS": "1",
        }
        with (self.state.parent / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(BIN / "ptalign-server"), "serve"],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        """SIGKILL to the whole tree, as a machine that loses power."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve(folder: Path, delay_seconds: float) -> Server:
    server = Server(folder / "state", free_port(), delay_seconds)
    server.start()
    return server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[Server]:
    running = serve(tmp_path_factory.mktemp("served"), 0.0)
    yield running
    running.stop()


@pytest.fixture
def client(server: Server) -> Iterator[pt.Client]:
    with pt.Client(server.endpoint, retry=pt.Retry(attempts=20)) as made:
        yield made


@pytest.fixture(scope="module")
def asks(server: Server) -> pt.InstructionSet:
    """One instruction set that the reading tests share."""
    with pt.Client(server.endpoint, retry=pt.Retry(attempts=20)) as client:
        made = client.generate_instructions(model=MODEL, policy=POLICY, count=6)
        return made.result(timeout=240)


def test_catalogue_names_what_may_be_used(client: pt.Client) -> None:
    found = client.catalogue()
    assert MODEL in [entry.name for entry in found.models]
    assert POLICY in [entry.name for entry in found.policies]


def test_instructions_come_with_their_lineage(client: pt.Client, asks: pt.InstructionSet) -> None:
    assert asks.harmful == 6
    assert asks.digest.startswith("sha256:")
    assert client.get(asks.name) == asks
    assert asks.name in [found.name for found in client.instruction_sets(model=MODEL)]


def test_events_of_an_ended_operation_are_still_told(
    client: pt.Client, asks: pt.InstructionSet
) -> None:
    events = list(client.operation(asks.operation))
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert events[-1].progress.state is pt.State.SUCCEEDED
    assert events[-1].progress.resource == asks.name
    listed = [operation.name for operation in client.operations(state="succeeded")]
    assert asks.operation in listed


def test_safe_view_masks_and_full_view_needs_a_purpose(
    client: pt.Client, asks: pt.InstructionSet
) -> None:
    safe = [r for r in client.records(asks) if r.kind == "instruction"]
    assert len(safe) == 6
    assert all(r.masked == ("instruction",) for r in safe)
    with pytest.raises(pt.InvalidArgument) as caught:
        list(client.records(asks, view="full"))
    assert caught.value.violations[0].field == "purpose"
    full = list(client.records(asks, view="full", purpose="test of the view", limit=1))
    assert full[0].masked == ()


def test_export_is_verified_json_lines(
    client: pt.Client, asks: pt.InstructionSet, tmp_path: Path
) -> None:
    file = client.export(asks, tmp_path / "asks.jsonl", purpose="test of the export")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == asks.harmful + asks.twins


def test_same_request_id_is_the_same_operation(client: pt.Client) -> None:
    own = "0b0f1b9e-53a5-4b55-8a0e-6a3a5c7b2f11"
    ask = {"model": MODEL, "policy": POLICY, "request_id": own}
    first = client.generate_instructions(**ask, count=2)  # type: ignore[arg-type]
    assert client.generate_instructions(**ask, count=2).name == first.name  # type: ignore[arg-type]
    with pytest.raises(pt.AlreadyExists) as caught:
        client.generate_instructions(**ask, count=3)  # type: ignore[arg-type]
    assert "count" in caught.value.metadata["fields"]


def test_dry_run_estimates(client: pt.Client) -> None:
    dry = client.generate_instructions(model=MODEL, policy=POLICY, count=100, dry_run=True)
    estimate = dry.progress().estimate
    assert estimate is not None
    assert estimate.seconds > 0


@pytest.mark.parametrize(
    ("call", "kind", "field"),
    [
        (lambda c: c.generate_instructions(model=MODEL, policy=POLICY, count=0),
         pt.InvalidArgument, "count"),
        (lambda c: c.generate_instructions(model=MODEL, policy=POLICY, count=20_001),
         pt.InvalidArgument, "count"),
        (lambda c: c.synthesize_pairs(model=MODEL, instruction_set="instructionSets/none"),
         pt.NotFound, ""),
        (lambda c: c.annotate(
            [pt.Annotation(instruction=str(i), good="g") for i in range(50)],
            model=MODEL, policy=POLICY),
         pt.InvalidArgument, "items"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named(
    client: pt.Client, call: Callable[[pt.Client], object], kind: type[pt.ServiceError], field: str
) -> None:
    with pytest.raises(kind) as caught:
        call(client)
    if field:
        assert field in [v.field for v in caught.value.violations]


def test_unknown_model_lists_the_known(client: pt.Client) -> None:
    with pytest.raises(pt.NotFound) as caught:
        client.generate_instructions(model="nope", policy=POLICY, count=2)
    assert MODEL in caught.value.known


def test_nothing_passed_yet_is_not_found(client: pt.Client) -> None:
    with pytest.raises(pt.NotFound):
        client.resolve_adapter(model=MODEL, policy=POLICY)


def test_command_speaks_json(server: Server, asks: pt.InstructionSet) -> None:
    done = subprocess.run(
        [str(BIN / "ptalign"), "--endpoint", server.endpoint, "list", "instructions", "--json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert asks.name in [json.loads(line)["name"] for line in done.stdout.splitlines()]


@pytest.fixture
def slow_server(tmp_path: Path, model_folder: Path) -> Iterator[Server]:
    running = serve(tmp_path, 0.4)
    yield running
    running.stop()


def test_watch_outlives_a_killed_server_and_cancel_keeps_what_is_there(
    slow_server: Server,
) -> None:
    """kill -9 of the whole tree under a watcher: it sees every event once, and goes on."""
    with pt.Client(slow_server.endpoint, retry=pt.Retry(attempts=20)) as client:
        running = client.generate_instructions(model=MODEL, policy=POLICY, count=2000)
        seen: list[int] = []
        kept: list[int] = []
        for event in running:
            seen.append(event.sequence)
            kept.append(event.progress.counts.get("accepted", 0))
            if len(seen) == 4 and kept[-1]:
                slow_server.kill()
                slow_server.start()
                restarted = time.monotonic()
            if kept[-1] and len(seen) > 8:
                running.cancel()
                break
        assert time.monotonic() - restarted < 120
        assert seen == list(range(1, len(seen) + 1))
        assert kept == sorted(kept)
        with pytest.raises(pt.Cancelled) as caught:
            running.result(timeout=120)
        partial = client.get_instruction_set(caught.value.resource)
        assert partial.partial
        assert partial.harmful >= kept[-1]
