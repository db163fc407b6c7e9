"""The constant part of each kind of request: frame and demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from ptalign.answering import prompts
from ptalign.answering.constraints import Constraints
from ptalign.answering.demos import own_demos, positive_demos, toxic_demos
from ptalign.answering.prompts import Demo
from ptalign.answering.wording import Wording
from ptalign.answering.work import Draft
from ptalign.nouns import Annotation, Pair, Policy
from ptalign.text.normalise import caseless

MIN_OWN_DEMOS = 3
"""Accepted answers of its own that a round needs before they replace the annotators'."""


class Heads:
    """Makes each constant part once, so that the engine's prefix cache keeps it.

    Args:
        policy: Generic constraints.
        words: Wording of its language.
        annotations: Demonstrations of the first round.
        constraints: Rules that the model's own answers were written under.
        benign_openers: The benign openers that go with each harmful one.
        refining: A parent set is refined: its answers demonstrate from the first round on.
        forbid: Told each demonstration by voice: answers must not copy it.
    """

    def __init__(
        self,
        policy: Policy,
        words: Wording,
        annotations: Sequence[Annotation],
        constraints: Constraints,
        benign_openers: Mapping[str, Sequence[str]],
        *,
        refining: bool,
        forbid: Callable[[str, str], None],
    ) -> None:
        self._policy, self._words, self._annotations = policy, words, annotations
        self._marked = {(caseless(item.instruction), item.bad) for item in annotations}
        self._constraints, self._benign_openers = constraints, benign_openers
        self._refining, self._forbid = refining, forbid
        self._made: dict[tuple[str, bool, int, int], str] = {}

    def of(self, draft: Draft, pairs: Collection[Pair]) -> str:
        """The constant part for a draft; `pairs` are those accepted so far.

        Toxic drafts alternate between two heads: other demonstrations, other answers.
        """
        voice, tone = draft.voice, draft.work.tone
        turn = (draft.work.round, draft.i % 2) if voice == "toxic" else (1, 0)
        name = (voice, tone, *turn)
        if name not in self._made:
            demos = self._toxic(*turn, pairs) if voice == "toxic" else self._benign(voice, tone)
            for demo in demos:
                self._forbid(voice, demo.answer)
            self._made[name] = prompts.head(self._frame(voice), demos, self._words)
        return self._made[name]

    def _frame(self, voice: str) -> str:
        words = self._words
        frames = {"toxic": words.frame_toxic, "twin": words.frame_twin}
        return frames.get(voice, words.frame_positive)

    def _toxic(self, round_: int, turn: int, pairs: Collection[Pair]) -> list[Demo]:
        """The annotators' answers in the first round, later the model's own best."""
        given = toxic_demos(self._annotations, self._policy.generic_constraints_toxic, turn)
        if turn or (round_ == 1 and not self._refining):
            return given
        rules = {p.topic: self._constraints.best(p.topic, "toxic").text for p in pairs}
        own = own_demos([p for p in pairs if self._own(p)], rules)
        return own if len(own) >= MIN_OWN_DEMOS else given

    def _own(self, pair: Pair) -> bool:
        """Whether it may show what the annotators' head does not: round 0 is imports', too."""
        marked = not pair.round and (caseless(pair.instruction), pair.toxic) in self._marked
        return not marked and not pair.held_out

    def _benign(self, voice: str, tone: bool) -> list[Demo]:
        shipped = self._words.helpful if tone else self._words.helpful_general
        shots = [Demo(s.message, s.answer) for s in shipped]
        if voice == "twin" or not tone:
            return shots
        rules = self._policy.generic_constraints_positive
        marked = positive_demos(self._annotations, rules, self._benign_openers, self._policy.locale)
        return marked if len(marked) >= MIN_OWN_DEMOS else shots
