"""Does what is not done yet, says what runs and how long the rest takes, writes the page."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from bench.study.carry import pack, unpack
from bench.study.clock import Clock
from bench.study.evidence import Evidence
from bench.study.form import FORMS, FULL, Form
from bench.study.journal import Journal, threads
from bench.study.lab import Lab, replies_name
from bench.study.page import write_page
from bench.study.plan import Unit, units
from bench.study.record import Record, read_record, write_record
from ptalign.errors import PtalignError
from ptalign.nouns import digest_of

ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Command line of the study; 0 when every unit is done, whatever the goals say."""
    options = arguments()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    public = ROOT.parent / "shared" / "data"
    if public.is_dir():
        os.environ.setdefault("PTALIGN_EVAL_DATA", str(public))
    os.chdir(ROOT)
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)  # a shell's background job starts with it ignored

    try:
        records = [read_record(file) for file in options.records]
        form = form_of(options, records)
        if not options.page:
            check_judging(records)
        journal = Journal(options.out / form.name)
        Evidence(form, journal, records)  # parts that do not go together end it here
        if options.fresh:
            journal.forget()
        if options.go_on:
            go_on(form, journal, options.go_on, options.key)
        if not options.page:
            refuse_other_texts(form, journal)
    except (OSError, ValueError, PtalignError) as error:
        say(f"{error}")
        return 2
    failed: list[str] = []
    try:
        if not options.page:
            failed = study(form, journal, records, options.record, options.carry)
    except KeyboardInterrupt:
        say("stopped; the same command goes on from here")
        return 130
    finally:
        if page := publish(form, journal, records, options.record, options.carry):
            say(f"wrote {page.relative_to(ROOT) if page.is_relative_to(ROOT) else page}")
    for unit in failed:
        say(f"failed: {unit}")
    return 1 if failed else 0


def form_of(options: argparse.Namespace, records: Sequence[Record]) -> Form:
    """The form that the options ask for; unless seeds are named, those that are not recorded."""
    form = FORMS["smoke" if options.smoke else "quick" if options.quick else "full"]
    recorded = {seed for record in records for seed in record.seeds}
    seeds = options.seeds or [seed for seed in form.seeds if seed not in recorded]
    sizes = {name: min(n, options.samples or n) for name, n in form.suites.items()}
    return dataclasses.replace(
        form,
        seeds=tuple(seeds),
        methods=tuple(options.methods or form.methods),
        suites=sizes,
        pairs_file=options.pairs,
    )


def check_judging(records: Sequence[Record]) -> None:
    """Ends a study that would be judged by other code than the parts it is to stand beside.

    Raises:
        ValueError: Names the file of replies whose code is another.
    """
    names = {replies_name(data) for data in ("tone", "broad")}
    for other in sorted({name for record in records for name in record.judged} - names):
        raise ValueError(
            f"a record was judged by other code ({other}): run from its commit, or show it alone "
            "with --page"
        )


def refuse_other_texts(form: Form, journal: Journal) -> None:
    """Ends a study that would write all its texts, and so make all its runs, anew.

    Raises:
        ValueError: Names the sets.
    """
    planned = units(form, journal, Lab(form, journal, lambda _: None))
    texts = [u for u in planned if u.name.startswith(("instructions-", "pairs-"))]
    if found := list(stale(texts, journal)):
        raise ValueError(
            f"{', '.join(found)} in {journal.folder} would be made anew, by other code or of other "
            "sizes, and all runs on them: name another --out, or forget this study with --fresh"
        )


