"""The four verbs: what each one refuses, and what a call of it would cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ptalign.config import NEEDS_TOXIC, LoraConfig
from ptalign.errors import InvalidInput
from ptalign.nouns import MAX_ANNOTATIONS, MAX_INSTRUCTIONS, ModelSpec, Policy
from ptalign.suites import DEFAULT, HELD_OUT
from ptalign.text.locales import language
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server import configs
from ptalign_server.catalogue import SAMPLES, Catalogue
from ptalign_server.errors import (
    MAX_ECHO,
    NotFound,
    SetPartial,
    SetPurged,
    UnknownName,
    Violations,
    refuse,
)
from ptalign_server.gateway.estimates import BYTES, Estimate, of_generation, weights_bytes
from ptalign_server.gateway.fields import (
    annotation_problems,
    doubled,
    inline_policy_problems,
    request_id_problems,
    text_problems,
    too_many_annotations,
    topic_problems,
)
from ptalign_server.gateway.identity import Identity
from ptalign_server.gateway.release import why_withheld
from ptalign_server.gateway.weights import check_weights
from ptalign_server.lineage import made_from, own_pairs, trained_on
from ptalign_server.store import Store
from ptalign_server.store.operations import CANCELLED, FAILED
from ptalign_server.store.resources import Resource

MAX_SEEDS = 2_000
MAX_ALSO = 8
MAX_LABEL = 120
MAX_LOST = 20
"""Topics named in an error."""
MAX_WORDS, MAX_WORD = 1_000, 64
"""Protected words of an Align, and the characters of one."""
ANY_MODEL = ""
"""For requests: one model writes them, any may be asked them (ADR 0013)."""
SET_DATA = "Ask the operator to set PTALIGN_EVAL_DATA to the folder of evaluation files"


@dataclass(frozen=True, slots=True)
class Call:
    """What a check may look at."""

    identity: Identity
    store: Store
    catalogue: Catalogue

    def resource(self, name: str, collection: str, model: str) -> Resource:
        """A resource of this tenant, of the right kind and model; of any model where that is ""."""
        if not name.startswith(collection + "/"):
            raise NotFound
        found = self.store.resources.get(name, self.identity.tenant)
        if model and found.model != model:
            raise NotFound
        return found

    def adapter(self, field: str, name: str, model: ModelSpec) -> Resource:
        """An adapter of this tenant and model, there and of the weights that the model has now."""
        found = self.resource(name, "adapters", model.name)
        check_weights(field, found, model)
        return found

    def readable(self, name: str, collection: str, model: str, *, whole: bool = False) -> Resource:
        """A resource whose text is there; with `whole`, not a partial one either."""
        found = self.resource(name, collection, model)
        if found.purged:
            raise SetPurged(f"{name} was purged: its text is gone. Make or import another set.")
        if whole and found.partial:
            raise SetPartial(
                f"{name} is partial: its operation was stopped. Finish it with SynthesizePairs and "
                f"parent={name}, then align on the set that makes."
            )
        return found


def check_generate(request: pb.GenerateInstructionsRequest, call: Call) -> Estimate:
    """Refuses a GenerateInstructions that cannot run; returns what it would cost."""
    problems = request_id_problems(request)
    if not 1 <= request.count <= MAX_INSTRUCTIONS:
        problems.append(
            InvalidInput(
                "count",
                f"must be 1..{MAX_INSTRUCTIONS}, got {request.count}",
                "Ask for fewer, and extend the set later with parent."
                if request.count > MAX_INSTRUCTIONS
                else "Say how many instructions you want.",
            )
        )
    problems += text_problems("seeds", request.seeds, MAX_SEEDS)
    problems += text_problems("excerpts", request.excerpts, MAX_SEEDS)
    problems += topic_problems(request.topics)
    inline = request.policy_spec  # empty where a policy is named
    for field, tag in (("locale", request.locale), ("policy_spec.locale", inline.locale)):
        if len(tag) > MAX_ECHO:
            limit = f"is longer than {MAX_ECHO} characters"
            problems.append(InvalidInput(field, limit, "Send a BCP 47 tag, e.g. en-GB."))
    problems += inline_policy_problems(request)
    refuse(problems)
    model = call.catalogue.served_model(request.model)
    policy = _policy(request, call)
    _known_topics(request.topics, policy)
    config = configs.instruction_config(request, policy.locale)
    if language(config.locale) != language(policy.locale):
        raise InvalidInput(
            "locale",
            f"is {config.locale!r}, and policy {policy.name} is written in {policy.locale}",
            "Leave it out, or name a policy in that language.",
        )
    if language(config.locale) not in map(language, model.locales):
        raise InvalidInput(
            "locale",
            f"{config.locale!r} is not one of the model's ({', '.join(model.locales)})",
            "Use one of those, or add the locale to the model's catalogue entry.",
        )
    if request.parent:
        _check_parent(request.parent, policy, call)
    drafts = request.count * (2 if config.twins else 1) * 3.2
    return of_generation(model, drafts, config.max_tokens, "3.2 drafts per accepted instruction")


def _check_parent(name: str, policy: Policy, call: Call) -> None:
    """An extended set has one policy, the call's, and its parent's requests need a place there.

    A request of a topic that the policy lacks would never get its toxic side.
    """
    found = call.readable(name, "instructionSets", ANY_MODEL)
    before = call.store.sets.load_policy(name)
    if language(before.locale) != language(policy.locale):
        limit = f"is written in {before.locale}, and policy {policy.name} in {policy.locale}"
        mend = "Name a policy in the set's language, or leave parent out."
        raise InvalidInput("parent", limit, mend)
    sides = {topic.id: topic.sides for topic in policy.topics}
    was = sides | {topic.id: topic.sides for topic in before.topics}
    topics = res.InstructionSet.FromString(found.body).by_topic
    if lost := sorted(topic for topic in topics if sides.get(topic) != was.get(topic, "")):
        more = len(lost[MAX_LOST:])
        named = ", ".join(lost[:MAX_LOST]) + (f" and {more} more" if more else "")
        raise InvalidInput(
            "parent",
            f"has topics that policy {policy.name} lacks or gives other sides: {named}",
            "Name the policy that the set was made under, or leave parent out and merge the sets.",
        )


def check_synthesize(request: pb.SynthesizePairsRequest, call: Call) -> Estimate:
    """Refuses a SynthesizePairs that cannot run; returns what it would cost."""
    problems = request_id_problems(request)
    items = request.annotations.items
    if len(items) > MAX_ANNOTATIONS:
        problems.append(too_many_annotations("annotations", len(items)))
    for number, item in enumerate(items):
        problems += annotation_problems(f"annotations.items[{number}]", item)
    refuse(problems)
    model = call.catalogue.served_model(request.model)
    if not request.instruction_set:
        raise InvalidInput("instruction_set", "is empty", "Send the name of an instruction set.")
    source = call.readable(request.instruction_set, "instructionSets", ANY_MODEL)
    policy = call.store.sets.load_policy(request.instruction_set)
    _check_language(policy, model)
    _known_topics([item.topic for item in items if item.topic], policy)
    if request.annotation_set:
        marks = call.readable(request.annotation_set, "annotationSets", model.name)
        _check_marks(res.AnnotationSet.FromString(marks.body), request)
    config = configs.pair_config(request)
    if request.parent:
        call.readable(request.parent, "pairSets", model.name)
    made = res.InstructionSet.FromString(source.body)
    records = made.harmful + made.twins + config.anchors
    drafts = records * (1 + config.candidates * config.rounds * 0.6)
    return of_generation(model, drafts, config.max_tokens, "both answers, rounds and anchors")


def _check_language(policy: Policy, model: ModelSpec) -> None:
    """A set may be of another model, whose languages are not this one's."""
    locale = policy.locale
    if language(locale) not in map(language, model.locales):
        raise InvalidInput(
            "instruction_set",
            f"is written in {locale}, and model {model.name} declares {', '.join(model.locales)}",
            "Send a set in one of those, or add the locale to the model's catalogue entry.",
        )


