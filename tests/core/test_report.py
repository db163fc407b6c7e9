"""The report: the contract's fields, one file that needs nothing, and no harmful text in either."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from ptalign.nouns import (
    Adapter,
    Change,
    Evaluation,
    Probe,
    StepLog,
    Suppressed,
    TargetResult,
)
from ptalign.report import Gate, PairCounts, ReportInput, Stage, build, compare
from ptalign.report.figures import COLOURS, lines, track
from ptalign.report.parts import change_words
from ptalign.report.words import headline, mask, name_of, shown, twin_separation
from ptalign.sealed import SealedText
from ptalign.stats import wilson

CANARY = "zqxcanaryword"
RATES = {
    "harm_rate": (24, 6),
    "harm_strong": (40, 20),
    "harm_plain": (3, 0),
    "refusal_rate": (3, 36),
    "over_refusal_rate": (0, 3),
    "twin_refusal_rate": (0, 1),
    "ordinary_refusal_rate": (0, 0),
    "usefulness": (18, 18),
    "incoherent_rate": (1, 1),
    "unscored_rate": (0, 0),
}


def target(label, method, side, *, probed=True):
    rates = {name: wilson(counts[side], 60) for name, counts in RATES.items()}
    probe = Probe(
        benign_kl=0.08 * side,
        benign_nll=1.0,
        harm_word_ratio=0.4,
        selectivity=-1.2,
        suppressed=(
            Suppressed(
                token=SealedText(CANARY), topic="work", count=4, p_before=0.09, p_after=0.001
            ),
        ),
        collateral={"question": -1.2, CANARY: -1.1},
    )
    return TargetResult(
        label=label,
        adapter=f"sha-{label}" if method else "",
        method=method,
        rates=rates,
        by_topic={"work": {"harm_rate": wilson(2 - side, 8)}},
        probe=probe if probed else None,
    )


def adapter(method, ut):
    ledger = tuple(
        StepLog(
            step=i,
            loss_mle=2.0 / i,
            loss_ut=1.0 / i if ut else 0.0,
            loss_anchor=1.0,
            ut_weight=ut,
            grad_norm_mle=1.0,
            grad_norm_ut=1.0,
            learning_rate=1e-4,
            tokens_mle=100,
            tokens_ut=10,
            tokens_anchor=50,
            seconds=2.0,
        )
        for i in range(1, 9)
    )
    return Adapter(
        path="/private/adapters/1",
        weights_sha256="0" * 64,
        method=method,
        tokens_mle=800,
        tokens_ut=80 if ut else 0,
        tokens_anchor=400,
        ledger=ledger,
        retain_kl=0.08,
        seconds=16.0,
    )


def evaluation(verdict="PASS", **more):
    results = (
        target("base", "", 0),
        target("PT-ALIGN", "pt_align", 1),
        target("MLE", "mle", 1),
    )
    return Evaluation(
        results=results,
        delta={n: results[1].rates[n].value - results[0].rates[n].value for n in RATES},
        p_values=dict.fromkeys(RATES, 0.01),
        intervals=dict.fromkeys(RATES, (-0.4, -0.1)),
        verdict=verdict,
        reasons=("broken: ordinary answers changed by 0.30 nats a token; limit: 0.25",),
        suites=("attack", "plain"),
        not_run=("catqa: no data",),
        judge_ids=("tone-lexical@1", "refusal@1"),
        generation_judge_ids=("tone-head@1",),
        disagreement=0.05,
        **more,
    )


@pytest.fixture
def report():
    return ReportInput(
        model="tiny<model>",
        policy="tone-en",
        evaluation=evaluation(),
        adapters={"PT-ALIGN": adapter("pt_align", 3.5), "MLE": adapter("mle", 0.0)},
        same_pairs=("PT-ALIGN", "MLE"),
        pairs=PairCounts(pairs=64, polarised=60, twins=50, anchors=40, rounds=2),
        annotations_used=24,
        stages=(
            Stage(name="Pairs", seconds=125, tokens=4000, annotator_minutes=9),
            Stage(name="Evaluation", seconds=60, tokens=900),
        ),
        left_out={"ifeval": {"no checker": 10}},
        command="make demo",
    )


def trained(report, *, by_hand=False, **guards):
    """The section on the target's training, without tags, and the document's run."""
    made = adapter("pt_align", 3.5)
    if by_hand:
        ledger = tuple(log.model_copy(update={"grad_norm_ut": 0.0}) for log in made.ledger)
        made = made.model_copy(update={"ledger": ledger})
    told = {"PT-ALIGN": made.model_copy(update={"guards": guards})}
    page, document = build(report.model_copy(update={"adapters": told}))
    section = page[page.index("<h2>Training</h2>") :]
    section = re.sub(r"<[^>]+>|\s+", " ", section[: section.index("</section>")])
    return re.sub(r"\s+", " ", section), document["runs"][0]


def test_the_weight_is_said_to_be_set_by_gradients_only_where_it_was(report):
    """It stood under a weight that the caller had asked for, and that no budget moves."""
    assert "set by gradient norms" in trained(report)[0]
    section, _ = trained(report, by_hand=True)
    assert "set by gradient norms" not in section
    assert "set by whoever asked for the training: no budget moved it" in section


def test_what_the_guards_said_stands_with_the_training(report):
    """A training that recorded an excess, or doubled the twins' weight, looked like any other."""
    said = {
        "benign_kl": "exceeded: 0.311, limit 0.250, on held-out anchors",
        "mle_fit": "ok: 0.412, limit 0.850",
        "twin_fit": "not judged: 1.000, limit 1.250",
        "twin_refusals": "unsure: 0.250, from 0.000 to 0.250, limit 0.250, 4 held-out twins",
        "twins": "held to the bare model's answers; step 8: weight 4, twins are refused",
        "ut_weight": "step 4: ut_weight x0.5, benign KL near its limit",
        "live": "ok: reloaded, changes a margin by up to 2.00 nats",
    }
    section, run = trained(report, **said)
    for words in (
        "✗ over limit Change on ordinary answers, KL in nats a token: 0.311, limit 0.250",
        "✓ kept Loss on good answers, its end against its start: 0.412",
        "– not judged Loss on legitimate twins",
        "? not settled Share of legitimate twins refused beyond the original",
        "step 8: weight 4, twins are refused",
        "step 4: times 0.5, benign KL near its limit",
        "set to record, not to stop it",
    ):
        assert words in section
    assert run["guards"] == said
    assert "set to record" not in trained(report, mle_fit=said["mle_fit"])[0]
    assert "guards of this training" not in trained(report)[0]


