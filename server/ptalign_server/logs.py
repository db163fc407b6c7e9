"""Logging of both processes: our own lines, and only warnings of the libraries."""

from __future__ import annotations

import logging

QUIET = ("httpx", "httpcore", "alembic", "dbos", "uvicorn", "grpc")


def set_up(level: str) -> None:
    """Logs to standard error. HTTP libraries log addresses at INFO and bodies at DEBUG: never."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