def _check_marks(marks: res.AnnotationSet, request: pb.SynthesizePairsRequest) -> None:
    if marks.count > MAX_ANNOTATIONS:
        raise Violations([too_many_annotations("annotation_set", marks.count)])
    if marks.count == len(marks.rejected) > 0 and not request.parent:
        judged = marks.meta.parents[0].partition("@")[0]
        limit = f"is empty, and {request.annotation_set} only says which of a set's pairs are wrong"
        raise InvalidInput("parent", limit, f"Send parent={judged}: those are written anew.")


def check_align(request: pb.AlignRequest, call: Call) -> Estimate:
    """Refuses an Align that cannot run; returns what it would cost."""
    problems = request_id_problems(request)
    problems += text_problems("protected_words", request.protected_words, MAX_WORDS, MAX_WORD)
    most, rank = call.catalogue.max_lora_rank, request.lora.rank or LoraConfig().rank
    if rank > most:  # first: a rank within the config's own limit may be above this one
        limit = f"must be at most {most}, the largest the engine serves, got {rank}"
        mend = "Lower it, or ask the operator to raise PTALIGN_ENGINE__MAX_LORA_RANK."
        problems.append(InvalidInput("lora.rank", limit, mend))
    refuse(problems)
    model = call.catalogue.model(request.model)
    if not request.resume_from:  # what was begun before this was refused goes on
        configs.refuse_share(request)
    config = configs.align_config(request)
    if not request.resume_from:  # likewise
        configs.refuse_weighting(request, config.method)
    if not request.pair_set:
        raise InvalidInput("pair_set", "is empty", "Send the name of a pair set.")
    found = call.readable(request.pair_set, "pairSets", model.name, whole=True)
    pairs = res.PairSet.FromString(found.body)
    if config.method in NEEDS_TOXIC and not pairs.pairs:
        raise InvalidInput(
            "method",
            f"{config.method} trains on bad answers too, and {request.pair_set} holds none",
            "Use method mle, or a pair set of a policy whose topics have both sides.",
        )
    if config.anchors_per_step and not pairs.anchors:
        raise _without_anchors(request.pair_set)
    if request.parent_adapter:
        call.adapter("parent_adapter", request.parent_adapter, model)
        if not request.resume_from:  # likewise
            _check_shape(request)
    if request.resume_from:
        _check_resume(request, call)
    rows = config.pairs_per_step * 2 + config.anchors_per_step + config.twins_per_step
    size = weights_bytes(model, BYTES[model.dtype])
    per_row = size / BYTES[model.dtype] * 4 / 538e6 * 0.35
    trained = pairs.pairs + pairs.positive_only - int(pairs.stats["held_out_pairs"])
    steps = config.steps_for(trained)
    factor = 0.05 if call.catalogue.profile == "gpu" else 1.0
    return Estimate(
        seconds=20 + steps * rows * per_row * factor,
        memory_bytes=int(size * 2.2 + 1.7e9),
        disk_bytes=int(size * 0.04 * config.lora.rank / 16 * 3),
        basis=f"{steps} steps; measured on a 135M model on two cores, scaled by weights and rows",
    )


