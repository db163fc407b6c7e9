"""Rows to messages: what an operation and its metadata look like on the wire."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.longrunning import operations_pb2
from google.protobuf import any_pb2, timestamp_pb2
from google.rpc import status_pb2

from ptalign.errors import DataDamaged
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server.configs import INLINE
from ptalign_server.store.operations import SUCCEEDED, Operation
from ptalign_server.store.resources import Resource


@dataclass(frozen=True, slots=True)
class Kind:
    """The messages of one verb."""

    request: type[Any]
    metadata: type[Any]
    resource: type[Any]
    collection: str


KINDS: Mapping[str, Kind] = {
    "GenerateInstructions": Kind(
        pb.GenerateInstructionsRequest,
        pb.GenerateInstructionsMetadata,
        res.InstructionSet,
        "instructionSets",
    ),
    "SynthesizePairs": Kind(
        pb.SynthesizePairsRequest, pb.SynthesizePairsMetadata, res.PairSet, "pairSets"
    ),
    "Align": Kind(pb.AlignRequest, pb.AlignMetadata, res.Adapter, "adapters"),
    "Evaluate": Kind(pb.EvaluateRequest, pb.EvaluateMetadata, res.Evaluation, "evaluations"),
}

COLLECTIONS: Mapping[str, type[Any]] = {
    **{kind.collection: kind.resource for kind in KINDS.values()},
    "annotationSets": res.AnnotationSet,
}
"""Collection -> message of its resources."""


def operation_name(operation_id: str) -> str:
    return f"operations/{operation_id}"


def resource_name(operation: Operation) -> str:
    """Name of what the operation makes: it has the operation's id, so a retry makes it once."""
    return f"{KINDS[operation.kind].collection}/{operation.id}"


def marked_policy(resource: Resource) -> str:
    """What marks on a resource are kept by: its policy's name, or the digest of an inline one.

    Inline policies share their name: marks on one say nothing of another.
    """
    if resource.policy != INLINE:
        return resource.policy
    meta: res.ResourceMeta = COLLECTIONS[resource.collection].FromString(resource.body).meta
    return meta.policy_digest


def metadata_of(operation: Operation) -> Any:
    """The typed metadata, with the columns' values in its progress."""
    message = KINDS[operation.kind].metadata.FromString(operation.metadata)
    progress = message.progress
    progress.operation = operation_name(operation.id)
    progress.kind = operation.kind
    progress.state = pb.OperationState.Value(f"OPERATION_STATE_{operation.state}")
    progress.attempt = operation.attempt
    progress.resource = operation.resource
    progress.submitted_by = operation.identity
    for field in ("created", "started", "updated", "ended"):
        value = getattr(operation, field)
        if value:
            getattr(progress, _TIMES[field]).CopyFrom(timestamp(value))
    return message


def cancelled_by(operation: Operation, who: str) -> bytes:
    """The metadata of an operation once `who` asked for its end.

    It stands there and in no column: rows of earlier versions keep their form and their MAC.
    """
    message = KINDS[operation.kind].metadata.FromString(operation.metadata)
    message.progress.cancelled_by = who
    message.progress.cancel_time.CopyFrom(timestamp(time.time()))
    return bytes(message.SerializeToString())


_TIMES = {
    "created": "create_time",
    "started": "start_time",
    "updated": "update_time",
    "ended": "end_time",
}


def operation_message(operation: Operation) -> operations_pb2.Operation:
    """The operation without its response, which stands in the resource's row."""
    message = operations_pb2.Operation(name=operation_name(operation.id), done=operation.done)
    message.metadata.Pack(metadata_of(operation))
    if operation.error:
        message.error.CopyFrom(status_pb2.Status.FromString(operation.error))
    return message


def freeze(operation: Operation) -> bytes:
    """Body of an event."""
    return bytes(operation_message(operation).SerializeToString())


def changed_at(frozen: operations_pb2.Operation) -> timestamp_pb2.Timestamp:
    """When a frozen operation came to be as it is; its row's own time is under no MAC."""
    for kind in KINDS.values():
        metadata = kind.metadata()
        if frozen.metadata.Unpack(metadata):
            found: timestamp_pb2.Timestamp = metadata.progress.update_time
            return found
    raise DataDamaged(f"{frozen.name} has no metadata that this version knows")


def needs_response(operation: Operation) -> bool:
    """Whether the finished operation answers with a resource."""
    return operation.state == SUCCEEDED and bool(operation.resource)


def response(collection: str, body: bytes) -> any_pb2.Any:
    """A resource's row as an operation's response."""
    packed = any_pb2.Any()
    packed.Pack(COLLECTIONS[collection].FromString(body))
    return packed


def timestamp(seconds: float) -> timestamp_pb2.Timestamp:
    whole = int(seconds)
    return timestamp_pb2.Timestamp(seconds=whole, nanos=int((seconds - whole) * 1e9))
