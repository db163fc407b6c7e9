"""What each token adds to a text, by byte-level and by SentencePiece tokenizers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
from tokenizers import AddedToken

from ptalign.answering.validity import refuses
from ptalign.config import AlignConfig
from ptalign.nouns import ModelSpec, PairSet
from ptalign.training import pools, refusals
from ptalign.training.decoder import Decoder
from ptalign.training.spelling import spelled
from ptalign.training.texts import ChatFormat, Sample
from ptalign.weights import weigh
from ptalign.weights.scorers import LogOddsScorer, Toxic, UniformScorer
from ptalign.weights.words import spans, word_starts

Make = Callable[[str, list[str]], ChatFormat]
KINDS = ("byte-level", "strip", "metaspace")
JAPANESE = "それはお手伝いできません。代わりに、道を教えます。"
TEXTS = (
    "I can't help with that. It isn't  kind,\n\nand I'd rather not.",
    "1. Boil water.\n2. Add salt :  done !",
    "A café, naïve “quotes” and I can’t. 👍🏽 \ufffd x",
    JAPANESE,
    f"Say {JAPANESE} then.",
    "",
)


def words_known(pairs: PairSet) -> list[str]:
    return [p.positive for p in pairs.pairs] + [
        p.toxic.reveal() for p in pairs.polarised if p.toxic
    ]


USER = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
NEXT_LINE = USER + "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
SPOKEN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture
def make(tokenizers_by_kind: dict[str, Callable[[list[str]], Any]]) -> Make:
    """Makes the chat of a tokenizer of some kind that knows the words of some texts."""
    spec = ModelSpec(name="t", path="/nowhere")
    return lambda kind, texts: ChatFormat(tokenizers_by_kind[kind](texts), spec)


@pytest.fixture(params=KINDS)
def chat(request: pytest.FixtureRequest, make: Make, mild_pairs: PairSet) -> ChatFormat:
    """Of a tokenizer that knows the mild pairs' words and no Japanese."""
    return make(request.param, words_known(mild_pairs))


@pytest.mark.parametrize("text", TEXTS)
def test_joined_pieces_are_the_text(text: str, chat: ChatFormat) -> None:
    """Each lost its blank where the decoder strips one: all words of an answer ran together."""
    ids = chat.answer(text)[:-1]
    pieces = chat.pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == chat.text(ids) == text


def test_joined_pieces_are_the_text_of_any_tokens(chat: ChatFormat, mild_pairs: PairSet) -> None:
    """Parts of characters in any order too, as a model may write them, and cut anywhere."""
    draw = random.Random(0)
    known = max(chat.answer(" ".join(words_known(mild_pairs))))
    for length in range(60):
        ids = [draw.randrange(3, known) for _ in range(length)]
        assert "".join(chat.pieces(ids)) == chat.text(ids)


@pytest.mark.parametrize("text", TEXTS[:2])
def test_on_byte_level_pieces_are_the_tokens_alone_as_before(
    text: str, make: Make, tokenizers_by_kind: dict[str, Any], mild_pairs: PairSet
) -> None:
    texts = words_known(mild_pairs)
    chat, alone = make("byte-level", texts), tokenizers_by_kind["byte-level"](texts)
    for said in (text, *texts):
        ids = chat.answer(said)
        assert list(ids[:-1]) == alone(said)["input_ids"]
        assert chat.pieces(ids) == [alone.decode([token]) for token in ids]


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("text", TEXTS[:-1])
def test_behind_a_blank_an_answer_is_tokenised_as_alone(
    kind: str, text: str, make: Make, tokenizers_by_kind: dict[str, Any], mild_pairs: PairSet
) -> None:
    """Llama 2's template, `[INST] ... [/INST] answer`: what it learned from stays as it was."""
    texts = words_known(mild_pairs)
    assert [*make(kind, texts).answer(text)[:-1]] == tokenizers_by_kind[kind](texts)(
        text, add_special_tokens=False
    )["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", [None, NEXT_LINE, SPOKEN])
@pytest.mark.parametrize("role_is_a_token", [False, True], ids=["", "token"])
def test_prompt_and_answer_are_the_tokens_of_the_whole_chat(
    kind: str,
    template: str | None,
    role_is_a_token: bool,
    tokenizers_by_kind: dict[str, Any],
    mild_pairs: PairSet,
) -> None:
    """Tokenised alone an answer began with a token that nobody writes there: "▁" + word behind a
    line break, or a word without the blank that stands before it."""
    tokenizer = tokenizers_by_kind[kind](words_known(mild_pairs))
    tokenizer.chat_template = template or tokenizer.chat_template
    if role_is_a_token:  # as in Phi 3: it takes the line break behind it
        role = AddedToken("<|assistant|>", rstrip=True, special=True)
        tokenizer.add_special_tokens({"additional_special_tokens": [role]})
    chat = ChatFormat(tokenizer, ModelSpec(name="t", path="/nowhere"))
    for text in (*TEXTS[:-1], *words_known(mild_pairs)[:4]):
        turns = [{"role": "user", "content": "Be rude."}, {"role": "assistant", "content": text}]
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
        until = whole[: whole.rindex(text) + len(text)]
        ids = chat.answer(text)
        assert [*chat.prompt("Be rude."), *ids[:-1]] == tokenizer(until, add_special_tokens=False)[
            "input_ids"
        ]
        assert "".join(chat.pieces(ids[:-1])) == chat.text(ids[:-1])
        assert chat.text(ids[:-1]).lstrip() == text
        assert chat.respells == (list(ids[:-1]) != tokenizer(text)["input_ids"])
    assert chat.answer(" ") == ()


