"""What each token adds to the text that tokens spell together.

A token decoded alone is not what it adds. Decoders of SentencePiece tokenizers (Llama 2, Mistral,
Phi 3) strip the blank before the first token of what they are given, so that words decoded one by
one run together; byte-level ones write U+FFFD for each token that holds a part of a character.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

Decode = Callable[[Sequence[int]], str]
"""The text of some tokens, at the start of a text."""


def spelled(tokens: Sequence[int], decode: Decode) -> list[str]:
    """The part of the text that each token adds; joined they are ``decode(tokens)``.

    A character that several tokens share is added by the one that completes it.

    Args:
        tokens: Ids.
        decode: Gives their text.
    """
    whole = decode(tokens)
    ends = _behind_the_last(tokens, decode, whole)
    if ends and ends[-1] != len(whole):
        ends = _from_the_start(tokens, decode, whole)
    return [whole[begin:end] for begin, end in pairwise((0, *ends))]


def _behind_the_last(tokens: Sequence[int], decode: Decode, whole: str) -> list[int]:
    """Where in the text each token ends, decoded behind what was added before it: in linear time.

    What stands in front of a token takes the place of the text's start, so that the decoder strips
    nothing of the token. A last end that is not the text's tells that this did not hold.
    """
    ends: list[int] = []
    front, begin, at, before = 0, 0, 0, ""  # tokens[front:begin] spell `before`, whole[:at] is done
    for i in range(len(tokens)):
        now = decode(tokens[front : i + 1])
        added = now.removeprefix(before) if now.startswith(before) else ""
        shared = _shared(added, whole, at)
        ends.append(at + shared)
        if added and shared == len(added):
            front, begin, at = begin, i + 1, ends[-1]
            before = decode(tokens[front:begin])
    return list(accumulate(ends, max))


def _from_the_start(tokens: Sequence[int], decode: Decode, whole: str) -> list[int]:
    """The same by decoding from the first token to each: exact always, and quadratic."""
    reached = (_shared(decode(tokens[: i + 1]), whole) for i in range(len(tokens) - 1))
    return [*accumulate(reached, max), len(whole)]


def _shared(text: str, whole: str, at: int = 0) -> int:
    """Length of what `text` begins with of the whole text from `at` on."""
    if whole.startswith(text, at):
        return len(text)
    pairs = zip(text, whole[at : at + len(text)], strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(text), len(whole) - at))
