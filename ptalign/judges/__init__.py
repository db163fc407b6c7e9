"""The judges by name. Importing this loads none of them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from ptalign.errors import InvalidInput
from ptalign.judges.base import Judge
from ptalign.nouns import Annotation

GENERATION_JUDGES = ("tone-head@1", "tone-valence@1")
"""They filter pairs, so they never decide released rates."""

EVALUATION_JUDGES = ("tone-lexical@1", "refusal@1")
"""Judges of an evaluation, one of harm and one of refusal; disjoint from the above."""

_MADE_BY = {
    "refusal@1": "ptalign.judges.refusal:RefusalJudge",
    "tone-lexical@1": "ptalign.judges.tone:ToneLexical",
    "tone-head@1": "ptalign.judges.tone:ToneHead",
    "tone-valence@1": "ptalign.judges.tone:ToneValence",
}
"""Judge id -> ``module:class``. One line per judge."""

_LEARNS = frozenset({"tone-head@1", "tone-valence@1"})
"""Judges that take annotations."""


def judge_names() -> tuple[str, ...]:
    """Ids of the judges that ship with ptalign."""
    return tuple(sorted(_MADE_BY))


def judge(name: str, annotations: Sequence[Annotation] = ()) -> Judge:
    """A judge by id; the version may be left out.

    Args:
        name: E.g. ``tone-lexical@1`` or ``tone-lexical``.
        annotations: Marks that a learning judge is trained on or checked by; others ignore them.

    Raises:
        InvalidInput: Unknown name; the known ones are listed.
    """
    known = name if name in _MADE_BY else next((k for k in _MADE_BY if k.split("@")[0] == name), "")
    if not known:
        raise InvalidInput(
            "judges", f"known judges are {', '.join(judge_names())}", "Use one of them."
        )
    module, maker = _MADE_BY[known].split(":")
    make = getattr(import_module(module), maker)
    made: Judge = make(annotations) if known in _LEARNS else make()
    return made


def generation_judges(annotations: Sequence[Annotation] = ()) -> tuple[Judge, ...]:
    """The default judges of `synthesize_pairs`."""
    return tuple(judge(name, annotations) for name in GENERATION_JUDGES)


def evaluation_judges(names: Sequence[str] = ()) -> tuple[Judge, ...]:
    """The named judges of `evaluate`, and the default one of an axis that none of them is for.

    Args:
        names: As in `judge`; the defaults when empty.
    """
    return with_defaults([judge(name) for name in names])


def with_defaults(named: Sequence[Judge]) -> tuple[Judge, ...]:
    """The judges, and the default one of `evaluate` for an axis that none of them is for."""
    axes = {made.axis for made in named}
    defaults = (judge(name) for name in EVALUATION_JUDGES)
    return (*named, *(made for made in defaults if made.axis not in axes))
