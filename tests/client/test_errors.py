"""Every status the server can send becomes one typed error."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.rpc import status_pb2
from ptalign_client_fake import Fault, info, packed, retry_in, violation

import ptalign_client as pt
from ptalign_client.errors import from_rpc, from_status
from ptalign_proto.errors import CODES

Code = grpc.StatusCode


@pytest.mark.parametrize(
    ("code", "kind", "retryable"),
    [
        (Code.INVALID_ARGUMENT, pt.InvalidArgument, False),
        (Code.NOT_FOUND, pt.NotFound, False),
        (Code.ALREADY_EXISTS, pt.AlreadyExists, False),
        (Code.FAILED_PRECONDITION, pt.FailedPrecondition, False),
        (Code.OUT_OF_RANGE, pt.OutOfRange, False),
        (Code.UNAUTHENTICATED, pt.Unauthenticated, False),
        (Code.PERMISSION_DENIED, pt.PermissionDenied, False),
        (Code.RESOURCE_EXHAUSTED, pt.ResourceExhausted, False),
        (Code.UNAVAILABLE, pt.Unavailable, True),
        (Code.CANCELLED, pt.Cancelled, False),
        (Code.DATA_LOSS, pt.DataLoss, False),
        (Code.UNIMPLEMENTED, pt.Unimplemented, False),
        (Code.INTERNAL, pt.Internal, False),
        (Code.ABORTED, pt.ServiceError, False),
    ],
)
def test_code_becomes_its_class(code: Code, kind: type, retryable: bool) -> None:
    error = from_status(status_pb2.Status(code=code.value[0], message="why"))
    assert type(error) is kind
    assert (error.code, error.message, error.retryable) == (code, "why", retryable)


def test_every_reason_of_the_server_has_a_class_of_its_own_code() -> None:
    for reason, code in CODES.items():
        status = status_pb2.Status(code=code.value[0], message="m")
        status.details.append(packed(info(reason)))
        error = from_status(status)
        assert error.reason == reason
        if code is not Code.DEADLINE_EXCEEDED:
            assert type(error) is not pt.ServiceError


def test_details_become_attributes(client: pt.Client, served: object) -> None:
    served.service.faults["GetCatalogue"] = [  # type: ignore[attr-defined]
        Fault(
            Code.INVALID_ARGUMENT,
            message="two fields",
            details=(
                info("INVALID_INPUT", limit="8"),
                violation("rounds", "must be 1..8, got 9. Send 2."),
                violation("min_polarity", "must be 0..1, got 3. Leave it out."),
            ),
        )
    ]
    with pytest.raises(pt.InvalidArgument) as caught:
        client.catalogue()
    error = caught.value
    assert error.reason == "INVALID_INPUT"
    assert error.metadata == {"limit": "8"}
    assert [v.field for v in error.violations] == ["rounds", "min_polarity"]
    assert str(error) == (
        "two fields; rounds: must be 1..8, got 9. Send 2.; "
        "min_polarity: must be 0..1, got 3. Leave it out."
    )


def test_not_found_lists_the_known_names() -> None:
    status = status_pb2.Status(code=5, message="model: no model is named 'x'.")
    status.details.append(packed(info("UNKNOWN_NAME", field="model", known="a,b")))
    error = from_status(status)
    assert isinstance(error, pt.NotFound)
    assert error.known == ("a", "b")
    assert error.hint == "Known: a, b."


def test_a_missing_resource_is_told_with_the_names_that_were_asked_for(client: pt.Client) -> None:
    """The server's sentence is one for all: nobody saw which of five names it meant."""
    with pytest.raises(pt.NotFound) as caught:
        client.get("pairSets/foo")
    assert caught.value.asked == ("pairSets/foo",)
    assert str(caught.value) == (
        "No such resource, or it is not yours to see (asked for pairSets/foo)."
    )
    with pytest.raises(pt.NotFound, match=r"asked for operations/9\)"):
        client.operation("9").progress()


def test_exhausted_is_retryable_only_when_the_server_says_when() -> None:
    status = status_pb2.Status(code=8, message="full")
    assert not from_status(status).retryable
    status.details.append(packed(retry_in(1.5)))
    error = from_status(status)
    assert error.retryable
    assert error.retry_after == 1.5


