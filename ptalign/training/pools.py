"""From a pair set to what a run trains on."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ptalign.config import NEEDS_TOXIC, AlignConfig
from ptalign.config import Scorer as ScorerName
from ptalign.errors import InvalidInput, TrainingFailed
from ptalign.judges.base import Judge
from ptalign.nouns import Pair, PairSet, Policy
from ptalign.text.locales import language
from ptalign.training.batches import Pools
from ptalign.training.contrast import constraints_of, contrast_scores, token_log_probs
from ptalign.training.decoder import Decoder
from ptalign.training.elicit import Context, contexts
from ptalign.training.refusals import CLAUSES, reading
from ptalign.training.step import STILL
from ptalign.training.texts import (
    ChatFormat,
    Sample,
    anchor_sample,
    fitting,
    full_weights,
    positive_sample,
    toxic_sample,
)
from ptalign.training.tree import OnRow, pack
from ptalign.training.twins import ASKED_DURING
from ptalign.weights import TokenWeights, scorer_named, weigh
from ptalign.weights.scorers import Scorer, Toxic

AFTER = "@"
"""Between a pair's id and the number of the context that its samples come after."""

ANCHOR_ROW = 512
"""Nodes per forward pass over anchors."""

WITHOUT_ANCHORS = (
    "train without: anchors_per_step=0, or without_anchors in a call to the service, where 0 means "
    "the default."
)
"""How, for whoever calls."""

UNSEEN = 5
"""Fewer held-out toxic answers than this say too little about words: trained ones are read."""


def make_pools(
    pairs: PairSet,
    chat: ChatFormat,
    config: AlignConfig,
    locale: str = "en",
    taught: Collection[str] = (),
    positions: int = sys.maxsize,
) -> Pools:
    """Tokenises a pair set; toxic answers carry no weights yet.

    Args:
        pairs: The set.
        chat: Tokenises.
        config: Method, lengths, seed and the elicited share.
        locale: Language of the personas of eliciting contexts.
        taught: Ids of pairs and anchors that the parent adapter was trained on.
        positions: Tokens of a sample that the model takes.

    A pair whose toxic side is too long keeps its positive; the method mle takes no toxic side.
    Held-out pairs are in no pool; held-out twins are kept to ask. Where they are few the others are
    asked behind them.

    Raises:
        InvalidInput: Steps take anchors, and every one of the set is too long.
    """
    longest, left_out = min(config.max_length, positions), 0
    config = config.model_copy(update={"max_length": longest})
    both: list[tuple[Sample, ...]] = []
    single: list[tuple[Sample, ...]] = []
    twins: list[tuple[Sample, ...]] = []
    read = [p for p in pairs.twins if language(p.locale) in CLAUSES]
    unseen_twins = [p for p in read if p.held_out and p.id not in taught]
    few = len(unseen_twins) < ASKED_DURING
    read = [*unseen_twins, *(p for p in read if few and p not in unseen_twins)]
    asked = [positive_sample(p, chat) for p in read]
    asked_tokens = reading(chat, (p.locale for p in read))
    pairs = trained(pairs)
    for pair in pairs.pairs:
        good, bad_count = fitting([positive_sample(pair, chat)], longest)
        left_out += bad_count
        if not good:
            continue
        toxic: list[Sample] = []
        if pair.toxic is not None and config.method in NEEDS_TOXIC:
            toxic, bad_count = fitting([toxic_sample(pair, chat)], longest)
            left_out += bad_count
        polarised = pair.toxic is not None and pair.kind == "pair"
        pool = twins if pair.kind == "twin" else both if polarised else single
        pool.append((*good, *toxic))
    opening = config.opening_weight
    seen = [anchor_sample(a, chat, opening) for a in pairs.anchors if not a.held_out]
    unseen_anchors = [a for a in pairs.anchors if a.held_out and a.id not in taught]
    held = [anchor_sample(a, chat) for a in unseen_anchors]
    anchors, bad_count = fitting(seen, longest)
    if config.anchors_per_step and seen and not anchors:
        raise _no_anchor_fits(seen, longest, own=longest == positions)
    held_out, held_count = fitting(held, longest)
    return Pools(
        pairs=both,
        positives=single,
        elicited=_elicited(pairs, both, chat, config, locale),
        twins=twins,
        anchors=[(a,) for a in anchors],
        held_out=held_out,
        asked=fitting(asked, longest)[0],
        asked_tokens=asked_tokens,
        asked_unseen=not few,
        longest=longest,
        left_out=left_out + bad_count + held_count,
    )


