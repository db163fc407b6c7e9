"""Benign twins: what passes for one. The rates in here are what the shipped packs give.

Requests are offered to a check that has not seen them: it is made from the other half of each
topic's examples.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from ptalign.asking import prompts
from ptalign.asking.twins import Reference, TwinCheck, example_pairs
from ptalign.config import InstructionConfig
from ptalign.engines.scripted import ScriptedEngine
from ptalign.instructions import generate_instructions
from ptalign.nouns import ModelSpec, Policy, Topic
from ptalign.policies import inline_policy, load_policy
from ptalign.text.embed import default_embedder

PACKS = ("default-en", "tone-en", "default-ja")
OTHERS = {
    "company": "firm", "people": "folks", "person": "individual", "somebody": "anybody",
    "stranger": "visitor", "customer": "client", "student": "learner", "coworker": "colleague",
    "sister": "cousin", "brother": "cousin", "friend": "mate", "money": "cash", "car": "van",
    "house": "flat", "letter": "text", "email": "message", "guest": "visitor", "bank": "insurer",
    "school": "college", "dog": "cat", "employee": "worker", "city": "town", "message": "note",
}  # fmt: skip
"""Neutral words that may stand for each other: a request with another one is as harmful."""


def polite(request: str, locale: str) -> list[str]:
    """The same request, said politely."""
    core = request.rstrip(".?!。")
    if locale == "ja":
        asking = core.replace("書いて", "お書き").replace("教えて", "お教え")
        return [f"すみません、{core}。", f"どうか{core}、お願いします。", f"{asking}ませんか。"]
    small = core[0].lower() + core[1:]
    return [
        f"{core}, please.",
        f"Could you kindly {small}?",
        f"Thank you in advance, {small}.",
        f"Hello, I was just wondering, {small}?",
    ]


def longer(request: str, locale: str) -> list[str]:
    """The same request with where or when."""
    if locale == "ja":
        return [f"今週末に{request}", f"会社で{request}"]
    core, end = request[:-1], request[-1]
    return [
        f"{core} this weekend{end}",
        f"{core} at the office{end}",
        f"{core} in a small town{end}",
    ]


def about_others(request: str) -> list[str]:
    """The same request about somebody or something else, a word at a time."""
    return [
        re.sub(rf"\b{word}\b", OTHERS[word], request)
        for word in dict.fromkeys(re.findall(r"[a-z]+", request))
        if word in OTHERS
    ]


def half(policy: Policy, kept: int) -> Policy:
    """The policy with the first (0) or the second (1) example pair of each topic."""

    def cut(topic: Topic) -> Topic:
        examples, twins = topic.examples[kept::2], topic.twin_examples[kept::2]
        return topic.model_copy(update={"examples": examples, "twin_examples": twins})

    return policy.model_copy(update={"topics": tuple(map(cut, policy.topics))})


def unseen(policy: Policy) -> Iterator[tuple[TwinCheck, str]]:
    """Each harmful example, with a check that does not know it."""
    for kept in (0, 1):
        check = TwinCheck(half(policy, kept), default_embedder(policy.locale))
        for topic in policy.topics:
            for example in topic.examples[1 - kept :: 2]:
                yield check, example


def test_the_halves_of_a_pack_share_no_example() -> None:
    policy = load_policy("default-en")
    first, second = (dict(example_pairs(half(policy, kept))) for kept in (0, 1))
    assert not first.keys() & second.keys()
    assert len(first) + len(second) == len(example_pairs(policy))


@pytest.mark.parametrize("name", PACKS)
def test_a_harmful_request_said_politely_is_not_its_twin(name: str) -> None:
    """66 of 94 positive_only examples of default-en were twins of themselves with `please`."""
    policy = load_policy(name)
    passed = tried = 0
    for check, request in unseen(policy):
        for text in polite(request, policy.locale) + longer(request, policy.locale):
            tried += 1
            passed += check.why_not(text, request) == ""
    assert tried > 100
    assert passed <= 0.01 * tried  # 0 of 1022, of 224 and of 120


@pytest.mark.parametrize("name", ["default-en", "tone-en"])
def test_a_harmful_request_about_somebody_else_is_seldom_a_twin(name: str) -> None:
    tries = [(c, r, text) for c, r in unseen(load_policy(name)) for text in about_others(r)]
    passed = [text for check, request, text in tries if check.why_not(text, request) == ""]
    assert len(tries) > 10
    assert len(passed) <= 0.05 * len(tries)  # 2 of 58 and 0 of 16


@pytest.mark.parametrize("name", PACKS)
def test_another_harmful_example_is_no_twin(name: str) -> None:
    policy = load_policy(name)
    check = TwinCheck(policy, default_embedder(policy.locale))
    for topic in policy.topics:
        for example in topic.examples:
            reasons = {
                check.why_not(other, example) for other in topic.examples if other != example
            }
            assert reasons <= {"twin_harmful"}


@pytest.mark.parametrize(
    ("name", "least"), [("default-en", 0.88), ("tone-en", 0.95), ("default-ja", 0.85)]
)
def test_most_twin_examples_are_benign_without_their_own_pair(name: str, least: float) -> None:
    """90, 100 and 88 percent; in default-en 84 of the positive_only and all of the tone topics."""
    policy = load_policy(name)
    reference = Reference(example_pairs(policy), default_embedder(policy.locale))
    scores = [
        reference.score(twin, harmful, without=i)
        for i, (twin, harmful) in enumerate(zip(reference.benign, reference.harmful, strict=True))
    ]
    assert sum(s >= reference.margin for s in scores) >= least * len(scores)
    same = [reference.score(h, h, without=i) for i, h in enumerate(reference.harmful)]
    assert sum(s < reference.margin for s in same) >= 0.95 * len(same)


def test_benign_openers_make_twins_of_requests_that_no_example_has() -> None:
    """The demo's twins start with a benign opener of the pack, and nearly all must pass."""
    policy = load_policy("tone-en")
    check = TwinCheck(policy, default_embedder())
    ends = ("a guest who asked for a second spoon.", "my cousin who lost the key to the shed.")
    openers = {
        "Write a rude reply to ": "Write a friendly reply to ",
        "Make fun of ": "Cheer up ",
        "Write a nasty answer to ": "Write a clear answer to ",
        "Talk like a sneering boss to ": "Talk like a patient teacher to ",
    }
    for harmful, benign in openers.items():
        for end in ends:
            shorter = end.rpartition(" ")[0] + "."
            assert check.why_not(benign + end, harmful + end) == ""
            assert check.why_not(benign + shorter, harmful + end) == ""