def test_what_the_steps_measured_is_drawn_where_they_did(report):
    """Benign KL, refused twins and the twins' weight over steps were shown nowhere."""
    titles = ("benign KL, nats a token)", "Share of legitimate twins refused", "(τ)")
    page, _ = build(report)
    assert not any(f"{title}</figcaption>" in page for title in titles)
    run = report.adapters["PT-ALIGN"]
    seen = {1: 0.02, 5: 0.09}
    steps = [
        log.model_copy(update={"retain_kl": seen.get(i), "twin_weight": 1.0 + (i > 4)})
        for i, log in enumerate(run.ledger)
    ]
    guards = {"benign_kl": "ok: 0.080, limit 0.120, on held-out anchors"}
    run = run.model_copy(update={"ledger": tuple(steps), "guards": guards})
    page, _ = build(report.model_copy(update={"adapters": {"PT-ALIGN": run}}))
    assert [f"{title}</figcaption>" in page for title in titles] == [True, False, True]
    assert "at the end 0.080, limit 0.120, on held-out anchors" in page
    drawn = page.split(f"{titles[0]}</figcaption>")[1].split("</figure>")[0]
    points = re.search('points="([^"]*)"', drawn)[1].split()
    assert len(points) == len(seen), "a step that measured nothing is no zero"


def test_the_costs_name_who_asked_for_each_stage_where_that_is_known(report):
    assert "Asked for by" not in build(report)[0]
    pairs, evaluation = report.stages
    named = evaluation.model_copy(update={"made_by": "<bob>"})
    page, document = build(report.model_copy(update={"stages": (pairs, named)}))
    assert "<th>Asked for by</th>" in page
    assert "<td>unknown</td>" in page
    assert "<td>&lt;bob&gt;</td>" in page
    assert [stage["made_by"] for stage in document["stages"]] == ["", "<bob>"]


def test_seconds_of_stages_of_one_name_are_added_up(report):
    """Of a lineage with two pair sets, report.json had the last one's alone."""
    pairs, evaluation = report.stages
    unknown = Stage(name="Instructions")
    told = (unknown, pairs, pairs.model_copy(update={"seconds": None}), pairs, evaluation)
    page, document = build(report.model_copy(update={"stages": told}))
    assert document["seconds"] == {"Instructions": None, "Pairs": 250, "Evaluation": 60}
    assert [stage["seconds"] for stage in document["stages"]] == [None, 125, None, 125, 60]
    assert '<td>Instructions</td><td class="num">–</td>' in page
    assert '<td>Total</td><td class="num">5 min 10 s</td>' in page
    assert "the total lacks it" in page
    assert "the total lacks it" not in build(report)[0]


def test_the_report_names_the_gate_and_whether_it_releases(report):
    assert "Release gate" not in build(report)[0]
    gate = Gate(name="default", limits={"max_benign_kl": 0.25})
    page, document = build(report.model_copy(update={"gate": gate}))
    assert "the operator&#39;s default: max benign kl 0.25</dd>" in page
    assert document["gate"]["name"] == "default"
    looser = gate.model_copy(update={"name": "inline", "releases": False, "withheld": "looser"})
    assert "Ready for release" in page
    page, document = build(report.model_copy(update={"gate": looser}))
    assert "written in the call" in page
    assert "0.25 – looser</dd>" in page
    assert "Ready for release" not in page
    assert document["gate"]["withheld"] == "looser"


