"""The training loop: steps, checkpoints, guards, progress. Exact on resume."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptalign.config import AlignConfig
from ptalign.errors import GuardTripped, TrainingFailed
from ptalign.losses import kl_divergence
from ptalign.nouns import StepLog
from ptalign.progress import OnProgress, Progress
from ptalign.stats import tango
from ptalign.training import checkpoint
from ptalign.training.balance import FIT_LIMIT, FIT_STEPS, TWIN_LIMIT, Balance
from ptalign.training.batches import Pools, Sampler, Twins
from ptalign.training.decoder import Decoder
from ptalign.training.lora import trainable
from ptalign.training.pools import ANCHOR_ROW
from ptalign.training.refusals import Declines, refused
from ptalign.training.step import (
    STILL,
    Losses,
    Objective,
    accumulate,
    accumulate_apart,
    norm,
)
from ptalign.training.texts import ChatFormat, Sample
from ptalign.training.tree import OnRow, pack
from ptalign.training.twins import ASKED_DURING

WATCHED = 4
"""Held-out samples of the KL that is measured while training; the final one takes all."""
WATCH_EVERY = 4
"""Steps between those measurements."""
ASK_EVERY = 8
"""Steps between the countings of refused twins: each costs about 0.6 of a step (ADR 0013)."""
SAID: dict[Twins, str] = {
    "kept": "held to the bare model's answers",
    "taught": "taught",
    "left out": "none trained on",
}
"""What is done with twins, in words."""


@dataclass(slots=True)
class Run:
    """One training run: everything that changes from step to step."""

    decoder: Decoder
    config: AlignConfig
    sampler: Sampler
    objective: Objective
    optimizer: torch.optim.Optimizer
    parameters: dict[str, Tensor]
    balance: Balance
    ledger: list[StepLog]
    folder: Path
    """Checkpoints."""
    fingerprint: str
    chat: ChatFormat
    declines: Declines
    """Whether the beginning of a reply declines; counts refused twins."""
    done: int = 0
    earlier: dict[str, int] = field(default_factory=dict)
    """Tokens of the ledger that a checkpoint brought."""

    @classmethod
    def start(
        cls,
        decoder: Decoder,
        config: AlignConfig,
        pools: Pools,
        folder: Path,
        fingerprint: str,
        chat: ChatFormat,
        declines: Declines,
        *,
        fresh: bool = True,
    ) -> Run:
        """A run at step 0; `fresh` when it begins at the bare model."""
        parameters = trainable(decoder)
        return cls(
            decoder=decoder,
            config=config,
            sampler=Sampler(
                pools,
                config.pairs_per_step,
                config.twins_per_step,
                config.anchors_per_step,
                config.seed,
                config.elicited_share,
            ),
            objective=Objective(
                config.method, config.beta, pools.reference, pools.bare, pools.candidates
            ),
            optimizer=torch.optim.AdamW(
                parameters.values(), lr=config.learning_rate, weight_decay=0.0
            ),
            parameters=parameters,
            balance=Balance.start(config, fresh=fresh, twins=pools.twins_are),
            ledger=[],
            folder=folder,
            fingerprint=fingerprint,
            chat=chat,
            declines=declines,
        )

    def forget(self) -> None:
        """Drops the checkpoints of an earlier attempt."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def resume(self, fingerprints: Sequence[str]) -> None:
        """Goes to the newest checkpoint, if there is one.

        Args:
            fingerprints: Its inputs must have one of these.
        """
        found = checkpoint.latest(self.folder, *fingerprints)
        if found is None:
            return
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(found.adapter[name])
        checkpoint.load_optimizer(self.optimizer, list(self.parameters), found.optimizer)
        torch.set_rng_state(found.rng)
        if found.device_rng is not None and self.decoder.device.type == "cuda":
            torch.cuda.set_rng_state(found.device_rng, self.decoder.device)
        self.balance = Balance(**found.state["balance"])
        self.ledger = [StepLog.model_validate(entry) for entry in found.state["ledger"]]
        self.done = found.step
        self.earlier = _counts(self.ledger)

    def save(self) -> None:
        """Writes a checkpoint of the steps done."""
        checkpoint.save(
            self.folder,
            checkpoint.Checkpoint(
                step=self.done,
                adapter=self.parameters,
                optimizer=checkpoint.optimizer_tensors(self.optimizer, list(self.parameters)),
                state={
                    "balance": self.balance.dump(),
                    "ledger": [entry.model_dump() for entry in self.ledger],
                },
                rng=torch.get_rng_state(),
                device_rng=self._device_rng(),
            ),
            self.fingerprint,
        )

    def _device_rng(self) -> Tensor | None:
        device = self.decoder.device
        return torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def step(self) -> StepLog:
        """Trains one step and returns its ledger entry.

        Raises:
            TrainingFailed: A loss, a gradient, a weight or benign KL is not finite.
            GuardTripped: Benign KL is over its limit and guards abort.
        """
        begun = time.perf_counter()
        rate = self._set_rate()
        groups = self.sampler.step(self.done)
        with self.decoder.dropping():
            losses = self._gradients(groups)
        values = list(self.parameters.values())
        total = float(torch.nn.utils.clip_grad_norm_(values, self.config.clip))
        self._check_finite(losses, total)
        self.optimizer.step()
        self._check_weights(values)
        self.optimizer.zero_grad(set_to_none=True)
        self.balance.observe(float(losses.mle), float(losses.twin))
        used, twins = self.balance.ut_weight, _tokens(groups, "twin", "kept")
        twin_weight = self.balance.twin_weight if twins else None
        share, rise = self._ask()
        kl = self._watch(rise)
        self.done += 1
        entry = StepLog(
            step=self.done,
            loss_mle=float(losses.mle),
            loss_ut=float(losses.toxic),
            loss_anchor=float(losses.anchor),
            ut_weight=used,
            grad_norm=total,
            grad_norm_mle=self.balance.norm_mle,
            grad_norm_ut=self.balance.norm_ut,
            learning_rate=rate,
            tokens_mle=_tokens(groups, "positive", "twin"),
            tokens_ut=_tokens(groups, "toxic"),
            tokens_anchor=_tokens(groups, *STILL),
            seconds=time.perf_counter() - begun,
            retain_kl=kl,
            twin_refusals=share,
            loss_twin=float(losses.twin) if twins else None,
            twin_weight=twin_weight,
        )
        self.ledger.append(entry)
        return entry

    def _gradients(self, groups: list[tuple[Sample, ...]]) -> Losses:
        """Fills `.grad`; matches the norms of both sides on the step that measures them."""
        due = self.balance.measures(self.done, self.config.steps)
        weights = self.balance.ut_weight, self.balance.twin_weight
        if not (due and _tokens(groups, "toxic")):
            return accumulate(self.decoder, groups, self.objective, *weights)
        values = list(self.parameters.values())
        losses, apart = accumulate_apart(self.decoder, groups, self.objective, values)
        self.balance.match(norm(apart.mle), norm(apart.toxic), self.config.auto_share)
        whole = apart.whole(self.balance.ut_weight, self.balance.twin_weight)
        for parameter, grad in zip(values, whole, strict=True):
            parameter.grad = grad
        return losses

    def _set_rate(self) -> float:
        """Linear warm-up, then a cosine to zero."""
        warmup = min(self.config.warmup_steps, self.config.steps - 1)
        if self.done < warmup:
            share = (self.done + 1) / (warmup + 1)
        else:
            along = (self.done - warmup) / max(self.config.steps - warmup, 1)
            share = 0.5 * (1 + math.cos(math.pi * along))
        rate = self.config.learning_rate * share
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _check_finite(self, losses: Losses, total: float) -> None:
        parts = (losses.mle, losses.toxic, losses.anchor, losses.twin)
        values = (*map(float, parts), total)
        if not all(map(math.isfinite, values)):
            raise TrainingFailed(
                f"step {self.done + 1}: a loss or gradient is not finite; lower learning_rate"
            )

    def _check_weights(self, values: Sequence[Tensor]) -> None:
        """Before a checkpoint holds them: after the last step no loss would tell."""
        if not torch.stack([value.isfinite().all() for value in values]).all():
            raise TrainingFailed(
                f"step {self.done + 1}: a weight is not finite; lower learning_rate"
            )

    def refused(self, most: int | None = None) -> tuple[list[bool], list[bool]]:
        """Whether each of the twins asked is refused: by the bare model, and now.

        Args:
            most: How many are asked; None: all that the bare model was asked.
        """
        pools = self.sampler.pools
        before = list(pools.asked_before[:most])
        asked = pools.asked[: len(before)]
        now = refused(self.decoder, self.chat, asked, self.declines, pools.asked_tokens)
        return before, now

    def _ask(self) -> tuple[float | None, float | None]:
        """The share of twins refused every few steps, and how much more than the bare model's."""
        if (self.done + 1) % ASK_EVERY or not self.sampler.pools.asked_before:
            return None, None
        before, now = self.refused(ASKED_DURING)
        return _share(now), _share(now) - _share(before)

    def _watch(self, rise: float | None) -> float | None:
        """Benign KL every few steps; budgets and guards against it and the rise in refusals."""
        held_out = self.sampler.pools.held_out[:WATCHED]
        due = (self.done + 1) % WATCH_EVERY == 0 and self.done + 1 < self.config.steps
        kl = benign_kl(self.decoder, held_out) if due and held_out else None
        if due:
            self.balance.adjust(self.done + 1, kl, self.config, rise)
        limit = self.config.max_benign_kl
        # A few samples are noisy: only a clear excess ends a run before its final measurement.
        if kl is not None and not kl <= 2 * limit and self.config.guards == "abort":
            raise GuardTripped("benign_kl", kl, limit)
        return kl


