"""Children never outlive their owner, whatever kills it; nothing of them is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from running import until

from ptalign_server import shepherd
from ptalign_server.processes import Child, clean_environment, reap, spawn
from ptalign_server.redact import LogTail

FAMILY = """
    import multiprocessing, os, sys, time
    from multiprocessing import shared_memory

    def idle(name):
        time.sleep(600)

    if __name__ == "__main__":
        segment = shared_memory.SharedMemory(create=True, size=1024)
        for method in ("fork", "spawn"):
            multiprocessing.get_context(method).Process(target=idle, args=(method,)).start()
        r, w = os.pipe()
        if os.fork() == 0:
            os.setsid()
            os.write(w, b".")
            time.sleep(600)
        os.read(r, 1)  # it has left the session
        sys.stderr.write(f"segment {segment.name}\\n")
        sys.stderr.flush()
        time.sleep(600)
"""
"""A command with children of three kinds, one of which leaves the session, and shared memory."""


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "children"
    yield folder
    reap(folder)


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Path]:
    """The script of a family; whoever left its session is ended with the test."""
    script = tmp_path / "family.py"
    script.write_text(textwrap.dedent(FAMILY))
    yield script
    for folder in Path("/proc").iterdir():
        with suppress(OSError):  # it ended meanwhile
            if folder.name.isdigit() and str(script).encode() in (folder / "cmdline").read_bytes():
                os.kill(int(folder.name), signal.SIGKILL)


def start(records: Path, *command: str, pipes: bool = False) -> Child:
    env = clean_environment({"HERE": "{folder}/x"})
    return spawn(command, name="t", records=records, env=env, log=LogTail(), pipes=pipes)


def segment_of(child: Child) -> Path:
    until(lambda: any("segment" in line for line in child.log.last()))
    return Path("/dev/shm") / child.log.last()[-1].split()[1]


def descendants(root: int) -> set[int]:
    found = {root}
    pids = [int(p) for p in os.listdir("/proc") if p.isdigit()]
    for _ in range(6):
        found |= {p for p in pids if (s := shepherd.stat(p)) and int(s[1]) in found}
    return found


def test_exit_status_output_and_folder(records: Path) -> None:
    script = "import os, sys; print(os.getcwd()); print(os.environ['HERE']); sys.exit(3)"
    child = start(records, sys.executable, "-c", script, pipes=True)
    where, here = child.stdout.read().decode().split()
    assert child.wait(10)
    assert child.status == 3
    assert here == where + "/x"
    assert not Path(where).exists()
    assert list(records.iterdir()) == []


def test_a_missing_program_says_so(records: Path) -> None:
    child = start(records, "/nonexistent/program")
    assert child.wait(10)
    assert child.status == 127
    assert "cannot start /nonexistent/program" in child.log.last()[-1]


def test_secrets_of_our_environment_stay_here(
    records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTALIGN_KEY", "hidden-1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-2")
    child = start(records, sys.executable, "-c", "import os; print(dict(os.environ))", pipes=True)
    seen = child.stdout.read().decode()
    assert "hidden" not in seen
    assert "PATH" in seen


def test_terminate_reaches_the_command(records: Path) -> None:
    script = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(7))"
    script += "; print(flush=True); time.sleep(60)"
    child = start(records, sys.executable, "-c", script, pipes=True)
    child.stdout.readline()
    child.stop(grace_s=10)
    assert child.status == 7


@pytest.mark.parametrize("how", ["kill", "sigkill the command", "sigkill the shepherd"])
def test_the_whole_family_goes(records: Path, family: Path, how: str) -> None:
    child = start(records, sys.executable, str(family))
    segment = segment_of(child)
    folder = Path(os.readlink(f"/proc/{child.pid}/cwd"))
    relatives = descendants(child.pid)
    assert len(relatives) >= 4
    assert segment.exists()
    if how == "kill":
        child.kill()
    elif how == "sigkill the command":
        os.kill(child.pid, signal.SIGKILL)
    else:
        os.kill(child._process.pid, signal.SIGKILL)
        relatives = {p for p in relatives if (s := shepherd.stat(p)) and int(s[3]) == child.pid}
    assert child.wait(15)
    assert child.status == 137
    until(lambda: not any(shepherd.start_ticks(pid) for pid in relatives), 2)
    assert not segment.exists()
    assert not folder.exists()
    assert list(records.iterdir()) == []


def test_the_thread_that_spawned_may_end(records: Path) -> None:
    """PR_SET_PDEATHSIG alone would kill the child here."""
    made: list[Child] = []
    thread = threading.Thread(
        target=lambda: made.append(
            start(records, sys.executable, "-c", "import time; time.sleep(60)")
        )
    )
    thread.start()
    thread.join()
    time.sleep(0.5)
    assert made[0].running
    made[0].kill()


OWNER = """
    import sys, time
    from pathlib import Path
    from ptalign_server.processes import clean_environment, spawn
    from ptalign_server.redact import LogTail
    child = spawn([sys.executable, sys.argv[2]], name="t", records=Path(sys.argv[1]),
                  env=clean_environment(), log=LogTail())
    while not child.log.last():
        time.sleep(0.05)
    print(child.pid, child._process.pid, flush=True)
    time.sleep(600)