def test_json_has_the_contracts_fields(report):
    _, document = build(report)
    assert json.loads(json.dumps(document)) == document
    wanted = (
        "model method baseline aligned runs delta annotations_used pairs tokens_mle tokens_ut "
        "ut_weight verdict seconds command"
    )
    assert set(wanted.split()) <= set(document)
    for side in ("baseline", "aligned"):
        for name in ("harm_rate", "over_refusal_rate", "refusal_rate", "usefulness"):
            assert set(document[side][name]) == {"value", "low", "high", "n"}
        assert set(document[side]["harm_by_elicitation"]) == {"plain", "attack", "strong"}
        for name in ("incoherent_rate", "unscored_rate", "benign_kl", "benign_nll"):
            assert name in document[side]
        assert {"harm_word_ratio", "selectivity"} <= set(document[side])
    assert document["aligned"]["harm_rate"]["value"] == 0.1
    assert document["delta"]["harm_rate"] == {
        "value": pytest.approx(-0.3),
        "low": -0.4,
        "high": -0.1,
        "p_value": 0.01,
    }
    assert [run["label"] for run in document["runs"]] == ["PT-ALIGN", "MLE"]
    assert (document["tokens_mle"], document["tokens_ut"], document["ut_weight"]) == (800, 80, 3.5)
    assert document["seconds"] == {"Pairs": 125, "Evaluation": 60}
    assert (document["pairs"], document["annotations_used"]) == (64, 24)


def test_neither_file_holds_a_suppressed_word_or_a_path(report):
    page, document = build(report)
    for text in (page, json.dumps(document)):
        assert CANARY not in text
        assert "/private" not in text
    assert "z•••" in page


class _Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "srcset", "data", "action")]


def test_the_page_is_one_file_without_script_or_request(report):
    page, _ = build(report)
    found = _Links()
    found.feed(page)
    assert found.links == []
    assert not {"script", "link", "iframe", "img", "object"} & set(found.tags)
    assert not re.search(r"url\(|@import|https?://", page)


def test_the_page_says_what_a_manager_needs(report):
    page, _ = build(report)
    assert "Ready for release" in page
    assert "10 in 100 requests; the original gave one to 40 in 100" in page
    assert "5 points more often" in page
    assert "tiny&lt;model&gt;" in page
    assert "tiny<model>" not in page
    for words in ("PT-ALIGN", "MLE", "make demo", "catqa: no data", "3 min 05 s", "9 min"):
        assert words in page
    assert page.count('class="track"') >= 9
    assert page.count('class="lines"') == 3


def test_a_bare_evaluation_still_makes_a_report():
    results = (target("base", "", 0, probed=False), target("aligned", "", 1, probed=False))
    bare = Evaluation(results=results, verdict="INCONCLUSIVE")
    page, document = build(ReportInput(model="m", evaluation=bare))
    assert "Not settled yet" in page
    assert document["ut_weight"] is None
    assert document["aligned"]["benign_kl"] is None


def test_a_probe_without_a_bound_still_makes_a_report():
    base, aligned = (target(label, "", side) for side, label in enumerate(("base", "aligned")))
    values = {"selectivity": float("-inf"), "benign_kl": float("nan"), "harm_word_ratio": 1e30}
    probe = aligned.probe.model_copy(update=values | {"collateral": {"question": float("-inf")}})
    results = (base, aligned.model_copy(update={"probe": probe}))
    page, document = build(
        ReportInput(model="m", evaluation=Evaluation(results=results, verdict="FAIL"))
    )
    for words in (">−inf<", ">nan", f">1{'0' * 30}."):
        assert words in page
    json.dumps(document, allow_nan=False)
    assert document["aligned"]["benign_kl"] is None
    assert document["aligned"]["harm_word_ratio"] == 1e30


def test_headline_is_plain_words():
    assert headline(evaluation()) == (
        "Pushed by an attacker, the tuned model gave a rude or harmful reply to 10 in 100 "
        "requests; the original gave one to 40 in 100. Under the strong attack, which also forces "
        "the first words of the reply, it gave one to 33 in 100, the original to 67 in 100; no "
        "limit of the release gate covers this. The tuned model refuses legitimate look-alikes 5 "
        "points more often and follows verifiable instructions as often as before."
    )


def test_a_limit_on_the_strong_attack_is_not_denied():
    limited = evaluation().model_copy(
        update={"reasons": ("kept: harm under the strong attack fell by 34 points",)}
    )
    assert "no limit of the release gate covers this" not in headline(limited)
    assert "the original to 67 in 100. The tuned model" in headline(limited)
    page, _ = build(ReportInput(model="m", evaluation=limited))
    assert "the strong attack's is one of them" not in page
    page, _ = build(ReportInput(model="m", evaluation=evaluation()))
    assert "the strong attack's is one of them" in page


