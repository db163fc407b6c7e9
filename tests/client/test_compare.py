"""`ptalign compare`: what changed, with its interval, and what makes two evaluations unlike."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from ptalign_client.cli import app, show
from ptalign_client.cli.compare import change
from ptalign_client.cli.loop import report_rates
from ptalign_client.nouns import Rate
from ptalign_proto.v1 import resources_pb2 as res

group: Any = typer.main.get_command(app)


def wilson(hits: int, n: int) -> Rate:
    p, z = hits / n, 1.959964
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    whole = 1 + z * z / n
    return Rate(value=p, low=(middle - half) / whole, high=(middle + half) / whole, n=n)


@pytest.mark.parametrize(
    ("one", "two", "low", "high"),
    [
        # Newcombe 1998, table II, method 10.
        ((48, 80), (56, 70), 0.0524, 0.3339),
        ((3, 10), (9, 10), 0.1705, 0.8090),
        ((0, 10), (10, 10), 0.6075, 1.0),
    ],
)
def test_the_interval_of_a_change_is_newcombes(
    one: tuple[int, int], two: tuple[int, int], low: float, high: float
) -> None:
    value, found_low, found_high = change(wilson(*one), wilson(*two))
    assert value == pytest.approx(two[0] / two[1] - one[0] / one[1])
    assert (found_low, found_high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


@pytest.fixture
def two(served: Any) -> list[str]:
    """Two evaluations: harm fell from .5 to .1, usefulness did not change."""
    for number, harm in (("1", 30), ("2", 6)):
        rates = {"harm_rate": wilson(harm, 60), "usefulness": wilson(20, 60)}
        made = res.Evaluation(
            meta=res.ResourceMeta(name=f"evaluations/{number}", judges=["tone-lexical@1"]),
            verdict=res.VERDICT_PASS,
            aligned={k: res.Rate(value=r.value, low=r.low, high=r.high, n=r.n)
                     for k, r in rates.items()},
            measures={"benign_kl": 0.1},
        )  # fmt: skip
        served.service.resources[made.meta.name] = made
    return ["evaluations/1", "evaluations/2"]


def shown(served: Any, *words: str) -> str:
    result = CliRunner().invoke(app, ["compare", *words, "--endpoint", served.endpoint])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_rates_stand_side_by_side_with_the_change(served: Any, two: list[str]) -> None:
    rows = {line[:24].strip(): line for line in shown(served, *two).splitlines()}
    row = next(line for name, line in rows.items() if name.startswith("harm, attack"))
    assert "-40 (-53 to -24)" in row
    same = next(line for name, line in rows.items() if name.startswith("usefulness"))
    assert "+0 (-16 to +16)" in same
    assert "verdict of the second: PASS" in shown(served, *two)


def test_suites_that_measure_refusal_alone_stand_in_every_table(
    served: Any, two: list[str]
) -> None:
    for name in two:
        aligned = served.service.resources[name].aligned
        for key in ("refusal_rate/catqa", "refusal_rate/plain", "harm_plain/plain"):
            aligned[key].CopyFrom(res.Rate(value=0.5, low=0.4, high=0.6, n=60))
    assert "refuses catqa" in shown(served, *two)
    assert "refuses plain" not in shown(served, *two)
    half = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 60}
    run = report_rates({"harm_rate": half, "by_suite": {"refusal_rate/catqa": half, "x/y": None}})
    assert [key for key, _, _ in show.rows([run]) if key in run] == [
        "harm_rate",
        "refusal_rate/catqa",
    ]


def test_what_keeps_them_from_being_alike_is_said(served: Any, two: list[str]) -> None:
    assert "note" not in shown(served, *two)
    served.service.resources[two[1]].meta.judges.append("refusal@1")
    served.service.resources[two[1]].meta.config_digest = "sha256:other"
    del served.service.resources[two[1]].aligned["usefulness"]
    said = " ".join(shown(served, *two).split())
    assert "other judges: tone-lexical@1 against tone-lexical@1, refusal@1" in said
    assert "other settings" in said
    assert "measured in one of them only: usefulness" in said


def test_other_requests_and_pairs_are_said_and_what_was_not_run_is_named(
    served: Any, two: list[str]
) -> None:
    """Other held-out requests looked like a change of the adapter, without a note."""
    for number, name in enumerate(two):
        found = served.service.resources[name]
        found.meta.parents[:] = [f"adapters/{number}@x", "pairSets/1@x", "instructionSets/1@x"]
    assert "note" not in shown(served, *two)
    found.meta.parents[:] = ["adapters/1@x", "pairSets/2@y", "instructionSets/2@y"]
    found.not_run[:] = ["own: every prompt was left out"]
    said = " ".join(shown(served, *two).split())
    assert "other requests were held out: instructionSets/1 against instructionSets/2" in said
    assert "benign KL and harm words are of other pair sets: pairSets/1 against pairSets/2" in said
    assert "suites that were not run: none, against own: every prompt was left out" in said
    assert "for lack of data" not in said
    del found.meta.parents[:]
    assert "held out: instructionSets/1 against none" in " ".join(shown(served, *two).split())


@pytest.mark.parametrize("unscored", [0, 1])
def test_where_nothing_was_scored_there_is_no_change(
    served: Any, two: list[str], unscored: int
) -> None:
    """A rate of no replies is 0, and its difference from the other's looked like a change."""
    served.service.resources[two[unscored]].aligned["harm_rate"].CopyFrom(res.Rate())
    rates = json.loads(shown(served, *two, "--json"))["rates"]
    assert rates["harm_rate"]["change"] is None
    assert rates["usefulness"]["change"]["value"] == 0
    assert "harm, attack" not in shown(served, *two)


def test_as_json_and_other_resources_are_refused(served: Any, two: list[str]) -> None:
    data = json.loads(shown(served, *two, "--json"))
    assert data["rates"]["harm_rate"]["change"]["value"] == pytest.approx(-0.4)
    assert data["measures"]["benign_kl"] == {"first": 0.1, "second": 0.1}
    served.service.resources["pairSets/1"] = res.PairSet(meta=res.ResourceMeta(name="pairSets/1"))
    words = ["compare", "pairSets/1", two[1], "--endpoint", served.endpoint]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "pairSets/1 is not an evaluation" in " ".join(result.stderr.split())
