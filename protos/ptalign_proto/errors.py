"""The one table both ends read: why a call failed, and which status code carries the reason.

The server turns its exceptions into `google.rpc.Status` with it, the client turns that status
back into exceptions with it. A reason never changes its meaning between versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from grpc import StatusCode

DOMAIN = "ptalign"
"""`ErrorInfo.domain` of every error made on purpose."""

CODES: Mapping[str, StatusCode] = MappingProxyType(
    {
        # What the caller sent.
        "INVALID_INPUT": StatusCode.INVALID_ARGUMENT,
        "UNKNOWN_NAME": StatusCode.NOT_FOUND,
        "RESOURCE_NOT_FOUND": StatusCode.NOT_FOUND,
        "REQUEST_ID_REUSED": StatusCode.ALREADY_EXISTS,
        "SET_PARTIAL": StatusCode.FAILED_PRECONDITION,
        "SET_PURGED": StatusCode.FAILED_PRECONDITION,
        "ADAPTER_DELETED": StatusCode.FAILED_PRECONDITION,
        "ON_HOLD": StatusCode.FAILED_PRECONDITION,
        "OPERATION_RUNNING": StatusCode.FAILED_PRECONDITION,
        "OFFSET_OUT_OF_RANGE": StatusCode.OUT_OF_RANGE,
        # Who the caller is.
        "UNAUTHENTICATED": StatusCode.UNAUTHENTICATED,
        "PERMISSION_DENIED": StatusCode.PERMISSION_DENIED,
        # What the server can do now.
        "NOT_READY": StatusCode.UNAVAILABLE,
        "OVERLOADED": StatusCode.RESOURCE_EXHAUSTED,
        "DISK_FULL": StatusCode.RESOURCE_EXHAUSTED,
        "DEADLINE_EXCEEDED": StatusCode.DEADLINE_EXCEEDED,
        "CIRCUIT_OPEN": StatusCode.FAILED_PRECONDITION,
        # What became of an operation.
        "ENGINE_FAILED": StatusCode.UNAVAILABLE,
        "TRAINING_FAILED": StatusCode.FAILED_PRECONDITION,
        "GUARD_TRIPPED": StatusCode.FAILED_PRECONDITION,
        "UNSUPPORTED": StatusCode.FAILED_PRECONDITION,
        "BELOW_FLOOR": StatusCode.FAILED_PRECONDITION,
        "CANCELLED": StatusCode.CANCELLED,
        "DATA_DAMAGED": StatusCode.DATA_LOSS,
        "INTERNAL": StatusCode.INTERNAL,
    }
)
"""Reason of `ErrorInfo` -> status code."""

NOT_FOUND_TEXT = "No such resource, or it is not yours to see."
"""The one sentence for every missing resource: it must not tell whether another tenant has it."""


def code_of(reason: str) -> StatusCode:
    """The status code of a reason; INTERNAL for one that is not in the table."""
    return CODES.get(reason, StatusCode.INTERNAL)


def code_number(code: StatusCode) -> int:
    """The number that `google.rpc.Status.code` carries."""
    number: int = code.value[0]
    return number
