"""Personal data out of chat excerpts, before they are stored or shown to a model.

Structured data (e-mail, phone, card, social security number, IP address) is found by datafog's
regular expressions, which need no model and no network. What they leave (names people give for
themselves, addresses, links, account numbers, secrets) is found by the patterns below. Free-text
names are only found where a phrase introduces them; an operator who needs more puts an
NER-backed redactor in front.
"""

from __future__ import annotations

import os
import re
from collections import Counter

_EXTRA = (
    ("URL", re.compile(r"\b(?:https?://|www\.)[^\s,;)]+", re.I)),
    ("IBAN", re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b")),
    ("SECRET", re.compile(r"\b(?:sk|pk|ghp|gho|xox[abp]|AKIA)[-_]?[A-Za-z0-9_-]{12,}")),
    ("SECRET", re.compile(r"(?i)\b(?:password|passcode|pin|token|api key)\s*(?:is|:|=)\s*\S+")),
    ("HANDLE", re.compile(r"(?<![\w.])@[A-Za-z0-9_]{3,}")),
    (
        "ADDRESS",
        re.compile(
            r"\b\d{1,5}\s+(?:[A-Z][a-z]+\s+){1,3}"
            r"(?:Street|St|Road|Rd|Avenue|Ave|Lane|Ln|Drive|Dr|Boulevard|Blvd|Court|Way)\b\.?"
        ),
    ),
    (
        "NAME",
        re.compile(
            r"(?:(?<=[Mm]y name is )|(?<=I am called )|(?<=[Cc]all me )|(?<=\bMr\. )|(?<=\bMrs\. )"
            r"|(?<=\bMs\. )|(?<=\bDr\. )|(?<=\bMr )|(?<=\bMrs )|(?<=\bMs )|(?<=\bDr ))"
            r"[A-Z][\w'’-]+(?:\s[A-Z][\w'’-]+){0,2}"
        ),
    ),
    ("NAME", re.compile(r"(?<=\bI'm )[A-Z][\w'’-]+\s[A-Z][\w'’-]+|(?<=\bI am )[A-Z]\w+\s[A-Z]\w+")),
    ("NUMBER", re.compile(r"\b(?:\d[ -]?){7,}\d\b")),
)


def redact(text: str) -> tuple[str, Counter[str]]:
    """The text with personal data replaced by ``[KIND]``, and how many of each kind were found."""
    os.environ.setdefault("DATAFOG_NO_TELEMETRY", "1")
    import datafog

    found: Counter[str] = Counter()
    pieces, last = [], 0
    for entity in sorted(datafog.scan(text, engine="regex").entities, key=lambda e: e.start):
        if entity.start < last:
            continue
        pieces += [text[last : entity.start], f"[{entity.type}]"]
        found[entity.type] += 1
        last = entity.end
    clean = "".join([*pieces, text[last:]])
    for kind, pattern in _EXTRA:
        clean, n = pattern.subn(f"[{kind}]", clean)
        if n:
            found[kind] += n
    return clean, found