def train(run: Run, on_progress: OnProgress) -> None:
    """Runs to the last step. `Cancelled` from `on_progress` passes after a checkpoint."""
    while run.done < run.config.steps:
        entry = run.step()
        last = run.done == run.config.steps
        if last or run.done % run.config.checkpoint_every == 0:
            run.save()
        try:
            on_progress(_progress(run, entry))
        except BaseException:
            if run.done % run.config.checkpoint_every and not last:
                run.save()
            raise


def _progress(run: Run, entry: StepLog) -> Progress:
    values = {
        "loss_mle": entry.loss_mle,
        "loss_ut": entry.loss_ut,
        "loss_anchor": entry.loss_anchor,
        "ut_weight": entry.ut_weight,
        "learning_rate": entry.learning_rate,
        "step_seconds": entry.seconds,
        "tokens_mle": float(entry.tokens_mle),
        "tokens_ut": float(entry.tokens_ut),
    }
    later = {
        "retain_kl": run.balance.kl,
        "loss_twin": entry.loss_twin,
        "twin_weight": entry.twin_weight,
    }
    values |= {name: value for name, value in later.items() if value is not None}
    counts = _counts(run.ledger)
    return Progress("training", run.done, run.config.steps, counts, values, run.earlier)


def _counts(ledger: Sequence[StepLog]) -> dict[str, int]:
    return {
        "tokens_mle": sum(e.tokens_mle for e in ledger),
        "tokens_ut": sum(e.tokens_ut for e in ledger),
        "tokens_anchor": sum(e.tokens_anchor for e in ledger),
    }


