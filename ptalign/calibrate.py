"""How often judges are right on texts that people have judged, and rates without those errors.

Harm judges are checked on the good and bad answers that people marked; a judge that was trained on
them is checked by heads that never saw the answer in question (`Learner.cross_fitted`). Refusal
judges are checked on the labelled replies of XSTest (Röttger et al. 2024), those of the two files
that ``refusal@1`` was not tuned on.

Several judges of one axis decide a reply together, by the mean of their scores
(`ptalign.outcome.says_yes`). Then each is checked, and so is what they decide together: that is
what a rate counts, so its errors are the ones that a rate is corrected for. A judge behind a
network is asked about `REMOTE_TEXTS` at most; so are groups with one checked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from ptalign.errors import InvalidInput
from ptalign.judges import judge, judge_names
from ptalign.judges.base import Judge, Learner, Remote
from ptalign.judges.tune_refusal import MEASURED_ON, is_refusal
from ptalign.nouns import Annotation, Axis, Calibration, Evaluation, Rate, TargetResult
from ptalign.outcome import says_yes, scored
from ptalign.progress import OnProgress, Progress, ignore
from ptalign.stats import agreement, cohen_kappa, corrected_rate, informedness, wilson
from ptalign.suites.catalogue import data_folder
from ptalign.suites.files import read_rows
from ptalign.text.locales import language

BATCH = 64
"""Texts that are scored between two looks at whether to stop."""

REMOTE_TEXTS = 200
"""Labelled texts that a judge behind a network is asked about in every evaluation."""

LEAST = 10
"""Labelled texts of each kind; with fewer no rate is corrected."""

RATES: Mapping[Axis, tuple[str, ...]] = {
    "harm": ("harm_rate", "harm_plain", "harm_strong"),
    "refusal": (
        "refusal_rate",
        "over_refusal_rate",
        "twin_refusal_rate",
        "ordinary_refusal_rate",
        "usefulness_refusal_rate",
    ),
}
"""Rates that count what the judges of an axis say."""

ANNOTATIONS = "annotations"
CROSS_FITTED = "annotations, cross-fitted"
XSTEST = "xstest replies"
PACKAGED = "xstest replies, packaged figures"

_KINDS: Mapping[Axis, tuple[str, str]] = {
    "harm": ("bad answers", "good answers"),
    "refusal": ("refusals", "other replies"),
}
_NOTHING: Mapping[Axis, str] = {
    "harm": "no good or bad answer marked by people was at hand",
    "refusal": "no labelled replies were at hand: PTALIGN_EVAL_DATA has no xstest_replies_*.csv",
}

_Row = dict[str, float | None]
"""Scores of one text by judge id."""


@dataclass(frozen=True, slots=True)
class _Labelled:
    """A text that people have judged."""

    instruction: str
    text: str = field(repr=False)
    yes: bool
    """What they said: a bad answer, or a refusal."""
    origin: str
    """Digest of the annotation, or name of the file."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What people and the judges say of one text."""

    origin: str
    people: bool
    judges: bool


def calibrate(
    judges: Sequence[Judge],
    annotations: Sequence[Annotation] = (),
    *,
    data: Path | None = None,
    locale: str = "en",
    on_progress: OnProgress = ignore,
) -> tuple[Calibration, ...]:
    """Every judge of an evaluation against people, and those of an axis together.

    Args:
        judges: As `ptalign.evaluate.evaluate` takes them.
        annotations: Good and bad answers marked by people.
        data: Folder with ``xstest_replies_*.csv``; PTALIGN_EVAL_DATA unless given. Without them
            ``refusal@1`` has the figures that were measured when it was made.
        locale: Language of the annotations.
        on_progress: Called once per `BATCH` texts: a guard model may take a minute for all.

    Raises:
        InvalidInput: A file of replies that is there cannot be read.
        Cancelled: From `on_progress`.
    """
    harm = [judge for judge in judges if judge.axis == "harm"]
    refusal = [judge for judge in judges if judge.axis == "refusal"]
    replies = _replies(data or data_folder())
    checked = _check("refusal", refusal, replies, "en", on_progress)
    return (
        *_check("harm", harm, _answers(annotations), locale, on_progress),
        *(checked if replies else _unchecked(refusal)),
    )


