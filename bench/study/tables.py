"""The tables of docs/study.md, each from `Evidence` alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.study.evidence import Estimate, Evidence, over_seeds
from bench.study.form import BASE, Run
from bench.study.goals import OURS, Goal, points
from ptalign.nouns import Rate
from ptalign.numbers import signed
from ptalign.report.words import RATES

TITLES = {key: title for key, title, _ in RATES}
TITLES |= {
    "over_refusal_rate/twins": "… twins of harmful requests",
    "over_refusal_rate/xstest-safe": "… XSTest, safe half",
    "refusal_rate/xstest-unsafe": "XSTest, unsafe half declined",
    "harm_strong": "… first words forced (strong)",
    "incoherent_rate/attack": "… under attack",
    "incoherent_rate/strong": "… first words forced",
    "incoherent_rate/plain": "… asked plainly",
    "incoherent_rate/ordinary": "… to ordinary requests",
    "incoherent_rate/twins": "… to twins of harmful requests",
    "incoherent_rate/xstest-safe": "… to XSTest's safe half",
}
PROBED = (
    ("harm_word_ratio", "likelihood of harm words under attack, to base", 2),
    ("selectivity", "selectivity, nats (lower is better)", 2),
    ("benign_kl", "benign KL, nats a token", 3),
    ("benign_nll", "benign NLL, nats a token", 3),
)


def shown_methods(evidence: Evidence) -> list[str]:
    """Base and the methods of the form, whether they are done yet or not."""
    return [BASE, *evidence.form.methods]


def goal_table(found: Iterable[Goal]) -> list[str]:
    """Limit, value, interval and verdict of each goal."""
    rows = [[g.what, g.limit, g.reached, g.interval, f"**{g.state}**", g.note] for g in found]
    return [table(["measure", "goal", "reached", "95 % interval", "", "remarks"], rows)]


def rate_table(evidence: Evidence) -> list[str]:
    """Every rate of every method; a suite's own share of unscored replies is in the journal."""
    methods = shown_methods(evidence)
    names = ordered(evidence.measures())
    rows = []
    for name in names:
        cells = []
        for method in methods:
            found = evidence.mean(method, name)
            cells.append(
                f"{found.value:.3f} ({found.low:.2f}–{found.high:.2f}), n {found.n}"
                if found
                else "–"
            )
        rows.append([TITLES.get(name, name), *cells])
    return (
        [table(["share (95 % interval)", *methods], rows)] if rows else ["Nothing was asked yet."]
    )


def judges_at_odds(evidence: Evidence) -> list[str]:
    """Refusals that count as harmful because the lexical judge flags a word in them."""
    labels = [run.label for run in evidence.compared() if evidence.asked(run)]
    labels = [*evidence.bases(), *labels]
    rows = []
    for label in labels:
        cells = [label]
        for suite, measure in FLAGGED:
            share, both = evidence.rate(label, measure), evidence.double(label, suite)
            cells.append(_interval(share) if share else "–")
            cells.append(f"{both.value:.3f}" if both.n else "–")
        rows.append(cells)
    header = ["run", "plain: declined", "declined, yet flagged", "twins: declined", "… flagged"]
    header += ["strong attack: rude", "… and called a refusal"]
    return [ODDS, table(header, rows)] if labels else []


FLAGGED = (
    ("plain", "refusal_rate"),
    ("twins", "over_refusal_rate/twins"),
    ("strong", "harm_strong"),
)
"""Suites, and what the replies that two judges disagree on are taken from or added to."""
ODDS = (
    "A reply that the refusal judge calls a refusal and the lexical harm judge calls rude counts "
    "as harmful, not as declined. Some of these insult while they decline; some only repeat a word "
    "of the request (“I won't make them feel …”); under the strong attack the first words are "
    "forced, and what follows may decline. The goals above count them as harmful."
)


def ordered(names: Iterable[str]) -> list[str]:
    """Rates in the report's order, parts after their whole.

    Shares of unscored replies by suite are left to the journal: the gate alone reads them. So is
    the gate's name for the refusals of twins: they are a part of over-refusal here.
    """
    order = {key: i for i, (key, _, _) in enumerate(RATES)}
    gates = ("unscored_rate/", "twin_refusal_rate")
    names = (name for name in names if not name.startswith(gates))
    return sorted(names, key=lambda n: (order.get(n.partition("/")[0], 99), n))


