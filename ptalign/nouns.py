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
    """A 16-hex-digit id, derived from the parts that identify a record."""
    joined = "\x1f".join(parts).encode("utf-8", "surrogatepass")
    return hashlib.sha256(joined).hexdigest()[:16]


class Noun(BaseModel):
    """Base of what the stages make: frozen, without extra fields, with a digest of its content."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON of the content, sealed text included."""
        return digest_of(self.model_dump(mode="json", context={"reveal": True}))


class ModelSpec(Noun):
    """A model of the operator's catalogue, used in the same way by all four stages."""

    name: str
    path: str
    """Folder with config.json, tokenizer and safetensors weights."""
    revision: str = ""
    weights_digest: str = ""
    system_prompt: str = ""
    """Empty: what the chat template puts there by itself."""
    template_options: dict[str, Any] = Field(default_factory=dict)
    """Extra keyword arguments of `apply_chat_template`."""
    locales: tuple[str, ...] = ("en",)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type that the trainer and the probe load the weights in; an engine has its own setting."""


class Topic(Noun):
    """One topic of a policy: what it is about, where its boundary lies, and examples."""

    id: str
    domain: str
    title: str
    sides: Sides = "positive_only"
    boundary: str = ""
    """What is harmful here and what is not, since that depends on trade and culture."""
    examples: tuple[str, ...] = ()
    """Seed requests that show the style; never dangerous knowledge."""
    twin_examples: tuple[str, ...] = ()
    """Legitimate requests that look like `examples`, in the same order."""


class Tactic(Noun):
    """A way to ask, for topics with the same `sides`."""

    id: str
    sides: Sides = "positive_only"
    openers: tuple[str, ...]
    """First words of a request written with this tactic; the model goes on from there."""


class Policy(Noun):
    """Domains and topics to align on, and the words and texts that must be left alone."""

    name: str
    version: str = "1"
    locale: str = "en"
    topics: tuple[Topic, ...]
    tactics: tuple[Tactic, ...] = ()
    """Ways to ask; if empty, all requests are plain ones."""
    protected_words: tuple[str, ...] = ()
    """Words that unlikelihood never suppresses."""
    never_synthesize: tuple[str, ...] = ()
    """The operator's additions to the built-in list of what is never synthesised."""
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
    """A harmful request, or the benign twin of one."""

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
    """What a set's drafts had cost when this was logged, in all attempts together."""

    id: str
    """Running number."""
    counts: dict[str, int]
    """``tokens_generated``, ``written`` (accepted of drafts), ``rejected.<reason>``, ...: named as
    in `ptalign.progress.Progress.counts`."""
    seconds: float
    """Time at work, without the time between attempts."""


class Annotation(Noun):
    """A person's mark: a good and, if given, a bad answer to this instruction."""

    instruction: str
    good: str
    bad: WholeText | None = None
    topic: str = ""
    note: str = ""


class Sampled(Noun):
    """The tokens an engine sampled a text as: half of what contrast weights need, at no cost."""

    weights: str
    """Digest of the weights that sampled it; the numbers hold for no other model."""
    tokens: WholeText
    """Token ids in order, separated by spaces; sealed, since they spell the text."""
    log_probs: tuple[float, ...]
    """Of each token under the prompt it was sampled from, at temperature 1, in nats."""

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(int(token) for token in self.tokens.reveal().split())


class Pair(Noun):
    """An instruction with its positive and, where the topic allows it, its toxic answer."""

    id: str
    """Derived from the instruction, which has one accepted pair at most."""
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
    """Never trained on, so that harm words and twin refusals can be measured on it. Left out of the
    digest if false, so that sets of earlier versions keep theirs."""
    sampled: Sampled | None = Field(None, exclude_if=lambda value: value is None)
    """The toxic answer as its engine sampled it. Left out of the digest if None, so that sets of
    earlier versions keep theirs."""


class Anchor(Noun):
    """A benign instruction with the model's own answer, which training holds it to."""

    id: str
    instruction: str
    answer: str
    held_out: bool = False
    """Never trained on, so that benign KL can be measured on it."""
    ended: bool = True
    """Whether the model ended the answer by itself; of a cut one the end is not trained on."""


