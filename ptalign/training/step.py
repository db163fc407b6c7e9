"""One training step: rows forward and back, each part with its own denominator."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ptalign.losses import (
    Head,
    dpo,
    kl_divergence,
    margins,
    mle,
    npo,
    set_margins,
    unlikelihood,
)
from ptalign.nouns import Method
from ptalign.training.decoder import Decoder
from ptalign.training.texts import Part, Sample
from ptalign.training.tree import Row, Targets, pack

STILL: tuple[Part, ...] = ("kept", "anchor")
"""Parts on which the model is held to the bare model."""
ROW = 1024
"""Nodes per row: longer rows share more of the system prompt, and hold more activations."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Denominators over the whole step; never 0, so that an empty part gives 0."""

    mle: float
    twin: float
    anchor: float
    toxic: float
    pairs: float
    unpaired: float

    @classmethod
    def of(cls, groups: Sequence[Sequence[Sample]]) -> Totals:
        """Sums of weights per part, and pairs that have a toxic side."""

        def weight(*parts: Part) -> float:
            return sum(sum(s.weights) for g in groups for s in g if s.part in parts) or 1.0

        pairs = sum(any(s.part == "toxic" for s in g) for g in groups) or 1
        alone = [
            s for g in groups for s, unpaired in zip(g, unpaired_of(g), strict=True) if unpaired
        ]
        return cls(
            mle=weight("positive"),
            twin=weight("twin", "kept"),
            anchor=weight("anchor"),
            toxic=weight("toxic"),
            pairs=float(pairs),
            unpaired=sum(sum(s.weights) for s in alone) or 1.0,
        )


def unpaired_of(samples: Sequence[Sample]) -> list[bool]:
    """Which samples are positives without a toxic answer to prefer them to."""
    paired = {s.key for s in samples if s.part == "toxic"}
    return [s.part == "positive" and s.key not in paired for s in samples]


@dataclass(slots=True)
class Losses:
    """Parts of the loss of one row or step, each by its own denominator and without its weight."""

    mle: Tensor
    """Of positives."""
    twin: Tensor
    """KL(bare || adapted) along kept twins, L_MLE of taught ones."""
    anchor: Tensor
    toxic: Tensor
    """L_UT, or the preference term of dpo and npo."""
    unpaired: Tensor
    """L_MLE of positives without a toxic one: with dpo nothing else would teach them."""

    def plus(self, other: Losses) -> Losses:
        """Sums without graphs."""
        return Losses(
            *(getattr(self, f.name) + getattr(other, f.name).detach() for f in fields(self))
        )


@dataclass(frozen=True, slots=True)
class Objective:
    """What a method adds up."""

    method: Method
    beta: float
    reference: Mapping[str, float]
    """``part/key`` -> log p under the bare model, for dpo and npo."""
    bare: Mapping[str, Tensor] = field(default_factory=dict)
    """Anchor or kept twin -> [its weighted tokens, hidden] states of the bare model. An anchor
    without takes likelihood, which estimates the same from one sample (ADR 0015)."""
    candidates: tuple[int, ...] = ()
    """Token ids that no place of a toxic answer may hold, where its sample is a target throughout
    (ADR 0018)."""

    def losses(
        self, row: Row, states: Tensor, targets: Targets, totals: Totals, head: Head
    ) -> Losses:
        """Losses of one row, in the step's units.

        Args:
            row: The row.
            states: [targets, hidden], the states that predict the targets.
            targets: The row's targets.
            totals: Denominators of the step.
            head: The frozen head.
        """
        bare = [self._bare(s) for s in row.samples]
        whole = torch.tensor([b is not None for b in bare], device=states.device)[targets.owners]
        spread = [s.throughout and bool(self.candidates) for s in row.samples]
        apart = torch.tensor(spread, device=states.device)[targets.owners]
        alone = ~whole & ~apart  # the others need no margin of their target alone
        margin = states.new_zeros(len(states), dtype=torch.float32)
        margin = margin.masked_scatter(alone, margins(states[alone], targets.tokens[alone], head))

        def of(mine: Sequence[bool]) -> Tensor:
            """[targets] weights of these samples, 0 elsewhere."""
            return targets.weights * torch.tensor(mine, device=margin.device)[targets.owners]

        def masked(*parts: Part) -> Tensor:
            return of([s.part in parts for s in row.samples])

        if self.method in ("dpo", "npo"):
            toxic = self._preference(row, margin, targets, totals)
        else:
            toxic = unlikelihood(margin, masked("toxic") * ~apart, totals.toxic)
            if any(spread):
                toxic = toxic + self._spread(states, targets, apart, totals, head)
        anchor = mle(margin, masked("anchor") * ~whole, totals.anchor)
        twin = mle(margin, masked("twin"), totals.twin)
        if known := [b for b in bare if b is not None]:
            drift = kl_divergence(torch.cat(known), states[whole], head)
            anchor = anchor + (masked("anchor")[whole] * drift).sum() / totals.anchor
            twin = twin + (masked("kept")[whole] * drift).sum() / totals.twin
        return Losses(
            mle=mle(margin, masked("positive"), totals.mle),
            twin=twin,
            anchor=anchor,
            toxic=toxic,
            unpaired=mle(margin, of(unpaired_of(row.samples)), totals.unpaired),
        )

    def _spread(
        self, states: Tensor, targets: Targets, here: Tensor, totals: Totals, head: Head
    ) -> Tensor:
        """L_UT of the candidates at every target, and of the written token where it is flagged.

        -sum_t log(1 - P_t(C_t)) / total: a place that is not flagged counts as much as one that is,
        and adds only what the model would put there from the candidates.
        """
        flagged = targets.weights[here] > 0
        candidates = torch.tensor(self.candidates, device=states.device)
        margin = set_margins(states[here], targets.tokens[here], flagged, candidates, head)
        weight = torch.where(flagged, targets.weights[here], 1.0)
        return unlikelihood(margin, weight, totals.toxic)

    def _bare(self, sample: Sample) -> Tensor | None:
        """States that a sample is held to; a kept twin has no other term, and must have them."""
        if sample.part == "kept":
            return self.bare[sample.key]
        return self.bare.get(sample.key) if sample.part == "anchor" else None

    def _preference(self, row: Row, margin: Tensor, targets: Targets, totals: Totals) -> Tensor:
        sums = margin.new_zeros(len(row.samples)).index_add(0, targets.owners, logsigmoid(margin))
        toxic = [i for i, s in enumerate(row.samples) if s.part == "toxic"]
        if not toxic:
            return margin.sum() * 0
        reference_toxic = self._reference(row, toxic, sums)
        if self.method == "npo":
            return npo(sums[toxic], reference_toxic, self.beta, totals.pairs)
        places = {s.key: i for i, s in enumerate(row.samples) if s.part == "positive"}
        positive = [places[row.samples[i].key] for i in toxic]
        reference = self._reference(row, positive, sums)
        return dpo(sums[positive], sums[toxic], reference, reference_toxic, self.beta, totals.pairs)

    def _reference(self, row: Row, places: Sequence[int], like: Tensor) -> Tensor:
        keys = [f"{row.samples[i].part}/{row.samples[i].key}" for i in places]
        return like.new_tensor([self.reference[k] for k in keys])

    def total(self, losses: Losses, ut_weight: float, twin_weight: float = 1.0) -> Tensor:
        """The scalar that is differentiated."""
        benign = losses.anchor + twin_weight * losses.twin
        if self.method == "dpo":
            return losses.toxic + losses.unpaired + benign
        if self.method == "npo":
            return losses.mle + benign + losses.toxic
        if self.method == "mle":
            return losses.mle + benign
        return losses.mle + benign + ut_weight * losses.toxic