def differences(evidence: Evidence) -> list[str]:
    """Paired differences and intervals: to base, to mle, and of pt_align to the other methods."""
    methods = evidence.form.methods
    asked = [
        [(method, BASE) for method in methods],
        [(method, "mle") for method in methods if method != "mle"],
        [(OURS, method) for method in methods if method not in (OURS, "mle")],
    ]
    names = ordered(evidence.measures())
    if not names:
        return ["Nothing was asked yet."]
    return [_changes(evidence, names, others) for others in asked if others]


def _changes(evidence: Evidence, names: Sequence[str], others: Sequence[tuple[str, str]]) -> str:
    """A table of differences, one column a pair of methods."""
    rows = []
    for name in names:
        found = [evidence.change(method, against, name) for method, against in others]
        cells = [
            f"{points(f.value)} ({points(f.low)} to {points(f.high)})" if f else "–" for f in found
        ]
        rows.append([TITLES.get(name, name), *cells])
    return table(["points (paired 95 % interval)", *(f"{m} − {a}" for m, a in others)], rows)


def every_run(evidence: Evidence) -> list[str]:
    """One row a run and rate: share, interval, paired difference from base, p-value."""
    runs = [run for run in evidence.compared() if evidence.asked(run)]
    names = ordered(evidence.measures())
    rows = [[base, *(_share(evidence, base, n) for n in names)] for base in evidence.bases()]
    for run in runs:
        cells = []
        for name in names:
            paired = evidence.paired(run.label, evidence.base_of(run), name)
            p = f", p {paired.p_value:.2g}" if paired else ""
            cells.append(_share(evidence, run.label, name) + p)
        rows.append([run.label, *cells])
    if not rows:
        return ["No run is done yet."]
    header = ["run", *(TITLES.get(name, name).removeprefix("… ") for name in names)]
    found = [table(header, rows), "p: McNemar's exact test against base on the same prompts."]
    curve = evidence.curve()
    if curve:
        base = evidence.curve_base()
        points_of = [("base", *base)] if base else []
        points_of += [(run.label, safe, unsafe) for run, safe, unsafe in curve]
        found.append(
            table(
                ["XSTest curve", "safe refused", "unsafe refused"],
                [[name, _interval(safe), _interval(unsafe)] for name, safe, unsafe in points_of],
            )
        )
    return found


def _share(evidence: Evidence, label: str, name: str) -> str:
    found = evidence.rate(label, name)
    return _interval(found) if found else "–"


def _interval(found: Estimate | Rate) -> str:
    return f"{found.value:.3f} ({found.low:.2f}–{found.high:.2f})"


def probe_table(evidence: Evidence) -> list[str]:
    """Teacher-forced measures per method, with their range over seeds."""
    rows = []
    for key, title, digits in PROBED:
        cells = []
        for method in shown_methods(evidence):
            found = evidence.probed(method, key)
            spread = (
                f" ({found.least:.{digits}f} to {found.most:.{digits}f})"
                if found and found.least != found.most
                else ""
            )
            cells.append(f"{found.value:.{digits}f}{spread}" if found else "–")
        rows.append([title, *cells])
    return [table(["", *shown_methods(evidence)], rows)]


def words(evidence: Evidence) -> list[str]:
    """Most suppressed tokens by topic, masked, and ordinary words that lost."""
    run = next((r for r in evidence.compared("pt_align") if evidence.trained(r)), None)
    adapter = evidence.trained(run) if run else None
    if run is None or adapter is None:
        return []
    top = sorted(adapter["suppressed"], key=lambda s: s["p_before"] - s["p_after"], reverse=True)
    rows = [
        [
            f"`{s['token']}`",
            s["topic"],
            str(s["count"]),
            f"{s['p_before']:.3f}",
            f"{s['p_after']:.3f}",
        ]
        for s in top[:12]
    ]
    lost = ", ".join(
        f"{word} {signed(-abs(nats), 2)}" for word, nats in list(adapter["collateral"].items())[:12]
    )
    return [
        f"Most suppressed tokens of {run.label} (masked: first letter and length):",
        table(["token", "topic", "times", "p before", "p after"], rows),
        f"Ordinary words that lost most on held-out anchors, nats: {lost or 'none'}.",
    ]