def _tokens(groups: list[tuple[Sample, ...]], *parts: str) -> int:
    return sum(w > 0 for g in groups for s in g if s.part in parts for w in s.weights)


def benign_kl(
    decoder: Decoder,
    samples: Sequence[Sample],
    on_row: OnRow = lambda done, total: None,
) -> float:
    """KL(bare || adapted), nats per answer token, on samples that were not trained on.

    Raises:
        TrainingFailed: It is not finite: no budget can be kept by it, whatever guards do.
    """
    total, tokens = 0.0, 0
    rows = pack([[s] for s in samples], ANCHOR_ROW)
    for done, row in enumerate(rows, 1):
        with torch.no_grad():
            adapted, _ = decoder.target_states(row)
            with decoder.bare():
                bare, _ = decoder.target_states(row)
        total += float(kl_divergence(bare, adapted, decoder.head).sum())
        tokens += len(bare)
        on_row(done, len(rows))
    if not math.isfinite(total):
        raise TrainingFailed(
            "benign KL is not finite: the adapter, or the model without it, makes no "
            "probabilities; lower learning_rate"
        )
    return total / tokens if tokens else 0.0


def check_guards(run: Run, kl: float, measured_on: str) -> dict[str, str]:
    """Checks every guard at the end of a run; returns what each found, in words.

    Args:
        run: A finished run.
        kl: Final benign KL.
        measured_on: What it was measured on; empty when it could not be.

    Raises:
        GuardTripped: A budget was exceeded and guards abort.
    """
    limit, config = run.config.max_benign_kl, run.config
    long, twins = config.steps >= FIT_STEPS, run.sampler.pools.twins_are
    checks: list[tuple[str, float, float, bool]] = [
        ("benign_kl", kl, limit, bool(measured_on)),
        ("mle_fit", run.balance.fit, FIT_LIMIT, long and run.balance.fresh),
        ("twin_fit", run.balance.twin_ratio, TWIN_LIMIT, long and twins == "taught"),
    ]
    if config.method == "dpo":  # it prefers most good answers, and need not make them likelier
        checks = [check for check in checks if check[0] != "mle_fit"]
    found: dict[str, Any] = {}
    for name, value, most, judged in checks:
        if judged and not value <= most and config.guards == "abort":
            raise GuardTripped(name, value, most)
        state = "not judged" if not judged else "ok" if value <= most else "exceeded"
        found[name] = f"{state}: {value:.3f}, limit {most:.3f}"
    if measured_on:
        found["benign_kl"] += f", on {measured_on}"
    found["twin_refusals"] = _refusals(run)
    found["twins"] = "; ".join((SAID[twins], *run.balance.twin_notes))
    if run.balance.automatic and not run.balance.ceiling:
        found["ut_weight"] = "0 throughout: no toxic token had a gradient to match"
    elif run.balance.notes:
        found["ut_weight"] = "; ".join(run.balance.notes)
    return found


def _refusals(run: Run) -> str:
    """The guard on refused twins, in words: how many more than the bare model refuses.

    Raises:
        GuardTripped: The rise is over its limit for sure, and guards abort.
    """
    limit = run.config.max_twin_refusals
    if not run.sampler.pools.asked_before:
        return "not judged: no twin in a language whose refusals are known"
    before, after = run.refused()
    lost = sum(old and not new for old, new in zip(before, after, strict=True))
    won = sum(new and not old for old, new in zip(before, after, strict=True))
    rise, low, _ = tango(lost, won, len(before))
    run.balance.refusals = rise
    if low > limit and run.config.guards == "abort":
        raise GuardTripped("twin_refusals", rise, limit)
    state = "exceeded" if low > limit else "ok" if rise <= limit else "unsure"
    held_out = run.sampler.pools.asked_unseen
    which = "held-out twins" if held_out else "twins, trained ones among them"
    shares = f"from {_share(before):.3f} to {_share(after):.3f}"
    return f"{state}: {rise:.3f}, {shares}, limit {limit:.3f}, {len(before)} {which}"


def _share(said: Sequence[bool]) -> float:
    return sum(said) / len(said)
