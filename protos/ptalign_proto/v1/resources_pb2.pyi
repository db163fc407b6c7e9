import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Method(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    METHOD_UNSPECIFIED: _ClassVar[Method]
    METHOD_PT_ALIGN: _ClassVar[Method]
    METHOD_UT_UNIFORM: _ClassVar[Method]
    METHOD_MLE: _ClassVar[Method]
    METHOD_DPO: _ClassVar[Method]
    METHOD_NPO: _ClassVar[Method]

class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERDICT_UNSPECIFIED: _ClassVar[Verdict]
    VERDICT_PASS: _ClassVar[Verdict]
    VERDICT_FAIL: _ClassVar[Verdict]
    VERDICT_INCONCLUSIVE: _ClassVar[Verdict]
METHOD_UNSPECIFIED: Method
METHOD_PT_ALIGN: Method
METHOD_UT_UNIFORM: Method
METHOD_MLE: Method
METHOD_DPO: Method
METHOD_NPO: Method
VERDICT_UNSPECIFIED: Verdict
VERDICT_PASS: Verdict
VERDICT_FAIL: Verdict
VERDICT_INCONCLUSIVE: Verdict

class ResourceMeta(_message.Message):
    __slots__ = ("name", "digest", "tenant", "create_time", "model", "model_digest", "policy", "policy_digest", "parents", "config_digest", "template_digest", "judges", "partial", "purged", "operation", "made_by")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    POLICY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    CONFIG_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    JUDGES_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    PURGED_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    MADE_BY_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    tenant: str
    create_time: _timestamp_pb2.Timestamp
    model: str
    model_digest: str
    policy: str
    policy_digest: str
    parents: _containers.RepeatedScalarFieldContainer[str]
    config_digest: str
    template_digest: str
    judges: _containers.RepeatedScalarFieldContainer[str]
    partial: bool
    purged: bool
    operation: str
    made_by: str
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., tenant: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., model: _Optional[str] = ..., model_digest: _Optional[str] = ..., policy: _Optional[str] = ..., policy_digest: _Optional[str] = ..., parents: _Optional[_Iterable[str]] = ..., config_digest: _Optional[str] = ..., template_digest: _Optional[str] = ..., judges: _Optional[_Iterable[str]] = ..., partial: bool = ..., purged: bool = ..., operation: _Optional[str] = ..., made_by: _Optional[str] = ...) -> None: ...

class InstructionSet(_message.Message):
    __slots__ = ("meta", "harmful", "twins", "shortfall", "by_topic", "rejected", "stats")
    class ByTopicEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class RejectedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class StatsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    META_FIELD_NUMBER: _ClassVar[int]
    HARMFUL_FIELD_NUMBER: _ClassVar[int]
    TWINS_FIELD_NUMBER: _ClassVar[int]
    SHORTFALL_FIELD_NUMBER: _ClassVar[int]
    BY_TOPIC_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    meta: ResourceMeta
    harmful: int
    twins: int
    shortfall: int
    by_topic: _containers.ScalarMap[str, int]
    rejected: _containers.ScalarMap[str, int]
    stats: _containers.ScalarMap[str, float]
    def __init__(self, meta: _Optional[_Union[ResourceMeta, _Mapping]] = ..., harmful: _Optional[int] = ..., twins: _Optional[int] = ..., shortfall: _Optional[int] = ..., by_topic: _Optional[_Mapping[str, int]] = ..., rejected: _Optional[_Mapping[str, int]] = ..., stats: _Optional[_Mapping[str, float]] = ...) -> None: ...

class AnnotationSet(_message.Message):
    __slots__ = ("meta", "count", "annotator_minutes", "rejected")
    META_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    ANNOTATOR_MINUTES_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    meta: ResourceMeta
    count: int
    annotator_minutes: float
    rejected: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, meta: _Optional[_Union[ResourceMeta, _Mapping]] = ..., count: _Optional[int] = ..., annotator_minutes: _Optional[float] = ..., rejected: _Optional[_Iterable[str]] = ...) -> None: ...

