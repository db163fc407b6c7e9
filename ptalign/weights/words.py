"""Words of an answer, and which tokens spell them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ptalign.text.stopwords import ENGLISH

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_UNSPACED = re.compile(r"[぀-ヿ㐀-鿿가-힯฀-๿]")

_FILLERS = """
    a about after again all also am an and any are as at be because been before being but by can
    could did do does doing don down for from get go got had has have he her here him his how i if
    in into is it it's its just know let like make me more most my no not now of on one only or
    other our out over own really said same say see she should so some such than that that's the
    their them then there these they thing things this those through to too under up us use very
    was way we well were what when where which while who why will with would you you're your yours
    yourself i'm i'll i've isn't don't can't won't doesn't didn't aren't there's what's
"""
STOP_WORDS = frozenset(_FILLERS.split()) | ENGLISH
"""English function words and fillers: they carry grammar, not tone."""


def words_of(text: str) -> set[str]:
    """Lower-case words of a text; single characters in scripts written without spaces."""
    return {word for _, word in spans(text)}


def spans(text: str) -> Iterable[tuple[int, str]]:
    """(start, lower-case word) in order; each character of unspaced scripts is a word."""
    for match in _WORD.finditer(text):
        if _UNSPACED.search(match.group()):
            for place, char in enumerate(match.group(), match.start()):
                yield place, _small(char)  # each by itself: "İ" is two characters in small
        else:
            yield match.start(), _small(match.group())


def _small(word: str) -> str:
    return word.lower().replace("’", "'")


def word_starts(pieces: Sequence[str]) -> list[str]:
    """The word that each token begins; empty where it begins none.

    Only the first token of a word is a place to push: without it the word is not said, while its
    later tokens are near certain, and pushing those down harms every other use of them.

    Args:
        pieces: Text of each token, in order.

    Returns:
        One lower-case word or '' per token.
    """
    ends, length = [], 0
    for piece in pieces:
        length += len(piece)
        ends.append(length)
    begun, token = [""] * len(pieces), 0
    for start, word in spans("".join(pieces)):
        while ends[token] <= start:
            token += 1
        if not begun[token]:
            begun[token] = word
    return begun


def joins(piece: str) -> bool:
    """Whether a token that begins no word continues the one before it, or adds nothing."""
    return not piece or piece[0].isalnum() or piece[0] in "'’"


def spelled_words(pieces: Sequence[str], starts: Sequence[str]) -> list[str]:
    """The word that each token begins or continues; empty for what is between words.

    A token that adds nothing holds a part of a character: it spells what the next ones complete.

    Args:
        pieces: Text of each token, in order.
        starts: What `word_starts` says of them.
    """
    spelled, word, parts = [], "", 0
    for piece, begun in zip(pieces, starts, strict=True):
        if not piece:
            parts += 1
            continue
        word = begun or (word if joins(piece) else "")
        spelled += [word] * (parts + 1)
        parts = 0
    return [*spelled, *[""] * parts]
