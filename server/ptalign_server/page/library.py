"""What the page needs from whoever keeps the pair sets and the marks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from ptalign.sealed import SealedText

Verdict = Literal["good", "bad", "edit", "withdrawn", "skipped"]
"""good: what is shown is what it should be. bad: it is not, and nobody rewrote it: refining the
set writes it anew. edit: rewritten by the annotator. withdrawn: an earlier mark taken back.
skipped: no mark, to be shown after all others."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who looks at the page."""

    name: str
    tenant: str
    roles: frozenset[str]


@dataclass(frozen=True, slots=True)
class Queue:
    """One pair set that can be annotated."""

    pair_set: str
    model: str
    policy: str
    created: float
    """Seconds since the epoch."""
    pairs: int
    """Harmful requests with an answer; the set's twins come beside them."""
    marked: int
    """Marks that count: those on this model and policy, over all of its pair sets, and those that
    this one was made with."""
    minutes: float
    """Annotators' time on the policy's marks, those that were taken back or made anew too."""
    agreement: float | None
    """Share of items with the same verdict among those that several people marked in one set."""
    source: str = ""
    """The instruction set it was made from; empty when it was imported."""
    made_by: str = ""
    """Name of whoever asked for it; empty where an earlier version made it."""


@dataclass(frozen=True, slots=True)
class Item:
    """A pair to look at. Its texts are harmful in part: shown only when asked for."""

    id: str
    topic: str
    instruction: SealedText
    good: SealedText
    bad: SealedText | None = None
    """None where there is one answer to judge: topics without a toxic side, and twins."""
    twin: bool = False
    """A legitimate request, to be helped with."""
    polarity: tuple[float, ...] = ()
    """Per judge: judge(toxic) - judge(positive), in -1..1."""
    opinions: int = 0
    """People who marked it already."""
    boundary: str = ""
    """What is and what is not harmful in its topic, by the policy. Shown as it is: no request."""
    free: bool = False
    """Whether a mark on it is counted already: more of them are taken when the limit is reached."""


@dataclass(frozen=True, slots=True)
class Board:
    """Where one visitor stands in one queue."""

    queue: Queue
    items: Sequence[Item]
    """What is left for this visitor, most informative first; what they skipped comes last."""
    last: str = ""
    """Id of the item this visitor marked last; empty when there is nothing to take back."""
    to_seal: int = 0
    """Marks that handing over from here seals."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What a visitor decided about one item."""

    item: str
    verdict: Verdict
    good: str = field(default="", repr=False)
    """Edits only: the rewritten good answer."""
    bad: SealedText | None = None
    """Edits only: the rewritten bad answer; None where the pair has none."""
    seconds: float = 0.0


class Full(Exception):
    """The limit of marks is reached, or another visitor took the last one."""


class AnnotationLibrary(Protocol):
    """The page's only way to data. Every method is called from a thread."""

    def secret(self) -> bytes:
        """Key that signs session cookies; the same in every replica."""

    def local(self) -> Visitor | None:
        """The visitor without login, on loopback; None where a token is needed."""

    def visitor(self, fingerprint: str) -> Visitor | None:
        """Whoever holds the token with this SHA-256 now; None once it is removed."""

    def queues(self, visitor: Visitor) -> Sequence[Queue]:
        """Pair sets of the visitor's tenant, newest first."""

    def annotation_items(self, visitor: Visitor, pair_set: str) -> Board:
        """The visitor's board.

        Raises:
            NotFound: No such pair set in the visitor's tenant.
        """

    def record_reveal(self, visitor: Visitor, pair_set: str, item: str) -> None:
        """Leaves the audit record of a look at harmful text; no text is shown when it fails."""

    def add_annotation(self, visitor: Visitor, pair_set: str, mark: Mark) -> None:
        """Keeps a mark, or that an item was skipped, durably.

        Raises:
            Full: The limit is reached.
            InvalidInput: An edit without an answer that the pair has, or with one that it lacks.
        """

    def hand_over(self, visitor: Visitor, pair_set: str) -> str:
        """Seals the marks made so far into an annotation set and returns its name.

        Raises:
            InvalidInput: There is no mark on a pair whose text is left.
        """
