"""What the fault tests stand on: a light catalogue, an engine by rule, servers that are killed.

The policy is written in a made-up locale, so that the stages use hashed n-grams instead of a
torch model: a killed worker is back in a few seconds, and every other line of code is the real one.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import yaml
from running import Running, descendants
from running import author as author

from ptalign.nouns import Anchor, Constraint, Instruction, ModelSpec, Pair
from ptalign_proto.v1 import library_pb2 as lib
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server import wire
from ptalign_server.catalogue import write_models
from ptalign_server.settings import Settings
from ptalign_server.store import Store

HERE = Path(__file__).parent
MODEL = "tiny"
POLICY = "faults"
LOCALE = "qaa"
"""A private-use language tag."""


def pack() -> dict[str, Any]:
    """A policy whose topics lie near what `author_engine` writes."""
    titles = [
        f"my {who} who borrowed the {what} near the library yesterday"
        for who in ("neighbour", "colleague", "student", "gardener")
        for what in ("umbrella", "teapot", "bicycle")
    ]
    topics = [{"id": f"t{n}", "title": title} for n, title in enumerate(titles)]
    tactics = [{"id": "say", "sides": "both", "openers": ["Mock"]}]
    domains = [{"domain": "manners", "sides": "both", "topics": topics}]
    return {"name": POLICY, "locale": LOCALE, "tactics": tactics, "domains": domains}


def lay_out(state: Path, model: Path | None = None) -> None:
    """Catalogue files of a new state folder."""
    (state / "policies").mkdir(parents=True, exist_ok=True)
    if model is None:
        model = stub_model(state.parent / "stub-model")
    (state / "policies" / f"{POLICY}.yaml").write_text(yaml.safe_dump(pack()))
    entry = ModelSpec(name=MODEL, path=str(model), locales=("en", LOCALE))
    write_models(state / "models.yaml", {MODEL: entry})


def stub_model(folder: Path) -> Path:
    """Just enough of a model for the pool to make its own adapters: no text is made with it."""
    import numpy as np
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    weights = {"model.layers.0.mlp.down_proj.weight": np.ones((4, 8), dtype="float32")}
    save_file(weights, folder / "model.safetensors")
    return folder


def server(state: Path, engine_url: str, model: Path | None = None, **more: str) -> Running:
    """A server that is not started yet."""
    lay_out(state, model)
    return Running(
        state,
        **{
            "PTALIGN_ENGINE__KIND": "remote",
            "PTALIGN_ENGINE__URLS": json.dumps([engine_url]),
            "PTALIGN_ENGINE__SERVED_NAME": "author",
            **more,
        },
    )


@contextlib.contextmanager
def served(state: Path, engine_url: str, **more: Any) -> Iterator[Running]:
    """A running server, ended with the block however it stands then."""
    made = server(state, engine_url, **more)
    try:
        yield made.start()
    finally:
        end(made)


def end(running: Running) -> None:
    """Stops a server; one that was killed is left alone."""
    if running.process is not None and running.process.poll() is None:
        running.stop()


def generate(count: int = 6, **changes: Any) -> pb.GenerateInstructionsRequest:
    """A call that makes `count` instructions without twins."""
    values = {
        "model": MODEL,
        "policy": POLICY,
        "count": count,
        "request_id": str(uuid.uuid4()),
        "twins": False,
    }
    return pb.GenerateInstructionsRequest(**(values | changes))


def insist(call: Any, request: Any, seconds: float = 60.0) -> Any:
    """Sends a call until it is answered, as a client with a request_id may."""
    limit = time.monotonic() + seconds
    while True:
        try:
            return call(request, timeout=10)
        except grpc.RpcError as error:
            codes = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
            if error.code() not in codes or time.monotonic() > limit:
                raise
            time.sleep(0.1)


def accepted(where: Path | Running, operation_id: str) -> list[Any]:
    """Records in an operation's log, read beside the running server."""
    with opened(where) as store:
        try:
            return list(_records(store, operation_id))
        except FileNotFoundError:  # not begun, or sealed by now
            return []


def _records(store: Store, operation_id: str) -> Iterator[Any]:
    from ptalign_server.store.records import decode, frames

    kinds = {kind.__name__: kind for kind in (Instruction, Pair, Anchor, Constraint)}
    path = store.sets.folder(operation_id) / "log"
    with path.open("rb") as stream:
        key = store.keys.get(operation_id)
        for place, blob in frames(stream, path):
            record = decode(key.open(place, blob), kinds)
            if not isinstance(record, Constraint):  # a rule, which is no record of the set
                yield record


@contextlib.contextmanager
def opened(where: Path | Running) -> Iterator[Store]:
    """The store of a state folder, or of a server whose database is elsewhere, in this process."""
    store = Store(settings_of(where), wire.freeze)
    try:
        yield store
    finally:
        store.close()


def settings_of(where: Path | Running) -> Settings:
    """Where a server keeps what it keeps."""
    if isinstance(where, Path):
        return Settings(state=where)
    told = where.environment
    key = told.get("PTALIGN_KEY_FILE")
    database = told.get("PTALIGN_DATABASE", "")
    return Settings(state=where.state, database=database, key_file=Path(key) if key else None)


def records_of(server: Running, name: str) -> list[lib.Record]:
    """A set's records in clear."""
    request = lib.StreamRecordsRequest(name=name, view=lib.RECORD_VIEW_FULL, purpose="fault test")
    return list(server.library.StreamRecords(request, timeout=30))


def worker_pid(server: Running) -> int:
    """Pid of the worker; 0 while there is none."""
    assert server.process is not None
    for pid in descendants(server.process.pid):
        with contextlib.suppress(OSError):
            if b"ptalign_server.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    return 0


def wait_for(true: Any, seconds: float, what: str) -> Any:
    """Waits until `true()` is; returns its value."""
    limit = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < limit, f"not in {seconds} s: {what}"
        time.sleep(0.05)
    return value


def load(name: str) -> Any:
    """A conftest of another folder, as a module."""
    spec = importlib.util.spec_from_file_location(name.replace("/", "_"), HERE.parent / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
