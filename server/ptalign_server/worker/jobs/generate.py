"""GenerateInstructions -> InstructionSet."""

from __future__ import annotations

from ptalign.nouns import Instruction, InstructionSet, Policy
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_server import configs, messages
from ptalign_server.worker.job import Job, Made
from ptalign_server.worker.lineage import lineage


def validate(job: Job) -> None:
    """Reads the parent, whose digest must hold."""
    if job.request.parent:
        job.load(job.request.parent, InstructionSet)


def make(job: Job) -> Made:
    """Runs the stage."""
    from ptalign.instructions import generate_instructions

    request = job.request
    policy = _policy(job)
    config = configs.instruction_config(request, policy.locale)
    log = job.log(Instruction)
    parent = job.load(request.parent, InstructionSet) if request.parent else None
    model = job.keep_model(request.model)
    with job.engine(model) as engine:
        made = generate_instructions(
            policy,
            request.count,
            engine=engine,
            model=model,
            config=config,
            seeds=tuple(request.seeds),
            excerpts=tuple(request.excerpts),
            parent=parent,
            on_progress=job.reporter,
            log=log,
            costs=job.costs(),
        )
    return _made(job, made, partial=False)


def partial(job: Job) -> Made | None:
    """What was accepted before the stop."""
    from ptalign.asking.stats import cost_stats
    from ptalign.spending import rejections, spent_so_far

    records = tuple(job.log(Instruction).read())
    if not records:
        return None
    _policy(job)
    spent = spent_so_far(job.costs())
    noun = InstructionSet(
        records=records,
        requested=job.request.count + _given(job),
        rejected=rejections(spent.counts),
        stats=cost_stats(spent.counts, spent.seconds),
    )
    return _made(job, noun, partial=True)


def _given(job: Job) -> int:
    """What the parent holds, whose records come first; its row says it when its text is purged."""
    if not job.request.parent:
        return 0
    return res.InstructionSet.FromString(job.resource(job.request.parent).body).harmful


def _before(job: Job) -> int:
    """Harmful requests of the whole set that this call extends, which it did not have to accept.

    Stopped sets between the two are its own: they are the same request, made in several calls.
    """
    whole = (made for made in lineage(job, job.request.parent) if not made.partial)
    found = next(whole, None)
    return res.InstructionSet.FromString(found.body).harmful if found else 0


def shortage(accepted: int, asked: int, floor: float) -> str:
    """Why a set is below the floor; empty when it is not."""
    if accepted >= floor * asked:
        return ""
    return (
        f"accepted {accepted} of {asked}, below the operator's floor of {floor:.0%}. The set so "
        "far is kept as partial. Widen the policy's topics, lower the count, or extend the set."
    )


def _policy(job: Job) -> Policy:
    """The policy that the operation first used, in whatever attempt: one set has one policy.

    It is sealed beside the log, or an operator's file that is changed meanwhile would give the
    records so far another policy, and one that is broken meanwhile would lose them.

    Raises:
        InvalidInput: No attempt has used one yet, and it cannot be used now.
    """
    if job.policies:
        return job.policies[-1]
    sets, made = job.room.store.sets, job.operation.id
    if (sets.folder(made) / "policy").exists():
        return job.policy_of(job.name)
    request, catalogue = job.request, job.room.catalogue
    if request.WhichOneof("policy_choice") == "policy_spec":
        policy = catalogue.policies.inline(request.policy_spec)
    else:
        policy = catalogue.policies.find(request.policy)
    sets.keep_policy(made, policy)
    return job.keep_policy(policy)


def _made(job: Job, noun: InstructionSet, *, partial: bool) -> Made:
    request = job.request
    policy = job.policies[-1]
    left_out = request.count + _given(job) - noun.requested  # what the policy's list forbids
    before = 0 if partial else max(0, _before(job) - left_out)
    floor = job.room.settings.limits.floor
    missing = shortage(len(noun.harmful) - before, noun.requested - before, floor)
    return Made(
        noun=noun,
        message=messages.instruction_set(noun),
        config=configs.instruction_config(request, policy.locale),
        parents=(job.parent(request.parent),) if request.parent else (),
        partial=partial,
        model=request.model,
        shortage="" if partial else missing,
    )
