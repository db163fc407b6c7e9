"""Makes the golden state folder of this release: `python tests/data/golden/make.py`.

A server of this release runs the loop on the tiny model and is killed in the middle of a
generation. Its state folder goes into ``VERSION.tar.gz`` and what must be found in it into
``VERSION.json``; every later release opens it (tests/faults/test_golden.py). Its .proto files go
into ``VERSION.binpb``; `make lint` refuses what would break their callers. Made once per release
and never again: the operator's key inside protects nothing but this test's mild texts.
"""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TESTS = HERE.parents[1]
sys.path[:0] = [str(TESTS / "faults"), str(TESTS / "server"), str(TESTS.parent / "protos")]

from generate import write_image  # noqa: E402
from running import Running, state_of  # noqa: E402
from test_training_crash import align, import_pairs  # noqa: E402
from world import accepted, author, generate, load, records_of, server, wait_for  # noqa: E402

from ptalign_proto import __version__  # noqa: E402
from ptalign_proto.v1 import library_pb2 as lib  # noqa: E402
from ptalign_proto.v1 import resources_pb2 as res  # noqa: E402

LEFT_OUT = ("logs", "run", "engines", "work", "cache")
REQUEST_ID = "5b0e6a52-55c6-4b7e-9f0d-3f8f0c0f7a11"


def made(running: Running, operation: Any, kind: Any) -> Any:
    done = running.wait(operation.name)
    assert state_of(done) == "SUCCEEDED", f"{done.error}\n{running.worker_log()}"
    message = kind()
    done.response.Unpack(message)
    return message


def fill(running: Running) -> dict[str, Any]:
    """One resource of each kind, a purged set, reads in the audit, and work under way."""
    request = generate(4, request_id=REQUEST_ID)
    instructions = made(running, running.tuning.GenerateInstructions(request), res.InstructionSet)
    pairs = import_pairs(running)
    lora = {"lora": {"rank": 2, "target_modules": ["q_proj"]}}
    adapter = align(running, pairs, **lora)
    trained = made(running, type("O", (), {"name": adapter}), res.Adapter)
    doomed = import_pairs(running)
    purge = lib.PurgeSetRequest(name=doomed, reason="golden")
    running.library.PurgeSet(purge, timeout=30)
    texts = {
        name: sorted(r.instruction for r in records_of(running, name))
        for name in (instructions.meta.name, pairs)
    }
    under_way = running.tuning.GenerateInstructions(generate(40, seed=3)).name
    operation = under_way.removeprefix("operations/")
    wait_for(lambda: len(accepted(running.state, operation)) > 3, 120, "records")
    running.kill_tree()
    return {
        "texts": texts,
        "purged": doomed,
        "adapter": {"name": trained.meta.name, "sha256": trained.weights_sha256},
        "request_id": REQUEST_ID,
        "operation": instructions.meta.operation,
        "under_way": under_way,
        "acknowledged": [r.text for r in accepted(running.state, operation)],
        "audit": 8,
    }


def tiny(folder: Path) -> Path:
    core, tools = load("core/conftest.py"), load("server/conftest.py")
    pairs = core.make_pairs()
    texts = [t for p in pairs.pairs for t in (p.instruction, p.positive)]
    texts += [p.toxic.reveal() for p in pairs.polarised]
    folder.mkdir()
    found: Path = tools.save_llama(core, texts, pairs, folder)
    return found


def pack(state: Path, target: Path) -> None:
    """The state folder, without what a start makes anew."""

    def kept(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        parts = Path(entry.name).parts
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        return None if len(parts) > 1 and parts[1] in LEFT_OUT else entry

    with tarfile.open(target, "w:gz") as archive:
        archive.add(state, "state", filter=kept)


def main() -> None:
    target = HERE / f"{__version__}.tar.gz"
    if target.exists():
        raise SystemExit(f"{target.name} is there already: a release's golden folder never changes")
    folder = Path(tempfile.mkdtemp(prefix="ptg-"))
    with author(0.1) as url:
        running = server(folder / "state", url, tiny(folder / "tiny")).start()
        known = fill(running)
    (HERE / f"{__version__}.json").write_text(json.dumps(known, indent=1) + "\n")
    pack(folder / "state", target)
    write_image(HERE / f"{__version__}.binpb")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
