"""What an adapter did to words: suppressed tokens, collateral, selectivity."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from ptalign.nouns import COLLATERAL, Suppressed
from ptalign.sealed import SealedText
from ptalign.stats import ratio_interval
from ptalign.training.contrast import ROW, token_log_probs
from ptalign.training.decoder import Decoder
from ptalign.training.texts import ChatFormat, Sample
from ptalign.training.tree import pack
from ptalign.weights.words import word_starts, words_of

NEUTRAL = 24
"""Neutral answers that suppressed words are looked up in, at most."""


@dataclass(frozen=True, slots=True)
class Word:
    """One word in one text, with its first token's log-prob under the bare model."""

    word: str
    topic: str
    harm: bool
    before: float
    token: int = -1
    """Id of the first token."""
    text: str = ""
    """Key of the text."""
    whole: bool = True
    """Whether that token is all of the word."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Texts whose words are followed through training."""

    samples: tuple[Sample, ...]
    words: tuple[Word, ...]
    """In the order of the samples' weighted tokens."""

    def after(self, decoder: Decoder) -> list[float]:
        """Log-probs of the words with the adapter on, in order."""
        found = token_log_probs(decoder, [[s] for s in self.samples], bare=False)
        return [value for s in self.samples for value in found[s.key]]


Mark = Callable[[Sample, int], bool]
"""Whether the answer token at a place is a harm word."""


def watch(
    decoder: Decoder,
    chat: ChatFormat,
    samples: Sequence[Sample],
    topics: Mapping[str, str],
    harm: Mark = lambda sample, place: False,
) -> Watch:
    """Takes the bare model's log-probs of all words of some texts.

    Args:
        decoder: The model; its adapter is switched off here.
        chat: Decodes tokens.
        samples: Texts, with unique keys; their weights are replaced by one weight per word.
        topics: Sample key -> topic.
        harm: Marks harm words.
    """
    kept, labels = [], []
    for sample in samples:
        pieces = chat.pieces(sample.answer[:-1])
        starts = word_starts(pieces)
        if not any(starts):
            continue
        kept.append(sample.weighted([*(float(bool(word)) for word in starts), 0.0]))
        labels += [
            (w, topics.get(sample.key, ""), harm(sample, i), i, sample, _whole(pieces, i, w))
            for i, w in enumerate(starts)
            if w
        ]
    found = token_log_probs(decoder, [[s] for s in kept])
    before = [value for s in kept for value in found[s.key]]
    words = tuple(
        Word(word, topic, bad, value, sample.answer[i], sample.key, whole)
        for (word, topic, bad, i, sample, whole), value in zip(labels, before, strict=True)
    )
    return Watch(tuple(kept), words)


def _whole(pieces: Sequence[str], place: int, word: str) -> bool:
    """Whether the token at a place spells a word by itself; one before it may hold a part of a
    character."""
    return words_of(pieces[place]) == {word} and (not place or bool(pieces[place - 1]))


def suppressed(words: Sequence[Word], after: Sequence[float]) -> tuple[Suppressed, ...]:
    """Harm words by topic, most probability lost first: geometric means before and after."""
    grouped: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for word, value in zip(words, after, strict=True):
        if word.harm:
            grouped[word.word, word.topic].append((word.before, value))
    found = [
        Suppressed(
            token=SealedText(word),
            topic=topic,
            count=len(values),
            p_before=math.exp(_mean([b for b, _ in values])),
            p_after=math.exp(_mean([a for _, a in values])),
        )
        for (word, topic), values in sorted(grouped.items())
    ]
    lost = [s for s in found if s.p_after < s.p_before]
    return tuple(sorted(lost, key=lambda s: s.count * (s.p_after - s.p_before)))


