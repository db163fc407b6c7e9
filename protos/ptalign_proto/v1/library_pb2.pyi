from google.protobuf import empty_pb2 as _empty_pb2
from ptalign_proto.v1 import resources_pb2 as _resources_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RecordView(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RECORD_VIEW_UNSPECIFIED: _ClassVar[RecordView]
    RECORD_VIEW_SAFE: _ClassVar[RecordView]
    RECORD_VIEW_FULL: _ClassVar[RecordView]
RECORD_VIEW_UNSPECIFIED: RecordView
RECORD_VIEW_SAFE: RecordView
RECORD_VIEW_FULL: RecordView

class GetResourceRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListResourcesRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "model", "policy")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    model: str
    policy: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., model: _Optional[str] = ..., policy: _Optional[str] = ...) -> None: ...

class ListInstructionSetsResponse(_message.Message):
    __slots__ = ("instruction_sets", "next_page_token")
    INSTRUCTION_SETS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    instruction_sets: _containers.RepeatedCompositeFieldContainer[_resources_pb2.InstructionSet]
    next_page_token: str
    def __init__(self, instruction_sets: _Optional[_Iterable[_Union[_resources_pb2.InstructionSet, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ListAnnotationSetsResponse(_message.Message):
    __slots__ = ("annotation_sets", "next_page_token")
    ANNOTATION_SETS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    annotation_sets: _containers.RepeatedCompositeFieldContainer[_resources_pb2.AnnotationSet]
    next_page_token: str
    def __init__(self, annotation_sets: _Optional[_Iterable[_Union[_resources_pb2.AnnotationSet, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CreateAnnotationSetRequest(_message.Message):
    __slots__ = ("request_id", "model", "policy", "items", "annotator_minutes")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    ANNOTATOR_MINUTES_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    policy: str
    items: _containers.RepeatedCompositeFieldContainer[_resources_pb2.Annotation]
    annotator_minutes: float
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., policy: _Optional[str] = ..., items: _Optional[_Iterable[_Union[_resources_pb2.Annotation, _Mapping]]] = ..., annotator_minutes: _Optional[float] = ...) -> None: ...

class ListPairSetsResponse(_message.Message):
    __slots__ = ("pair_sets", "next_page_token")
    PAIR_SETS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    pair_sets: _containers.RepeatedCompositeFieldContainer[_resources_pb2.PairSet]
    next_page_token: str
    def __init__(self, pair_sets: _Optional[_Iterable[_Union[_resources_pb2.PairSet, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ListAdaptersResponse(_message.Message):
    __slots__ = ("adapters", "next_page_token")
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    adapters: _containers.RepeatedCompositeFieldContainer[_resources_pb2.Adapter]
    next_page_token: str
    def __init__(self, adapters: _Optional[_Iterable[_Union[_resources_pb2.Adapter, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ListEvaluationsResponse(_message.Message):
    __slots__ = ("evaluations", "next_page_token")
    EVALUATIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    evaluations: _containers.RepeatedCompositeFieldContainer[_resources_pb2.Evaluation]
    next_page_token: str
    def __init__(self, evaluations: _Optional[_Iterable[_Union[_resources_pb2.Evaluation, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class StreamRecordsRequest(_message.Message):
    __slots__ = ("name", "view", "purpose", "offset", "limit")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    name: str
    view: RecordView
    purpose: str
    offset: int
    limit: int
    def __init__(self, name: _Optional[str] = ..., view: _Optional[_Union[RecordView, str]] = ..., purpose: _Optional[str] = ..., offset: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class Record(_message.Message):
    __slots__ = ("id", "kind", "topic", "instruction", "positive", "toxic", "twin_of", "source", "round", "polarity", "masked", "domain", "locale", "measures", "held_out", "truncated")
    class PolarityEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class MeasuresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    POSITIVE_FIELD_NUMBER: _ClassVar[int]
    TOXIC_FIELD_NUMBER: _ClassVar[int]
    TWIN_OF_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    POLARITY_FIELD_NUMBER: _ClassVar[int]
    MASKED_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    LOCALE_FIELD_NUMBER: _ClassVar[int]
    MEASURES_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: str
    topic: str
    instruction: str
    positive: str
    toxic: str
    twin_of: str
    source: str
    round: int
    polarity: _containers.ScalarMap[str, float]
    masked: _containers.RepeatedScalarFieldContainer[str]
    domain: str
    locale: str
    measures: _containers.ScalarMap[str, float]
    held_out: bool
    truncated: bool
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[str] = ..., topic: _Optional[str] = ..., instruction: _Optional[str] = ..., positive: _Optional[str] = ..., toxic: _Optional[str] = ..., twin_of: _Optional[str] = ..., source: _Optional[str] = ..., round: _Optional[int] = ..., polarity: _Optional[_Mapping[str, float]] = ..., masked: _Optional[_Iterable[str]] = ..., domain: _Optional[str] = ..., locale: _Optional[str] = ..., measures: _Optional[_Mapping[str, float]] = ..., held_out: bool = ..., truncated: bool = ...) -> None: ...

class DownloadRequest(_message.Message):
    __slots__ = ("name", "part", "offset", "purpose")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    name: str
    part: str
    offset: int
    purpose: str
    def __init__(self, name: _Optional[str] = ..., part: _Optional[str] = ..., offset: _Optional[int] = ..., purpose: _Optional[str] = ...) -> None: ...

class DownloadChunk(_message.Message):
    __slots__ = ("info", "offset", "data")
    INFO_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    info: _resources_pb2.FileInfo
    offset: int
    data: bytes
    def __init__(self, info: _Optional[_Union[_resources_pb2.FileInfo, _Mapping]] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class ImportSetRequest(_message.Message):
    __slots__ = ("header", "records")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    header: ImportHeader
    records: _containers.RepeatedCompositeFieldContainer[Record]
    def __init__(self, header: _Optional[_Union[ImportHeader, _Mapping]] = ..., records: _Optional[_Iterable[_Union[Record, _Mapping]]] = ...) -> None: ...

class ImportHeader(_message.Message):
    __slots__ = ("request_id", "kind", "model", "policy")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    kind: str
    model: str
    policy: str
    def __init__(self, request_id: _Optional[str] = ..., kind: _Optional[str] = ..., model: _Optional[str] = ..., policy: _Optional[str] = ...) -> None: ...

class ImportSetResponse(_message.Message):
    __slots__ = ("name", "accepted", "rejected")
    class RejectedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    name: str
    accepted: int
    rejected: _containers.ScalarMap[str, int]
    def __init__(self, name: _Optional[str] = ..., accepted: _Optional[int] = ..., rejected: _Optional[_Mapping[str, int]] = ...) -> None: ...

class MergeSetsRequest(_message.Message):
    __slots__ = ("request_id", "names")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, request_id: _Optional[str] = ..., names: _Optional[_Iterable[str]] = ...) -> None: ...

class MergeSetsResponse(_message.Message):
    __slots__ = ("name", "accepted", "rejected")
    class RejectedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    name: str
    accepted: int
    rejected: _containers.ScalarMap[str, int]
    def __init__(self, name: _Optional[str] = ..., accepted: _Optional[int] = ..., rejected: _Optional[_Mapping[str, int]] = ...) -> None: ...

class PurgeSetRequest(_message.Message):
    __slots__ = ("request_id", "name", "reason")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    name: str
    reason: str
    def __init__(self, request_id: _Optional[str] = ..., name: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ResolveAdapterRequest(_message.Message):
    __slots__ = ("model", "policy")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    model: str
    policy: str
    def __init__(self, model: _Optional[str] = ..., policy: _Optional[str] = ...) -> None: ...

class ResolveAdapterResponse(_message.Message):
    __slots__ = ("adapter", "evaluation")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    adapter: _resources_pb2.Adapter
    evaluation: str
    def __init__(self, adapter: _Optional[_Union[_resources_pb2.Adapter, _Mapping]] = ..., evaluation: _Optional[str] = ...) -> None: ...

class GetCatalogueRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Catalogue(_message.Message):
    __slots__ = ("models", "policies", "suites", "judges", "gates", "profiles")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    SUITES_FIELD_NUMBER: _ClassVar[int]
    JUDGES_FIELD_NUMBER: _ClassVar[int]
    GATES_FIELD_NUMBER: _ClassVar[int]
    PROFILES_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[CatalogueEntry]
    policies: _containers.RepeatedCompositeFieldContainer[CatalogueEntry]
    suites: _containers.RepeatedCompositeFieldContainer[CatalogueEntry]
    judges: _containers.RepeatedCompositeFieldContainer[CatalogueEntry]
    gates: _containers.RepeatedCompositeFieldContainer[CatalogueEntry]
    profiles: _containers.RepeatedCompositeFieldContainer[CatalogueEntry]
    def __init__(self, models: _Optional[_Iterable[_Union[CatalogueEntry, _Mapping]]] = ..., policies: _Optional[_Iterable[_Union[CatalogueEntry, _Mapping]]] = ..., suites: _Optional[_Iterable[_Union[CatalogueEntry, _Mapping]]] = ..., judges: _Optional[_Iterable[_Union[CatalogueEntry, _Mapping]]] = ..., gates: _Optional[_Iterable[_Union[CatalogueEntry, _Mapping]]] = ..., profiles: _Optional[_Iterable[_Union[CatalogueEntry, _Mapping]]] = ...) -> None: ...

class CatalogueEntry(_message.Message):
    __slots__ = ("name", "digest", "title")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    title: str
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., title: _Optional[str] = ...) -> None: ...