def _check_shape(request: pb.AlignRequest) -> None:
    """An adapter that is trained on keeps its shape."""
    for field, _ in request.lora.ListFields():
        raise InvalidInput(
            f"lora.{field.name}",
            f"has no meaning with parent_adapter: {request.parent_adapter} keeps its own shape",
            "Leave lora out, or parent_adapter to begin an adapter of this shape.",
        )


def _without_anchors(name: str) -> InvalidInput:
    return InvalidInput(
        "pair_set",
        f"{name} holds no anchors: trained without them, a model refuses ordinary requests too, "
        "and no guard can tell",
        f"SynthesizePairs with parent={name} and an instruction set of its requests writes them: "
        "align on the set that makes. Or set budget.without_anchors.",
    )


def check_evaluate(request: pb.EvaluateRequest, call: Call) -> Estimate:
    """Refuses an Evaluate that cannot run; returns what it would cost."""
    problems = request_id_problems(request)
    if len(request.also) > MAX_ALSO:
        problems.append(
            InvalidInput("also", f"holds more than {MAX_ALSO} targets", "Evaluate in two calls.")
        )
    for name in doubled(request.suites):
        problems.append(InvalidInput("suites", f"names {name[:MAX_ECHO]!r} twice", "Name it once."))
    refuse(problems)
    model = call.catalogue.served_model(request.target.model, "target.model")
    _check_targets(request, call, model)
    config = configs.eval_config(request, call.catalogue.gate(configs.gate_named(request)))
    call.catalogue.check_suites(request.suites)
    call.catalogue.check_judges(request.judges)
    if request.pair_set:
        call.readable(request.pair_set, "pairSets", model.name)
    names = tuple(request.suites) or DEFAULT
    names += _held_out(request, call)
    lacking = call.catalogue.without_data(names)
    _can_ask(names, lacking)
    samples = request.samples or SAMPLES[call.catalogue.profile]
    specs = [call.catalogue.suites[name] for name in names if name not in lacking]
    prompts = sum(max(1, round(samples * spec.share)) for spec in specs)
    drafts = prompts * (2 + len(request.also))
    told = _not_run(lacking) + _not_measured(request, call)
    if why := why_withheld(config.gate, request.baseline.adapter, call.catalogue.gate("")):
        told += f"; {why}"
    basis = f"{_count(len(specs), 'suite')} per target{told}"
    return of_generation(model, drafts, config.max_tokens, basis)


