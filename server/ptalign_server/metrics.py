"""Every metric of the service, in one place. Gateway and worker write, the gateway serves.

Label values come from closed sets; nothing of a record's text is ever a label. Both processes
write into files under ``PROMETHEUS_MULTIPROC_DIR``, which `prepare` sets before the first import
of prometheus_client.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ptalign.errors import DataDamaged

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
GAUGES: Final = "livemostrecent"
"""What several processes' values of a gauge become: the newest of those that live."""
SUMMED: Final = ("counter", "histogram")
"""Kinds whose values outlive their process: Prometheus takes a sum that falls for a restart."""
LEFT = "left"
"""Stands for the process in the names of files that a dead one left, until the next has them."""
RESERVED = 256 * 1024
"""Bytes of each metric file; all methods with all codes take about 100 kB."""


def prepare(folder: Path) -> None:
    """Empties and sets the shared folder: call before any process starts to write."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    os.environ[VARIABLE] = str(folder)


def registry() -> CollectorRegistry:
    """A registry that reads what every process wrote."""
    from prometheus_client import CollectorRegistry, multiprocess

    collected = CollectorRegistry()
    multiprocess.MultiProcessCollector(collected)
    return collected


def forget(pid: int) -> None:
    """Drops the live gauges of a process that ended, and leaves its sums to the next one.

    Files of its own for each would be half a MiB for each worker that dies.
    """
    from prometheus_client import multiprocess

    multiprocess.mark_process_dead(pid)
    folder = Path(os.environ[VARIABLE])
    for kind in SUMMED:
        left = folder / f"{kind}_{LEFT}.db"
        with contextlib.suppress(OSError):  # it died before it wrote any
            if not left.exists():
                (folder / f"{kind}_{pid}.db").rename(left)


def _take_over() -> None:
    """Makes what a dead process left this one's, which goes on from its values."""
    folder = Path(os.environ[VARIABLE])
    for kind in SUMMED:
        own = folder / f"{kind}_{os.getpid()}.db"
        with contextlib.suppress(OSError):  # mostly nobody died
            if not own.exists():  # else it is mapped by now
                (folder / f"{kind}_{LEFT}.db").rename(own)


def _reserve() -> None:
    """Gives this process's metric files their bytes on disk, before prometheus_client maps them.

    Its own are sparse, and doubled as labels come up: touching a new page of a map on a full disk
    is a SIGBUS.
    """
    folder = os.environ.get(VARIABLE)
    if not folder:
        return
    _take_over()
    for kind in (*SUMMED, f"gauge_{GAUGES}"):
        with contextlib.suppress(OSError), Path(folder, f"{kind}_{os.getpid()}.db").open("ab") as f:
            os.posix_fallocate(f.fileno(), 0, RESERVED)


class Metrics:
    """The metrics; made once per process, after `prepare`."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        _reserve()
        # A registry of their own: several servers may live in one test process.
        own = CollectorRegistry()
        fast = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"ptalign_{name}", text, labels, registry=own)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"ptalign_{name}", text, labels, registry=own, multiprocess_mode=GAUGES)

        self.rpcs = counter("rpcs_total", "Calls by method and status code", "method", "code")
        self.rpc_seconds = Histogram(
            "ptalign_rpc_seconds",
            "Latency of calls; streams until they end",
            ["method"],
            buckets=fast,
            registry=own,
        )
        self.operations = gauge("operations", "Operations by kind and state", "kind", "state")
        self.queue_depth = gauge("queue_depth", "Operations that wait to run", "kind")
        # Without labels: a series that is born with its first error shows no increase.
        self.data_damaged = counter(
            "data_damaged_total", "Calls and operations that met changed data"
        )
        self.engine_up = gauge(
            "engine_up", "1 while the engine takes requests, or training has its device", "engine"
        )
        self.device_wait_seconds = gauge(
            "device_wait_seconds",
            "How long the first job in line has waited for another model to leave the device",
        )
        self.engine_running = gauge("engine_running", "Requests in flight", "engine")
        self.tokens_generated = counter("tokens_generated_total", "Tokens the engine generated")
        self.instructions = counter(
            "instructions_total", "Instruction drafts by outcome", "outcome", "reason"
        )
        self.pairs = counter("pairs_total", "Pair drafts by outcome", "outcome", "reason")
        self.train_tokens = counter("train_tokens_total", "Trained tokens by part", "part")
        self.train_loss = gauge("train_loss", "Loss of the last step by part, nats", "part")
        self.ut_weight = gauge("ut_weight", "lambda of the last step")
        self.step_seconds = Histogram(
            "ptalign_train_step_seconds",
            "Time of one training step",
            buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80),
            registry=own,
        )
        self.evaluation_rate = gauge(
            "evaluation_rate",
            "Rates of the newest evaluation, shares in 0..1; NaN: not measured",
            "axis",
            "target",
        )
        self.retention_success = gauge(
            "retention_last_success_timestamp_seconds",
            "When retention last went through all tenants with nothing left out",
        )
        self.disk_free = gauge("disk_free_bytes", "Free where the state folder lies", "volume")
        self.disk_size = gauge("disk_size_bytes", "Size of what the state folder lies on", "volume")
        self.state_used = gauge(
            "state_used_bytes", "What the state folder holds, every 10 minutes", "kind"
        )
        self.worker_up = gauge("worker_up", "1 while the server has a worker process")
        self.worker_restarts = counter("worker_restarts_total", "Times the worker was restarted")

    def failed(self, error: BaseException) -> None:
        """Counts what ended a call or an operation, where it is damage to stored data."""
        if isinstance(error, DataDamaged):
            self.data_damaged.inc()


REASONS = frozenset(
    {
        "answer_like", "beside_the_point", "called_wrong", "copied_demo", "copied_example",
        "duplicate", "engine_error", "equal", "frame_leaked", "given_up", "harmful", "harsh",
        "known", "language", "like_positive", "malformed", "near_duplicate", "never_synthesize",
        "no_twin_examples", "not_a_request", "not_apart", "not_benign", "off_topic", "over_count",
        "over_quota", "refuses", "repetitive", "reworded", "swapped", "threat", "too_far",
        "too_long", "too_short", "truncated", "unscored", "worn_out",
    }
)  # fmt: skip
"""Reasons a draft may be rejected for, whoever wrote it; any other counts as ``other``."""

_OF_WHAT = re.compile(
    r"^((positive_only|positive|toxic|twin|pair|parent|anchor|constraint|seed|excerpt)_)+"
)


_BROUGHT = ("rejected.parent_", "rejected.seed_", "rejected.excerpt_")


def rejections(counts: Mapping[str, int]) -> dict[str, int]:
    """``rejected.<reason>`` counts of drafts by a closed set of reasons, all voices together.

    What callers brought (a parent's records, seeds, excerpts) is no draft: of it none is counted as
    accepted either.
    """
    found: dict[str, int] = {}
    for name, value in counts.items():
        if name.startswith("rejected.") and not name.startswith(_BROUGHT):
            reason = _OF_WHAT.sub("", name.removeprefix("rejected."))
            label = reason if reason in REASONS else "other"
            found[label] = found.get(label, 0) + value
    return found
