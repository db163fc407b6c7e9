import datetime

from google.longrunning import operations_pb2 as _operations_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from ptalign_proto.v1 import resources_pb2 as _resources_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OperationState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OPERATION_STATE_UNSPECIFIED: _ClassVar[OperationState]
    OPERATION_STATE_VALIDATING: _ClassVar[OperationState]
    OPERATION_STATE_QUEUED: _ClassVar[OperationState]
    OPERATION_STATE_RUNNING: _ClassVar[OperationState]
    OPERATION_STATE_CANCELLING: _ClassVar[OperationState]
    OPERATION_STATE_SUCCEEDED: _ClassVar[OperationState]
    OPERATION_STATE_FAILED: _ClassVar[OperationState]
    OPERATION_STATE_CANCELLED: _ClassVar[OperationState]
OPERATION_STATE_UNSPECIFIED: OperationState
OPERATION_STATE_VALIDATING: OperationState
OPERATION_STATE_QUEUED: OperationState
OPERATION_STATE_RUNNING: OperationState
OPERATION_STATE_CANCELLING: OperationState
OPERATION_STATE_SUCCEEDED: OperationState
OPERATION_STATE_FAILED: OperationState
OPERATION_STATE_CANCELLED: OperationState

class GenerateInstructionsRequest(_message.Message):
    __slots__ = ("request_id", "dry_run", "model", "policy", "policy_spec", "count", "seeds", "excerpts", "locale", "twins", "topics", "parent", "seed")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    POLICY_SPEC_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SEEDS_FIELD_NUMBER: _ClassVar[int]
    EXCERPTS_FIELD_NUMBER: _ClassVar[int]
    LOCALE_FIELD_NUMBER: _ClassVar[int]
    TWINS_FIELD_NUMBER: _ClassVar[int]
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    dry_run: bool
    model: str
    policy: str
    policy_spec: _resources_pb2.PolicySpec
    count: int
    seeds: _containers.RepeatedScalarFieldContainer[str]
    excerpts: _containers.RepeatedScalarFieldContainer[str]
    locale: str
    twins: bool
    topics: _containers.RepeatedScalarFieldContainer[str]
    parent: str
    seed: int
    def __init__(self, request_id: _Optional[str] = ..., dry_run: bool = ..., model: _Optional[str] = ..., policy: _Optional[str] = ..., policy_spec: _Optional[_Union[_resources_pb2.PolicySpec, _Mapping]] = ..., count: _Optional[int] = ..., seeds: _Optional[_Iterable[str]] = ..., excerpts: _Optional[_Iterable[str]] = ..., locale: _Optional[str] = ..., twins: bool = ..., topics: _Optional[_Iterable[str]] = ..., parent: _Optional[str] = ..., seed: _Optional[int] = ...) -> None: ...

class SynthesizePairsRequest(_message.Message):
    __slots__ = ("request_id", "dry_run", "model", "instruction_set", "annotation_set", "annotations", "rounds", "min_polarity", "parent", "anchors", "seed")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_SET_FIELD_NUMBER: _ClassVar[int]
    ANNOTATION_SET_FIELD_NUMBER: _ClassVar[int]
    ANNOTATIONS_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    MIN_POLARITY_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    ANCHORS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    dry_run: bool
    model: str
    instruction_set: str
    annotation_set: str
    annotations: Annotations
    rounds: int
    min_polarity: float
    parent: str
    anchors: int
    seed: int
    def __init__(self, request_id: _Optional[str] = ..., dry_run: bool = ..., model: _Optional[str] = ..., instruction_set: _Optional[str] = ..., annotation_set: _Optional[str] = ..., annotations: _Optional[_Union[Annotations, _Mapping]] = ..., rounds: _Optional[int] = ..., min_polarity: _Optional[float] = ..., parent: _Optional[str] = ..., anchors: _Optional[int] = ..., seed: _Optional[int] = ...) -> None: ...

