"""Protobuf on one side, nouns on the other: the only file that reads or fills a message's fields.

The two have the same field names, so one walk over a message's descriptor converts any of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from datetime import UTC
from typing import Any, TypeVar

from google.longrunning import operations_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from ptalign_client import nouns
from ptalign_client.errors import InvalidArgument, invalid
from ptalign_client.nouns import Progress, Resource, State
from ptalign_proto.v1 import library_pb2, resources_pb2, safety_tuning_pb2

NAME = re.compile(
    r"(instructionSets|annotationSets|pairSets|adapters|evaluations|operations)/\S{1,80}"
)
N = TypeVar("N")
M = TypeVar("M", bound=Message)

MESSAGES: dict[type, type[Message]] = {
    nouns.InstructionSet: resources_pb2.InstructionSet,
    nouns.AnnotationSet: resources_pb2.AnnotationSet,
    nouns.PairSet: resources_pb2.PairSet,
    nouns.Adapter: resources_pb2.Adapter,
    nouns.Evaluation: resources_pb2.Evaluation,
    nouns.FileInfo: resources_pb2.FileInfo,
    nouns.Rate: resources_pb2.Rate,
    nouns.Annotation: resources_pb2.Annotation,
    nouns.TopicSpec: resources_pb2.TopicSpec,
    nouns.PolicySpec: resources_pb2.PolicySpec,
    nouns.Lora: safety_tuning_pb2.Lora,
    nouns.Budget: safety_tuning_pb2.Budget,
    nouns.Target: safety_tuning_pb2.Target,
    nouns.GateSpec: safety_tuning_pb2.GateSpec,
    nouns.Estimate: safety_tuning_pb2.Estimate,
    nouns.Record: library_pb2.Record,
    nouns.Imported: library_pb2.ImportSetResponse,
    nouns.Resolved: library_pb2.ResolveAdapterResponse,
    nouns.CatalogueEntry: library_pb2.CatalogueEntry,
    nouns.Catalogue: library_pb2.Catalogue,
    nouns.ChatMessage: safety_tuning_pb2.ChatMessage,
    nouns.ChatPiece: safety_tuning_pb2.ChatReply,
    nouns.Progress: safety_tuning_pb2.OperationProgress,
}
"""Noun to the message it mirrors."""

RESULTS = (nouns.InstructionSet, nouns.PairSet, nouns.Adapter, nouns.Evaluation)
METADATA: tuple[type[Message], ...] = (
    safety_tuning_pb2.GenerateInstructionsMetadata,
    safety_tuning_pb2.SynthesizePairsMetadata,
    safety_tuning_pb2.AlignMetadata,
    safety_tuning_pb2.EvaluateMetadata,
)
_NOUNS = {message.DESCRIPTOR.full_name: noun for noun, message in MESSAGES.items()}


def to_noun(kind: type[N], message: Message) -> N:
    """The noun of a message; fields this client does not know are left out."""
    values = _values(message)
    if issubclass(kind, Resource):
        values |= values.pop("meta", {})
    return kind(**{name: values[name] for name in _names(kind) if name in values})


def to_message(noun: Any, path: str = "") -> Any:
    """The message of a noun; None and empty values are left unset.

    Raises:
        InvalidArgument: A value of another type than its field; `path` is where the noun stands.
    """
    values = {f.name: to_value(getattr(noun, f.name)) for f in fields(noun)}
    return build(MESSAGES[type(noun)], path, **values)


def sent(path: str, kind: type, noun: Any, also: str = "") -> Any:
    """The message of a noun that a caller passed.

    Args:
        path: The field of the call, e.g. ``items[0]``.
        kind: The noun that it takes.
        noun: What was passed.
        also: What else it takes, in words.

    Raises:
        InvalidArgument: Another thing was passed; says what to send.
    """
    if not isinstance(noun, kind):
        wanted = f"{also} or {_a(kind.__name__)}" if also else _a(kind.__name__)
        raise invalid(path, f"must be {wanted}, not {_a(_kind(noun))}. Send {_example(kind)}.")
    return to_message(noun, path)


def all_sent(path: str, kind: type, nouns: Any, also: str = "") -> list[Any]:
    """The messages of a list that a caller passed.

    Raises:
        InvalidArgument: Not a list of that noun; says what to send.
    """
    if isinstance(nouns, str | Mapping) or not isinstance(nouns, Iterable):
        wanted = f"{also} or a list" if also else "a list"
        found = _a(_kind(nouns))
        raise invalid(path, f"must be {wanted}, not {found}. Send [{_example(kind)}, ...].")
    return [sent(f"{path}[{i}]", kind, noun) for i, noun in enumerate(nouns)]


def build(kind: type[M], path: str = "", /, **values: Any) -> M:
    """A message of these values.

    Args:
        kind: Which message.
        path: Where it stands in the call; empty for the call's own fields.
        **values: Its fields; None leaves one unset.

    Raises:
        InvalidArgument: A value of another type than its field.
    """
    for name, value in values.items():
        field = kind.DESCRIPTOR.fields_by_name[name]
        # protobuf would take the letters of a text for a list, and any whole number for True
        letters = isinstance(value, str) and field.is_repeated
        if letters or (field.cpp_type == FieldDescriptor.CPPTYPE_BOOL and value not in BOOLEANS):
            raise _misfit(kind, path, name, value)
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise _faulty(kind, path, values) or invalid(path or "request", str(error)) from None


def _faulty(kind: type[Message], path: str, values: Mapping[str, Any]) -> InvalidArgument | None:
    """The error of the first value that its field does not take."""
    for name, value in values.items():
        try:
            kind(**{name: value})
        except (TypeError, ValueError):
            return _misfit(kind, path, name, value)
    return None


def _misfit(kind: type[Message], path: str, name: str, value: Any) -> InvalidArgument:
    field = kind.DESCRIPTOR.fields_by_name[name]
    one, many = WANTED.get(field.cpp_type, ("another type", "other things"))
    wanted = f"a list of {many}, [...]" if field.is_repeated else one
    # A number tells what is wrong with it; a text may be one that nobody should read.
    found = str(value) if isinstance(value, int | float) else _a(_kind(value))
    return invalid(f"{path}.{name}" if path else name, f"must be {wanted}, not {found}")


BOOLEANS = (None, False, True)
"""What a field of yes or no takes; None leaves it unset."""

WANTED = {
    FieldDescriptor.CPPTYPE_STRING: ("a text", "texts"),
    FieldDescriptor.CPPTYPE_BOOL: ("True or False", "True or False"),
    FieldDescriptor.CPPTYPE_INT32: ("a whole number", "whole numbers"),
    FieldDescriptor.CPPTYPE_INT64: ("a whole number", "whole numbers"),
    FieldDescriptor.CPPTYPE_UINT32: ("a whole number from 0 up", "whole numbers"),
    FieldDescriptor.CPPTYPE_UINT64: ("a whole number from 0 up", "whole numbers"),
    FieldDescriptor.CPPTYPE_FLOAT: ("a number", "numbers"),
    FieldDescriptor.CPPTYPE_DOUBLE: ("a number", "numbers"),
}
"""What a field takes, in words: one, and many."""


def _kind(value: Any) -> str:
    return "text" if isinstance(value, str) else type(value).__name__


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "AEIOaeio" else f"a {noun}"


def _example(kind: type) -> str:
    """How one is written, with the fields that it must have."""
    needed = [
        f"{f.name}=..."
        for f in fields(kind)
        if f.default is MISSING and f.default_factory is MISSING
    ]
    return f"ptalign_client.{kind.__name__}({', '.join(needed) or '...'})"


def names_in(message: Any) -> tuple[str, ...]:
    """Names of resources and operations in a request, in the order of its fields."""
    found: list[str] = []
    for field, value in message.ListFields() if isinstance(message, Message) else ():
        for item in value if field.is_repeated else (value,):
            if isinstance(item, Message):
                found += names_in(item)
            elif isinstance(item, str) and NAME.fullmatch(item):
                found.append(item)
    return tuple(dict.fromkeys(found))


def to_value(value: Any) -> Any:
    """A value as a protobuf constructor takes it."""
    if is_dataclass(value):
        return to_message(value)
    if isinstance(value, tuple | list):
        return [to_value(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


def to_progress(operation: operations_pb2.Operation) -> Progress:
    """What an operation's metadata says, whatever its verb."""
    for kind in METADATA:
        metadata = kind()
        if operation.metadata.Is(kind.DESCRIPTOR):
            operation.metadata.Unpack(metadata)
            break
    else:
        return Progress(operation=operation.name, kind="", state=_bare_state(operation))
    values = _values(metadata)
    values |= values.pop("progress")
    own = {name: values[name] for name in _names(Progress) if name in values}
    measured = {f.name for f in kind.DESCRIPTOR.fields} - {"progress", "suite"}
    own["values"] = {name: float(values[name]) for name in sorted(measured)}
    own["state"] = State(own["state"])
    own["operation"] = own["operation"] or operation.name
    return Progress(**own)


