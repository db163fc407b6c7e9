"""A full disk is said, harms nothing, and passes without a restart. Needs mount (root)."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from gate import gateway, import_two, methods
from google.longrunning import operations_pb2 as lro
from history import History, check
from running import state_of
from test_regressions import instruction
from world import accepted, author, generate, opened, served, wait_for, worker_pid

from ptalign.nouns import Instruction
from ptalign_proto.v1 import library_pb2 as lib

MIB = 1 << 20


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A tmpfs of 24 MiB; a short path, so that sockets and metrics stay in the state folder."""
    folder = Path(tempfile.mkdtemp(prefix="ptf-"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs root and mount (a container with CAP_SYS_ADMIN) for a small tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
    folder.rmdir()


@contextlib.contextmanager
def full(folder: Path) -> Iterator[None]:
    """No byte is left inside the block."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (MIB, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(b"\0" * size):
                    pass
    try:
        yield
    finally:
        ballast.unlink()


async def refused(call: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "disk is full" in str(caught.value.details())


@pytest.mark.tier(2)
async def test_database_and_audit_writers(score: Any, small_disk: Path) -> None:
    row = score.row("full disk: database and audit writers", 2)
    async with gateway(small_disk / "state") as gate:
        name = await import_two(gate)
        request = generate(2)
        reading = lib.StreamRecordsRequest(name=name, view=lib.RECORD_VIEW_FULL, purpose="test")
        with full(small_disk):
            await refused(gate.tuning.GenerateInstructions(request))
            read: list[Any] = []
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for record in gate.library.StreamRecords(reading):
                    read.append(record)
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert not read, "text was read although its audit entry has no room"
            await gate.library.GetInstructionSet(lib.GetResourceRequest(name=name))
            await refused(import_two(gate))
        await gate.tuning.GenerateInstructions(request)
        assert len([r async for r in gate.library.StreamRecords(reading)]) == 2
        actions = [entry.action for entry in gate.store.audit.entries()]
        assert (gate.store.audit.first_bad(), actions) == (0, ["import", "submit", "read records"])
    row.ran += 2


@pytest.mark.tier(2)
def test_item_and_checkpoint_writers(score: Any, small_disk: Path) -> None:
    import torch
    from test_regressions import add_operation

    from ptalign.training.checkpoint import Checkpoint, latest, save

    row = score.row("full disk: item and checkpoint writers", 2)
    with opened(small_disk / "state") as store:
        log = store.sets.log(add_operation(store), Instruction)
        made = [Checkpoint(n, {"a": torch.ones(99)}, {}, {}, torch.get_rng_state()) for n in (1, 2)]
        save(small_disk / "run", made[0], "x")
        log.append(instruction(1))
        with full(small_disk):
            for _ in range(3):
                with pytest.raises(OSError, match="No space"):
                    for number in range(2, 200):
                        log.append(instruction(number))
            with pytest.raises((OSError, Exception)):
                save(small_disk / "run", made[1], "x")
        kept = len(log)
        log.append(instruction(1000))
        assert [r.id for r in log.read()][-1] == "i1000"
        assert len(list(log.read())) == kept + 1
        found = latest(small_disk / "run", "x")
        assert found is not None
        assert found.step == 1
        save(small_disk / "run", made[1], "x")
        assert latest(small_disk / "run", "x").step == 2  # type: ignore[union-attr]
        log.close()
    row.ran += 2


def use_every_method(server: Any) -> None:
    """One call of each, whatever it answers."""
    for method in methods():
        path = f"/{method.containing_service.full_name}/{method.name}"
        if method.client_streaming or method.server_streaming:
            continue
        call = server.channel.unary_unary(path, bytes, bytes)
        with contextlib.suppress(grpc.RpcError):
            call(b"", timeout=10)


@pytest.mark.tier(2)
@pytest.mark.timeout(400)
def test_a_server_outlives_a_full_disk(score: Any, small_disk: Path) -> None:
    row = score.row("full disk: servers with their logs on it", 1)
    state = small_disk / "state"
    with author(0.3) as url, served(state, url) as server:
        first = server.tuning.GenerateInstructions(generate(60))
        operation = first.name.removeprefix("operations/")
        wait_for(lambda: len(accepted(state, operation)) > 3, 60, "records on disk")
        history = History(operations={first.name})
        before = (server.process.pid, worker_pid(server))
        with full(small_disk):
            for _ in range(20):
                with pytest.raises(grpc.RpcError) as caught:
                    server.tuning.GenerateInstructions(generate(2), timeout=20)
                assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            use_every_method(server)  # new label values need new pages of the metric files
            assert server.metrics()
        for record in accepted(state, operation):
            history.items[record.text] = first.name
        second = server.tuning.GenerateInstructions(generate(2))
        history.operations.add(second.name)
        found = check(server, history)
        assert not found.bad, found
        assert (server.process.pid, worker_pid(server)) == before, "something had to be restarted"
        ended = server.operations.GetOperation(lro.GetOperationRequest(name=first.name))
        full_reason = "disk is full" in ended.error.message
        assert state_of(ended) == "SUCCEEDED" or full_reason, ended.error
        assert state_of(server.wait(second.name)) == "SUCCEEDED"
    row.ran, row.bad = 1, found.bad
