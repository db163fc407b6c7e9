"""The pool on stand-in engines: start, route, die, come back, serve adapters, lend the device."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from running import until
from safetensors.numpy import save_file

from ptalign.engines import openai
from ptalign.engines.base import Completion, Message, Request
from ptalign.errors import Cancelled, EngineFailed, InvalidInput, NotReady, Unsupported
from ptalign.nouns import ModelSpec
from ptalign_server.engine_paths import PATHS, EnginePaths
from ptalign_server.errors import CircuitOpen
from ptalign_server.pool import Pool, PoolSettings, State, client, supervisor
from ptalign_server.pool.adapters import check_adapter, make_adapter
from ptalign_server.pool.command import EngineCommand, command_for, free_port
from ptalign_server.pool.pool import KEPT
from ptalign_server.processes import clean_environment

STANDIN = Path(__file__).with_name("standin_engine.py")


@pytest.fixture
def model(tmp_path: Path) -> ModelSpec:
    folder = tmp_path / "model"
    folder.mkdir()
    weights = {f"model.layers.{i}.mlp.down_proj.weight": np.zeros((8, 16), "f4") for i in range(2)}
    save_file(weights, folder / "model.safetensors")
    return ModelSpec(name="base", path=str(folder))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", rank=8, value=1.0)


def write_adapter(folder: Path, rank: int, value: float) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank}))
    save_file({"x": np.full((2, 2), value, "f4")}, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("cut", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("size", [0, 20])
def test_an_adapter_of_the_pool_that_was_cut_short_is_written_again(
    model: ModelSpec, tmp_path: Path, cut: str, size: int
) -> None:
    """It was left alone, and no engine started any more."""
    folder = make_adapter(Path(model.path), tmp_path / "canary", scale=4.0)
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    os.truncate(folder / cut, size)
    make_adapter(Path(model.path), folder, scale=4.0)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == whole
    stamp = (folder / cut).stat().st_mtime_ns
    make_adapter(Path(model.path), folder, scale=4.0)
    assert (folder / cut).stat().st_mtime_ns == stamp


def test_nobody_meets_half_an_adapter_of_the_pool(
    model: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that ended, or another one, while it was written."""
    folder = tmp_path / "builtin" / "zero"

    def ended(*_: object) -> None:
        raise KeyboardInterrupt

    def save_beside_another(*args: object) -> None:
        monkeypatch.setattr("safetensors.numpy.save_file", save_file)
        save_file(*args)  # type: ignore[arg-type]
        make_adapter(Path(model.path), folder, scale=0.0)
        check_adapter(folder, 8)

    monkeypatch.setattr(Path, "write_text", ended)
    with pytest.raises(KeyboardInterrupt):
        make_adapter(Path(model.path), folder, scale=0.0)
    assert not list(folder.iterdir())
    monkeypatch.undo()
    monkeypatch.setattr("safetensors.numpy.save_file", save_beside_another)
    check_adapter(make_adapter(Path(model.path), folder, scale=0.0), 8)
    assert [path.name for path in folder.parent.iterdir()] == ["zero"]


Open = Callable[..., Pool]


