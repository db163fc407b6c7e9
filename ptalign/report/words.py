"""What the numbers mean, in words for a manager; words that must not be read are masked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources

from ptalign.gate import STRONG
from ptalign.nouns import Evaluation, Rate, TargetResult
from ptalign.numbers import gap, whole

METHODS = {
    "": "original model",
    "mle": "likelihood only",
    "pt_align": "PT-ALIGN",
    "ut_uniform": "unlikelihood, all tokens alike",
    "dpo": "DPO",
    "npo": "NPO",
}
STAGES = {
    "GenerateInstructions": "Writing the requests",
    "SynthesizePairs": "Answering them twice",
    "Align": "Training",
    "Evaluate": "Evaluation",
}
"""What a manager calls the verbs."""
VERDICTS = {
    "PASS": "Ready for release",
    "FAIL": "Not ready for release",
    "INCONCLUSIVE": "Not settled yet",
}
WITHHELD = "Within the limits asked for"
"""For a PASS that releases no adapter."""
RATES: tuple[tuple[str, str, str], ...] = (
    ("harm_rate", "Rude or harmful replies under attack", "down"),
    ("harm_strong", "… under strong attack, first words forced", "down"),
    ("harm_plain", "… when asked plainly", "down"),
    ("refusal_rate", "Harmful requests declined", "up"),
    ("over_refusal_rate", "Legitimate look-alikes refused", "down"),
    ("ordinary_refusal_rate", "Everyday requests refused", "down"),
    ("usefulness", "Verifiable instructions followed", "up"),
    ("usefulness_refusal_rate", "… declined instead", "down"),
    ("incoherent_rate", "Empty, looping or cut replies", "down"),
    ("unscored_rate", "Replies that could not be scored", "down"),
)
"""Key, title, and the direction that is better."""
MEASURES: tuple[tuple[str, str, int], ...] = (
    ("benign_kl", "Change on ordinary answers, KL in nats a token", 3),
    ("benign_nll", "Surprise at its own ordinary answers, nats a token", 2),
    ("harm_word_ratio", "Likelihood of harm words under attack, against the original", 2),
    ("trained_harm_word_ratio", "… in bad answers of the training set", 2),
    ("selectivity", "Loss of harm words beyond other words, nats", 2),
    ("trained_selectivity", "… in bad answers of the training set", 2),
)
"""Measures of a probe: key, title, and decimals."""
_STANDS_FOR = {
    "harm_strong": "Rude or harmful replies",
    "harm_plain": "Rude or harmful replies",
    "usefulness_refusal_rate": "Verifiable instructions",
}
TWINS = "twin_refusal_rate"
"""Refusals of twins alone: look-alikes that are the harmless version of a harmful request."""


def mask(token: str) -> str:
    """First letter, dots and length: enough to recognise a word, too little to read it.

    A single character, which may be a whole word in Japanese, is not shown at all.
    """
    text = token.strip()
    first = text[:1] if len(text) > 1 else "•"
    return f"{first}{'•' * min(max(len(text) - 1, 0), 7)} ({len(text)})"


@cache
def _plain_words() -> frozenset[str]:
    """Stop words and the words of the everyday requests, which are known to be harmless."""
    from ptalign.text.stopwords import ENGLISH

    lines = resources.files("ptalign.suites").joinpath("data", "ordinary.txt").read_text("utf-8")
    return frozenset(re.findall(r"[a-z']+", lines.lower())) | ENGLISH


def shown(word: str) -> str:
    """A word as it is if it is known to be harmless, else masked."""
    return word.strip() if word.strip().lower() in _plain_words() else mask(word)


def percent(rate: Rate | None) -> str:
    """``9 %``; a dash where nothing was measured."""
    return "–" if rate is None or rate.n == 0 else f"{whole(rate.value)} %"


def interval(rate: Rate | None) -> str:
    """``4–19 %``."""
    if rate is None or rate.n == 0:
        return "not run"
    return f"{whole(rate.low)}–{whole(rate.high)} %"


def prompts(rates: Sequence[Rate | None]) -> str:
    """``60 prompts``; a range if targets have different numbers of scored replies."""
    counts = sorted({rate.n for rate in rates if rate is not None and rate.n})
    if not counts:
        return "no prompts"
    if counts == [1]:
        return "1 prompt"
    return f"{counts[0]} prompts" if len(counts) == 1 else f"{counts[0]}–{counts[-1]} prompts"


def _of_hundred(rate: Rate) -> str:
    return f"{whole(rate.value)} in 100"


def headline(evaluation: Evaluation) -> str:
    """A few sentences: what changed under attack, what the gate does not cover, what it cost."""
    before, after = evaluation.baseline.rates, evaluation.aligned.rates
    base = original(evaluation.baseline)
    parts = []
    if _measured("harm_rate", before, after):
        was, now = before["harm_rate"], after["harm_rate"]
        parts.append(
            f"Pushed by an attacker, the tuned model gave a rude or harmful reply to "
            f"{_of_hundred(now)} requests; {base} gave one to {_of_hundred(was)}."
        )
    if _measured("harm_strong", before, after):
        was, now = before["harm_strong"], after["harm_strong"]
        who = "it gave one" if parts else "the tuned model gave a rude or harmful reply"
        free = "; no limit of the release gate covers this" if strong_is_free(evaluation) else ""
        parts.append(
            f"Under the strong attack, which also forces the first words of the reply, {who} "
            f"to {_of_hundred(now)}, {base} to {_of_hundred(was)}{free}."
        )
    if not parts:
        parts.append("Nothing was measured under attack.")
    costs = [
        _change("over_refusal_rate", "refuses legitimate look-alikes", before, after),
        _change("usefulness", "follows verifiable instructions", before, after),
    ]
    told = [cost for cost in costs if cost]
    if told:
        parts.append(f"The tuned model {' and '.join(told)}.")
    return " ".join(parts)


def strong_is_free(evaluation: Evaluation) -> bool:
    """Whether the strong attack was measured and the gate had no limit on it."""
    limited = any(reason.split(": ", 1)[-1].startswith(STRONG) for reason in evaluation.reasons)
    return "harm_strong" in evaluation.aligned.rates and not limited


def notes(evaluation: Evaluation) -> list[str]:
    """What a reader of the headline's figures must know before drawing a conclusion."""
    rates = evaluation.aligned.rates
    found = []
    if _measured("refusal_rate", rates) and _measured("harm_plain", rates):
        found.append(
            f"Declining is not the only harmless reply: a model may answer a harmful request "
            f"mildly instead, and harm is measured by what the reply says. Asked plainly, "
            f"{percent(rates['harm_plain'])} of the replies were rude or harmful."
        )
    if _measured("over_refusal_rate", rates):
        words = "Look-alikes are legitimate requests that look like harmful ones"
        if _measured(TWINS, rates):
            words += (
                "; some of them are twins"
                if _others_than_twins(rates)
                else "; the ones asked here are twins"
            )
            words += ": a twin is the harmless version of a harmful request"
        found.append(f"{words}.")
    return found


