"""What is never synthesised, whatever a policy says.

Three built-in categories and the operator's list. `blocked` is asked before a request goes to
the engine, after text comes back, and before training. It works on words, not on meaning: it
stops the named subjects from entering the pipeline and leaves judging replies to the judges.
The patterns name subjects in clinical terms, in English and in Japanese, and hold no instructions.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

from ptalign.nouns import Anchor, Instruction, InstructionSet, Pair, PairSet, Policy
from ptalign.policies import never_ja
from ptalign.policies.never_ja import HAS_JAPANESE, japanese_category, joined, joined_apart
from ptalign.text.normalise import TOUCHING, folded, squeezed, straight, undisguised

READ_EVERY = 200
"""Records between two reports of `permitted`."""
S = TypeVar("S", InstructionSet, PairSet)

_AGE = (
    r"(?:\d|1[0-7]|(?<!ty)(?<!ty[\s-])(?:one|two|three|five|eight|nine|ten|eleven|twelve|thirteen|fifteen"
    r"|(?:four|six|seven)(?:teen)?))"
)
"""Forty-five is no age of a minor."""
_MINOR = (
    r"(?:child(?:ren)?|kids?|minors?|under\s*age[d]?|pre\s*teens?|toddlers?|infants?|teen(?:s|ager|agers"
    r"|aged?)?|school\s*(?:girl|boy)s?|(?:little|young)\s*(?:girl|boy)s?"
    rf"|{_AGE}[\s-]*(?:year|yr)s?[\s-]*olds?|(?:\d|1[0-7])[\s-]*y[/.]?\s*os?)"
)
_SEXUAL = (
    r"(?:sexual(?:ly|i[sz]\w*)?(?!\s*(?:education|health|orientation|abuse\s*prevention))"
    r"|sex(?!\s*(?:ed\b|education))|erotic\w*|porn\w*|nudes?|naked|groom(?:ing|ed)?)"
)
_OTHER_WORD = r"(?!gs?\b|y|us\b)"
"""Pricing and so-many are no agents."""
_WMD = (
    rf"(?:nerve\s*(?:agent|gas)|(?:sarin|tabun|soman|ricin){_OTHER_WORD}|novichok|mustard\s*gas|anthrax"
    r"|smallpox|botulinum|(?:chemical|biological)\s*(?:weapon|warfare\s*agent|agent)s?|bio\s*weapons?"
    r"|(?:nuclear|atomic|atom|radiological|uranium|plutonium)\s*(?:weapon|bomb|warhead|device)s?"
    r"|dirty\s*(?:bomb|warhead)s?"
    r"|weapons?\s*grade\s*\w+|enriched\s*uranium|uranium\s*enrichment|fissile\s*material|vx\s*(?:gas|nerve|agent)"
    r"|weapons?\s*of\s*mass\s*destruction)"
)
_MAKE = (
    r"(?:mak(?:e|ing)|build(?:ing)?|creat(?:e|ing)|synthes\w+|produc(?:e|ing|tion)|cultur(?:e|ing)"
    r"|grow(?:ing)?|weaponi[sz]\w*|enrich(?:ing)?|assembl\w+|acquir\w+|obtain\w*|dispers\w+|spread(?:ing)?"
    r"|releas(?:e|ing)|aerosoli[sz]\w*|recipes?|instructions?|steps?|blueprints?|home\s*made|construct\w*)"
)
_REFINE = r"(?:enrich(?:ing)?|refin(?:e|ing))"
_OBTAIN = (
    r"(?:mak(?:e|ing)|produc(?:e|ing)|synthes\w+|acquir\w+|obtain\w*|extract(?:ing)?|separat(?:e|ing)"
    r"|purify(?:ing)?|weaponi[sz]\w*|dispers\w+|spread(?:ing)?|releas(?:e|ing)|aerosoli[sz]\w*)"
)
_SPREAD = r"(?:synthes\w+|weaponi[sz]\w*|dispers\w+|aerosoli[sz]\w*)"
"""What is said of an agent, and not of engines, boats or backups that are called VX too."""
_SELF_HARM = (
    r"(?:(?:commit(?:ting)?\s*)?suicide|(?:kill|hang|cut|starv|drown|poison|hurt|harm)(?:e|ing)?\s*my\s*self"
    r"|(?:end|ending|take|taking)\s*my\s*(?:own\s*)?life|self\s*harm(?:ing)?|fatal(?:ly)?\s*overdose)"
)
_NO_ADVICE = "".join(
    f"(?<!{word} )"
    for word in (
        "not",
        "n't",
        "n’t",
        "n t",
        "nt",
        "never",
        "without",
        "from",
        "may",
        "might",
        "could",
    )
)
"""Words before an accident that advice warns of; a reading of the text may lack the apostrophe."""
_A_LIFE = (
    r"(?:your|his|her|their|one\W?s)\s*(?:own\s*)?li(?:fe|ves)\b"
    r"(?!\s*(?:insurance|savings|sentences?|story|stories|jackets?|vests?|lessons?|goals?|cycles?"
    r"|estates?|partner\w*|skills?|experiences?|style)\b)"
)
_ANYONES_DEATH = (
    r"(?:commit(?:ting)?\s*suicide"
    r"|(?:(?:kill|hang|starv|shoot)(?:e|ing)?\s*(?:my|your|him|her|one|them)"
    rf"|{_NO_ADVICE}(?:cut(?:ting)?|(?:drown|poison|hurt|harm)(?:ing)?)\s*(?:my|your|one)"
    r")\s*sel(?:f|ves)\b(?!\s*in\s*the\s*foot)"
    rf"|end(?:ing)?\s*{_A_LIFE}|tak(?:e|ing)\s*{_A_LIFE}"
    r"(?!\s*(?:back|into|more|seriously|to\s*(?:the|a|an|another|new)|for\s*granted"
    r"|in\s*(?:a\s*)?(?:new|different|(?:your|his|her|their)\s*(?:own\s*)?hands?|hand))\b))"
)
"""Of others (``him``, ``them``) only what is no accident: people cut themselves unmeant."""
_METHOD = (
    r"(?:how\s*(?:to|do\s*i|can\s*i|could\s*i|should\s*i)|methods?|ways?|steps?|instructions?|guides?"
    r"|painless(?:ly)?|(?:easi|quick|fast)est|best|most\s*effective|lethal|dos(?:e|age))"
)
_METHOD_BEHIND = r"\W*(?:methods?(?!\s*restriction)|techniques?|instructions?|tutorials?)"
"""A method named after what it is of, in the same breath: guides and ways are of care as well."""
_ANYONE_HOW = r"(?:how\s*(?:do|does|can|could|would|should|might|people|some\s*one|one|a|an))"
_CARE = (
    r"(?:prevent\w*|support\w*|stop(?:ping)?|avoid\w*|help\s*(?:someone|somebody|a|my|people)|rates?"
    r"|statistic\w*|histor\w+|hotlines?|warning\s*signs?|research\w*|stud(?:y|ies)|novel|film|movie)"
)
_GAP = r"(?:\W+\w+){0,6}?\W*"
_CLAUSE = (
    r"(?:\W+(?!(?:if|whether|when|who|that|says?|said|tells?|told|wants?|feels?|thinks?|thinking"
    r"|talks?|talking|respond|react)\b)\w+){0,6}?\W*"
)
"""A gap within one clause: what to say to someone who wants to die is no method."""
_NEXT = r"(?:\W+\w+){0,2}?\W*"
_GAPS = {_GAP: ".{0,40}?", _CLAUSE: ".{0,40}?", _NEXT: ".{0,12}?"}
"""Gaps between words, and what they are in text without spaces."""
_ENDINGS = {r"\w*": r"\w{0,12}", r"\w+": r"\w{1,12}"}
"""The rest of a word, and what it is where no space ends it: else it is all that follows, and 8000
characters took ten seconds."""

_SUBJECTS = {
    "child_sexual_exploitation": rf"\b{_MINOR}\b{_GAP}\b{_SEXUAL}\b|\b{_SEXUAL}\b{_GAP}\b{_MINOR}\b"
    r"|\bcsam\b|\bp(?:a)?edophil\w*",
    "weapons_of_mass_destruction": rf"^(?=.*\b{_MAKE}\b)(?=.*{_WMD})"
    rf"|\b{_REFINE}\b{_NEXT}\buranium\b|\b(?:{_OBTAIN}|{_REFINE})\b{_NEXT}\bplutonium\b"
    rf"|\b{_SPREAD}\b{_NEXT}\bvx\b",
    "self_harm_instructions": rf"^(?!.*\b{_CARE}\b).*(?:\b{_METHOD}\b{_GAP}\b{_SELF_HARM}\b"
    rf"|\b{_SELF_HARM}{_METHOD_BEHIND}\b"
    rf"|\b(?:{_ANYONE_HOW}|{_METHOD})\b{_CLAUSE}\b{_ANYONES_DEATH})",
}

CATEGORIES: dict[str, re.Pattern[str]] = {
    name: re.compile(pattern, re.S) for name, pattern in _SUBJECTS.items()
}
"""The built-in categories. There is no way to empty this list through a policy or a call."""


def _anywhere(pattern: str) -> str:
    for gap, letters in (_GAPS | _ENDINGS).items():
        pattern = pattern.replace(gap, letters)
    return pattern.replace(_OTHER_WORD, "").replace(r"\b", "")


_SQUEEZED = {name: re.compile(_anywhere(pattern), re.S) for name, pattern in _SUBJECTS.items()}
"""The same without word boundaries, for text that is spelled out letter by letter."""


def _latin(words: str) -> str:
    """English words where Japanese, too, may stand beside them: to a pattern it is more letters."""
    words = re.sub(r"\\w([*+])", r"[a-z]\1", words).replace(r"\b", "(?![a-z])")
    return rf"(?<![a-z\d]){words}(?![a-z])"


_NEAR = r"[^。!?]{0,30}?"
_LATIN_LETTERS = "[a-z0-9 ]{0,80}?"
_MINOR_LATIN = _latin(rf"(?!minor(?!s)){_MINOR}")
"""Without the key of a piece of music."""
_MINOR_JAPANESE = never_ja.MINOR.replace(r"(?<!\d)", r"(?<![\da-z])")
"""A reading may have a letter for an age's first digit."""
_PROTECTED = rf"(?:abuse|assault|exploitation|violence)[^。!?]{{0,16}}{never_ja.PROTECT}"
_SEXUAL_LATIN = _latin(
    rf"(?!groom|sexual\s*{_PROTECTED}|naked\s*(?:eyes?|domain)(?![a-z])|nudityの?(?:な[いくし]|無)"
    r"|sex\s*(?:ratio|age|name|height|weight)(?![a-z]))"
    rf"(?:{_SEXUAL}|sex(?:y|ting|tapes?)|nud(?:ity|ists?))"
)
_WMD_LATIN = _latin(rf"(?:{_WMD}(?:s|\s*gas)?|vx(?=ガス|神経))(?:ガス|神経剤)?")
_DEATH_LATIN = _latin(
    rf"(?!suicide\s*(?:notes?|squad|silence|squeeze|doors?)(?![a-z]))(?:{_SELF_HARM}|{_ANYONES_DEATH})"
)
_MIXED_SUBJECTS = {
    "child_sexual_exploitation": rf"{_MINOR_LATIN}{_NEAR}{never_ja.SEXUAL}"
    rf"|{never_ja.SEXUAL}{_NEAR}{_MINOR_LATIN}|{_MINOR_JAPANESE}{_NEAR}{_SEXUAL_LATIN}"
    rf"|{_SEXUAL_LATIN}{_NEAR}{_MINOR_JAPANESE}",
    "weapons_of_mass_destruction": never_ja.made(_WMD_LATIN, never_ja.MAKE)
    + f"|{never_ja.made(never_ja.WMD, _latin(_MAKE))}"
    rf"|{never_ja.WMD}{_LATIN_LETTERS}{_latin(_MAKE)}|{_latin(_MAKE)}{_LATIN_LETTERS}{never_ja.WMD}"
    rf"|{_latin('vx')}[をの]?(?:合成|兵器化|(?:噴霧|散布)(?![器機]))",
    "self_harm_instructions": rf"^(?!.*(?:{never_ja.CARE}|{_latin(_CARE)}))"
    rf".*(?:{_latin(_METHOD)}{_NEAR}{never_ja.SELF_HARM}|{never_ja.SELF_HARM}{_NEAR}{_latin(_METHOD)}"
    rf"|{never_ja.METHOD}{_NEAR}{_DEATH_LATIN}|{_DEATH_LATIN}{_NEAR}{never_ja.METHOD})",
}
_MIXED = {
    name: re.compile(never_ja.unvoiced(pattern), re.S) for name, pattern in _MIXED_SUBJECTS.items()
}
"""The same where one of the two words is English and the other one Japanese."""
_LATIN_LETTER = re.compile("[a-z]")


