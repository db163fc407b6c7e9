"""`python -m ptalign_server.worker PARENT`: started by the gateway, dies with it."""

from __future__ import annotations

import os
import sys

from ptalign_server.hardening import die_with_parent, refuse_unpickling
from ptalign_server.locks import hold_lock

LOCK_SECONDS = 30.0
"""How long the last worker of a killed server may take to be gone."""


def main() -> None:
    """Runs the worker until SIGTERM."""
    die_with_parent(int(sys.argv[1]))
    # The stages judge beside a busy engine: on 2 cores a second thread took three times the
    # processor time. Set before numpy and torch are read; engines and trainers set their own.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    refuse_unpickling()
    from ptalign_server import logs
    from ptalign_server.settings import Settings
    from ptalign_server.worker.run import Worker

    settings = Settings()
    logs.set_up(settings.log_level)
    # Two workers on one state folder would run the same operations twice.
    held = hold_lock(settings.run_dir / "worker.lock", LOCK_SECONDS)
    Worker(settings).run()
    held.close()


if __name__ == "__main__":
    main()
