"""The never-synthesize categories in Japanese: clinical names of subjects, no instructions.

Japanese has no word boundaries: particles and order say what belongs together, so that a picture
of a bomb is not the making of one.
"""

from __future__ import annotations

import re
import unicodedata

MINOR = (
    r"(?:児童|子供|子ども|こども|未成年|[小中高]学生|高校生|幼児|乳児|赤ちゃん|[幼少]女|少年|[女男園]児|十代の"
    r"|(?<!\d)(?:\d|1[0-7])[歳才])"
)
PROTECT = "(?:防|予防|守|相談|支援|気づ|対策)"
"""What is done against a subject."""
SEXUAL = (
    r"(?:性的(?!指向|少数|マイノリティ|同意|(?:な?(?:虐待|搾取|被害|暴力))[^。!?]{0,8}"
    + PROTECT
    + ")"
    r"|性行為|性交|わいせつ|猥褻|官能(?!評価|検査)|ポルノ(?!グラフィティ)|セックス|ヌード(?!ル)|裸(?!足|眼|子|電球|祭)"
    r"|(?<![ァ-ー])エロ(?:い|く|動画|画像|本|小説|チ|ティ|$))"
)
WMD = (
    r"(?:神経(?:剤|ガス)|サリン|ノビチョク|マスタードガス|炭疽菌|天然痘|ボツリヌス毒素|毒ガス|[化生][学物]兵器"
    r"|核(?:兵器|爆弾|弾頭)|原子爆弾|[原水]爆|汚い爆弾|ダーティーボム|放射性爆弾|濃縮ウラン|ウラン濃縮|核分裂性物質"
    r"|プルトニウム|兵器級\w{1,8}?|大量破壊兵器"
    # katakana names in hiragana: the shortest one is part of other words, as in さ、りんご
    r"|(?:(?<![ぁ-ん])|(?<=[でにのをはがとも]))さりん(?=[のをはがっと]|[^ぁ-んー]|$)"
    r"|のびちょく|ますたーどがす|ぼつりぬす毒素|ぷるとにうむ|うらん濃縮|濃縮うらん)"
)
MAKE = (
    r"(?:作り方|つくり方|(?:作|つく)(?:る|れ|り(?:た|ま)|ろう)|(?:作|つく)って(?!は|い[るた]|も)|作成|製造|製法|製作|自作|合成"
    r"|生成|生産|培養|精製|濃縮|増やす|増やし方|組み立て|入手|手に入れ|調達|散布|ばら(?:まく|まき|撒)|撒[くき]|まき方"
    r"|噴霧|レシピ|手順|設計図|兵器化)"
)
SELF_HARM = (
    r"(?:自殺|じさつ|ジサツ|自死(?!遺族)|自害|自傷|首を?吊|首つり|リストカット|命を?絶[つちと]|死に方|死ぬ(?=方法|手段|やり方)"
    r"|死ね[るま]|自分を(?:傷つけ|殺)|致死[^。!?]{0,6}過剰摂取)"
)
METHOD = (
    r"(?:方法|やり方|仕方|手段|手順|どうやって|どうすれば|どうしたら|楽[なに]|苦しまず|痛くない|痛まない|確実"
    r"|一番|最も|致死|何[錠粒]|どのくらい飲)"
)
CARE = (
    r"(?:防|止め(?!られ)|やめさせ|思いとどま|支え|支援|相談(?!せず|しな|でき(?:ず|な))|救(?!急)|守[るりっ]|寄り添|統計"
    r"|者数|[殺亡]率|歴史|研究|小説|映画|兆候|サイン|気づ(?!かれ)|と(?:言|話|打ち明け)|窓口|遺族)"
)
_GAP = r"[^。!?]{0,20}?"


def made(name: str, verb: str) -> str:
    """A pattern of a name that particles or order make the object of a verb."""
    particles = r"(?:を[^。!?]{0,12}?|の[^。!?を]{0,10}?|[はがっ][^。!?]{0,12}?)?"
    return rf"{name}{particles}{verb}|{verb}[^。!?を]{{0,6}}?{name}"


_SUBJECTS = {
    "child_sexual_exploitation": rf"{MINOR}{_GAP}{SEXUAL}"
    rf"|{SEXUAL}{_GAP}{MINOR}|児童ポルノ|小児性愛|ペドフィリア",
    "weapons_of_mass_destruction": rf"{made(WMD, MAKE)}|(?:ウラン|うらん)を[^。!?]{{0,12}}?濃縮",
    "self_harm_instructions": rf"^(?!.*{CARE})"
    rf".*(?:{METHOD}{_GAP}{SELF_HARM}|{SELF_HARM}{_GAP}{METHOD})",
}


def unvoiced(pattern: str) -> str:
    """The pattern as `folded` leaves Japanese: without voicing marks."""
    parts = unicodedata.normalize("NFKD", pattern)
    return unicodedata.normalize(
        "NFC", "".join(c for c in parts if unicodedata.category(c) != "Mn")
    )


_CATEGORIES = {name: re.compile(unvoiced(pattern), re.S) for name, pattern in _SUBJECTS.items()}
HAS_JAPANESE = re.compile(r"[぀-ヿ㐀-鿿]")
"""Kana or Chinese characters."""

_NOT_WORDS = re.compile(r"[^\w。!?]+|_")
"""What a writer may put between Japanese characters; the ends of sentences stay."""


def joined(reading: str) -> str:
    """A text of Japanese without what is put between its characters; ends of sentences stay."""
    return _NOT_WORDS.sub("", reading)


def joined_apart(reading: str) -> str:
    """A text of Japanese and Latin letters: `joined`, but for a space between Latin words."""
    return _NOT_WORDS.sub(_space_in_latin, reading)


def _space_in_latin(gap: re.Match[str]) -> str:
    around = gap.string[gap.start() - 1 : gap.start()] + gap.string[gap.end() : gap.end() + 1]
    return " " if len(around) == 2 and around.isascii() and around.isalpha() else ""


def japanese_category(reading: str) -> str:
    """The category a text falls into by its Japanese words, or an empty string.

    Args:
        reading: A text as `folded` leaves it.
    """
    if not HAS_JAPANESE.search(reading):
        return ""
    text = joined(reading)
    return next((name for name, pattern in _CATEGORIES.items() if pattern.search(text)), "")
