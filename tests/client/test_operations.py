"""Operation handles: events without gaps, results, cancels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import grpc
import pytest
from google.rpc import status_pb2
from ptalign_client_fake import Fault, info, packed

import ptalign_client as pt
from ptalign_client.options import Options
from ptalign_client.transport import Transport

Code = grpc.StatusCode


def start(client: pt.Client) -> pt.Operation[pt.Adapter]:
    return client.align(model="tiny", pair_set="pairSets/1", method="mle")


def test_result_is_the_noun_that_was_made(client: pt.Client) -> None:
    adapter = start(client).result(timeout=10)
    assert isinstance(adapter, pt.Adapter)
    assert (adapter.method, adapter.tokens_mle) == ("mle", 900)


def test_every_verb_returns_its_noun(client: pt.Client) -> None:
    made = client.generate_instructions(model="tiny", policy="tone-en", count=3).result()
    pairs = client.synthesize_pairs(model="tiny", instruction_set=made).result()
    adapter = client.align(model="tiny", pair_set=pairs).result()
    judged = client.evaluate(target=adapter).result()
    kinds = [type(noun) for noun in (made, pairs, adapter, judged)]
    assert kinds == [pt.InstructionSet, pt.PairSet, pt.Adapter, pt.Evaluation]
    assert judged.verdict == "pass"
    assert judged.aligned["harm_rate"].n == 60


def test_events_have_no_gap_after_dropped_streams(client: pt.Client, served: Any) -> None:
    served.service.steps = 9
    served.service.faults["WatchOperation"] = [Fault(after=2), Fault(after=3), Fault()]
    running = start(client)
    assert [event.sequence for event in running] == list(range(1, 10))
    asked = [request.after_sequence for request in served.service.called("WatchOperation")]
    assert asked == [0, 2, 5, 5]


def test_events_from_a_sequence_on(client: pt.Client, served: Any) -> None:
    running = start(client)
    assert [event.sequence for event in running.events(after_sequence=2)] == [3, 4]


def test_a_break_that_no_retry_mends_ends_the_watch(client: pt.Client, served: Any) -> None:
    served.service.faults["WatchOperation"] = [Fault(Code.PERMISSION_DENIED, after=1)]
    events = start(client).events()
    assert next(events).sequence == 1
    with pytest.raises(pt.PermissionDenied):
        next(events)


def test_patience_ends(client: pt.Client, served: Any) -> None:
    served.service.faults["WatchOperation"] = [Fault() for _ in range(500)]
    short = client.with_options(retry=pt.Retry(base=0.01, cap=0.02, patience=0.3))
    with pytest.raises(pt.Unavailable):
        start(short).result()


async def broken_after(
    seconds: list[float], patience: float, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """What a watch brings whose streams break without a message, each after so many seconds."""
    loop = asyncio.get_running_loop()
    real, passed, left = loop.time, [0.0], list(seconds)
    monkeypatch.setattr(loop, "time", lambda: real() + passed[0])

    async def opened() -> AsyncGenerator[str, None]:
        if left:
            passed[0] += left.pop(0)
            raise pt.Unavailable("the connection broke")
        yield "news"

    options = Options(endpoint="127.0.0.1:1", retry=pt.Retry(base=0, cap=0, patience=patience))
    return [news async for news in Transport(options).resumed(options, opened)]


async def test_a_watch_that_was_silent_for_long_survives_dropped_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert await broken_after([600, 1, 20, 600, 1], 120, monkeypatch) == ["news"]


async def test_tries_that_reach_nobody_are_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(pt.Unavailable):
        await broken_after([600] + [20] * 6, 120, monkeypatch)  # gRPC connects for 20 s at most


async def test_no_patience_opens_no_silent_watch_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(pt.Unavailable):
        await broken_after([600], 0, monkeypatch)


@pytest.mark.parametrize("seconds", [[0] * 7, [20] * 2])
async def test_a_stream_to_nobody_has_the_attempts_and_the_timeout_of_a_call(
    monkeypatch: pytest.MonkeyPatch, seconds: list[float]
) -> None:
    """`ptalign records` and `ops wait` were silent for two minutes at a wrong endpoint."""
    with pytest.raises(pt.Unavailable):
        await broken_after(seconds, 120, monkeypatch)
    assert await broken_after(seconds[1:], 120, monkeypatch) == ["news"]


def test_a_watch_of_a_service_that_just_answered_outlives_its_restart(
    client: pt.Client, served: Any
) -> None:
    served.service.faults["WatchOperation"] = [Fault() for _ in range(6)]
    retry = pt.Retry(attempts=2, base=0.01, cap=0.02, patience=60)
    assert start(client.with_options(retry=retry)).result().tokens_mle == 900


def test_progress_and_done_follow_the_operation(client: pt.Client) -> None:
    running = start(client)
    assert not running.done()
    before = running.progress()
    assert (before.kind, before.state) == ("Align", pt.State.RUNNING)
    running.result()
    assert running.done()
    after = running.progress()
    assert after.state is pt.State.SUCCEEDED
    assert after.resource.startswith("adapters/")


def test_attach_by_name(client: pt.Client) -> None:
    name = start(client).name
    assert isinstance(client.operation(name).result(), pt.Adapter)
    assert client.operation(name.removeprefix("operations/")).name == name


def test_timeout_leaves_it_running(client: pt.Client, served: Any) -> None:
    served.service.pace, served.service.steps = 0.2, 50
    running = start(client)
    with pytest.raises(pt.DeadlineExceeded, match="still runs"):
        running.result(timeout=0.5)
    assert running.progress().state is pt.State.RUNNING


def test_without_time_to_wait_what_ended_is_returned(client: pt.Client, served: Any) -> None:
    """ "still runs after 0 s" was said of every operation."""
    served.service.pace, served.service.steps = 0.2, 50
    running = start(client)
    with pytest.raises(pt.DeadlineExceeded, match="still runs after 0 s"):
        running.result(timeout=0)
    running.cancel()
    with pytest.raises(pt.Cancelled):
        running.result(timeout=10)
    with pytest.raises(pt.Cancelled):
        client.operation(running.name).result(timeout=0)


def test_cancel_ends_with_what_was_kept(client: pt.Client, served: Any) -> None:
    served.service.pace, served.service.steps = 0.05, 50
    running = start(client)
    running.cancel()
    with pytest.raises(pt.Cancelled) as caught:
        running.result(timeout=10)
    assert caught.value.operation == running.name
    assert caught.value.resource.startswith("adapters/")
    assert running.progress().state is pt.State.CANCELLED


def test_failure_has_the_type_it_would_have_had_in_the_call(client: pt.Client, served: Any) -> None:
    running = start(client)
    damaged = status_pb2.Status(code=15, message="pairSets/1 does not match its digest")
    damaged.details.append(packed(info("DATA_DAMAGED", name="pairSets/1")))
    served.service.jobs[running.name].error = damaged
    with pytest.raises(pt.DataLoss, match="pairSets/1") as caught:
        running.result()
    assert caught.value.reason == "DATA_DAMAGED"
    assert caught.value.operation == running.name


def test_dry_run_estimates_and_starts_nothing(client: pt.Client, served: Any) -> None:
    dry = client.generate_instructions(model="tiny", policy="tone-en", count=3, dry_run=True)
    estimate = dry.progress().estimate
    assert estimate is not None
    assert estimate.seconds == 42.0
    assert dry.result() is None
    assert not served.service.jobs


def test_operations_page_by_themselves(client: pt.Client, served: Any) -> None:
    names = [start(client).name for _ in range(5)]
    with client.operations(page_size=2) as found:
        assert [operation.name for operation in found] == names
    assert len(served.service.called("ListOperations")) == 3


def test_filter_is_the_servers_grammar(client: pt.Client, served: Any) -> None:
    list(client.operations(kind="Align", state="running"))
    assert served.service.called("ListOperations")[0].filter == 'kind="Align" AND state="RUNNING"'


def test_delete_forgets(client: pt.Client, served: Any) -> None:
    running = start(client)
    running.delete()
    with pytest.raises(pt.NotFound):
        client.operation(running.name).progress()


async def test_async_handle(aclient: pt.AsyncClient) -> None:
    running = await aclient.align(model="tiny", pair_set="pairSets/1")
    assert [event.sequence async for event in running] == [1, 2, 3, 4]
    assert (await running.result()).method == "pt_align"


def test_chat_beside(client: pt.Client, served: Any) -> None:
    said: dict[str, str] = {}
    for piece in client.chat("Hi", model="tiny", adapter="adapters/1", compare=True):
        said[piece.label] = said.get(piece.label, "") + piece.text
    assert said == {"base": "I would rather not.", "adapters/1": "I would rather not."}
    assert served.service.called("Chat")[0].messages[0].content == "Hi"
