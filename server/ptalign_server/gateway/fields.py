"""What can be said of a call's fields by themselves: their limits, and what is wrong with them."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from ptalign.errors import InvalidInput
from ptalign.nouns import MAX_ANNOTATIONS
from ptalign.policies import schema
from ptalign.sealed import SealedText
from ptalign.text.normalise import plain
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server.errors import MAX_ECHO

MAX_TEXT = 8_000
MAX_TOPICS = 500


def too_many_annotations(field: str, count: int) -> InvalidInput:
    """The violation for more marks than the method is meant for."""
    return InvalidInput(
        field,
        f"holds {count} annotations; at most {MAX_ANNOTATIONS} are used per policy and model",
        "Keep the most telling ones.",
    )


def annotation_problems(field: str, item: res.Annotation) -> list[InvalidInput]:
    """What is wrong with one annotation."""
    problems = []
    for name in ("instruction", "good"):
        if not getattr(item, name).strip():
            problems.append(
                InvalidInput(f"{field}.{name}", "is empty", "Write it, or drop the item.")
            )
    if SealedText(item.bad.strip()).is_description:
        limit = "is what a sealed text shows of itself, and not the text"
        problems.append(InvalidInput(f"{field}.bad", limit, "Send the text, or leave it out."))
    for name in ("instruction", "good", "bad", "note"):
        if len(getattr(item, name)) > MAX_TEXT:
            limit = f"is longer than {MAX_TEXT} characters"
            problems.append(InvalidInput(f"{field}.{name}", limit, "Shorten it."))
    return problems


def request_id_problems(request: Any) -> list[InvalidInput]:
    """A request_id is a UUID or absent."""
    if not request.request_id:
        return []
    try:
        uuid.UUID(request.request_id)
    except ValueError:
        return [InvalidInput("request_id", "is not a UUID", "Send a fresh UUID per call.")]
    return []


def text_problems(
    field: str, texts: Sequence[str], most: int, longest: int = MAX_TEXT
) -> list[InvalidInput]:
    """More than `most` texts, or the first that is empty or longer than `longest` characters."""
    if len(texts) > most:
        return [InvalidInput(field, f"holds more than {most} entries", "Send fewer.")]
    for number, text in enumerate(texts):
        if not text.strip():
            return [InvalidInput(f"{field}[{number}]", "is empty", "Drop it.")]
        if len(text) > longest:
            limit = f"is longer than {longest} characters"
            return [InvalidInput(f"{field}[{number}]", limit, "Shorten it.")]
    return []


def topic_problems(topics: Sequence[str]) -> list[InvalidInput]:
    """Topics of a call that are empty or named twice."""
    problems = []
    for number, topic in enumerate(topics):
        if not topic.strip():
            mend = "Name a topic of the policy, or leave topics out for all of them."
            problems.append(InvalidInput(f"topics[{number}]", "is empty", mend))
    for topic in doubled(topics):
        limit = f"names {topic[:MAX_ECHO]!r} twice"
        problems.append(InvalidInput("topics", limit, "Name it once."))
    return problems


def inline_policy_problems(request: pb.GenerateInstructionsRequest) -> list[InvalidInput]:
    """What is wrong with the policy that a call brings along; nothing where it names one."""
    if request.WhichOneof("policy_choice") != "policy_spec":
        return []
    spec = request.policy_spec
    if not spec.topics:
        mend = "Write at least one topic, or name a policy of the catalogue."
        return [InvalidInput("policy_spec.topics", "is empty", mend)]
    if len(spec.topics) > MAX_TOPICS:
        return [InvalidInput("policy_spec.topics", f"holds more than {MAX_TOPICS}", "Split it.")]
    problems = []
    for number, topic in enumerate(spec.topics):
        field = f"policy_spec.topics[{number}]"
        if not topic.title.strip():
            problems.append(InvalidInput(f"{field}.title", "is empty", "Name the topic."))
        if topic.sides not in {"", "both", "positive_only"}:
            mend = "Send one of those, or leave it out for positive_only."
            limit = "must be both or positive_only"
            problems.append(InvalidInput(f"{field}.sides", limit, mend))
        if len(plain(topic.boundary)) > schema.MAX_TEXT:
            limit = f"is longer than {schema.MAX_TEXT} characters"
            problems.append(InvalidInput(f"{field}.boundary", limit, "Shorten it."))
        examples = [plain(text) for text in topic.examples]
        problems += text_problems(
            f"{field}.examples", examples, schema.MAX_EXAMPLES, schema.MAX_TEXT
        )
    for name in ("protected_words", "never_synthesize"):
        words = getattr(spec, name)
        problems += text_problems(f"policy_spec.{name}", words, schema.MAX_WORDS, schema.MAX_TEXT)
    titles = [topic.title.strip().lower() for topic in spec.topics]
    for title in doubled(t for t in titles if t):
        limit = f"names {title[:MAX_ECHO]!r} twice"
        problems.append(InvalidInput("policy_spec.topics", limit, "Name it once."))
    return problems


def doubled(values: Iterable[str]) -> list[str]:
    """What stands there more than once, sorted."""
    seen: set[str] = set()
    return sorted({value for value in values if value in seen or seen.add(value)})  # type: ignore[func-returns-value]
