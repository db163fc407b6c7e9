"""SynthesizePairs -> PairSet."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from ptalign.errors import InvalidInput
from ptalign.judges import GENERATION_JUDGES
from ptalign.nouns import (
    MAX_ANNOTATIONS,
    Anchor,
    Annotation,
    Constraint,
    InstructionSet,
    Pair,
    PairSet,
)
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server import configs, messages
from ptalign_server.errors import NotFound, SetPurged
from ptalign_server.gateway.weights import same_weights
from ptalign_server.lineage import parents
from ptalign_server.marks import mark_id, refuse_blocked
from ptalign_server.store.sets import AnnotationSet
from ptalign_server.worker.job import Job, Made
from ptalign_server.worker.jobs.generate import shortage
from ptalign_server.worker.judges import pair_judges
from ptalign_server.worker.marks import called_with

T = TypeVar("T")
LOGGED = (Pair, Anchor, Constraint)


def validate(job: Job) -> None:
    """Reads the inputs, whose digests must hold."""
    job.load(job.request.instruction_set, InstructionSet)
    parent = _parent(job)
    items = called_with(job, job.request)
    if items and not job.request.annotation_set:  # a set was checked when it was made
        refuse_blocked("annotations.items", items, job.policy_of(job.request.instruction_set))
    _check_limit(job.request, _marks_behind(items, parent, called_wrong(job, parent)), parent)


def make(job: Job) -> Made:
    """Runs the stage."""
    from ptalign.pairs import synthesize_pairs

    request = job.request
    policy = job.policy_of(request.instruction_set)
    model = job.keep_model(request.model)
    annotations, parent = called_with(job, request), _parent(job)
    wrong = called_wrong(job, parent)
    with job.engine(model) as engine:
        made = synthesize_pairs(
            job.load(request.instruction_set, InstructionSet),
            annotations,
            policy=policy,
            engine=engine,
            model=model,
            judges=pair_judges(annotations),
            config=configs.pair_config(request),
            parent=parent,
            rejected=wrong,
            on_progress=job.reporter,
            log=job.log(*LOGGED),
            costs=job.costs(),
        )
    return _made(job, _with_marks(made, annotations, parent, wrong))


def partial(job: Job) -> Made | None:
    """What was accepted before the stop.

    A set whose text is gone since the run read it is passed over: its marks are not counted.
    """
    from ptalign.answering.constraints import refined_so_far
    from ptalign.answering.stats import cost_stats, last_round
    from ptalign.spending import rejections, spent_so_far

    records = list(job.log(*LOGGED).read())
    pairs = tuple(r for r in records if isinstance(r, Pair))
    anchors = tuple(r for r in records if isinstance(r, Anchor))
    if not pairs and not anchors:
        return None
    rules = [r for r in records if isinstance(r, Constraint)]
    policy = job.policy_of(job.request.instruction_set)
    parent = _if_there(lambda: _parent(job))
    before = {pair.id: pair for pair in parent.pairs} if parent else {}
    wanted = job.load(job.request.instruction_set, InstructionSet)
    spent = spent_so_far(job.costs())
    noun = PairSet(
        pairs=pairs,
        anchors=anchors,
        rounds=last_round(pairs, before),
        constraints=refined_so_far(rules, pairs, policy, parent),
        requested=len(wanted.harmful),
        partial=True,
        judge_ids=GENERATION_JUDGES,
        rejected=rejections(spent.counts),
        stats=cost_stats(spent.counts, spent.seconds),
    )
    marks = _if_there(lambda: called_with(job, job.request)) or ()
    wrong = _if_there(lambda: called_wrong(job, parent)) or ()
    return _made(job, _with_marks(noun, marks, parent, wrong))


def _if_there(read: Callable[[], T]) -> T | None:
    """What is read of a set; nothing where its text was purged, or it is not there."""
    try:
        return read()
    except (NotFound, SetPurged):
        return None


def _parent(job: Job) -> PairSet | None:
    """The set to refine; without its anchors where other weights than the model's answered them.

    An anchor is what the model itself says (ADR 0009).
    """
    name = job.request.parent
    if not name:
        return None
    parent, model = job.load(name, PairSet), job.model(job.request.model)
    if model.weights_digest and not same_weights(job.resource(name), model):
        return parent.model_copy(update={"anchors": ()})
    return parent


def called_wrong(job: Job, parent: PairSet | None) -> tuple[str, ...]:
    """Ids of the parent's pairs that an annotator called wrong.

    It was said of the answers in the set that was annotated. Where the parent is another one, only
    pairs with those answers count: a set refined since has better ones under the same ids.
    """
    name = job.request.annotation_set
    ids = job.load(name, AnnotationSet).rejected if name and parent else ()
    if not ids or parent is None:
        return ()
    judged = parents(job.resource(name))[0]
    try:
        seen = parent if judged == job.request.parent else job.load(judged, PairSet)
    except (NotFound, SetPurged):
        return ids
    answers = {p.id: (p.positive, p.toxic) for p in seen.pairs if p.id in ids}
    return tuple(p.id for p in parent.pairs if answers.get(p.id) == (p.positive, p.toxic))


def _with_marks(
    noun: PairSet,
    annotations: Sequence[Annotation],
    parent: PairSet | None,
    wrong: Collection[str],
) -> PairSet:
    """The set with the marks behind it: the call's, and those that its parent was made with."""
    ids = _marks_behind(annotations, parent, wrong)
    # A parent of an earlier version knows only how many there were: the page hands them over again.
    before = parent.annotations_used if parent and not parent.annotation_ids else 0
    used = max(len(ids), before)
    return noun.model_copy(update={"annotation_ids": tuple(sorted(ids)), "annotations_used": used})


def _marks_behind(
    annotations: Sequence[Annotation], parent: PairSet | None, wrong: Collection[str]
) -> set[str]:
    marked = [item.instruction for item in annotations]
    marked += [pair.instruction for pair in parent.pairs if pair.id in wrong] if parent else []
    return {mark_id(text) for text in marked} | set(parent.annotation_ids if parent else ())


def _check_limit(
    request: pb.SynthesizePairsRequest, ids: Collection[str], parent: PairSet | None
) -> None:
    """Refuses marks beyond the limit; a parent that is beyond it can be refined without more."""
    known = len(parent.annotation_ids) if parent else 0
    if len(ids) <= max(MAX_ANNOTATIONS, known):
        return
    raise InvalidInput(
        "annotation_set" if request.annotation_set else "annotations",
        f"brings the annotations to {len(ids)}, with the {known} that {request.parent} was made "
        f"with; at most {MAX_ANNOTATIONS} are used per policy and model",
        f"Mark {max(0, MAX_ANNOTATIONS - known)} other instructions at most, or leave parent out.",
    )


def _made(job: Job, noun: PairSet) -> Made:
    request = job.request
    names = (request.instruction_set, request.annotation_set, request.parent)
    accepted = sum(p.kind != "twin" for p in noun.pairs)
    missing = shortage(accepted, noun.requested, job.room.settings.limits.floor)
    return Made(
        noun=noun,
        message=messages.pair_set(noun),
        config=configs.pair_config(request),
        parents=tuple(job.parent(name) for name in names if name),
        judges=noun.judge_ids,
        partial=noun.partial,
        model=request.model,
        shortage="" if noun.partial else missing,
    )
