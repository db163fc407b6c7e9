"""The weights of L_UT and of the twins: from the start of a run, then moved by its budgets."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ptalign.config import MOST_TWIN_WEIGHT, AlignConfig
from ptalign.training.batches import Twins

MEASURED_AT = 2
"""Step at which gradient norms are matched; at the very start LoRA's B is 0 and norms mislead."""
MOST = 1000.0
"""The automatic weight's bound, that of `AlignConfig.ut_weight`: a toxic side that is already
unlikely has hardly a gradient, and matching it would only blow up noise."""
FIT_LIMIT = 0.85
"""L_MLE must end below this share of its start."""
TWIN_LIMIT = 1.25
"""L_MLE of taught twins must end below this multiple of its start; from 1.1 on tau rises."""
TWIN_WEIGHT: dict[Twins, float] = {"kept": 2.0, "taught": 1.0, "left out": 1.0}
"""The twins' weight unless set; ADR 0017 has what 1, 2 and 4 give where twins are kept."""
FIT_STEPS = 12
"""Runs shorter than this are too short for the fit to be judged."""


@dataclass(slots=True)
class Balance:
    """lambda, the twins' weight tau, and what moves them. Plain data, for checkpoints."""

    ut_weight: float
    automatic: bool
    fresh: bool = True
    """Whether training began at the bare model; a continued adapter already fits."""
    ceiling: float = 0.0
    """The matched weight: later steps may come back to it, never exceed it."""
    norm_mle: float = 0.0
    norm_ut: float = 0.0
    """As last measured."""
    mle: list[float] = field(default_factory=list)
    twin: list[float] = field(default_factory=list)
    kl: float | None = None
    refusals: float | None = None
    """Share of twins refused beyond those the bare model refuses, as last measured."""
    twins: Twins = "kept"
    twin_weight: float = 1.0
    notes: list[str] = field(default_factory=list)
    twin_notes: list[str] = field(default_factory=list)

    @classmethod
    def start(cls, config: AlignConfig, *, fresh: bool = True, twins: Twins = "kept") -> Balance:
        """lambda is 0 until measured when automatic or not used; else the caller's weight.

        Args:
            config: Its method and weights.
            fresh: Whether training begins at the bare model, so that a fit can be asked for.
            twins: What is done with them.
        """
        used = config.method in ("pt_align", "ut_uniform")
        fixed = config.ut_weight if used and config.ut_weight is not None else 0.0
        weight = config.twin_weight or TWIN_WEIGHT[twins]
        automatic = used and config.ut_weight is None
        return cls(fixed, automatic, fresh, fixed, twins=twins, twin_weight=weight)

    def measures(self, step: int, steps: int) -> bool:
        """Whether this step takes the gradients of both sides apart.

        One step does, unless its toxic side had no gradient: then the next tries again.
        """
        return self.automatic and not self.ceiling and step >= min(MEASURED_AT, steps - 1)

    def match(self, norm_mle: float, norm_ut: float, share: float) -> None:
        """lambda = share * |g_mle| / |g_ut|."""
        self.norm_mle, self.norm_ut = norm_mle, norm_ut
        if norm_ut > 0:
            self.ut_weight = self.ceiling = min(share * norm_mle / norm_ut, MOST)

    def observe(self, mle: float, twin: float) -> None:
        """Remembers the fit of one step."""
        self.mle.append(mle)
        self.twin.append(twin if self.twins == "taught" else 0.0)

    def adjust(
        self, step: int, kl: float | None, config: AlignConfig, refusals: float | None = None
    ) -> None:
        """Moves the weights near a budget; lambda comes back when there is room, tau stays.

        Refused twins raise tau, in a run of any method: lambda is not what makes a model refuse
        them (ADR 0017). Only where tau can rise no further does lambda give way.

        Args:
            step: For the note.
            kl: Benign KL, nats a token; None: not measured.
            config: Its budgets.
            refusals: Share of twins refused beyond the bare model's; None: not measured.
        """
        self.kl = kl if kl is not None else self.kl
        self.refusals = refusals if refusals is not None else self.refusals
        worse = refusals is not None and refusals > config.max_twin_refusals
        unfit = self.twins == "taught" and self.twin_ratio > 1.1
        why = "twins are refused" if worse else "twins fit worse than at the start"
        pulled = (worse or unfit) and self._pull(step, why)
        if not self.automatic or not self.ceiling:
            return
        if kl is not None and kl > 0.7 * config.max_benign_kl:
            self._scale(step, 0.5, "benign KL near its limit")
        elif worse or unfit:
            if not pulled:
                self._scale(step, 0.5, why)
        elif self.fresh and len(self.mle) >= FIT_STEPS and self.fit > FIT_LIMIT:
            self._scale(step, 0.7, "MLE fit behind")
        elif self._has_room(kl, config):
            self._scale(step, 1.25, "room inside the budgets")

    def _has_room(self, kl: float | None, config: AlignConfig) -> bool:
        """Whether lambda may come back. Twins are asked at every other call: the last count holds
        until the next, or lambda would rise and fall by turns."""
        refused = self.refusals is not None and self.refusals > config.max_twin_refusals
        near = kl is not None and kl >= 0.4 * config.max_benign_kl
        return self.ut_weight < self.ceiling and not refused and not near

    def _pull(self, step: int, why: str) -> bool:
        """Doubles the twins' weight; whether there was room to."""
        if self.twins == "left out" or self.twin_weight >= MOST_TWIN_WEIGHT:
            return False
        self.twin_weight = min(2 * self.twin_weight, MOST_TWIN_WEIGHT)
        self.twin_notes.append(f"step {step}: weight {self.twin_weight:g}, {why}")
        return True

    def _scale(self, step: int, factor: float, why: str) -> None:
        self.ut_weight = min(self.ut_weight * factor, self.ceiling)
        self.notes.append(f"step {step}: ut_weight x{factor:g}, {why}")

    @property
    def fit(self) -> float:
        """Mean L_MLE of the last three steps over that of the first two."""
        return _ratio(self.mle)

    @property
    def twin_ratio(self) -> float:
        """The same of taught twins' answers: above 1 they are being unlearned."""
        return _ratio(self.twin)

    def dump(self) -> dict[str, Any]:
        """As JSON-able data."""
        return asdict(self)


def _ratio(losses: list[float]) -> float:
    if len(losses) < 3:
        return 1.0
    start = sum(losses[:2]) / 2
    return sum(losses[-3:]) / 3 / start if start > 0 else 1.0
