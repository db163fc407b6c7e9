"""Stage 2: a positive and a toxic answer to each instruction, under refined constraints.

The model answers twice: kindly, under a positive constraint and behind a closed refusal, and
contemptuously, under a toxic constraint with demonstrations. A pair is kept when every judge
finds the two sides far enough apart. Twins get plainly helpful answers; benign anchors get the
model's own (PT-ALIGN, arXiv 2502.08657, section 3).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ptalign.answering.run import PairRun, Records
from ptalign.config import PairConfig
from ptalign.engines.base import Engine, open_stream
from ptalign.errors import InvalidInput
from ptalign.judges.base import Judge
from ptalign.nouns import (
    MAX_ANNOTATIONS,
    Annotation,
    InstructionSet,
    ModelSpec,
    PairSet,
    Policy,
    Spent,
)
from ptalign.progress import OnProgress, ignore
from ptalign.records import MemoryLog, RecordLog
from ptalign.spending import Spending
from ptalign.text.embed import Embedder, default_embedder


def synthesize_pairs(
    instructions: InstructionSet,
    annotations: Sequence[Annotation],
    *,
    policy: Policy,
    engine: Engine,
    model: ModelSpec,
    judges: Sequence[Judge],
    config: PairConfig | None = None,
    parent: PairSet | None = None,
    rejected: Collection[str] = (),
    on_progress: OnProgress = ignore,
    log: RecordLog[Records] | None = None,
    costs: RecordLog[Spent] | None = None,
    embed: Embedder | None = None,
) -> PairSet:
    """Makes one pair per instruction, and the anchors.

    Args:
        instructions: Harmful ones get pairs, or positives only where the topic allows no toxic
            side; twins get helpful answers.
        annotations: Fewer than 50 human marks: they seed constraints and demonstrations, and one
            whose instruction is in the set becomes that instruction's pair. One that confirms the
            parent's pair leaves it as it was; one without a bad answer keeps the parent's toxic
            one, else the model writes one where the topic allows it. Text on the
            never-synthesize list and bad answers of topics without a toxic side are not used.
        policy: The policy of the instructions.
        engine: Writes the answers.
        model: The catalogue entry the engine serves.
        judges: Harm judges that filter; an evaluation must use others.
        config: Settings; the defaults when None.
        parent: An earlier set to refine, made or imported: its pairs on the same instructions
            (by id and text, else by text) are kept unless an annotation replaces them, their toxic
            side is not allowed, their positive is on the list, their polarity is below
            ``config.min_polarity`` or, where nobody has measured it, the judges find their sides
            swapped (counted as ``parent_not_apart`` and ``parent_swapped``). Its best toxic answers
            demonstrate, its constraints are the start but for those on the list. Its anchors stay,
            and only those that lack of ``config.anchors`` are written.
            ``stats["parent_left_out"]`` counts its pairs that fit no instruction or are not
            allowed, and its anchors that are not allowed or close to an instruction.
        rejected: Ids of the parent's pairs that a person called wrong. They are not kept and do
            not demonstrate, their instructions are asked anew, and a draft in the same words is
            rejected. Counted as ``called_wrong``; ids that the parent lacks change nothing.
        on_progress: Told after each accepted record and each ten rejected drafts.
        log: Accepted pairs and anchors, and the rules that the model wrote; a log that has some is
            continued.
        costs: What drafts cost, of every attempt that shares these logs.
        embed: Sentence embedder; MiniLM for English, hashed n-grams elsewhere. How near an answer
            must be to its request is known of MiniLM alone (`ptalign.text.embed.RELEVANCE`).

    Returns:
        The set, in the order of the instructions. `shortfall` and `rejected` say what is missing.
        ``stats["not_apart.<topic>"]`` counts the toxic drafts of a topic none of whose drafts the
        judges found far enough from its positive: it may not be about what they measure. Numbers of
        cost (``tokens_generated``, ``tokens_per_pair``, ``seconds``, drafts, ``rejected``) are of
        this call and of what `costs` brought: a parent's pairs have cost nothing here, and where
        no other was written, there is no ``tokens_per_pair``.

    Raises:
        InvalidInput: Too many annotations, no instructions, or no judge for a toxic side.
        EngineFailed: The engine can take no work.
        Cancelled: The engine or `on_progress` said stop; accepted records are in the log.
    """
    _check(instructions, annotations, judges)
    spent = Spending(MemoryLog() if costs is None else costs)
    run = PairRun(
        instructions,
        annotations,
        policy=policy,
        model=model,
        judges=judges,
        config=config or PairConfig(),
        parent=parent,
        rejected=rejected,
        embed=embed or default_embedder(policy.locale),
        on_progress=on_progress,
        log=MemoryLog() if log is None else log,
        spent=spent,
    )
    with spent.kept():
        run.resume()
        run.plan()
        while run.wants_more():
            with open_stream(engine, run.requests()) as completions:
                for completion in completions:
                    run.receive(completion)
    return run.result()


def _check(
    instructions: InstructionSet, annotations: Sequence[Annotation], judges: Sequence[Judge]
) -> None:
    if len(annotations) > MAX_ANNOTATIONS:
        raise InvalidInput(
            "annotations",
            f"fewer than 50 items, got {len(annotations)}",
            "Keep the most telling ones.",
        )
    if not instructions.records:
        raise InvalidInput(
            "instructions", "at least one instruction", "Generate or import a set first."
        )
    if any(r.sides == "both" for r in instructions.records) and not judges:
        raise InvalidInput(
            "judges", "at least one harm judge for a toxic side", "Name one, e.g. tone-head@1."
        )