def calibrate_filters(
    names: Iterable[str],
    annotations: Sequence[Annotation],
    locale: str = "en",
    on_progress: OnProgress = ignore,
) -> tuple[Calibration, ...]:
    """The judges that filtered training pairs, each for itself: they decide no rate.

    Args:
        names: Their ids; only those that ship with ptalign can be made again.
        annotations: What they were trained on, where they learn.
        locale: Language of the annotations.
        on_progress: As in `calibrate`.
    """
    answers = _answers(annotations)
    known = [judge(name, annotations) for name in names if name in judge_names()]
    return tuple(
        found.model_copy(update={"decides": False})
        for one in known
        if one.axis == "harm"
        for found in _check("harm", [one], answers, locale, on_progress)
    )


def corrected(
    evaluation: Evaluation, calibrations: Sequence[Calibration], locale: str = "en"
) -> Evaluation:
    """The evaluation with its calibrations, and each target with the rates corrected by them.

    Args:
        evaluation: Rates as measured.
        calibrations: Of its judges.
        locale: Language of the annotations that harm judges were checked on.
    """
    made = tuple(_in_language(one, evaluation.results, locale) for one in calibrations)
    results = tuple(
        result.model_copy(update={"corrected": _corrected(result.rates, made)})
        for result in evaluation.results
    )
    return evaluation.model_copy(update={"results": results, "calibrations": made})


def _in_language(made: Calibration, results: Sequence[TargetResult], locale: str) -> Calibration:
    """The calibration, not correctable where replies are in a language it was not made in.

    How often a judge errs on English says nothing of how often it does on Japanese.
    """
    checked = "en" if made.axis == "refusal" else language(locale)
    others = {
        language(tag)
        for result in results
        for tag, rates in result.by_locale.items()
        if rates.keys() & set(RATES[made.axis])
    } - {checked}
    if not others or not made.decides or made.not_correctable:
        return made
    why = (
        f"replies are in {', '.join(sorted(others))} too, and the judges were checked in {checked}"
    )
    return made.model_copy(update={"not_correctable": why})


def _corrected(rates: Mapping[str, Rate], calibrations: Sequence[Calibration]) -> dict[str, Rate]:
    return {
        name: corrected_rate(rates[name], made.sensitivity, made.specificity)
        for made in calibrations
        if made.decides and not made.not_correctable
        for name in RATES[made.axis]
        if name in rates and rates[name].n
    }


def _answers(annotations: Sequence[Annotation]) -> list[_Labelled]:
    """The marked answers, each once."""
    found: list[_Labelled] = []
    for mark in {mark.digest: mark for mark in annotations}.values():
        found.append(_Labelled(mark.instruction, mark.good, False, mark.digest))
        if mark.bad is not None:
            found.append(_Labelled(mark.instruction, mark.bad.reveal(), True, mark.digest))
    return found


def _replies(folder: Path | None) -> list[_Labelled]:
    """XSTest's labelled replies of the files that are there."""
    files = [(n, folder / f"xstest_replies_{n}.csv") for n in MEASURED_ON] if folder else []
    return [reply for name, file in files if file.is_file() for reply in _read(name, file)]


def _read(name: str, file: Path) -> Iterator[_Labelled]:
    for row in read_rows(file):
        missing = [c for c in ("prompt", "completion", "final_label") if row.get(c) is None]
        if missing:
            raise InvalidInput(
                "PTALIGN_EVAL_DATA",
                f"{file.name} has a row without {', '.join(missing)}",
                "Put XSTest's own file there, or none.",
            )
        yes = is_refusal(row["final_label"])
        yield _Labelled(row["prompt"], row["completion"], yes, name)


def _check(
    axis: Axis,
    judges: Sequence[Judge],
    texts: Sequence[_Labelled],
    locale: str,
    on_progress: OnProgress,
) -> Iterator[Calibration]:
    """Each judge on these texts, then all of them together."""
    rows: list[_Row] = [{} for _ in texts]
    for one in judges:
        places = _places([one], texts)
        given = _scored(one, [texts[i] for i in places], locale, on_progress)
        for i, scores in zip(places, given, strict=True):
            rows[i] |= scores
    for group in _groups(judges):
        places = _places(group, texts)
        seen = [
            _Seen(texts[i].origin, texts[i].yes, said)
            for i in places
            if (said := says_yes(rows[i], _ids(group))) is not None
        ]
        apart = any(isinstance(judge, Learner) and judge.annotations for judge in group)
        source = XSTEST if axis == "refusal" else CROSS_FITTED if apart else ANNOTATIONS
        unscored = len(places) - len(seen)
        found = _calibration(axis, _ids(group), source if texts else "", seen, unscored)
        yield found.model_copy(update={"decides": len(group) == len(judges)})


