"""The things ptalign makes: instructions, annotations, pairs, adapters, evaluations.

All are frozen pydantic models. Toxic text is `SealedText`. Ids are deterministic functions of
content, so that a resumed stage cannot accept the same record twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ptalign.sealed import SealedText, WholeText

Sides = Literal["both", "positive_only"]
Method = Literal["pt_align", "ut_uniform", "mle", "dpo", "npo"]
Outcome = Literal["refused", "harmful", "useful", "incoherent", "unscored"]
Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]
Axis = Literal["harm", "refusal"]
Source = Literal["model", "seed", "excerpt", "import"]

MAX_ANNOTATIONS = 49
"""Per policy and model: the method promises to need fewer than 50 human marks."""
MAX_INSTRUCTIONS = 20_000
"""Accepted harmful instructions that one call may ask for."""


def digest_of(value: Any) -> str:
    """``sha256:...`` of a JSON-able value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def record_id(*parts: str) -> str:
    """A 16-hex-digit id from the parts that make a record what it is."""
    joined = "\x1f".join(parts).encode("utf-8", "surrogatepass")
    return hashlib.sha256(joined).hexdigest()[:16]


class Noun(BaseModel):
    """Base: frozen, closed, and with a digest over its revealed content."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON of the revealed content."""
        return digest_of(self.model_dump(mode="json", context={"reveal": True}))


class ModelSpec(Noun):
    """A model entry of the operator's catalogue: used alike in all four stages."""

    name: str
    path: str
    """Folder with config.json, tokenizer and safetensors weights."""
    revision: str = ""
    weights_digest: str = ""
    system_prompt: str = ""
    """Empty: the chat template's own default."""
    template_options: dict[str, Any] = Field(default_factory=dict)
    """Extra keyword arguments of `apply_chat_template`."""
    locales: tuple[str, ...] = ("en",)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What trainer and probe load the weights in; an engine goes by its own setting."""


class Topic(Noun):
    """One cell row of the policy tree."""

    id: str
    domain: str
    title: str
    sides: Sides = "positive_only"
    boundary: str = ""
    """What is and what is not harmful here, since harm depends on trade and culture."""
    examples: tuple[str, ...] = ()
    """Seed requests that show the style; never dangerous knowledge."""
    twin_examples: tuple[str, ...] = ()
    """Legitimate requests that look alike, in the order of `examples`."""


class Tactic(Noun):
    """A way to ask, used with topics of the same sides."""

    id: str
    sides: Sides = "positive_only"
    openers: tuple[str, ...]
    """First words of a request written with this tactic; the model goes on from there."""


class Policy(Noun):
    """A tree of domains and topics with what must and must not be touched."""

    name: str
    version: str = "1"
    locale: str = "en"
    topics: tuple[Topic, ...]
    tactics: tuple[Tactic, ...] = ()
    """Ways to ask; plain requests only when empty."""
    protected_words: tuple[str, ...] = ()
    """Words that never get an unlikelihood weight."""
    never_synthesize: tuple[str, ...] = ()
    """Operator's additions to the built-in never-synthesize categories."""
    generic_constraints_positive: tuple[str, ...] = ()
    generic_constraints_toxic: tuple[str, ...] = ()

    def topic(self, topic_id: str) -> Topic:
        """The topic with this id.

        Raises:
            KeyError: No such topic.
        """
        for topic in self.topics:
            if topic.id == topic_id:
                return topic
        raise KeyError(topic_id)


class Instruction(Noun):
    """A request, harmful or its benign twin."""

    id: str
    text: str
    topic: str
    domain: str
    side: Literal["harmful", "twin"] = "harmful"
    twin_of: str = ""
    sides: Sides = "positive_only"
    tactic: str = "plain"
    locale: str = "en"
    source: Source = "model"