def _no_anchor_fits(anchors: Sequence[Sample], longest: int, *, own: bool) -> InvalidInput:
    least = min((a.length for a in anchors if a.answer), default=0)
    mend = f"Raise it to {least} or more" if least else "Use a set whose anchors have answers"
    if own and least:
        mend = f"Use a model that takes {least} tokens, or a set of shorter anchors"
    return InvalidInput(
        "max_length",
        f"is {longest}{' in this model' if own else ''}, and no anchor of the set fits: without "
        "them a model refuses ordinary requests too, and no guard can tell",
        f"{mend}, or {WITHOUT_ANCHORS} max_length is no field of a call to the service.",
    )


def _elicited(
    pairs: PairSet,
    groups: Sequence[tuple[Sample, ...]],
    chat: ChatFormat,
    config: AlignConfig,
    locale: str,
) -> list[list[tuple[Sample, ...]]]:
    """The polarised groups after each eliciting context; one that would not fit stays plain.

    Only a pair whose two answers fit by themselves is shown in a context: it would fill it.
    """
    if not config.elicited_share or len(groups) < 2:
        return []
    by_id = {pair.id: pair for pair in pairs.polarised if pair.kind == "pair"}
    keys = [group[0].key for group in groups]
    toxic, _ = fitting([toxic_sample(by_id[key], chat) for key in keys], config.max_length)
    fit = {sample.key for sample in toxic}  # mle's groups hold no toxic sample
    drawn = contexts([p for key, p in by_id.items() if key in fit], locale, config.seed)
    return [
        [_after(context, number, group, by_id, chat, config.max_length) for group in groups]
        for number, context in enumerate(drawn)
    ]


def _after(
    context: Context,
    number: int,
    group: tuple[Sample, ...],
    by_id: Mapping[str, Pair],
    chat: ChatFormat,
    longest: int,
) -> tuple[Sample, ...]:
    """The group's samples after a context, or the group: where it is shown there, or too long."""
    key = group[0].key
    if key in {pair.id for pair in context.demonstrations}:
        return group
    prompt = context.prompt(by_id[key].instruction, chat)
    moved = tuple(replace(s, key=f"{key}{AFTER}{number}", prompt=prompt) for s in group)
    return moved if all(s.length <= longest for s in moved) else group


def toxic_answers(
    pairs: PairSet, chat: ChatFormat, drawn: Collection[str] | None = None
) -> list[Toxic]:
    """The toxic answers of polarised pairs, as the scorers see them.

    Args:
        pairs: The set.
        chat: Tokenises.
        drawn: Ids of the pairs whose answers these are; None: all.
    """
    found = []
    for pair in pairs.polarised:
        ids = toxic_sample(pair, chat).answer
        if not ids or (drawn is not None and pair.id not in drawn):
            continue
        answer = Toxic.of(
            pair.id, pair.instruction, pair.topic, chat.pieces(ids[:-1]), ids, pair.positive
        )
        if pair.sampled is not None and pair.sampled.weights == chat.weights:
            first = chat.pieces(pair.sampled.ids[:1])
            answer = answer.as_sampled(pair.sampled.ids, pair.sampled.log_probs, "".join(first))
        found.append(answer)
    return found


