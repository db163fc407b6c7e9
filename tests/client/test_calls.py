"""Retries, deadlines, identity and the cap on calls in flight."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest
from ptalign_client_fake import Fault, info, retry_in

import ptalign_client as pt

Code = grpc.StatusCode
ASK: dict[str, Any] = {"model": "tiny", "policy": "tone-en", "count": 5}


def test_unavailable_twice_then_answered(client: pt.Client, served: Any) -> None:
    served.service.faults["GetCatalogue"] = [Fault(), Fault()]
    assert client.catalogue().models[0].name == "tiny"
    assert len(served.service.called("GetCatalogue")) == 3


def test_lost_reply_starts_one_operation(client: pt.Client, served: Any) -> None:
    served.service.faults["GenerateInstructions"] = [Fault(committed=True), Fault(committed=True)]
    running = client.generate_instructions(**ASK)
    sent = served.service.called("GenerateInstructions")
    assert len(sent) == 3
    assert len({request.request_id for request in sent}) == 1
    assert list(served.service.jobs) == [running.name]


def test_a_deletion_whose_reply_was_lost_is_done(client: pt.Client, served: Any) -> None:
    """Tried again, there was nothing left to delete: an error, of what had worked."""
    running = client.generate_instructions(**ASK)
    served.service.faults["DeleteOperation"] = [Fault(committed=True)]
    running.delete()
    assert len(served.service.called("DeleteOperation")) == 2
    with pytest.raises(pt.NotFound):
        running.delete()
    busy = Fault(Code.RESOURCE_EXHAUSTED, details=(info("OVERLOADED"), retry_in(0.1)))
    for said in (busy, Fault(details=(info("NOT_READY"), retry_in(0.1)))):  # answers of the service
        served.service.faults["DeleteOperation"] = [said]
        with pytest.raises(pt.NotFound):
            running.delete()
    again = client.generate_instructions(**ASK)
    served.service.faults["DeleteOperation"] = [Fault(committed=True), busy]
    again.delete()


def test_two_calls_have_two_request_ids(client: pt.Client, served: Any) -> None:
    first, second = client.generate_instructions(**ASK), client.generate_instructions(**ASK)
    assert first.name != second.name


def test_own_request_id_is_sent(client: pt.Client, served: Any) -> None:
    first = client.generate_instructions(**ASK, request_id="5f0c6a5e-0000-4000-8000-000000000001")
    again = client.generate_instructions(**ASK, request_id="5f0c6a5e-0000-4000-8000-000000000001")
    assert first.name == again.name


@pytest.mark.parametrize("code", [Code.INVALID_ARGUMENT, Code.INTERNAL, Code.FAILED_PRECONDITION])
def test_what_a_retry_cannot_mend_is_not_tried_again(
    client: pt.Client, served: Any, code: Code
) -> None:
    served.service.faults["GetCatalogue"] = [Fault(code)]
    with pytest.raises(pt.ServiceError):
        client.catalogue()
    assert len(served.service.called("GetCatalogue")) == 1


def test_retry_info_is_honoured(client: pt.Client, served: Any) -> None:
    full = Fault(Code.RESOURCE_EXHAUSTED, details=(info("OVERLOADED"), retry_in(0.4)))
    served.service.faults["GetCatalogue"] = [full]
    began = time.monotonic()
    client.catalogue()
    assert time.monotonic() - began >= 0.4


def test_exhausted_without_retry_info_is_final(client: pt.Client, served: Any) -> None:
    served.service.faults["GetCatalogue"] = [Fault(Code.RESOURCE_EXHAUSTED)]
    with pytest.raises(pt.ResourceExhausted):
        client.catalogue()
    assert len(served.service.called("GetCatalogue")) == 1


def test_attempts_end(client: pt.Client, served: Any) -> None:
    served.service.faults["GetCatalogue"] = [Fault() for _ in range(20)]
    few = client.with_options(retry=pt.Retry(attempts=3, base=0.01))
    with pytest.raises(pt.Unavailable):
        few.catalogue()
    assert len(served.service.called("GetCatalogue")) == 3


def test_a_wait_longer_than_the_timeout_is_not_begun(client: pt.Client, served: Any) -> None:
    served.service.faults["GetCatalogue"] = [Fault(details=(info("NOT_READY"), retry_in(60)))]
    began = time.monotonic()
    with pytest.raises(pt.Unavailable) as caught:
        client.catalogue()
    assert time.monotonic() - began < 5
    assert caught.value.retry_after == 60


def test_deadline(client: pt.Client, served: Any) -> None:
    served.service.pace = 5.0
    began = time.monotonic()
    with pytest.raises(pt.DeadlineExceeded):
        client.with_options(timeout=0.3).catalogue()
    assert time.monotonic() - began < 2


def test_a_deadline_after_an_error_tells_the_error(client: pt.Client, served: Any) -> None:
    """It said "no answer within the timeout" of a server that had answered why not."""
    served.service.faults["GetCatalogue"] = [Fault(details=(info("NOT_READY"),))]
    served.service.pace = 0.4
    with pytest.raises(pt.Unavailable):
        client.with_options(timeout=0.7).catalogue()
    assert len(served.service.called("GetCatalogue")) == 2


async def test_cap_holds_and_everything_is_answered(served: Any) -> None:
    served.service.pace = 0.02
    options = pt.Options(endpoint=served.endpoint, max_calls=8, timeout=30)
    async with pt.AsyncClient(options=options) as client:
        found = await asyncio.gather(*(client.catalogue() for _ in range(100)))
    assert len(found) == 100
    assert 4 <= served.service.most_in_flight <= 8


async def test_watchers_at_their_cap_do_not_block_a_cancel(served: Any) -> None:
    served.service.pace = 0.2
    served.service.steps = 100
    options = pt.Options(endpoint=served.endpoint, max_streams=3, timeout=5)
    async with pt.AsyncClient(options=options) as client:
        running = await client.generate_instructions(**ASK)
        watchers = [asyncio.create_task(running.result()) for _ in range(6)]
        await asyncio.sleep(0.5)
        await running.cancel()
        ended = await asyncio.gather(*watchers, return_exceptions=True)
    assert [type(e) for e in ended] == [pt.Cancelled] * 6


def test_token_travels_as_bearer(served: Any) -> None:
    with pt.Client(served.endpoint, token="s3cret") as client:
        client.catalogue()
    assert served.service.identities[-1]["authorization"] == "Bearer s3cret"


def test_token_and_endpoint_come_from_the_environment(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTALIGN_ENDPOINT", served.endpoint)
    monkeypatch.setenv("PTALIGN_TOKEN", "from-env")
    with pt.Client() as client:
        client.catalogue()
    assert served.service.identities[-1]["authorization"] == "Bearer from-env"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_line_break_of_a_mounted_file_is_no_part_of_the_token(
    served: Any, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """gRPC refused the header, and the command asked for a report of its own fault."""
    monkeypatch.setenv("PTALIGN_TOKEN", f"from-env{end}")
    with pt.Client(served.endpoint) as client:
        client.catalogue()
    assert served.service.identities[-1]["authorization"] == "Bearer from-env"


@pytest.mark.parametrize("token", ["s3 cret", "s3\ncret", "s3\tcret", "s3cr\u00e9t", "s3cret\x7f"])
def test_a_token_that_no_header_can_carry_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(pt.ConfigError, match="--token, PTALIGN_TOKEN") as caught:
        pt.Client(token=token)
    assert "s3" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"endpoint": "http://h:1"}, "not host:port"),
        ({"endpoint": "host"}, "not host:port"),
        ({"endpoint": "far.example:50051", "token": "t"}, "clear text"),
        ({"tls": pt.TLS(cert="a.pem")}, "both --tls-cert and --tls-key"),
        ({"tls": pt.TLS(root="/nowhere.pem")}, "no such file: /nowhere.pem"),
        ({"timeout": 0}, "above 0"),
        ({"max_calls": 500, "max_streams": 500}, "below 1000"),
        ({"retry": pt.Retry(attempts=0)}, "at least 1"),
    ],
)
def test_options_that_cannot_work_are_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(pt.ConfigError, match=says):
        pt.Client(options=pt.Options(**options))


def test_a_negative_count_never_reaches_the_wire(client: pt.Client, served: Any) -> None:
    with pytest.raises(pt.InvalidArgument) as caught:
        client.generate_instructions(model="tiny", policy="tone-en", count=-1)
    assert caught.value.violations[0].field == "count"
    assert not served.service.calls


def test_an_unknown_method_names_the_known_ones(client: pt.Client) -> None:
    with pytest.raises(pt.InvalidArgument, match="pt_align, ut_uniform, mle, dpo, npo"):
        client.align(model="tiny", pair_set="pairSets/1", method="sft")  # type: ignore[arg-type]
