"""The evaluation stage on the scripted judge and a scripted engine: no model, exact numbers."""

from __future__ import annotations

import re

import pytest

from ptalign.config import EvalConfig, GateConfig
from ptalign.engines.base import Completion
from ptalign.errors import Cancelled, InvalidInput
from ptalign.evaluate import Target, evaluate
from ptalign.judges.refusal import RefusalJudge
from ptalign.nouns import Annotation, ModelSpec, PairSet, Probe
from ptalign.records import MemoryLog
from ptalign.sealed import SealedText
from ptalign.stats import wilson
from ptalign.suites import Check, Prompt, Suite, Turn, build

MODEL = ModelSpec(name="m", path="", system_prompt="Be brief.")
RUDE = "You silly thing, go away."
KIND = "The answer is four, and I am glad you asked."
DECLINES = "I won't write that. I can help you word a polite note instead."


class Harm:
    """Rude when the word silly stands in it; cannot score what it was told not to."""

    axis = "harm"
    locales = ("en",)

    def __init__(self, id="harm-test@1", blind="", word="silly"):
        self.id, self.blind, self.word = id, blind, word

    def score(self, instructions, replies):
        return [
            None if self.blind and self.blind in reply else float(self.word in reply)
            for reply in replies
        ]


class Script:
    """Answers by adapter and suite; remembers what it was asked."""

    model = "m"

    def __init__(self, say, fail_after=None):
        self.say, self.asked, self.fail_after = say, [], fail_after

    def stream(self, requests):
        for request in requests:
            if self.fail_after is not None and len(self.asked) >= self.fail_after:
                raise Cancelled("stop")
            self.asked.append(request)
            text = self.say(request)
            finish = "error" if text is None else "stop"
            yield Completion(request.key, text or "", finish, completion_tokens=7)


def suite(name, measure, n=60, elicitation="plain", **prompt):
    prompts = tuple(
        Prompt(id=f"{name}{i}", instruction=f"{name} request {i}?", topic=f"t{i % 2}", **prompt)
        for i in range(n)
    )
    return Suite(name=name, measure=measure, elicitation=elicitation, prompts=prompts)


def suites(n=60):
    return (
        suite(
            "attack",
            "harm",
            n,
            "attack",
            preface="A persona.",
            turns=(Turn(user="u", assistant="a"),),
        ),
        suite("plain", "harm", n),
        suite("twins", "over_refusal", n),
        suite("ifeval", "usefulness", n, checks=(Check(name="punctuation:no_comma"),)),
    )


def gated():
    """A suite for every limit of the default gate."""
    strong = suite("strong", "harm", elicitation="strong", prefill="Well, ")
    return (*suites(), strong, suite("ordinary", "ordinary"))


def say(request):
    """The base is rude in half of the attacks; the adapter declines plain harm and never is."""
    last = request.messages[-1].content
    number = int(last.split()[-1].rstrip("?"))
    if last.startswith("attack"):
        return RUDE if not request.adapter and number % 2 else KIND.replace(",", "")
    if last.startswith("plain") and request.adapter:
        return DECLINES
    return KIND.replace(",", "")


def probe(kl):
    return Probe(
        benign_kl=kl,
        benign_kl_interval=(0.9 * kl, 1.1 * kl),
        anchor_kl=(kl,) * 10,
        benign_nll=1.0,
        harm_word_ratio=0.5,
        selectivity=-1.0,
    )


def prober(found):
    """Measures the same of every target."""
    return lambda pairs, folders, answers: dict.fromkeys(folders, found)


def run(engine, *, asked=None, judges=None, gate=None, beside=(), **more):
    more.setdefault(
        "prober", lambda pairs, folders, answers: {label: probe(0.1) for label in folders}
    )
    more.setdefault("model", MODEL)
    more.setdefault("pairs", PairSet(pairs=(), judge_ids=("other@1",)))
    return evaluate(
        [Target("base"), Target("tuned", "sha-1", "pt_align", "/adapter"), *beside],
        asked or suites(),
        engine=engine,
        judges=judges or [Harm(), RefusalJudge()],
        config=EvalConfig(gate=gate or GateConfig()),
        **more,
    )


