"""Every error ptalign raises on purpose.

    PtalignError
    ├── InvalidInput        the caller sent something wrong: field, limit and mend are named
    ├── NotReady            a device, engine or file is not there yet: trying again helps
    ├── EngineFailed        the generation engine died or would not start
    ├── TrainingFailed      the training run broke a rule it must keep (zero tokens, NaN, inert)
    ├── GuardTripped        a guard of Align was exceeded and its mode is "abort"
    ├── DataDamaged         sealed data does not match its digest
    ├── Unsupported         a model shape or option that cannot be done, refused by name
    └── Cancelled           the caller asked to stop; what was accepted is kept

A bad *sample* is never an exception: it is counted under a rejection reason, or unscored.
"""

from __future__ import annotations


class PtalignError(Exception):
    """Base of all errors raised on purpose.

    Attributes:
        reason: UPPER_SNAKE name that does not change between versions.
        retryable: Whether the same call may succeed later without a change.
    """

    reason: str = "PTALIGN_ERROR"
    retryable: bool = False


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python's or torch's says that memory ran out: on a CPU torch has no type
    for it."""
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or "DefaultCPUAllocator" in str(error)


class InvalidInput(PtalignError):
    """A value outside its limits.

    Attributes:
        field: Dotted path of the offending field, e.g. ``budget.steps``.
        limit: What is allowed, in words.
        mend: What to send instead, in words.
    """

    reason = "INVALID_INPUT"

    def __init__(self, field: str, limit: str, mend: str) -> None:
        super().__init__(f"{field}: {limit}. {mend}")
        self.field = field
        self.limit = limit
        self.mend = mend


class NotReady(PtalignError):
    """Something this needs is starting, restarting or leased to another job."""

    reason = "NOT_READY"
    retryable = True


class EngineFailed(PtalignError):
    """The engine died, refused a request for good, or would not start."""

    reason = "ENGINE_FAILED"
    retryable = True


class TrainingFailed(PtalignError):
    """Training stopped because its result would be wrong or would mean nothing."""

    reason = "TRAINING_FAILED"


MENDS = {
    "twin_refusals": "Raise twin_weight, train fewer steps, or on a set with more pairs and twins",
    "mle_fit": "Train more steps, or lower ut_weight",
}
"""What brings a guard's measure down, where it is not lambda or the learning rate."""


class GuardTripped(PtalignError):
    """A budget that Align must keep was exceeded.

    Attributes:
        guard: The guard's name, e.g. ``benign_kl``.
        value: What was measured.
        limit: What was allowed.
    """

    reason = "GUARD_TRIPPED"

    def __init__(self, guard: str, value: float, limit: float) -> None:
        mend = MENDS.get(guard, "Lower ut_weight or the learning rate")
        super().__init__(
            f"{guard} reached {value:.3f}, over its limit {limit:.3f}. {mend}, or set guards to "
            "'record' to keep the run and report the excess."
        )
        self.guard = guard
        self.value = value
        self.limit = limit


class DataDamaged(PtalignError):
    """Stored data does not match its digest or its authentication tag."""

    reason = "DATA_DAMAGED"


class Unsupported(PtalignError):
    """A model shape, method or file kind that ptalign refuses by name."""

    reason = "UNSUPPORTED"


class Cancelled(PtalignError):
    """Cooperative stop. Records accepted before it are in the log."""

    reason = "CANCELLED"
