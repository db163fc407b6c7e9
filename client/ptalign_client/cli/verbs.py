"""`ptalign generate`, `synthesize`, `align` and `evaluate`: one stage each."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

from ptalign_client.cli import show
from ptalign_client.cli.annotations import read_annotations
from ptalign_client.cli.follow import follow
from ptalign_client.cli.session import Session, command
from ptalign_client.errors import ConfigError
from ptalign_client.nouns import (
    Annotation,
    AnnotationSet,
    Budget,
    Candidates,
    Evaluation,
    Lora,
    Method,
    Progress,
    Scorer,
    Target,
)
from ptalign_client.sync import Operation

WAIT = "Waiting"

Model = Annotated[str, typer.Option("--model", "-m", help="A name of `ptalign catalogue`.")]
Seed = Annotated[int, typer.Option(help="Seed of the stage.")]
WritingSeed = Annotated[
    int, typer.Option(help="Seed of what is asked in which order; what the model writes has none.")
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Validate and estimate; start nothing.", rich_help_panel=WAIT),
]
Detach = Annotated[
    bool,
    typer.Option(
        "--detach", "-d", help="Print the operation's name and return.", rich_help_panel=WAIT
    ),
]
CancelOnInterrupt = Annotated[
    bool,
    typer.Option("--cancel-on-interrupt", help="Ctrl-C cancels at once.", rich_help_panel=WAIT),
]
RequirePass = Annotated[
    bool, typer.Option("--require-pass", help="Exit with 5 unless the verdict is PASS.")
]
RequestId = Annotated[
    str,
    typer.Option(
        help="A UUID of your own: the same call with the same id starts nothing twice.",
        rich_help_panel=WAIT,
        show_default=False,
    ),
]


def generate(
    session: Session,
    model: Model,
    policy: Annotated[str, typer.Option("--policy", "-p", help="A name of `ptalign catalogue`.")],
    count: Annotated[int, typer.Option("--count", "-n", help="Accepted instructions wanted.")],
    twins: Annotated[bool, typer.Option(help="A benign twin for each.")] = True,
    topic: Annotated[list[str] | None, typer.Option(help="Only this topic id; repeat.")] = None,
    seeds: Annotated[
        Path | None, typer.Option(help="Text file: one instruction of your own a line.")
    ] = None,
    excerpts: Annotated[
        Path | None,
        typer.Option(
            help="Text file: one request from a chat a line, up to 60 words (150 characters of "
            "Japanese), not the reply; redacted by the server."
        ),
    ] = None,
    locale: Annotated[str, typer.Option(help="BCP 47; the policy's unless set.")] = "",
    parent: Annotated[str, typer.Option(help="Extend this set: --count more beside its own.")] = "",
    seed: WritingSeed = 0,
    dry_run: DryRun = False,
    detach: Detach = False,
    cancel_on_interrupt: CancelOnInterrupt = False,
    request_id: RequestId = "",
) -> None:
    """Let the model write safety-relevant instructions over a policy's topics.

    [bold]Examples[/]

      ptalign generate -m smollm2-135m-instruct -p tone-en -n 48

      ptalign generate -m my-model -p tone-en -n 500 --seeds ours.txt --detach
    """
    running = session.client.generate_instructions(
        model=model,
        policy=policy,
        count=count,
        twins=twins,
        topics=topic or (),
        seeds=_lines("--seeds", seeds),
        excerpts=_lines("--excerpts", excerpts),
        locale=locale,
        parent=parent,
        seed=seed,
        dry_run=dry_run,
        request_id=request_id,
    )
    finish(session, running, "instructions", dry_run, detach, cancel_on_interrupt)


def synthesize(
    session: Session,
    instruction_set: Annotated[str, typer.Argument(help="instructionSets/ID")],
    model: Model,
    annotations: Annotated[
        str, typer.Option("--annotations", "-a", help="annotationSets/ID, or a YAML or JSONL file.")
    ] = "",
    rounds: Annotated[int | None, typer.Option(help="1..8; 2 unless set.")] = None,
    min_polarity: Annotated[
        float | None, typer.Option(help="judge(toxic) - judge(positive): 0..1; 0.6 unless set.")
    ] = None,
    anchors: Annotated[int | None, typer.Option(help="Benign anchors; 40 unless set.")] = None,
    parent: Annotated[str, typer.Option(help="Refine this pair set.")] = "",
    seed: WritingSeed = 0,
    dry_run: DryRun = False,
    detach: Detach = False,
    cancel_on_interrupt: CancelOnInterrupt = False,
    request_id: RequestId = "",
) -> None:
    """Let the model answer each instruction twice, well and badly.

    [bold]Examples[/]

      ptalign synthesize instructionSets/ID -m smollm2-135m-instruct -a marks.yaml
    """
    running = session.client.synthesize_pairs(
        model=model,
        instruction_set=instruction_set,
        annotations=_marks(session, annotations, model, dry_run, request_id),
        rounds=rounds,
        min_polarity=min_polarity,
        anchors=anchors,
        parent=parent,
        seed=seed,
        dry_run=dry_run,
        request_id=request_id,
    )
    finish(session, running, "pairs", dry_run, detach, cancel_on_interrupt)


def align(
    session: Session,
    pair_set: Annotated[str, typer.Argument(help="pairSets/ID")],
    model: Model,
    method: Annotated[
        Method, typer.Option(metavar="METHOD", help="One of: pt_align, ut_uniform, mle, dpo, npo.")
    ] = "pt_align",
    steps: Annotated[
        int | None,
        typer.Option(help="Training steps; four passes over the pairs, 28 to 200, unless set."),
    ] = None,
    pairs_per_step: Annotated[int | None, typer.Option(help="8 unless set.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="5e-4 unless set.")] = None,
    max_benign_kl: Annotated[
        float | None, typer.Option(help="Nats per token; 0.25 unless set.")
    ] = None,
    max_twin_refusals: Annotated[
        float | None, typer.Option(help="Share of held-out twins refused; 0.25 unless set.")
    ] = None,
    without_anchors: Annotated[
        bool,
        typer.Option("--without-anchors", help="Train without anchors, on a set that has none."),
    ] = False,
    twin_weight: Annotated[
        float | None,
        typer.Option(
            help="2 unless set, up to 8. More refuses fewer legitimate requests, and declines "
            "fewer harmful ones."
        ),
    ] = None,
    ut_weight: Annotated[float | None, typer.Option(help="lambda; automatic unless set.")] = None,
    weighting: Annotated[
        Scorer,
        typer.Option(
            metavar="SCORER",
            help="Which toxic tokens count: blend, contrast, log_odds, judge, uniform.",
        ),
    ] = "blend",
    flagged_share: Annotated[
        float | None, typer.Option(help="Share of toxic tokens, .05 to .25; 0.2 unless set.")
    ] = None,
    candidates: Annotated[
        Candidates,
        typer.Option(
            help="written: push down flagged words where they stand in bad answers. set: also "
            "the whole set's at every place."
        ),
    ] = "set",
    protect: Annotated[
        list[str] | None, typer.Option(help="A word that is never suppressed; repeat.")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="LoRA rank; 16 unless set.")] = None,
    parent: Annotated[
        str, typer.Option(help="Train on from this adapter, in its shape: without --rank.")
    ] = "",
    guards: Annotated[
        Literal["abort", "record"], typer.Option(help="What an exceeded budget does.")
    ] = "abort",
    resume_from: Annotated[
        str,
        typer.Option(
            help="A cancelled or failed Align operation with the same inputs; --guards may differ."
        ),
    ] = "",
    seed: Seed = 0,
    dry_run: DryRun = False,
    detach: Detach = False,
    cancel_on_interrupt: CancelOnInterrupt = False,
    request_id: RequestId = "",
) -> None:
    """Train an adapter: MLE on the good answers, fine-grained unlikelihood on the bad ones.

    [bold]Examples[/]

      ptalign align pairSets/ID -m smollm2-135m-instruct

      ptalign align pairSets/ID -m smollm2-135m-instruct --method mle --steps 12
    """
    running = session.client.align(
        model=model,
        pair_set=pair_set,
        method=method,
        parent_adapter=parent,
        ut_weight=ut_weight,
        token_weighting=weighting,
        flagged_share=flagged_share,
        ut_candidates=candidates,
        protected_words=protect or (),
        lora=None if rank is None else Lora(rank=chosen("--rank", rank, 256)),
        budget=Budget(
            steps=chosen("--steps", steps, 10_000),
            pairs_per_step=chosen("--pairs-per-step", pairs_per_step, 512),
            learning_rate=learning_rate,
            max_benign_kl=max_benign_kl,
            max_twin_refusals=max_twin_refusals,
            without_anchors=without_anchors,
            twin_weight=twin_weight,
        ),
        guards=guards,
        seed=seed,
        resume_from=resume_from,
        dry_run=dry_run,
        request_id=request_id,
    )
    finish(session, running, f"align {method}", dry_run, detach, cancel_on_interrupt)


def evaluate(
    session: Session,
    adapter: Annotated[str, typer.Argument(help="adapters/ID")],
    model: Model,
    also: Annotated[
        list[str] | None, typer.Option(help="adapters/ID shown beside; repeat.")
    ] = None,
    suite: Annotated[list[str] | None, typer.Option(help="Only this suite; repeat.")] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(help="In place of the default judge of its axis; repeat for several."),
    ] = None,
    gate: Annotated[
        str, typer.Option(help="A name of `ptalign catalogue`; default unless set.")
    ] = "",
    samples: Annotated[
        int | None,
        typer.Option(
            help="Prompts per suite at most; 60 on the CPU profile, 200 on the GPU one, unless set."
        ),
    ] = None,
    pair_set: Annotated[
        str,
        typer.Option(
            help="A further set to keep out, besides the adapters' own. Benign KL is measured on "
            "it where the adapter's own was purged: without, no PASS."
        ),
    ] = "",
    held_out: Annotated[
        str,
        typer.Option(
            help="instructionSets/ID to ask too: requests that nothing was trained on. With "
            "--suite, name a held-out suite too."
        ),
    ] = "",
    require_pass: RequirePass = False,
    seed: Seed = 0,
    dry_run: DryRun = False,
    detach: Detach = False,
    cancel_on_interrupt: CancelOnInterrupt = False,
    request_id: RequestId = "",
) -> None:
    """Measure harm, over-refusal and usefulness, before and after.

    [bold]Examples[/]

      ptalign evaluate adapters/ID -m smollm2-135m-instruct --samples 60

      ptalign evaluate adapters/ID -m my-model --also adapters/MLE --require-pass
    """
    if require_pass and (detach or dry_run):  # 0 would read as PASS
        flag = "--dry-run" if dry_run else "--detach"
        hint = "Leave one out; `ptalign ops wait ID --require-pass` sees the verdict later."
        raise ConfigError(f"--require-pass needs a verdict, and {flag} waits for none", hint)
    running = session.client.evaluate(
        target=Target(model=model, adapter=adapter),
        also=[Target(model=model, adapter=name) for name in also or ()],
        suites=suite or (),
        judges=judge or (),
        gate=gate or None,
        samples=chosen("--samples", samples, 100_000),
        pair_set=pair_set,
        held_out=held_out,
        seed=seed,
        dry_run=dry_run,
        request_id=request_id,
    )
    made = finish(session, running, "evaluate", dry_run, detach, cancel_on_interrupt)
    if require_pass:
        demand_pass(made)


def demand_pass(made: Any) -> None:
    """Ends the command with 5 where what was made has no verdict PASS."""
    if not isinstance(made, Evaluation) or made.verdict != "pass":
        raise typer.Exit(5)


def chosen(flag: str, value: int | None, high: int) -> int:
    """The number for the wire, where 0 is the server's default; the server checks `high`.

    Raises:
        ConfigError: The person wrote 0 or less, and means something else by it.
    """
    if value is not None and value < 1:
        hint = "Leave the flag out for the server's default."
        raise ConfigError(f"{flag} must be 1..{high}, got {value}", hint)
    return value or 0


def finish(
    session: Session,
    running: Operation[Any],
    label: str,
    dry_run: bool,
    detach: bool,
    cancel_on_interrupt: bool,
) -> Any:
    """Says what a dry run found, or the name, or follows to the end and shows the result."""
    if dry_run:
        show_estimate(session, running.progress())
        return None
    if detach:
        return show_started(session, running)
    session.note(f"[dim]started {running.name}[/]")
    made = follow(session, running, label, cancel_on_interrupt=cancel_on_interrupt)
    show_made(session, made)
    return made


def show_estimate(session: Session, progress: Progress) -> None:
    """What the work would cost."""
    if session.as_json:
        session.emit({"estimate": progress.estimate})
    elif (estimate := progress.estimate) is None:
        session.out.print("The request is valid; the server gives no estimate.")
    else:
        session.out.print(
            f"The request is valid. It would take about {show.duration(estimate.seconds)}, "
            f"{show.size(estimate.memory_bytes)} of memory and "
            f"{show.size(estimate.disk_bytes)} of disk."
        )
        if estimate.basis:
            session.out.print(f"[dim]{escape(estimate.basis)}[/]")


def show_started(session: Session, running: Operation[Any]) -> None:
    """The name to attach with."""
    if session.as_json:
        session.emit({"operation": running.name})
    else:
        session.out.print(running.name)
        session.note(f"[dim]ptalign ops watch {running.name}[/]")


def show_made(session: Session, made: Any) -> None:
    """What an operation made."""
    if session.as_json:
        session.emit(made)
    elif made is None:
        session.out.print("The operation ended without a resource.")
    elif isinstance(made, Evaluation):
        session.out.print(f"[cyan]{made.name}[/]")
        session.out.print(show.rates({"base": made.baseline, "aligned": made.aligned}))
        if made.aligned_corrected:
            session.out.print("without the judges' known errors (the verdict goes by the above):")
            both = {"base": made.baseline_corrected, "aligned": made.aligned_corrected}
            session.out.print(show.rates(both))
        session.out.print("verdict:", show.verdict(made))
        # its topics, examples and the adapters shown beside stand there alone
        session.out.print(f"report:  ptalign download {made.name} report.html", soft_wrap=True)
    else:
        session.out.print(f"[cyan]{made.name}[/]  {escape(show.summary(made))}")


def _marks(
    session: Session, annotations: str, model: str, dry_run: bool, request_id: str
) -> str | AnnotationSet | Sequence[Annotation]:
    """The marks as the call takes them; a file that says what they cost becomes a set, to keep it.

    Raises:
        ConfigError: The file cannot be used, or names no policy to keep its set under.
    """
    if not Path(annotations).suffix:
        return annotations
    marks = read_annotations(Path(annotations))
    if dry_run or not marks.annotator_minutes:
        return marks.items
    if not marks.policy:
        hint = "Add policy: NAME, under which its minutes are kept, or leave annotator_minutes out."
        raise ConfigError(f"{annotations} names no policy", hint)
    made = session.client.annotate(
        marks.items,
        model=model,
        policy=marks.policy,
        annotator_minutes=marks.annotator_minutes,
        # Of the caller's id, so that the same call names the same set.
        request_id=request_id and str(uuid.uuid5(uuid.NAMESPACE_OID, request_id)),
    )
    session.note(f"[dim]the marks are {made.name}[/]")
    return made


def _lines(flag: str, file: Path | None) -> Sequence[str]:
    if file is None:
        return ()
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8"
        raise ConfigError(f"{flag}: {file}: {why}", "Name a text file with one a line.") from None
    # `splitlines` would make two of a text with U+2028 or U+0085 in it
    return [line.strip() for line in text.split("\n") if line.strip()]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    for verb in (generate, synthesize, align, evaluate):
        command(app, rich_help_panel="One stage")(verb)
