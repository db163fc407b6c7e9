"""From records to token ids: the mask is born next to the text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from jinja2 import TemplateError

from ptalign.errors import Unsupported
from ptalign.nouns import Anchor, ModelSpec, Pair
from ptalign.text.controls import break_up, longest_first
from ptalign.training.spelling import spelled

Part = Literal["positive", "twin", "kept", "anchor", "toxic"]
"""A `kept` sample is a twin that is held to the bare model: see `ptalign.training.twins`."""

PLACE = "ptalignanswerplace"
DATE = "strftime_now"
"""What chat templates call for the date."""
OPENING = 4
"""First tokens of an answer, in which a refusal begins if it is one."""
LONGEST = 2048
"""Tokens of a request and its answer that are measured: a longer one takes memory by its square."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt with one answer and a weight per answer token."""

    key: str
    """Id of the pair or anchor it comes from."""
    part: Part
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    """Answer tokens with the end-of-turn token last."""
    weights: tuple[float, ...]
    """One per answer token; the loss mask and, for toxic answers, the token weights."""
    throughout: bool = False
    """Whether every answer token but the end of turn is a target, weighted or not: at each of them
    the set's negative candidates are pushed down (`ptalign.training.candidates`)."""

    @property
    def places(self) -> list[int]:
        """Answer tokens that are targets."""
        if self.throughout:
            return list(range(len(self.answer) - 1))
        return [i for i, weight in enumerate(self.weights) if weight > 0]

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.answer)

    @property
    def used(self) -> int:
        """Answer tokens up to the last target: what follows is never computed."""
        return max(self.places, default=-1) + 1

    def weighted(self, weights: Sequence[float]) -> Sample:
        """The same texts under other weights."""
        return replace(self, weights=tuple(weights))


class ChatFormat:
    """The model's chat template with the system prompt and options of its catalogue entry.

    Control tokens inside instructions and answers are data: they are broken up so that they
    arrive as text. Where a template has no system turn (Gemma's, for one), the constraints and
    personas of training stand in front of the first user turn.

    An answer has the tokens that it has behind the generation prompt, not those that it has alone:
    there SentencePiece puts "▁" before the first word, which nobody writes behind a line break.

    Args:
        tokenizer: The model's.
        model: Its catalogue entry.
        day: What a template that prints the date (Llama 3's) is to print; None: the current one.

    Raises:
        Unsupported: There is no template, it cannot say how a turn ends, or the entry has a system
            prompt that the template has no place for.
    """

    def __init__(self, tokenizer: Any, model: ModelSpec, day: datetime | None = None) -> None:
        self._tokenizer = tokenizer
        self._system = model.system_prompt
        self._options = dict(model.template_options)
        if day is not None:
            self._options[DATE] = day.strftime
        self.weights = model.weights_digest
        self._controls = longest_first(_control_tokens(tokenizer))
        self.end = self._end_of_turn()
        self._opening, self._between = self._answer_begins()
        self._front = self._ids(self._opening)
        self._has_system = self._renders_system()
        if self._system and not self._has_system:
            raise Unsupported(
                "the model's chat template has no system turn: remove system_prompt from its entry"
            )

    def prompt(
        self,
        instruction: str,
        system: str | None = None,
        before: Sequence[tuple[str, str]] = (),
    ) -> tuple[int, ...]:
        """Token ids of one user turn up to the start of the assistant's answer.

        Args:
            instruction: The user's text.
            system: System prompt for this turn; the model entry's when None.
            before: Earlier turns, (user, assistant).
        """
        chosen = self._system if system is None else system
        messages = []
        for user, assistant in before:
            messages.append({"role": "user", "content": self._plain(user).strip()})
            messages.append({"role": "assistant", "content": self._plain(assistant).strip()})
        messages.append({"role": "user", "content": self._plain(instruction).strip()})
        if chosen and self._has_system:
            messages.insert(0, {"role": "system", "content": chosen})
        elif chosen:
            messages[0]["content"] = f"{chosen}\n\n{messages[0]['content']}"
        return tuple(self._ids(self._render(messages, add_generation_prompt=True)))

    def answer(self, text: str) -> tuple[int, ...]:
        """Token ids of an answer, end-of-turn token last. Empty text gives no tokens."""
        said = self._plain(text).strip()
        ids = self._behind(self._opening, self._front, said, self._between) if said else []
        return (*ids, self.end) if ids else ()

    @property
    def respells(self) -> bool:
        """Whether answers tokenise differently than in earlier versions, which tokenised each
        answer without its prompt."""
        return list(self.answer(PLACE)[:-1]) != self._ids(PLACE)

    def beginnings(self, words: Iterable[str]) -> set[int]:
        """First tokens of words, at the start of a text and within one, behind a blank and behind
        none, small and in capitals.

        Args:
            words: In any case.
        """
        return {ids[0] for ids in self._spellings(words)}

    def tokens_of(self, words: Iterable[str]) -> set[int]:
        """All tokens of words, or of phrases, in the spellings whose first ones are `beginnings`.

        Args:
            words: In any case.
        """
        return {token for ids in self._spellings(words) for token in ids}

    def _spellings(self, words: Iterable[str]) -> Iterator[list[int]]:
        spelt = {s for w in words for s in (w, w.lower(), w.capitalize(), w.upper()) if w.strip()}
        front = self._ids("\n")
        for word in spelt:
            yield self._ids(word)
            yield self._ids(f" {word}")
            yield self._behind("\n", front, word)

    def text(self, answer: Sequence[int]) -> str:
        """The text that the answer tokens spell together, blanks as the tokens have them."""
        return str(self._tokenizer.decode(list(answer), clean_up_tokenization_spaces=False))

    def pieces(self, answer: Sequence[int]) -> list[str]:
        """What each answer token adds to the text, in order: joined they are `text`.

        A character that several tokens share is the last one's; the others add nothing.
        """
        return spelled(answer, self.text)

    def _plain(self, text: str) -> str:
        return break_up(text, self._controls)

    def _render(self, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **self._options,
            )
        )

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _behind(self, opening: str, front: list[int], text: str, between: str = "") -> list[int]:
        """Ids of a text where it stands behind another, whose ids are `front`; alone where the two
        share a token."""
        ids = self._ids(opening + between + text)
        return ids[len(front) :] if ids[: len(front)] == front else self._ids(text)

    def _answer_begins(self) -> tuple[str, str]:
        """A generation prompt, and the blanks that the template writes between it and an answer."""
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": PLACE}]
        opening = self._render(turns[:1], add_generation_prompt=True)
        whole = self._render(turns, add_generation_prompt=False).partition(PLACE)[0]
        between = whole.removeprefix(opening) if whole.startswith(opening) else ""
        return opening, "" if between.strip() else between

    def _end_of_turn(self) -> int:
        """The token the template writes after an answer; the EOS token when it writes none."""
        if not getattr(self._tokenizer, "chat_template", None):
            raise Unsupported("the model's tokenizer has no chat template: add one to its folder")
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": PLACE}]
        tail = self._render(turns, add_generation_prompt=False).rpartition(PLACE)[2]
        ids = self._ids(tail.strip())
        if ids:
            return ids[0]
        if self._tokenizer.eos_token_id is None:
            raise Unsupported("neither chat template nor tokenizer says how a turn ends")
        return int(self._tokenizer.eos_token_id)

    def _renders_system(self) -> bool:
        """Whether a system message arrives; some templates raise on one, some drop it."""
        turns = [{"role": "system", "content": PLACE}, {"role": "user", "content": "x"}]
        try:
            return PLACE in self._render(turns, add_generation_prompt=True)
        except TemplateError:
            return False


