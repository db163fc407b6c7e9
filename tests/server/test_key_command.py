"""Operator's keys from a command: in memory alone, rotated at their source, nothing lost."""

from __future__ import annotations

import base64
import json
import logging
import os
import secrets
import shlex
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from running import alive, until
from test_retention import put_operation
from typer.testing import CliRunner

from ptalign.errors import DataDamaged, InvalidInput, NotReady, PtalignError, Unsupported
from ptalign.nouns import Instruction, InstructionSet
from ptalign_server.admin.keys import rotate_all
from ptalign_server.cli import app
from ptalign_server.metrics import Metrics
from ptalign_server.settings import Settings
from ptalign_server.store import Store
from ptalign_server.store.operations import QUEUED, SUCCEEDED, Operation, new_id
from ptalign_server.store.schema import set_keys
from ptalign_server.vault import KeyCommand, keycommand
from ptalign_server.worker import perform, run
from ptalign_server.worker.job import Job, Made, Room
from ptalign_server.worker.jobs import JOBS

SCRIPT = """
import json, os, subprocess, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
with (folder / "begun").open("a") as marks:
    marks.write("x")
said = json.loads((folder / "said.json").read_text())
(folder / "seen").write_text(repr((sys.argv, dict(os.environ))))
if said["child"]:
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"])
    (folder / "pids").write_text(f"{os.getpid()} {child.pid}")
time.sleep(said["seconds"])
sys.stdout.write(said["printed"])
sys.stderr.write(said["printed"])
sys.stdout.flush()
with (folder / "ended").open("a") as marks:
    marks.write("x")
sys.exit(said["code"])
"""


class Kms:
    """A command that prints keys, and what it is to do next."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        (folder / "script.py").write_text(SCRIPT)
        argv = (sys.executable, "-I", "-S", str(folder / "script.py"), str(folder))
        self.command = shlex.join(argv)
        self.keys: dict[str, bytes] = {}
        self.put("first")

    def put(self, *ids: str) -> None:
        """Prints these keys from now on, in this order; new ones are made."""
        self.keys = {i: self.keys.get(i) or secrets.token_bytes(32) for i in ids}
        self.say(lines(self.keys))

    def say(
        self, printed: str, code: int = 0, seconds: float = 0.0, *, child: bool = False
    ) -> None:
        said = {"printed": printed, "code": code, "seconds": seconds, "child": child}
        partial = self.folder / "partial"
        partial.write_text(json.dumps(said))
        partial.replace(self.folder / "said.json")

    @property
    def begun(self) -> int:
        """How often it was run."""
        return self._marks("begun")

    @property
    def ended(self) -> int:
        return self._marks("ended")

    def _marks(self, name: str) -> int:
        file = self.folder / name
        return len(file.read_text()) if file.exists() else 0


def lines(keys: dict[str, bytes]) -> str:
    return "".join(f"{i} {base64.b64encode(k).decode()}\n" for i, k in keys.items())


def forms(key: bytes) -> list[bytes]:
    """A key as it might be found: raw, hex, base64."""
    return [key, key.hex().encode(), key.hex().upper().encode(), base64.b64encode(key)]


def frozen(operation: Operation) -> bytes:
    return operation.state.encode()


@pytest.fixture
def kms(tmp_path: Path) -> Kms:
    return Kms(tmp_path / "a kms")


@pytest.fixture
def opened(kms: Kms, tmp_path: Path) -> Iterator[Callable[[], Store]]:
    """Opens the same state folder, as gateway, worker and commands each do."""
    stores: list[Store] = []

    def make() -> Store:
        settings = Settings(state=tmp_path / "state", key_command=kms.command)
        stores.append(Store(settings, frozen))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def add(store: Store) -> str:
    """A sealed set with its key; returns its id."""
    set_id = new_id()
    key, wrapped = store.vault.fresh_key(set_id)
    record = Instruction(id="0" * 16, text="a mild text", topic="t", domain="d")
    store.sets.write(set_id, key, InstructionSet(records=(record,), requested=1))
    store.write(lambda c: store.keys.insert(c, set_id, wrapped)).result()
    return set_id


def text(store: Store, set_id: str) -> str:
    [(_, body)] = store.sets.records(f"instructionSets/{set_id}")
    return str(body["text"])


def wrapping(store: Store) -> set[str]:
    """Ids of the operator's keys that wrap anything."""
    with store.engine.connect() as connection:
        return {
            row.wrapped.split(b":")[0].decode() for row in connection.execute(set_keys.select())
        }


def test_what_was_sealed_is_read_by_another_process_of_the_server(
    kms: Kms, opened: Callable[[], Store]
) -> None:
    gateway, worker = opened(), opened()
    made = [add(gateway), add(worker)]
    for store in (gateway, worker, opened()):
        assert [text(store, set_id) for set_id in made] == ["a mild text"] * 2
    assert wrapping(gateway) == {"first"}
    assert kms.begun == 3, "once for each start"