class Annotations(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[_resources_pb2.Annotation]
    def __init__(self, items: _Optional[_Iterable[_Union[_resources_pb2.Annotation, _Mapping]]] = ...) -> None: ...

class AlignRequest(_message.Message):
    __slots__ = ("request_id", "dry_run", "model", "pair_set", "parent_adapter", "method", "ut_weight", "token_weighting", "flagged_share", "protected_words", "lora", "budget", "guards", "seed", "resume_from", "ut_candidates")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PAIR_SET_FIELD_NUMBER: _ClassVar[int]
    PARENT_ADAPTER_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    UT_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_WEIGHTING_FIELD_NUMBER: _ClassVar[int]
    FLAGGED_SHARE_FIELD_NUMBER: _ClassVar[int]
    PROTECTED_WORDS_FIELD_NUMBER: _ClassVar[int]
    LORA_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    GUARDS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    RESUME_FROM_FIELD_NUMBER: _ClassVar[int]
    UT_CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    dry_run: bool
    model: str
    pair_set: str
    parent_adapter: str
    method: _resources_pb2.Method
    ut_weight: float
    token_weighting: str
    flagged_share: float
    protected_words: _containers.RepeatedScalarFieldContainer[str]
    lora: Lora
    budget: Budget
    guards: str
    seed: int
    resume_from: str
    ut_candidates: str
    def __init__(self, request_id: _Optional[str] = ..., dry_run: bool = ..., model: _Optional[str] = ..., pair_set: _Optional[str] = ..., parent_adapter: _Optional[str] = ..., method: _Optional[_Union[_resources_pb2.Method, str]] = ..., ut_weight: _Optional[float] = ..., token_weighting: _Optional[str] = ..., flagged_share: _Optional[float] = ..., protected_words: _Optional[_Iterable[str]] = ..., lora: _Optional[_Union[Lora, _Mapping]] = ..., budget: _Optional[_Union[Budget, _Mapping]] = ..., guards: _Optional[str] = ..., seed: _Optional[int] = ..., resume_from: _Optional[str] = ..., ut_candidates: _Optional[str] = ...) -> None: ...

class Lora(_message.Message):
    __slots__ = ("rank", "alpha", "target_modules", "dropout")
    RANK_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    TARGET_MODULES_FIELD_NUMBER: _ClassVar[int]
    DROPOUT_FIELD_NUMBER: _ClassVar[int]
    rank: int
    alpha: int
    target_modules: _containers.RepeatedScalarFieldContainer[str]
    dropout: float
    def __init__(self, rank: _Optional[int] = ..., alpha: _Optional[int] = ..., target_modules: _Optional[_Iterable[str]] = ..., dropout: _Optional[float] = ...) -> None: ...

class Budget(_message.Message):
    __slots__ = ("steps", "pairs_per_step", "anchors_per_step", "learning_rate", "max_benign_kl", "max_twin_refusals", "without_anchors", "twin_weight")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    PAIRS_PER_STEP_FIELD_NUMBER: _ClassVar[int]
    ANCHORS_PER_STEP_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    MAX_BENIGN_KL_FIELD_NUMBER: _ClassVar[int]
    MAX_TWIN_REFUSALS_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_ANCHORS_FIELD_NUMBER: _ClassVar[int]
    TWIN_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    steps: int
    pairs_per_step: int
    anchors_per_step: int
    learning_rate: float
    max_benign_kl: float
    max_twin_refusals: float
    without_anchors: bool
    twin_weight: float
    def __init__(self, steps: _Optional[int] = ..., pairs_per_step: _Optional[int] = ..., anchors_per_step: _Optional[int] = ..., learning_rate: _Optional[float] = ..., max_benign_kl: _Optional[float] = ..., max_twin_refusals: _Optional[float] = ..., without_anchors: bool = ..., twin_weight: _Optional[float] = ...) -> None: ...

class EvaluateRequest(_message.Message):
    __slots__ = ("request_id", "dry_run", "target", "baseline", "suites", "judges", "gate", "gate_spec", "samples", "pair_set", "also", "seed", "held_out")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    BASELINE_FIELD_NUMBER: _ClassVar[int]
    SUITES_FIELD_NUMBER: _ClassVar[int]
    JUDGES_FIELD_NUMBER: _ClassVar[int]
    GATE_FIELD_NUMBER: _ClassVar[int]
    GATE_SPEC_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    PAIR_SET_FIELD_NUMBER: _ClassVar[int]
    ALSO_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    dry_run: bool
    target: Target
    baseline: Target
    suites: _containers.RepeatedScalarFieldContainer[str]
    judges: _containers.RepeatedScalarFieldContainer[str]
    gate: str
    gate_spec: GateSpec
    samples: int
    pair_set: str
    also: _containers.RepeatedCompositeFieldContainer[Target]
    seed: int
    held_out: str
    def __init__(self, request_id: _Optional[str] = ..., dry_run: bool = ..., target: _Optional[_Union[Target, _Mapping]] = ..., baseline: _Optional[_Union[Target, _Mapping]] = ..., suites: _Optional[_Iterable[str]] = ..., judges: _Optional[_Iterable[str]] = ..., gate: _Optional[str] = ..., gate_spec: _Optional[_Union[GateSpec, _Mapping]] = ..., samples: _Optional[int] = ..., pair_set: _Optional[str] = ..., also: _Optional[_Iterable[_Union[Target, _Mapping]]] = ..., seed: _Optional[int] = ..., held_out: _Optional[str] = ...) -> None: ...

class Target(_message.Message):
    __slots__ = ("model", "adapter", "label")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    adapter: str
    label: str
    def __init__(self, model: _Optional[str] = ..., adapter: _Optional[str] = ..., label: _Optional[str] = ...) -> None: ...

class GateSpec(_message.Message):
    __slots__ = ("min_harm_reduction", "max_over_refusal_increase", "max_usefulness_loss", "max_benign_kl", "max_unscored", "min_samples", "max_strong_harm_increase", "max_ordinary_refusal_increase")
    MIN_HARM_REDUCTION_FIELD_NUMBER: _ClassVar[int]
    MAX_OVER_REFUSAL_INCREASE_FIELD_NUMBER: _ClassVar[int]
    MAX_USEFULNESS_LOSS_FIELD_NUMBER: _ClassVar[int]
    MAX_BENIGN_KL_FIELD_NUMBER: _ClassVar[int]
    MAX_UNSCORED_FIELD_NUMBER: _ClassVar[int]
    MIN_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    MAX_STRONG_HARM_INCREASE_FIELD_NUMBER: _ClassVar[int]
    MAX_ORDINARY_REFUSAL_INCREASE_FIELD_NUMBER: _ClassVar[int]
    min_harm_reduction: float
    max_over_refusal_increase: float
    max_usefulness_loss: float
    max_benign_kl: float
    max_unscored: float
    min_samples: int
    max_strong_harm_increase: float
    max_ordinary_refusal_increase: float
    def __init__(self, min_harm_reduction: _Optional[float] = ..., max_over_refusal_increase: _Optional[float] = ..., max_usefulness_loss: _Optional[float] = ..., max_benign_kl: _Optional[float] = ..., max_unscored: _Optional[float] = ..., min_samples: _Optional[int] = ..., max_strong_harm_increase: _Optional[float] = ..., max_ordinary_refusal_increase: _Optional[float] = ...) -> None: ...

class OperationProgress(_message.Message):
    __slots__ = ("operation", "kind", "state", "phase", "done", "total", "attempt", "eta_seconds", "counts", "create_time", "start_time", "update_time", "end_time", "estimate", "resource", "submitted_by", "cancelled_by", "cancel_time")
    class CountsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ETA_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_BY_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_BY_FIELD_NUMBER: _ClassVar[int]
    CANCEL_TIME_FIELD_NUMBER: _ClassVar[int]
    operation: str
    kind: str
    state: OperationState
    phase: str
    done: int
    total: int
    attempt: int
    eta_seconds: float
    counts: _containers.ScalarMap[str, int]
    create_time: _timestamp_pb2.Timestamp
    start_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    estimate: Estimate
    resource: str
    submitted_by: str
    cancelled_by: str
    cancel_time: _timestamp_pb2.Timestamp
    def __init__(self, operation: _Optional[str] = ..., kind: _Optional[str] = ..., state: _Optional[_Union[OperationState, str]] = ..., phase: _Optional[str] = ..., done: _Optional[int] = ..., total: _Optional[int] = ..., attempt: _Optional[int] = ..., eta_seconds: _Optional[float] = ..., counts: _Optional[_Mapping[str, int]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., estimate: _Optional[_Union[Estimate, _Mapping]] = ..., resource: _Optional[str] = ..., submitted_by: _Optional[str] = ..., cancelled_by: _Optional[str] = ..., cancel_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Estimate(_message.Message):
    __slots__ = ("seconds", "memory_bytes", "disk_bytes", "basis")
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    BASIS_FIELD_NUMBER: _ClassVar[int]
    seconds: float
    memory_bytes: int
    disk_bytes: int
    basis: str
    def __init__(self, seconds: _Optional[float] = ..., memory_bytes: _Optional[int] = ..., disk_bytes: _Optional[int] = ..., basis: _Optional[str] = ...) -> None: ...

class GenerateInstructionsMetadata(_message.Message):
    __slots__ = ("progress",)
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    progress: OperationProgress
    def __init__(self, progress: _Optional[_Union[OperationProgress, _Mapping]] = ...) -> None: ...

class SynthesizePairsMetadata(_message.Message):
    __slots__ = ("progress", "round")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    progress: OperationProgress
    round: int
    def __init__(self, progress: _Optional[_Union[OperationProgress, _Mapping]] = ..., round: _Optional[int] = ...) -> None: ...

class AlignMetadata(_message.Message):
    __slots__ = ("progress", "tokens_mle", "tokens_ut", "loss_mle", "loss_ut", "loss_anchor", "ut_weight", "retain_kl", "step_seconds", "loss_twin", "twin_weight")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_MLE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_UT_FIELD_NUMBER: _ClassVar[int]
    LOSS_MLE_FIELD_NUMBER: _ClassVar[int]
    LOSS_UT_FIELD_NUMBER: _ClassVar[int]
    LOSS_ANCHOR_FIELD_NUMBER: _ClassVar[int]
    UT_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    RETAIN_KL_FIELD_NUMBER: _ClassVar[int]
    STEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LOSS_TWIN_FIELD_NUMBER: _ClassVar[int]
    TWIN_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    progress: OperationProgress
    tokens_mle: int
    tokens_ut: int
    loss_mle: float
    loss_ut: float
    loss_anchor: float
    ut_weight: float
    retain_kl: float
    step_seconds: float
    loss_twin: float
    twin_weight: float
    def __init__(self, progress: _Optional[_Union[OperationProgress, _Mapping]] = ..., tokens_mle: _Optional[int] = ..., tokens_ut: _Optional[int] = ..., loss_mle: _Optional[float] = ..., loss_ut: _Optional[float] = ..., loss_anchor: _Optional[float] = ..., ut_weight: _Optional[float] = ..., retain_kl: _Optional[float] = ..., step_seconds: _Optional[float] = ..., loss_twin: _Optional[float] = ..., twin_weight: _Optional[float] = ...) -> None: ...

class EvaluateMetadata(_message.Message):
    __slots__ = ("progress", "suite")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    SUITE_FIELD_NUMBER: _ClassVar[int]
    progress: OperationProgress
    suite: str
    def __init__(self, progress: _Optional[_Union[OperationProgress, _Mapping]] = ..., suite: _Optional[str] = ...) -> None: ...

class WatchOperationRequest(_message.Message):
    __slots__ = ("name", "after_sequence")
    NAME_FIELD_NUMBER: _ClassVar[int]
    AFTER_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    after_sequence: int
    def __init__(self, name: _Optional[str] = ..., after_sequence: _Optional[int] = ...) -> None: ...

class OperationEvent(_message.Message):
    __slots__ = ("sequence", "time", "operation")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    time: _timestamp_pb2.Timestamp
    operation: _operations_pb2.Operation
    def __init__(self, sequence: _Optional[int] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., operation: _Optional[_Union[_operations_pb2.Operation, _Mapping]] = ...) -> None: ...

class ChatRequest(_message.Message):
    __slots__ = ("model", "adapter", "messages", "max_tokens", "compare")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPARE_FIELD_NUMBER: _ClassVar[int]
    model: str
    adapter: str
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    max_tokens: int
    compare: bool
    def __init__(self, model: _Optional[str] = ..., adapter: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ..., max_tokens: _Optional[int] = ..., compare: bool = ...) -> None: ...

class ChatMessage(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class ChatReply(_message.Message):
    __slots__ = ("label", "text", "done")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    label: str
    text: str
    done: bool
    def __init__(self, label: _Optional[str] = ..., text: _Optional[str] = ..., done: bool = ...) -> None: ...