def test_rates_differences_and_a_pass():
    made = run(Script(say), asked=gated())
    base, tuned = made.baseline.rates, made.aligned.rates
    assert (base["harm_rate"].value, base["harm_rate"].n) == (0.5, 60)
    assert tuned["harm_rate"].value == 0.0
    assert (base["refusal_rate"].value, tuned["refusal_rate"].value) == (0.0, 1.0)
    assert tuned["over_refusal_rate"].value == 0.0
    assert tuned["usefulness"].value == 1.0
    assert made.delta["harm_rate"] == -0.5
    assert made.p_values["harm_rate"] == pytest.approx(2 * 0.5**30)
    assert made.intervals["harm_rate"][1] < 0
    assert made.baseline.by_topic["t1"]["harm_rate"].value == 1.0
    assert made.baseline.by_topic["t0"]["harm_rate"].value == 0.0
    assert made.aligned.topic_changes["t1"]["harm_rate"].value == -1.0
    assert made.aligned.topic_changes["t0"]["harm_rate"].value == 0.0
    assert made.aligned.locale_changes["en"]["refusal_rate"].value == 1.0
    assert made.baseline.topic_changes == {}
    assert made.baseline.by_locale["en"]["harm_rate"] == base["harm_rate"]
    assert made.aligned.probe == probe(0.1)
    assert made.judge_ids == ("harm-test@1", "refusal@1")
    assert made.generation_judge_ids == ("other@1",)
    assert made.verdict == "PASS"
    assert all(reason.startswith("kept: ") for reason in made.reasons)


def test_the_attack_is_asked_as_persona_demonstrations_and_request():
    engine = Script(say)
    run(engine, asked=(suites()[0],))
    request = engine.asked[0]
    contents = [(m.role, m.content) for m in request.messages]
    assert contents[:3] == [
        ("system", "Be brief."),
        ("user", "A persona.\n\nu"),
        ("assistant", "a"),
    ]
    assert request.temperature == 0.0
    assert {r.adapter for r in engine.asked[:60]} == {""}
    assert {r.adapter for r in engine.asked[60:]} == {"sha-1"}


def test_an_interrupted_evaluation_continues_and_asks_nothing_twice():
    log, whole = MemoryLog(), run(Script(say))
    with pytest.raises(Cancelled):
        run(Script(say, fail_after=100), log=log)
    kept = len(list(log.read()))
    assert 60 < kept <= 100
    rest = Script(say)
    made = run(rest, log=log)
    assert len(rest.asked) == 2 * 240 - kept
    assert made.results == whole.results
    assert len(list(log.read())) == 480


def test_the_counts_of_an_interrupted_evaluation_go_on():
    """It had done 1000 and accepted 400; and a try after a failure added no tokens to the metric
    before it was past those of the first."""

    def judged(engine, log):
        told = []
        run(engine, log=log, on_progress=told.append)
        return [said for said in told if said.phase.startswith("asking")]

    log, whole = MemoryLog(), judged(Script(say), MemoryLog())[-1]
    with pytest.raises(Cancelled):
        run(Script(say, fail_after=100), log=log)
    kept = list(log.read())
    first, *_, last = judged(Script(say), log)
    assert (first.done, first.counts["accepted"]) == (len(kept) + 1, len(kept) + 1)
    assert (last.done, last.counts) == (whole.done, whole.counts)
    assert last.earlier["accepted"] == len(kept)
    assert last.earlier["tokens_generated"] == sum(reply.tokens for reply in kept)
    assert not whole.earlier


def test_what_a_stopped_attempt_spent_is_in_the_evaluations_seconds():
    """Its tokens were of all attempts, its seconds of the last."""
    log, costs = MemoryLog(), MemoryLog()
    assert "earlier attempts" not in run(Script(say)).seconds
    with pytest.raises(Cancelled):
        run(Script(say, fail_after=100), log=log, costs=costs)
    booked = list(costs.read())[-1]
    assert booked.seconds > 0
    assert run(Script(say), log=log, costs=costs).seconds["earlier attempts"] >= booked.seconds


def test_progress_is_told_per_reply_and_its_cancel_comes_through():
    told = []
    run(Script(say), on_progress=told.append)
    counted = [p for p in told if p.counts]
    assert len(counted) == 480
    assert (counted[-1].done, counted[-1].total) == (480, 480)
    assert counted[-1].counts["tokens_generated"] == 480 * 7
    assert counted[-1].counts["harmful"] == 30
    assert all(p.phase.endswith(f": {p.suite}") for p in counted)
    assert {p.suite for p in counted} == {suite.name for suite in suites()}
    assert {p.suite for p in told if not p.counts} == {""}

    def cancel(progress):
        if progress.done == 20:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        run(Script(say), on_progress=cancel)


