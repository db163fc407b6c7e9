"""Log-probs of toxic answers under toxic against positive constraints, by the bare model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch.nn.functional import logsigmoid

from ptalign.nouns import PairSet, Policy
from ptalign.training.decoder import Decoder
from ptalign.training.texts import ChatFormat, Sample
from ptalign.training.tree import OnRow, pack
from ptalign.weights.scorers import Scores, Toxic

ROW = 1024
"""Nodes per row. Constraints are computed once a row: 512 cost 6 % more, 2,048 save 4 %."""

DEFAULT_CONSTRAINTS = {
    "positive": ("Be polite and patient.", "Decline what is harmful and offer help instead."),
    "toxic": ("Be dismissive and condescending.", "Mock the person for asking."),
}


def constraints_of(pairs: PairSet, policy: Policy | None, topic: str) -> dict[str, str]:
    """System prompts ``positive`` and ``toxic`` of a topic: refined, the policy's, or generic."""
    generic: dict[str, tuple[str, ...]] = dict(DEFAULT_CONSTRAINTS)
    if policy is not None and policy.generic_constraints_positive:
        generic["positive"] = policy.generic_constraints_positive
    if policy is not None and policy.generic_constraints_toxic:
        generic["toxic"] = policy.generic_constraints_toxic
    found = {}
    for side, lines in generic.items():
        chosen = pairs.constraints.get(f"{topic}/{side}") or lines
        found[side] = "\n".join(f"- {line}" for line in chosen)
    return found


def contrast_scores(
    decoder: Decoder,
    chat: ChatFormat,
    answers: Sequence[Toxic],
    constraints: Callable[[str], Mapping[str, str]],
    on_row: OnRow = lambda done, total: None,
) -> Scores:
    """log p(token | toxic constraints) - log p(token | positive constraints).

    Where an answer's sampling was kept, the first of the two is the log-prob it was sampled with,
    under the toxic rule and demonstrations of its request, and only the second is computed
    (ADR 0011). Answers of a topic share their constraints' tokens in the tree. Only tokens that
    begin a word are scored; the others get -inf, and so do answers that the model has no positions
    for after their constraints.

    Args:
        decoder: Run without its adapter.
        chat: Renders the constraints as the system prompt.
        answers: Toxic answers.
        constraints: Topic -> system prompts ``positive`` and ``toxic``.
        on_row: Called with rows done and rows in all.
    """
    order = sorted(range(len(answers)), key=lambda i: answers[i].topic)
    under = [
        (i, _under(answers[i], chat, constraints(answers[i].topic)[side], f"{side}/{i}"))
        for side in ("toxic", "positive")
        for i in order
        if side == "positive" or not answers[i].sampled
    ]
    long = {i for i, sample in under if sample.length > decoder.positions}
    groups = [[sample] for i, sample in under if i not in long]
    found = token_log_probs(decoder, groups, on_row)
    scores = [[float("-inf")] * len(a.pieces) for a in answers]
    for i, answer in enumerate(answers):
        if i in long:
            continue
        places = [place for place, word in enumerate(answer.starts) if word]
        kept = [answer.sampled[place] for place in places] if answer.sampled else []
        toxic = kept or found.get(f"toxic/{i}", [])
        positive = found.get(f"positive/{i}", [])
        for place, high, low in zip(places, toxic, positive, strict=True):
            scores[i][place] = high - low
    return scores


def _under(answer: Toxic, chat: ChatFormat, system: str, key: str) -> Sample:
    prompt = chat.prompt(answer.instruction, system)
    weights = (*(float(bool(word)) for word in answer.starts), 0.0)
    return Sample(key, "toxic", prompt, answer.answer, weights)


def token_log_probs(
    decoder: Decoder,
    groups: Sequence[Sequence[Sample]],
    on_row: OnRow = lambda done, total: None,
    *,
    bare: bool = True,
) -> dict[str, list[float]]:
    """Log-probs of the weighted tokens of each sample, by the sample's key.

    Args:
        decoder: The model.
        groups: Samples that share a prompt are best in one group; keys are unique.
        on_row: Called with rows done and rows in all.
        bare: Without the adapter.
    """
    rows = pack(groups, ROW)
    found: dict[str, list[float]] = {}
    for done, row in enumerate(rows, 1):
        with torch.no_grad():
            if bare:
                with decoder.bare():
                    margin, targets = decoder.margins(row)
            else:
                margin, targets = decoder.margins(row)
        values, owners = logsigmoid(margin).tolist(), targets.owners.tolist()
        for owner, value in zip(owners, values, strict=True):
            found.setdefault(row.samples[owner].key, []).append(value)
        on_row(done, len(rows))
    return found