def test_internal_has_the_id_of_the_servers_log() -> None:
    status = status_pb2.Status(code=13, message="internal error abc")
    status.details.append(packed(info("INTERNAL", id="abc")))
    error = from_status(status)
    assert isinstance(error, pt.Internal)
    assert error.incident == "abc"


def test_details_of_another_domain_are_not_ours() -> None:
    foreign = info("QUOTA")
    foreign.domain = "proxy.example"
    status = status_pb2.Status(code=7, message="no", details=[packed(foreign)])
    assert from_status(status).reason == ""


def test_nobody_there_is_unavailable_and_says_how_to_start_it() -> None:
    """The command had the mend; who called the SDK got gRPC's chain of addresses and no hint."""
    with pt.Client("127.0.0.1:1", retry=pt.Retry(attempts=2, base=0.01)) as client:
        with pytest.raises(pt.Unavailable) as caught:
            client.catalogue()
    assert caught.value.reason == ""
    assert caught.value.retryable
    assert caught.value.message == "nobody answers at 127.0.0.1:1 (Connection refused)"
    assert "`ptalign-server serve`" in caught.value.hint
    assert "PTALIGN_ENDPOINT" in str(caught.value)


def test_a_name_that_no_host_has_is_told_without_a_stray_bracket() -> None:
    said = "errors resolving x:5: [field:hostname lookup error:x:5: Domain name not found]"
    error = from_rpc(unavailable(said), "x:5")
    assert error.message == "nobody answers at x:5 (Domain name not found)"


def test_a_failed_handshake_is_not_told_as_nobody() -> None:
    error = from_rpc(unavailable("last error: Tls handshake failed: bad certificate: OK"), "x:5")
    assert error.message == "no secure connection to x:5 (bad certificate)"
    assert "PTALIGN_TLS_ROOT" in error.hint


def test_a_certificate_of_another_name_is_not_told_as_nobody() -> None:
    error = from_rpc(unavailable("last error: Hostname Verification Check failed.: OK"), "x:5")
    assert "x:5 has another name" in str(error)
    assert "PTALIGN_TLS_SERVER_NAME" in error.hint


def test_a_server_that_says_why_it_is_unavailable_is_not_told_as_nobody() -> None:
    status = status_pb2.Status(code=14, message="starting", details=[packed(info("NOT_READY"))])
    error = from_rpc(unavailable("starting", status), "x:5")
    assert (error.message, error.hint) == ("starting", "")


def unavailable(said: str, status: status_pb2.Status | None = None) -> grpc.aio.AioRpcError:
    trailers = (("grpc-status-details-bin", status.SerializeToString()),) if status else ()
    nothing, trailing = grpc.aio.Metadata(), grpc.aio.Metadata(*trailers)
    return grpc.aio.AioRpcError(Code.UNAVAILABLE, nothing, trailing, details=said)


def test_text_of_an_error_has_the_mend_once() -> None:
    """A traceback shows the text alone: it dropped the hint."""
    assert str(pt.ConfigError("no such file", "Send one.")) == "no such file. Send one."
    assert str(pt.ConfigError("No such file.", "Send one.")) == "No such file. Send one."
    assert str(pt.ConfigError("no such file")) == "no such file"


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    from ptalign_client import errors

    kinds = [k for k in vars(errors).values() if isinstance(k, type)]
    ours = {k.__name__ for k in kinds if issubclass(k, pt.PtalignError)}
    assert errors.__doc__ is not None
    drawn = {line.split("─ ")[1].split()[0] for line in errors.__doc__.splitlines() if "─ " in line}
    assert drawn | {"PtalignError"} == ours


@pytest.mark.parametrize(("details", "kind"), [((), pt.Unavailable), ((info("X"),), pt.Cancelled)])
def test_a_call_that_a_flooded_server_drops_is_tried_again(
    details: tuple[Any, ...], kind: type
) -> None:
    """gRPC ends it as CANCELLED without details: it was taken for a cancelled operation."""
    status = status_pb2.Status(code=Code.CANCELLED.value[0], message="CANCELLED")
    status.details.extend(map(packed, details))
    trailers = (("grpc-status-details-bin", status.SerializeToString()),) if details else ()
    sent = grpc.aio.AioRpcError(Code.CANCELLED, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers))
    error = from_rpc(sent)
    assert type(error) is kind
    assert error.retryable is not bool(details)