def changed(**rates):
    """An evaluation whose rates are (hits of the baseline, of the target, prompts)."""
    results = tuple(
        TargetResult(
            label=label,
            method=method,
            rates={n.replace("__", "/"): wilson(v[side], v[2]) for n, v in rates.items()},
        )
        for side, (label, method) in enumerate((("base", ""), ("PT-ALIGN", "pt_align")))
    )
    return Evaluation(results=results, verdict="PASS")


def test_headline_names_the_strong_attack_only_where_it_was_measured():
    assert "strong attack" not in headline(changed(harm_rate=(33, 2, 64)))
    only = headline(changed(harm_strong=(44, 15, 64)))
    assert "the tuned model gave a rude or harmful reply to 23 in 100, the original to 69" in only
    assert "no limit of the release gate covers this" in only
    assert headline(changed(usefulness=(9, 9, 54))).startswith("Nothing was measured under attack.")


def test_changes_are_those_of_the_shares_on_the_page():
    known = changed(
        harm_rate=(33, 2, 64),
        refusal_rate=(2, 11, 64),
        harm_plain=(2, 0, 64),
        over_refusal_rate=(1, 2, 64),
        twin_refusal_rate=(0, 1, 32),
    )
    page, document = build(ReportInput(model="m", evaluation=known))
    for words in ("3 % <span", "was 2 %", "1 point more often", "52 in 100"):
        assert words in page
    row = re.search(r"Telling apart: harmful requests declined minus twins refused.*", page)
    assert row
    assert re.findall(r"[+−]?\d+(?=</td>)", row[0]) == ["+3", "+14"]
    assert document["aligned"]["twin_separation"] == pytest.approx(11 / 64 - 1 / 32)


def test_twins_and_look_alikes_are_two_words():
    both = changed(over_refusal_rate=(1, 2, 64), twin_refusal_rate=(0, 1, 32))
    page, _ = build(ReportInput(model="m", evaluation=both))
    assert page.count("a twin is the harmless version") == 1
    assert "… the twins among them" in page
    alone = changed(over_refusal_rate=(0, 1, 32), twin_refusal_rate=(0, 1, 32))
    assert "the twins among them" not in build(ReportInput(model="m", evaluation=alone))[0]
    other = changed(over_refusal_rate=(0, 1, 32), refusal_rate=(1, 9, 32))
    page, _ = build(ReportInput(model="m", evaluation=other))
    assert "a twin is" not in page
    assert "declined minus look-alikes refused" in page


def test_few_declined_is_explained_beside_the_verdict(report):
    page, _ = build(report)
    head = page[page.index("<header>") : page.index("</header>")]
    assert "mildly instead" in head
    assert "Asked plainly, 0 % of the replies were rude or harmful." in head


def test_a_command_of_the_client_says_which_server_it_needs(report):
    page, _ = build(report)
    assert "PTALIGN_STATE" not in page  # make demo starts its own server
    again = report.model_copy(update={"command": "ptalign evaluate adapters/1 -m m --samples 64"})
    assert "PTALIGN_STATE=FOLDER make serve" in build(again)[0]


def test_what_a_command_leaves_out_is_said(report):
    assert "has no option for" not in build(report)[0]
    lacks = ("the baseline adapters/old", "a gate of its own (min_samples 40)")
    page, document = build(report.model_copy(update={"command_lacks": lacks}))
    assert f"has no option for {lacks[0]}, nor for {lacks[1]};" in page
    assert document["command_lacks"] == list(lacks)


def test_masks():
    assert mask(" wordy") == "w•••• (5)"
    assert mask("") == "• (0)"
    assert mask(" 嫌") == "• (1)"  # a word of its own
    assert mask("a" * 40) == "a••••••• (40)"
    assert shown(" question") == "question"
    assert shown(CANARY) == mask(CANARY)


def test_twin_separation_prefers_the_twins_own_rate():
    assert twin_separation(target("x", "mle", 1)) == pytest.approx(36 / 60 - 1 / 60)


def broken_down(**parts):
    """The usual evaluation with other topics or locales, the same for every target."""
    known = evaluation()
    results = [result.model_copy(update={"by_topic": {}, **parts}) for result in known.results]
    return known.model_copy(update={"results": tuple(results)})


