"""Token weights: scorers by hand, what is never flagged, and the share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from ptalign.config import AlignConfig
from ptalign.errors import InvalidInput
from ptalign.nouns import ModelSpec, Pair, PairSet, Sampled
from ptalign.sealed import SealedText
from ptalign.text.stopwords import stop_words
from ptalign.training import lora, pools
from ptalign.training.contrast import DEFAULT_CONSTRAINTS, constraints_of, contrast_scores
from ptalign.training.decoder import Decoder
from ptalign.training.texts import ChatFormat
from ptalign.weights import scorer_named, weigh
from ptalign.weights.scorers import BlendScorer, LogOddsScorer, Scores, Toxic, UniformScorer
from ptalign.weights.words import word_starts


def toxic(key: str, pieces: Sequence[str], positive: str = "") -> Toxic:
    return Toxic.of(key, "question", "topic", pieces, tuple(range(len(pieces) + 1)), positive)


class Fixed:
    """A scorer with given numbers."""

    def __init__(self, *scores: list[float]) -> None:
        self.scores = list(scores)

    def score(self, answers: Sequence[Toxic]) -> Scores:
        return self.scores


def test_only_the_first_token_of_a_word_begins_it() -> None:
    assert word_starts(["What", " a", " sil", "ly", " idea", ",", " don", "'t", "!"]) == [
        *("what", "a", "silly", "", "idea", "", "don't", "", ""),
    ]


def test_unspaced_scripts_have_a_word_per_character() -> None:
    assert word_starts(["くだ", "ら", "ない"]) == ["く", "ら", "な"]


def test_a_capital_of_two_small_characters_keeps_the_places_of_unspaced_ones() -> None:
    """Beside an unspaced script "İ", two characters in small, made words longer than the text."""
    assert word_starts(["İzmir", "市"]) == ["i̇", "市"]
    assert word_starts(["漢", "İ"]) == ["漢", "i̇"]
    assert word_starts(["İ", "漢", "字"]) == ["i̇", "漢", "字"]
    assert word_starts(["İzmir", " A"]) == ["i̇zmir", "a"]


def test_log_odds_by_hand() -> None:
    """Toxic words: silly 3, tea 1; benign: tea 2, kind 2; prior 1/2 over 3 words = 1.5.

    silly: a = 3.5 of 5.5, b = 0.5 of 5.5: (ln 3.5/2 - ln 0.5/5) / sqrt(1/3.5 + 1/0.5).
    """
    answers = [toxic(str(i), ["silly"]) for i in range(3)] + [toxic("t", ["tea"])]
    table = LogOddsScorer(["tea kind", "kind tea"]).table(answers)
    want = (math.log(3.5 / 2) - math.log(0.5 / 5)) / math.sqrt(1 / 3.5 + 1 / 0.5)
    assert table["silly"] == pytest.approx(want)
    assert table["tea"] < 0 < table["silly"]


def test_blend_mixes_ranks_so_that_units_do_not_matter() -> None:
    """Ranks 0, 1/2, 1 and 1, 1/2, 0 with shares 3:1: 1/4, 1/2, 3/4."""
    big, small = Fixed([1000.0, 2000.0, 3000.0]), Fixed([0.3, 0.2, 0.1])
    blended = BlendScorer([(big, 3), (small, 1)]).score([toxic("a", ["x", "y", "z"])])
    assert blended == [[0.25, 0.5, 0.75]]


def test_blend_keeps_what_one_scorer_never_flags() -> None:
    scorer = BlendScorer([(Fixed([1.0, -math.inf]), 1), (Fixed([1.0, 2.0]), 1)])
    assert scorer.score([toxic("a", ["x", "y"])])[0][1] == -math.inf


def test_share_is_of_all_toxic_tokens() -> None:
    """Ten tokens, share 0.2: the two highest."""
    pieces = [f" w{chr(97 + i)}" for i in range(10)]
    found = weigh([toxic("a", pieces)], Fixed([float(i) for i in range(10)]), share=0.2)
    assert found.by_key["a"] == (0.0,) * 8 + (1.0, 1.0) + (0.0,)
    assert (found.flagged, found.tokens, found.share) == (2, 10, 0.2)


def test_one_threshold_serves_the_whole_set() -> None:
    answers = [toxic("a", [" wa", " wb"]), toxic("b", [" wc", " wd"])]
    found = weigh(answers, Fixed([9.0, 8.0], [1.0, 2.0]), share=0.5)
    assert found.by_key == {"a": (1.0, 1.0, 0.0), "b": (0.0, 0.0, 0.0)}


def test_ties_at_the_threshold_stay_out() -> None:
    pieces = [" wa", " wb", " wc", " wd"]
    found = weigh([toxic("a", pieces)], Fixed([5.0, 1.0, 1.0, 1.0]), share=0.5)
    assert found.flagged == 1


def test_never_flagged() -> None:
    """Shared with the positive, stop word, protected word, punctuation, end of turn."""
    pieces = ["silly", " tea", " the", " visa", "!", " lazy"]
    answer = toxic("a", pieces, positive="Tea is served.")
    found = weigh([answer], Fixed([1.0] * 6), share=1.0, protected=["Visa"])
    assert found.by_key["a"] == (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@pytest.mark.parametrize("locale", ["en", "ja"])
def test_a_function_word_is_never_flagged(locale: str) -> None:
    """The weights had a list of their own, without 45 English ones and all Japanese ones."""
    words = sorted(stop_words(locale))
    found = weigh([toxic("a", [f" {word}" for word in words])], Fixed([1.0] * len(words)), share=1)
    assert [word for word, w in zip(words, found.by_key["a"], strict=False) if w] == []


def test_a_word_that_begins_as_a_japanese_function_word_does_is_flagged() -> None:
    found = weigh([toxic("a", ["お前", "は", "のろま", "だ"])], Fixed([1.0] * 4), share=1.0)
    assert found.by_key["a"][1:3] == (0.0, 1.0)


def test_uniform_is_the_vanilla_baseline() -> None:
    """Every token but protected words and the end of turn, whatever the share."""
    pieces = ["silly", " tea", " the", "!"]
    found = weigh([toxic("a", pieces, "tea")], UniformScorer(), share=0.05, protected=["silly"])
    assert found.by_key["a"] == (0.0, 1.0, 1.0, 1.0, 0.0)


def test_uniform_spares_a_protected_word_to_its_last_token() -> None:
    pieces = ["Wak", "ay", "ama", ",", " Wak", "ame", " won", "'t", " Wak", "ayama"]
    answer = toxic("a", pieces)
    found = weigh([answer], UniformScorer(), share=0.05, protected=["Wakayama", "won't"])
    assert found.by_key["a"] == (0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)


class WordJudge:
    id = "words@1"
    axis = "harm"

    def score(self, instructions: Sequence[str], replies: Sequence[str]) -> list[float | None]:
        return [0.9 if "silly" in r else 0.1 for r in replies]


def test_judge_scorer_leaves_words_out() -> None:
    """Without 'silly' (two tokens) the judge falls from 0.9 to 0.1: its first token scores 0.8."""
    scorer = scorer_named("judge", benign=[], contrast=lambda _: [], judge=WordJudge())
    (scores,) = scorer.score([toxic("a", ["What", " a", " sil", "ly", " idea", "."])])
    assert scores[2] == pytest.approx(0.8)
    assert scores[0] == scores[4] == pytest.approx(0)
    assert scores[3] == scores[5] == -math.inf


class BlindJudge(WordJudge):
    def score(self, instructions: Sequence[str], replies: Sequence[str]) -> list[float | None]:
        return [None] * len(replies)


def test_a_judge_that_reads_no_answer_is_named() -> None:
    """The advice was to raise flagged_share, of which nothing is flagged either."""
    scorer = scorer_named("judge", benign=[], contrast=lambda _: [], judge=BlindJudge())
    with pytest.raises(InvalidInput, match=r"words@1, which scores none .*Use log_odds"):
        scorer.score([toxic("a", ["くだ", "ら", "ない"])])


def test_judge_scorer_without_a_judge_says_what_to_do() -> None:
    with pytest.raises(InvalidInput, match="scorer: 'judge' needs a judge"):
        scorer_named("judge", benign=[], contrast=lambda _: [])


@pytest.fixture(scope="module")
def tiny(tiny_model: ModelSpec) -> tuple[Decoder, ChatFormat]:
    chat = ChatFormat(lora.load_tokenizer(tiny_model), tiny_model)
    return Decoder(lora.load_model(tiny_model)), chat


def plain(
    decoder: Decoder, chat: ChatFormat, pairs: PairSet, answer: Toxic, side: str
) -> list[float]:
    """Log-prob of each answer token under one side's constraints, from one sequence's logits."""
    import torch

    prompt = chat.prompt(answer.instruction, constraints_of(pairs, None, "")[side])
    ids = torch.tensor([prompt + answer.answer])
    logp = decoder.causal_lm(ids).logits[0].log_softmax(-1)
    places = torch.arange(len(prompt) - 1, len(prompt) - 1 + len(answer.answer))
    found: list[float] = logp[places, torch.tensor(answer.answer)].tolist()
    return found


def test_contrast_equals_two_plain_forward_passes(
    tiny: tuple[Decoder, ChatFormat], mild_pairs: PairSet
) -> None:
    """Packed, prefix-shared and on answer rows only; exact to 1e-4 against full logits."""
    answers = pools.toxic_answers(mild_pairs, tiny[1])
    scores = contrast_scores(*tiny, answers, lambda topic: constraints_of(mild_pairs, None, topic))
    for answer, row in zip(answers, scores, strict=True):
        high, low = (plain(*tiny, mild_pairs, answer, side) for side in ("toxic", "positive"))
        for i, word in enumerate(answer.starts):
            if word:
                assert row[i] == pytest.approx(high[i] - low[i], abs=1e-4)
            else:
                assert row[i] == -math.inf


def test_what_was_sampled_is_not_computed_again(
    tiny: tuple[Decoder, ChatFormat], mild_pairs: PairSet, tiny_model: ModelSpec
) -> None:
    """Kept log-probs stand for the toxic side, where this model's weights sampled them."""
    decoder, _ = tiny
    model = tiny_model.model_copy(update={"weights_digest": "sha256:0"})
    chat = ChatFormat(lora.load_tokenizer(model), model)
    pairs = tuple(sampled_pair(p, chat, -0.25) if p.toxic else p for p in mild_pairs.pairs)
    kept = mild_pairs.model_copy(update={"pairs": pairs})
    answers = pools.toxic_answers(kept, chat)
    scores = contrast_scores(
        decoder,
        chat,
        answers,
        lambda topic: constraints_of(kept, None, topic),
    )
    for answer, row in zip(answers, scores, strict=True):
        low = plain(decoder, chat, kept, answer, "positive")
        for i, word in enumerate(answer.starts):
            if word:
                assert row[i] == pytest.approx(-0.25 - low[i], abs=1e-4)
    other = model.model_copy(update={"weights_digest": "sha256:1"})
    foreign = ChatFormat(lora.load_tokenizer(other), other)
    assert not any(answer.sampled for answer in pools.toxic_answers(kept, foreign))


