"""Text in one form: for comparison, and against disguises.

`plain` is the form in which texts are compared. `undisguised` folds what people do to words to
hide them: zero-width characters, look-alike letters, digits for letters, spaced-out letters.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import chain

from ptalign.text.locales import language

# Letters of other scripts that look like Latin ones (a subset of Unicode TR39 confusables:
# those with a Latin look-alike in common fonts), and Latin ones in dress that NFKC leaves on.
_ALPHABET = "abcdefghijklmnopqrstuvwxyz"
_SCRIPTS = (
    ("авгеёзіїјкмнорстухуһԁԛѕԝ", "abreeziijkmhopctyxyhdqsw"),
    ("ɑαβεηικμνορτυχωγσϲ", "aabenikmnoptuxwyoc"),
    ("ⅰℓıłøđħ", "ililodh"),
    ("ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘꞯʀꜱᴛᴜᴠᴡʏᴢɡ", "abcdefghijklmnopqrstuvwyzg"),
    ("քցհոռօգզտսա", "fghnnoqqsuw"),
    ("ᎪᏏᏴᏟᏧᎠᎬᏀᏳᏂᎻᎥᎫᏦᏞᎷᏢᎱᎡᏒᏚᏕᎢᏙᎳᏔᎩᎽᏃ", "abbcddegghhijklmprrrsstvwwyyz"),
    ("ꓮꓐꓚꓒꓓꓰꓝꓖꓧꓙꓗꓲꓡꓟꓠꓳꓑꓣꓢꓔꓴꓦꓪꓫꓬꓜ", "abcddefghjkilmnoprstuvwxyz"),
    ("ⲥⲏⲕⲓⲙⲛⲟⲣⲅⲧⲭⲩ", "chklmnoprtxy"),
    ("".join(map(chr, range(0x1F150, 0x1F16A))), _ALPHABET),
    ("".join(map(chr, range(0x1F170, 0x1F18A))), _ALPHABET),
)
"""Cyrillic, Greek, Latin with marks, small capitals, Armenian, Cherokee, Lisu, Coptic, and letters
in black circles and squares."""
_LOOKALIKES = {
    ord(letter): likeness
    for letters, likenesses in _SCRIPTS
    for letter, likeness in zip(letters, likenesses, strict=True)
}
_FLAG_LETTERS = {0x1F1E6 + place: letter for place, letter in enumerate(_ALPHABET)}
_FLAG_LETTER_RUN = re.compile("[\U0001f1e6-\U0001f1ff]+")
_LEET = str.maketrans(
    {"0": "o", "1": "i", "3": "e", "4": "a", "5": "s", "7": "t", "8": "b", "9": "g"}
)
_LEET_SIGNS = str.maketrans({"@": "a", "$": "s", "!": "i", "|": "i", "+": "t", "€": "e", "£": "l"})
_UNSPACED = ("ja", "zh", "th")
TOUCHING = r"぀-ヿ㐀-鿿\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1100-\u11ff가-힣"
"""The letters, for a set in a pattern, of Japanese, Chinese, Thai, Lao, Burmese and Khmer, where
words are not apart, and of Korean, where endings touch them."""
_BLANK = "\u2800"
_FILLERS = 0x115F, 0x1160, 0x3164, 0xFFA0
_UNSEEN = dict.fromkeys(
    chain(range(0x09), range(0x0E, 0x1C), range(0x7F, 0x85), range(0x86, 0xA0), _FILLERS), _BLANK
)
"""Controls that are no white space, and Hangul fillers, which are letters to a pattern."""
_JOINERS = rf"[\s.\-_*,/\\'’·・•‧:+=|{_BLANK}]"
_SPACED = re.compile(rf"(?<![^\W_])(?:[^\W\d_]{_JOINERS}{{1,3}}){{2,}}[^\W\d_](?![^\W_])")
_EMPHASIS = re.compile(r"[*_~`]+")
_SPLIT_WORD = re.compile(rf"(?<=[^\W\d_])[.\-_*'’·・•‧:+=|{_BLANK}]+(?=[^\W\d_])")
_APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ＇", "'"))
_REPEATS = re.compile(r"([^\W\d_])\1{2,}")
_SPACES = re.compile(r"\s+")
_MINUS = "\u2212"
"""Unicode's minus sign, which is no dash by its category."""


def straight(text: str) -> str:
    """The text with plain apostrophes, as patterns have them: models write ’ as often as '."""
    return text.translate(_APOSTROPHES)


