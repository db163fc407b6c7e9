"""`python -m ptalign_server.worker PARENT`: started by the gateway, dies with it."""

from __future__ import annotations

import sys

from ptalign_server.process import die_with_parent


def main() -> None:
    """Runs the worker until SIGTERM."""
    die_with_parent(int(sys.argv[1]))
    from ptalign_server import logs
    from ptalign_server.settings import Settings
    from ptalign_server.worker.run import Worker

    settings = Settings()
    logs.set_up(settings.log_level)
    Worker(settings).run()


if __name__ == "__main__":
    main()
