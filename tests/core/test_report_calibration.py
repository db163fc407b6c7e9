"""What a report says of its judges: what they were checked on, and rates without their errors."""

from __future__ import annotations

import re

import pytest

from ptalign.calibrate import calibrate, calibrate_filters, corrected
from ptalign.judges import evaluation_judges, judge
from ptalign.nouns import Evaluation, TargetResult
from ptalign.policies import load_annotations
from ptalign.report import ReportInput, build
from ptalign.stats import corrected_rate, wilson

MARKS = load_annotations("tone-en")


def evaluation(calibrations=(), **more):
    rates = {"harm_rate": wilson(31, 60), "refusal_rate": wilson(9, 60), "usefulness": wilson(5, 9)}
    after = {"harm_rate": wilson(1, 60), "refusal_rate": wilson(30, 60)}
    results = (
        TargetResult(label="base", rates=rates),
        TargetResult(label="PT-ALIGN", method="pt_align", rates=after),
    )
    made = Evaluation(
        results=results, verdict="PASS", judge_ids=("tone-lexical@1", "refusal@1"), **more
    )
    return corrected(made, calibrations)


def page_of(made):
    page, document = build(ReportInput(model="m", evaluation=made))
    section = page[page.index("How often the judges are right") :]
    return re.sub(r"(<[^>]*>|\s)+", " ", section[: section.index("</section>")]), document


@pytest.fixture
def no_data(monkeypatch):
    monkeypatch.delenv("PTALIGN_EVAL_DATA", raising=False)


def test_judges_are_shown_with_what_they_were_checked_on(no_data):
    found = calibrate(evaluation_judges(), MARKS)
    found += calibrate_filters(["tone-valence@1"], MARKS)
    section, document = page_of(evaluation(found))
    for words in (
        "tone-lexical@1 16 good and 16 bad answers marked by people 56 % (33–77 %) 100 % (81–",
        "refusal@1 296 refusals and 604 other replies of XSTest, labelled by people; counted when "
        "the judge was made; kappa by file: gpt4 0.87, mistralinstruct 0.49 78 % (73–82 %)",
        "tone-valence@1, which filtered training 16 good",
        "What decides on harm was checked on 16 good and 16 bad answers only",
        "The release gate goes by the shares as measured.",
    ):
        assert words in section
    assert "What decides on refusal" not in section
    assert [row["judges"] for row in document["calibration"]] == [
        ["tone-lexical@1"],
        ["refusal@1"],
        ["tone-valence@1"],
    ]
    assert document["calibration"][0]["sensitivity"]["n"] == 16


def test_measured_and_corrected_shares_stand_side_by_side(no_data):
    found = calibrate(evaluation_judges(), MARKS)
    section, document = page_of(evaluation(found))
    # 31 of 60 over a sensitivity of 9/16: 92 %
    assert "replies under attack 52 % → 92 % (53–100 %) 2 % → 3 % (0–19 %)" in section
    assert "followed" not in section
    wanted = corrected_rate(wilson(31, 60), wilson(9, 16), wilson(16, 16)).model_dump()
    assert document["corrected"]["base"]["harm_rate"] == wanted
    assert set(document["corrected"]["PT-ALIGN"]) == {"harm_rate", "refusal_rate"}
    assert document["baseline"]["harm_rate"]["value"] == 31 / 60


def test_every_rate_that_counts_refusals_is_shown_without_the_judges_errors(no_data):
    """Refused twins and declined instructions have limits, and stood as measured only."""
    names = ("over_refusal_rate", "twin_refusal_rate", "usefulness", "usefulness_refusal_rate")
    rates = {name: wilson(n, 60) for name, n in zip(names, (9, 6, 50, 12), strict=True)}
    made = evaluation()
    results = tuple(result.model_copy(update={"rates": rates}) for result in made.results)
    made = made.model_copy(update={"results": results})
    section, document = page_of(corrected(made, calibrate(evaluation_judges(), MARKS)))
    assert set(document["corrected"]["base"]) == set(names) - {"usefulness"}
    assert "Verifiable instructions declined instead 20 % →" in section
    assert "Legitimate look-alikes refused 15 % →" in section


def test_what_was_checked_on_nothing_or_too_little_says_so(no_data):
    section, document = page_of(evaluation(calibrate(evaluation_judges())))
    assert "tone-lexical@1 not checked: no good or bad answer marked by people" in section
    assert "Shares of harm are not corrected: no good or bad answer" in section
    assert set(document["corrected"]["base"]) == {"refusal_rate"}
    section, _ = page_of(evaluation(calibrate(evaluation_judges(), MARKS[:4])))
    assert "only 4 bad answers and 4 good answers were scored; 10 of each are needed." in section


def test_an_evaluation_of_an_earlier_version_says_that_nothing_was_checked():
    section, document = page_of(evaluation())
    assert "were not checked against people" in section
    assert document["calibration"] == []
    assert document["corrected"] == {"base": {}, "PT-ALIGN": {}}


def test_several_judges_are_shown_alone_and_together(no_data):
    judges = [judge("tone-lexical"), judge("tone-valence"), judge("refusal")]
    made = evaluation(calibrate(judges, MARKS))
    made = made.model_copy(update={"judge_ids": tuple(one.id for one in judges)})
    section, _ = page_of(made)
    assert "tone-lexical@1 and tone-valence@1, as they decide together" in section
    assert "filtered training" not in section
