"""The chart's scaled shape with real processes: two servers, PostgreSQL, an object store."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from google.longrunning import operations_pb2 as lro
from postgres import Cluster
from running import Running, progress, state_of

from ptalign.nouns import ModelSpec
from ptalign_proto.v1 import library_pb2 as lib
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server.catalogue import write_models
from ptalign_server.vault import KeyFile

MODEL = "tiny"


@pytest.fixture
def database(program: Callable[..., str]) -> Iterator[str]:
    """URL of a PostgreSQL of our own, on loopback, gone afterwards."""
    cluster = Cluster(program).start()
    yield cluster.url
    cluster.remove()


@pytest.fixture
def servers(
    database: str, tmp_path: Path, tiny_model: Path, author_url: str
) -> Iterator[tuple[Running, Running]]:
    """Two servers as the chart makes them: shared database, store, key, sets and checkpoints."""
    key, bucket, sets = tmp_path / "operator.key", tmp_path / "bucket", tmp_path / "sets"
    KeyFile.create(key)
    bucket.mkdir()
    (sets / "work").mkdir(parents=True)
    catalogue = tmp_path / "models.yaml"
    write_models(catalogue, {MODEL: ModelSpec(name=MODEL, path=str(tiny_model))})
    made = []
    for number in range(2):
        state = tmp_path / f"state-{number}"
        state.mkdir()
        (state / "sets").symlink_to(sets)  # the chart mounts the shared claim there
        (state / "work").symlink_to(sets / "work")
        server = Running(
            state,
            PTALIGN_DATABASE=database,
            PTALIGN_ARTEFACTS=f"file://{bucket}",
            PTALIGN_KEY_FILE=str(key),
            PTALIGN_MODELS_FILE=str(catalogue),
            PTALIGN_EXECUTOR_ID=f"ptalign-{number}",
            PTALIGN_ENGINE__KIND="remote",
            PTALIGN_ENGINE__URLS=json.dumps([author_url]),
            PTALIGN_ENGINE__SERVED_NAME="author",
        )
        made.append(server.start())
    yield made[0], made[1]
    for server in made:
        server.stop()


def made_by(server: Running, operation: lro.Operation) -> str:
    """Name of what an operation made, as this server tells it."""
    done = server.wait(operation.name)
    assert state_of(done) == "SUCCEEDED", done.error
    return progress(done).resource


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_servers_are_one_service(servers: tuple[Running, Running]) -> None:
    """Each stage is asked of one server and read at the other."""
    first, second = servers
    request = pb.GenerateInstructionsRequest(
        request_id=str(uuid.uuid4()), model=MODEL, policy="tone-en", count=12, seed=1
    )
    begun = first.tuning.GenerateInstructions(request)
    again = second.tuning.GenerateInstructions(request)
    assert again.name == begun.name, "a request id holds over servers"
    instructions = made_by(second, begun)
    ask = pb.SynthesizePairsRequest(model=MODEL, instruction_set=instructions, anchors=8, rounds=1)
    pairs = made_by(first, second.tuning.SynthesizePairs(ask))
    for server in servers:
        records = list(server.library.StreamRecords(lib.StreamRecordsRequest(name=pairs)))
        assert len(records) >= 12
    budget = pb.Budget(steps=4, pairs_per_step=4, anchors_per_step=2, max_benign_kl=9.0)
    train = pb.AlignRequest(model=MODEL, pair_set=pairs, budget=budget, guards="record")
    adapter = made_by(second, first.tuning.Align(train))
    weights = lib.DownloadRequest(name=adapter, part="adapter_model.safetensors")
    sums = set()
    for server in servers:
        chunks = list(server.library.Download(weights))
        sums.add(hashlib.sha256(b"".join(c.data for c in chunks)).hexdigest())
        assert sums == {chunks[0].info.sha256}
    found = [s.operations.ListOperations(lro.ListOperationsRequest()).operations for s in servers]
    assert [o.name for o in found[0]] == [o.name for o in found[1]]
    assert len(found[0]) == 3