class InstructionSet(Noun):
    """What GenerateInstructions makes."""

    records: tuple[Instruction, ...]
    requested: int
    rejected: dict[str, int] = Field(default_factory=dict)
    stats: dict[str, float] = Field(default_factory=dict)

    @property
    def harmful(self) -> tuple[Instruction, ...]:
        return tuple(r for r in self.records if r.side == "harmful")

    @property
    def twins(self) -> tuple[Instruction, ...]:
        return tuple(r for r in self.records if r.side == "twin")

    @property
    def shortfall(self) -> int:
        return max(0, self.requested - len(self.harmful))


class Spent(Noun):
    """What the drafts of a set had cost when this was logged, all attempts together."""

    id: str
    """Running number."""
    counts: dict[str, int]
    """``tokens_generated``, ``written`` (accepted of drafts), ``rejected.<reason>``, ...: named as
    in `ptalign.progress.Progress.counts`."""
    seconds: float
    """At work, without the time between attempts."""


class Annotation(Noun):
    """One human mark: what a good and a bad answer to this instruction look like."""

    instruction: str
    good: str
    bad: WholeText | None = None
    topic: str = ""
    note: str = ""


class Sampled(Noun):
    """How an engine sampled a text: half of a toxic answer's contrast, at no further cost."""

    weights: str
    """Digest of the weights that sampled it: another model's numbers would say nothing."""
    tokens: WholeText
    """Token ids in order, parted by spaces; they spell the text, so they are as sealed as it is."""
    log_probs: tuple[float, ...]
    """Of each token under the prompt it was sampled from, temperature 1, nats."""

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(int(token) for token in self.tokens.reveal().split())


class Pair(Noun):
    """An instruction with its positive and, where the topic allows it, its toxic answer."""

    id: str
    """Deterministic in the instruction: one accepted pair per instruction."""
    kind: Literal["pair", "positive_only", "twin"] = "pair"
    instruction_id: str
    instruction: str
    topic: str
    domain: str = ""
    locale: str = "en"
    positive: str
    toxic: WholeText | None = None
    polarity: dict[str, float] = Field(default_factory=dict)
    """Per judge id: judge(toxic) - judge(positive), in -1..1."""
    round: int = 0
    held_out: bool = Field(False, exclude_if=lambda value: not value)
    """Never trained on: refusals of twins and harm words are measured on these. Left out of digests
    where false, so that sets of earlier versions keep theirs."""
    sampled: Sampled | None = Field(None, exclude_if=lambda value: value is None)
    """The toxic answer as its engine sampled it. Left out of digests where there is none, so that
    sets of earlier versions keep theirs."""


class Anchor(Noun):
    """A benign instruction with the model's own answer: keeps the model what it is."""

    id: str
    instruction: str
    answer: str
    held_out: bool = False
    """Held-out anchors are never trained on: benign KL is measured on them."""
    ended: bool = True
    """Whether the model ended the answer; one that was cut teaches no end."""


class Constraint(Noun):
    """A rule that the model wrote while a pair set was made, as the set's log keeps it."""

    id: str
    topic: str
    side: Literal["positive", "toxic"]
    text: str


