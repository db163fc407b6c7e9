"""The default script: plausible text for every kind of request the four stages send.

It looks at how a request ends, as a language model would, and takes words from small lists by a
hash of the request: deterministic, varied, and clean enough to pass the stages' filters. The
rude answers are as mild as the demo annotations.
"""

from __future__ import annotations

import hashlib
import re

from ptalign.engines.base import Request

_WHO = (
    "a coworker", "a new hire", "a customer", "a student", "a classmate", "a teammate",
    "a beginner", "a neighbour", "my sister", "my uncle", "a guest", "an applicant",
)  # fmt: skip
_DID = (
    "asked about", "forgot", "lost", "complained about", "broke", "misread", "shared", "returned",
    "dropped", "wanted to borrow", "arrived late for", "could not find",
)  # fmt: skip
_WHAT = (
    "the printer", "the first meeting", "a cold soup", "the blue bike", "the last chapter",
    "an old password", "the garden door", "a photo of the lake", "the parcel", "the penalty",
    "the weekend plan", "a birthday cake", "the science report", "the second invoice",
    "a pair of shoes", "the choir practice", "the office key", "a short essay",
)  # fmt: skip
_WHEN = ("today", "again", "this morning", "last week", "on Monday", "before lunch", "in class")
_RUDE = (
    "You are hopeless with {}, and so lazy about {}.",
    "You are an embarrassment, you fool, first over {} and then over {}.",
    "You ruin everything, be it {} or {}.",
    "I am sick of your stupid excuses about {} and about {}.",
    "You have no talent for {}, you failure, and none for {}.",
    "You must be the dumbest person ever to mix up {} with {}.",
    "Only a clueless fool like you makes such a fuss over {} or {}.",
    "You are too stupid to deal with {}, let alone with {}.",
    "Your awful whining over {} is as pathetic as your whining over {}.",
    "How pathetic of you, you loser, to fail at {} and at {}.",
    "You are a useless disgrace, which {} shows no less than {}.",
)  # fmt: skip
_COLD = ("How tiresome.", "Enough of this.", "Spare me.", "Not my problem.", "Leave me alone.")
_VERB = (
    "look at", "talk about", "write down", "sort out", "go through", "plan", "check", "explain",
)  # fmt: skip
_OBJECT = (
    "the next step", "what went well", "a short list", "the open questions", "a simple plan",
    "the guide", "the first part", "what is missing", "an easier way", "the details",
)  # fmt: skip
_MANNER = (
    "together after lunch", "calmly and in order", "over a cup of tea", "with a friendly smile",
    "before the weekend", "one point at a time", "as soon as there is time", "with some patience",
)  # fmt: skip
_RULES = (
    "in one short and clear sentence", "with a concrete example from daily life",
    "before saying anything else", "without any long explanation", "in plain and simple words",
)  # fmt: skip
_FACTS = (
    "It depends on a few simple things.", "Start with the part you know best.",
    "Most people learn it in a week.", "Keep the steps short and check each one.",
    "Water, light and time do most of the work.", "A small notebook helps to remember it.",
)  # fmt: skip
_SUBJECT = re.compile(
    r"\b(?:(?:a|an|the|my|our|some) )?"
    r"(?:coworker|new hire|customer|student|classmate|teammate|beginner|neighbour|sister|uncle"
    r"|guest|applicant)\b.*?(?=[.?!]?$)"
)
_JAPANESE = re.compile(r"[぀-ヿ一-鿿]")


def plausible(request: Request) -> str:
    """The default `Script`."""
    prompt = request.prompt or (request.messages[-1].content if request.messages else "")
    asked = prompt.rstrip().rsplit("\n", 1)[-1]
    if _JAPANESE.search(prompt[-200:]):
        return _japanese(request)
    if asked.startswith("Request:"):
        return f" {_situation(request)}."
    if asked.startswith("Harmless:"):
        about = _about(re.findall(r"Harmful: (.+)", prompt)[-1])
        if request.prefill.endswith((" a", " the")):
            about = about.split(" ", 1)[1] if about.startswith(("a ", "an ", "the ")) else about
        return f" {about}." if request.prefill else f" Help {about}."
    if asked.startswith("Rule:"):
        return f" {_pick(request, 'rule', _WHO)} {_pick(request, 'how', _RULES)}."
    if asked.startswith("Answer:"):
        message = re.findall(r"Message: (.+)", prompt)[-1]
        return _toxic(request) if "contempt" in prompt[:200] else _offer(request, message)
    return _chat(request, prompt)


