"""Suites: what every target is asked, as data."""

from ptalign.suites.base import Check, Elicitation, Measure, Prompt, Suite, SuiteSpec, Turn
from ptalign.suites.catalogue import (
    DEFAULT,
    NO_DATA,
    build,
    check_spec,
    chosen_suites,
    read_specs,
    shipped,
)
from ptalign.suites.held_out import HELD_OUT

__all__ = [
    "DEFAULT",
    "HELD_OUT",
    "NO_DATA",
    "Check",
    "Elicitation",
    "Measure",
    "Prompt",
    "Suite",
    "SuiteSpec",
    "Turn",
    "build",
    "check_spec",
    "chosen_suites",
    "read_specs",
    "shipped",
]