class PairSet(_message.Message):
    __slots__ = ("meta", "pairs", "positive_only", "twins", "anchors", "annotations_used", "rounds", "shortfall", "rejected", "polarity", "stats")
    class RejectedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class PolarityEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class StatsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    META_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    POSITIVE_ONLY_FIELD_NUMBER: _ClassVar[int]
    TWINS_FIELD_NUMBER: _ClassVar[int]
    ANCHORS_FIELD_NUMBER: _ClassVar[int]
    ANNOTATIONS_USED_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    SHORTFALL_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    POLARITY_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    meta: ResourceMeta
    pairs: int
    positive_only: int
    twins: int
    anchors: int
    annotations_used: int
    rounds: int
    shortfall: int
    rejected: _containers.ScalarMap[str, int]
    polarity: _containers.ScalarMap[str, float]
    stats: _containers.ScalarMap[str, float]
    def __init__(self, meta: _Optional[_Union[ResourceMeta, _Mapping]] = ..., pairs: _Optional[int] = ..., positive_only: _Optional[int] = ..., twins: _Optional[int] = ..., anchors: _Optional[int] = ..., annotations_used: _Optional[int] = ..., rounds: _Optional[int] = ..., shortfall: _Optional[int] = ..., rejected: _Optional[_Mapping[str, int]] = ..., polarity: _Optional[_Mapping[str, float]] = ..., stats: _Optional[_Mapping[str, float]] = ...) -> None: ...

class Adapter(_message.Message):
    __slots__ = ("meta", "method", "tokens_mle", "tokens_ut", "tokens_anchor", "ut_weight", "final_mle_loss", "final_ut_loss", "retain_kl", "steps", "train_seconds", "weights_sha256", "files", "guards")
    class GuardsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    META_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    TOKENS_MLE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_UT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_ANCHOR_FIELD_NUMBER: _ClassVar[int]
    UT_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    FINAL_MLE_LOSS_FIELD_NUMBER: _ClassVar[int]
    FINAL_UT_LOSS_FIELD_NUMBER: _ClassVar[int]
    RETAIN_KL_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    TRAIN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_SHA256_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    GUARDS_FIELD_NUMBER: _ClassVar[int]
    meta: ResourceMeta
    method: Method
    tokens_mle: int
    tokens_ut: int
    tokens_anchor: int
    ut_weight: float
    final_mle_loss: float
    final_ut_loss: float
    retain_kl: float
    steps: int
    train_seconds: float
    weights_sha256: str
    files: _containers.RepeatedCompositeFieldContainer[FileInfo]
    guards: _containers.ScalarMap[str, str]
    def __init__(self, meta: _Optional[_Union[ResourceMeta, _Mapping]] = ..., method: _Optional[_Union[Method, str]] = ..., tokens_mle: _Optional[int] = ..., tokens_ut: _Optional[int] = ..., tokens_anchor: _Optional[int] = ..., ut_weight: _Optional[float] = ..., final_mle_loss: _Optional[float] = ..., final_ut_loss: _Optional[float] = ..., retain_kl: _Optional[float] = ..., steps: _Optional[int] = ..., train_seconds: _Optional[float] = ..., weights_sha256: _Optional[str] = ..., files: _Optional[_Iterable[_Union[FileInfo, _Mapping]]] = ..., guards: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Rate(_message.Message):
    __slots__ = ("value", "low", "high", "n")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    value: float
    low: float
    high: float
    n: int
    def __init__(self, value: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ..., n: _Optional[int] = ...) -> None: ...

class Evaluation(_message.Message):
    __slots__ = ("meta", "verdict", "reasons", "baseline", "aligned", "p_values", "measures", "not_run", "files", "baseline_corrected", "aligned_corrected", "gate", "gate_limits")
    class BaselineEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Rate
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Rate, _Mapping]] = ...) -> None: ...
    class AlignedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Rate
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Rate, _Mapping]] = ...) -> None: ...
    class PValuesEntry(_message.Message):
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
    class BaselineCorrectedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Rate
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Rate, _Mapping]] = ...) -> None: ...
    class AlignedCorrectedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Rate
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Rate, _Mapping]] = ...) -> None: ...
    class GateLimitsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    META_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    BASELINE_FIELD_NUMBER: _ClassVar[int]
    ALIGNED_FIELD_NUMBER: _ClassVar[int]
    P_VALUES_FIELD_NUMBER: _ClassVar[int]
    MEASURES_FIELD_NUMBER: _ClassVar[int]
    NOT_RUN_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    BASELINE_CORRECTED_FIELD_NUMBER: _ClassVar[int]
    ALIGNED_CORRECTED_FIELD_NUMBER: _ClassVar[int]
    GATE_FIELD_NUMBER: _ClassVar[int]
    GATE_LIMITS_FIELD_NUMBER: _ClassVar[int]
    meta: ResourceMeta
    verdict: Verdict
    reasons: _containers.RepeatedScalarFieldContainer[str]
    baseline: _containers.MessageMap[str, Rate]
    aligned: _containers.MessageMap[str, Rate]
    p_values: _containers.ScalarMap[str, float]
    measures: _containers.ScalarMap[str, float]
    not_run: _containers.RepeatedScalarFieldContainer[str]
    files: _containers.RepeatedCompositeFieldContainer[FileInfo]
    baseline_corrected: _containers.MessageMap[str, Rate]
    aligned_corrected: _containers.MessageMap[str, Rate]
    gate: str
    gate_limits: _containers.ScalarMap[str, float]
    def __init__(self, meta: _Optional[_Union[ResourceMeta, _Mapping]] = ..., verdict: _Optional[_Union[Verdict, str]] = ..., reasons: _Optional[_Iterable[str]] = ..., baseline: _Optional[_Mapping[str, Rate]] = ..., aligned: _Optional[_Mapping[str, Rate]] = ..., p_values: _Optional[_Mapping[str, float]] = ..., measures: _Optional[_Mapping[str, float]] = ..., not_run: _Optional[_Iterable[str]] = ..., files: _Optional[_Iterable[_Union[FileInfo, _Mapping]]] = ..., baseline_corrected: _Optional[_Mapping[str, Rate]] = ..., aligned_corrected: _Optional[_Mapping[str, Rate]] = ..., gate: _Optional[str] = ..., gate_limits: _Optional[_Mapping[str, float]] = ...) -> None: ...

