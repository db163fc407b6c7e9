"""Stage 2 in Japanese, from the shipped pack to pairs, twins and anchors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import pytest

from ptalign.answering.anchors import anchor_of
from ptalign.answering.marks import usable_marks
from ptalign.answering.validity import malformed, opener_share, refuses, threatens, tidy
from ptalign.answering.verdicts import Verdicts
from ptalign.answering.wording import Shot, wording
from ptalign.answering.work import AnchorDraft, Draft, Work
from ptalign.config import InstructionConfig, PairConfig
from ptalign.engines.base import Completion, Request
from ptalign.engines.script import plausible, share_of
from ptalign.engines.scripted import ScriptedEngine
from ptalign.instructions import generate_instructions
from ptalign.judges import generation_judges
from ptalign.judges.base import Judge
from ptalign.nouns import Annotation, Instruction, InstructionSet, ModelSpec, PairSet
from ptalign.pairs import synthesize_pairs
from ptalign.policies import benign_instructions, load_policy
from ptalign.policies.never import blocked
from ptalign.sealed import SealedText
from ptalign.text.embed import HashedNgrams

POLICY = load_policy("default-ja")
WORDS = wording("ja")
MODEL = ModelSpec(name="scripted", path="", locales=("ja",))
KANA = re.compile("[ぁ-ん]")
KIND = {"失礼な": "丁寧な", "意地悪な": "やさしい", "冷たい": "温かい", "見下す": "励ます"}
WHEN = (
    "まず", "できれば早めに", "はじめに", "落ち着いてから", "休み時間に", "会議の前に",
    "昼食のあとで", "週末までに", "夕方になったら", "準備ができたら",
)  # fmt: skip
WHAT = (
    "相手の話を", "大事な点を紙に", "簡単な例を", "これからの予定を", "使い方の順番を",
    "困っている理由を", "前に習ったことを", "良かったところを", "必要な道具を", "連絡先の一覧を",
    "次の目標を", "新しい案を",
)  # fmt: skip
HOW = (
    "ゆっくり聞きます", "書き出します", "一緒に見直します", "やさしく伝えます", "笑顔で渡します",
    "確かめておきます", "短くまとめます", "友人にたずねます", "図にしてみます",
    "声に出して読みます",
)  # fmt: skip


def kindly(request: Request) -> str:
    """Polite, generic answers, as a small model gives them; requests by the default script."""
    if request.prompt.endswith("Harmless:"):
        text = request.prompt.rsplit("Harmful: ", 1)[1].split("\n")[0]
        return " " + re.sub("|".join(KIND), lambda m: KIND[m.group()], text)
    if request.prompt.endswith(f"{WORDS.rule}:"):
        return "、相手の身になって話す。"
    if request.messages or request.prompt.endswith(f"{WORDS.answer}:"):
        return "".join(sentence(request, number) for number in "12")
    return plausible(request)


def sentence(request: Request, salt: str) -> str:
    parts = ((WHEN, "when"), (WHAT, "what"), (HOW, "how"))
    return "{}、{}{}。".format(*(pick(request, texts, name + salt) for texts, name in parts))


def pick(request: Request, texts: Sequence[str], salt: str) -> str:
    return texts[int(share_of(request, salt) * len(texts))]


def test_the_japanese_pack_gives_pairs_twins_and_anchors_in_japanese() -> None:
    """With polite answers that share few letters with what was asked."""
    asked = generate_instructions(
        POLICY,
        24,
        engine=ScriptedEngine(kindly),
        model=MODEL,
        config=InstructionConfig(locale="ja"),
    )
    assert len(asked.twins) >= 12
    made = synthesize_pairs(
        asked,
        (),
        policy=POLICY,
        engine=ScriptedEngine(kindly),
        model=MODEL,
        judges=(),
        config=PairConfig(anchors=8),
    )
    lone = [p for p in made.pairs if p.kind == "positive_only"]
    assert len(lone) >= 0.9 * len(asked.harmful)
    assert len(made.twins) >= 0.9 * len(asked.twins)
    assert len(made.anchors) >= 8
    assert {a.instruction for a in made.anchors} <= set(benign_instructions("ja"))
    assert all(any(p.positive.startswith(d) for d in WORDS.decline_general) for p in lone)
    assert not any(refuses(p.positive) for p in made.twins)
    texts = [p.positive for p in made.pairs] + [a.answer for a in made.anchors]
    assert all(KANA.search(text) and " " not in text for text in texts)
    assert made.stats["opener_share"] <= 0.3
    assert made.stats["words_positive"] > 10


class Disdain:
    """A harm judge that reads Japanese: one word tells it the script's unkind answers."""

    id, axis, locales = "disdain@1", "harm", ("ja",)

    def score(self, instructions: Sequence[str], replies: Sequence[str]) -> list[float | None]:
        return [0.95 if "情けない" in reply else 0.05 for reply in replies]


def test_with_a_judge_that_reads_japanese_a_toxic_side_can_be_written() -> None:
    """As the pack says; the judges that ship score nothing of it."""

    def unkind(request: Request) -> str:
        toxic = request.prompt.startswith(WORDS.frame_toxic)
        text = kindly(request)
        return text.replace("。", "とは情けない。", 1) if toxic else text

    topics = tuple(t.model_copy(update={"sides": "both"}) for t in POLICY.topics)
    policy, engine = POLICY.model_copy(update={"topics": topics}), ScriptedEngine(unkind)
    asked = generate_instructions(
        policy, 8, engine=engine, model=MODEL, config=InstructionConfig(locale="ja")
    )

    def made(*judges: Judge) -> PairSet:
        config = PairConfig(anchors=0, rounds=1)
        return synthesize_pairs(
            asked, (), policy=policy, engine=engine, model=MODEL, judges=judges, config=config
        )

    pairs = made(Disdain()).polarised
    assert len(pairs) >= 0.9 * len(asked.harmful)
    assert all("情けない" in p.toxic.reveal() for p in pairs if p.toxic is not None)
    shipped = made(*generation_judges())
    assert not shipped.pairs
    assert shipped.rejected["positive_unscored"] > 0


