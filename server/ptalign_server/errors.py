"""Errors of the service, beside those of the core, and how all become `google.rpc.Status`."""

from __future__ import annotations

import difflib
import errno
import logging
import secrets
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import TypeVar
from urllib.parse import quote

from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from ptalign.errors import EngineFailed, GuardTripped, InvalidInput, NotReady, PtalignError
from ptalign_proto.errors import DOMAIN, NOT_FOUND_TEXT, code_number, code_of

log = logging.getLogger("ptalign.server")
T = TypeVar("T")

RETRY_SECONDS = 2
MAX_VIOLATIONS = 8
"""Fields named in one answer."""
MAX_KNOWN, MAX_KNOWN_BYTES = 40, 1500
"""Known names in one answer, and their bytes: they stand in it three times."""
MAX_ECHO = 80
"""Characters of a caller's own text that are sent back."""


class NotFound(PtalignError):
    """A resource or operation that is not there, or belongs to another tenant."""

    reason = "RESOURCE_NOT_FOUND"

    def __init__(self) -> None:
        super().__init__(NOT_FOUND_TEXT)


class UnknownName(PtalignError):
    """A name that the operator's catalogues do not hold.

    Attributes:
        field: Field that carries the name.
        known: The names it may carry; those like the one that came, where they are many.
    """

    reason = "UNKNOWN_NAME"

    def __init__(self, field: str, name: str, known: Iterable[str]) -> None:
        name, names = name[:MAX_ECHO], sorted(known)
        self.field = field
        self.known = _shown(name, names)
        rest = len(names) - len(self.known)
        more = f" and {rest} more" if rest else ""
        known_text = ", ".join(self.known) or "none is set up yet"
        super().__init__(f"{field}: no {field} is named {name!r}. Known: {known_text}{more}.")


def look_up(field: str, name: str, known: Mapping[str, T]) -> T:
    """What has a name in a catalogue.

    Raises:
        UnknownName: With the names that are known.
    """
    if name not in known:
        raise UnknownName(field, name, known)
    return known[name]


def _shown(name: str, known: Sequence[str]) -> Sequence[str]:
    """As many as a status's trailers hold: the most like `name`, where these are not all."""

    def fit(names: Sequence[str]) -> Sequence[str]:
        # beyond ASCII a byte travels as three
        sizes = accumulate(len(quote(known_one)) + 2 for known_one in names)
        return names[: sum(size <= MAX_KNOWN_BYTES for size in sizes)][:MAX_KNOWN]

    if len(fit(known)) == len(known):
        return known
    return fit(difflib.get_close_matches(name, known, n=MAX_KNOWN, cutoff=0))


class Violations(PtalignError):
    """Several fields outside their limits, all named at once."""

    reason = "INVALID_INPUT"

    def __init__(self, violations: Sequence[InvalidInput]) -> None:
        # A status travels in HTTP/2 trailers, of which clients take 8 KiB.
        shown = violations[:MAX_VIOLATIONS]
        rest = len(violations) - len(shown)
        more = f"; and {rest} more" if rest else ""
        super().__init__("; ".join(str(v) for v in shown) + more)
        self.violations = tuple(shown)


def refuse(problems: Sequence[InvalidInput]) -> None:
    """Raises `Violations` where there are any."""
    if problems:
        raise Violations(problems)


class RequestIdReused(PtalignError):
    """The same request_id came with another payload within 24 hours."""

    reason = "REQUEST_ID_REUSED"

    def __init__(self, fields: Sequence[str]) -> None:
        self.fields = tuple(fields)
        super().__init__(
            f"request_id was used within 24 h for a call that differs in: {', '.join(fields)}. "
            "Send a new request_id for a new call."
        )


class SetPartial(PtalignError):
    """A partial set where a whole one is needed."""

    reason = "SET_PARTIAL"


class SetPurged(PtalignError):
    """A set whose record text was destroyed."""

    reason = "SET_PURGED"


class AdapterDeleted(PtalignError):
    """An adapter whose files an operator deleted."""

    reason = "ADAPTER_DELETED"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name} was deleted by an operator: its files are gone, its record and evaluations "
            "stay. Name another adapter, or align anew."
        )