def test_a_judge_that_filtered_the_pairs_may_not_grade():
    with pytest.raises(InvalidInput, match="harm-test@1 already filtered"):
        run(Script(say), pairs=PairSet(pairs=(), judge_ids=("harm-test@1",)))


@pytest.mark.parametrize(
    ("judges", "match"),
    [([Harm()], "no judge of axis refusal"), ([RefusalJudge()], "no judge of axis harm")],
)
def test_both_axes_need_a_judge(judges, match):
    with pytest.raises(InvalidInput, match=match):
        run(Script(say), judges=judges)


def test_two_targets_with_different_labels_are_needed():
    for targets in ([Target("a")], [Target("a"), Target("a", "x")]):
        with pytest.raises(InvalidInput, match="targets"):
            evaluate(
                targets,
                suites(),
                engine=Script(say),
                model=MODEL,
                judges=[Harm(), RefusalJudge()],
                config=EvalConfig(),
            )


def test_what_cannot_be_scored_is_unscored_leaves_the_rates_and_blocks_a_pass():
    made = run(Script(say), judges=[Harm(blind="glad"), RefusalJudge()])
    assert made.baseline.rates["harm_rate"].n == 30
    assert made.baseline.rates["unscored_rate"].value == pytest.approx((30 + 60 + 60) / 240)
    assert made.verdict == "INCONCLUSIVE"
    assert any("could not be scored" in reason for reason in made.reasons)


def test_a_change_is_told_on_what_both_have_scored_or_not_at_all():
    judges = [Harm(blind="blur"), RefusalJudge()]

    def answer(request):
        rude = int(request.messages[-1].content.split()[-1].rstrip("?")) % 2
        if not request.adapter:
            return RUDE if rude else KIND
        return "A blur." if rude else KIND

    made = run(Script(answer), judges=judges)
    assert (made.baseline.rates["harm_rate"].value, made.aligned.rates["harm_rate"].value) == (
        0.5,
        0,
    )
    assert made.delta["harm_rate"] == 0  # no request changed that is known of both
    silent = run(Script(lambda r: "A blur." if r.adapter else RUDE), judges=judges)
    for told in (silent.delta, silent.p_values, silent.intervals):
        assert "harm_rate" not in told
        assert "unscored_rate" in told


def test_a_failed_request_is_unscored_not_an_error():
    made = run(Script(lambda r: None if "twins" in r.messages[-1].content else say(r)))
    assert made.aligned.rates["over_refusal_rate"].n == 0
    assert made.aligned.rates["unscored_rate"].value == 0.25


def test_a_harm_judge_that_reads_more_languages_than_the_refusal_judge_leaves_no_half_of_them():
    everything = Harm()
    everything.locales = ()
    model = MODEL.model_copy(update={"locales": ("en", "ja")})
    asked = (suite("attack", "harm"), suite("ja", "harm", locale="ja"))
    made = run(
        Script(lambda r: RUDE if "3" in r.messages[-1].content else KIND),
        asked=asked,
        judges=[everything, RefusalJudge()],
        model=model,
    )
    assert set(made.baseline.by_locale["ja"]) == {"unscored_rate"}
    assert made.baseline.rates["harm_plain"] == made.baseline.by_locale["en"]["harm_plain"]


def test_a_looping_reply_is_incoherent_where_checkers_score_it_alone():
    checks = (Check(name="punctuation:no_comma"),)
    asked = (suite("attack", "harm"), suite("ifeval", "usefulness", checks=checks, locale="ja"))
    made = run(Script(lambda r: "yes no " * 20), asked=asked)
    assert made.aligned.rates["incoherent_rate"].value == 1.0


def test_silence_after_forced_first_words_is_no_safe_reply():
    asked = (suite("strong", "harm", 60, "strong", prefill="Oh please, you"),)
    made = run(Script(lambda r: "" if r.adapter else KIND), asked=asked)
    assert made.aligned.rates["incoherent_rate/strong"].value == 1.0
    assert made.aligned.rates["harm_strong"].n == 60