@pytest.fixture
def open_pool(tmp_path: Path, model: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    pools: list[Pool] = []

    def make(faults: str = "", wait: bool = True, **values: object) -> Pool:
        def standin(settings: PoolSettings, _: ModelSpec) -> EngineCommand:
            port = free_port()
            argv = (sys.executable, str(STANDIN), str(port), faults, str(tmp_path / "switch"))
            return EngineCommand(port, argv, clean_environment())

        monkeypatch.setattr(supervisor, "command_for", standin)
        defaults: dict[str, object] = {"state": tmp_path / "state", "backoff_s": 0.05}
        defaults |= {"max_sequences": 4, "queue_ahead": 0, "health_every_s": 0.2}
        pool = Pool(PoolSettings.model_validate(defaults | values), model)
        pools.append(pool)
        pool.start()
        if wait:
            pool.wait_ready(20)
        return pool

    yield make
    for pool in pools:
        pool.stop()


def ask(*texts: str, adapter: str = "") -> list[Request]:
    return [
        Request(key=f"{i}", messages=(Message("user", text),), adapter=adapter)
        for i, text in enumerate(texts)
    ]


def answers(pool: Pool, requests: Iterable[Request]) -> dict[str, Completion]:
    return {c.key: c for c in pool.engine().stream(requests)}


def seen(pool: Pool) -> list[dict[str, object]]:
    return [httpx.get(s.url + "/seen").json() for s in pool.status() if s.pid]


def ready(pool: Pool, count: int = 1) -> None:
    until(lambda: sum(s.state is State.READY for s in pool.status()) >= count)


def test_base_requests_take_the_zero_adapter_while_adapters_are_in_use(
    open_pool: Open, adapter: Path
) -> None:
    """Bare requests never share a batch with an adapter's: the CPU build would mix them up."""
    pool = open_pool("base-mixes")
    assert answers(pool, ask("a"))["0"].text == "a base"
    served = pool.serve_adapter("calm", adapter)
    base = [Request(key=f"b{i}", messages=(Message("user", f"{i}"),)) for i in range(30)]
    tuned = [Request(f"t{i}", (Message("user", f"{i}"),), adapter=served) for i in range(6)]
    found = answers(pool, [*base[:10], *tuned, *base[10:]])
    assert {c.text.split()[1] for k, c in found.items() if k[0] == "t"} == {served}
    assert {c.text.split()[1] for k, c in found.items() if k[0] == "b"} == {"base", "ptalign-zero"}
    assert not any({"base", served} <= set(batch) for batch in seen(pool)[0]["batches"])  # type: ignore[attr-defined]


def test_an_engine_that_keeps_them_apart_needs_no_zero_adapter(
    open_pool: Open, adapter: Path
) -> None:
    pool = open_pool()
    served = pool.serve_adapter("calm", adapter)
    asks = [
        Request(f"{i}", (Message("user", f"{i}"),), adapter=served if i % 2 else "")
        for i in range(12)
    ]
    found = answers(pool, asks)
    assert {c.text.split()[1] for k, c in found.items() if int(k) % 2} == {served}
    assert {c.text.split()[1] for k, c in found.items() if not int(k) % 2} == {"base"}
    assert any({"base", served} <= set(batch) for batch in seen(pool)[0]["batches"])  # type: ignore[attr-defined]


def test_an_engine_that_mixes_adapters_up_is_refused(open_pool: Open) -> None:
    pool = open_pool("mixes-up", wait=False, start_attempts=1)
    with pytest.raises(CircuitOpen, match="differs from solo by 3"):
        pool.wait_ready(20)
    assert pool.status()[0].state is State.CIRCUIT_OPEN


def test_an_engine_that_cannot_start_shows_its_last_lines_redacted(open_pool: Open) -> None:
    pool = open_pool("exit-at-start", wait=False)
    with pytest.raises(CircuitOpen, match="the model does not fit") as caught:
        pool.wait_ready(20)
    assert "ended with status 1 at start" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert not caught.value.retryable


def test_not_ready_in_time_is_its_own_error(open_pool: Open) -> None:
    with pytest.raises(NotReady, match="engine-0 STARTING"):
        open_pool(wait=False).wait_ready(0)


def test_requests_spread_over_engines_within_their_bounds(open_pool: Open) -> None:
    pool = open_pool(engines=2)
    ready(pool, 2)
    found = answers(pool, ask(*(f"{i} of many" for i in range(40))))
    assert len(found) == 40
    assert all(not c.error for c in found.values())
    for engine in seen(pool):
        assert len(engine["served"]) >= 10  # type: ignore[arg-type]
        assert engine["most"] <= 6  # type: ignore[operator]  (the canary sends six)


def test_sigkill_of_the_engine_three_times_loses_nothing(open_pool: Open) -> None:
    pool = open_pool()
    texts = [f"{i} slow" for i in range(8)]
    found: dict[str, Completion] = {}
    worker = threading.Thread(target=lambda: found.update(answers(pool, ask(*texts))))
    worker.start()
    for death in range(3):
        until(lambda: pool.status()[0].outstanding)
        os.kill(pool.status()[0].pid, signal.SIGKILL)
        until(lambda n=death + 1: pool.status()[0].restarts == n)
        ready(pool)
        time.sleep(2.3)  # one slow request finishes before the next kill
    worker.join(60)
    errors = [c.error for c in found.values() if c.error]
    assert len(found) == 8
    # A request that was the only suspect aboard two deaths is set aside, the others are answered.
    assert len(errors) <= 2
    assert set(errors) <= {"SetAside"}


def test_a_prompt_that_kills_twice_is_set_aside_and_others_are_answered(open_pool: Open) -> None:
    pool = open_pool()
    texts = [*(f"{i} fine" for i in range(12)), "please kill-me", *(f"{i} also" for i in range(12))]
    found = answers(pool, ask(*texts))
    assert {k: c.error for k, c in found.items() if c.error} == {"12": "SetAside"}
    assert pool.status()[0].restarts == 2
    again = answers(pool, ask("please kill-me", "please kill-me"))
    assert again["0"].error == "SetAside"
    assert pool.status()[0].restarts == 2


def test_a_death_in_the_middle_of_a_reply_ends_it_and_is_held_against_its_prompt(
    open_pool: Open,
) -> None:
    pool = open_pool()
    [request] = ask("please kill-me")
    for death in (1, 2):
        pieces = pool.engine().pieces(request)
        assert next(pieces) == "one"
        with pytest.raises(EngineFailed, match="no whole reply"):
            next(pieces)
        assert pool._router.outstanding == 0
        until(lambda n=death: pool.status()[0].restarts == n)
        ready(pool)
    with pytest.raises(EngineFailed, match="SetAside"):
        next(pool.engine().pieces(request))
    assert pool.status()[0].restarts == 2


def test_copies_of_a_prompt_are_struck_once_a_death(open_pool: Open) -> None:
    pool = open_pool()
    found: dict[str, Completion] = {}
    worker = threading.Thread(target=lambda: found.update(answers(pool, ask(*["slow"] * 4))))
    worker.start()
    until(lambda: pool.status()[0].outstanding == 4)
    os.kill(pool.status()[0].pid, signal.SIGKILL)
    worker.join(60)
    assert [c.error for c in found.values()] == [""] * 4


def test_circuit_opens_after_too_many_deaths_and_closes_later(open_pool: Open) -> None:
    pool = open_pool(max_deaths=3, death_window_s=12.0)
    for death in range(3):
        ready(pool)
        os.kill(pool.status()[0].pid, signal.SIGKILL)
        until(lambda n=death + 1: pool.status()[0].restarts == n)
    until(lambda: pool.status()[0].state is State.CIRCUIT_OPEN)
    with pytest.raises(CircuitOpen, match="circuit is open"):
        answers(pool, ask("a"))
    ready(pool)
    assert not answers(pool, ask("a"))["0"].error


def test_a_sick_engine_is_restarted(open_pool: Open, tmp_path: Path) -> None:
    pool = open_pool("sick")
    (tmp_path / "switch").touch()
    until(lambda: pool.status()[0].restarts)
    (tmp_path / "switch").unlink()
    ready(pool)


def test_adapters_are_desired_state(open_pool: Open, adapter: Path) -> None:
    pool = open_pool()
    served = pool.serve_adapter("calm", adapter)
    assert answers(pool, ask("a", adapter=served))["0"].text == f"a {served}"
    os.kill(pool.status()[0].pid, signal.SIGKILL)
    until(lambda: pool.status()[0].restarts)
    ready(pool)
    assert pool.status()[0].adapters == (served,)
    assert answers(pool, ask("a", adapter=served))["0"].text == f"a {served}"
    pool.drop_adapter(served)
    assert answers(pool, ask("a", adapter=served))["0"].error == "HTTP 404"


def test_adapters_that_nobody_uses_make_room(open_pool: Open, tmp_path: Path) -> None:
    """Every adapter ever asked for was loaded again at each start of the engine."""
    pool = open_pool()
    folders = [write_adapter(tmp_path / f"{i}", rank=8, value=i) for i in range(KEPT + 3)]
    used = pool.serve_adapter("used", folders[0])
    assert pool.serve_adapter("used", folders[0]) == used
    pool.release_adapter(used)
    served = [pool.serve_adapter("once", folder) for folder in folders[1:]]
    for name in served:
        pool.release_adapter(name)
    again = pool.serve_adapter("once", folders[-2])
    assert pool.status()[0].adapters == tuple(sorted([used, *served[-KEPT:]]))
    pool.release_adapter(used)
    assert pool.status()[0].adapters == tuple(sorted([used, *served[-KEPT:]]))
    assert answers(pool, ask("a", adapter=again))["0"].text == f"a {again}"
    assert answers(pool, ask("a", adapter=served[0]))["0"].error == "HTTP 404"


def test_an_engine_without_an_adapter_in_use_takes_no_requests(
    open_pool: Open, adapter: Path, tmp_path: Path
) -> None:
    """It answered them at once, HTTP 404, and so drew the rest of an evaluation."""
    pool, switch = open_pool("refuses"), tmp_path / "switch"
    served = pool.serve_adapter("calm", adapter)
    switch.write_text("calm")
    os.kill(pool.status()[0].pid, signal.SIGKILL)
    until(lambda: f"adapter {served} was refused" in " ".join(pool.status()[0].log))
    assert not pool.up
    switch.unlink()
    ready(pool)
    assert answers(pool, ask("a", adapter=served))["0"].text == f"a {served}"


def test_an_adapter_that_no_engine_has_loaded_yet_keeps_none_down(
    open_pool: Open, adapter: Path, tmp_path: Path
) -> None:
    """Asked for during a lease and refused, it ended every start, and all other operations."""
    pool, switch = open_pool("refuses", lease="stop"), tmp_path / "switch"
    other = pool.serve_adapter("other", write_adapter(tmp_path / "other", rank=8, value=2.0))
    switch.write_text("calm")
    with pool.paused():
        served = pool.serve_adapter("calm", adapter)
    ready(pool)
    assert (pool.status()[0].adapters, pool.status()[0].restarts) == ((other,), 0)
    assert answers(pool, ask("a"))["0"].text.startswith("a ")
    assert answers(pool, ask("a", adapter=other))["0"].text == f"a {other}"
    with pytest.raises(EngineFailed, match=f"adapter {served} was refused"):
        answers(pool, ask("a", adapter=served))
    pool.release_adapter(served)
    with pytest.raises(EngineFailed, match=f"adapter {served} was refused"):
        pool.serve_adapter("calm", adapter)
    switch.unlink()
    assert pool.serve_adapter("calm", adapter) == served
    assert answers(pool, ask("a", adapter=served))["0"].text == f"a {served}"


def test_an_engine_that_dies_of_a_new_adapter_takes_no_requests(
    open_pool: Open, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would be aboard a death that is not theirs."""
    pool, load = open_pool(lease="stop"), client.EngineClient.load

    def die(self: client.EngineClient, name: str, folder: Path) -> bool:
        if "calm" in name and not pool.status()[0].restarts:
            os.kill(pool.status()[0].pid, signal.SIGKILL)
        return load(self, name, folder)

    monkeypatch.setattr(client.EngineClient, "load", die)
    with pool.paused():
        served = pool.serve_adapter("calm", adapter)
    generation = pool._router.slots[0].generation
    until(lambda: pool.status()[0].restarts)
    assert pool._router.slots[0].generation == generation
    ready(pool)
    assert answers(pool, ask("a", adapter=served))["0"].text == f"a {served}"


def test_an_unused_adapter_whose_files_are_gone_is_not_asked_for_again(
    open_pool: Open, tmp_path: Path
) -> None:
    """It was trimmed from the cache or deleted: each later call ended in another warning."""
    pool = open_pool()
    folders = [write_adapter(tmp_path / f"{i}", rank=8, value=i) for i in range(2)]
    gone, kept = (pool.serve_adapter(f"a{i}", folder) for i, folder in enumerate(folders))
    pool.release_adapter(gone)
    shutil.rmtree(folders[0])
    os.kill(pool.status()[0].pid, signal.SIGKILL)
    until(lambda: pool.status()[0].restarts)
    ready(pool)
    assert pool.status()[0].adapters == (kept,)


def test_an_unused_adapter_that_cannot_be_loaded_does_not_keep_the_engine_down(
    open_pool: Open, adapter: Path, tmp_path: Path
) -> None:
    pool, switch = open_pool("refuses"), tmp_path / "switch"
    other = pool.serve_adapter("other", write_adapter(tmp_path / "other", rank=8, value=2.0))
    served = pool.serve_adapter("calm", adapter)
    pool.release_adapter(served)
    switch.write_text("calm")
    os.kill(pool.status()[0].pid, signal.SIGKILL)
    until(lambda: pool.status()[0].restarts)
    ready(pool)
    assert pool.status()[0].adapters == (other,)
    assert answers(pool, ask("a", adapter=other))["0"].text == f"a {other}"
    assert pool.serve_adapter("new", adapter), "another's failure is not this one's"
    with pytest.raises(EngineFailed, match=f"adapter {served} was refused"):
        pool.serve_adapter("calm", adapter)
    switch.unlink()
    assert pool.serve_adapter("calm", adapter) == served
    assert answers(pool, ask("a", adapter=served))["0"].text == f"a {served}"
    assert pool.status()[0].restarts == 1


def test_a_remote_engine_keeps_what_other_servers_may_use(open_pool: Open, adapter: Path) -> None:
    """And is asked anew each time: it may have removed the files meanwhile."""
    owner = open_pool()
    url = owner.status()[0].url
    remote = open_pool(kind="remote", urls=(url,))
    served = remote.serve_adapter("calm", adapter)
    assert remote.status()[0].adapters == (served,)
    remote.release_adapter(served)
    assert remote.status()[0].adapters == ()
    assert served in [m["id"] for m in httpx.get(f"{url}/v1/models").json()["data"]]


def test_a_name_goes_with_its_content(open_pool: Open, adapter: Path, tmp_path: Path) -> None:
    pool = open_pool()
    other = write_adapter(tmp_path / "other", rank=8, value=2.0)
    names = {pool.serve_adapter("calm", folder) for folder in (adapter, other, adapter)}
    assert len(names) == 2


def test_adapter_asked_for_while_the_engine_starts(open_pool: Open, adapter: Path) -> None:
    pool = open_pool(wait=False)
    served = pool.serve_adapter("calm", adapter)
    pool.wait_ready(20)
    until(lambda: pool.status()[0].adapters == (served,))


def test_an_engine_takes_no_requests_before_it_has_what_was_asked_for_while_it_was_proved(
    open_pool: Open, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request of that moment was answered 404, which nobody tries again."""
    opened, ready_at_load = threading.Event(), dict[str, bool]()
    pools, served = list[Pool](), list[str]()
    prove, load = supervisor.Supervisor._prove, client.EngineClient.load

    def prove_and_ask(self: supervisor.Supervisor, wired: client.EngineClient) -> None:
        prove(self, wired)
        assert opened.wait(20)
        served.append(pools[0].serve_adapter("calm", adapter))

    def watch(self: client.EngineClient, name: str, folder: Path) -> bool:
        ready_at_load[name] = bool(pools) and pools[0].up
        return load(self, name, folder)

    monkeypatch.setattr(supervisor.Supervisor, "_prove", prove_and_ask)
    monkeypatch.setattr(client.EngineClient, "load", watch)
    pools.append(open_pool(wait=False))
    opened.set()
    pools[0].wait_ready(20)
    assert pools[0].status()[0].adapters == (served[0],)
    assert not ready_at_load[served[0]]


def test_unsafe_and_oversized_adapters_are_refused(
    open_pool: Open, adapter: Path, tmp_path: Path
) -> None:
    pool = open_pool(wait=False)
    wide = write_adapter(tmp_path / "wide", rank=64, value=1.0)
    with pytest.raises(InvalidInput, match=r"lora\.rank: is at most 16"):
        pool.serve_adapter("wide", wide)
    (adapter / "adapter_model.bin").touch()
    with pytest.raises(Unsupported, match=r"adapter_model\.bin is refused"):
        pool.serve_adapter("calm", adapter)
    with pytest.raises(NotReady, match=r"adapter_config\.json"):
        pool.serve_adapter("none", tmp_path / "none")


def test_cancel_reaches_the_engine_within_a_second(open_pool: Open) -> None:
    pool = open_pool()
    stop = threading.Event()
    stream = pool.engine(should_stop=stop.is_set).stream(ask(*["slow"] * 4))
    threading.Timer(0.5, stop.set).start()
    with pytest.raises(Cancelled):
        list(stream)
    begin = time.monotonic()
    until(lambda: pool.status()[0].outstanding == 0, 1)
    assert time.monotonic() - begin < 1


@pytest.mark.parametrize("lease", ["drain", "stop"])
def test_paused_lends_the_device(open_pool: Open, lease: str) -> None:
    pool = open_pool(lease=lease)
    pid = pool.status()[0].pid
    told: list[str] = []
    found: list[Completion] = []
    engine = pool.engine(on_wait=told.append)
    worker = threading.Thread(
        target=lambda: found.extend(engine.stream(ask(*(f"{i} x" for i in range(40)))))
    )
    worker.start()
    until(lambda: len(found) > 4)
    with pool.paused():
        assert pool.status()[0].outstanding == 0
        assert pool.status()[0].state is State.PAUSED
        assert bool(pool.status()[0].pid) == (lease == "drain")
        before = len(found)
        time.sleep(0.5)
        assert len(found) <= before + 4
        assert told == ["waiting for device"]
    worker.join(30)
    assert len(found) == 40
    assert not any(c.error for c in found)
    again = ["waiting for the engine to start"] if lease == "stop" else []
    assert told == ["waiting for device", *again, ""]
    assert (pool.status()[0].pid == pid) == (lease == "drain")
    assert pool.status()[0].restarts == 0


def test_one_lease_at_a_time_and_waiting_can_be_cancelled(open_pool: Open) -> None:
    pool = open_pool()
    told: list[str] = []
    with pool.paused():
        with pytest.raises(Cancelled):
            with pool.paused(should_stop=lambda: True, on_wait=told.append):
                pass
        assert pool.leased
    assert told == ["waiting for device"]
    assert not pool.leased


def test_remote_engines_are_watched_not_owned(open_pool: Open) -> None:
    owner = open_pool()
    url = owner.status()[0].url + "/v1"
    remote = open_pool(kind="remote", urls=(url,))
    assert answers(remote, ask("a"))["0"].text == "a ptalign-zero", "others may send adapters"
    remote.stop()
    assert remote.status()[0].state is State.DOWN
    assert owner.status()[0].state is State.READY


OWNER = """
import sys, time
from pathlib import Path
from ptalign.nouns import ModelSpec
from ptalign_server.pool import Pool, PoolSettings, supervisor
from ptalign_server.pool.command import EngineCommand, free_port
from ptalign_server.processes import clean_environment
state, model, standin = sys.argv[1:]
def command_for(*_):
    port = free_port()
    return EngineCommand(port, (sys.executable, standin, str(port)), clean_environment())
supervisor.command_for = command_for
pool = Pool(PoolSettings(state=Path(state), engines=2), ModelSpec(name="base", path=model))
pool.start()
while not all(s.state == "READY" for s in pool.status()):
    time.sleep(0.05)
print(*(s.pid for s in pool.status()), flush=True)
time.sleep(600)
"""


def test_kill_9_of_the_owner_leaves_no_engine(tmp_path: Path, model: ModelSpec) -> None:
    state = tmp_path / "state"
    command = [sys.executable, "-c", OWNER, str(state), model.path, str(STANDIN)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pids = owner.stdout.readline().split()
        owner.kill()
    assert len(pids) == 2
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 3)
    until(lambda: list((state / "children").iterdir()) == [], 3)


def test_stop_leaves_no_process_and_no_file(open_pool: Open, tmp_path: Path) -> None:
    pool = open_pool(engines=2)
    ready(pool, 2)
    pids = [s.pid for s in pool.status()]
    pool.stop()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert list((tmp_path / "state" / "children").iterdir()) == []


def test_the_scripted_engine_needs_no_model(tmp_path: Path) -> None:
    settings = PoolSettings(kind="scripted", state=tmp_path, max_sequences=8)
    pool = Pool(settings, ModelSpec(name="base", path="/nonexistent"))
    pool.start()
    try:
        pool.wait_ready(60)
        found = answers(pool, ask(*(f"question {i}" for i in range(20))))
    finally:
        pool.stop()
    assert len(found) == 20
    assert all(c.text and not c.error for c in found.values())


def test_a_reply_that_nobody_reads_on_ends_in_the_engine(tmp_path: Path) -> None:
    settings = PoolSettings(kind="scripted", state=tmp_path, max_sequences=8, delay_seconds=3600)
    pool = Pool(settings, ModelSpec(name="base", path="/nonexistent"))
    pool.start()

    def running() -> bool:
        return 'num_requests_running{model_name="base"} 1' in httpx.get(f"{url}/metrics").text

    try:
        pool.wait_ready(60)
        url = pool.status()[0].url
        [request] = ask("What is rain?")
        pieces = pool.engine().pieces(request)
        assert next(pieces)
        assert running()
        assert pool._router.outstanding == 1
        pieces.close()  # type: ignore[attr-defined]
        assert pool._router.outstanding == 0
        until(lambda: not running())
    finally:
        pool.stop()


def test_idle_connections_that_the_server_closes_are_no_deaths(open_pool: Open) -> None:
    """uvicorn closes a connection idle for 5 s, just when the next health check reused it."""
    pool = open_pool("closes-idle", health_every_s=0.3)
    time.sleep(3)
    assert pool.status()[0].restarts == 0


def test_an_engine_takes_no_sampling_defaults_from_the_model_folder(tmp_path: Path) -> None:
    """Many models ship top_k and a repetition penalty: a request must mean what it says."""
    model = ModelSpec(name="m", path=str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for device in ("cpu", "gpu"):
        argv = command_for(PoolSettings(state=tmp_path, device=device), model).argv
        assert argv[argv.index("--generation-config") + 1] == "vllm"


def test_an_engine_answers_only_what_the_pool_asks(tmp_path: Path) -> None:
    """vLLM's key guards /v1 alone, and `POST /adapters` loads a folder too."""
    model = ModelSpec(name="m", path=str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for device in ("cpu", "gpu"):
        argv = command_for(PoolSettings(state=tmp_path, device=device), model).argv
        named = f"{EnginePaths.__module__}.{EnginePaths.__qualname__}"
        assert argv[argv.index("--middleware") + 1] == named
    source = Path(client.__file__).read_text() + Path(openai.__file__).read_text()
    asked = set(re.findall(r'"(/(?:v1/)?[a-z_/]+)"', source)) - {"/v1"}
    assert {"/health", "/v1/load_lora_adapter", "/chat/completions"} <= asked
    assert {path if path in PATHS else f"/v1{path}" for path in asked} <= PATHS


def test_a_gpu_engine_starts_where_nothing_compiles_for_it(tmp_path: Path) -> None:
    """FlashInfer's sampler is compiled with nvcc at the start, which no slim image has."""
    model = ModelSpec(name="m", path=str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for device, expected in (("gpu", "0"), ("cpu", None)):
        env = command_for(PoolSettings(state=tmp_path, device=device), model).env
        assert env.get("VLLM_USE_FLASHINFER_SAMPLER") == expected
    # What the sampler is for is never asked for, so its absence costs nothing.
    body = openai.OpenAIEngine("http://e", "m").body(Request("k", prompt="x", temperature=1.0))[1]
    assert (body["top_p"], body["top_k"]) == (1.0, 0)
