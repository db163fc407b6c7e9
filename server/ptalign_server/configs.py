"""From a call's message to the typed settings of a stage, and the violations on the way.

The gateway uses these to check a call, the worker to run it: one meaning on both sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from ptalign.config import (
    AlignConfig,
    Config,
    EvalConfig,
    GateConfig,
    InstructionConfig,
    LoraConfig,
    PairConfig,
)
from ptalign.errors import InvalidInput
from ptalign.nouns import Method
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server.errors import Violations
from ptalign_server.limits import bounds, plain

C = TypeVar("C", bound=Config)

METHODS: Mapping[int, Method] = {
    res.METHOD_UNSPECIFIED: "pt_align",
    res.METHOD_PT_ALIGN: "pt_align",
    res.METHOD_UT_UNIFORM: "ut_uniform",
    res.METHOD_MLE: "mle",
    res.METHOD_DPO: "dpo",
    res.METHOD_NPO: "npo",
}
LEFT_OUT: Mapping[str, str] = {
    "budget.steps": "for as many as its pairs ask",
    "lora.alpha": "for twice the rank",
    "samples": "for the profile's number",
    "ut_weight": "for one that is set from gradient norms",
    **{
        f"gate_spec.{name}": "to check no such limit"
        for name in GateConfig.model_fields
        if name != "min_samples"
    },
}
"""Fields whose default does not say what is done without them."""
SHARES = (0.05, 0.25)
"""What calls may send as `flagged_share`. The library takes more, for trials: with less hardly a
word is pushed down, and with more ordinary words are."""
MAX_SHOWN = 40
"""Characters of a wrong value that are sent back."""
INLINE = "inline"
"""Policy name of resources made with a policy written in the call."""


def targets_of(request: pb.EvaluateRequest) -> dict[str, pb.Target]:
    """An Evaluate's targets by their fields, the one of the verdict first."""
    also = {f"also[{number}]": target for number, target in enumerate(request.also)}
    return {"target": request.target, "baseline": request.baseline, **also}


def build(kind: type[C], values: Mapping[str, Any], names: Mapping[str, str]) -> C:
    """The settings, or every field that is outside its limits.

    Args:
        values: Only what the caller set: the rest keeps its default.
        names: Field of the settings -> dotted field of the message, where they differ.

    Raises:
        Violations: Names each field with its limit and what to send instead.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise Violations([_violation(kind, item, names) for item in error.errors()]) from None


def instruction_config(request: pb.GenerateInstructionsRequest, locale: str) -> InstructionConfig:
    """Settings of a GenerateInstructions call; `locale` is the policy's."""
    values = {
        "twins": request.twins if request.HasField("twins") else True,
        "locale": request.locale or locale,
        "topics": tuple(request.topics),
        "seed": request.seed,
    }
    return build(InstructionConfig, values, {})


def pair_config(request: pb.SynthesizePairsRequest) -> PairConfig:
    """Settings of a SynthesizePairs call."""
    values: dict[str, Any] = {"seed": request.seed}
    _take(values, request, "rounds", "min_polarity", "anchors")
    return build(PairConfig, values, {})


def align_config(request: pb.AlignRequest) -> AlignConfig:
    """Settings of an Align call, without the profile's device and threads."""
    if request.method not in METHODS:
        raise InvalidInput("method", "is not one this server knows", f"Send one of {_known()}.")
    method = METHODS[request.method]
    if request.HasField("ut_weight") and method not in {"pt_align", "ut_uniform"}:
        raise InvalidInput(
            "ut_weight",
            f"has no meaning for method {method}",
            "Leave it out, or use method pt_align or ut_uniform.",
        )
    if request.ut_candidates == "written" and method != "pt_align":
        raise InvalidInput(
            "ut_candidates",
            f"has no meaning for method {method}",
            "Leave it out, or use method pt_align.",
        )
    values: dict[str, Any] = {"method": method, "seed": request.seed, "lora": _lora(request.lora)}
    _take(values, request, "ut_weight", "flagged_share", "guards", "ut_candidates")
    _take(
        values,
        request.budget,
        "steps",
        "pairs_per_step",
        "anchors_per_step",
        "learning_rate",
        "max_benign_kl",
        "max_twin_refusals",
        "twin_weight",
    )
    if request.budget.without_anchors:
        values["anchors_per_step"] = _no_anchors(request.budget)
    if request.token_weighting:
        values["scorer"] = request.token_weighting
    values["protected_words"] = tuple(request.protected_words)
    return build(AlignConfig, values, ALIGN_NAMES)