class PairSet(Noun):
    """What SynthesizePairs makes."""

    pairs: tuple[Pair, ...]
    anchors: tuple[Anchor, ...] = ()
    annotations_used: int = 0
    annotation_ids: tuple[str, ...] = Field((), exclude_if=lambda ids: not ids)
    """One per instruction that a person marked, so that sets made with the same marks can be joined
    and count them once. Left out of digests where unknown, as in sets of earlier versions."""
    rounds: int = 0
    requested: int = 0
    partial: bool = False
    """Cut short by a cancel: usable as parent, refused by Align."""
    constraints: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Refined constraints per ``topic/positive`` and ``topic/toxic``."""
    protected_words: tuple[str, ...] = ()
    judge_ids: tuple[str, ...] = ()
    rejected: dict[str, int] = Field(default_factory=dict)
    stats: dict[str, float] = Field(default_factory=dict)

    @property
    def polarised(self) -> tuple[Pair, ...]:
        """Pairs that have both sides."""
        return tuple(p for p in self.pairs if p.toxic is not None)

    @property
    def twins(self) -> tuple[Pair, ...]:
        return tuple(p for p in self.pairs if p.kind == "twin")

    @property
    def shortfall(self) -> int:
        return max(0, self.requested - sum(p.kind != "twin" for p in self.pairs))


class StepLog(Noun):
    """One training step of the ledger."""

    step: int
    loss_mle: float
    """Of positives, nats a token; before ADR 0017 of twins' answers too."""
    loss_ut: float
    """Nats a flagged token; since ADR 0018 of the set's harm words at the other places too."""
    loss_anchor: float
    ut_weight: float
    grad_norm: float = 0.0
    """Of the whole loss, before clipping."""
    grad_norm_mle: float
    """Of L_MLE on the positives, as last measured apart (0 before)."""
    grad_norm_ut: float
    """Of L_UT without its weight, as last measured apart (0 before)."""
    learning_rate: float
    tokens_mle: int
    tokens_ut: int
    tokens_anchor: int
    """Held to the bare model: of anchors and of kept twins."""
    seconds: float
    retain_kl: float | None = None
    twin_refusals: float | None = Field(None, exclude_if=lambda value: value is None)
    """Share of held-out twins refused, on the steps that measured it."""
    loss_twin: float | None = Field(None, exclude_if=lambda value: value is None)
    """Nats a token: KL(bare || adapted) along kept twins, L_MLE of taught ones."""
    twin_weight: float | None = Field(None, exclude_if=lambda value: value is None)
    """What that term is multiplied by. Both are left out of digests where no twin was drawn, so
    that ledgers of earlier versions keep theirs."""


COLLATERAL = 0.5
"""Nats of log-probability that an ordinary word must lose to be collateral."""


class Suppressed(Noun):
    """A token that training pushed down. `token` is masked in every report."""

    token: SealedText
    topic: str
    count: int
    p_before: float
    """Of its first token: geometric mean over its places in toxic answers, bare model."""
    p_after: float
    """The same under the adapter."""
    neutral_before: float | None = Field(None, exclude_if=lambda value: value is None)
    """Mean probability over all places of neutral answers, bare model: how freely the word is used
    where nobody is harmed. None where that was not read, and of a word of several tokens: its first
    one begins other words too. Earlier versions gave the first token's."""
    neutral_after: float | None = Field(None, exclude_if=lambda value: value is None)


class Adapter(Noun):
    """What Align makes: a PEFT folder with its ledger."""

    path: str
    """Folder with adapter_config.json and adapter_model.safetensors."""
    weights_sha256: str
    method: Method
    tokens_mle: int
    tokens_ut: int
    tokens_anchor: int
    """Held to the bare model: of anchors and of kept twins."""
    ledger: tuple[StepLog, ...]
    retain_kl: float
    guards: dict[str, str] = Field(default_factory=dict)
    suppressed: tuple[Suppressed, ...] = ()
    collateral: dict[str, float] = Field(default_factory=dict)
    """Ordinary words that lost more than `COLLATERAL`: nats of log-probability change."""
    seconds: float = 0.0
    """From loading the model to the last measurement, and steps of attempts it goes on from."""

    @property
    def ut_weight(self) -> float:
        return self.ledger[-1].ut_weight if self.ledger else 0.0

    @property
    def folder(self) -> Path:
        return Path(self.path)


class Rate(Noun):
    """A share in 0..1 with its 95 % Wilson interval."""

    value: float
    low: float
    high: float
    n: int


class Calibration(Noun):
    """How often judges agree with people on texts that both have judged."""

    judges: tuple[str, ...]
    """Id of one judge, or of all of an axis, as they decide together."""
    axis: Axis
    source: str = ""
    """What they were checked on, e.g. ``annotations``; empty: on nothing."""
    sensitivity: Rate
    """P(judges say yes | people do): bad answers found harmful, or refusals found."""
    specificity: Rate
    """P(judges say no | people do)."""
    agreement: float | None = None
    kappa: float | None = None
    """Cohen's; None where only one kind of text was scored."""
    kappas: dict[str, float] = Field(default_factory=dict)
    """The same per file, where the texts are from files."""
    unscored: int = 0
    """Texts that the judges could not score; they count in nothing above."""
    decides: bool = False
    """Whether rates of the evaluation count what exactly these judges say."""
    not_correctable: str = ""
    """Why no rate is corrected by it; empty where it can be."""