def benign_answers(pairs: PairSet) -> list[str]:
    """Everything that is not toxic: positives, twins' answers, anchors."""
    return [p.positive for p in pairs.pairs] + [a.answer for a in pairs.anchors]


def scorer_of(config: AlignConfig) -> ScorerName:
    """The scorer in force: only pt_align asks for one."""
    return config.scorer if config.method == "pt_align" else "uniform"


def weigh_pairs(
    pairs: PairSet,
    decoder: Decoder,
    chat: ChatFormat,
    config: AlignConfig,
    policy: Policy | None = None,
    judge: Judge | None = None,
    on_row: OnRow = lambda done, total: None,
    drawn: Collection[str] | None = None,
) -> TokenWeights:
    """Token weights of the set's toxic answers by the configured scorer.

    Args:
        pairs: The set; its refined constraints and protected words are used.
        decoder: Scores contrasts with its adapter off.
        chat: Tokenises.
        config: Method, scorer, flagged share and protected words.
        policy: Its generic constraints and protected words are used.
        judge: For the scorers `judge` and `blend`.
        on_row: Called with rows of the contrast pass done and in all.
        drawn: Ids of the pairs whose toxic answers steps draw: others, too long for one, would
            take a part of the flagged share. None: all.
    """
    pairs = trained(pairs)
    scorer: Scorer = scorer_named(
        scorer_of(config),
        benign=benign_answers(pairs),
        contrast=lambda answers: contrast_scores(
            decoder, chat, answers, lambda topic: constraints_of(pairs, policy, topic), on_row
        ),
        judge=judge,
    )
    answers = toxic_answers(pairs, chat, drawn)
    protected = protected_words(pairs, config, policy)
    return weigh(answers, scorer, share=config.flagged_share, protected=protected)


def protected_words(pairs: PairSet, config: AlignConfig, policy: Policy | None) -> list[str]:
    """Words and phrases that are never pushed down: the set's, the caller's and the policy's."""
    found = [*pairs.protected_words, *config.protected_words]
    return [*found, *(policy.protected_words if policy else ())]


def with_weights(pools: Pools, weights: Mapping[str, tuple[float, ...]], method: str) -> Pools:
    """Pools whose toxic answers carry weights.

    dpo and npo take the likelihood of the whole answer: every token weighs 1. A pair without a
    flagged token keeps its positive.
    """

    def weighted(sample: Sample) -> Sample:
        if sample.part != "toxic":
            return sample
        if method in ("dpo", "npo"):
            return sample.weighted(full_weights(sample.answer))
        own = sample.key in weights  # of what stands after a context the pair's id is the start
        return sample.weighted(weights[sample.key if own else sample.key.rpartition(AFTER)[0]])

    def all_of(groups: Sequence[tuple[Sample, ...]]) -> list[tuple[Sample, ...]]:
        return [tuple(map(weighted, group)) for group in groups]

    elicited = [all_of(groups) for groups in pools.elicited]
    return replace(pools, pairs=all_of(pools.pairs), elicited=elicited)


def with_reference(pools: Pools, decoder: Decoder, on_row: OnRow) -> Pools:
    """Pools with log p of both answers of each pair under the bare model (dpo and npo)."""
    groups = {g[0].key: g for groups in (pools.pairs, *pools.elicited) for g in groups}
    renamed = [[replace(s, key=f"{s.part}/{s.key}") for s in group] for group in groups.values()]
    found = token_log_probs(decoder, renamed, on_row)
    return replace(pools, reference={key: sum(values) for key, values in found.items()})


def with_bare(pools: Pools, decoder: Decoder, config: AlignConfig, on_row: OnRow) -> Pools:
    """Pools with the bare model's states on what holds it: trained anchors and kept twins.

    Steps alone use them, so where these draw no anchor none is read: benign KL and the explanation
    run both models on what they measure.
    """
    groups = (*(pools.anchors if config.anchors_per_step else ()), *pools.twins)
    still = [sample for group in groups for sample in group if sample.part in STILL]
    return replace(pools, bare=bare_states(decoder, still, on_row))