class FileInfo(_message.Message):
    __slots__ = ("part", "size", "sha256")
    PART_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    part: str
    size: int
    sha256: str
    def __init__(self, part: _Optional[str] = ..., size: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class Annotation(_message.Message):
    __slots__ = ("instruction", "good", "bad", "topic", "note")
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    GOOD_FIELD_NUMBER: _ClassVar[int]
    BAD_FIELD_NUMBER: _ClassVar[int]
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    instruction: str
    good: str
    bad: str
    topic: str
    note: str
    def __init__(self, instruction: _Optional[str] = ..., good: _Optional[str] = ..., bad: _Optional[str] = ..., topic: _Optional[str] = ..., note: _Optional[str] = ...) -> None: ...

class PolicySpec(_message.Message):
    __slots__ = ("title", "locale", "topics", "protected_words", "never_synthesize")
    TITLE_FIELD_NUMBER: _ClassVar[int]
    LOCALE_FIELD_NUMBER: _ClassVar[int]
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    PROTECTED_WORDS_FIELD_NUMBER: _ClassVar[int]
    NEVER_SYNTHESIZE_FIELD_NUMBER: _ClassVar[int]
    title: str
    locale: str
    topics: _containers.RepeatedCompositeFieldContainer[TopicSpec]
    protected_words: _containers.RepeatedScalarFieldContainer[str]
    never_synthesize: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, title: _Optional[str] = ..., locale: _Optional[str] = ..., topics: _Optional[_Iterable[_Union[TopicSpec, _Mapping]]] = ..., protected_words: _Optional[_Iterable[str]] = ..., never_synthesize: _Optional[_Iterable[str]] = ...) -> None: ...

class TopicSpec(_message.Message):
    __slots__ = ("domain", "title", "sides", "boundary", "examples", "twin_examples")
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    SIDES_FIELD_NUMBER: _ClassVar[int]
    BOUNDARY_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    TWIN_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    domain: str
    title: str
    sides: str
    boundary: str
    examples: _containers.RepeatedScalarFieldContainer[str]
    twin_examples: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, domain: _Optional[str] = ..., title: _Optional[str] = ..., sides: _Optional[str] = ..., boundary: _Optional[str] = ..., examples: _Optional[_Iterable[str]] = ..., twin_examples: _Optional[_Iterable[str]] = ...) -> None: ...