def _measured(key: str, *sides: Mapping[str, Rate]) -> bool:
    return all(key in rates and rates[key].n for rates in sides)


def _others_than_twins(rates: Mapping[str, Rate]) -> bool:
    """Whether look-alikes other than twins were asked too."""
    return rates["over_refusal_rate"].n != rates[TWINS].n


def whole_title(key: str, title: str) -> str:
    """A rate's full title, for places without the row above that its … refers to."""
    return title.replace("…", _STANDS_FOR.get(key, "…"))


def rows_of(results: Sequence[TargetResult]) -> list[tuple[str, str, str]]:
    """`RATES`, plus a row for twins if they are only a part of the look-alikes.

    Each suite that measures nothing but refusal gets a row of its own too.
    """
    apart = any(_measured(TWINS, r.rates) and _others_than_twins(r.rates) for r in results)
    row = (TWINS, "… the twins among them", "down")
    found = []
    for rate in RATES:
        found.append(rate)
        if apart and rate[0] == "over_refusal_rate":
            found.append(row)
        if rate[0] == "refusal_rate":
            found += [
                (key, f"Harmful requests of {key.partition('/')[2]} declined", "up")
                for key in _alone(results)
            ]
    return found


def _alone(results: Sequence[TargetResult]) -> list[str]:
    """Rates of suites that measure refusal alone; others in `refusal_rate` measure harm too."""
    names = {name for r in results for name in r.rates}
    return sorted(
        name
        for name in names
        if name.startswith("refusal_rate/")
        and name.replace("refusal_rate", "harm_plain") not in names
    )


def _change(key: str, what: str, before: Mapping[str, Rate], after: Mapping[str, Rate]) -> str:
    if not _measured(key, before, after):
        return ""
    points = int(gap(before[key].value, after[key].value))
    if points == 0:
        return f"{what} as often as before"
    return f"{what} {abs(points)} point{'s' if abs(points) != 1 else ''} " + (
        "more often" if points > 0 else "less often"
    )


def name_of(result: TargetResult) -> str:
    """What a target is called in tables."""
    words = METHODS.get(result.method, result.method)
    plain = result.label.replace("_", " ")
    if plain.lower() in (words.lower(), "aligned", "base"):
        return words
    if plain.lower() == "baseline" and not result.method:
        return words
    return f"{plain} ({words})" if result.method else plain


def original(baseline: TargetResult) -> str:
    """What a sentence calls the baseline: "the original", or its name if it is an adapter too."""
    return name_of(baseline) if baseline.adapter else "the original"


def read_in(result: TargetResult) -> str:
    """In which bad answers a target's harm words were measured."""
    if result.probe is None or not result.probe.toxic_answers:
        return ""
    seen = result.probe.toxic_answers
    answers = f"{seen} bad answer{'' if seen == 1 else 's'}"
    if result.probe.held_out_toxic:
        return f"in {answers} held out from training"
    return f"in {answers} of the training set, none of them held out"


def twin_separation(result: TargetResult) -> float | None:
    """P(refuse harmful) - P(refuse its twin): near 1 if the model tells them apart, near 0 if not.

    If no twins were asked, other look-alikes take their place.
    """
    found = _to_tell_apart(result)
    return found[0].value - found[1].value if found else None


def separation_points(result: TargetResult) -> int | None:
    """The same in points: the difference of the two shares as printed."""
    found = _to_tell_apart(result)
    return int(gap(found[1].value, found[0].value)) if found else None


def separated_from(results: Sequence[TargetResult]) -> str:
    """What the harmful requests are told apart from."""
    return "twins" if any(_measured(TWINS, r.rates) for r in results) else "look-alikes"


def _to_tell_apart(result: TargetResult) -> tuple[Rate, Rate] | None:
    refused = result.rates.get("refusal_rate")
    twins = result.rates.get(TWINS) or result.rates.get("over_refusal_rate")
    if refused is None or twins is None or not refused.n or not twins.n:
        return None
    return refused, twins
