"""The report: one HTML file for people, one JSON file for programs, no harmful text in either."""

from __future__ import annotations

from typing import Any

from ptalign.report.compare import compare
from ptalign.report.html import report_html
from ptalign.report.inputs import Gate, PairCounts, ReportInput, Stage
from ptalign.report.jsonreport import report_json


def build(report: ReportInput) -> tuple[str, dict[str, Any]]:
    """``report.html`` as text and ``report.json`` as a document."""
    return report_html(report), report_json(report)


__all__ = [
    "Gate",
    "PairCounts",
    "ReportInput",
    "Stage",
    "build",
    "compare",
    "report_html",
    "report_json",
]