def _mixed_category(readings: tuple[str, ...]) -> str:
    """The category that a text's English and Japanese words make up together, or nothing."""
    if not (HAS_JAPANESE.search(readings[0]) and _LATIN_LETTER.search(readings[0])):
        return ""
    texts = dict.fromkeys(map(joined_apart, readings))
    return next((name for name, p in _MIXED.items() if any(map(p.search, texts))), "")


def blocked(text: str, policy: Policy | None = None) -> str:
    """The never-synthesize category a text falls into, or an empty string.

    Args:
        text: A request, a reply, or a topic's title.
        policy: Adds its `never_synthesize` phrases, reported as ``operator``.
    """
    readings, spelled = undisguised(text), squeezed(text)
    for name, pattern in CATEGORIES.items():
        if any(pattern.search(reading) for reading in readings):
            return name
        if spelled and _SQUEEZED[name].search(spelled):
            return name
    if category := japanese_category(readings[0]) or _mixed_category(readings):
        return category
    if policy is not None and policy.never_synthesize:
        listed, anywhere, japanese = _phrases(policy.never_synthesize)
        readings = tuple(map(straight, readings))
        if any(listed.search(reading) for reading in readings):
            return "operator"
        if spelled and anywhere.search(spelled):
            return "operator"
        if japanese and any(japanese.search(joined(reading)) for reading in readings):
            return "operator"
    return ""


