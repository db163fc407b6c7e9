"""Everything the service keeps: operations, resources, sealed sets, artefacts, the audit trail."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa

from ptalign_server.settings import Settings
from ptalign_server.store.artefacts import Artefacts
from ptalign_server.store.audit import Audit
from ptalign_server.store.db import connect, exclusive, migrate, protect_file
from ptalign_server.store.glance import Glances, Tables
from ptalign_server.store.holds import Holds
from ptalign_server.store.keys import Keys, no_keys
from ptalign_server.store.operations import ID, Freeze, Operations
from ptalign_server.store.resources import Resources
from ptalign_server.store.sets import Sets
from ptalign_server.store.withdrawals import Withdrawals
from ptalign_server.store.writer import Writer
from ptalign_server.vault import KeyFile, Vault, operator_keys

T = TypeVar("T")


class Store:
    """Opens the database and the folders, and brings their parts together.

    Args:
        freeze: Turns an operation's row into the event body that watchers receive.
    """

    def __init__(self, settings: Settings, freeze: Freeze) -> None:
        settings.make_folders()
        protect_file(settings.database_url)
        self.engine = connect(settings.database_url)
        try:
            migrate(self.engine)
            self.holds = Holds(self.engine)
            self.holds.take_over(settings.state / "holds.json")
            made_here = settings.embedded and not settings.key_command
            if made_here and not settings.key_path.exists() and no_keys(self.engine):
                KeyFile.create(settings.key_path)
            self.vault = Vault(operator_keys(settings))
            self.audit = Audit(self.engine, self.vault)
            self.keys = Keys(self.engine, self.vault, self.audit.begin)
        except BaseException:
            self.engine.dispose()  # SQLite's side files go with the last connection
            raise
        self.operations = Operations(self.engine, self.vault, freeze)
        self.resources = Resources(self.engine, self.vault)
        self.withdrawals = Withdrawals(self.engine)
        tables = Tables(self.operations, self.resources)
        self.glances = Glances(settings.database_url, self.vault, freeze, tables)
        self.sets = Sets(settings.state / "sets", self.keys)
        self.artefacts = Artefacts(
            settings.state / "artefacts",
            settings.artefacts,
            settings.state / "cache",
            settings.cache_gb * 1e9,
        )
        self._work = settings.state / "work"
        # Earlier versions brought adapters there; servers may share that folder now, not its files.
        shutil.rmtree(self._work / "cache", ignore_errors=True)
        self._writer = Writer(self.engine, self.audit)

    def claim_sets(self) -> None:
        """Makes sure that the sets are this database's own, before anything of them is erased.

        The MAC key tells databases apart: rotations, dumps and restored backups keep it.

        Raises:
            InvalidInput: They are another database's.
        """
        with exclusive(self.engine):  # the servers of one database start together
            self.sets.claim(self.vault.mac("sets", "database"))

    def work(self, operation_id: str) -> Path:
        """Working folder of an operation: checkpoints and the like, no record text."""
        return self._work / operation_id

    def worked(self) -> list[str]:
        """Ids of operations that have a working folder; whatever else lies there is passed over."""
        return [folder.name for folder in self._work.glob("*") if ID.fullmatch(folder.name)]

    def write(self, change: Callable[[sa.Connection], T]) -> Future[T]:
        """Applies a change by group commit; the future is done once it is on disk."""
        return self._writer.submit(change)

    def close(self) -> None:
        """Finishes queued changes and closes the database."""
        self._writer.close()
        self.glances.close()
        self.engine.dispose()