ESTIMATES: Mapping[str, Callable[[Any, Call], Estimate]] = {
    "GenerateInstructions": check_generate,
    "SynthesizePairs": check_synthesize,
    "Align": check_align,
    "Evaluate": check_evaluate,
}
"""By verb: what raises on anything wrong with a request, else estimates what it would cost."""


def _known_topics(topics: Sequence[str], policy: Policy) -> None:
    known = {topic.id for topic in policy.topics}
    for topic in topics:
        if topic not in known:
            raise UnknownName("topic", topic, known)


def _policy(request: pb.GenerateInstructionsRequest, call: Call) -> Policy:
    if request.WhichOneof("policy_choice") == "policy_spec":
        return call.catalogue.policies.inline(request.policy_spec)
    return call.catalogue.policies.find(request.policy)


def _check_resume(request: pb.AlignRequest, call: Call) -> None:
    """`resume_from` continues with the same inputs: any other would train something else.

    Guards may differ: they stop a run, and one that they stopped may be kept.
    """
    earlier = call.store.operations.get(
        request.resume_from.removeprefix("operations/"), call.identity.tenant
    )
    if earlier.kind != "Align" or earlier.state not in {CANCELLED, FAILED}:
        raise InvalidInput(
            "resume_from",
            f"is a {earlier.kind} in state {earlier.state}",
            "Name an Align operation that was cancelled or failed.",
        )
    key = call.store.keys.get(earlier.id)
    before = pb.AlignRequest.FromString(key.open("request", earlier.request))
    ignored = {"request_id", "dry_run", "resume_from", "guards"}
    for descriptor in pb.AlignRequest.DESCRIPTOR.fields:
        name = descriptor.name
        if name not in ignored and getattr(before, name) != getattr(request, name):
            raise InvalidInput(
                name,
                f"differs from the operation that is resumed ({request.resume_from})",
                "Send the same inputs, or leave resume_from out to start afresh.",
            )