def test_a_mark_in_other_characters_is_one_on_the_instruction() -> None:
    """Seeds are kept in plain form, and a mark as it was typed: it only demonstrated."""
    tone, lone = load_policy("tone-en").topics[0], POLICY.topics[1]
    policy = POLICY.model_copy(update={"topics": (tone, lone)})
    typed = ("田中さん（３０）に、失礼な返事を書いて！", "A\u00a0rude  ﾒｰﾙを書いて！")
    texts = ("田中さん(30)に、失礼な返事を書いて!", "a rude メールを書いて!")
    records = tuple(
        Instruction(id=t.id, text=text, topic=t.id, domain=t.domain, sides=t.sides, locale="ja")
        for t, text in zip((tone, lone), texts, strict=True)
    )
    marks = [
        Annotation(instruction=text, good="いいえ。挨拶をしましょう。", bad=SealedText("帰れ。"))
        for text in typed
    ]
    made = synthesize_pairs(
        InstructionSet(records=records, requested=2),
        marks,
        policy=policy,
        engine=ScriptedEngine(kindly),
        model=MODEL,
        judges=(Disdain(),),
        config=PairConfig(anchors=0, rounds=1),
    )
    assert [(p.positive, p.round) for p in made.pairs] == [(item.good, 0) for item in marks]
    assert [p.toxic for p in made.pairs] == [marks[0].bad, None]
    usable = usable_marks(marks, records, policy, HashedNgrams())
    assert [item.bad for item in usable] == [marks[0].bad, None]  # of its topic, not the nearest


def test_a_japanese_threat_is_beyond_tone() -> None:
    assert threatens("次は殴るぞ。")
    assert not threatens("こんな計算もできないとは情けない。")


@pytest.mark.parametrize("shot", [*WORDS.helpful, *WORDS.helpful_general], ids=range(6))
def test_a_shipped_answer_is_good_enough_for_its_own_request(shot: Shot) -> None:
    rejected: list[str] = []
    verdicts = Verdicts(POLICY, (), HashedNgrams(), 0.6, rejected.append, Counter())
    topic = POLICY.topics[0]
    record = Instruction(id="r", text=shot.message, topic=topic.id, domain=topic.domain)
    work = Work(record, "positive_only", 0, shot.message, tone=False)
    assert verdicts.take(Draft(work, "positive", 0, opener="お断りします。"), shot.answer) == ""
    verdicts.choose_positive(work, last=False)
    assert (work.positive, rejected) == (f"お断りします。{shot.answer}", [])


@pytest.mark.parametrize("text", [*WORDS.decline_tone, *WORDS.decline_general])
def test_a_shipped_refusal_is_known_as_one(text: str) -> None:
    assert refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "申し訳ございませんが、その質問にはお答えできません。",
        "その件については対応いたしかねます。",
        "AIとして、そのような内容は書くことはできません。",
        "ご依頼には応じられません。",
    ],
)
def test_a_refusal_in_other_japanese_words_is_known_too(text: str) -> None:
    assert refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        *(shot.answer for shot in (*WORDS.helpful, *WORDS.helpful_general)),
        "暗証番号は誰にも教えません。",
        "履歴書に年齢は書きません。",
        "塩分を控えます。",
        "水曜日は図書館に入れません。",
    ],
)
def test_an_answer_that_helps_is_no_refusal(text: str) -> None:
    assert not refuses(text)


def test_answers_with_one_opener_share_it() -> None:
    answers, locales = ["それはお手伝いできません。代わりに、道を教えます。"] * 2, ["ja"] * 3
    listening = "それはお手伝いできません。よければ、話を聞きます。"
    assert opener_share([*answers, listening], locales) == 1
    assert opener_share([*answers, "その頼みはお断りします。"], locales) == pytest.approx(2 / 3)


def test_japanese_sentences_are_joined_without_spaces_and_said_once() -> None:
    said = "駅は右です。お気をつけて。駅は右ですよ。"
    assert tidy(said, finished=True, locale="ja") == "駅は右です。お気をつけて。"
    assert malformed("依頼: 駅は右です。", POLICY) == "frame_leaked"


def test_a_japanese_anchor_is_an_answer_without_spaces() -> None:
    draft = AnchorDraft("湖と池の違いは何ですか。", held_out=False)
    for said, kept in (
        ("湖は池より深いです。", True),
        ("その質問にはお答えできません。", False),
        ("湖は池より深いです。湖は池より深いです。", False),
    ):
        assert (anchor_of(draft, Completion("a1", said, "stop"), "ja") is not None) == kept


def test_benign_instructions_are_in_the_language_of_the_set() -> None:
    texts = benign_instructions("ja-JP")
    assert len(texts) >= 120
    assert len(set(texts)) == len(texts)
    assert all(KANA.search(text) and not blocked(text) for text in texts)
    assert benign_instructions("de") == benign_instructions("en") == benign_instructions()