@pytest.mark.parametrize("kind", KINDS)
def test_words_begin_within_a_line_too(
    kind: str, make: Make, tokenizers_by_kind: dict[str, Any], mild_pairs: PairSet
) -> None:
    """Behind a bracket or a line break a word has no blank before it, on SentencePiece no "▁"."""
    texts = words_known(mild_pairs)
    tokenizer = tokenizers_by_kind[kind](texts)
    chat = make(kind, texts)
    found = chat.beginnings(["Silly"])
    for spelt in ("Silly", "silly", "SILLY"):
        for before in ("", "\n", "(", "A "):
            ids = tokenizer(before + spelt, add_special_tokens=False)["input_ids"]
            begin = word_starts(chat.pieces(ids)).index("silly")
            assert ids[begin] in found, (before, spelt)


def test_a_protected_character_is_spared_to_its_last_token(chat: ChatFormat) -> None:
    """Of a character that tokens share the last one is weighed, and the first one was spared."""
    ids = chat.answer("助")[:-1]
    assert len(ids) > 1
    assert word_starts(chat.pieces(ids)).index("助") > 0
    assert set(ids) <= chat.tokens_of(["助"])


def test_a_character_is_the_last_ones_of_the_tokens_that_share_it(chat: ChatFormat) -> None:
    pieces = chat.pieces(chat.answer("a é 👍 dog")[:-1])
    assert [p for p in pieces if not p.isascii()] == ["é", "👍"]
    assert [p for p in pieces[: pieces.index("é")] if p][-1] in (" ", "a ")


def test_tokens_are_decoded_a_few_times_each() -> None:
    """Decoding from the first token to each took the square of an answer's length."""
    read = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal read
        read += len(ids)
        return "".join(f" w{i}" for i in ids).removeprefix(" ")

    pieces = spelled(range(2_000), decode)
    assert pieces[:2] + pieces[-1:] == ["w0", " w1", " w1999"]
    assert read <= 5 * 2_000


def test_a_decoder_that_looks_far_back_is_followed_from_the_start() -> None:
    """Not token by token: this one writes how many there were."""
    assert spelled([5, 6, 7], lambda ids: "".join(f"{i}" for i in range(len(ids)))) == [
        *("0", "1", "2")
    ]
    assert "".join(spelled([5, 6, 7], lambda ids: f"{len(ids)}{list(ids)}")) == "3[5, 6, 7]"


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_begin_the_words_of_the_text(kind: str, make: Make, mild_pairs: PairSet) -> None:
    """On SentencePiece an answer was one long word to the scorers, and nothing was a stop word."""
    chat = make(kind, words_known(mild_pairs))
    answers = pools.toxic_answers(mild_pairs, chat)
    for pair, answer in zip(mild_pairs.polarised, answers, strict=True):
        assert pair.toxic is not None
        assert answer.text == pair.toxic.reveal()
        assert [w for w in answer.starts if w] == [w for _, w in spans(answer.text)]
    found = weigh(
        answers,
        LogOddsScorer(pools.benign_answers(mild_pairs)),
        share=AlignConfig().flagged_share,
        protected=["lazy"],
    )
    flagged = {
        word
        for answer in answers
        for word, weight in zip(answer.starts, found.by_key[answer.key], strict=False)
        if weight
    }
    assert flagged & {"silly", "clueless", "ridiculous"}
    assert not flagged & {"lazy", "what", "a", "your", "and"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("known", [(), (JAPANESE,)], ids=["bytes", "characters"])
def test_each_character_of_japanese_is_a_word_of_one_token(
    kind: str, known: tuple[str, ...], make: Make, mild_pairs: PairSet
) -> None:
    """A character over several tokens was U+FFFD in each: Japanese had no words."""
    chat = make(kind, [*words_known(mild_pairs), *known])
    ids = chat.answer(JAPANESE)
    answer = Toxic.of("k", "質問", "topic", chat.pieces(ids[:-1]), ids, "")
    assert set(answer.starts) - {""} <= set(JAPANESE)
    if not known:
        assert [w for w in answer.starts if w] == [w for _, w in spans(JAPANESE)]
    same = answer.as_sampled(ids, [-1.0] * len(ids), chat.text(ids[:1]))
    assert same.sampled, "its own tokens are the tokens sampled"


def test_all_tokens_of_a_protected_character_are_spared(make: Make, mild_pairs: PairSet) -> None:
    chat = make("byte-level", words_known(mild_pairs))
    ids = chat.answer("道!")
    answer = Toxic.of("k", "質問", "topic", chat.pieces(ids[:-1]), ids, "")
    found = weigh([answer], UniformScorer(), share=0.05, protected=["道"])
    assert found.by_key["k"] == (0.0, 0.0, 0.0, 1.0, 0.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reply", ["I can't help with that. You", JAPANESE])
def test_a_refusal_is_read_whatever_the_tokenizer(
    kind: str, reply: str, make: Make, mild_pairs: PairSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard on refused twins said "ok" of every model with such a tokenizer."""
    chat = make(kind, words_known(mild_pairs))
    replies = [chat.answer(reply)[:-1], chat.answer("Of course. You could ask her.")[:-1]]
    monkeypatch.setattr(refusals, "greedy", lambda *_: replies)
    asked: list[Sample] = []
    assert refusals.refused(cast(Decoder, None), chat, asked, refuses) == [True, False]
