"""Stage 1: the model writes safety-relevant instructions over the policy's topics.

Drafts stream: a draft that comes back is judged at once and the next request is chosen from
what is still owed, so the engine never waits at a barrier. Each accepted harmful instruction is
followed by a request for its benign twin.
"""

from __future__ import annotations

from collections.abc import Sequence

from ptalign.asking.run import DraftRun
from ptalign.config import InstructionConfig
from ptalign.engines.base import Engine, open_stream
from ptalign.errors import InvalidInput
from ptalign.nouns import MAX_INSTRUCTIONS, Instruction, InstructionSet, ModelSpec, Policy, Spent
from ptalign.policies.never import permitted
from ptalign.progress import OnProgress, Progress, ignore
from ptalign.records import MemoryLog, RecordLog
from ptalign.spending import Spending
from ptalign.text.embed import Embedder
from ptalign.text.locales import language


def generate_instructions(
    policy: Policy,
    count: int,
    *,
    engine: Engine,
    model: ModelSpec,
    config: InstructionConfig | None = None,
    seeds: Sequence[str] = (),
    excerpts: Sequence[str] = (),
    parent: InstructionSet | None = None,
    on_progress: OnProgress = ignore,
    log: RecordLog[Instruction] | None = None,
    costs: RecordLog[Spent] | None = None,
    embed: Embedder | None = None,
) -> InstructionSet:
    """Makes `count` harmful instructions over the policy's topics, each with a benign twin.

    Args:
        policy: Topics, examples, tactics and lists.
        count: How many harmful instructions to accept, on top of those kept from the parent.
        engine: Writes the drafts.
        model: The catalogue entry of the model that the engine serves.
        config: Settings; the defaults when None.
        seeds: The operator's own instructions: accepted first, after the same checks.
        excerpts: Pieces of chat logs; they are redacted first. Those that are requests are
            clustered, and one of each cluster goes through the same checks as seeds.
        parent: An earlier set to extend: its records come first, and nothing repeats them. Records
            on the never-synthesize list are left out with their twins, and counted as
            ``parent_never_synthesize``.
        on_progress: Called after each accepted record and after every ten rejected drafts.
        log: Accepted records. If it already holds some, the run continues after them.
        costs: What the drafts cost, in all attempts that share these logs. The set's ``drafts``,
            ``yield``, ``tokens_generated``, ``seconds`` and rejected drafts cover all of them.
        embed: Sentence embedder; by default MiniLM for English, hashed n-grams for other languages.

    Returns:
        The set. It may be short of `count`: `shortfall` says by how much, `rejected` why.

    Raises:
        InvalidInput: A count, topic or locale outside its limits.
        EngineFailed: The engine cannot take work.
        Cancelled: From the engine or `on_progress`; accepted records are in the log.
    """
    config = config or InstructionConfig()
    _check(policy, count, model, config)
    log = MemoryLog() if log is None else log
    spent = Spending(MemoryLog() if costs is None else costs)
    given = _permitted(parent, policy, spent, on_progress) if parent else None
    run = DraftRun(policy, count, config, on_progress, log, spent, embed, given)
    with spent.kept():
        run.resume()
        run.plant(seeds, excerpts)
        while run.wants_more():
            with open_stream(engine, run.requests()) as completions:
                for completion in completions:
                    run.receive(completion)
                    if run.finished():
                        break
    return run.result()


def _permitted(
    parent: InstructionSet, policy: Policy, spent: Spending, on_progress: OnProgress
) -> InstructionSet:
    """The parent without what this policy's list forbids: it was made under its own."""

    def read(done: int, total: int) -> None:
        on_progress(Progress("reading the set", done, total))

    fit = permitted(parent, policy, read).records
    gone = {r.id for r in parent.records} - {r.id for r in fit}
    kept = tuple(r for r in fit if r.twin_of not in gone)
    for _ in range(len(parent.records) - len(kept)):
        spent.leave_out("parent_never_synthesize")
    return parent.model_copy(update={"records": kept})


def _check(policy: Policy, count: int, model: ModelSpec, config: InstructionConfig) -> None:
    if not 1 <= count <= MAX_INSTRUCTIONS:
        raise InvalidInput(
            "count",
            f"1 to {MAX_INSTRUCTIONS}, got {count}",
            "Ask for fewer, then extend the set.",
        )
    written = language(policy.locale)
    if language(config.locale) != written:
        raise InvalidInput(
            "locale",
            f"policy {policy.name} is written in {policy.locale}",
            f"Set it to {written}.",
        )
    if written not in map(language, model.locales):
        raise InvalidInput(
            "locale",
            f"model {model.name} declares {', '.join(model.locales)}",
            "Choose a policy in one of those, or add the locale to the model's catalogue entry.",
        )