"""


def owner_of(records: Path, family: Path) -> tuple[subprocess.Popen[str], int, int]:
    owner = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(OWNER), str(records), str(family)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None
    pid, guard = map(int, owner.stdout.readline().split())
    return owner, pid, guard


def test_kill_9_of_the_owner_leaves_nothing(records: Path, family: Path) -> None:
    owner, pid, _ = owner_of(records, family)
    relatives = descendants(owner.pid) - {owner.pid}
    assert len(relatives) >= 5
    shm = shepherd.shared_memory([pid])
    owner.kill()
    owner.wait()
    until(lambda: not any(shepherd.start_ticks(pid) for pid in relatives), 5)
    until(lambda: list(records.iterdir()) == [], 5)
    assert shm
    assert not any(Path(path).exists() for path in shm)


def test_kill_9_of_owner_and_shepherd_is_reaped_at_the_next_start(
    records: Path, family: Path
) -> None:
    owner, pid, guard = owner_of(records, family)
    session = set(shepherd.members(pid))
    os.kill(owner.pid, signal.SIGSTOP)  # so that it cannot clear up first
    os.kill(guard, signal.SIGKILL)
    owner.kill()
    owner.wait()
    until(lambda: not shepherd.start_ticks(pid), 5)
    assert any(shepherd.start_ticks(p) for p in session), "PR_SET_PDEATHSIG reaches the leader only"
    assert reap(records) == 1
    assert not any(shepherd.start_ticks(p) for p in session)
    assert list(records.iterdir()) == []


def test_reap_leaves_strangers_alone(records: Path) -> None:
    """A record whose pid has been given to another process since."""
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    records.mkdir()
    content = {"boot": shepherd.boot_id(), "owner": [1 << 22, 5], "shepherd": [1 << 22, 5]}
    content |= {"child": [stranger.pid, 5], "folder": "/nonexistent/ptalign-x"}
    (records / "t.json").write_text(json.dumps(content))
    assert reap(records) == 1
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_reap_leaves_the_children_of_a_living_owner(records: Path, family: Path) -> None:
    owner, pid, _ = owner_of(records, family)
    assert reap(records) == 0
    assert shepherd.start_ticks(pid)
    owner.kill()
    owner.wait()
    until(lambda: not shepherd.start_ticks(pid), 5)


def test_damaged_record_is_removed(records: Path) -> None:
    records.mkdir()
    (records / "t.json").write_text("{")
    assert reap(records) == 0
    assert list(records.iterdir()) == []