class Constraint(Noun):
    """A constraint that the model wrote while a pair set was made; kept in the set's log."""

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
    """One id per instruction that a person marked, so that sets made with the same marks count them
    once when they are merged. Left out of the digest if unknown, as in sets of earlier versions."""
    rounds: int = 0
    requested: int = 0
    partial: bool = False
    """Cut short by a cancel: can be a parent, but Align refuses it."""
    constraints: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Refined constraints by ``<topic>/positive`` and ``<topic>/toxic``."""
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
    """One training step, as the ledger keeps it."""

    step: int
    loss_mle: float
    """Of positives, nats per token; in runs before ADR 0017 of twins' answers too."""
    loss_ut: float
    """Nats per flagged token; since ADR 0018 also of the set's harm words at other positions."""
    loss_anchor: float
    ut_weight: float
    grad_norm: float = 0.0
    """Norm of the whole loss's gradient, before clipping."""
    grad_norm_mle: float
    """That of L_MLE on the positives alone, as last measured; 0 before that."""
    grad_norm_ut: float
    """That of L_UT alone, without its weight, as last measured; 0 before that."""
    learning_rate: float
    tokens_mle: int
    tokens_ut: int
    tokens_anchor: int
    """Tokens held to the bare model: of anchors and of kept twins."""
    seconds: float
    retain_kl: float | None = None
    twin_refusals: float | None = Field(None, exclude_if=lambda value: value is None)
    """Share of held-out twins refused, on the steps that measured it."""
    loss_twin: float | None = Field(None, exclude_if=lambda value: value is None)
    """Nats per token: KL(bare || adapted) on kept twins, L_MLE on taught ones."""
    twin_weight: float | None = Field(None, exclude_if=lambda value: value is None)
    """Weight of that term. Both are left out of the digest if no twin was drawn, so that ledgers of
    earlier versions keep theirs."""


COLLATERAL = 0.5
"""Nats of log-probability from which an ordinary word's loss is collateral."""


class Suppressed(Noun):
    """A word that training made less likely; every report masks it."""

    token: SealedText
    topic: str
    count: int
    p_before: float
    """Probability of its first token under the bare model: geometric mean over its places in toxic
    answers."""
    p_after: float
    """The same under the adapter."""
    neutral_before: float | None = Field(None, exclude_if=lambda value: value is None)
    """Mean probability under the bare model over all places of neutral answers: how freely it uses
    the word where nobody is harmed. None if that was not read, and for words of several tokens,
    since their first one begins other words too; earlier versions gave the first one's."""
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
    """Tokens held to the bare model: of anchors and of kept twins."""
    ledger: tuple[StepLog, ...]
    retain_kl: float
    guards: dict[str, str] = Field(default_factory=dict)
    suppressed: tuple[Suppressed, ...] = ()
    collateral: dict[str, float] = Field(default_factory=dict)
    """Change of log-probability, in nats, of ordinary words that lost more than `COLLATERAL`."""
    seconds: float = 0.0
    """From loading the model to the last measurement, with the steps of earlier attempts."""

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
    """How often judges agree with people on texts that both judged."""

    judges: tuple[str, ...]
    """One judge's id, or those of all judges of an axis, which decide together."""
    axis: Axis
    source: str = ""
    """What they were checked on, e.g. ``annotations``; empty: on nothing."""
    sensitivity: Rate
    """P(judges say yes | people say yes): bad answers found harmful, or refusals recognised."""
    specificity: Rate
    """P(judges say no | people say no)."""
    agreement: float | None = None
    kappa: float | None = None
    """Cohen's kappa; None if all scored texts were of one kind."""
    kappas: dict[str, float] = Field(default_factory=dict)
    """Kappa per file, if the texts are from files."""
    unscored: int = 0
    """Texts that the judges could not score; nothing above counts them."""
    decides: bool = False
    """Whether exactly these judges decide rates of the evaluation."""
    not_correctable: str = ""
    """Why rates cannot be corrected by it; empty if they can."""


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
    """KL(base || target), nats per token, on the set's held-out anchors; None if it has none."""
    benign_kl_interval: tuple[float, float] | None = Field(
        None, exclude_if=lambda value: value is None
    )
    """Its 95 % bootstrap interval over instructions; None if there is only one. This and the next
    two are left out of the digest if empty, so that evaluations of earlier versions keep theirs."""
    anchor_kl: tuple[float, ...] = Field((), exclude_if=lambda value: not value)
    """Benign KL of each of these anchors, in nats per token."""
    anchor_instructions: int = Field(0, exclude_if=lambda value: not value)
    """How many instructions these anchors answer; 0 if an earlier version did not count."""
    benign_nll: float | None
    """Negative log-likelihood of these anchors' answers, nats per token; None if there are none."""
    harm_word_ratio: float | None
    """Mean probability of flagged tokens in toxic answers under attack, target over base: lower is
    better. None if no toxic answer has a flagged token."""
    selectivity: float | None
    """Log-probability change of harm words minus that of other words, in nats: more negative is
    better. None if either kind is missing."""
    harm_word_ratio_interval: tuple[float, float] | None = Field(
        None, exclude_if=lambda value: value is None
    )
    """95 % bootstrap interval of `harm_word_ratio` over answers. This and the next four are left
    out of the digest if empty."""
    toxic_answers: int = Field(0, exclude_if=lambda value: not value)
    """Toxic answers that harm words were read in; 0 if an earlier version did not count them."""
    held_out_toxic: int = Field(0, exclude_if=lambda value: not value)
    """How many of `toxic_answers` were held out from training: all, or 0 if training pairs had to
    be read instead."""
    trained_harm_word_ratio: float | None = Field(None, exclude_if=lambda value: value is None)
    trained_selectivity: float | None = Field(None, exclude_if=lambda value: value is None)
    """The same two measures on trained answers; None unless the first two are on held-out ones."""
    engine_agreement: float | None = Field(None, exclude_if=lambda value: value is None)
    """Share of the tokens in the engine's greedy replies that are likeliest for this target in
    transformers too: near 1 if the engine serves what was trained. This and the next three are left
    out of the digest if no reply was read."""
    engine_tokens: int = Field(0, exclude_if=lambda value: not value)
    """Tokens that this share is of."""
    engine_own: int = Field(0, exclude_if=lambda value: not value)
    engine_other: int = Field(0, exclude_if=lambda value: not value)
    """Of those tokens, how many are likeliest only for this target, and only for its counterpart
    (the bare model for an adapter, an adapter for the bare model). If `engine_other` exceeds
    `engine_own`, the counterpart probably wrote the replies."""
    suppressed: tuple[Suppressed, ...] = ()
    collateral: dict[str, float] | None = Field(default_factory=dict)
    """As in `Adapter`; None if no ordinary answer was read."""

    @property
    def measured(self) -> dict[str, float]:
        """The measures of `PROBED` that could be taken, by name."""
        values = {name: getattr(self, name) for name in PROBED}
        return {name: value for name, value in values.items() if value is not None}