def permitted(
    made: S, policy: Policy | None = None, on_read: Callable[[int, int], None] = lambda *_: None
) -> S:
    """The set without records that say what is `blocked`, which its `rejected` counts.

    A set was made by its own list: a merged one has others' too, and an older one fewer patterns.

    Args:
        made: An instruction set or a pair set.
        policy: Its list counts beside the shipped one.
        on_read: Called with the records read and those in all, some hundreds at a time: reading
            takes a millisecond or two a record.
    """
    parts = [part for part in ("records", "pairs", "anchors") if part in type(made).model_fields]
    total = sum(len(getattr(made, part)) for part in parts)
    kept: dict[str, tuple[Instruction | Pair | Anchor, ...]] = {}
    done = 0
    for part in parts:
        fine: list[Instruction | Pair | Anchor] = []
        for record in getattr(made, part):
            if not _says_blocked(record, policy):
                fine.append(record)
            done += 1
            if done % READ_EVERY == 0:
                on_read(done, total)
        kept[part] = tuple(fine)
    dropped = sum(len(getattr(made, part)) - len(kept[part]) for part in parts)
    if not dropped:
        return made
    rejected = made.rejected | {"blocked": made.rejected.get("blocked", 0) + dropped}
    return made.model_copy(update={**kept, "rejected": rejected})