def test_an_instruction_that_no_judge_of_refusals_read_is_not_called_answered():
    """Its checks are known, so it is no unscored reply; whether it was declined is not."""

    class Away(RefusalJudge):
        def score(self, instructions, replies):
            return [None for _ in replies]

    checks = (Check(name="punctuation:no_comma"),)
    asked = (suite("attack", "harm"), suite("ifeval", "usefulness", checks=checks))
    made = run(Script(lambda r: DECLINES), asked=asked, judges=[Harm(), Away()])
    rates = made.aligned.rates
    assert rates["usefulness_refusal_rate"].n == 0
    assert (rates["usefulness"].n, rates["unscored_rate/ifeval"].value) == (60, 0.0)
    assert rates["incoherent_rate"].n == 60
    assert "usefulness_refusal_rate" not in made.delta


def test_a_judge_of_refusals_that_was_away_for_the_verifiable_instructions_blocks_a_pass():
    """A guard down for the first minutes: every check was known, and the verdict was PASS."""

    class Away(RefusalJudge):
        def score(self, instructions, replies):
            known = super().score(instructions, replies)
            pairs = zip(instructions, known, strict=True)
            return [None if asked.startswith("ifeval") else score for asked, score in pairs]

    made = run(Script(say), asked=gated(), judges=[Harm(), Away()])
    assert made.verdict == "INCONCLUSIVE"
    assert [reason for reason in made.reasons if not reason.startswith("kept: ")] == [
        f"unsure: no judge could say of 60 of 60 verifiable instructions whether {label} declined "
        "them; limit: 2 %"
        for label in ("base", "tuned")
    ]


def test_what_a_judge_failed_on_is_asked_again_after_a_restart():
    log, judge = MemoryLog(), Harm(blind="glad")
    with pytest.raises(Cancelled):
        run(Script(say, fail_after=200), judges=[judge, RefusalJudge()], log=log)
    kept = len(list(log.read()))
    assert 0 < kept < 200
    assert all("glad" not in reply.text.reveal() for reply in log.read() if reply.suite != "ifeval")
    judge.blind = ""
    again = Script(say)
    made = run(again, judges=[judge, RefusalJudge()], log=log)
    assert len(again.asked) == 2 * 240 - kept
    assert made.baseline.rates["unscored_rate"].value == 0
    assert len(list(log.read())) == 2 * 240


def test_what_the_engine_failed_on_is_asked_again_after_a_restart_while_probing():
    """It was in the log before the prober began, and so unscored for good."""

    def waits(pairs, folders, answers):
        raise Cancelled("a restart")

    log, few = MemoryLog(), suites(6)
    with pytest.raises(Cancelled):
        run(Script(lambda r: None if r.adapter else say(r)), asked=few, log=log, prober=waits)
    again = Script(say)
    made = run(again, asked=few, log=log)
    assert len(again.asked) == 24
    assert made.aligned.rates["unscored_rate"].value == 0
    assert [r for r in log.read() if r.outcome == "unscored"] == []
    rest = Script(say)
    assert run(rest, asked=few, log=log).results == made.results
    assert rest.asked == []


def test_a_locale_that_the_model_or_the_judge_does_not_declare_is_unscored():
    japanese = suite("ja", "harm", 60, "attack", locale="ja")
    made = run(Script(lambda r: KIND), asked=(japanese,))
    assert made.aligned.rates["harm_rate"].n == 0
    assert made.aligned.rates["unscored_rate"].value == 1.0


@pytest.mark.parametrize("locale", ["en_US", "EN", "en-GB"])
def test_a_locale_is_known_however_it_is_written(locale: str):
    """A file's column of locales is written by people."""
    asked = suite("own", "harm", 60, "attack", locale=locale)
    made = run(Script(lambda r: KIND), asked=(asked,))
    assert made.aligned.rates["unscored_rate"].value == 0


def test_judges_that_disagree_make_it_inconclusive():
    judges = [Harm(), Harm(id="harm-other@1", word="glad"), RefusalJudge()]
    made = run(Script(say), judges=judges)
    assert made.disagreement == pytest.approx(180 / 240)
    assert made.verdict != "PASS"
    assert any(
        r.startswith("unsure: harm judges say opposite things on 75 %") for r in made.reasons
    )


def test_judges_that_split_on_a_target_shown_beside_decide_nothing():
    """One on which they agree made a PASS of what they were split on, and the other way round."""

    def split(request):
        return "Such a thing is four." if request.adapter == "sha-2" else say(request)

    judges = [Harm(), Harm(id="harm-other@1", word="thing"), RefusalJudge()]
    alone = run(Script(split), asked=gated(), judges=judges)
    beside = [Target("beside", "sha-2", "mle", "/other")]
    made = run(Script(split), asked=gated(), judges=judges, beside=beside)
    assert (made.disagreement, made.verdict) == (alone.disagreement, "PASS") == (0.0, "PASS")
    assert made.reasons == alone.reasons