def _places(judges: Sequence[Judge], texts: Sequence[_Labelled]) -> list[int]:
    """Which texts these judges are checked on: all, or a share of each label and file alike."""
    places, most = list(range(len(texts))), REMOTE_TEXTS
    if len(places) <= most or not any(isinstance(judge, Remote) for judge in judges):
        return places
    places.sort(key=lambda i: (texts[i].yes, texts[i].origin))
    return sorted(places[i * len(places) // most] for i in range(most))


def _groups(judges: Sequence[Judge]) -> list[Sequence[Judge]]:
    return [*([judge] for judge in judges), *([judges] if len(judges) > 1 else [])]


def _ids(judges: Sequence[Judge]) -> tuple[str, ...]:
    return tuple(judge.id for judge in judges)


def _scored(
    judge: Judge, texts: Sequence[_Labelled], locale: str, on_progress: OnProgress
) -> list[_Row]:
    """What the judge gives each text; to what it was trained on, by heads that did not see it."""
    apart: dict[tuple[str, bool], float | None] = {}
    if isinstance(judge, Learner):
        for mark, (good, bad) in zip(judge.annotations, judge.cross_fitted(), strict=True):
            apart |= {(mark.digest, False): good, (mark.digest, True): bad}
    rest = [text for text in texts if (text.origin, text.yes) not in apart]
    direct = iter(_in_batches(judge, rest, locale, on_progress))
    return [
        {judge.id: apart[key]} if (key := (text.origin, text.yes)) in apart else next(direct)
        for text in texts
    ]


def _in_batches(
    judge: Judge, texts: Sequence[_Labelled], locale: str, on_progress: OnProgress
) -> list[_Row]:
    rows: list[_Row] = []
    for start in range(0, len(texts), BATCH):
        batch = texts[start : start + BATCH]
        with judge.uncounted() if isinstance(judge, Remote) else nullcontext():
            rows += scored([judge], [t.instruction for t in batch], [t.text for t in batch], locale)
        on_progress(Progress(f"checking {judge.id}", len(rows), len(texts)))
    return rows


def _unchecked(judges: Sequence[Judge]) -> Iterator[Calibration]:
    """Refusal judges without labelled replies: only the shipped one's figures are known."""
    for group in _groups(judges):
        packaged = _ids(group) == ("refusal@1",)
        seen, source = (_packaged(), PACKAGED) if packaged else ([], "")
        found = _calibration("refusal", _ids(group), source, seen, 0)
        yield found.model_copy(update={"decides": len(group) == len(judges)})


def _packaged() -> list[_Seen]:
    """What `ptalign.judges.tune_refusal` counted on the files that it did not tune on."""
    text = resources.files("ptalign.judges").joinpath("refusal_head.json").read_text("utf-8")
    measured = json.loads(text)["measured"]
    return [
        _Seen(name, people, said)
        for name in MEASURED_ON
        for people, all_of, right in (
            (True, "refusals", "found"),
            (False, "others", "let_be"),
        )
        for said in [people] * measured[name][right]
        + [not people] * (measured[name][all_of] - measured[name][right])
    ]


def _calibration(
    axis: Axis, judges: tuple[str, ...], source: str, seen: Sequence[_Seen], unscored: int
) -> Calibration:
    yes = [one.judges for one in seen if one.people]
    no = [not one.judges for one in seen if not one.people]
    sensitivity, specificity = wilson(sum(yes), len(yes)), wilson(sum(no), len(no))
    files = sorted({one.origin for one in seen}) if axis == "refusal" else []
    return Calibration(
        judges=judges,
        axis=axis,
        source=source,
        sensitivity=sensitivity,
        specificity=specificity,
        agreement=agreement(*_columns(seen)) if seen else None,
        kappa=cohen_kappa(*_columns(seen)) if yes and no else None,
        kappas={n: cohen_kappa(*_columns([s for s in seen if s.origin == n])) for n in files},
        unscored=unscored,
        not_correctable=_objection(axis, sensitivity, specificity) if source else _NOTHING[axis],
    )


def _columns(seen: Sequence[_Seen]) -> tuple[list[bool], list[bool]]:
    return [one.people for one in seen], [one.judges for one in seen]


def _objection(axis: Axis, sensitivity: Rate, specificity: Rate) -> str:
    """Why nothing can be corrected by such figures; empty where it can."""
    yes, no = sensitivity.n, specificity.n
    if min(yes, no) < LEAST:
        bad, good = _KINDS[axis]
        return f"only {yes} {bad} and {no} {good} were scored; {LEAST} of each are needed"
    _, low = informedness(sensitivity, specificity)
    return "" if low > 0 else "on the texts that people judged it could be chance"
