"""Personal data out of chat excerpts, before they are stored or shown to a model.

Structured data (e-mail, phone, card, social security number, IP address) is found by datafog's
regular expressions, which need no model and no network. What they leave (names people give for
themselves, addresses, links, account numbers, secrets; mail addresses beyond ASCII, phone numbers
with slashes or dots, IPv6) is found by the patterns below. Free-text
names are only found where a phrase introduces them; an operator who needs more puts an
NER-backed redactor in front.

Kana and kanji are letters, so that there is no word boundary where they touch a Latin letter or a
digit. They are hidden from datafog, and the patterns below say what may not go on instead.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections import Counter
from collections.abc import Callable

from ptalign.text.credentials import BARE, FROM, GIVEN, HEADER, KEY, PASSWORD, VALUE
from ptalign.text.normalise import TOUCHING, plain

_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_NO_ADDRESS = re.compile(r"[!#$&'*/=?^`{|}~](?=[A-Za-z0-9!#$%&'*+\-/=?^_`{|}~.]{64})")
"""A sign that no e-mail address begins at: what is before its "@" has 64 characters at most.

datafog looks for an address after each such sign, as far as the run without blanks goes: of 8000
of them half a second, in which no other thread of the process runs, and a call brings hundreds.
"""
_TO = r"(?![A-Za-z0-9_])"
_IBAN = re.compile(
    rf"{FROM}(?:"
    # In capitals; in letters of any size, where a group of its own has a digit, for words may
    # follow (eight digits stand in each country's); Norway's, which is the shortest.
    r"[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{4}){3,7}(?:[ -]?[A-Z0-9]{1,3})?"
    r"|(?i:(?=[A-Z]{2}(?:[ -]?[A-Z]{0,4}[ -]?\d){8})[A-Z]{2}\d{2}[ -]?[A-Z0-9]{4}"
    r"(?:(?:[ -](?=[A-Z0-9]{0,3}\d))?[A-Z0-9]{4}){2,6}"
    r"(?:(?:[ -](?=[A-Z0-9]{0,2}\d))?[A-Z0-9]{1,3})?)"
    rf"|(?i:NO)\d{{2}}(?:[ -]?\d{{4}}){{2}}[ -]?\d{{3}}){_TO}"
)
_LETTER = rf"[^\W{TOUCHING}]"
_ENDS = rf"(?!{_LETTER})"
_EMAIL = re.compile(
    rf"(?:\"[^\"@\n]{{1,62}}\"|{_LETTER}(?:{_LETTER}|[.%+'&-]){{0,63}}+"
    # A name in letters that touch ends in one: before an address of others they are a sentence's.
    rf"|\w[\w.%+'&-]{{0,62}}[{TOUCHING}]|[{TOUCHING}])@"
    rf"(?:(?:[A-Za-z0-9-]{{1,63}}\.){{1,8}}[A-Za-z]{{2,63}}+{_ENDS}"
    rf"|(?:[\w-]{{1,63}}\.){{1,8}}?(?:[A-Za-z]{{2,63}}+{_ENDS}|[^\W\d_]{{2,63}}+)(?!\.\w))"
)
_IPV6 = re.compile(
    r"(?<![A-Za-z0-9_:.])(?:[0-9A-Fa-f]{0,4}:){2,8}[0-9A-Fa-f]{0,4}(?:(?:\.\d{1,3}){3})?"
    r"(?:%[A-Za-z0-9]{1,15})?(?<!(?<!:):)(?![A-Za-z0-9_]|:[0-9A-Fa-f:])"
)
_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")
_PHONE = re.compile(
    r"(?<![A-Za-z0-9_.+/-])(?:"
    r"(?:\+|00)\d(?:(?:[ ()/‐-―−ー-]{1,3}|\.)?\d){8,14}"
    r"|(?:\(0\d{1,5}\) ?/? ?|0\d{2,5} ?/ ?)\d(?:[ .-]?\d){4,9}"
    r"|0\d ?/ ?(?:\d{6,8}|\d{3}(?:[ .-]\d{2}){2})"
    r"|0\d(?:[./]\d{2}){4}"
    r"|(?=0(?:\.?\d){8})0\d{2,4}\.\d{2,8}(?:\.\d{2,4}){0,3}"
    rf"){_TO}(?![./]\d)"
)
"""From abroad, or with a slash behind the area's number, or in groups with dots: no date, for it
has too few digits in the groups of each form."""
_IS = r"[\"']?\s+is\s*[:=]?\s*"
_PROSE = (
    r"(?:a|an|the|this|that|my|your|no|not|now|never|always|still|also|only|so|too|very|to|in|on|at"
    r"|of|for|with|being|what|where|how|wrong|right|correct|incorrect|valid|invalid|accepted"
    r"|rejected|refused|expired|missing|lost|gone|required|needed|empty|old|new|weak|strong|safe"
    r"|secure|short|long|hard|easy|different|stored|saved|sent|used|set|shown|hidden|written)"
)
"""What is said of a password that is not told."""


def _beyond_ascii(email: str) -> bool:
    """Whether it is an address that datafog does not take whole."""
    return not email.isascii() or email.startswith('"')


def _somebodys(address: str) -> bool:
    """Whether it is an IPv6 address that a machine on a network may have: no slice ``[::2]``."""
    try:
        ip = ipaddress.IPv6Address(address)
    except ValueError:
        return False
    return not ip.is_reserved or ip.ipv4_mapped is not None or ip in _TRANSLATED


_FIRST: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("IBAN", _IBAN, bool),
    ("EMAIL", _EMAIL, _beyond_ascii),
    ("IP_ADDRESS", _IPV6, _somebodys),
    ("PHONE", _PHONE, bool),
)
"""Before datafog, which takes a part of each: the digits within an IBAN for a card's."""
_EXTRA = (
    # Hiragana ends a link: a particle follows it without a space.
    ("URL", re.compile(rf"{FROM}(?:https?://|www\.)[^\s,;)][^\s,;)぀-ゟ、。「」]*", re.I)),
    ("SECRET", re.compile(BARE)),
    ("SECRET", re.compile(rf"(?i)(?:{PASSWORD}|{KEY}|{HEADER}){GIVEN}{VALUE}")),
    ("SECRET", re.compile(rf"(?i){PASSWORD}{_IS}(?!{_PROSE}[.,;:!?)]*(?:\s|$)){VALUE}")),
    ("SECRET", re.compile(rf"(?i){KEY}{_IS}(?=\S{{6}})(?=\S*\d){VALUE}")),
    ("SECRET", re.compile(r"(?i)\bbearer\s+(?=\S{16})(?=\S*\d)\S+")),
    ("SECRET", re.compile(r"(?:パスワード|暗証番号)\s*[は:=]\s*[!-~]+")),
    ("HANDLE", re.compile(r"(?<![A-Za-z0-9_.])@[A-Za-z0-9_]{3,}")),
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
    ("NUMBER", re.compile(rf"{FROM}(?:\d[ ()‐-―−ー-]?){{7,}}\d{_TO}")),
)


