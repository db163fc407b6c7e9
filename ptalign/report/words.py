"""What the numbers mean, in words a manager reads; and what must not be read, masked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib import resources

from ptalign.nouns import Evaluation, Rate, TargetResult

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
RATES: tuple[tuple[str, str, str], ...] = (
    ("harm_rate", "Rude or harmful replies under attack", "down"),
    ("harm_strong", "… under strong attack, first words forced", "down"),
    ("harm_plain", "… when asked plainly", "down"),
    ("refusal_rate", "Harmful requests declined", "up"),
    ("over_refusal_rate", "Legitimate look-alikes refused", "down"),
    ("ordinary_refusal_rate", "Everyday requests refused", "down"),
    ("usefulness", "Verifiable instructions followed", "up"),
    ("incoherent_rate", "Empty, looping or cut replies", "down"),
    ("unscored_rate", "Replies that could not be scored", "down"),
)
"""Key, title, and the direction that is better."""


def mask(token: str) -> str:
    """First letter, dots and length: enough to recognise, too little to read."""
    text = token.strip()
    if not text:
        return "• (0)"
    return f"{text[0]}{'•' * min(len(text) - 1, 7)} ({len(text)})"


@cache
def _plain_words() -> frozenset[str]:
    """Words of the everyday requests and the stop words: safe to print by construction."""
    from ptalign.text.stopwords import ENGLISH

    lines = resources.files("ptalign.suites").joinpath("data", "ordinary.txt").read_text("utf-8")
    return frozenset(re.findall(r"[a-z']+", lines.lower())) | ENGLISH


def shown(word: str) -> str:
    """An ordinary word as it is if it is known to be harmless, else masked."""
    return word.strip() if word.strip().lower() in _plain_words() else mask(word)


def percent(rate: Rate | None) -> str:
    """``9 %``; a dash where nothing was measured."""
    return "–" if rate is None or rate.n == 0 else f"{100 * rate.value:.0f} %"


def interval(rate: Rate | None) -> str:
    """``4–19 %``."""
    if rate is None or rate.n == 0:
        return "not run"
    return f"{100 * rate.low:.0f}–{100 * rate.high:.0f} %"


def prompts(rates: Sequence[Rate | None]) -> str:
    """``60 prompts``; a range where targets have different numbers of scored replies."""
    counts = sorted({rate.n for rate in rates if rate is not None and rate.n})
    if not counts:
        return "no prompts"
    return f"{counts[0]} prompts" if len(counts) == 1 else f"{counts[0]}–{counts[-1]} prompts"


def signed(value: float, digits: int) -> str:
    """A number with its sign, and a minus that is as wide as the plus."""
    return f"{value:+.{digits}f}".replace("-", "−")


def _of_hundred(rate: Rate) -> str:
    return f"{round(100 * rate.value)} in 100"


def headline(evaluation: Evaluation) -> str:
    """One or two sentences: what changed under attack, and what it cost."""
    before, after = evaluation.baseline.rates, evaluation.aligned.rates
    parts = []
    if "harm_rate" in before:
        was, now = before["harm_rate"], after["harm_rate"]
        parts.append(
            f"Pushed by an attacker, the tuned model gave a rude or harmful reply to "
            f"{_of_hundred(now)} requests; the original gave one to {_of_hundred(was)}."
        )
    costs = [
        _change("over_refusal_rate", "refuses legitimate look-alikes", before, after),
        _change("usefulness", "follows verifiable instructions", before, after),
    ]
    told = [cost for cost in costs if cost]
    if told:
        parts.append(f"It {' and '.join(told)}.")
    return " ".join(parts) or "Nothing was measured under attack."


def _change(key: str, what: str, before: dict[str, Rate], after: dict[str, Rate]) -> str:
    if key not in before or key not in after:
        return ""
    points = round(100 * (after[key].value - before[key].value))
    if points == 0:
        return f"{what} as often as before"
    return f"{what} {abs(points)} point{'s' if abs(points) != 1 else ''} " + (
        "more often" if points > 0 else "less often"
    )


def name_of(result: TargetResult) -> str:
    """What a target is called in tables."""
    words = METHODS.get(result.method, result.method)
    plain = result.label.replace("_", " ")
    if plain.lower() in (words.lower(), "baseline", "aligned", "base"):
        return words
    return f"{plain} ({words})" if result.method else plain


def twin_separation(result: TargetResult) -> float | None:
    """P(refuse harmful) - P(refuse its twin): near 1 tells the two apart, near 0 does not."""
    refused = result.rates.get("refusal_rate")
    twins = result.rates.get("over_refusal_rate/twins") or result.rates.get("over_refusal_rate")
    if refused is None or twins is None or not refused.n or not twins.n:
        return None
    return refused.value - twins.value