def test_a_topic_that_has_refusals_alone_is_shown():
    """Dangerous topics are never asked under attack: they were left out of the page."""
    topics = {
        "work": {"harm_rate": wilson(2, 8), "refusal_rate": wilson(3, 8)},
        "fraud-online": {"refusal_rate": wilson(7, 8)},
    }
    known = broken_down(by_topic=topics)
    page, document = build(
        ReportInput(model="m", evaluation=known, topic_titles={"work": "At <work>"})
    )
    section = page[page.index("<h2>By topic</h2>") :]
    harm, declined = section.split("<details")[1:3]
    assert "Rude or harmful replies under attack" in harm
    assert "At &lt;work&gt;" in harm
    assert "fraud online" not in harm
    assert "Harmful requests declined" in declined
    assert "fraud online" in declined
    assert "88 %" in declined
    assert set(document["aligned"]["by_topic"]) == set(topics)


def test_each_topic_says_what_changed_and_whether_that_could_be_chance():
    change = Change(value=-0.3, low=-0.521, high=-0.08, p_value=0.004, p_adjusted=0.0204, n=60)
    sure = change.model_copy(update={"p_adjusted": 0.0004})
    known = broken_down(
        by_topic={topic: {"harm_rate": wilson(6, 60)} for topic in ("work", "home")},
        topic_changes={"work": {"harm_rate": change}, "home": {"harm_rate": sure}},
    )
    before = known.results[0].model_copy(
        update={"by_topic": {topic: {"harm_rate": wilson(24, 60)} for topic in ("work", "home")}}
    )
    known = known.model_copy(update={"results": (before, *known.results[1:])})
    page, document = build(ReportInput(model="m", evaluation=known))
    assert "60 prompts; −30 points (−52 to −8), p 0.020" in page
    assert "60 prompts; −30 points (−52 to −8), p under 0.001" in page
    assert "Holm" in page
    assert "p takes each for itself and is too small" in page  # prompts of one situation
    assert document["aligned"]["change_by_topic"]["work"]["harm_rate"]["p_adjusted"] == 0.0204
    assert change_words(change, wilson(0, 60), wilson(0, 59)).startswith("−30 points")


def test_languages_are_shown_where_there_is_more_than_one():
    rates = {"harm_rate": wilson(2, 8), "usefulness": wilson(4, 8)}
    one = broken_down(by_locale={"en": rates})
    page, document = build(ReportInput(model="m", evaluation=one))
    assert "By language" not in page
    assert document["aligned"]["by_locale"]["en"]["harm_rate"]["n"] == 8
    rates |= {"harm_strong": wilson(1, 8), "usefulness_refusal_rate": wilson(1, 8)}
    two = broken_down(by_locale={"en": rates, "pt-BR": {"unscored_rate": wilson(8, 8)}})
    page, _ = build(ReportInput(model="m", evaluation=two))
    section = page[page.index("<h2>By language</h2>") :]
    for words in ("pt-BR", "Verifiable instructions followed", "could not be scored"):
        assert words in section
    for words in ("Verifiable instructions declined instead", "Rude or harmful replies under str"):
        assert words in section  # it said "Rude or harmful replies declined instead"


def test_figures_draw_what_they_are_given():
    drawn = track([wilson(30, 60), None], ["#111", "#222"])
    assert drawn.count("#111") == 2
    assert "#222" not in drawn
    assert 'x1="50.0"' in drawn
    assert lines([("a", "#111", [1.0])], "too short") == ""
    chart = lines([("a", "#111", [4.0, float("nan"), 1.0])], "<losses>")
    assert "&lt;losses&gt;" in chart
    assert ">5<" in chart
    assert "nan" not in chart


@pytest.mark.parametrize("count", [7, 10, 12])
def test_as_many_targets_as_are_asked_have_a_report(report, count):
    """There were six colours: with more targets the page failed after every reply was paid for."""
    known = report.evaluation
    more = tuple(target(f"run-{number}", "mle", 1) for number in range(3, count))
    told = known.model_copy(update={"results": (*known.results, *more)})
    page, document = build(report.model_copy(update={"evaluation": told}))
    legend = re.search(r'<div class="legend">.*?</div>', page, re.DOTALL)[0]
    shown = re.findall(r"background:(#\w{6})", legend)
    assert len(shown) == count == len(document["runs"]) + 1
    assert len(set(shown)) == min(count, len(COLOURS))
    first = page[page.index('class="row"') :]
    assert re.findall(r"<b style=\"color:(#\w{6})", first)[:count] == shown


def test_two_evaluations_side_by_side():
    first, second = evaluation(), evaluation("FAIL")
    better = second.results[1].model_copy(
        update={"rates": {"harm_rate": wilson(0, 600), "new": wilson(1, 2)}}
    )
    second = second.model_copy(update={"results": (second.results[0], better)})
    found = compare(first, second)
    assert found["verdicts"] == ["PASS", "FAIL"]
    assert found["rates"]["harm_rate"]["change"] == pytest.approx(-0.1)
    assert found["rates"]["harm_rate"]["clear"] is True
    assert compare(first, first)["rates"]["harm_rate"]["clear"] is False
    assert found["only_second"] == ["new"]
    assert found["same_suites"]
    assert found["measures"]["benign_kl"] == {"first": 0.08, "second": 0.08}


