"""Everything a report is made from: measurements and costs, never a reply or a request."""

from __future__ import annotations

from pydantic import Field

from ptalign.nouns import Adapter, Evaluation, Noun


class Stage(Noun):
    """What one stage cost."""

    name: str
    seconds: float | None = None
    """At work, all attempts together; None where that is not known."""
    tokens: int = 0
    """Generated, or trained on."""
    annotator_minutes: float = 0.0
    made_by: str = ""
    """Who asked for it, by name; empty where that is not known."""


class PairCounts(Noun):
    """What the pair set holds."""

    pairs: int = 0
    """Harmful requests with a good answer, with or without a bad one."""
    polarised: int = 0
    """Those that have both."""
    twins: int = 0
    anchors: int = 0
    """Everyday requests with the model's own answers."""
    held_out: int = 0
    """Of `pairs`, never trained on."""
    held_out_twins: int = 0
    held_out_anchors: int = 0
    rounds: int = 0
    rejected: dict[str, int] = Field(default_factory=dict)


class Gate(Noun):
    """What the verdict went by."""

    name: str
    """``default`` (the operator's), another name of the catalogue, or ``inline``."""
    limits: dict[str, float] = Field(default_factory=dict)
    """What was checked, as in `GateConfig`."""
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
    """By the label of the target in the evaluation."""
    same_pairs: tuple[str, ...] = ()
    """Labels of the targets that were trained on what the target of the verdict was."""
    apart: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Label -> settings in which its training differed from that of the target of the verdict."""
    unlearned_before: bool = False
    """Whether that training went on from an adapter that had learned from bad answers too."""
    pairs: PairCounts = PairCounts()
    annotations_used: int = 0
    imported: tuple[str, ...] = ()
    """Sets behind it that came from elsewhere."""
    stages: tuple[Stage, ...] = ()
    """In the order they ran."""
    left_out: dict[str, dict[str, int]] = Field(default_factory=dict)
    """Suite -> reason -> prompts that were not asked."""
    not_kept_apart: tuple[str, ...] = ()
    """Sets that a target or its parents were trained on, whose text is gone: whether a prompt is
    among it cannot be said."""
    topic_titles: dict[str, str] = Field(default_factory=dict)
    gate: Gate | None = None
    command: str = ""
    """What a reader types to get these numbers again."""
    command_lacks: tuple[str, ...] = ()
    """What the numbers rest on beside, which the command has no option for."""
    made: str = ""
    """Date, as text."""
