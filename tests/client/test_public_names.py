"""The public surface. A change here is a change for every user: say so in CHANGELOG.md."""

from __future__ import annotations

import inspect
from typing import get_type_hints

import pytest

import ptalign_client as pt

NAMES = [
    "TLS",
    "Adapter",
    "AlreadyExists",
    "Annotation",
    "AnnotationSet",
    "AsyncClient",
    "AsyncOperation",
    "Budget",
    "Cancelled",
    "Catalogue",
    "CatalogueEntry",
    "ChatMessage",
    "ChatPiece",
    "Client",
    "ConfigError",
    "DataLoss",
    "DeadlineExceeded",
    "DownloadDamaged",
    "Estimate",
    "Evaluation",
    "Event",
    "FailedPrecondition",
    "FileInfo",
    "GateSpec",
    "Imported",
    "InstructionSet",
    "Internal",
    "InvalidArgument",
    "LoopError",
    "Lora",
    "NotFound",
    "Operation",
    "Options",
    "OutOfRange",
    "PairSet",
    "PermissionDenied",
    "PolicySpec",
    "Progress",
    "PtalignError",
    "Rate",
    "Record",
    "Resolved",
    "Resource",
    "ResourceExhausted",
    "Retry",
    "ServiceError",
    "State",
    "Target",
    "TopicSpec",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Violation",
    "__version__",
]

CALLS = [
    "adapters",
    "align",
    "annotate",
    "annotation_sets",
    "catalogue",
    "chat",
    "close",
    "download",
    "download_all",
    "evaluate",
    "evaluations",
    "export",
    "generate_instructions",
    "get",
    "get_adapter",
    "get_annotation_set",
    "get_evaluation",
    "get_instruction_set",
    "get_pair_set",
    "import_set",
    "instruction_sets",
    "merge",
    "operation",
    "operations",
    "options",
    "pair_sets",
    "purge",
    "records",
    "resolve_adapter",
    "synthesize_pairs",
    "with_options",
]

HANDLE = ["cancel", "delete", "done", "events", "name", "progress", "result", "seen"]


def public(kind: type) -> list[str]:
    return sorted(name for name in dir(kind) if not name.startswith("_"))


def test_names() -> None:
    assert sorted(pt.__all__) == sorted(NAMES)
    assert all(hasattr(pt, name) for name in NAMES)


def test_calls_are_the_same_awaited_and_blocking() -> None:
    assert public(pt.Client) == CALLS
    assert sorted({*public(pt.AsyncClient), "options"}) == CALLS


def test_handles_are_the_same_awaited_and_blocking() -> None:
    assert sorted({*public(pt.Operation), "name"}) == HANDLE
    assert sorted({*public(pt.AsyncOperation), "name"}) == HANDLE


@pytest.mark.parametrize("name", [n for n in CALLS if n != "options"])
def test_blocking_call_has_the_signature_and_words_of_the_awaited_one(name: str) -> None:
    blocking, awaited = getattr(pt.Client, name), getattr(pt.AsyncClient, name)
    own, model = inspect.signature(blocking), inspect.signature(awaited)
    assert list(own.parameters.values()) == list(model.parameters.values())
    assert blocking.__doc__


@pytest.mark.parametrize("name", CALLS)
def test_no_protobuf_in_public_signatures(name: str) -> None:
    call = getattr(pt.AsyncClient, name, None)
    if call is None:
        return  # an attribute of the instance
    hints = get_type_hints(inspect.unwrap(call))
    assert hints, f"{name} is not typed"
    assert not [hint for hint in hints.values() if "pb2" in str(hint)]