PROBED = (
    "benign_kl",
    "benign_nll",
    "harm_word_ratio",
    "selectivity",
    "trained_harm_word_ratio",
    "trained_selectivity",
)
"""Measures of a `Probe`, in the order in which they are shown."""


Answers = Sequence[tuple[str, str]]
"""(request, reply) pairs of one target, decoded greedily."""


class Probe(Noun):
    """Teacher-forced measurements of one target against the bare model (no sampling)."""

    benign_kl: float | None
    """KL(base || target), nats per token, on held-out anchors; None where the set has none."""
    benign_kl_interval: tuple[float, float] | None = Field(
        None, exclude_if=lambda value: value is None
    )
    """95 % bootstrap interval of it, over instructions; None where all answer one. Left out of
    digests where there is none, so that evaluations of earlier versions keep theirs; so are the
    next two."""
    anchor_kl: tuple[float, ...] = Field((), exclude_if=lambda value: not value)
    """The same per held-out anchor, nats per token of that anchor."""
    anchor_instructions: int = Field(0, exclude_if=lambda value: not value)
    """Instructions that these answer, at most as many; 0 where an earlier version did not count."""
    benign_nll: float | None
    """Negative log-likelihood, nats per token, of held-out anchor answers; None likewise."""
    harm_word_ratio: float | None
    """Mean p(target) / p(base) of flagged tokens in toxic answers under attack: lower is better.
    None where the set has no toxic answer with one."""
    selectivity: float | None
    """Log-prob change of harm words minus that of other words, nats; more negative is better. None
    likewise."""
    harm_word_ratio_interval: tuple[float, float] | None = Field(
        None, exclude_if=lambda value: value is None
    )
    """95 % bootstrap interval of the ratio, over answers. Left out of digests where there is none;
    so are the next two."""
    toxic_answers: int = Field(0, exclude_if=lambda value: not value)
    """Toxic answers that harm words were read in; 0 where an earlier version did not count them."""
    held_out_toxic: int = Field(0, exclude_if=lambda value: not value)
    """How many of `toxic_answers` were held out from training: all, or 0 if training pairs had to
    be read instead."""
    trained_harm_word_ratio: float | None = Field(None, exclude_if=lambda value: value is None)
    trained_selectivity: float | None = Field(None, exclude_if=lambda value: value is None)
    """The same two in toxic answers that were trained on, where held-out ones decide."""
    engine_agreement: float | None = Field(None, exclude_if=lambda value: value is None)
    """Share of the tokens of the engine's greedy replies for this target that are the likeliest
    here: near 1 where the engine serves what was trained. Left out of digests where no reply was
    read; so are the next three."""
    engine_tokens: int = Field(0, exclude_if=lambda value: not value)
    """Tokens that were read for it."""
    engine_own: int = Field(0, exclude_if=lambda value: not value)
    engine_other: int = Field(0, exclude_if=lambda value: not value)
    """Of those tokens, how many are likeliest only for this target, and only for its counterpart
    (the bare model for an adapter, an adapter for the bare model). If `engine_other` exceeds
    `engine_own`, the counterpart probably wrote the replies."""
    suppressed: tuple[Suppressed, ...] = ()
    collateral: dict[str, float] | None = Field(default_factory=dict)
    """Ordinary words that lost more than `COLLATERAL`; None where no ordinary answer was read."""

    @property
    def measured(self) -> dict[str, float]:
        """The measures that could be taken, by name."""
        values = {name: getattr(self, name) for name in PROBED}
        return {name: value for name, value in values.items() if value is not None}


class Reply(Noun):
    """One judged reply of an evaluation."""

    id: str
    target: str
    """Label of the target: ``baseline``, ``aligned`` or the label asked for."""
    suite: str
    prompt_id: str
    topic: str = ""
    locale: str = "en"
    text: SealedText
    outcome: Outcome
    scores: dict[str, float | None] = Field(default_factory=dict)
    tokens: int = 0
    """Generated for it."""


