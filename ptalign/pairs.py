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
        instructions: Harmful ones get a pair, or only a positive where the topic allows no toxic
            side; twins get helpful answers.
        annotations: Fewer than 50 human marks. They serve as demonstrations, and one whose
            instruction is in the set becomes that instruction's pair. If it says what the parent's
            pair says, that pair stays as it was. If it has no bad answer, the parent's toxic one
            stays, or else the model writes one where the topic allows it. Text on the
            never-synthesize list and bad answers of topics without a toxic side are not used.
        policy: The policy of the instructions.
        engine: Writes the answers.
        model: The catalogue entry of the model that the engine serves.
        judges: Harm judges that filter the pairs; an evaluation must use others.
        config: Settings; the defaults when None.
        parent: An earlier set to refine, made or imported. Its pairs on the same instructions
            (matched by id and text, else by text) are kept. Exceptions: an annotation replaces the
            pair; its toxic side is not allowed; its positive is on the never-synthesize list; its
            polarity is below ``config.min_polarity`` (counted as ``parent_not_apart``); or its
            polarity was never measured and the judges find its sides swapped
            (``parent_swapped``). The parent's best toxic answers become demonstrations, and its
            constraints the starting point, except those on the list. Its anchors stay, and only
            those missing from ``config.anchors`` are
            written. ``stats["parent_left_out"]`` counts its pairs that fit no instruction or are
            not allowed, and its anchors that are not allowed or close to an instruction.
        rejected: Ids of the parent's pairs that a person called wrong. They are neither kept nor
            used as demonstrations, their instructions are asked anew, and a draft in the same words
            is rejected. Counted as ``called_wrong``; ids that the parent does not have are ignored.
        on_progress: Called after each accepted record and after every ten rejected drafts.
        log: Accepted pairs and anchors, and the constraints that the model wrote. If it already
            holds some, the run continues after them.
        costs: What the drafts cost, in all attempts that share these logs.
        embed: Sentence embedder; by default MiniLM for English, hashed n-grams for other languages.
            How near an answer must be to its request is known for MiniLM only
            (`ptalign.text.embed.RELEVANCE`).

    Returns:
        The set, in the order of the instructions. `shortfall` and `rejected` say what is missing.
        If a topic has no toxic answer, ``stats["not_apart.<topic>"]`` counts its toxic drafts that
        the judges found too close to the positive: the topic may not be about what they measure.
        Costs (``tokens_generated``, ``tokens_per_pair``, ``seconds``, drafts, ``rejected``) are
        those of this call and of the attempts in `costs`. A parent's pairs cost nothing; if no
        others were written, there is no ``tokens_per_pair``.

    Raises:
        InvalidInput: Too many annotations, no instructions, or no judge for the toxic answers.
        EngineFailed: The engine cannot take work.
        Cancelled: From the engine or `on_progress`; accepted records are in the log.
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