def sampled_pair(pair: Pair, chat: ChatFormat, log_prob: float) -> Pair:
    """The pair as if its engine had sampled its toxic answer and then something more."""
    assert pair.toxic is not None
    ids = [*chat.answer(pair.toxic.reveal())[:-1], 7, 8]
    tokens = SealedText(" ".join(map(str, ids)))
    made = Sampled(weights="sha256:0", tokens=tokens, log_probs=(log_prob,) * len(ids))
    return pair.model_copy(update={"sampled": made})


@pytest.mark.parametrize(
    ("ids", "first", "taken"),
    [
        ((0, 1, 2, 3), "Go", True),  # as it is
        ((9, 1, 2), " Go", True),  # the blank before the first word was stripped
        ((0, 1, 2, 9, 9), "Go", True),  # cut at its end
        ((9, 1, 2), " Come", False),
        ((0, 9, 2), "Go", False),
        ((0, 1), "Go", False),
        ((), "", False),
    ],
)
def test_log_probs_are_taken_only_where_the_tokens_are_the_same(
    ids: tuple[int, ...], first: str, taken: bool
) -> None:
    answer = toxic("k", ["Go", " away", " fool", "."]).as_sampled(ids, [-1.0] * len(ids), first)
    assert answer.sampled == ((-1.0,) * 3 if taken else ())