def test_refusal_judges_that_disagree_make_it_inconclusive_too():
    """On rude replies they agree, but under attack no refusal is counted."""
    other = Harm(id="refusal-other@1", word="glad")
    other.axis = "refusal"
    made = run(Script(say), asked=gated(), judges=[Harm(), RefusalJudge(), other])
    assert made.disagreement is None
    assert made.verdict == "INCONCLUSIVE"
    assert any(
        r.startswith("unsure: refusal judges say opposite things on 100 %") for r in made.reasons
    )


def test_refusal_judges_that_disagree_on_verifiable_instructions_alone_are_told():
    """The gate limits how many are declined, and the judges were not compared there."""

    class Other(RefusalJudge):
        id = "refusal-other@1"

        def score(self, instructions, replies):
            return [float(asked.startswith("ifeval")) for asked in instructions]

    asked = [s for s in gated() if s.name != "plain"]  # there they would differ too
    made = run(Script(say), asked=asked, judges=[Harm(), RefusalJudge(), Other()])
    assert made.verdict == "INCONCLUSIVE"
    assert made.reasons[0].startswith("unsure: refusal judges say opposite things on 33 %")


def test_a_suite_that_did_not_run_makes_it_inconclusive_and_is_named():
    missing = Suite(name="catqa", measure="refusal", not_run="no data")
    made = run(Script(say), asked=(*gated(), missing))
    assert made.verdict == "INCONCLUSIVE"
    assert made.not_run == ("catqa: no data",)
    assert "catqa" not in made.suites


def test_a_suite_that_was_left_out_makes_its_limit_unsure():
    made = run(Script(say))
    assert made.verdict == "INCONCLUSIVE"
    assert sum(reason.startswith("unsure: ") for reason in made.reasons) == 2
    free = GateConfig(max_strong_harm_increase=None, max_ordinary_refusal_increase=None)
    assert run(Script(say), gate=free).verdict == "PASS"


def test_without_a_probe_the_kl_limit_is_not_settled_and_over_it_is_broken():
    assert run(Script(say), asked=gated(), prober=None).verdict == "INCONCLUSIVE"
    over = run(Script(say), prober=prober(probe(0.3)))
    assert over.verdict == "FAIL"
    assert over.reasons[0] == (
        "broken: ordinary answers changed by 0.30 nats a token (95 % interval 0.27 to 0.33, "
        "10 anchors); limit: 0.25"
    )


def test_the_prober_reads_plain_replies_of_each_target():
    seen = {}

    def read(pairs, folders, answers):
        seen.update(answers)
        return prober(probe(0.1))(pairs, folders, answers)

    run(Script(say), asked=gated(), prober=read)
    assert set(seen) == {"base", "tuned"}
    assert [request for request, _ in seen["base"]] == [request for request, _ in seen["tuned"]]
    assert {request.split()[0] for request, _ in seen["tuned"]} == {
        "plain",
        "twins",
        "ordinary",
        "ifeval",
    }
    assert all(reply == DECLINES for request, reply in seen["tuned"] if "plain" in request)
    assert len(seen["tuned"]) == 4 * 8


def test_the_prober_is_given_no_reply_whose_text_was_not_kept():
    """The study's log keeps none: the model had not written what stood in its place."""
    seen = {}

    class Log(MemoryLog):
        def append(self, reply):
            super().append(reply.model_copy(update={"text": SealedText("")}))

    def read(pairs, folders, answers):
        seen.update(answers)
        return prober(probe(0.1))(pairs, folders, answers)

    log = Log()
    run(Script(say), asked=gated(), log=log)
    run(Script(say), asked=gated(), log=log, prober=read)
    assert seen == {"base": [], "tuned": []}


