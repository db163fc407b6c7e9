"""PostgreSQL and the server on it, both killed at random times; the history must hold."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from history import History
from postgres import Cluster
from running import Running, descendants
from test_crash import ask, kill_server, merge, small, under_kills
from world import end, server

from ptalign_server.vault import KeyFile

AWAY_SECONDS = 3.0
"""Longest time from the database's end to its next start."""


class Killer:
    """Kills the database and the server in turn, the database in three ways.

    A call is in flight while the database is away: its client tries again, as one may.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._ways = (self._stop, self._kill, self._kill_a_backend)
        self.killed: Counter[str] = Counter()

    def __call__(
        self, running: Running, history: History, draw: random.Random, number: int
    ) -> None:
        if number % 2:
            self.killed[kill_server(running, draw)] += 1
            return
        way = self._ways[number // 2 % len(self._ways)]
        request = small(draw)
        with ThreadPoolExecutor(1) as threads:
            self.killed[way(draw)] += 1
            call = threads.submit(ask, running, request)
            time.sleep(draw.uniform(0.0, AWAY_SECONDS))
            if not self._cluster.up:
                self._cluster.start()
            history.operations.add(call.result())

    def _stop(self, _: random.Random) -> str:
        self._cluster.stop_at_once()
        return "PostgreSQL by immediate stop"

    def _kill(self, _: random.Random) -> str:
        self._cluster.kill()
        return "PostgreSQL by SIGKILL"

    def _kill_a_backend(self, draw: random.Random) -> str:
        """The postmaster cuts all other connections then, and recovers by itself."""
        os.kill(draw.choice(backends(self._cluster)), signal.SIGKILL)
        return "one backend of PostgreSQL"


def backends(cluster: Cluster) -> list[int]:
    """Processes of the cluster that serve a connection."""
    names = {p: Path(f"/proc/{p}/cmdline").read_bytes() for p in descendants(cluster.pid)}
    return [pid for pid, name in names.items() if b"ptalign postgres 127.0.0.1" in name]


@pytest.mark.tier(2)
@pytest.mark.timeout(2600)
def test_killed_with_its_postgres_at_random_times(
    score: Any, tmp_path: Path, author_url: str, cluster: Cluster
) -> None:
    key = tmp_path / "operator.key"
    KeyFile.create(key)
    running = server(
        tmp_path / "state",
        author_url,
        PTALIGN_DATABASE=cluster.url,
        PTALIGN_KEY_FILE=str(key),
    ).start()
    killer = Killer(cluster)
    kills = score.size(40, 1)
    try:
        found = under_kills(running, random.Random(11), kills, killer)
    finally:
        end(running)
    what = "kills of PostgreSQL, gateway or worker at random times"
    row = score.row(what, 40)
    row.notes |= {f"killed {name}": str(count) for name, count in killer.killed.items()}
    merge(score, what, row.planned, kills, found)
