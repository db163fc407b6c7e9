"""Many records written, sealed, streamed to a client and exported: time, and memory at its peak.

python -m bench.million write FOLDER COUNT    (what `million` starts)
python -m bench.million serve FOLDER
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from bench.results import Result, device_name, own_folder, status
from bench.texts import make_items

LIMIT_MIB = 300.0
SET = "pairSets/1000000000000001"
PARQUET_GROUP = 5_000
EXPORT = "preference.jsonl"


def million(count: int) -> list[dict[str, Any]]:
    """Rows of `count` records."""
    with tempfile.TemporaryDirectory(prefix="ptalign-bench-") as folder:
        written = json.loads(run("write", folder, str(count)))
        with serving(folder) as (port, pid):
            read = asyncio.run(fetch(port, pid, count))
            served = status("VmHWM", pid) / 2**20
    name, peak = f"{count:,} records", max(written["mib"], served)
    memory = Result(
        name=f"{name}: memory to write, seal, stream and export; theirs: limit",
        ours=peak,
        theirs=LIMIT_MIB,
        ratio=LIMIT_MIB / peak,
        goal=1.0,
        unit="MiB",
        n=count,
        spread=0.0,
        device=device_name(),
    )
    seal = rate(
        f"{name}: sealed; theirs: plain Parquet", count, written["seal"], written["parquet"]
    )
    stream = rate(
        f"{name}: streamed one by one; theirs: exported as {EXPORT}",
        count,
        read["stream"],
        read["export"],
    )
    return [asdict(result) for result in (memory, seal, stream)]


def rate(name: str, count: int, ours: float, theirs: float) -> Result:
    """Records per CPU second of all processes; no goal is set for these."""
    return Result(
        name=name,
        ours=count / ours,
        theirs=count / theirs,
        ratio=theirs / ours,
        goal=0.0,
        unit="records/CPU s",
        n=count,
        spread=0.0,
        device=device_name(),
    )


def run(*arguments: str) -> str:
    """Last line of a process of this module."""
    command = [sys.executable, "-m", "bench.million", *arguments]
    done = subprocess.run(command, cwd=own_folder(), stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.splitlines()[-1]


@contextmanager
def serving(folder: str) -> Iterator[tuple[int, int]]:
    """Port and process id of a library server on the folder."""
    command = [sys.executable, "-m", "bench.million", "serve", folder]
    process = subprocess.Popen(command, cwd=own_folder(), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline()), process.pid
    finally:
        process.kill()
        process.wait()


async def fetch(port: int, pid: int, count: int) -> dict[str, float]:
    """CPU seconds, server and client together, of streaming all records and of the export."""
    import grpc

    from ptalign_proto.v1 import library_pb2 as lib
    from ptalign_proto.v1 import library_pb2_grpc

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        library: Any = library_pb2_grpc.LibraryStub(channel)
        begun, seen, lines = both(pid), 0, 0
        async for _ in library.StreamRecords(lib.StreamRecordsRequest(name=SET)):
            seen += 1
        streamed = both(pid)
        request = lib.DownloadRequest(name=SET, part=EXPORT, purpose="benchmark")
        async for chunk in library.Download(request):
            lines += chunk.data.count(b"\n")
        done = both(pid)
    if (seen, lines) != (count, count):
        raise RuntimeError(f"{seen} records streamed, {lines} exported, not {count}")
    return {"stream": streamed - begun, "export": done - streamed}


def both(pid: int) -> float:
    """CPU seconds of this process and another."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return time.process_time() + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def write(folder: Path, count: int) -> None:
    """Writes the set and the same rows as plain Parquet; prints CPU seconds and the peak."""
    from ptalign_server.store.records import encode, write_sealed

    with opened(folder) as (store, add):
        key, wrapped = store.vault.fresh_key(SET.partition("/")[2])
        begun = time.process_time()
        frames = ((f"pairs.{i}", encode(pair)) for i, pair in enumerate(pairs(count)))
        path = store.sets.folder(SET.partition("/")[2]) / "noun"
        write_sealed(path, key, with_head(frames))
        sealed = time.process_time() - begun
        add(wrapped, count)
    begun = time.process_time()
    write_parquet(folder / "plain.parquet", count)
    seconds = {"seal": sealed, "parquet": time.process_time() - begun}
    sys.stdout.write(json.dumps({**seconds, "mib": status("VmHWM") / 2**20}) + "\n")


def with_head(frames: Iterator[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    """A noun's head first, as the library reads it."""
    yield "head", b"{}"
    yield from frames


def pairs(count: int) -> Iterator[Any]:
    """Pairs with texts of a few dozen words."""
    from ptalign.nouns import Pair
    from ptalign.sealed import SealedText

    items = make_items(500, 40)
    for i in range(count):
        item = items[i % len(items)]
        yield Pair(
            id=f"{i:016x}",
            instruction_id=f"{i:016x}",
            instruction=f"{item.instruction} {i}",
            topic="tone",
            positive=item.positive,
            toxic=SealedText(item.toxic),
        )


def write_parquet(file: Path, count: int) -> None:
    """The same records in clear, as anyone would write them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer, made = None, pairs(count)
    while group := list(islice(made, PARQUET_GROUP)):
        rows = [pair.model_dump(mode="json", context={"reveal": True}) for pair in group]
        table = pa.Table.from_pylist([{**row, "polarity": None} for row in rows])
        writer = writer or pq.ParquetWriter(file, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


@contextmanager
def opened(folder: Path) -> Iterator[tuple[Any, Any]]:
    """A store, and a function that commits the set's key and row."""
    from ptalign_proto.v1 import resources_pb2 as res
    from ptalign_server import wire
    from ptalign_server.settings import Settings
    from ptalign_server.store import Store
    from ptalign_server.store.resources import Resource

    store = Store(Settings(state=folder / "state"), wire.freeze)

    def add(wrapped: bytes, count: int) -> None:
        body = res.PairSet(meta=res.ResourceMeta(name=SET), pairs=count).SerializeToString()
        row = Resource(
            name=SET,
            collection="pairSets",
            tenant="default",
            model="m",
            policy="tone-en",
            verdict="",
            adapter="",
            partial=False,
            purged=False,
            content="",
            body=body,
            created=time.time(),
        )

        def change(connection: Any) -> None:
            store.keys.insert(connection, row.id, wrapped)
            store.resources.insert(connection, row)

        store.write(change).result()

    try:
        yield store, add
    finally:
        store.close()


async def serve(folder: Path) -> None:
    """The product's gRPC server on the folder; prints its port."""
    from grpc_health.v1 import health

    from ptalign_server.catalogue import write_models
    from ptalign_server.gateway.serve import make_server
    from ptalign_server.metrics import Metrics
    from ptalign_server.settings import Settings

    settings = Settings(state=folder / "state")
    write_models(settings.models_path, {})
    with opened(folder) as (store, _):
        server = make_server(settings, store, Metrics(), health.aio.HealthServicer())
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        sys.stdout.write(f"{port}\n")
        sys.stdout.flush()
        await server.wait_for_termination()


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        asyncio.run(serve(Path(sys.argv[2])))