class Change(Noun):
    """target - baseline of one rate on the prompts that both were scored on."""

    value: float
    low: float
    high: float
    """Ends of the paired 95 % interval."""
    p_value: float
    """McNemar's exact test."""
    p_adjusted: float
    """The same after Holm, for having been made for each topic or locale of that rate."""
    n: int


class TargetResult(Noun):
    """All rates of one target on the same prompts."""

    label: str
    adapter: str = ""
    method: str = ""
    rates: dict[str, Rate] = Field(default_factory=dict)
    """harm_rate, harm_plain, harm_strong, over_refusal_rate, twin_refusal_rate, refusal_rate,
    ordinary_refusal_rate, usefulness, usefulness_refusal_rate, incoherent_rate, unscored_rate; a
    suite's own as ``over_refusal_rate/twins``."""
    by_topic: dict[str, dict[str, Rate]] = Field(default_factory=dict)
    by_locale: dict[str, dict[str, Rate]] = Field(
        default_factory=dict, exclude_if=lambda value: not value
    )
    """By language tag. Left out of digests where there is none, so that evaluations of earlier
    versions keep theirs; so are the next two."""
    topic_changes: dict[str, dict[str, Change]] = Field(
        default_factory=dict, exclude_if=lambda value: not value
    )
    """Topic -> rate -> how it differs from the baseline's; empty for the baseline."""
    locale_changes: dict[str, dict[str, Change]] = Field(
        default_factory=dict, exclude_if=lambda value: not value
    )
    shape: dict[str, float] = Field(default_factory=dict, exclude_if=lambda value: not value)
    """Of replies to ordinary requests and verifiable instructions: ``reply_words``,
    ``reply_at_limit`` (share that ran into the token limit), ``reply_repetition`` (share of
    three-word runs said before)."""
    shape_changes: dict[str, tuple[float, float, float]] = Field(
        default_factory=dict, exclude_if=lambda value: not value
    )
    """How these differ from the baseline's on the same prompts, with their 95 % interval; empty
    for the baseline."""
    corrected: dict[str, Rate] = Field(default_factory=dict, exclude_if=lambda value: not value)
    """Rates without the judges' known errors, where those can be told; the interval counts in how
    few texts the judges were checked on. Left out of digests where there are none."""
    probe: Probe | None = None


class Evaluation(Noun):
    """What Evaluate makes."""

    results: tuple[TargetResult, ...]
    """Baseline first, then the target, then whatever else was asked for."""
    delta: dict[str, float] = Field(default_factory=dict)
    """target - baseline per rate, on the prompts that both were scored on, and per probed measure;
    a rate without such prompts stands neither here nor in `p_values` and `intervals`."""
    p_values: dict[str, float] = Field(default_factory=dict)
    """McNemar's exact test on the same prompts, per rate."""
    verdict: Verdict
    reasons: tuple[str, ...] = ()
    suites: tuple[str, ...] = ()
    not_run: tuple[str, ...] = ()
    judge_ids: tuple[str, ...] = ()
    generation_judge_ids: tuple[str, ...] = ()
    intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """Paired 95 % interval of each delta that is a rate (`ptalign.stats.tango`)."""
    beside: dict[str, dict[str, tuple[float, float, float]]] = Field(
        default_factory=dict, exclude_if=lambda value: not value
    )
    """Label of each further target -> rate -> target of the verdict - that one, with its paired
    95 % interval."""
    disagreement: float | None = None
    """Share of replies on which two harm judges said opposite things; None with one judge."""
    calibrations: tuple[Calibration, ...] = Field((), exclude_if=lambda value: not value)
    """Of each judge, of those that decide together, then of those that filtered the pairs. Left out
    of digests where there are none."""
    seconds: Mapping[str, float] = Field(default_factory=dict)
    tokens_generated: int = 0

    @property
    def baseline(self) -> TargetResult:
        return self.results[0]

    @property
    def aligned(self) -> TargetResult:
        return self.results[1]