def training_table(evidence: Evidence) -> list[str]:
    """Tokens, weight, guards and time of every run, the tenfold and curve ones too."""
    rows = []
    for run in evidence.runs:
        adapter = evidence.adapter(run)
        if adapter is None:
            continue
        guards = "; ".join(f"{k} {v}" for k, v in adapter.guards.items() if k != "live")
        rows.append(
            [
                run.label,
                str(adapter.tokens_mle),
                str(adapter.tokens_ut),
                str(adapter.tokens_anchor),
                weights(run, [s.ut_weight for s in adapter.ledger]),
                f"{adapter.retain_kl:.3f}",
                guards,
                f"{adapter.seconds:.0f}",
            ]
        )
    header = ["run", "MLE tokens", "UT tokens", "held tokens", "λ", "benign KL", "guards", "s"]
    return [table(header, rows)] if rows else ["Nothing is trained yet."]


def weights(run: Run, ledger: Sequence[float]) -> str:
    """lambda: matched, and where it ended."""
    if run.method not in ("pt_align", "ut_uniform") or not ledger:
        return "–"
    return f"{max(ledger):.2f}, {ledger[-1]:.2f} at the end"


def data(evidence: Evidence) -> list[str]:
    """Numbers of the sets, part by part."""
    found = []
    for kind in ("tone", "broad"):
        for part, asked in evidence.results(f"instructions-{kind}").items():
            found.append(
                f"`{kind}`{_of(part, evidence)}: {asked['harmful']} of {asked['requested']} "
                f"harmful instructions, {asked['twins']} twins. {_stats(asked['stats'])}. "
                f"Rejected: {_counts(asked['rejected'])}."
            )
        for part, pairs in evidence.results(f"pairs-{kind}").items():
            came = "imported, made earlier by the same stages: " if pairs.get("imported") else ""
            found.append(
                f"`{kind}`{_of(part, evidence)}: {came}{pairs['pairs']} pairs "
                f"({pairs['polarised']} with a toxic side), {pairs['twins']} twins, "
                f"{pairs['anchors']} anchors, {pairs['annotations_used']} annotations, "
                f"{pairs.get('digest', '')[:19]}. {_stats(pairs['stats'])}. Rejected: "
                f"{_counts(pairs['rejected'])}."
            )
    suites = [
        [
            s["name"],
            str(s["prompts"]),
            str(s["max_tokens"]),
            "; ".join(_counts(n) + _of(part, evidence) for part, n in s["left_out"].items()),
            s["not_run"],
        ]
        for s in evidence.suites()
    ]
    header = ["suite", "prompts", "tokens a reply", "left out", "not run"]
    return [*found, *([table(header, suites)] if suites else [])]


def _of(part: str, evidence: Evidence) -> str:
    return f" ({part})" if len(evidence.parts) > 1 else ""


def _stats(stats: dict[str, float]) -> str:
    return ", ".join(f"{k.replace('_', ' ')} {v:.3g}" for k, v in stats.items())


def _counts(counted: dict[str, int]) -> str:
    return ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in counted.items()) or "–"


def times(evidence: Evidence) -> list[str]:
    """Seconds of every unit, as they were run."""
    entries = evidence.entries()
    rows = [
        [e["unit"], e["ended"][:19], f"{e['seconds']:.0f}", str(e["load"]), e["commit"]]
        for e in entries
    ]
    total = over_seeds([e["seconds"] for e in entries])
    whole = (
        f"{total.value * len(entries) / 60:.0f} min in all." if total else "Nothing is done yet."
    )
    return [whole, table(["unit", "ended", "s", "load (5 min)", "commit"], rows)]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(header), line(["---"] * len(header)), *(line(row) for row in rows)])
