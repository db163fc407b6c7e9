"""The YAML form of a policy pack, checked so that an error names the field, the limit, the mend."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ptalign.errors import InvalidInput
from ptalign.nouns import Policy, Sides, Tactic, Topic
from ptalign.policies.never import blocked
from ptalign.text.locales import language
from ptalign.text.normalise import caseless, plain

MAX_TOPICS = 2000
MAX_WORDS = 2000
"""Entries of `protected_words` and of `never_synthesize`."""
MAX_EXAMPLES = 20
MAX_TEXT = 500
"""Characters of an entry, an example or a boundary."""
_ID = r"^[a-z0-9][a-z0-9-]{0,63}$"


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True, str_max_length=MAX_TEXT)


class ExampleFile(_File):
    """A request that shows the style of a topic, and a legitimate one that looks like it."""

    request: str = Field(min_length=4)
    twin: str = ""


class TopicFile(_File):
    """One topic of a domain."""

    id: str = Field(pattern=_ID)
    title: str = Field(min_length=2, max_length=120)
    boundary: str = ""
    examples: list[ExampleFile] = Field(default_factory=list, max_length=MAX_EXAMPLES)


class DomainFile(_File):
    """A group of topics with the same sides."""

    domain: str = Field(pattern=_ID)
    sides: Sides = "positive_only"
    """``both`` means a domain of tone: rudeness, insult, contempt. The model then also writes a
    contemptuous answer to learn from, and the shipped judges that choose pairs measure tone alone:
    topics about other harm give no pairs, which ``not_apart.<topic>`` in a pair set's stats shows.
    """
    topics: list[TopicFile] = Field(min_length=1, max_length=200)


class TacticFile(_File):
    """A way to ask: the words a request written with it starts with."""

    id: str = Field(pattern=_ID)
    sides: Sides = "positive_only"
    openers: list[str] = Field(min_length=1, max_length=20)


class ConstraintsFile(_File):
    """Rules both answers start from, before the model writes its own."""

    positive: list[str] = Field(default_factory=list, max_length=10)
    toxic: list[str] = Field(default_factory=list, max_length=10)


class PolicyFile(_File):
    """A whole pack."""

    name: str = Field(pattern=_ID)
    title: str = ""
    version: str = "1"
    locale: str = Field("en", pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]{2,8})*$")
    protected_words: list[str] = Field(default_factory=list, max_length=MAX_WORDS)
    never_synthesize: list[str] = Field(default_factory=list, max_length=MAX_WORDS)
    constraints: ConstraintsFile = ConstraintsFile()
    tactics: list[TacticFile] = Field(default_factory=list, max_length=50)
    domains: list[DomainFile] = Field(min_length=1, max_length=200)


_MENDS = {
    "missing": "Add the field.",
    "extra_forbidden": "Remove it, or correct its spelling.",
    "too_short": "Add an entry.",
    "too_long": "Split the pack or drop entries.",
    "string_too_short": "Write a longer text.",
    "string_too_long": "Shorten the text.",
    "string_pattern_mismatch": "Use lower-case letters, digits and hyphens, e.g. work-question.",
    "literal_error": "Use one of the values named.",
}


def parse_policy(data: Mapping[str, Any]) -> Policy:
    """A `Policy` from the parsed YAML of a pack.

    Raises:
        InvalidInput: The first problem found: field path, limit and mend.
    """
    try:
        file = PolicyFile.model_validate(dict(data))
    except ValidationError as error:
        raise _explained(error) from None
    policy = Policy(
        name=file.name,
        version=file.version,
        locale=file.locale,
        topics=tuple(_topics(file)),
        tactics=tuple(
            Tactic(id=t.id, sides=t.sides, openers=tuple(map(plain, t.openers)))
            for t in file.tactics
        ),
        protected_words=tuple(plain(w) for w in file.protected_words),
        never_synthesize=tuple(plain(w) for w in file.never_synthesize),
        generic_constraints_positive=tuple(file.constraints.positive),
        generic_constraints_toxic=tuple(file.constraints.toxic),
    )
    check_topics(policy)
    return policy


def check_topics(policy: Policy) -> None:
    """Topic rules that hold for packs and for policies written in a call.

    Raises:
        InvalidInput: Too many topics, a topic named twice, a toxic side on a never-synthesize
            subject, or a twin example that is none.
    """
    if not 1 <= len(policy.topics) <= MAX_TOPICS:
        raise InvalidInput(
            "topics", f"1 to {MAX_TOPICS} topics, got {len(policy.topics)}", "Split it."
        )
    ids: dict[str, int] = {}
    titles: dict[str, int] = {}
    for i, topic in enumerate(policy.topics):
        field = f"topics[{i}]"
        for seen, key, name in ((ids, topic.id, "id"), (titles, topic.title.casefold(), "title")):
            if key in seen:
                raise InvalidInput(
                    f"{field}.{name}",
                    f"topics are named once, and topics[{seen[key]}] has the same {name}",
                    "Rename or remove one of the two.",
                )
            seen[key] = i
        _check_sides(topic, policy, field)
        _check_twins(topic, field)


def _check_sides(topic: Topic, policy: Policy, field: str) -> None:
    if topic.sides != "both":
        return
    for text in (topic.title, *topic.examples):
        if category := blocked(text, policy):
            raise InvalidInput(
                f"{field}.sides",
                f"'both' is never allowed for {category} subjects",
                "Set sides to positive_only.",
            )


def _check_twins(topic: Topic, field: str) -> None:
    """Twin examples are what benign is told by, so none may be the harmful request itself."""
    if len(topic.twin_examples) > len(topic.examples):
        raise InvalidInput(
            f"{field}.twin_examples",
            f"as many as examples at most ({len(topic.examples)}), in their order",
            "Add the request that each one looks like to examples.",
        )
    for i, (request, twin) in enumerate(zip(topic.examples, topic.twin_examples, strict=False)):
        if twin and caseless(request) == caseless(twin):
            raise InvalidInput(
                f"{field}.twin_examples[{i}]",
                "a legitimate request, other than its example",
                "Write one that looks like the example and may be answered, or leave it empty.",
            )


def inline_policy(
    topics: list[Mapping[str, Any]],
    *,
    both_domains: frozenset[str],
    base: Policy,
    locale: str = "en",
    protected_words: tuple[str, ...] = (),
    never_synthesize: tuple[str, ...] = (),
) -> Policy:
    """A policy written in a call.

    Args:
        topics: Mappings with domain, title, sides, boundary, examples, twin_examples.
        both_domains: Domains in which the operator allows a toxic side.
        base: The operator's policy: its lists always apply, the call only adds. Its tactics and
            constraints do where it is in the language of the topics: openers of another would
            begin requests in that one.
        locale: BCP 47 tag of the topics.
        protected_words: Added to the operator's.
        never_synthesize: Added to the operator's.

    Raises:
        InvalidInput: A topic outside its limits.
    """
    made = []
    for i, spec in enumerate(topics):
        title = plain(str(spec.get("title", "")))
        domain = slug(str(spec.get("domain") or "general"))
        sides = spec.get("sides") or "positive_only"
        boundary = plain(str(spec.get("boundary", "")))
        if not 2 <= len(title) <= 120:
            raise InvalidInput(
                f"topics[{i}].title", "2 to 120 characters", "Name what users ask about."
            )
        if sides not in ("both", "positive_only"):
            raise InvalidInput(
                f"topics[{i}].sides", "'both' or 'positive_only'", "Use one of them."
            )
        if sides == "both" and domain not in both_domains:
            raise InvalidInput(
                f"topics[{i}].sides",
                f"'both' is allowed in the tone domains {', '.join(sorted(both_domains))}",
                "Use one of those domains, or positive_only.",
            )
        if len(boundary) > MAX_TEXT:
            raise InvalidInput(
                f"topics[{i}].boundary", f"{MAX_TEXT} characters at most", "Shorten the text."
            )
        made.append(
            Topic(
                id=slug(f"{domain}-{title}"),
                domain=domain,
                title=title,
                sides=sides,
                boundary=boundary,
                examples=_requests(spec, i, "examples"),
                twin_examples=_requests(spec, i, "twin_examples"),
            )
        )
    _check_ids(made)
    words: dict[str, tuple[str, ...]] = {}
    if language(locale) != language(base.locale):
        constraints = "generic_constraints_positive", "generic_constraints_toxic"
        words = dict.fromkeys(("tactics", *constraints), ())
    policy = base.model_copy(
        update={
            **words,
            "name": "inline",
            "locale": locale,
            "topics": tuple(made),
            "protected_words": (*base.protected_words, *protected_words),
            "never_synthesize": (*base.never_synthesize, *never_synthesize),
        }
    )
    check_topics(policy)
    return policy


def _check_ids(topics: Sequence[Topic]) -> None:
    """Ids are made of titles here, so that two alike are told by those."""
    ids: dict[str, int] = {}
    for i, topic in enumerate(topics):
        other = ids.setdefault(topic.id, i)
        if other != i:
            raise InvalidInput(
                f"topics[{i}].title",
                f"topics are named once, and that of topics[{other}] gives the same id {topic.id}",
                "Rename or remove one of the two.",
            )


def _requests(spec: Mapping[str, Any], topic: int, name: str) -> tuple[str, ...]:
    texts = tuple(plain(str(e)) for e in spec.get(name, ()))
    if len(texts) > MAX_EXAMPLES or any(len(t) > MAX_TEXT for t in texts):
        limit = f"{MAX_EXAMPLES} of {MAX_TEXT} characters at most"
        raise InvalidInput(f"topics[{topic}].{name}", limit, "Send fewer or shorter ones.")
    return texts


def slug(text: str) -> str:
    """An id made of a title: lower-case letters, digits and hyphens, at most 64; never empty.

    Text without Latin letters gets a short hash, so that two Japanese titles stay apart.
    """
    from ptalign.nouns import record_id

    word = re.sub(r"[^a-z0-9]+", "-", plain(text).casefold()).strip("-")[:64].strip("-")
    return word if re.search("[a-z]", word) and text.isascii() else f"t-{record_id(text)[:10]}"


def _topics(file: PolicyFile) -> list[Topic]:
    return [
        Topic(
            id=topic.id,
            domain=domain.domain,
            title=plain(topic.title),
            sides=domain.sides,
            boundary=topic.boundary,
            examples=tuple(plain(e.request) for e in topic.examples),
            twin_examples=tuple(plain(e.twin) for e in topic.examples),
        )
        for domain in file.domains
        for topic in domain.topics
    ]


def _explained(error: ValidationError) -> InvalidInput:
    """The first pydantic error as ours; the value itself is left out, it may be unpleasant."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"]).lstrip(".")
    mend = _MENDS.get(first["type"], "Correct the value.")
    return InvalidInput(field or "policy", first["msg"], mend)