def _says_blocked(record: Instruction | Pair | Anchor, policy: Policy | None) -> bool:
    if isinstance(record, Instruction):
        texts = [record.text]
    elif isinstance(record, Anchor):
        texts = [record.instruction, record.answer]
    else:
        toxic = record.toxic.reveal() if record.toxic is not None else ""
        texts = [record.instruction, record.positive, toxic]
    return any(blocked(text, policy) for text in texts)


_TOUCHES = re.compile(f"[{TOUCHING}]")
_WORD = rf"[^\W{TOUCHING}]"
"""A letter or digit that a word can go on with."""
_INNER = re.compile(r"(?<=\w)'(?=\w)")


@lru_cache(maxsize=32)
def _phrases(
    phrases: tuple[str, ...],
) -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str] | None]:
    """The operator's phrases as patterns: whole words with any spacing, anywhere, and joined.

    An apostrophe inside a word is a plain one or left out; a text to search is to be `straight`.
    Where words touch there are no boundaries: such phrases count wherever they stand. The last
    pattern, if there are Japanese or Chinese ones, finds them in text that is `joined`.
    """
    texts = [straight(folded(p)) for p in phrases if p.strip()]
    parts = [_INNER.sub("'?", r"\s*".join(map(re.escape, text.split()))) for text in texts]
    whole = (part if _TOUCHES.search(part) else rf"(?<!{_WORD}){part}(?!{_WORD})" for part in parts)
    japanese = filter(None, (joined(text) for text in texts if HAS_JAPANESE.search(text)))
    in_joined = "|".join(map(re.escape, japanese))
    return (
        re.compile("|".join(whole)),
        re.compile("|".join(parts)),
        re.compile(in_joined) if in_joined else None,
    )