def beside_neutral(
    found: Sequence[Suppressed],
    words: Sequence[Word],
    decoder: Decoder,
    samples: Sequence[Sample],
) -> tuple[Suppressed, ...]:
    """The same words with how likely they are in neutral answers, before and after.

    A word is all the tokens that spell it by themselves: "Rude", " rude". Words of several tokens
    go without: the first is a piece of many other words too.

    Args:
        found: Suppressed words of `words`.
        words: They say which tokens each word begins with.
        decoder: The model with its adapter.
        samples: Neutral answers, every answer token weighted.
    """
    tokens: dict[str, set[int]] = defaultdict(set)
    for word in words:
        if word.whole:
            tokens[word.word].add(word.token)
    ids = sorted({token for s in found for token in tokens.get(s.token.reveal(), ())})
    if not ids or not samples:
        return tuple(found)
    before, after = (mean_probabilities(decoder, samples, ids, bare=bare) for bare in (True, False))

    def seen(word: Suppressed) -> Suppressed:
        if word.token.reveal() not in tokens:
            return word
        places = [ids.index(token) for token in tokens[word.token.reveal()]]
        update = {
            "neutral_before": math.fsum(before[place] for place in places),
            "neutral_after": math.fsum(after[place] for place in places),
        }
        return word.model_copy(update=update)

    return tuple(map(seen, found))


def mean_probabilities(
    decoder: Decoder, samples: Sequence[Sample], ids: Sequence[int], *, bare: bool
) -> list[float]:
    """Mean probability of each token over the places of the weighted answer tokens.

    Args:
        decoder: The model.
        samples: Answers.
        ids: Tokens, by id.
        bare: Without the adapter.

    Returns:
        One mean per id.
    """
    sums, places = torch.zeros(len(ids), dtype=torch.float64), 0
    wanted = torch.tensor(list(ids), device=decoder.device)
    for row in pack([[s] for s in samples], ROW):
        with torch.no_grad(), decoder.bare() if bare else nullcontext():
            states, _ = decoder.target_states(row)
            for chunk in states.split(decoder.head.chunk):
                logits = decoder.head.logits(chunk)  # [rows, vocabulary]
                shares = (logits[:, wanted] - logits.logsumexp(dim=-1, keepdim=True)).exp()
                sums += shares.sum(dim=0).double().cpu()
                places += len(chunk)
    return (sums / max(places, 1)).tolist()


def collateral(words: Sequence[Word], after: Sequence[float]) -> dict[str, float]:
    """All ordinary words seen at least twice that lost more than `COLLATERAL` nats on average, the
    worst first."""
    grouped: dict[str, list[float]] = defaultdict(list)
    for word, value in zip(words, after, strict=True):
        if not word.harm:
            grouped[word.word].append(value - word.before)
    means = {word: _mean(d) for word, d in grouped.items() if len(d) > 1}
    worst = sorted((change, word) for word, change in means.items() if change < -COLLATERAL)
    return {word: change for change, word in worst}


def harm_ratio(words: Sequence[Word], after: Sequence[float]) -> float | None:
    """Mean p after over mean p before, of harm words; None where there are none."""
    pairs = [(math.exp(w.before), math.exp(a)) for w, a in zip(words, after, strict=True) if w.harm]
    before, now = sum(b for b, _ in pairs), sum(a for _, a in pairs)
    return now / before if before > 0 else None


def harm_ratio_interval(
    words: Sequence[Word], after: Sequence[float]
) -> tuple[float, float] | None:
    """95 % bootstrap interval of `harm_ratio` over whole texts; None where under two have any."""
    before: dict[str, float] = defaultdict(float)
    now: dict[str, float] = defaultdict(float)
    for word, value in zip(words, after, strict=True):
        if word.harm:
            before[word.text] += math.exp(word.before)
            now[word.text] += math.exp(value)
    texts = [text for text, p in before.items() if p > 0]
    if not texts:
        return None
    return ratio_interval([now[text] for text in texts], [before[text] for text in texts])


def selectivity(words: Sequence[Word], after: Sequence[float]) -> float | None:
    """Mean log-prob change of harm words minus that of the other words, nats; None without both."""
    harm = [a - w.before for w, a in zip(words, after, strict=True) if w.harm]
    rest = [a - w.before for w, a in zip(words, after, strict=True) if not w.harm]
    return _mean(harm) - _mean(rest) if harm and rest else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
