"""docs/study.md: what was run, every number of it, and what it says about the goals."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path

from bench.results import device_name, write_whole
from bench.study import plots
from bench.study.evidence import Evidence
from bench.study.form import DEFAULTS, Form
from bench.study.goals import goals
from bench.study.journal import Journal
from bench.study.record import Record
from bench.study.tables import (
    data,
    differences,
    every_run,
    goal_table,
    judges_at_odds,
    probe_table,
    rate_table,
    shown_methods,
    times,
    training_table,
    words,
)

STAMP = re.compile(r"<!-- study: (\w+),")
NOTES = "notes-{form}.md"


def write_page(form: Form, journal: Journal, docs: Path, records: Sequence[Record] = ()) -> Path:
    """Writes the page and its plots, with the parts of the study that other machines recorded.

    A smoke run's page stays beside its journal. A quick page never replaces a full one: it goes to
    ``study-quick.md`` then.

    Returns:
        Where the page is.
    """
    evidence = Evidence(form, journal, records)
    page = place_of(form, journal, docs)
    pictures = page.with_suffix("")
    pictures.mkdir(parents=True, exist_ok=True)
    drawn = draw(evidence, pictures)
    notes = pictures / NOTES.format(form=form.name)
    words = notes.read_text("utf-8") if notes.is_file() else ""
    write_whole(page, text(evidence, drawn, words))
    return page


def place_of(form: Form, journal: Journal, docs: Path) -> Path:
    """Which file the page goes to."""
    if form.name == "smoke":
        return journal.folder / "study.md"
    page = docs / "study.md"
    there = STAMP.search(page.read_text("utf-8")) if page.is_file() else None
    if form.name == "quick" and there and there[1] == "full":
        return docs / "study-quick.md"
    return page


def draw(evidence: Evidence, folder: Path) -> list[str]:
    """Writes the pictures there are data for, and returns their Markdown."""
    base = evidence.curve_base()
    curve = [("base", *base)] if base else []
    curve += [(run.label, safe, unsafe) for run, safe, unsafe in evidence.curve()]
    firsts = [r for r in evidence.compared() if r.seed == evidence.form.seeds[0]]
    made = {
        "rates": ("Rates with 95 % intervals", plots.rates(evidence, shown_methods(evidence))),
        "training": ("Losses of the first seed", plots.training(evidence, firsts)),
        "xstest": ("The XSTest curve", plots.xstest(curve) if curve else ""),
    }
    found = []
    for name, (title, svg) in made.items():
        if svg:
            (folder / f"{name}.svg").write_text(svg, "utf-8")
            found.append(f"![{title}]({folder.name}/{name}.svg)")
    return found


def text(evidence: Evidence, drawn: Sequence[str], notes: str) -> str:
    """The whole page."""
    form = evidence.form
    title = "# Study: does the method hold up?"
    parts = [
        f"<!-- study: {form.name}, written by python -m bench.study; words of people come from "
        f"{NOTES.format(form=form.name)} -->",
        title + ("" if form.name == "full" else f" ({form.name} form)"),
        *head(evidence),
        "## Goals",
        *goal_table(goals(evidence)),
        *([notes.strip()] if notes else []),
        "## Rates",
        *drawn,
        *rate_table(evidence),
        *judges_at_odds(evidence),
        "## Differences on the same prompts",
        *differences(evidence),
        "## Every run",
        *every_run(evidence),
        "## Without sampling",
        *probe_table(evidence),
        *words(evidence),
        "## Training",
        *training_table(evidence),
        "## Data",
        *data(evidence),
        "## How it was measured",
        how(evidence),
        "## Time",
        *times(evidence),
    ]
    return "\n\n".join(parts) + "\n"


HOW = """\
- One instruction set and one pair set{each}, made once on the real engine (vLLM) or imported; every
  run trains on them.
- Evaluation decodes greedily, one reply a prompt; the same prompts for every target{each}. Prompts
  with a MiniLM cosine of 0.9 or more to a training request are left out. Situations, request forms,
  personas and demonstrations of the suites appear nowhere in training.
- Judges of the evaluation ({graders}) are not those that filtered the pairs ({filters}). They are
  lexical and cheap: they stand for rudeness of tone and for the wording of a refusal, not for harm
  in general.
- With one seed a share has Wilson's interval and a difference, paired by prompt, Tango's; several
  prompts of one situation count for less (design effect). With more seeds, situations and training
  seeds are drawn with replacement (bootstrap, 4000 draws; of the seeds one less than all), and
  it is widened to hold each seed's own interval. How much seeds differ, two or three hardly tell.
- McNemar's exact p-values take each prompt for itself and are not corrected for the number of
  comparisons.