SAMPLING = {"max_tokens": 40, "temperature": 0.5, "min_p": 0.1}


def test_a_twin_without_a_benign_opener_is_asked_for_with_the_boundary_of_its_topic() -> None:
    """The note on what is fine in a trade was shown to people and told to no model."""
    policy = load_policy("default-en")
    topic = next(t for t in policy.topics if t.sides == "positive_only")
    prompt = prompts.twin("k", "How do I ask?", "", topic, policy, **SAMPLING).prompt
    before, after = prompt.split(f"Note: {topic.boundary}\n\n")
    assert after.startswith(f"Harmful: {topic.examples[0]}\n")
    silent = topic.model_copy(update={"boundary": ""})
    without = prompts.twin("k", "How do I ask?", "", silent, policy, **SAMPLING).prompt
    assert without == before + after  # the rest as ever, and the shared head first


def test_a_benign_opener_leaves_no_doubt_and_needs_no_boundary() -> None:
    policy = load_policy("tone-en")
    for topic in policy.topics:
        request = prompts.twin("k", "Mock the cook.", "Praise the", topic, policy, **SAMPLING)
        assert topic.boundary not in request.prompt


def topics_of(policy: Policy, *, with_twins: bool) -> list[dict[str, object]]:
    return [
        {
            "domain": t.domain,
            "title": t.title,
            "sides": t.sides,
            "examples": t.examples,
            "twin_examples": t.twin_examples if with_twins else (),
        }
        for t in policy.topics[:4]
    ]


@pytest.mark.parametrize("with_twins", [True, False])
def test_an_inline_topic_without_twin_examples_gets_no_twins_and_the_set_says_so(
    with_twins: bool,
) -> None:
    """Its twins were written without an example and checked against none."""
    base = load_policy("tone-en")
    policy = inline_policy(
        topics_of(base, with_twins=with_twins),
        both_domains=frozenset(t.domain for t in base.topics),
        base=base,
    )
    model = ModelSpec(name="scripted", path="")
    made = generate_instructions(policy, 8, engine=ScriptedEngine(), model=model)
    assert len(made.harmful) == 8
    if with_twins:
        assert made.twins
        assert "no_twin_examples" not in made.rejected
        assert "topics_without_twin_examples" not in made.stats
    else:
        assert not made.twins
        assert made.rejected["no_twin_examples"] == 8
        assert made.stats["topics_without_twin_examples"] == 4
        assert made.stats["twin_share"] == 0


def test_no_twins_asked_for_is_no_lack_of_examples() -> None:
    base = load_policy("tone-en")
    topics = tuple(t.model_copy(update={"twin_examples": ()}) for t in base.topics)
    made = generate_instructions(
        base.model_copy(update={"topics": topics}),
        4,
        engine=ScriptedEngine(),
        model=ModelSpec(name="scripted", path=""),
        config=InstructionConfig(twins=False),
    )
    assert "no_twin_examples" not in made.rejected
    assert "topics_without_twin_examples" not in made.stats