def test_a_change_between_evaluations_is_clear_where_the_command_says_so():
    """30 and 18 of 60: their intervals overlap, that of the change leaves out 0."""

    def of(*hits):
        made = evaluation()
        better = made.results[1].model_copy(update={"rates": {"harm_rate": wilson(*hits)}})
        return made.model_copy(update={"results": (made.results[0], better)})

    def clear(second):
        return compare(of(30, 60), second)["rates"]["harm_rate"]["clear"]

    found = {hits: clear(of(hits, 60)) for hits in (18, 20, 40, 42)}
    assert found == {18: True, 20: False, 40: False, 42: True}
    assert not clear(of(0, 0))
    for one, two in ((of(30, 60), of(0, 0)), (of(0, 0), of(30, 60))):
        assert compare(one, two)["rates"]["harm_rate"]["change"] is None, "nothing was scored"


@pytest.mark.parametrize(
    ("method", "words"), [("pt_align", "80 flagged tokens"), ("npo", "80 tokens")]
)
def test_whole_answers_that_are_pushed_down_are_not_called_flagged(report, method, words):
    adapters = {
        label: made.model_copy(update={"method": method}) for label, made in report.adapters.items()
    }
    page, _ = build(report.model_copy(update={"adapters": adapters}))
    assert f"{words} of bad answers" in page


def test_a_change_is_the_difference_of_the_shares_beside_it(report):
    """5 and 1 of 60 are 8 and 2 percent, and 6 points apart, not 7."""
    made = evaluation(beside={"MLE": {"harm_rate": (-4 / 60, -0.1, -0.02)}})
    rates = {"MLE": wilson(5, 60), made.aligned.label: wilson(1, 60)}
    results = tuple(
        r.model_copy(update={"rates": r.rates | {"harm_rate": rates[r.label]}})
        if r.label in rates
        else r
        for r in made.results
    )
    page, _ = build(
        report.model_copy(update={"evaluation": made.model_copy(update={"results": results})})
    )
    section = page[page.index("What each part of the training added") :]
    section = re.sub(r"<[^>]+>|\s+", " ", section[: section.index("</section>")])
    assert re.search(r"8 %\s+2 %\s+−6 \(−10 to −2\)", section)


def test_what_unlearning_added_stands_beside_good_answers_alone(report):
    beside = {"MLE": {"harm_strong": (-0.25, -0.4, -0.1), "usefulness": (0.0, -0.06, 0.06)}}
    shown_beside = report.model_copy(update={"evaluation": evaluation(beside=beside)})
    page, document = build(shown_beside)
    section = page[page.index("What each part of the training added") :]
    section = re.sub(r"<[^>]+>|\s+", " ", section[: section.index("</section>")])
    assert "MLE (likelihood only) learned from the good answers alone; PT-ALIGN" in section
    assert re.search(r"first words forced\s+67 %\s+33 %\s+33 %\s+−25 \(−40 to −10\)", section)
    assert re.search(r"instructions followed\s+30 %\s+30 %\s+30 %\s+0 \(−6 to \+6\)", section)
    assert "Likelihood of harm words" in section
    assert document["beside"]["MLE"]["harm_strong"] == {"value": -0.25, "low": -0.4, "high": -0.1}


def test_an_adapter_of_other_pairs_does_not_show_what_unlearning_added(report):
    """Whatever stood beside the target was said to be trained on its pairs."""
    beside = {"MLE": {"harm_strong": (-0.25, -0.4, -0.1)}}
    told = {"evaluation": evaluation(beside=beside), "same_pairs": ("PT-ALIGN",)}
    page, document = build(report.model_copy(update=told))
    assert "Both trained on the same pairs" not in page
    assert "it takes an adapter of method mle, trained on the same pairs" in page
    assert document["beside"]["MLE"]


def added(report, *, apart=(), before=False, **steps):
    """The section on what unlearning added, whose likelihood run has other fields in its steps."""
    known = report.adapters["MLE"]
    ledger = tuple(log.model_copy(update=steps) for log in known.ledger)
    adapters = report.adapters | {"MLE": known.model_copy(update={"ledger": ledger})}
    told = {"adapters": adapters, "apart": {"MLE": apart}, "unlearned_before": before}
    page, _ = build(report.model_copy(update=told))
    section = page[page.index("What each part of the training added") :]
    return re.sub(r"<[^>]+>|\s+", " ", section[: section.index("</section>")])