def bare_states(
    decoder: Decoder,
    samples: Sequence[Sample],
    on_row: OnRow = lambda done, total: None,
) -> dict[str, Tensor]:
    """Sample key -> [its weighted tokens, hidden] states of the bare model that predict them.

    Read once and kept in the model's dtype: a token costs `hidden` numbers, and no step needs a
    second forward pass (ADR 0015).
    """
    found: dict[str, Tensor] = {}
    rows = pack([[s] for s in samples], ANCHOR_ROW)
    for done, row in enumerate(rows, 1):
        with torch.no_grad(), decoder.bare():
            states, targets = decoder.target_states(row)
        counts = torch.bincount(targets.owners, minlength=len(row.samples)).tolist()
        for sample, part in zip(row.samples, states.split(counts), strict=True):
            found[sample.key] = part.clone()
        on_row(done, len(rows))
    return found


def check_parts(pools: Pools, config: AlignConfig) -> None:
    """A run with zero tokens in a part its method needs does not start.

    Raises:
        TrainingFailed: Names the part.
    """
    good = [s for pool in (pools.pairs, pools.positives) for g in pool for s in g]
    if not any(s.part == "positive" and s.used for s in good):
        raise TrainingFailed("no positive tokens to train on: the pair set has no usable pair")
    if config.method not in NEEDS_TOXIC:
        return
    if not any(s.part == "toxic" and s.used for s in good):
        raise TrainingFailed(
            f"no toxic tokens with a weight above 0, which {config.method} needs: add pairs with "
            "a toxic side, raise flagged_share, or use method 'mle'"
        )


def check_set(pairs: PairSet) -> None:
    """Refuses sets that Align must not take.

    Raises:
        InvalidInput: The set is empty or was cut short.
    """
    if pairs.partial:
        raise InvalidInput(
            "pair_set",
            "the set is partial: its synthesis was cancelled",
            "Continue it by SynthesizePairs with this set as parent.",
        )
    if not any(p.kind != "twin" for p in pairs.pairs):
        raise InvalidInput("pair_set", "the set holds no pair", "Use a set with pairs.")


def topics_of(pairs: PairSet) -> dict[str, str]:
    """Pair id -> topic."""
    return {pair.id: pair.topic for pair in pairs.pairs}


def harm_words(
    pairs: PairSet, chat: ChatFormat, policy: Policy | None = None
) -> Mapping[str, tuple[float, ...]]:
    """Pair id -> 1 at the toxic answer's log-odds words, 0 elsewhere.

    The same for every adapter, so that methods with different token weights are measured alike.
    """
    scorer = scorer_named("log_odds", benign=benign_answers(pairs), contrast=lambda _: [])
    protected = [*pairs.protected_words, *(policy.protected_words if policy else ())]
    share = AlignConfig().flagged_share
    return weigh(toxic_answers(pairs, chat), scorer, share=share, protected=protected).by_key


def trained(pairs: PairSet) -> PairSet:
    """The set without the pairs that are held out."""
    return pairs.model_copy(update={"pairs": tuple(p for p in pairs.pairs if not p.held_out)})


def count_trained(pairs: PairSet) -> int:
    """Pairs that are trained on, twins not counted."""
    return sum(p.kind != "twin" and not p.held_out for p in pairs.pairs)


def unseen(pairs: PairSet) -> PairSet | None:
    """The pairs that are held out; None where too few toxic answers are."""
    held_out = tuple(p for p in pairs.pairs if p.held_out)
    found = pairs.model_copy(update={"pairs": held_out})
    return found if len(found.polarised) >= UNSEEN else None


def sampled(pairs: PairSet, count: int) -> list[Pair]:
    """At most `count` polarised pairs, spread evenly over the set."""
    both = pairs.polarised
    if len(both) <= count:
        return list(both)
    return [both[i * len(both) // count] for i in range(count)]