class OnHold(PtalignError):
    """A call would destroy what is under legal hold."""

    reason = "ON_HOLD"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name} is under legal hold: nothing of it was destroyed. An operator lifts it on the "
            f"server: ptalign-server hold remove {name}"
        )


class OperationRunning(PtalignError):
    """An operation must be done before this."""

    reason = "OPERATION_RUNNING"


class BelowFloor(PtalignError):
    """Fewer records were accepted than the operator's floor allows."""

    reason = "BELOW_FLOOR"


class PermissionDenied(PtalignError):
    """The identity lacks the role that the method needs."""

    reason = "PERMISSION_DENIED"


class Unauthenticated(PtalignError):
    """No identity, or a token that is not known."""

    reason = "UNAUTHENTICATED"


class CircuitOpen(PtalignError):
    """The engine failed too often; an operator must look."""

    reason = "CIRCUIT_OPEN"


class Overloaded(PtalignError):
    """Too much is queued or in flight."""

    reason = "OVERLOADED"
    retryable = True


class OutOfRange(PtalignError):
    """An offset past the end of a file."""

    reason = "OFFSET_OUT_OF_RANGE"


class DiskFull(PtalignError):
    """No space is left where the server writes."""

    reason = "DISK_FULL"
    retryable = True

    def __init__(self) -> None:
        super().__init__(
            "the state folder's disk is full. Free space there; calls work again without a restart."
        )


class Relayed(PtalignError):
    """What another process of the server raised, with the status that it gave it."""

    def __init__(self, status: status_pb2.Status) -> None:
        super().__init__(status.message)
        self.reason = reason_of(status)
        self.status = status


def is_disk_full(error: BaseException) -> bool:
    """Whether the error, or what caused it, says that the disk is full."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in {errno.ENOSPC, errno.EDQUOT}:
            return True
        if "database or disk is full" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def status_of(error: BaseException) -> status_pb2.Status:
    """`google.rpc.Status` with ErrorInfo, and BadRequest or RetryInfo where they apply.

    An exception not raised on purpose becomes INTERNAL with an opaque id; its text goes to the
    log, never to the caller.
    """
    if isinstance(error, Relayed):
        return error.status
    if not isinstance(error, PtalignError):
        if not is_disk_full(error):
            return _internal(error)
        error = DiskFull()
    status = status_pb2.Status(code=code_number(code_of(error.reason)), message=str(error))
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=_facts(error))
    _attach(status, info)
    violations = _violations(error)
    if violations:
        _attach(status, error_details_pb2.BadRequest(field_violations=violations))
    if isinstance(error, (NotReady, EngineFailed)) or error.retryable:
        delay = duration_pb2.Duration(seconds=RETRY_SECONDS)
        _attach(status, error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def reason_of(status: status_pb2.Status) -> str:
    """The reason in a status made by `status_of`."""
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
            return str(info.reason)
    return "INTERNAL"


def _internal(error: BaseException) -> status_pb2.Status:
    opaque = secrets.token_hex(8)
    log.error("internal error %s", opaque, exc_info=error)
    status = status_pb2.Status(
        code=code_number(code_of("INTERNAL")),
        message=f"internal error {opaque}. The server's log says more under this id.",
    )
    _attach(
        status,
        error_details_pb2.ErrorInfo(reason="INTERNAL", domain=DOMAIN, metadata={"id": opaque}),
    )
    return status


def _facts(error: PtalignError) -> Mapping[str, str]:
    if isinstance(error, UnknownName):
        return {"field": error.field, "known": ",".join(error.known)}
    if isinstance(error, RequestIdReused):
        return {"fields": ",".join(error.fields)}
    if isinstance(error, GuardTripped):
        return {"guard": error.guard, "value": f"{error.value:.6g}", "limit": f"{error.limit:.6g}"}
    return {}


def _violations(
    error: PtalignError,
) -> list[error_details_pb2.BadRequest.FieldViolation]:
    found: Sequence[InvalidInput] = ()
    if isinstance(error, Violations):
        found = error.violations
    elif isinstance(error, InvalidInput):
        found = (error,)
    return [
        error_details_pb2.BadRequest.FieldViolation(
            field=v.field, description=f"{v.limit}. {v.mend}"
        )
        for v in found
    ]


def _attach(status: status_pb2.Status, detail: object) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)  # type: ignore[arg-type]
    status.details.append(packed)