def go_on(form: Form, journal: Journal, folder: Path, key: Path) -> None:
    """Fills an empty journal from another machine's; one that is begun is left as it is.

    Raises:
        OSError: The folder is not one of `--carry`.
        ValueError: That machine's study was of other sizes or seeds, or its units were made by
            other code, so that all would be done again, texts included.
        NotReady, DataDamaged: As `unpack`.
    """
    if journal.begun:
        say(f"{journal.folder} is begun: going on in it")
        return
    if key.parent == folder:
        raise ValueError(f"{key} lies beside the sets that it opens: take it away from there")
    partial = journal.folder.with_name(f"{journal.folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a try that was cut short
    filled = Journal(partial)
    try:
        record = unpack(folder, key, filled)
        if dict(record.form) != form.sizes() or not set(record.seeds) <= set(form.seeds):
            raise ValueError(
                f"{folder} is of another form or size, or has seeds {list(record.seeds)} that are "
                "not asked for: give the same options"
            )
        planned = units(form, filled, Lab(form, filled, lambda _: None))
        there = {entry["unit"] for entry in filled.entries()}
        if found := list(stale(planned, filled)):
            commits = ", ".join(sorted({record.units[name]["commit"] for name in found}))
            raise ValueError(
                f"{', '.join(found)} would be done again: made by other code, or of another "
                f"--pairs. Go on in a worktree of {commits}, or begin a part of your own"
            )
        shutil.rmtree(journal.folder)
        partial.replace(journal.folder)  # whole or not at all
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    say(f"going on after {len(there)} units of {folder}")


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, of the command line unless given."""
    parser = argparse.ArgumentParser(prog="python -m bench.study", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="base, mle, pt_align, ut_uniform; one seed"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes; page stays in --out")
    parser.add_argument("--out", type=Path, default=Path("study-out"), help="journal folder")
    parser.add_argument("--fresh", action="store_true", help="forget what is finished")
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        metavar="SEED",
        help="training seeds (full: 0 1 2, quick: 0)",
    )
    parser.add_argument(
        "--record",
        type=Path,
        metavar="FILE",
        help="also write the numbers of what is finished, without texts, for --with",
    )
    parser.add_argument(
        "--with",
        type=Path,
        nargs="+",
        default=[],
        dest="records",
        metavar="FILE",
        help="put recorded parts into the page; only seeds that they lack are run here",
    )
    parser.add_argument(
        "--carry",
        type=Path,
        metavar="DIR",
        help="also write what another machine goes on from: a record and the sets, encrypted; "
        "their key stays in the journal (operator.key)",
    )
    parser.add_argument(
        "--go-on",
        type=Path,
        metavar="DIR",
        help="begin with what another machine wrote with --carry; needs --key",
    )
    parser.add_argument("--key", type=Path, metavar="FILE", help="operator.key of that machine")
    parser.add_argument("--samples", type=int, default=0, help="prompts a suite at most")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=FULL.methods,
        metavar="METHOD",
        help=f"methods to train beside base, of {', '.join(FULL.methods)}; the form's unless set",
    )
    parser.add_argument("--pairs", type=Path, help="train on this pair set (JSON, texts revealed)")
    parser.add_argument("--page", action="store_true", help="only write the page again")
    options = parser.parse_args(given)
    options.out = options.out.absolute()
    options.pairs = options.pairs and options.pairs.absolute()
    options.record = options.record and options.record.absolute()
    options.carry = options.carry and options.carry.absolute()
    options.go_on = options.go_on and options.go_on.absolute()
    options.key = options.key and options.key.absolute()
    if bool(options.go_on) != bool(options.key):
        parser.error("--go-on needs --key FILE, and --key is of nothing else")
    if options.go_on and options.fresh:
        parser.error("--go-on begins in an empty folder: name another --out in place of --fresh")
    options.records = [file.absolute() for file in options.records]
    return options


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def study(
    form: Form,
    journal: Journal,
    records: Sequence[Record] = (),
    record: Path | None = None,
    carry: Path | None = None,
) -> list[str]:
    """Runs the units that remain; writes what `publish` writes after each.

    Returns:
        Units that failed; what does not depend on them was still done.
    """
    import torch

    torch.set_num_threads(threads())
    clock = Clock(say)
    failed: list[str] = []
    with Lab(form, journal, clock.progress).opened() as lab:
        planned = units(form, journal, lab)
        set_stale_aside(planned, journal)
        clock.plan(planned, {u.name for u in planned if done(u, journal)})
        for unit in planned:
            if done(unit, journal):
                continue
            clock.begin(unit)
            begun = time.monotonic()
            try:
                inputs = unit.inputs()
                result = unit.work(digest_of(inputs)[7:15])
            except Exception as error:
                failed.append(f"{unit.name}: {type(error).__name__}: {error}")
                say(f"  failed: {failed[-1]}")
                clock.skip(unit)
                continue
            journal.keep(unit.name, inputs, result, time.monotonic() - begun)
            clock.end(unit)
            publish(form, journal, records, record, carry)
    return failed


def set_stale_aside(planned: Sequence[Unit], journal: Journal) -> None:
    """Takes what has other inputs now out of what counts, until it is done again.

    A page that mixed two codes or two pair sets would look whole, and a training that fails this
    time would leave the adapter of before to be evaluated in its place.
    """
    aside = []
    for name in stale(planned, journal):
        journal.set_aside(name)
        aside.append(name)
    if aside:
        say(
            f"set aside, for other code or other texts made them: {', '.join(aside)} "
            f"({journal.folder / 'stale'})"
        )


def publish(
    form: Form,
    journal: Journal,
    records: Sequence[Record],
    record: Path | None,
    carry: Path | None = None,
) -> Path | None:
    """Writes record and carried folder, if asked for, then the page.

    Where nothing is finished, a record or folder of before stays as it is.

    Returns:
        The page; None where nothing is finished, here or in the records.
    """
    begun = bool(journal.entries())
    if record and begun:
        write_record(form, journal, record)
    if carry and begun:
        pack(form, journal, carry)
    return write_page(form, journal, ROOT / "docs", records) if begun or records else None


def done(unit: Unit, journal: Journal) -> bool:
    """Whether a unit stands in the journal with the inputs that it would have now."""
    try:
        return journal.result(unit.name, unit.inputs()) is not None
    except LookupError:
        return False


def stale(planned: Sequence[Unit], journal: Journal) -> Iterator[str]:
    """Units that stand in the journal with other inputs than they would have now.

    Each is looked at when it is asked for: what depends on one set aside meanwhile is stale too.
    """
    for unit in planned:
        if journal.entry(unit.name) is not None and not done(unit, journal):
            yield unit.name


def say(line: str) -> None:
    """Progress goes to stderr."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
