"""What callers send and get: frozen dataclasses, no protobuf.

Each class mirrors one message of ``ptalign.v1`` field by field; a resource carries the fields of
its ``ResourceMeta`` itself. `wire.py` converts, and a test fails when the two drift apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Literal

Method = Literal["pt_align", "ut_uniform", "mle", "dpo", "npo"]
Scorer = Literal["blend", "contrast", "log_odds", "judge", "uniform"]
Candidates = Literal["set", "written"]
Verdict = Literal["", "pass", "fail", "inconclusive"]
View = Literal["safe", "full"]


class State(StrEnum):
    """Where an operation stands."""

    VALIDATING = "validating"
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNSPECIFIED = ""

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self in (State.SUCCEEDED, State.FAILED, State.CANCELLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """What everything in the library carries."""

    name: str
    """E.g. ``pairSets/ID``."""
    digest: str = ""
    """``sha256:...`` over the sealed manifest."""
    tenant: str = ""
    create_time: datetime | None = None
    model: str = ""
    model_digest: str = ""
    policy: str = ""
    policy_digest: str = ""
    parents: tuple[str, ...] = ()
    """``NAME@DIGEST`` of what it was made from; a purged parent keeps its digest."""
    config_digest: str = ""
    template_digest: str = ""
    judges: tuple[str, ...] = ()
    partial: bool = False
    """Sealed by a cancel or a failure: usable as parent, not by Align."""
    purged: bool = False
    """The record text, or an adapter's files, are destroyed; counts and digests stay."""
    operation: str = ""
    made_by: str = ""
    """Name of the token that submitted its operation, or that imported, merged or marked it; empty
    where an earlier version made it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstructionSet(Resource):
    """What GenerateInstructions makes."""

    harmful: int = 0
    twins: int = 0
    shortfall: int = 0
    """Asked for and not found within the bound of over-generation."""
    by_topic: Mapping[str, int] = field(default_factory=dict)
    rejected: Mapping[str, int] = field(default_factory=dict)
    """Drafts by reason."""
    stats: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotationSet(Resource):
    """Fewer than 50 human marks."""

    count: int = 0
    annotator_minutes: float = 0.0
    rejected: tuple[str, ...] = ()
    """Ids of the parent's pairs that an annotator called wrong; `count` counts them too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSet(Resource):
    """What SynthesizePairs makes."""

    pairs: int = 0
    """With both a positive and a toxic answer."""
    positive_only: int = 0
    twins: int = 0
    anchors: int = 0
    annotations_used: int = 0
    rounds: int = 0
    shortfall: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    polarity: Mapping[str, float] = field(default_factory=dict)
    """Median per judge id: judge(toxic) - judge(positive), in -1..1."""
    stats: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One file of a resource."""

    part: str
    """The name `Client.download` takes."""
    size: int
    """Bytes."""
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter(Resource):
    """What Align makes: a PEFT folder."""

    method: str = ""
    tokens_mle: int = 0
    tokens_ut: int = 0
    """Toxic tokens with a weight above zero."""
    tokens_anchor: int = 0
    """Held to the bare model: of anchors and kept twins."""
    ut_weight: float = 0.0
    """lambda, last value of its trajectory."""
    final_mle_loss: float = 0.0
    final_ut_loss: float = 0.0
    retain_kl: float = 0.0
    """Nats per token on held-out anchors."""
    steps: int = 0
    train_seconds: float = 0.0
    weights_sha256: str = ""
    files: tuple[FileInfo, ...] = ()
    guards: Mapping[str, str] = field(default_factory=dict)
    """Guard to ``ok``, or what was exceeded."""


@dataclass(frozen=True, slots=True)
class Rate:
    """A share in 0..1 with its 95 % interval and the number of scored replies."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation(Resource):
    """What Evaluate makes."""

    verdict: Verdict = ""
    reasons: tuple[str, ...] = ()
    """Why the verdict is what it is."""
    baseline: Mapping[str, Rate] = field(default_factory=dict)
    """``harm_rate``, ``harm_plain``, ``harm_strong``, ``over_refusal_rate``, ..."""
    aligned: Mapping[str, Rate] = field(default_factory=dict)
    baseline_corrected: Mapping[str, Rate] = field(default_factory=dict)
    """The same without the judges' known errors, where those can be told: the verdict goes by the
    rates as measured."""
    aligned_corrected: Mapping[str, Rate] = field(default_factory=dict)
    p_values: Mapping[str, float] = field(default_factory=dict)
    """McNemar, on the same prompts."""
    measures: Mapping[str, float] = field(default_factory=dict)
    """``benign_kl``, ``benign_nll``, ``harm_word_ratio``, ``selectivity``, ..."""
    not_run: tuple[str, ...] = ()
    """Suites that were left out or lack their data, each with why: never a pass."""
    files: tuple[FileInfo, ...] = ()
    gate: str = ""
    """``default`` (the operator's, also where the call named none), another name of the catalogue,
    ``inline`` (written in the call), or empty where an earlier version made it."""
    gate_limits: Mapping[str, float] = field(default_factory=dict)
    """As in `GateSpec`; what is not here was not checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """One human mark: what a good and a bad answer to this instruction look like."""

    instruction: str
    good: str
    bad: str = ""
    topic: str = ""
    note: str = ""
    """Your own, of 8000 characters at most: kept with the set, and shown by no call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSpec:
    """One topic of an inline policy."""

    domain: str
    title: str
    sides: str = ""
    """``both`` (tone domains) or ``positive_only`` (unless set)."""
    boundary: str = ""
    """What is and what is not harmful here; up to 500 characters."""
    examples: tuple[str, ...] = ()
    """Harmful requests that show the style; never dangerous knowledge. Up to 20 of 500
    characters."""
    twin_examples: tuple[str, ...] = ()
    """Legitimate requests that look like `examples`, in their order; empty where one has none. A
    topic without any gets no benign twins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySpec:
    """A policy written in the call. It never relaxes an operator's list."""

    title: str = ""
    """For whoever reads the call; the service has no use for it."""
    topics: tuple[TopicSpec, ...]
    locale: str = ""
    """BCP 47; ``en`` unless set. Give each topic examples in it: in a language without a shipped
    policy (English and Japanese have one) they alone show how to ask, and answers that decline
    begin in English."""
    protected_words: tuple[str, ...] = ()
    never_synthesize: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """Shape of the adapter; what is left out is the server's default."""

    rank: int = 0
    alpha: int = 0
    target_modules: tuple[str, ...] = ()
    dropout: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much an Align may train and change; what is left out is the server's default."""

    steps: int = 0
    """0: as many as read each pair four times, 28 to 200."""
    pairs_per_step: int = 0
    anchors_per_step: int = 0
    learning_rate: float | None = None
    max_benign_kl: float | None = None
    """Nats per token."""
    max_twin_refusals: float | None = None
    """Share of held-out twins, in 0..1."""
    without_anchors: bool = False
    """Takes a pair set without anchors, too. Nothing then keeps the model's ordinary answers."""
    twin_weight: float | None = None
    """Weight of the twins, up to 8: more declines less, of legitimate requests and of harmful ones
    with them. Unless set 2, or 1 where the model refuses its twins and is taught to answer them;
    while too many are refused the run doubles it, up to 8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is evaluated: a model, bare or with an adapter. A call has targets of one model."""

    model: str
    adapter: str = ""
    label: str = ""
    """What the report calls it, up to 120 characters; the server chooses unless set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSpec:
    """Limits of a release gate.

    A limit that is None is not checked, except `min_samples`, which is then 50. Changes and shares
    are in 0..1: ten points are 0.1.
    """

    min_harm_reduction: float | None = None
    max_over_refusal_increase: float | None = None
    max_usefulness_loss: float | None = None
    max_benign_kl: float | None = None
    max_unscored: float | None = None
    min_samples: int | None = None
    max_strong_harm_increase: float | None = None
    """Under the strong attack, which also forces the first words of the reply."""
    max_ordinary_refusal_increase: float | None = None
    """Refusals of everyday requests, and of verifiable instructions where they were asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a dry run says the work would cost."""

    seconds: float
    memory_bytes: int
    disk_bytes: int
    basis: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where an operation stands."""

    operation: str
    kind: str
    """GenerateInstructions, SynthesizePairs, Align or Evaluate."""
    state: State
    phase: str = ""
    done: int = 0
    total: int = 0
    """Units expected in this phase; 0 when unknown."""
    attempt: int = 0
    eta_seconds: float | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    """``accepted``, ``rejected.REASON``, ``unscored``, ``unscored.JUDGE``, ..."""
    values: Mapping[str, float] = field(default_factory=dict)
    """Of Align: tokens_mle, tokens_ut, loss_mle, loss_ut, loss_anchor, loss_twin, ut_weight,
    twin_weight, retain_kl, step_seconds. Of SynthesizePairs: round."""
    suite: str = ""
    """Of Evaluate: the suite that runs."""
    create_time: datetime | None = None
    start_time: datetime | None = None
    update_time: datetime | None = None
    end_time: datetime | None = None
    estimate: Estimate | None = None
    """Of dry runs only."""
    resource: str = ""
    """What it made, also when partial."""
    submitted_by: str = ""
    """Name of the caller's token; ``local`` on a loopback without one."""
    cancelled_by: str = ""
    """Whoever asked first; empty: nobody did, or an earlier version was told."""
    cancel_time: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event of an operation."""

    sequence: int
    time: datetime | None
    progress: Progress
    done: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record of a set, or a word of an adapter. What is filled depends on `kind`."""

    id: str = ""
    kind: str = ""
    """instruction, twin, pair, anchor or annotation; of an adapter: suppressed or
    collateral."""
    topic: str = ""
    instruction: str = ""
    positive: str = ""
    toxic: str = ""
    twin_of: str = ""
    source: str = ""
    round: int = 0
    polarity: Mapping[str, float] = field(default_factory=dict)
    masked: tuple[str, ...] = ()
    """Fields shown as length and hash, because the view is `safe`."""
    domain: str = ""
    locale: str = ""
    measures: Mapping[str, float] = field(default_factory=dict)
    """Of a suppressed word, whose text is in `toxic`: ``count``, ``p_before``, ``p_after`` of its
    first token in bad answers, ``neutral_before``, ``neutral_after`` in ordinary ones where that
    token is all of it. Of a collateral one, an ordinary word that lost too: ``change`` of its
    log-probability there, nats."""
    held_out: bool = False
    """Of a pair, twin or anchor: never trained on, measured on instead."""
    truncated: bool = False
    """Of an anchor: its answer was cut, and teaches no end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What an import or a merge made."""

    name: str
    accepted: int
    rejected: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """The adapter to serve, and the evaluation that it passed."""

    adapter: Adapter
    evaluation: str


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """One name the caller may use."""

    name: str
    digest: str
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """Names the caller may use."""

    models: tuple[CatalogueEntry, ...] = ()
    policies: tuple[CatalogueEntry, ...] = ()
    suites: tuple[CatalogueEntry, ...] = ()
    judges: tuple[CatalogueEntry, ...] = ()
    gates: tuple[CatalogueEntry, ...] = ()
    profiles: tuple[CatalogueEntry, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One turn of a chat."""

    role: Literal["user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPiece:
    """The next piece of a reply."""

    label: str
    """``base``, or the adapter's name."""
    text: str
    done: bool