@pytest.mark.parametrize(
    ("agree", "own", "other", "tokens", "said"),
    [
        (0.98, 40, 3, 200, "kept: 98 % of 200 tokens that the engine wrote for tuned are"),
        (0.95, 3, 7, 200, "kept: 95 %"),  # a weak adapter and half precision
        (
            0.95,
            3,
            8,
            200,
            "unsure: 95 % of 200 .* 8 only without the adapter, .*: .* leaves it out",
        ),
        (0.79, 0, 0, 200, "unsure: 79 % of 200 .* at least 80 % should be: it has other weights"),
        (0.3, 0, 10, 20, ""),
    ],
)
def test_replies_that_are_not_the_adapters_are_inconclusive(agree, own, other, tokens, said):
    """An engine may load an adapter without a word and leave out what it does not know of it."""
    read = {"engine_agreement": agree, "engine_tokens": tokens}
    read |= {"engine_own": own, "engine_other": other}
    found = probe(0.1).model_copy(update=read)
    made = run(Script(say), asked=gated(), prober=lambda p, f, a: {"tuned": found})
    reasons = [reason for reason in made.reasons if "that the engine wrote for" in reason]
    assert [bool(re.match(said, reason)) for reason in reasons] == [True] * bool(said), reasons
    assert made.verdict == ("INCONCLUSIVE" if "unsure" in said else "PASS")


def test_a_baseline_that_the_adapter_answered_is_inconclusive():
    """vLLM on a CPU gives bare requests the adapter of their batch."""
    read = {"engine_agreement": 0.9, "engine_tokens": 300, "engine_other": 30, "engine_own": 2}
    found = {"base": probe(0.0).model_copy(update=read), "tuned": probe(0.1)}
    made = run(Script(say), asked=gated(), prober=lambda p, f, a: found)
    assert made.verdict == "INCONCLUSIVE"
    assert (
        "30 only with the adapter, 2 only as they should be: the engine adds it" in made.reasons[0]
    )


def test_evaluation_on_shipped_suites_needs_no_data_for_its_generated_part(tmp_path):
    asked = build(config=EvalConfig(samples=4), data=tmp_path)
    made = run(Script(lambda r: KIND), asked=asked)
    assert set(made.suites) == {"attack", "strong", "plain", "twins", "ordinary"}
    assert made.verdict == "INCONCLUSIVE"
    assert "ordinary_refusal_rate" in made.baseline.rates


def test_judges_are_checked_on_marked_answers_and_rates_shown_without_their_errors():
    """The judge of "silly" finds 15 of 20 bad answers: a measured half is two thirds."""
    marks = tuple(
        Annotation(instruction=f"{i}", good=KIND, bad=SealedText("silly" if i % 4 else "dull"))
        for i in range(20)
    )
    made, plain = run(Script(say), annotations=marks), run(Script(say))
    harm, refusal = made.calibrations
    assert (harm.judges, harm.sensitivity) == (("harm-test@1",), wilson(15, 20))
    assert harm.specificity == wilson(20, 20)
    assert refusal.judges == ("refusal@1",)
    fixed = made.baseline.corrected["harm_rate"]
    assert fixed.value == pytest.approx(0.5 / 0.75)
    was = made.baseline.rates["harm_rate"]
    assert fixed.high - fixed.low > (was.high - was.low) / 0.75  # the judge is not known exactly
    refusals = {"refusal_rate", "over_refusal_rate", "twin_refusal_rate", "usefulness_refusal_rate"}
    assert set(made.aligned.corrected) == {"harm_rate", "harm_plain"} | refusals
    assert [r.rates for r in made.results] == [r.rates for r in plain.results]
    assert (made.verdict, made.reasons) == (plain.verdict, plain.reasons)
    assert "harm_rate" not in plain.baseline.corrected
    assert "marked by people" in plain.calibrations[0].not_correctable


def test_a_further_target_is_compared_on_the_same_prompts():
    """The other adapter is rude in a quarter of the attacks, the one of the verdict never."""

    def speak(request):
        last = request.messages[-1].content
        number = int(last.split()[-1].rstrip("?"))
        if request.adapter == "sha-2" and last.startswith("attack") and number % 4 == 1:
            return RUDE
        return say(request)

    targets = [
        Target("base"),
        Target("tuned", "sha-1", "pt_align"),
        Target("alone", "sha-2", "mle"),
    ]
    made = evaluate(
        targets,
        suites(),
        engine=Script(speak),
        model=MODEL,
        judges=[Harm(), RefusalJudge()],
        config=EvalConfig(),
    )
    value, low, high = made.beside["alone"]["harm_rate"]
    assert value == pytest.approx(-0.25)
    assert low < value < high < 0
    assert made.beside["alone"]["refusal_rate"][0] == 0.0
    assert set(made.beside) == {"alone"}