def refuse_weighting(request: pb.AlignRequest, method: str) -> None:
    """Refuses token_weighting and flagged_share for methods other than pt_align, which weigh every
    token alike.

    The default scorer passes, because clients send it. Only new calls are checked, so that a
    training accepted by an earlier version can still be resumed.

    Raises:
        InvalidInput: Names the field.
    """
    if method == "pt_align":
        return
    named = request.token_weighting not in ("", AlignConfig().scorer)
    given = {"token_weighting": named, "flagged_share": request.HasField("flagged_share")}
    for field in (field for field, sent in given.items() if sent):
        limit = f"has no meaning for method {method}"
        raise InvalidInput(field, limit, "Leave it out, or use method pt_align.")


def refuse_share(request: pb.AlignRequest) -> None:
    """Of a flagged share outside `SHARES`; asked in the call alone, like `refuse_weighting`.

    Raises:
        InvalidInput: Names the field.
    """
    low, high = SHARES
    if request.HasField("flagged_share") and not low <= request.flagged_share <= high:
        limit = f"must be {low:g}..{high:g}, got {request.flagged_share:g}"
        default = AlignConfig().flagged_share
        mend = f"Send a value in that range, or leave it out for {default:g}."
        raise InvalidInput("flagged_share", limit, mend)


def _no_anchors(budget: pb.Budget) -> int:
    """0 anchors per step, which `anchors_per_step` cannot say: there it means the default."""
    if budget.anchors_per_step:
        limit = f"is {budget.anchors_per_step}, and without_anchors asks for none"
        raise InvalidInput("budget.anchors_per_step", limit, "Send one of the two.")
    return 0


ALIGN_NAMES = {
    "scorer": "token_weighting",
    "steps": "budget.steps",
    "pairs_per_step": "budget.pairs_per_step",
    "anchors_per_step": "budget.anchors_per_step",
    "learning_rate": "budget.learning_rate",
    "max_benign_kl": "budget.max_benign_kl",
    "max_twin_refusals": "budget.max_twin_refusals",
    "twin_weight": "budget.twin_weight",
}


def gate_named(request: pb.EvaluateRequest) -> str:
    """The catalogue's gate that an Evaluate call asks for; empty where it names none."""
    return str(request.gate) if request.WhichOneof("gate_choice") == "gate" else ""


def eval_config(request: pb.EvaluateRequest, gate: GateConfig) -> EvalConfig:
    """Settings of an Evaluate call; `gate` is the catalogue's unless the call writes its own."""
    values: dict[str, Any] = {"seed": request.seed}
    _take(values, request, "samples")
    if request.WhichOneof("gate_choice") == "gate_spec":
        gate = gate_config(request.gate_spec)
    return build(EvalConfig, {**values, "gate": gate}, {})


def gate_config(spec: pb.GateSpec) -> GateConfig:
    """A gate written in the call: a limit that is left out is not checked."""
    values: dict[str, Any] = {
        name: None for name in GateConfig.model_fields if name != "min_samples"
    }
    _take(values, spec, *GateConfig.model_fields)
    names = {name: f"gate_spec.{name}" for name in GateConfig.model_fields}
    return build(GateConfig, values, names)


def _lora(lora: pb.Lora) -> LoraConfig:
    values: dict[str, Any] = {"target_modules": tuple(lora.target_modules)}
    _take(values, lora, "rank", "alpha", "dropout")
    return build(LoraConfig, values, {name: f"lora.{name}" for name in LoraConfig.model_fields})


def _take(values: dict[str, Any], message: Any, *fields: str) -> None:
    """Copies the fields that the caller set."""
    for field in fields:
        descriptor = message.DESCRIPTOR.fields_by_name[field]
        value = getattr(message, field)
        if message.HasField(field) if descriptor.has_presence else value:
            values[field] = value


def _known() -> str:
    return ", ".join(sorted(set(METHODS.values())))


def _violation(kind: type[Config], item: Any, names: Mapping[str, str]) -> InvalidInput:
    field = str(item["loc"][0]) if item["loc"] else "request"
    info = kind.model_fields.get(field)
    limits = bounds(info) if info else ""
    send = "Send a value in that range" if limits else "Send one of those"
    name = names.get(field, field)
    return InvalidInput(name, _limit(item, limits), f"{send}{_unless(name, info)}.")


def _unless(field: str, info: FieldInfo | None) -> str:
    """What happens when the caller leaves the field out."""
    if field in LEFT_OUT:
        return f", or leave it out {LEFT_OUT[field]}"
    default = info.default if info else None
    # An empty default is "all of them" or "none": its words would say nothing.
    return f", or leave it out for {default}" if default not in (None, (), "") else ""


def _limit(item: Any, limits: str) -> str:
    """The limit in words, both ends, and what was sent."""
    expected = item.get("ctx", {}).get("expected")
    words = f"must be {limits or expected}" if limits or expected else plain(str(item["msg"]))
    sent = item["input"]
    if isinstance(sent, str):
        return f"{words}, got {sent[:MAX_SHOWN]!r}"
    shown = f"{sent:g}" if isinstance(sent, float) else sent
    return f"{words}, got {shown}" if isinstance(sent, (int, float)) else words