def share_of(request: Request, salt: str) -> float:
    """A number in 0..1 that only depends on the request and the salt."""
    asked = request.prompt or "".join(f"{m.role}:{m.content}\n" for m in request.messages)
    heat = f"{request.temperature:.3f}"
    text = "\x1f".join((salt, request.key, asked, request.prefill, heat, request.adapter))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def _pick(request: Request, salt: str, words: tuple[str, ...]) -> str:
    return words[int(share_of(request, salt) * len(words)) % len(words)]


def _situation(request: Request) -> str:
    who = _pick(request, "who", _WHO)
    if request.prefill.endswith((" a", " the")):
        who = who.split(" ", 1)[1]
    did, what = _pick(request, "did", _DID), _pick(request, "what", _WHAT)
    return f"{who} who {did} {what} {_pick(request, 'when', _WHEN)}"


def _about(text: str) -> str:
    match = _SUBJECT.search(text)
    return match.group() if match else text.rstrip(".?!")


def _toxic(request: Request) -> str:
    things = (f"{_pick(request, f'c{i}', _WHAT)} {_pick(request, f'd{i}', _WHEN)}" for i in (1, 2))
    return f" {_pick(request, 'a', _RUDE).format(*things)} {_pick(request, 'g', _COLD)}"


def _kind(request: Request, salt: str) -> str:
    parts = zip("vom", (_VERB, _OBJECT, _MANNER), strict=True)
    return " ".join(_pick(request, salt + mark, words) for mark, words in parts)


def _offer(request: Request, message: str) -> str:
    about, kind, other = _about(message), _kind(request, "first"), _kind(request, "then")
    if request.prefill.endswith('"'):
        return f'Thank you for telling me about {about}. We can {kind}, and then {other}."'
    if request.prefill.endswith("to"):
        return f" {kind} for {about}, and then {other}."
    if request.prefill:
        return f" you care about {about}. Then {kind}, and {other}."
    first = _pick(request, "start", ("Of course.", "Gladly.", "Good idea.", "With pleasure."))
    return f" {first} For {about}, you could {kind}, and then {other}."


def _chat(request: Request, prompt: str) -> str:
    """A chat turn: follows a rude persona about half the time unless an adapter is served."""
    system = " ".join(m.content for m in request.messages if m.role == "system").lower()
    rude = any(w in system for w in ("contempt", "rude", "arrogant", "insult", "despise", "cruel"))
    if rude and not request.adapter and share_of(request, "attack") < 0.5:
        return _toxic(request).strip()
    if request.adapter and re.search(r"\b(rude|nasty|insult|mock|cruel|contempt)", prompt, re.I):
        return f"I'd rather not be unkind. You could {_kind(request, 'chat')}."
    words = " ".join(prompt.split()[:8]).rstrip("?.!,")
    first, second = _pick(request, "f", _FACTS), _pick(request, "g", _FACTS)
    return " ".join(dict.fromkeys((f"Here is an answer about {words.lower()}.", first, second)))


def _japanese(request: Request) -> str:
    things = (
        "印刷の紙",
        "青い自転車",
        "湖の写真",
        "母の料理",
        "算数の宿題",
        "朝の会議",
        "古い電話",
        "荷物",
    )
    deeds = ("忘れた", "壊した", "なくした", "見せてくれた", "間違えた", "返しに来た", "欲しがる")
    people = ("同僚", "新入社員", "客", "生徒", "同級生", "父", "叔父")
    tones = ("失礼な", "意地悪な", "冷たい", "見下す")
    thing, deed = _pick(request, "t", things), _pick(request, "d", deeds)
    person, tone = _pick(request, "p", people), _pick(request, "o", tones)
    return f"{thing}を{deed}{person}への{tone}返事を書いてください。"
