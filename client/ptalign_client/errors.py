"""Every error this package raises on purpose.

    PtalignError
    ├── ConfigError              an option, a variable or a file on this side; nothing was sent
    │   └── LoopError            a loop file: names the line and the field
    ├── DeadlineExceeded         no answer within the timeout; the work may still go on
    ├── DownloadDamaged          the bytes that arrived do not have the sha256 the server named
    └── ServiceError             the service answered no, in the call or as an operation's error
        ├── InvalidArgument      a field outside its limits: `violations`
        ├── NotFound             a name nobody knows: `known` lists those the caller may use
        ├── AlreadyExists        a request id used before with another payload: `violations`
        ├── FailedPrecondition   the state does not allow it: a partial set, an open circuit
        ├── Unauthenticated      no valid token or certificate
        ├── PermissionDenied     the identity lacks the role
        ├── OutOfRange           an offset past the end of a file
        ├── ResourceExhausted    too many calls, or a full disk: `retry_after`
        ├── Unavailable          not reachable, starting or restarting: trying again helps
        ├── Cancelled            the operation was cancelled; `resource` is what it kept
        ├── DataLoss             stored data does not match its digest
        ├── Unimplemented        this server is older than this client
        └── Internal             a fault of the service; `incident` is the id in its log

Errors of gRPC and of google.rpc become these in one place, at the end of this file.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from ptalign_proto.errors import DOMAIN


@dataclass(frozen=True, slots=True)
class Violation:
    """One field that is outside its limits."""

    field: str
    """Dotted path in the request, e.g. ``budget.steps``."""
    description: str
    """The limit and the mend, in words."""

    def __str__(self) -> str:
        return f"{self.field}: {self.description}"


class PtalignError(Exception):
    """Base of all errors this package raises on purpose.

    `str` gives both the message and the hint: most callers see no more than that.

    Attributes:
        message: What went wrong, in words.
        hint: What to do about it, in words; empty when the message says it all.
        retryable: Whether the same call may succeed later without a change.
    """

    hint: str = ""
    retryable: bool = False

    def __init__(self, message: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        if hint:
            self.hint = hint

    @property
    def words(self) -> str:
        """What went wrong, without the hint."""
        return self.message

    def __str__(self) -> str:
        words = self.words
        if not self.hint:
            return words
        return (
            f"{words} {self.hint}" if words.endswith((".", "!", "?")) else f"{words}. {self.hint}"
        )


class ConfigError(PtalignError):
    """An option, an environment variable or a file on this side is wrong."""


class LoopError(ConfigError):
    """A loop file that cannot be run.

    Attributes:
        file: Its path.
        line: Line of the fault, from 1; 0 for the file as a whole.
        field: Dotted path of the fault, e.g. ``align[1].steps``.
    """

    def __init__(self, file: str, line: int, field: str, message: str, hint: str = "") -> None:
        place = f"{file}:{line}" if line else file
        super().__init__(f"{place}: {field}: {message}" if field else f"{place}: {message}", hint)
        self.file = file
        self.line = line
        self.field = field


class DeadlineExceeded(PtalignError):
    """No answer within the timeout. The operation, if there is one, goes on."""

    retryable = True


class DownloadDamaged(PtalignError):
    """The bytes that arrived do not have the sha256 the server named."""

    retryable = True
    hint = "Try again; if it happens twice, the file on the server is damaged."


class ServiceError(PtalignError):
    """The service answered with an error.

    Attributes:
        code: gRPC status code.
        reason: UPPER_SNAKE name that does not change between versions; empty when the error
            comes from the network and not from ptalign.
        violations: Fields outside their limits.
        metadata: The rest of what the server said, as strings.
        retry_after: Seconds to wait before trying again, where the server named them.
        operation: Name of the operation whose error this is; empty for an error in the call.
        resource: What the operation kept before it ended.
        unanswered: Whether an earlier try of the call may have been sent, and no answer came.
    """

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        message: str,
        hint: str = "",
        *,
        reason: str = "",
        violations: tuple[Violation, ...] = (),
        metadata: dict[str, str] | None = None,
        retry_after: float | None = None,
        operation: str = "",
        resource: str = "",
    ) -> None:
        super().__init__(message, hint)
        self.reason = reason
        self.violations = violations
        self.metadata = metadata or {}
        self.retry_after = retry_after
        self.operation = operation
        self.resource = resource
        self.unanswered = False

    @property
    def words(self) -> str:
        """What went wrong and the fields at fault, without the hint."""
        fields = map(str, self.violations)
        return "; ".join([self.message, *(f for f in fields if f not in self.message)])

    @property
    def known(self) -> tuple[str, ...]:
        """Names the server would have accepted, where it lists them."""
        return tuple(n.strip() for n in self.metadata.get("known", "").split(",") if n.strip())


class InvalidArgument(ServiceError):
    """A field outside its limits; `violations` names it, its limit and the mend."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(ServiceError):
    """A name that does not exist, or is not the caller's.

    Attributes:
        asked: Names of resources in the request, where the server's sentence names none.
    """

    code = grpc.StatusCode.NOT_FOUND
    asked: tuple[str, ...] = ()

    def __init__(self, message: str, hint: str = "", **said: Any) -> None:
        super().__init__(message, hint, **said)
        if not hint and self.known and "Known:" not in message:
            self.hint = f"Known: {', '.join(self.known)}."

    @property
    def words(self) -> str:
        """The server's sentence, which is the same for each missing resource, and the names."""
        said = super().words
        if not self.asked:
            return said
        return f"{said.removesuffix('.')} (asked for {', '.join(self.asked)})."


