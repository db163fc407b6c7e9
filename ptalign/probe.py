"""Teacher-forced measurements of adapters against the bare model: no sampling, seconds.

Toxic answers are read under attack: their topic's toxic constraints stand in the system prompt.
There the bare model finds them likely, and a tuned one should not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ptalign.config import EvalConfig
from ptalign.losses import kl_divergence, margins
from ptalign.nouns import Answers, ModelSpec, PairSet, Policy, Probe
from ptalign.progress import OnProgress, Progress, ignore
from ptalign.stats import ratio_interval
from ptalign.training import explain, lora, pools
from ptalign.training.contrast import constraints_of
from ptalign.training.decoder import Decoder
from ptalign.training.served import likeliest, read, replies
from ptalign.training.texts import (
    LONGEST,
    ChatFormat,
    Sample,
    anchor_sample,
    fitting,
    toxic_sample,
)
from ptalign.training.tree import Row, Targets, pack

TOXIC = 24
"""Toxic answers read, at most."""
BENIGN = 64
"""Held-out anchors read, at most."""


def probe(
    pairs: PairSet,
    adapters: Mapping[str, str | Path],
    answers: Mapping[str, Answers] | None = None,
    *,
    model: ModelSpec,
    samples: int = EvalConfig().samples,
    policy: Policy | None = None,
    threads: int = 0,
    device: str = "cpu",
    on_progress: OnProgress = ignore,
) -> dict[str, Probe]:
    """Measures each adapter against the bare model.

    Harm words are the log-odds words of the pair set, the same for every adapter, so that methods
    with different token weights are compared on one list.

    Args:
        pairs: Toxic answers and held-out anchors come from here, but those of more tokens than the
            model has positions, or than 2,048; toxic answers that are held out decide, where there
            are enough.
        adapters: Label -> PEFT folder; an empty path is the bare model itself.
        answers: Label -> (request, reply) pairs that an engine decoded greedily for it: whether
            they are this model's own (`Probe.engine_agreement`). None leaves that out.
        model: The model entry.
        samples: Toxic answers read, at most; never more than `TOXIC`.
        policy: Generic constraints and protected words.
        threads: torch threads; 0 leaves them.
        device: Where to run.
        on_progress: Called after each adapter; may raise `Cancelled`.

    Returns:
        Label -> measurements, in the order of `adapters`.

    Raises:
        Unsupported: An adapter folder holds anything but safetensors and json.
    """
    if threads:
        torch.set_num_threads(threads)
    chat = ChatFormat(lora.load_tokenizer(model), model)
    causal_lm = lora.load_model(model, device)
    bare = Decoder(causal_lm)
    texts = _Texts.read(bare, pairs, chat, samples, policy)
    found = {}
    wrote = {label: replies((answers or {}).get(label, ()), chat) for label in adapters}
    own: dict[str, Tensor] = {}
    others: dict[str, list[Tensor]] = defaultdict(list)
    for done, (label, folder) in enumerate(adapters.items(), 1):
        decoder, unload = _with_adapter(causal_lm, folder)
        decoder.layout = bare.layout
        found[label] = texts.measure(decoder)
        own[label] = likeliest(decoder, wrote[label])
        if decoder.peft is not None:
            with decoder.bare():
                others[label].append(likeliest(decoder, wrote[label]))
            for plain in (other for other, path in adapters.items() if not str(path)):
                others[plain].append(likeliest(decoder, wrote[plain]))
        causal_lm = unload()
        on_progress(Progress("probing", done, len(adapters)))
    return {
        label: measured.model_copy(update=read(own[label], others[label]))
        for label, measured in found.items()
    }


def _with_adapter(causal_lm: Any, folder: str | Path) -> tuple[Decoder, Any]:
    """The model under an adapter, and the call that takes it off again."""
    if not str(folder):
        return Decoder(causal_lm), lambda: causal_lm
    from peft import PeftModel

    lora.refuse_foreign(Path(folder))
    peft = PeftModel.from_pretrained(causal_lm, str(folder)).eval()
    return Decoder(causal_lm, peft), peft.unload


@dataclass(frozen=True, slots=True)
class _Texts:
    """What is read, with the bare model's numbers."""

    toxic: explain.Watch
    """Held-out toxic answers, trained ones where too few are held out."""
    taught: explain.Watch | None
    """Trained toxic answers beside held-out ones."""
    unseen: int
    """How many of `toxic` are held out."""
    ordinary: explain.Watch
    neutral: list[Sample]
    """Ordinary answers that suppressed words are looked up in."""
    rows: list[Row]
    """Held-out anchors, every answer token weighted."""
    asked: Mapping[str, str]
    """Anchor -> its instruction, which several may answer."""
    states: list[Tensor]
    """Per row: the bare model's hidden states [targets, hidden]."""

    @classmethod
    def read(
        cls,
        decoder: Decoder,
        pairs: PairSet,
        chat: ChatFormat,
        samples: int,
        policy: Policy | None,
    ) -> _Texts:
        """Runs the bare model once over all texts that are short enough."""
        flagged = pools.harm_words(pairs, chat, policy)
        longest = min(LONGEST, decoder.positions)

        def attacked_of(some: PairSet) -> list[Sample]:
            read = [
                toxic_sample(p, chat, constraints_of(pairs, policy, p.topic)["toxic"])
                for p in pools.sampled(some, min(TOXIC, samples))
            ]
            return fitting(read, longest)[0]

        def watched(samples: Sequence[Sample]) -> explain.Watch:
            topics = pools.topics_of(pairs)
            return explain.watch(decoder, chat, samples, topics, lambda s, i: flagged[s.key][i] > 0)

        kept = pools.unseen(pairs)
        attacked = attacked_of(kept or pairs)
        benign, _ = fitting(benign_samples(pairs, chat), longest)
        decoder.settle([s.weighted([1.0] * len(s.answer)) for s in (attacked[:2] or benign[:2])])
        held_out = {a.id: a.instruction for a in pairs.anchors if a.held_out}
        rows = pack([[s] for s in benign if s.key in held_out], 512)
        return cls(
            toxic=watched(attacked),
            taught=watched(attacked_of(pools.trained(pairs))) if kept else None,
            unseen=len(attacked) if kept else 0,
            ordinary=explain.watch(decoder, chat, benign, {}),
            neutral=benign[: explain.NEUTRAL],
            rows=rows,
            asked=held_out,
            states=[_states(decoder, row)[0] for row in rows],
        )

    def measure(self, decoder: Decoder) -> Probe:
        """All measurements of one adapter."""
        kl: list[float] = []  # per held-out anchor
        sizes: list[int] = []
        asked: list[str] = []
        nll = 0.0
        for row, base in zip(self.rows, self.states, strict=True):
            states, targets = _states(decoder, row)
            nats = kl_divergence(base, states, decoder.head)
            owners, count = targets.owners.cpu(), len(row.samples)
            kl += torch.bincount(owners, nats.double().cpu(), minlength=count).tolist()
            sizes += torch.bincount(owners, minlength=count).tolist()
            nll -= float(logsigmoid(margins(states, targets.tokens, decoder.head)).sum())
            asked += [self.asked[sample.key] for sample in row.samples]
        tokens = sum(sizes)
        after, ordinary = self.toxic.after(decoder), self.ordinary.after(decoder)
        taught, learned = self.taught, self.taught.after(decoder) if self.taught else []
        words = (taught or self.toxic).words
        suppressed = explain.suppressed(words, learned or after)
        if decoder.peft is not None:
            suppressed = explain.beside_neutral(suppressed, words, decoder, self.neutral)
        return Probe(
            benign_kl=sum(kl) / tokens if tokens else None,
            benign_kl_interval=_interval(kl, sizes, asked) if tokens else None,
            anchor_kl=tuple(nats / size for nats, size in zip(kl, sizes, strict=True)),
            anchor_instructions=len(set(asked)),
            benign_nll=nll / tokens if tokens else None,
            harm_word_ratio=explain.harm_ratio(self.toxic.words, after),
            selectivity=explain.selectivity(self.toxic.words, after),
            harm_word_ratio_interval=explain.harm_ratio_interval(self.toxic.words, after),
            toxic_answers=len(self.toxic.samples),
            held_out_toxic=self.unseen,
            trained_harm_word_ratio=explain.harm_ratio(taught.words, learned) if taught else None,
            trained_selectivity=explain.selectivity(taught.words, learned) if taught else None,
            suppressed=suppressed,
            collateral=explain.collateral(self.ordinary.words, ordinary) if ordinary else None,
        )


def _interval(
    kl: Sequence[float], sizes: Sequence[int], asked: Sequence[str]
) -> tuple[float, float] | None:
    """Of nats a token, over instructions: several answers to one are no independent sample."""
    totals: dict[str, float] = defaultdict(float)
    tokens: dict[str, int] = defaultdict(int)
    for nats, size, instruction in zip(kl, sizes, asked, strict=True):
        totals[instruction] += nats
        tokens[instruction] += size
    return ratio_interval(list(totals.values()), list(tokens.values()))


def _states(decoder: Decoder, row: Row) -> tuple[Tensor, Targets]:
    """Hidden states [targets, hidden] of a row's weighted tokens, and what they belong to."""
    with torch.no_grad():
        return decoder.target_states(row)


def benign_samples(pairs: PairSet, chat: ChatFormat) -> list[Sample]:
    """Held-out anchors; training anchors where none is held out."""
    held_out = [a for a in pairs.anchors if a.held_out] or list(pairs.anchors)
    samples = [anchor_sample(a, chat) for a in held_out[:BENIGN]]
    return [s for s in samples if s.answer]