def test_keys_stand_in_no_file_log_argument_or_environment(
    kms: Kms, opened: Callable[[], Store], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    store = opened()
    add(store)
    kms.put("second", "first")
    store.keys.rotate()
    add(store)
    state = tmp_path / "state"
    files = [f for f in state.rglob("*") if f.is_file()]
    assert any(f.name == "ptalign.db" for f in files)
    assert not [f for f in files if f.suffix == ".key"]
    places = {str(f): f.read_bytes() for f in files} | {
        "log": caplog.text.encode(),
        "the command's arguments and environment": (kms.folder / "seen").read_bytes(),
        "our environment": Path("/proc/self/environ").read_bytes() + repr(os.environ).encode(),
        "our arguments": Path("/proc/self/cmdline").read_bytes(),
    }
    found = [
        p for p, data in places.items() for k in kms.keys.values() for f in forms(k) if f in data
    ]
    assert not found


BROKEN = "first AAAAsecret"
WHOLE = base64.b64encode(b"secret-bytes-of-an-operators-key").decode()


@pytest.mark.parametrize(
    ("printed", "code", "says"),
    [
        (f"first {WHOLE}\n", 3, "ended with exit code 3"),
        ("", 0, "printed nothing"),
        ("\n \n", 0, "printed something else than keys"),
        (BROKEN, 0, "printed something else than keys"),
        (f"first {WHOLE}\n{BROKEN}", 0, "printed something else than keys"),
        (f"{WHOLE}\n", 0, "printed something else than keys"),
        (f"arn:key {WHOLE}\n", 0, "printed something else than keys"),
        (f"clé {WHOLE}\n", 0, "printed something else than keys"),
        (f"a {WHOLE}\na {WHOLE[:4] + WHOLE[:4] + WHOLE[8:]}\n", 0, "something else than keys"),
        (f"first {WHOLE}\n" * 2000, 0, "printed more than 65536 bytes"),
    ],
)
def test_a_first_run_that_fails_says_why_and_shows_nothing(
    kms: Kms, printed: str, code: int, says: str
) -> None:
    kms.say(printed, code)
    with pytest.raises(NotReady, match=says) as caught:
        KeyCommand(kms.command)
    shown = "".join(traceback.format_exception(caught.value))
    assert "PTALIGN_KEY_COMMAND" in str(caught.value)
    assert "Run it by hand" in str(caught.value)
    assert "secret" not in shown
    assert WHOLE[:8] not in shown


def test_a_command_that_takes_too_long_is_ended_with_what_it_started(
    kms: Kms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keycommand, "TIMEOUT_SECONDS", 1.5)
    kms.say("", seconds=60, child=True)
    with pytest.raises(NotReady, match=r"did not end within 1\.5 s"):
        KeyCommand(kms.command)
    until(lambda: not any(map(alive, map(int, (kms.folder / "pids").read_text().split()))))


@pytest.mark.parametrize("command", ["/no/such/program", "/etc"])
def test_a_program_that_cannot_be_started_is_not_ready(command: str) -> None:
    with pytest.raises(NotReady, match="could not be started"):
        KeyCommand(f"{command} token-{WHOLE}")


@pytest.mark.parametrize("command", [" ", f"vault 'get {WHOLE}"])
def test_what_is_no_command_line_is_refused_unquoted(command: str) -> None:
    with pytest.raises(InvalidInput, match="PTALIGN_KEY_COMMAND") as caught:
        KeyCommand(command)
    assert WHOLE not in "".join(traceback.format_exception(caught.value))


def test_no_shell_reads_the_command(kms: Kms) -> None:
    KeyCommand(f"{kms.command} ; touch '{kms.folder}/made' && $(touch x) > out")
    assert not (kms.folder / "made").exists()
    assert "$(touch" in (kms.folder / "seen").read_text()


def test_two_sources_are_refused_at_start(kms: Kms, tmp_path: Path) -> None:
    settings = Settings(
        state=tmp_path / "state", key_command=kms.command, key_file=tmp_path / "operator.key"
    )
    with pytest.raises(InvalidInput, match="PTALIGN_KEY_FILE is set too"):
        Store(settings, frozen)
    assert not kms.begun
    assert not settings.key_path.exists()


def test_keys_of_another_database_are_named_so(kms: Kms, opened: Callable[[], Store]) -> None:
    opened()
    kms.put("other")
    with pytest.raises(DataDamaged, match="PTALIGN_KEY_COMMAND does not print"):
        opened()


def test_a_wrap_does_not_run_the_command_while_its_last_run_is_fresh(
    kms: Kms, opened: Callable[[], Store]
) -> None:
    store = opened()
    for _ in range(50):
        store.vault.fresh_key(new_id())
    assert kms.begun == 1


def test_a_wrap_does_not_wait_for_the_run_that_it_asks_for(
    kms: Kms, opened: Callable[[], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened()
    monkeypatch.setattr(keycommand, "FRESH_SECONDS", 0.0)
    kms.keys = {"second": secrets.token_bytes(32), **kms.keys}
    kms.say(lines(kms.keys), seconds=0.7)
    _, wrapped = store.vault.fresh_key("set")
    store.vault.fresh_key("set")
    assert kms.ended == 1, "the second run is under way at most"
    assert wrapped.startswith(b"first:")
    until(lambda: store.vault.operator.current[0] == "second")
    assert kms.begun == 2, "one run for both wraps"


def test_a_failed_run_keeps_the_keys_and_is_logged_once(
    kms: Kms,
    opened: Callable[[], Store],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = opened()
    made = add(store)
    monkeypatch.setattr(keycommand, "FRESH_SECONDS", 0.0)
    kms.say(BROKEN, code=7)
    store.vault.fresh_key("set")
    until(lambda: len(caplog.records) > 0)
    for _ in range(20):  # after a failure there is a pause
        store.vault.fresh_key("set")
    until(lambda: not keycommand_threads())
    assert [r.message for r in caplog.records] == [
        "the command of PTALIGN_KEY_COMMAND ended with exit code 7; known keys stay in use"
    ]
    assert kms.begun == 2
    assert text(store, made) == text(store, add(store)) == "a mild text"


def keycommand_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "key-command"]


def test_another_key_under_a_known_id_is_refused(kms: Kms, opened: Callable[[], Store]) -> None:
    """It would open nothing that the first one wrapped, from the next start on."""
    store = opened()
    kms.say(lines({"first": secrets.token_bytes(32)}))
    with pytest.raises(NotReady, match="a new key needs an id of its own"):
        store.vault.operator.reload()
    assert store.vault.operator.keys == kms.keys


def test_an_unknown_key_id_runs_the_command_again(kms: Kms, opened: Callable[[], Store]) -> None:
    gateway, beside = opened(), opened()
    old = add(gateway)
    kms.put("second", "first")
    assert beside.keys.rotate() == 2  # the set's key and the MAC key
    assert wrapping(beside) == {"second"}
    kms.put("second")
    before = kms.begun
    assert text(gateway, old) == "a mild text"
    assert kms.begun == before + 1
    assert list(gateway.vault.operator.keys) == ["second", "first"], "old keys stay known"
    assert text(gateway, old) == "a mild text"
    assert kms.begun == before + 1


def test_a_key_that_the_command_cannot_fetch_now_is_not_ready_then_found(
    kms: Kms, opened: Callable[[], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, beside = opened(), opened()
    old = add(gateway)
    kms.put("second", "first")
    beside.keys.rotate()
    kms.say("", code=1)
    before = kms.begun
    for _ in range(5):
        with pytest.raises(NotReady, match="exit code 1"):
            text(gateway, old)
    assert kms.begun == before + 1, "not again within the pause"
    with pytest.raises(NotReady):
        add(gateway)  # refused, since it would be lost with the old key
    kms.put("second")
    monkeypatch.setattr(keycommand, "PAUSE_SECONDS", 0.0)
    assert text(gateway, old) == "a mild text"


def test_an_operation_waits_for_a_command_that_fails_for_a_moment(
    kms: Kms, opened: Callable[[], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended FAILED and without its result, although all of that was on disk."""
    store, beside, waits, made = opened(), opened(), list[float](), list[Job]()
    operation = put_operation(store, QUEUED, "GenerateInstructions")

    def make(job: Job) -> Made:
        if not made:
            kms.put("second", "first")
            beside.keys.rotate()
            kms.say("", code=1)
        made.append(job)
        return Made(noun=InstructionSet(records=(), requested=0), message=None, config=None)

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        if len(waits) == 4:
            kms.put("second", "first")
        return False

    kind = "GenerateInstructions"
    monkeypatch.setitem(JOBS, kind, replace(JOBS[kind], make=make))
    monkeypatch.setattr(perform, "_seal", lambda job, _: store.keys.get(job.operation.id) and None)
    monkeypatch.setattr(keycommand, "PAUSE_SECONDS", 0.0)
    worker = run.Worker.__new__(run.Worker)
    worker.room = Room(Settings(), store, None, None, Metrics())  # type: ignore[arg-type]
    worker.ending = SimpleNamespace(wait=wait, is_set=lambda: False)  # type: ignore[assignment]
    worker._told = set()
    assert worker._persist(operation) == SUCCEEDED
    assert len(waits) == 4
    assert store.operations.get(operation).attempt == 1, "a key that is away is no attempt"


def test_a_set_stored_after_a_rotation_outlives_the_old_key(
    kms: Kms, opened: Callable[[], Store]
) -> None:
    """A running server may not have looked at the source since: its wraps are a minute behind."""
    gateway, beside = opened(), opened()
    _, late = gateway.vault.fresh_key("late")
    kms.put("second", "first")
    beside.keys.rotate()
    kms.put("second")
    gateway.write(lambda c: gateway.keys.insert(c, "late", late)).result()
    after = add(gateway)
    again = opened()
    assert again.keys.get("late").set_id == "late"
    assert text(again, after) == "a mild text"
    assert wrapping(again) == {"second"}


def test_a_rotation_back_to_a_known_key_is_followed_too(
    kms: Kms, opened: Callable[[], Store]
) -> None:
    kms.put("second", "first")
    gateway, beside = opened(), opened()
    kms.put("first", "second")
    beside.keys.rotate()
    kms.put("first")
    after = add(gateway)  # still wraps under the second, which it knows
    assert text(opened(), after) == "a mild text"


def test_a_rotation_that_read_the_keys_before_another_ended_does_not_undo_it(
    kms: Kms, opened: Callable[[], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    early, late = opened(), opened()
    kms.put("second", "first")
    late.keys.rotate()
    reload = early.vault.operator.reload
    asked: list[bool] = []

    def read_before() -> None:
        if asked:  # the first time is the one that came too early
            reload()
        asked.append(True)

    monkeypatch.setattr(early.vault.operator, "reload", read_before)
    assert early.keys.rotate() == 0
    assert wrapping(early) == {"second"}


def test_rotations_while_sets_are_stored_and_read_lose_nothing(
    kms: Kms, opened: Callable[[], Store]
) -> None:
    gateway, operator = opened(), opened()
    made: list[str] = [add(gateway)]
    wrong: list[BaseException] = []
    stop = threading.Event()

    def work() -> None:
        try:
            while not stop.is_set():
                made.append(add(gateway))
                text(gateway, secrets.choice(made))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(3):
        kms.put(f"key-{number}", *kms.keys)
        operator.keys.rotate()
        kms.put(f"key-{number}")
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    again = opened()
    assert wrapping(again) == set(again.vault.operator.keys) == {"key-2"}
    assert len(made) > 3
    assert {text(again, set_id) for set_id in made} == {"a mild text"}


def test_a_second_rotation_of_a_key_file_keeps_what_the_first_put_there(tmp_path: Path) -> None:
    """It wrote the file as it had read it at its start: the key in force was gone."""
    stores = [Store(Settings(state=tmp_path / "state"), frozen) for _ in range(2)]
    made = add(stores[0])
    for store in stores:
        rotate_all(store)
        store.close()
    again = Store(Settings(state=tmp_path / "state"), frozen)
    assert text(again, made) == "a mild text"
    again.close()


@pytest.fixture
def keys(
    kms: Kms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str | PtalignError]:
    """Runs ``ptalign-server keys ...``: what it says, or the error that it ends with."""
    monkeypatch.setenv("PTALIGN_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("PTALIGN_KEY_COMMAND", kms.command)

    def run(*arguments: str) -> str | PtalignError:
        done = CliRunner().invoke(app, ["keys", *arguments])
        if isinstance(done.exception, PtalignError):
            return done.exception
        assert done.exit_code == 0, done.exception
        return done.output

    return run


def test_rotate_wraps_under_the_key_that_was_put_first_and_writes_no_file(
    kms: Kms, opened: Callable[[], Store], keys: Callable[..., str], tmp_path: Path
) -> None:
    store = opened()
    made = add(store)
    assert "put a new key before it" in keys("rotate")
    kms.put("second", "first")
    said = keys("rotate")
    assert "key second wraps 2 more set keys now" in said
    assert "older keys may go from what PTALIGN_KEY_COMMAND prints, once this was run" in said
    assert keys("show") == "second (current)\nfirst\n"
    kms.put("second")
    assert text(store, made) == text(opened(), made) == "a mild text"
    assert not list(tmp_path.rglob("*.key*"))
    entries = [(e.identity, e.action, e.target, dict(e.detail)) for e in store.audit.entries()]
    assert entries == [("console", "rotate keys", "keys/second", {"wrapped": 2})]
    assert store.audit.first_bad() == 0


def test_no_key_file_is_made_beside_a_command(
    keys: Callable[..., str | PtalignError], tmp_path: Path
) -> None:
    error = keys("create")
    assert isinstance(error, Unsupported)
    assert "PTALIGN_KEY_COMMAND" in str(error)
    assert not list(tmp_path.rglob("*.key"))