- Benign KL and NLL are read on held-out anchors. Harm words are read {words}.
  They are means over those texts. Benign KL's interval is a bootstrap over them, from the lowest to
  the highest end of any seed; the other measures show their range over seeds, which does not count
  that other texts would give other means.
- Guards record: no run is stopped, dropped or repeated because of what it gave."""


def how(evidence: Evidence) -> str:
    """The method in words, with the judges that were used."""
    asked = next((a for run in evidence.compared() if (a := evidence.asked(run))), None)
    found = asked["evaluation"] if asked else {}

    def names(key: str) -> str:
        return ", ".join(f"`{name}`" for name in found.get(key, ())) or "none yet"

    return HOW.format(
        graders=names("judge_ids"),
        filters=names("generation_judge_ids"),
        words=words_of(evidence),
        each=" a part" if len(evidence.parts) > 1 else "",
    )


def words_of(evidence: Evidence) -> str:
    """Which toxic answers the harm words stand in."""
    unseen = evidence.unseen_toxic()
    if unseen:
        return f"in {unseen} toxic answers that are held out from training, under attack"
    return "in toxic answers that were trained on, under attack: no pair of this set is held out"


def _steps(evidence: Evidence) -> str:
    """How long the compared runs trained."""
    found = {len(run["ledger"]) for r in evidence.compared() if (run := evidence.trained(r))}
    counts = ", ".join(map(str, sorted(found))) or "no"
    return (
        f"{counts} steps"
        if evidence.form.steps
        else f"{counts} steps, {DEFAULTS.epochs:g} passes over the pairs or 28"
    )


def head(evidence: Evidence) -> list[str]:
    """What was run, on what, and what of it is still missing."""
    entries = evidence.entries()
    commits = list(dict.fromkeys(entry["commit"] for entry in entries if entry["commit"]))
    form = evidence.form
    there = {entry["unit"] for entry in entries}
    untrained = [r.label for r in evidence.runs if f"train/{r.label}" not in there]
    unasked = [r.label for r in evidence.runs if not r.tenfold and f"ask/{r.label}" not in there]
    unasked = [label for label in unasked if label not in untrained]
    dates = f"{entries[0]['ended'][:10]} to {entries[-1]['ended'][:10]}" if entries else "–"
    seeds = ", ".join(map(str, form.seeds))
    nice = sorted({entry["nice"] for entry in entries})
    found = [
        f"SmolLM2-135M-Instruct, float32, policy `tone-en`; methods: base, "
        f"{', '.join(form.methods)}; training seeds {seeds}; {_steps(evidence)}. "
        f"Form **{form.name}**; commit {', '.join(f'`{c}`' for c in commits) or '–'} "
        f"(a `+` marks uncommitted changes); {dates}; {device(evidence)}; "
        f"niceness {', '.join(map(str, nice)) or '–'}.",
    ]
    if form.name == "quick":
        targets = len(form.methods) + 1
        some = "all six targets" if targets == 6 else f"{targets} of six targets"
        found.append(
            f"**Quick form: one seed, fewer prompts than the goals ask for, {some}. It shows that "
            "the path works and where the numbers lie; it proves nothing that needs seeds.** "
            "`make study` is the full form."
        )
    sets = evidence.results("pairs-tone").values()
    if any(pairs.get("imported") for pairs in sets):
        found.append(
            "**The pair set was not made by this run but imported (`--pairs`)**, from an earlier "
            "run of stages 1 and 2 on the real engine; its digest is under Data."
        )
    if len(evidence.parts) > 1:
        own = "each with pairs of its own: a part draws texts and training anew"
        shared = "on shared pairs" if len({p.get("digest") for p in sets}) == 1 else own
        found.append(
            f"**Put together from {len(evidence.parts)} parts** "
            f"({'; '.join(part.title for part in evidence.parts)}), {shared}. Each run is compared "
            "with the base and the runs of its own part only."
        )
    if untrained or unasked:
        lists = [f"not run: {', '.join(untrained)}"] if untrained else []
        lists += [f"trained, not evaluated: {', '.join(unasked)}"] if unasked else []
        found.append(
            f"**Unfinished**, {len(untrained) + len(unasked)} of {len(evidence.runs)} runs: "
            f"{'; '.join(lists)}."
        )
    return found


def device(evidence: Evidence) -> str:
    """Processors, cores, threads and Python of the machines that did the units."""
    here = {"device": device_name().rpartition(",")[0], "cores": os.cpu_count()}
    here |= {"python": platform.python_version(), "threads": "?"}
    machines = {
        f"{m['device']}, {m['cores']} cores, {m['threads']} thread(s), Python {m['python']}"
        for m in ([here | entry for entry in evidence.entries()] or [here])
    }
    return "; ".join(sorted(machines))
