"""Everything a report is made from: measurements and costs, never a reply or a request."""

from __future__ import annotations

from pydantic import Field

from ptalign.nouns import Adapter, Evaluation, Noun


class Stage(Noun):
    """What one stage cost."""

    name: str
    seconds: float | None = None
    """Time at work in all attempts together; None if unknown."""
    tokens: int = 0
    """Tokens generated, or trained on."""
    annotator_minutes: float = 0.0
    made_by: str = ""
    """Name of whoever asked for it; empty if unknown."""


class PairCounts(Noun):
    """What the pair set holds."""

    pairs: int = 0
    """Harmful requests with a good answer, with or without a bad one."""
    polarised: int = 0
    """Of `pairs`, those with both answers."""
    twins: int = 0
    anchors: int = 0
    """Everyday requests with the model's own answers."""
    held_out: int = 0
    """Of `pairs`, those held out from training."""
    held_out_twins: int = 0
    held_out_anchors: int = 0
    rounds: int = 0
    rejected: dict[str, int] = Field(default_factory=dict)


class Gate(Noun):
    """The gate that decided the verdict."""

    name: str
    """``default`` (the operator's), another name of the catalogue, or ``inline``."""
    limits: dict[str, float] = Field(default_factory=dict)
    """The limits that were checked, named as in `GateConfig`."""
    releases: bool = True
    """Whether a PASS releases the adapter."""
    withheld: str = ""
    """Why it does not: the gate is looser than the operator's, or the baseline is an adapter."""


class ReportInput(Noun):
    """Input of `ptalign.report.build`."""

    model: str
    policy: str = ""
    evaluation: Evaluation
    adapters: dict[str, Adapter] = Field(default_factory=dict)
    """The targets' adapters, by their label in the evaluation."""
    same_pairs: tuple[str, ...] = ()
    """Labels of targets that were trained on the same pairs as the verdict's target."""
    apart: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Label -> settings in which its training differed from that of the verdict's target."""
    unlearned_before: bool = False
    """Whether the verdict's target continues an adapter that had learned from bad answers."""
    pairs: PairCounts = PairCounts()
    annotations_used: int = 0
    imported: tuple[str, ...] = ()
    """Imported sets among those that the target was made from."""
    stages: tuple[Stage, ...] = ()
    """The stages, in the order they ran."""
    left_out: dict[str, dict[str, int]] = Field(default_factory=dict)
    """Suite -> reason -> prompts that were not asked."""
    not_kept_apart: tuple[str, ...] = ()
    """Sets that a target or its parents were trained on and whose text is gone, so that the prompts
    could not be kept apart from them."""
    topic_titles: dict[str, str] = Field(default_factory=dict)
    gate: Gate | None = None
    command: str = ""
    """The command that reproduces these numbers."""
    command_lacks: tuple[str, ...] = ()
    """What the numbers also depend on, but the command has no option for."""
    made: str = ""
    """Date, as text."""
