"""The blocking client: threads, early ends, interrupts, and no second event loop's noise."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ptalign_client_fake import Fault, retry_in

import ptalign_client as pt

HERE = Path(__file__).parent


def test_threads_share_one_client(client: pt.Client) -> None:
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: client.catalogue(), range(64)))
    assert len(found) == 64
    assert sum(t.name == "ptalign-client" for t in threading.enumerate()) == 1


def test_leaving_a_watch_early_frees_its_slot(served: Any) -> None:
    served.service.steps = 50
    options = pt.Options(endpoint=served.endpoint, max_streams=1)
    with pt.Client(options=options) as client:
        running = client.align(model="tiny", pair_set="pairSets/1")
        for event in running:
            if event.sequence == 2:
                break
        with running.events() as events:
            assert next(events).sequence == 1
        assert running.result(timeout=10)


async def test_works_inside_a_running_loop(client: pt.Client) -> None:
    assert client.catalogue().models  # as in a notebook


def test_called_from_its_own_callback_it_says_so_instead_of_hanging(
    client: pt.Client, tmp_path: Path
) -> None:
    evaluation = client.evaluate(target=pt.Target(model="tiny")).result()

    def on_bytes(here: int, total: int) -> None:
        client.catalogue()

    with pytest.raises(RuntimeError, match="own callback"):
        client.download(evaluation, "report.json", tmp_path / "r", on_bytes=on_bytes)


def test_fork_gets_a_loop_of_its_own(served: Any) -> None:
    code = """
        import os, ptalign_client as pt
        from ptalign_client.facade import background
        parent = background()
        child = os.fork()
        if child == 0:
            os._exit(0 if background() is not parent else 1)
        raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)]).returncode == 0


def interrupted(code: str, seconds: float) -> tuple[str, str]:
    """What a program says on stdout and stderr that is interrupted so long after its "ready"."""
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    time.sleep(seconds)
    os.kill(child.pid, signal.SIGINT)
    return child.communicate(timeout=20)


def test_interrupt_cancels_the_call_and_leaves_the_client_usable(served: Any) -> None:
    served.service.pace = 1.0
    code = f"""
        import ptalign_client as pt
        client = pt.Client({served.endpoint!r})
        print("ready", flush=True)
        try:
            client.catalogue()
        except KeyboardInterrupt:
            print(len(client.catalogue().models), flush=True)
    """
    assert interrupted(code, 0.4) == ("1\n", "")


@pytest.mark.parametrize("call", ["operation('operations/1').events()", "operations()"])
def test_an_interrupt_while_a_stream_or_list_connects_is_an_interrupt(call: str) -> None:
    """It became a RuntimeError of the generator, and `ops watch` called it a fault of its own."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        code = f"""
            import ptalign_client as pt
            client = pt.Client("127.0.0.1:{silent.getsockname()[1]}")
            print("ready", flush=True)
            try:
                list(client.{call})
            except KeyboardInterrupt:
                print("interrupted", flush=True)
        """
        said = interrupted(code, 0.7)
    assert said == ("interrupted\n", "")


@pytest.mark.parametrize("is_open", [True, False])
def test_a_child_forked_beside_an_open_client_says_so_instead_of_hanging(
    served: Any, is_open: bool
) -> None:
    code = f"""
        import os, sys, ptalign_client as pt
        client = pt.Client({served.endpoint!r})
        client.catalogue()
        {"" if is_open else "client.close()"}
        child = os.fork()
        if child == 0:
            try:
                print(len(pt.Client({served.endpoint!r}).catalogue().models), flush=True)
            except pt.ConfigError as error:
                print(error, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert ("Close clients before the fork" in done.stdout) == is_open
    assert (done.stdout == "1\n") != is_open


def test_two_loops_in_one_process_make_no_noise(served: Any) -> None:
    """grpc.aio logged BlockingIOError when several loops polled at once (grpc#25364)."""
    code = f"""
        import asyncio, ptalign_client as pt
        async def main():
            with pt.Client({served.endpoint!r}) as blocking:
                async with pt.AsyncClient({served.endpoint!r}) as client:
                    for _ in range(8):
                        await asyncio.gather(
                            *(client.catalogue() for _ in range(20)),
                            *(asyncio.to_thread(blocking.catalogue) for _ in range(20)))
        asyncio.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("call", ["events", "catalogue"])
async def test_closing_ends_calls_with_an_error_of_ours_and_cancels_no_task(
    aclient: pt.AsyncClient, served: Any, call: str
) -> None:
    running = await aclient.align(model="tiny", pair_set="pairSets/1")
    served.service.pace = 30
    begun = len(served.service.calls)
    task = asyncio.ensure_future(running.result() if call == "events" else aclient.catalogue())
    while len(served.service.calls) == begun:
        await asyncio.sleep(0.01)
    await aclient.close()
    with pytest.raises(pt.Unavailable, match="the client was closed") as caught:
        await asyncio.wait_for(task, 10)
    assert not caught.value.retryable
    assert not task.cancelled()
    assert len(served.service.calls) == begun + 1


async def test_a_task_that_is_cancelled_while_its_client_closes_is_cancelled(
    aclient: pt.AsyncClient, served: Any
) -> None:
    served.service.pace = 30
    task = asyncio.ensure_future(aclient.catalogue())
    while not served.service.calls:
        await asyncio.sleep(0.01)
    task.cancel()
    await aclient.close()
    await asyncio.wait([task], timeout=10)
    assert task.cancelled()


@pytest.mark.parametrize("method", ["GetCatalogue", "WatchOperation"])
async def test_what_waits_for_its_next_try_ends_with_its_client(
    aclient: pt.AsyncClient, served: Any, method: str
) -> None:
    """It connected again, and nobody closed that."""
    running = await aclient.align(model="tiny", pair_set="pairSets/1")
    served.service.faults[method] = [Fault(details=(retry_in(2),))]
    watch = method == "WatchOperation"
    task = asyncio.ensure_future(running.result() if watch else aclient.catalogue())
    while served.service.faults[method]:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    await aclient.close()
    with pytest.raises(pt.Unavailable, match="the client was closed"):
        await asyncio.wait_for(task, 10)
    assert len(served.service.called(method)) == 1


@pytest.mark.parametrize("call", ["events", "catalogue"])
def test_another_thread_that_closes_ends_a_call_with_an_error_of_ours(
    served: Any, call: str
) -> None:
    """concurrent.futures.CancelledError came out of it."""
    client = pt.Client(served.endpoint)
    running = client.align(model="tiny", pair_set="pairSets/1")
    served.service.pace = 30
    threading.Timer(1, client.close).start()
    with pytest.raises(pt.Unavailable, match="the client was closed"):
        list(running) if call == "events" else client.catalogue()


async def test_async_stream_left_early_is_cancelled_on_the_server(
    aclient: pt.AsyncClient, served: Any
) -> None:
    served.service.pace, served.service.steps = 0.02, 10_000
    running = await aclient.align(model="tiny", pair_set="pairSets/1")
    events = running.events()
    assert (await anext(events)).sequence == 1
    await events.aclose()
    await asyncio.sleep(0.3)
    shown = served.service.jobs[running.name].shown
    await asyncio.sleep(0.3)
    assert served.service.jobs[running.name].shown == shown
