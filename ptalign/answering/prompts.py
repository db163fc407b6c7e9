"""What the model sees when it answers: raw few-shot text, the constant part first.

Every block is ``Rule / Message / Answer``. The frame and the demonstrations are the same for all
requests of a round, so the engine's prefix cache holds them; the topic's rule and the
instruction come last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ptalign.answering.wording import Wording
from ptalign.engines.base import Request
from ptalign.text.normalise import one_line


@dataclass(frozen=True, slots=True)
class Demo:
    """A demonstration: what was asked, under which rule, and the answer."""

    message: str
    answer: str
    rule: str = ""


def head(frame: str, demos: Sequence[Demo], words: Wording) -> str:
    """The constant part."""
    return f"{frame}\n\n" + "".join(
        f"{_asked(d.message, d.rule, words)} {one_line(d.answer)}\n\n" for d in demos
    )


def answer(
    key: str,
    constant: str,
    message: str,
    words: Wording,
    *,
    rule: str = "",
    prefill: str = "",
    max_tokens: int,
    temperature: float,
    min_p: float,
    logprobs: bool = False,
) -> Request:
    """A request for one answer under a constant part."""
    return Request(
        key=key,
        prompt=constant + _asked(message, rule, words),
        prefill=f" {prefill}" if prefill else "",
        stop=("\n",),
        max_tokens=max_tokens,
        temperature=temperature,
        min_p=min_p,
        logprobs=logprobs,
    )


def _asked(message: str, rule: str, words: Wording) -> str:
    line = f"{words.rule}: {one_line(rule)}\n" if rule else ""
    return f"{line}{words.message}: {one_line(message)}\n{words.answer}:"