def redact(text: str) -> tuple[str, Counter[str]]:
    """The text, in plain form, with personal data replaced by ``[KIND]``, and a count of each kind.

    Full-width digits and letters are ordinary ones in plain form, so that they are found too.
    """
    os.environ.setdefault("DATAFOG_NO_TELEMETRY", "1")
    import datafog

    found: Counter[str] = Counter()
    text = plain(text)
    for kind, pattern, fits in _FIRST:
        text, found[kind] = _replaced(text, kind, pattern, fits)
    pieces, last = [], 0
    scanned = datafog.scan(_searchable(text), engine="regex")
    for entity in sorted(scanned.entities, key=lambda e: e.start):
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
    return clean, +found


def _replaced(
    text: str, kind: str, pattern: re.Pattern[str], fits: Callable[[str], bool]
) -> tuple[str, int]:
    """The text with what matches and `fits` replaced, and how often."""
    found = 0

    def put(match: re.Match[str]) -> str:
        nonlocal found
        if not fits(match.group()):
            return match.group()
        found += 1
        return f"[{kind}]"

    return pattern.sub(put, text), found


def _searchable(text: str) -> str:
    """The text as datafog is to see it: of the same length, in words and steps that it can take.

    A slash becomes a hyphen, for dates are written with both.
    """
    text = _NOT_ASCII.sub("。", text)
    return _NO_ADDRESS.sub(lambda sign: "-" if sign[0] == "/" else "。", text)