def plain(text: str) -> str:
    """NFKC, without format characters, spaces collapsed, trimmed. Keeps case."""
    if text.isascii():
        return _SPACES.sub(" ", text).strip()
    text = unicodedata.normalize("NFKC", text)
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")
    return _SPACES.sub(" ", text).strip()


def caseless(text: str) -> str:
    """`plain`, case-folded: what two spellings of the same request have in common."""
    return plain(text).casefold()


def unspaced(locale: str) -> bool:
    """Whether the language is written without spaces between words."""
    return language(locale) in _UNSPACED


def latin(text: str) -> bool:
    """Whether at least half of the text's letters are Latin ones, or it has none at all."""
    letters = [c for c in plain(text) if c.isalpha()]
    return sum("LATIN" in unicodedata.name(c, "") for c in letters) * 2 >= len(letters)


def one_line(text: str) -> str:
    """The text with every run of white space as one blank: data in a prompt of line blocks.

    A line break in an instruction would write blocks of its own, an answer or a rule.
    """
    return " ".join(text.split())


def folded(text: str) -> str:
    """`plain`, case-folded, look-alike letters as plain Latin ones, without accents.

    Every dash is a hyphen, and all that cannot be seen is one sign, which is no letter.
    """
    text = caseless(text.translate(_UNSEEN))
    if text.isascii():
        return text
    text = "".join(map(_letter, unicodedata.normalize("NFKD", text)))
    text = _FLAG_LETTER_RUN.sub(_unflagged, text)
    return unicodedata.normalize("NFC", text).translate(_LOOKALIKES)


def _unflagged(run: re.Match[str]) -> str:
    """Letters that flags are made of, as letters unless they make one."""
    return run.group() if len(run.group()) == 2 else run.group().translate(_FLAG_LETTERS)


def _letter(char: str) -> str:
    """The character, a dash as a hyphen, and nothing for an accent or an enclosing mark."""
    category = unicodedata.category(char)
    if category in {"Mn", "Me"}:
        return ""
    return "-" if category == "Pd" or char == _MINUS else char


def undisguised(text: str) -> tuple[str, ...]:
    """Readings of a text with its likely disguises removed, all folded and without repeats.

    The first reading is the text with one letter for three or more equal ones; the others have two
    for them, or all, and undo digits for letters, spaced-out letters, marks inside words and
    emphasis around them. A caller looks for its words in every reading.
    """
    written = folded(text)
    bases = dict.fromkeys(_unrepeated(written))
    if (unleeted := _unleet(written)) != written:
        leet = _unrepeated(unleeted)
        bases |= dict.fromkeys([*leet, *(base.replace("i", "l") for base in leet)])
    readings: dict[str, None] = {}
    for reading in bases:
        readings[reading] = None
        readings[_SPACED.sub(lambda m: re.sub(_JOINERS, "", m.group()), reading)] = None
        readings[_SPLIT_WORD.sub("", reading)] = None
        readings[_SPLIT_WORD.sub(" ", reading)] = None
        readings[_EMPHASIS.sub("", reading)] = None
    return tuple(_SPACES.sub(" ", r) for r in readings)


def _unrepeated(text: str) -> tuple[str, str, str]:
    """The text with one letter for three or more equal ones, with two, and with all of them.

    A word that is drawn out may have a double letter, and a name three: AAA, World War III.
    """
    return _REPEATS.sub(r"\1", text), _REPEATS.sub(r"\1\1", text), text


def squeezed(text: str) -> str:
    """What a text spelled out letter by letter says, without spaces; empty for ordinary text.

    Word boundaries are lost in it: a caller looks for its words anywhere.
    """
    apart = _SPACED.sub(lambda m: re.sub(_JOINERS, " ", m.group()), folded(text))
    runs = (re.sub(_JOINERS, "", m.group()) for m in _SPACED.finditer(_unleet(apart)))
    return " ".join(run for run in runs if len(run) >= 8)


def _unleet(text: str) -> str:
    """Digits and signs as letters, but only in words that have a letter: years stay years."""
    words = []
    for word in text.split(" "):
        core = word.rstrip("!.?,")
        tail = word[len(core) :]
        mixed = core.translate(_LEET_SIGNS).translate(_LEET)
        words.append((mixed if any(c.isalpha() for c in core) else core) + tail)
    return " ".join(words)