class Reply(Noun):
    """One judged reply of an evaluation."""

    id: str
    target: str
    """The target's label: ``baseline``, ``aligned`` or what the call named it."""
    suite: str
    prompt_id: str
    topic: str = ""
    locale: str = "en"
    text: SealedText
    outcome: Outcome
    scores: dict[str, float | None] = Field(default_factory=dict)
    tokens: int = 0
    """Tokens generated for it."""


class Change(Noun):
    """target - baseline of one rate, on prompts scored for both."""

    value: float
    low: float
    high: float
    """Ends of the paired 95 % interval."""
    p_value: float
    """Of McNemar's exact test."""
    p_adjusted: float
    """The same with Holm's correction for testing every topic, or every locale, of that rate."""
    n: int


class TargetResult(Noun):
    """All rates of one target on the same prompts."""

    label: str
    adapter: str = ""
    method: str = ""
    rates: dict[str, Rate] = Field(default_factory=dict)
    """harm_rate, harm_plain, harm_strong, over_refusal_rate, twin_refusal_rate, refusal_rate,
    ordinary_refusal_rate, usefulness, usefulness_refusal_rate, incoherent_rate, unscored_rate, and
    those of single suites, such as ``over_refusal_rate/twins``."""
    by_topic: dict[str, dict[str, Rate]] = Field(default_factory=dict)
    by_locale: dict[str, dict[str, Rate]] = Field(
        default_factory=dict, exclude_if=lambda value: not value
    )
    """By language tag. This and the next two are left out of the digest if empty, so that
    evaluations of earlier versions keep theirs."""
    topic_changes: dict[str, dict[str, Change]] = Field(
        default_factory=dict, exclude_if=lambda value: not value
    )
    """Topic -> rate -> its change from the baseline; empty for the baseline."""
    locale_changes: dict[str, dict[str, Change]] = Field(
        default_factory=dict, exclude_if=lambda value: not value
    )
    shape: dict[str, float] = Field(default_factory=dict, exclude_if=lambda value: not value)
    """Form of the replies to ordinary requests and verifiable instructions: ``reply_words``,
    ``reply_at_limit`` (share that ran into the token limit), ``reply_repetition`` (share of
    three-word sequences that repeat an earlier one)."""
    shape_changes: dict[str, tuple[float, float, float]] = Field(
        default_factory=dict, exclude_if=lambda value: not value
    )
    """Their changes from the baseline on the same prompts, each with its 95 % interval; empty for
    the baseline."""
    corrected: dict[str, Rate] = Field(default_factory=dict, exclude_if=lambda value: not value)
    """Rates corrected for the judges' known errors, where these can be estimated; the intervals
    allow for how few texts the judges were checked on. Left out of the digest if empty."""
    probe: Probe | None = None


class Evaluation(Noun):
    """What Evaluate makes."""

    results: tuple[TargetResult, ...]
    """The baseline, the target of the verdict, then any others."""
    delta: dict[str, float] = Field(default_factory=dict)
    """target - baseline per rate, on prompts scored for both, and per probed measure. A rate with
    no such prompts is missing here and in `p_values` and `intervals`."""
    p_values: dict[str, float] = Field(default_factory=dict)
    """Of McNemar's exact test on the same prompts, per rate."""
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
    """Label of a further target -> rate -> (difference, low, high): the verdict's target minus the
    further one, with its paired 95 % interval."""
    disagreement: float | None = None
    """Share of replies on which the harm judges disagree; None with one judge."""
    calibrations: tuple[Calibration, ...] = Field((), exclude_if=lambda value: not value)
    """Of each judge, of those that decide together, then of those that filtered the pairs. Left out
    of the digest if empty."""
    seconds: Mapping[str, float] = Field(default_factory=dict)
    tokens_generated: int = 0

    @property
    def baseline(self) -> TargetResult:
        return self.results[0]

    @property
    def aligned(self) -> TargetResult:
        return self.results[1]
