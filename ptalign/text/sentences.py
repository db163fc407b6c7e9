"""Sentences: where they end, and text cut where the last one ends."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise

from ptalign.text.normalise import unspaced

_ABBREVIATIONS = frozenset({"mr", "mrs", "ms", "dr", "prof", "st", "vs", "etc", "e.g", "i.e", "no"})
_END = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s|$)|[。!?！？]+[」』)）]*")


def sentence_ends(text: str) -> list[int]:
    """Offsets just after each sentence's end mark."""
    ends = []
    for match in _END.finditer(text):
        before = text[: match.start()].rsplit(None, 1)
        word = before[-1].strip("\"'“(").lower() if before else ""
        numbered = word.isdigit() and match.group().startswith(".")
        if match.group().startswith(".") and (word in _ABBREVIATIONS or numbered):
            continue
        ends.append(match.end())
    return ends


def sentences(text: str) -> list[str]:
    """The sentences of a text; a tail without an end mark counts as one."""
    starts = [0, *sentence_ends(text), len(text)]
    parts = (text[a:b].strip() for a, b in pairwise(starts))
    return [p for p in parts if p]


def joined(parts: Iterable[str], locale: str = "en") -> str:
    """Sentences as one text: Japanese and Chinese put no space between them."""
    return ("" if unspaced(locale) else " ").join(parts)


def cut_at_last_sentence(text: str) -> str:
    """The text up to its last sentence end; empty when no sentence ends.

    An unbalanced quotation mark moves the cut to the sentence before it.
    """
    for end in reversed(sentence_ends(text)):
        whole = text[:end].strip()
        if whole.count('"') % 2 == 0 and whole.count("“") == whole.count("”"):
            return whole
    return ""
