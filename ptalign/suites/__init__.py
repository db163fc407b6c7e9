"""Suites: what every target is asked, as data."""

from ptalign.suites.base import Check, Elicitation, Measure, Prompt, Suite, SuiteSpec, Turn
from ptalign.suites.catalogue import DEFAULT, NO_DATA, build, read_specs, shipped

__all__ = [
    "DEFAULT",
    "NO_DATA",
    "Check",
    "Elicitation",
    "Measure",
    "Prompt",
    "Suite",
    "SuiteSpec",
    "Turn",
    "build",
    "read_specs",
    "shipped",
]