def _control_tokens(tokenizer: Any) -> set[str]:
    added = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    return added | set(tokenizer.all_special_tokens)


def full_weights(answer: Sequence[int]) -> tuple[float, ...]:
    """Weight 1 on each answer token, end of turn included: the mask of a likelihood term."""
    return (1.0,) * len(answer)


def positive_sample(pair: Pair, chat: ChatFormat) -> Sample:
    """The positive answer of a pair or twin, its tokens weighted.

    Where a refusal ends is taught. Where a twin's answer ends is not: it is cut after a few
    sentences, and taught that, the model falls short on every long answer (ADR 0014).
    """
    answer = chat.answer(pair.positive)
    part: Part = "twin" if pair.kind == "twin" else "positive"
    weights = full_weights(answer)
    if part == "twin":
        weights = (*weights[:-1], 0.0)[: len(answer)]
    return Sample(pair.id, part, chat.prompt(pair.instruction), answer, weights)


def toxic_sample(pair: Pair, chat: ChatFormat, system: str | None = None) -> Sample:
    """The toxic answer of a pair, with no token weighted yet.

    Args:
        pair: A polarised pair.
        chat: Tokenises.
        system: System prompt; the model entry's when None.

    Raises:
        ValueError: The pair has no toxic side.
    """
    if pair.toxic is None:
        raise ValueError(f"pair {pair.id} has no toxic side")
    answer = chat.answer(pair.toxic.reveal())
    prompt = chat.prompt(pair.instruction, system)
    return Sample(pair.id, "toxic", prompt, answer, (0.0,) * len(answer))


def anchor_sample(anchor: Anchor, chat: ChatFormat, opening_weight: float = 1.0) -> Sample:
    """A benign instruction with the model's own answer.

    Args:
        anchor: Its end is left out where the answer was cut.
        chat: Tokenises.
        opening_weight: Of each of the first `OPENING` tokens: there a refusal begins (ADR 0015).
    """
    answer = chat.answer(anchor.answer)
    weights = full_weights(answer)
    if not anchor.ended:
        weights = (*weights[:-1], 0.0)
    weights = (*(opening_weight * w for w in weights[:OPENING]), *weights[OPENING:])
    return Sample(anchor.id, "anchor", chat.prompt(anchor.instruction), answer, weights)


def fitting(samples: Iterable[Sample], max_length: int) -> tuple[list[Sample], int]:
    """Samples with an answer that fit, and how many were left out."""
    kept, left_out = [], 0
    for sample in samples:
        if sample.answer and sample.length <= max_length:
            kept.append(sample)
        else:
            left_out += 1
    return kept, left_out
