"""A PostgreSQL of a test's own, on loopback; may be killed and started again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from running import alive

from ptalign_server.pool.command import free_port

BINARIES = [str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"))]
START_SECONDS = 60.0


class Cluster:
    """One cluster in a folder of its own.

    Args:
        program: Finds a system program or skips the test.
    """

    def __init__(self, program: Callable[..., str]) -> None:
        tools = Path(BINARIES[-1] if BINARIES else Path(program("initdb", "postgresql")).parent)
        self.folder, self.port = Path(tempfile.mkdtemp(prefix="ptalign-pg-")), free_port()
        self._as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        if self._as_user:
            shutil.chown(self.folder, "postgres")
        data = str(self.folder / "data")
        self._control = [str(tools / "pg_ctl"), "-D", data]
        self._call(str(tools / "initdb"), "-D", data, "-A", "trust", "-U", "ptalign", "--no-sync")

    @property
    def url(self) -> str:
        """What PTALIGN_DATABASE takes."""
        return f"postgresql://ptalign@127.0.0.1:{self.port}/postgres"

    @property
    def pid(self) -> int:
        """Pid of the postmaster."""
        return int((self.folder / "data" / "postmaster.pid").read_text().split()[0])

    @property
    def up(self) -> bool:
        """Whether its postmaster runs."""
        try:
            return alive(self.pid)
        except FileNotFoundError:
            return False

    def start(self) -> Cluster:
        """Starts it and waits until it takes connections, after a crash too."""
        flags = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self.folder}"
        command = [*self._control, "-o", flags, "-w", "-l", str(self.folder / "log"), "start"]
        limit = time.monotonic() + START_SECONDS
        while True:
            try:
                self._call(*command)
            except subprocess.CalledProcessError:  # the last one's children may still be there
                if time.monotonic() > limit:
                    raise
                time.sleep(0.2)
            else:
                return self

    def stop_at_once(self) -> None:
        """An immediate stop: no checkpoint, every connection is cut."""
        self._call(*self._control, "-m", "immediate", "stop")

    def kill(self) -> None:
        """SIGKILL to the postmaster; its children see that and end."""
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        while alive(pid):
            time.sleep(0.01)

    def remove(self) -> None:
        """Stops it, if it runs, and removes its folder."""
        if self.up:
            self.stop_at_once()
        shutil.rmtree(self.folder)

    def _call(self, *command: str) -> None:
        subprocess.run(
            [*self._as_user, *command], check=True, cwd=self.folder, stdout=subprocess.DEVNULL
        )