def test_unlearning_is_said_to_have_added_only_what_the_trainings_differ_in(report):
    """Half the steps, another seed or a doubled weight of twins was unlearning's doing, too."""
    beside = {"MLE": {"harm_strong": (-0.25, -0.4, -0.1)}}
    report = report.model_copy(update={"evaluation": evaluation(beside=beside)})
    claim = "so the last column is what unlearning added"
    assert claim in added(report)
    for words, changes in {
        "differ in seed (1 against 0).": {"apart": ("seed (1 against 0)",)},
        "differ in learning rate (0.001 against 0.0001).": {"learning_rate": 1e-3},
        "weight of legitimate twins at the end (4 against none)": {"twin_weight": 4.0},
        "differ in the examples that their steps drew.": {"tokens_mle": 101},
    }.items():
        section = added(report, **changes)
        assert claim not in section
        assert words in section


def test_good_answers_alone_are_not_all_that_a_continued_adapter_learned_from(report):
    assert "went on from" not in added(report)
    section = added(report, before=True)
    assert "alone in this training;" in section
    assert "Both went on from an adapter that had unlearned bad answers before" in section


def test_the_training_most_like_the_targets_stands_beside_it(report):
    """It was the first of method mle, whatever its seed."""
    other = target("other", "mle", 1)
    results = report.evaluation.results
    told = {
        "evaluation": report.evaluation.model_copy(
            update={"results": (*results[:2], other, results[2])}
        ),
        "adapters": report.adapters | {"other": report.adapters["MLE"]},
        "same_pairs": ("PT-ALIGN", "other", "MLE"),
        "apart": {"other": ("seed (1 against 0)",)},
    }
    page, _ = build(report.model_copy(update=told))
    assert "MLE (likelihood only) learned from the good answers alone" in page


def test_a_baseline_that_is_an_adapter_is_not_called_the_original(report):
    known = report.evaluation
    last = {"label": "last-month", "method": "pt_align", "adapter": "sha-last"}
    baseline = known.baseline.model_copy(update=last)
    told = known.model_copy(update={"results": (baseline, *known.results[1:])})
    assert "last-month (PT-ALIGN) gave one to 40 in 100" in headline(told)
    assert "the original" not in headline(told)
    page, _ = build(report.model_copy(update={"evaluation": told}))
    assert "differs from last-month (PT-ALIGN) on the same prompts" in page
    unnamed = baseline.model_copy(update={"label": "baseline"})
    assert name_of(unnamed) == "baseline (PT-ALIGN)"
    assert name_of(known.baseline) == "original model"


def costs(report, **changes):
    """The section on what it cost, without tags, and the document."""
    page, document = build(report.model_copy(update=changes))
    section = page[page.index("What it cost") :]
    return re.sub(r"<[^>]+>|\s+", " ", section[: section.index("</section>")]), document


def test_the_training_set_is_described_as_it_is(report):
    """The model was said to have written imports and seeds too, and all of it was trained on."""
    held = {"held_out": 5, "held_out_twins": 6, "held_out_anchors": 8}
    counts = report.pairs.model_copy(update=held)
    section, document = costs(report, pairs=counts, imported=("pairSets/brought",))
    assert "The model wrote" not in section
    assert "60 of them with a bad one to unlearn" in section
    assert "5 requests, 6 twins and 8 everyday answers were kept from training" in section
    assert "Some were imported, not written by the model here: pairSets/brought." in section
    assert document["pair_counts"]["held_out_twins"] == 6
    assert document["imported"] == ["pairSets/brought"]
    plain, _ = costs(report)
    assert "kept from training" not in plain
    assert "imported" not in plain
    results = report.evaluation.results
    alone = report.evaluation.model_copy(update={"results": (results[0], results[2])})
    assert "to unlearn" not in costs(report, evaluation=alone)[0]


def test_a_training_set_that_is_not_known_is_not_an_empty_one(report):
    section, _ = costs(report, pairs=PairCounts(), annotations_used=0)
    assert "0 items" not in section
    assert "What the training set held is not known here." in section


def test_the_page_names_what_prompts_could_not_be_kept_apart_from(report):
    assert "Not kept apart" not in build(report)[0]
    lost = ("pairSets/first",)
    page, document = build(report.model_copy(update={"not_kept_apart": lost}))
    assert "Not kept apart from</dt><dd>pairSets/first: the text is gone" in page
    assert document["not_kept_apart"] == list(lost)


def test_without_a_target_of_good_answers_alone_the_page_says_what_is_missing(report):
    results = report.evaluation.results[:2]
    alone = report.evaluation.model_copy(update={"results": results})
    page, document = build(report.model_copy(update={"evaluation": alone}))
    assert "it takes an adapter of method mle" in page
    assert document["beside"] == {}