def accumulate(
    decoder: Decoder,
    groups: Sequence[Sequence[Sample]],
    objective: Objective,
    ut_weight: float,
    twin_weight: float = 1.0,
    *,
    budget: int = ROW,
    share: bool = True,
) -> Losses:
    """Adds the step's gradients to the parameters' `.grad`, row by row.

    Returns:
        The step's losses, without graphs.
    """
    totals, result = Totals.of(groups), _zeros(decoder)
    for row in pack(groups, budget, share=share):
        states, targets = decoder.target_states(row)
        losses = objective.losses(row, states, targets, totals, decoder.head)
        objective.total(losses, ut_weight, twin_weight).backward()  # type: ignore[no-untyped-call]
        result = result.plus(losses)
    return result


@dataclass(frozen=True, slots=True)
class Apart:
    """Gradients of each part of the loss, in the order of the parameters."""

    mle: list[Tensor]
    twin: list[Tensor]
    anchor: list[Tensor]
    toxic: list[Tensor]

    def whole(self, ut_weight: float, twin_weight: float) -> list[Tensor]:
        """Gradients of the step's loss under unlikelihood. Takes the place of `mle`."""
        parts = zip(self.mle, self.twin, self.anchor, self.toxic, strict=True)
        return [
            mle.add_(anchor).add_(twin, alpha=twin_weight).add_(toxic, alpha=ut_weight)
            for mle, twin, anchor, toxic in parts
        ]


def accumulate_apart(
    decoder: Decoder,
    groups: Sequence[Sequence[Sample]],
    objective: Objective,
    parameters: Sequence[Tensor],
    *,
    budget: int = ROW,
) -> tuple[Losses, Apart]:
    """Gradients of each part without its weight, to match the norms of L_MLE and L_UT."""
    totals, result = Totals.of(groups), _zeros(decoder)
    apart = Apart(*([torch.zeros_like(p) for p in parameters] for _ in fields(Apart)))
    for row in pack(groups, budget):
        states, targets = decoder.target_states(row)
        losses = objective.losses(row, states, targets, totals, decoder.head)
        result = result.plus(losses)
        for part in fields(Apart):
            share, sums = getattr(losses, part.name), getattr(apart, part.name)
            # A row may leave some out: a parent adapter's on a vision tower, an expert unasked.
            more = torch.autograd.grad(share, parameters, retain_graph=True, allow_unused=True)
            _add(sums, more)
    return result, apart


def _zeros(decoder: Decoder) -> Losses:
    zero = torch.zeros((), device=decoder.device)
    return Losses(*(zero for _ in fields(Losses)))


def _add(sums: Sequence[Tensor], more: Sequence[Tensor | None]) -> None:
    for total, grad in zip(sums, more, strict=True):
        if grad is not None:
            total.add_(grad)


def norm(grads: Sequence[Tensor]) -> float:
    """L2 norm over all tensors, summed in float64."""
    return math.sqrt(sum(float(g.double().square().sum()) for g in grads))
