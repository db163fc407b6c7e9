"""Alert rules and the dashboard: promtool accepts them, and every metric they ask for exists."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from ptalign_server.metrics import Metrics

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "deploy" / "alerts"
DASHBOARD = ROOT / "deploy" / "dashboards" / "ptalign.json"
OPERATIONS = ROOT / "docs" / "operations.md"
FOREIGN = {"instance", "job", "le", "namespace", "service"}
"""Labels that Prometheus adds."""
VARIABLE = re.compile(r"\$(instance|namespace|service)\b")
METRIC = re.compile(r"\b(ptalign_[a-z0-9_]+)(?:\{([^}]*)\})?")
LABEL = re.compile(r"([a-z_]+)\s*(?:=~|!~|!=|=)")
Find = Callable[..., str]


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((ALERTS / "ptalign.rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def queries() -> Iterator[tuple[str, str]]:
    """Title and expression of each query of the dashboard, its variables filled in."""
    board = json.loads(DASHBOARD.read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], VARIABLE.sub(".*", target["expr"])
    for variable in board["templating"]["list"]:
        if found := re.match(r"label_values\((.+), *\w+\)", variable["query"]):
            yield variable["name"], VARIABLE.sub(".*", found[1])


def known() -> dict[str, set[str]]:
    """Names as /metrics shows them, with their labels."""
    names: dict[str, set[str]] = {}
    for metric in vars(Metrics()).values():
        if isinstance(metric, MetricWrapperBase):
            labels = set(metric._labelnames)
            suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
            for suffix in suffixes.get(metric._type, [""]):
                names[metric._name + suffix] = labels
    return names


def asked(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Metrics of an expression with the labels it filters by."""
    for name, matchers in METRIC.findall(re.sub(r'"[^"]*"', '""', expression)):
        yield name, set(LABEL.findall(matchers))


def check(where: str, expression: str) -> None:
    for name, labels in asked(expression):
        assert name in known(), f"{where} asks for {name}, which nothing exports"
        assert labels <= known()[name] | FOREIGN, f"{where}: {name} has no label {labels}"


def test_rules_pass_promtool_and_their_own_tests(program: Find) -> None:
    promtool = program("promtool", "prometheus")
    for command in (
        ["check", "rules", "ptalign.rules.yaml"],
        ["test", "rules", "ptalign.rules.test.yaml"],
    ):
        done = subprocess.run([promtool, *command], cwd=ALERTS, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_rules_are_tested_in_the_order_of_their_groups() -> None:
    """Groups that the order leaves out run at random: alerts then read old records now and then."""
    groups = yaml.safe_load((ALERTS / "ptalign.rules.yaml").read_text())["groups"]
    order = yaml.safe_load((ALERTS / "ptalign.rules.test.yaml").read_text())["group_eval_order"]
    assert order == [group["name"] for group in groups]


def test_every_alert_is_tested_firing_and_silent() -> None:
    tests = yaml.safe_load((ALERTS / "ptalign.rules.test.yaml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    fires = {case["alertname"] for case in cases if case.get("exp_alerts")}
    silent = {case["alertname"] for case in cases if not case.get("exp_alerts")}
    names = {rule["alert"] for rule in alerts()}
    assert names - fires == set()
    assert names - silent == set()


def test_every_alert_has_a_runbook() -> None:
    headings = re.findall(r"^#+ (.+)$", OPERATIONS.read_text(), re.MULTILINE)
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    for rule in alerts():
        file, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert ROOT / file == OPERATIONS
        assert anchor == rule["alert"].lower()
        assert anchor in anchors, f"docs/operations.md has no section {rule['alert']}"


def test_alerts_ask_for_metrics_that_exist() -> None:
    for rule in rules():
        check(rule.get("alert") or rule["record"], rule["expr"])


def test_no_rule_adds_releases_up() -> None:
    """One Prometheus watches several; each has its own alerts."""
    for rule in rules():
        kept = re.findall(r"\b(?:by|on) \(([^)]*)\)", rule["expr"])
        assert all(k.startswith("namespace, service") for k in kept), rule["expr"]
        assert re.search(r"\b(sum|max|min|count|avg) ?\(", rule["expr"]) is None, rule["expr"]


def test_the_dashboard_can_show_one_release() -> None:
    board = json.loads(DASHBOARD.read_text())
    names = [variable["name"] for variable in board["templating"]["list"]]
    assert {"namespace", "service"} <= set(names)
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"]
            chosen = expression.count('{namespace=~"$namespace",service=~"$service"')
            assert chosen == len(METRIC.findall(expression)), panel["title"]
            for extreme in re.findall(r"\b(?:max|min)\b.{5}(.{18})", expression):
                assert extreme == "namespace, service", panel["title"]


def test_recorded_names_are_used() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    text = "\n".join(rule["expr"] for rule in alerts())
    assert [name for name in recorded if name not in text] == []


def test_no_two_panels_of_the_dashboard_share_an_id() -> None:
    """Links to a panel and its editor go by it."""
    ids = [panel["id"] for panel in json.loads(DASHBOARD.read_text())["panels"]]
    assert len(ids) == len(set(ids))


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    for title, expression in queries():
        check(title, expression)


def test_the_dashboard_shows_every_metric() -> None:
    shown = {name for _, expression in queries() for name, _ in asked(expression)}
    for name in known():
        family = re.sub(r"_(bucket|sum|count)$", "", name)
        assert any(s.startswith(family) for s in shown), f"{name} is on no panel"


def test_promtool_parses_every_query_of_the_dashboard(program: Find, tmp_path: Path) -> None:
    named = [{"record": f"q:{i}", "expr": e} for i, (_, e) in enumerate(queries())]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": named}]}))
    command = [program("promtool", "prometheus"), "check", "rules", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(named)} rules found" in done.stdout


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_checks_see_a_metric_that_does_not_exist() -> None:
    with pytest.raises(AssertionError, match="nothing exports"):
        check("planted", "sum(rate(ptalign_absent_total[5m]))")
    with pytest.raises(AssertionError, match="has no label"):
        check("planted", 'ptalign_queue_depth{topic="x"}')
