"""Stage 3: MLE on good answers, fine-grained unlikelihood on toxic ones, into a LoRA adapter.

    L = L_MLE(positives) + KL(bare || tuned)(anchors) + tau KL(bare || tuned)(twins)
        + lambda L_UT(toxic)

Twins of a model that refuses them are taught instead: their term is L_MLE then (ADR 0017).

Each part has its own mask and denominator. The unflagged tokens of a toxic answer are context: no
term makes one likelier, and L_UT lowers it only where it is one of the set's harm words (ADR 0018).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ptalign.answering.validity import refuses
from ptalign.config import AlignConfig
from ptalign.disk import put_in_place
from ptalign.errors import InvalidInput
from ptalign.judges.base import Judge
from ptalign.nouns import Adapter, ModelSpec, PairSet, Policy, Suppressed, digest_of
from ptalign.policies.never import permitted
from ptalign.progress import OnProgress, Progress, ignore
from ptalign.training import checkpoint, explain, lora, pools
from ptalign.training.batches import Pools
from ptalign.training.candidates import with_candidates
from ptalign.training.decoder import Decoder
from ptalign.training.loop import Run, benign_kl, check_guards, train
from ptalign.training.swapped import refuse_swapped
from ptalign.training.texts import DATE, ChatFormat, Sample, fitting, toxic_sample
from ptalign.training.tree import OnRow, pack
from ptalign.training.twins import ask, settled
from ptalign.weights.sheet import sheet
from ptalign.weights.words import STOP_WORDS, words_of

EXPLAINED = 24
"""Toxic answers whose words the explanation follows."""
CHECKED = 2
"""Groups of samples that the layout and the saved adapter are checked on."""


def align(
    pairs: PairSet,
    *,
    model: ModelSpec,
    out: Path,
    config: AlignConfig,
    policy: Policy | None = None,
    parent: Path | None = None,
    taught: Collection[str] = (),
    resume: bool = True,
    judge: Judge | None = None,
    on_progress: OnProgress = ignore,
) -> Adapter:
    """Trains an adapter on a pair set.

    Writes ``out/adapter`` (a PEFT folder), ``out/checkpoints``, ``out/token_weights.safetensors``
    (positions and weights, no text), ``out/token_weights.json`` (the same for people, words masked;
    not for `mle`), ``out/twins.json`` (whether the bare model refuses each twin asked),
    ``out/ledger.json`` and, where the chat template prints the date, ``out/day.json``.

    Args:
        pairs: What SynthesizePairs made.
        model: The model entry: the same chat template and system prompt as in the other stages.
        out: Folder of the run.
        config: Method, weights, budget, guards, seed.
        policy: Protected words, generic constraints and what is never synthesised. Pairs and
            anchors that contain such text are left out, and counted in the guard ``blocked``.
        parent: Adapter folder to continue training.
        taught: Ids of pairs and anchors that this set holds out although the parent was trained
            on them. Such twins do not count as unseen, and benign KL is not measured on such
            anchors.
        resume: Continue from the newest checkpoint under `out`.
        judge: For the scorers `judge` and `blend`.
        on_progress: Called after each step; may raise `Cancelled`, which keeps a checkpoint.

    Returns:
        The adapter with its ledger, guard results and explanation.

    Raises:
        InvalidInput: The set is empty or partial, has swapped columns, or has no anchors that fit
            `max_length` although `anchors_per_step` asks for some; `ut_weight` is set for a method
            without that term; or the checkpoint was made from other inputs.
        TrainingFailed: A part has no tokens; a loss, a weight or benign KL is not finite; or the
            adapter changes nothing.
        GuardTripped: A budget was exceeded, and ``guards="abort"``.
        Unsupported: The model's shape cannot be trained.
        DataDamaged: All checkpoints, or the parent adapter, are damaged.
        Cancelled: From `on_progress`.
    """
    begun = time.perf_counter()
    given, pairs = pairs, permitted(pairs, policy, _reading(on_progress))
    blocked = pairs.rejected.get("blocked", 0) - given.rejected.get("blocked", 0)
    _check(pairs, config)
    config = config.model_copy(update={"steps": config.steps_for(pools.count_trained(pairs))})
    if config.threads:
        torch.set_num_threads(config.threads)
    on_progress(Progress("loading the model", 0, config.steps))
    tokenizer = lora.load_tokenizer(model)
    chat = ChatFormat(tokenizer, model, _day(tokenizer, out, resume))
    locale, positions = policy.locale if policy else "en", lora.positions(model)
    plan = pools.make_pools(pairs, chat, config, locale, taught, positions)
    causal_lm = lora.load_model(model, config.device)
    decoder = lora.attach(causal_lm, config.lora, config.seed, parent)
    groups = [*plan.pairs, *plan.positives]
    decoder.settle([s for g in groups[:CHECKED] for s in _whole(g)])
    job = _Job(
        pairs, model, out, config, policy, parent, judge, on_progress, blocked, chat.respells
    )
    place = out / "checkpoints"
    if resume:  # before weighing, which would replace another run's weights
        checkpoint.check(place, *job.fingerprints)
    plan = job.weigh(plan, decoder, chat)
    pools.check_parts(plan, config)
    plan = settled(plan, job.asked(plan, decoder, chat), config)
    plan = pools.with_bare(plan, decoder, config, job.rows("reading anchors and twins"))
    run = Run.start(
        decoder, config, plan, place, job.fingerprint, chat, refuses, fresh=parent is None
    )
    if resume:
        run.resume(job.fingerprints)
    else:
        run.forget()
    before = sum(entry.seconds for entry in run.ledger)
    train(run, on_progress)
    return job.finish(run, chat, begun - before)


def _day(tokenizer: Any, out: Path, resume: bool) -> datetime | None:
    """When the run began, where the chat template prints the date: a resume prints the same."""
    if DATE not in str(tokenizer.chat_template):
        return None
    file = out / "day.json"
    day = _read_json(file) if resume else None
    if day is None:
        day = datetime.now().date().isoformat()
        _write_json(file, day)
    return datetime.fromisoformat(day)


def _reading(on_progress: OnProgress) -> Callable[[int, int], None]:
    return lambda done, total: on_progress(Progress("reading the pairs", done, total))


def _check(pairs: PairSet, config: AlignConfig) -> None:
    pools.check_set(pairs)
    if config.ut_weight is not None and config.method not in ("pt_align", "ut_uniform"):
        raise InvalidInput(
            "ut_weight",
            f"method {config.method} has no unlikelihood term",
            "Leave ut_weight out, or use pt_align or ut_uniform.",
        )
    if config.anchors_per_step and not any(not a.held_out for a in pairs.anchors):
        raise InvalidInput(
            "pair_set",
            "the set holds no anchors to train on: without them a model refuses ordinary requests "
            "too, and no guard can tell",
            "Refine it by SynthesizePairs with this set as parent, which writes them, or "
            f"{pools.WITHOUT_ANCHORS}",
        )
    refuse_swapped(pairs.pairs)


def _whole(group: tuple[Sample, ...]) -> list[Sample]:
    """Samples with every answer token weighted, to compare hidden states at all of them."""
    return [s.weighted([1.0] * len(s.answer)) for s in group]


@dataclass(frozen=True, slots=True)
class _Job:
    """The inputs of one run."""

    pairs: PairSet
    model: ModelSpec
    out: Path
    config: AlignConfig
    policy: Policy | None
    parent: Path | None
    judge: Judge | None
    on_progress: OnProgress
    blocked: int
    """Pairs and anchors that the never-synthesize list kept out."""
    respells: bool
    """Whether an earlier version would have trained on other tokens: its runs do not go on."""

    @property
    def fingerprint(self) -> str:
        """Digest of all that decides the result; a resume under another one is refused.

        Threads and device are left out: they move the last bits, and a job whose machine was
        replaced must be able to go on. Guards stop a run and change no weight: one that they
        stopped may be kept.
        """
        return self._digest("abort")

    @property
    def fingerprints(self) -> tuple[str, str]:
        """`fingerprint`, and the one that earlier versions gave a run with ``guards="record"``.

        A checkpoint under either may be resumed.
        """
        return self.fingerprint, self._digest("record")

    def _digest(self, guards: str) -> str:
        elsewhere = {"checkpoint_every", "threads", "device"}
        if not self._takes_candidates:  # what earlier versions began goes on
            elsewhere.add("ut_candidates")
        if self.config.opening_weight == 1:
            elsewhere.add("opening_weight")
        return digest_of(
            {
                **({"answers": "behind the prompt"} if self.respells else {}),
                "pairs": self.pairs.digest,
                "model": self.model.model_dump(mode="json", exclude={"path"}),
                "config": {
                    **self.config.model_dump(mode="json", exclude=elsewhere),
                    "guards": guards,
                },
                "policy": self.policy.digest if self.policy else "",
                "parent": lora.sha256_of(self.parent / lora.WEIGHTS) if self.parent else "",
                "judge": self.judge.id if self.judge else "",
            }
        )

    def weigh(self, plan: Pools, decoder: Decoder, chat: ChatFormat) -> Pools:
        """Gives toxic answers their token weights, and dpo and npo their reference."""
        if self.config.method == "mle":
            return plan
        file = self.out / "token_weights.safetensors"
        weights, found = _read_weights(file, self.fingerprints), None
        if weights is None:
            found = pools.weigh_pairs(
                self.pairs,
                decoder,
                chat,
                self.config,
                self.policy,
                self.judge,
                self.rows("weighing tokens"),
                {s.key for group in plan.pairs for s in group if s.part == "toxic"},
            )
            weights = dict(found.by_key)
        plan = pools.with_weights(plan, weights, self.config.method)
        if self._takes_candidates:
            kept = pools.protected_words(self.pairs, self.config, self.policy)
            words = {word for text in kept for word in words_of(text)}
            never = chat.tokens_of(words.union(kept)) | chat.beginnings(STOP_WORDS)
            plan = with_candidates(plan, never)
        if found is not None:  # the weights last: they say that both are there
            shown = sheet(found, pools.scorer_of(self.config), plan.candidates)
            _write_json(self.out / lora.TOKEN_SHEET, shown)
            _write_weights(file, weights, self.fingerprint)
        if self.config.method in ("dpo", "npo"):
            plan = pools.with_reference(plan, decoder, self.rows("scoring the reference"))
        return plan

    @property
    def _takes_candidates(self) -> bool:
        config = self.config
        flags_words = config.method == "pt_align" and config.scorer != "uniform"
        return flags_words and config.ut_candidates == "set"

    def asked(self, plan: Pools, decoder: Decoder, chat: ChatFormat) -> list[bool]:
        """Which twins the bare model refuses: asked once, so that a resume decides alike."""
        file = self.out / "twins.json"
        now = {"fingerprint": self.fingerprint, "asked": [s.key for s in plan.asked]}
        known = _read_json(file)
        if known is not None:
            of_this = known["fingerprint"] in self.fingerprints
            # earlier versions did not say who was asked: as many are the same ones
            same = known["asked"] == now["asked"] if "asked" in known else True
            if of_this and same and len(known["refused"]) <= len(plan.asked):
                return list(known["refused"])
        self.on_progress(Progress("asking twins", 0, 0))
        found = ask(plan, decoder, chat, refuses)
        _write_json(file, {**now, "refused": found})
        return found

    def finish(self, run: Run, chat: ChatFormat, begun: float) -> Adapter:
        """Measures, guards, saves, reloads and explains a trained run.

        Args:
            begun: Its start by `time.perf_counter`, moved back by the seconds that the resumed
                steps of earlier attempts took.
        """
        plan, decoder = run.sampler.pools, run.decoder
        rows = self.rows("measuring")
        kl, measured_on = _final_kl(decoder, plan, rows)
        guards = check_guards(run, kl, measured_on)
        if decoder.reason:
            guards["layout"] = decoder.reason
        if plan.left_out:
            own = plan.longest < self.config.max_length
            limit = f"the model's {plan.longest} positions" if own else "max_length"
            guards["left_out"] = f"{plan.left_out} samples over {limit} or empty"
        if self.blocked:
            guards["blocked"] = (
                f"{self.blocked} pairs and anchors say what is never synthesised: left out"
            )
        suppressed, collateral = _explain(self.pairs, decoder, chat, plan, self.policy)
        folder = self.out / "adapter"
        sha256 = lora.save_adapter(decoder, folder)
        checked = [_whole(g) for g in [*plan.pairs, *plan.positives][:CHECKED]]
        change = lora.check_live(decoder, folder, pack(checked, 10**9)[0])
        if plan.candidates:
            guards["candidates"] = f"{len(plan.candidates)} tokens pushed down at every place"
        guards["live"] = f"ok: reloaded, changes a margin by up to {change:.2f} nats"
        adapter = Adapter(
            path=str(folder),
            weights_sha256=sha256,
            method=self.config.method,
            tokens_mle=sum(e.tokens_mle for e in run.ledger),
            tokens_ut=sum(e.tokens_ut for e in run.ledger),
            tokens_anchor=sum(e.tokens_anchor for e in run.ledger),
            ledger=tuple(run.ledger),
            retain_kl=kl,
            guards=guards,
            suppressed=suppressed,
            collateral=collateral,
            seconds=time.perf_counter() - begun,
        )
        _write_ledger(self.out / lora.LEDGER, adapter)
        return adapter

    def rows(self, phase: str) -> OnRow:
        return lambda done, total: self.on_progress(Progress(phase, done, total))


def _final_kl(decoder: Decoder, plan: Pools, on_row: OnRow) -> tuple[float, str]:
    """Benign KL and what it was measured on: held-out anchors unless there are none."""
    if plan.held_out:
        return benign_kl(decoder, plan.held_out, on_row), "held-out anchors"
    if plan.anchors:
        trained = [s for group in plan.anchors[:16] for s in group]
        return benign_kl(decoder, trained, on_row), "training anchors, none is held out"
    return 0.0, ""


def _explain(
    pairs: PairSet, decoder: Decoder, chat: ChatFormat, plan: Pools, policy: Policy | None
) -> tuple[tuple[Suppressed, ...], dict[str, float]]:
    """Suppressed tokens of toxic answers, before and after, and what ordinary answers lost."""
    harm = pools.harm_words(pairs, chat, policy)
    read = [toxic_sample(p, chat) for p in pools.sampled(pairs, EXPLAINED)]
    toxic, _ = fitting(read, plan.longest)
    bad = explain.watch(
        decoder, chat, toxic, pools.topics_of(pairs), lambda s, i: harm[s.key][i] > 0
    )
    benign = plan.held_out or [s for group in plan.anchors[:8] for s in group]
    good = explain.watch(decoder, chat, benign, {})
    found = explain.suppressed(bad.words, bad.after(decoder))
    neutral = [*benign, *plan.asked][: explain.NEUTRAL]
    return (
        explain.beside_neutral(found, bad.words, decoder, neutral),
        explain.collateral(good.words, good.after(decoder)),
    )


def _write_weights(file: Path, weights: dict[str, tuple[float, ...]], fingerprint: str) -> None:
    tensors = {key: torch.tensor(values) for key, values in weights.items()}
    with _replacing(file) as partial:
        save_file(tensors, partial, metadata={"fingerprint": fingerprint})


def _read_weights(file: Path, fingerprints: Sequence[str]) -> dict[str, tuple[float, ...]] | None:
    """Weights of an earlier attempt with the same inputs; None when none can be read."""
    try:
        with safe_open(file, "pt") as stored:
            if (stored.metadata() or {}).get("fingerprint") not in fingerprints:
                return None
            return {key: tuple(stored.get_tensor(key).tolist()) for key in stored.keys()}  # noqa: SIM118
    except (FileNotFoundError, SafetensorError):  # a power cut emptied what earlier versions wrote
        return None


def _write_ledger(file: Path, adapter: Adapter) -> None:
    """The ledger without the explanation's tokens: nothing in it needs a role to read."""
    _write_json(file, adapter.model_dump(mode="json", exclude={"path", "suppressed", "collateral"}))


def _read_json(file: Path) -> Any:
    """What an earlier attempt wrote; None when none can be read, as in `_read_weights`."""
    try:
        return json.loads(file.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _write_json(file: Path, body: Any) -> None:
    with _replacing(file) as partial:
        partial.write_text(json.dumps(body, indent=1), "utf-8")


@contextmanager
def _replacing(file: Path) -> Iterator[Path]:
    """A file to write beside `file`, which takes its place once all of it is on the disk."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    yield partial
    put_in_place(partial, file)