def test_refined_constraints_come_before_generic_ones(mild_pairs: PairSet) -> None:
    pairs = mild_pairs.model_copy(update={"constraints": {"mocking/toxic": ("Sneer.",)}})
    assert constraints_of(pairs, None, "mocking")["toxic"] == "- Sneer."
    assert DEFAULT_CONSTRAINTS["toxic"][0] in constraints_of(pairs, None, "contempt")["toxic"]


@pytest.mark.parametrize("scorer", ["blend", "log_odds", "contrast"])
def test_scorers_find_the_rude_words(
    scorer: str, tiny: tuple[Decoder, ChatFormat], mild_pairs: PairSet
) -> None:
    """No flagged word stands in any positive answer's text of the same pair or is protected."""
    decoder, chat = tiny
    config = AlignConfig(scorer=scorer, protected_words=("lazy",))  # type: ignore[arg-type]
    found = pools.weigh_pairs(mild_pairs, decoder, chat, config)
    assert 0 < found.share <= config.flagged_share
    words = set()
    for answer in pools.toxic_answers(mild_pairs, chat):
        weights = found.by_key[answer.key]
        assert len(weights) == len(answer.answer)
        words |= {w for w, weight in zip(answer.starts, weights, strict=False) if weight}
    assert "lazy" not in words
    if scorer != "contrast":
        assert words & {"silly", "clueless", "ridiculous", "waste", "bothering"}


def test_the_method_ut_uniform_ignores_the_scorer(
    tiny: tuple[Decoder, ChatFormat], mild_pairs: PairSet
) -> None:
    found = pools.weigh_pairs(mild_pairs, *tiny, AlignConfig(method="ut_uniform"))
    assert found.flagged == found.tokens