def _can_ask(names: Sequence[str], lacking: Mapping[str, str]) -> None:
    """Refuses an evaluation that has nothing to ask, before it waits for an engine."""
    if set(names) <= set(lacking):
        files = ", ".join(f"{name} needs {file}" for name, file in lacking.items())
        raise InvalidInput(
            "suites",
            f"no suite named has data on the server ({files})",
            f"{SET_DATA}, or name suites that need none, e.g. attack.",
        )


def _held_out(request: pb.EvaluateRequest, call: Call) -> tuple[str, ...]:
    """Suites that the held-out requests add to the default ones."""
    named = [name for name in request.suites if name in HELD_OUT]
    if request.held_out:
        call.readable(request.held_out, "instructionSets", ANY_MODEL)
        if not request.suites:
            return tuple(HELD_OUT)
        known = call.catalogue.suites
        if not any(known[name].make in HELD_OUT for name in request.suites):
            mend = f"Name {', '.join(HELD_OUT)} too, or leave suites out."
            raise InvalidInput("held_out", "is asked by none of the suites named", mend)
        return ()
    if named:
        mend = "Name an instruction set that nothing was trained on in held_out."
        raise InvalidInput("held_out", f"is empty, and suite {named[0]} asks its requests", mend)
    return ()


def _not_run(lacking: Mapping[str, str]) -> str:
    """What the caller should know before a run that cannot PASS."""
    if not lacking:
        return ""
    return (
        f"; not run for lack of data: {', '.join(lacking)}: this evaluation cannot PASS, only FAIL "
        f"or stay INCONCLUSIVE. {SET_DATA}"
    )


def _not_measured(request: pb.EvaluateRequest, call: Call) -> str:
    """What the caller should know of targets whose training sets have no text any more."""
    targets = [t.adapter for t in (request.target, request.baseline, *request.also) if t.adapter]

    def find(name: str) -> Resource | None:
        try:
            return call.resource(name, name.partition("/")[0], ANY_MODEL)
        except NotFound:  # younger than the backup that was restored
            return None

    adapter = request.target.adapter
    own = own_pairs(call.resource(adapter, "adapters", ANY_MODEL)) if adapter else ""
    used = dict.fromkeys(trained_on(made_from(find, *targets)))
    gone = [name for name in used if (found := find(name)) is None or found.purged]
    told = ""
    if own in gone and not request.pair_set:
        told = (
            f"; the text of the adapter's {own} is gone: benign KL is not measured, so a gate that "
            "limits it cannot PASS this evaluation, and prompts are not kept apart from what it "
            "was trained on. Name another pair set of its policy in pair_set"
        )
        gone.remove(own)
    if gone:
        told += (
            f"; the text of {', '.join(gone)}, which a target or an adapter that it goes on from "
            "was trained on, is gone: prompts are not kept apart from it, and the report says so"
        )
    return told


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _check_targets(request: pb.EvaluateRequest, call: Call, model: ModelSpec) -> None:
    targets = configs.targets_of(request)
    for field, target in targets.items():
        if target.model and target.model != model.name:
            call.catalogue.model(target.model)
            raise InvalidInput(
                f"{field}.model",
                f"is {target.model}, not the target's model {model.name}",
                "Compare targets of one model: they share prompts and template.",
            )
        if len(target.label) > MAX_LABEL:
            limit = f"is longer than {MAX_LABEL} characters"
            raise InvalidInput(f"{field}.label", limit, "Shorten it.")
    for field, target in targets.items():
        if target.adapter:
            call.adapter(f"{field}.adapter", target.adapter, model)
    labels = [target.label for target in targets.values() if target.label]
    for label in doubled(labels):
        raise InvalidInput("label", f"{label!r} stands on two targets", "Label each differently.")
