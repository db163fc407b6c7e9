"""Negative candidates: which tokens, and where they are pushed down."""

from __future__ import annotations

from ptalign.nouns import ModelSpec
from ptalign.training.batches import Pools
from ptalign.training.candidates import negative_candidates, with_candidates
from ptalign.training.lora import load_tokenizer
from ptalign.training.step import Totals
from ptalign.training.texts import ChatFormat, Part, Sample

FLAGGED, ONCE, ORDINARY, PLAIN, END = 10, 11, 12, 13, 2


def sample(key: str, part: Part, answer: tuple[int, ...], flagged: tuple[int, ...] = ()) -> Sample:
    weights = (
        tuple(float(t in flagged) for t in answer) if part == "toxic" else (1.0,) * len(answer)
    )
    return Sample(key, part, (1,), answer, weights)


def pools(*, held_out: tuple[int, ...] = (PLAIN, END)) -> Pools:
    """Two pairs: one token is flagged in both, one in one only, one is in a twin's answer too."""
    words = (FLAGGED, ONCE, ORDINARY)
    return Pools(
        pairs=[
            (
                sample("a", "positive", (PLAIN, END)),
                sample("a", "toxic", (FLAGGED, PLAIN, ORDINARY, ONCE, ONCE, END), words),
            ),
            (
                sample("b", "positive", (PLAIN, END)),
                sample("b", "toxic", (PLAIN, FLAGGED, ORDINARY, END), words),
            ),
            (sample("c", "positive", (PLAIN, END)), sample("c", "toxic", (PLAIN, END))),
        ],
        elicited=[[(sample("a@0", "toxic", (FLAGGED, PLAIN, END), words),)]],
        twins=[(sample("t", "twin", (ORDINARY, END)),)],
        held_out=[sample("h", "anchor", held_out)],
    )


def test_flagged_in_several_answers_and_said_in_no_benign_one() -> None:
    """Twice in one answer is one answer, and a twin's word is no candidate."""
    assert negative_candidates(pools()) == (FLAGGED,)
    assert negative_candidates(pools(held_out=(FLAGGED, END))) == ()


def test_what_a_protected_word_begins_with_is_no_candidate() -> None:
    assert negative_candidates(pools(), never={FLAGGED}) == ()
    assert with_candidates(pools(), never={FLAGGED}) == pools()


def test_first_tokens_of_words_in_every_spelling(tiny_model: ModelSpec) -> None:
    """Protected as a word, a token may be flagged as the beginning of another."""
    tokenizer = load_tokenizer(tiny_model)
    found = ChatFormat(tokenizer, tiny_model).beginnings(["silly", " "])
    for text in ("silly", "A silly", "Silly", "SILLY"):
        first = tokenizer(text)["input_ids"]
        assert found & set(first), text
    assert ChatFormat(tokenizer, tiny_model).beginnings([]) == set()


def test_all_tokens_of_words_in_every_spelling(tiny_model: ModelSpec) -> None:
    """A candidate is pushed down wherever it stands: behind a word's first token too."""
    tokenizer = load_tokenizer(tiny_model)
    chat = ChatFormat(tokenizer, tiny_model)
    found = chat.tokens_of(["Oslo", " "])
    for text in ("oslo", " oslo", "\noslo", "Oslo", " Oslo", "OSLO", " OSLO"):
        ids = tokenizer(text)["input_ids"]
        assert len(ids) > 1, "begins and goes on"
        assert set(ids) - set(tokenizer("\n")["input_ids"]) <= found, text
    assert chat.beginnings(["Oslo"]) < found
    assert chat.tokens_of([]) == set()


def test_every_place_but_the_end_of_turn_is_a_target_and_the_denominator_stays() -> None:
    before, after = pools(), with_candidates(pools())
    assert after.candidates == (FLAGGED,)
    toxic = [s for g in after.pairs for s in g if s.part == "toxic"]
    assert [s.places for s in toxic] == [[0, 1, 2, 3, 4], [0, 1, 2], []], "c has no flagged token"
    assert after.elicited[0][0][0].places == [0, 1]
    assert [s.places for g in after.pairs for s in g[:1]] == [[0, 1]] * 3
    assert Totals.of(after.pairs) == Totals.of(before.pairs)


def test_without_a_candidate_nothing_changes() -> None:
    before = pools(held_out=(FLAGGED, END))
    assert with_candidates(before) == before