def to_result(operation: operations_pb2.Operation) -> Any:
    """The resource an operation made, or None for a dry run."""
    for kind in RESULTS:
        message = MESSAGES[kind]()
        if operation.response.Is(message.DESCRIPTOR):
            operation.response.Unpack(message)
            return to_noun(kind, message) if message.HasField("meta") else None
    return None


def _bare_state(operation: operations_pb2.Operation) -> State:
    if not operation.done:
        return State.UNSPECIFIED
    return State.FAILED if operation.HasField("error") else State.SUCCEEDED


def _names(kind: Any) -> tuple[str, ...]:
    return tuple(kind.__dataclass_fields__)


def _values(message: Message) -> dict[str, Any]:
    return {f.name: _value(message, f) for f in message.DESCRIPTOR.fields}


def _value(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        inner = field.message_type.fields_by_name["value"]
        return {key: _single(value[key], inner) for key in sorted(value)}
    if field.is_repeated:
        return tuple(_single(item, field) for item in value)
    if field.has_presence and not message.HasField(field.name):
        return {} if field.name in ("meta", "progress") else None
    return _single(value, field)


def _single(value: Any, field: Any) -> Any:
    if field.enum_type is not None:
        return _enum_word(field, value)
    if isinstance(value, Timestamp):
        return value.ToDatetime(tzinfo=UTC) if value.ByteSize() else None
    if not isinstance(value, Message):
        return value
    noun = _NOUNS.get(value.DESCRIPTOR.full_name)
    return to_noun(noun, value) if noun and noun is not Progress else _values(value)


def _enum_word(field: Any, number: int) -> str:
    """``METHOD_PT_ALIGN`` as ``pt_align``; the unspecified value as an empty string."""
    value = field.enum_type.values_by_number.get(number)
    if value is None or number == 0:
        return ""
    prefix = field.enum_type.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return str(value.name).removeprefix(prefix).lower()