class AlreadyExists(ServiceError):
    """The request id was used before with another payload."""

    code = grpc.StatusCode.ALREADY_EXISTS
    hint = "Leave request_id out, or send the same request again."


class FailedPrecondition(ServiceError):
    """The state of a resource or of the engine does not allow it."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class Unauthenticated(ServiceError):
    """No valid token or certificate."""

    code = grpc.StatusCode.UNAUTHENTICATED
    hint = "Set --token or PTALIGN_TOKEN, or a client certificate with --tls-cert and --tls-key."


class PermissionDenied(ServiceError):
    """The identity lacks the role for this."""

    code = grpc.StatusCode.PERMISSION_DENIED
    hint = "Ask the operator for the role, or use a token that has it."


class OutOfRange(ServiceError):
    """An offset past the end of a file."""

    code = grpc.StatusCode.OUT_OF_RANGE


class ResourceExhausted(ServiceError):
    """Too many calls or operations, or a full disk. Retryable when `retry_after` is set."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED

    @property
    def retryable(self) -> bool:  # type: ignore[override]
        return self.retry_after is not None


class Unavailable(ServiceError):
    """Not reachable, starting or restarting."""

    code = grpc.StatusCode.UNAVAILABLE
    retryable = True


class Cancelled(ServiceError):
    """The operation was cancelled. `resource` names the partial set or checkpoint it kept."""

    code = grpc.StatusCode.CANCELLED


class DataLoss(ServiceError):
    """Stored data does not match its digest; the message names it."""

    code = grpc.StatusCode.DATA_LOSS
    hint = "Restore it from a backup, or make it again from its parents."


class Unimplemented(ServiceError):
    """The server does not know this call."""

    code = grpc.StatusCode.UNIMPLEMENTED
    hint = "Server and client are of different versions, or this is another service."


class Internal(ServiceError):
    """A fault of the service."""

    code = grpc.StatusCode.INTERNAL

    @property
    def incident(self) -> str:
        """The opaque id under which the server logged it."""
        return self.metadata.get("id", "")


TOO_LATE = "no answer within the timeout", "Raise timeout, or look whether the server is busy."
"""Message and hint of a call that took too long."""
_BY_CODE: dict[grpc.StatusCode, type[ServiceError]] = {
    kind.code: kind for kind in ServiceError.__subclasses__()
}
_CODES = {code.value[0]: code for code in grpc.StatusCode}


def invalid(field: str, description: str) -> InvalidArgument:
    """The error of a field that the wire cannot carry: the one the server would have sent."""
    violation = Violation(field, description)
    return InvalidArgument(str(violation), reason="INVALID_INPUT", violations=(violation,))


def from_status(
    status: status_pb2.Status, *, operation: str = "", resource: str = ""
) -> ServiceError:
    """The typed error of a ``google.rpc.Status``, with all its details."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    kind = _BY_CODE.get(code, ServiceError)
    said = _details(status)
    error = kind(status.message or code.name, operation=operation, resource=resource, **said)
    error.code = code
    return error


def from_rpc(error: grpc.RpcError, endpoint: str = "") -> PtalignError:
    """The typed error of a failed call to this endpoint."""
    code, message = error.code(), error.details() or ""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(*TOO_LATE)
    status = status_pb2.Status(code=code.value[0], message=message)
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            with suppress(DecodeError):  # of a proxy: code and message still stand
                status = status_pb2.Status.FromString(value)
    if code is grpc.StatusCode.CANCELLED and not status.details:
        # Not ours: a gRPC server ends calls so, without a word, when too many wait for it.
        return Unavailable("the server dropped the call: more calls came than it can take")
    if code is grpc.StatusCode.UNAVAILABLE and not status.details:
        return _unreachable(endpoint or "the endpoint", status.message)
    return from_status(status)


def _unreachable(endpoint: str, message: str) -> Unavailable:
    """The error of a connection that failed: the words are gRPC's, the mend is ours."""
    why = _shorten(message)
    if "Hostname Verification" in message:
        return Unavailable(
            f"the certificate of the server at {endpoint} has another name ({why})",
            "Set --tls-server-name (PTALIGN_TLS_SERVER_NAME) to a name in that certificate, as "
            "through a tunnel, or --endpoint (PTALIGN_ENDPOINT) to an address that it names.",
        )
    if "handshake" in message:
        return Unavailable(
            f"no secure connection to {endpoint} ({why})",
            "Set --tls-root (PTALIGN_TLS_ROOT) to the authority of the server's certificate; "
            "leave TLS out where the server has none.",
        )
    if "connect" in message and "closed" in message:
        return Unavailable(
            f"{endpoint} hung up ({why})",
            "It may want TLS: set --tls-root (PTALIGN_TLS_ROOT), and --tls-cert and --tls-key "
            "where it asks for a client certificate.",
        )
    return Unavailable(
        f"nobody answers at {endpoint} ({why})",
        "Start it with `ptalign-server serve`, or name another with --endpoint (PTALIGN_ENDPOINT).",
    )


def _shorten(message: str) -> str:
    """gRPC's connection errors without their chain of addresses."""
    said = message.removesuffix(": OK").rsplit(":", 1)[-1].strip()
    return (said if "[" in said else said.rstrip("]")) or message


def _details(status: status_pb2.Status) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for detail in status.details:
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(info):
            if info.domain == DOMAIN:
                said |= {"reason": info.reason, "metadata": dict(info.metadata)}
        elif detail.Unpack(retry):
            said["retry_after"] = retry.retry_delay.ToTimedelta().total_seconds()
        elif detail.Unpack(bad):
            said.setdefault("violations", ())
            said["violations"] += tuple(
                Violation(v.field, v.description) for v in bad.field_violations
            )
    return said