def test_suppressed_words_stand_by_topic_with_their_use_in_ordinary_answers(report):
    probe = report.evaluation.aligned.probe
    rows = (("home", 0.9, None), ("work", 0.8, 2e-6), ("work", 0.7, 3e-6))
    words = tuple(
        Suppressed(
            token=SealedText(f"{CANARY}{i}"),
            topic=topic,
            count=1,
            p_before=before,
            p_after=0.1,
            neutral_before=neutral,
            neutral_after=neutral,
        )
        for i, (topic, before, neutral) in enumerate(rows)
    )
    aligned = report.evaluation.aligned.model_copy(
        update={"probe": probe.model_copy(update={"suppressed": words})}
    )
    results = (report.evaluation.baseline, aligned)
    told = report.evaluation.model_copy(update={"results": results})
    page, _ = build(report.model_copy(update={"evaluation": told}))
    section = page[page.index("What was suppressed") :]
    cells = re.findall(r"<tr><td>(.*?)</td>.*?([\d.]+|–)</td></tr>", section)
    assert [(topic, after) for topic, after in cells[:3]] == [
        ("home", "–"),
        ("work", "2.0"),
        ("", "3.0"),
    ]
    assert "by the word's first token" in section.replace("&#39;", "'")
    assert "A word of several tokens has none (–)" in section


def probed_as(report, **fields):
    """The page and the document with other fields in the probe of the target."""
    known = report.evaluation
    probe = known.aligned.probe.model_copy(update=fields)
    aligned = known.aligned.model_copy(update={"probe": probe})
    results = (known.baseline, aligned, *known.results[2:])
    told = known.model_copy(update={"results": results})
    page, document = build(report.model_copy(update={"evaluation": told}))
    return re.sub(r"<[^>]+>", " ", page), document["aligned"]


def test_each_topic_keeps_its_worst_words_and_a_cut_list_says_of_how_many(report):
    """12 of 40 words stood under a sentence that reads as the whole list, all of one topic."""
    words = tuple(
        Suppressed(token=SealedText(f"{t}{i}"), topic=t, count=1, p_before=p, p_after=0.1)
        for t, p in (("loud", 0.9), ("work", 0.5), ("home", 0.4), ("quiet", 0.3))
        for i in range(2 if t == "quiet" else 10)
    )
    collateral = {f"{CANARY}{i}": -1.0 - i for i in range(40)}
    page, document = probed_as(report, suppressed=words, collateral=collateral)
    section = page[page.index("What was suppressed") :]
    for topic in ("loud", "work", "home"):
        assert re.search(f"{topic} +3 of 10 words", section)
    assert "2 of 2" not in section
    assert section.count("•") >= 3 * 3 + 2
    assert "The 12 that lost most of 40 words." in section
    assert document["suppressed_words"] == {"loud": 10, "work": 10, "home": 10, "quiet": 2}
    assert document["collateral_words"] == 40
    page, document = probed_as(report, collateral=None)
    assert "that lost most of" not in page
    assert document["collateral_words"] is None


def test_the_report_says_whether_harm_words_were_read_in_trained_answers(report):
    page, document = probed_as(report, toxic_answers=24)
    assert page.count("in 24 bad answers of the training set, none of them held out") == 3
    assert (document["toxic_answers"], document["held_out_toxic"]) == (24, 0)
    ends = (0.31, 0.52)
    page, document = probed_as(
        report,
        toxic_answers=9,
        held_out_toxic=9,
        harm_word_ratio_interval=ends,
        trained_harm_word_ratio=0.2,
    )
    assert page.count("in 9 bad answers held out from training") == 3
    assert re.search(
        r"in 9 bad answers held out from training\s+0\.40 ×\s+0\.40 ×\s+0\.31 to 0\.52", page
    )
    assert re.search(r"… in bad answers of the training set\s+–\s+0\.20 ×", page)
    assert (document["held_out_toxic"], document["harm_word_ratio_interval"]) == (9, ends)


def test_the_page_tells_what_was_not_read_from_what_did_not_change(report):
    page, document = probed_as(report, harm_word_ratio=None, selectivity=None, collateral=None)
    assert "Not measured: the training set has no ordinary answers." in page
    assert re.search(r"Loss of harm words beyond other words, nats\s+−1\.20\s+–\s+−1\.20", page)
    assert document["harm_word_ratio"] is document["selectivity"] is None
    page, _ = probed_as(report, collateral={})
    assert "none lost more than 0.5 nats" in page
    assert "lost more than 0.5" in probed_as(report)[0]


def test_suites_that_measure_refusal_alone_have_a_row_each():
    """They were asked and named, and stood in no table."""
    known = changed(
        refusal_rate=(2, 11, 64),
        refusal_rate__plain=(1, 6, 32),
        harm_plain__plain=(1, 6, 32),
        refusal_rate__catqa=(3, 24, 32),
    )
    page, _ = build(ReportInput(model="m", evaluation=known))
    row = page[page.index("Harmful requests of catqa declined") :]
    assert re.findall(r"(\d+ %)</b>", row)[:2] == ["9 %", "75 %"]
    assert "Harmful requests of plain declined" not in page
    assert (
        "Harmful requests of catqa declined"
        in build(ReportInput(model="m", evaluation=changed(refusal_rate__catqa=(3, 24, 32))))[0]
    )
