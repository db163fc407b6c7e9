"""`--tier N`: tier 0 is a small part of every test (`make test`); 1..4 run parts at full size."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from postgres import Cluster

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
RESULTS = ROOT / "docs" / "faults.json"
for folder in (HERE, HERE.parent / "server"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption("--tier", type=int, default=0, choices=range(5), help="0: small parts of all")
    group.addoption("--scale", type=float, default=1.0, help="share of a tier's counts to run")
    group.addoption("--again", action="store_true", help="run what this commit has passed too")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "tier(n): the tier that runs this at its full size")
    config.addinivalue_line("markers", "full: left out of `make test`")


def tier_of(config: pytest.Config) -> int:
    """The option's value; 0 where this file was loaded too late to add it (`make test`)."""
    return int(config.getoption("--tier", 0))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = tier_of(config)
    done = set() if not wanted or config.getoption("--again") else passed(wanted)

    def mine(item: pytest.Item) -> bool:
        if HERE not in item.path.parents:
            return True
        if not wanted:
            return item.get_closest_marker("full") is None
        mark = item.get_closest_marker("tier")
        return mark is not None and mark.args[0] == wanted and item.nodeid not in done

    drop = [item for item in items if not mine(item)]
    items[:] = [item for item in items if mine(item)]
    config.hook.pytest_deselected(items=drop)


@dataclass
class Row:
    """One line of the score sheet."""

    test: str
    what: str
    tier: int
    planned: int
    ran: int = 0
    bad: int = 0
    notes: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    commit: str = ""
    passed: bool = False


class Score:
    """What one test counted."""

    def __init__(self, test: str, tier: int, full_tier: int, scale: float) -> None:
        self._test, self._tier, self._full, self._scale = test, tier, full_tier, scale
        self._start = time.monotonic()
        self.rows: dict[str, Row] = {}

    @property
    def in_tier(self) -> bool:
        """Whether this runs in its own tier: every point, every limit; only the counts shrink."""
        return bool(self._tier)

    def size(self, full: int, small: int) -> int:
        """How many to run: `full` in the test's own tier, `small` in `make test`."""
        return max(small, round(full * self._scale)) if self._tier else small

    def row(self, what: str, planned: int) -> Row:
        """A line of the sheet; `planned` is its full size."""
        return self.rows.setdefault(what, Row(self._test, what, self._full, planned))

    def close(self, passed: bool) -> None:
        for row in self.rows.values():
            row.seconds = round(time.monotonic() - self._start, 1)
            row.passed, row.commit = passed and not row.bad, commit()


@pytest.fixture
def score(request: pytest.FixtureRequest) -> Iterator[Score]:
    """Counts of this test, for the score sheet."""
    mark = request.node.get_closest_marker("tier")
    full_tier = int(mark.args[0]) if mark else 1
    scale = float(request.config.getoption("--scale", 1.0))
    made = Score(request.node.nodeid, tier_of(request.config), full_tier, scale)
    yield made
    report = getattr(request.node, "report_call", None)
    made.close(report is not None and report.passed)
    if tier_of(request.config):
        keep(made.rows.values())


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.when == "call":
        item.report_call = report  # type: ignore[attr-defined]


def pytest_terminal_summary(terminalreporter: object, config: pytest.Config) -> None:
    if tier_of(config):
        from sheet import summary, write

        write()
        terminalreporter.write_line(summary(tier_of(config)))  # type: ignore[attr-defined]


def read() -> list[dict[str, object]]:
    """The rows kept so far."""
    found: list[dict[str, object]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    return found


def keep(rows: object) -> None:
    """Replaces the rows of the same tests; two tiers may run at once."""
    new = [asdict(r) for r in rows]  # type: ignore[attr-defined]
    tests = {row["test"] for row in new}
    with Path(__file__).open() as alone:
        fcntl.flock(alone, fcntl.LOCK_EX)
        kept = [r for r in read() if r["test"] not in tests]
        merged = sorted([*kept, *new], key=lambda r: (r["tier"], r["test"], r["what"]))
        RESULTS.write_text(json.dumps(merged, indent=1) + "\n")


def passed(tier: int) -> set[str]:
    """Tests of a tier that this commit has passed: a run that was cut short goes on."""
    now = commit()
    rows = [r for r in read() if r["tier"] == tier and r["commit"] == now]
    return {str(r["test"]) for r in rows if r["passed"]} - {
        str(r["test"]) for r in rows if not r["passed"]
    }


def commit() -> str:
    """Short hash of the commit under test."""
    result = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return result.stdout.strip()


@pytest.fixture(scope="session")
def author_url() -> Iterator[str]:
    """An engine by rule that answers after a few milliseconds."""
    from world import author

    with author(0.02) as url:
        yield url


@pytest.fixture
def cluster(program: Callable[..., str]) -> Iterator[Cluster]:
    """A PostgreSQL of the test's own."""
    from postgres import Cluster

    made = Cluster(program).start()
    yield made
    made.remove()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the two-layer Llama that the server tests train."""
    from world import load

    core, tools = load("core/conftest.py"), load("server/conftest.py")
    pairs = core.make_pairs()
    texts = [t for p in pairs.pairs for t in (p.instruction, p.positive)]
    texts += [p.toxic.reveal() for p in pairs.polarised]
    folder: Path = tools.save_llama(core, texts, pairs, tmp_path_factory.mktemp("tiny"))
    return folder
