"""One database: SQLite in WAL mode, or PostgreSQL by URL; and its migrations."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from ptalign.errors import DataDamaged, InvalidInput, NotReady, Unsupported
from ptalign_server.store.schema import metadata

log = logging.getLogger("ptalign.server")
HEAD = "0003"
"""Newest schema this program knows."""
IMMEDIATE = "BEGIN IMMEDIATE"
LOCKED_SECONDS = 20
"""How long a change waits for another process's."""
LOOK_SECONDS = 0.002
"""How often it looks: about as long as the quickest change takes."""
TIMEOUTS = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
"""Seconds but for the last, milliseconds in which what was sent must be acknowledged."""
Kinds = dict[str, type | tuple[type, ...]]
_KINDS: Kinds = {
    "str": str,
    "bytes": bytes,
    "int": int,
    "float": (int, float),
    "bool": bool,
}
"""Annotation of a row's field -> what its column may give."""


class DatabaseUnavailable(NotReady):
    """The database can do nothing now, and will again without a restart."""


class DatabaseAway(DatabaseUnavailable):
    """The database server cannot be reached, or ended while it was asked.

    A change that was under way may stand or not: only who asked knows whether to ask again.
    """

    def __init__(self) -> None:
        super().__init__("the database is away. Calls work again, without a restart, with it.")


class DatabaseBusy(DatabaseUnavailable):
    """Other changes were in the way: nothing was changed.

    Attributes:
        waited: Whether it was waited for already, as for a locked file.
    """

    def __init__(self, *, waited: bool) -> None:
        super().__init__("the database is busy with other changes. Nothing was changed; try again.")
        self.waited = waited


class HeavyRow(Exception):
    """A row that is too large to be read on the event loop."""


def timeouts(url: str) -> dict[str, int]:
    """Arguments of a connection, by which a server that fell silent is away in half a minute.

    A failover that closes no connection would else hold up every change for the kernel's quarter of
    an hour. What the URL sets stays.
    """
    if not url.startswith(("postgresql://", "postgres://", "postgresql+psycopg")):
        return {}
    # postgres:// is no name that SQLAlchemy knows.
    asked = sa.make_url(url.replace("postgres://", "postgresql://", 1)).query
    return {name: value for name, value in TIMEOUTS.items() if name not in asked}


def connect(url: str) -> sa.Engine:
    """An engine whose commits are on disk when they return.

    Raises:
        InvalidInput: There can be no database at this URL, which is not quoted: it may hold a
            password.
        NotReady: PostgreSQL's driver is not installed.
    """
    try:
        backend = sa.make_url(_driver(url)).get_backend_name()
        if backend in {"sqlite", "postgresql"}:
            return _engine(url)
    except (sa.exc.ArgumentError, ImportError, ValueError):  # no URL, no such driver, no port
        pass
    raise InvalidInput(
        "PTALIGN_DATABASE",
        "is no URL of a database that ptalign can use",
        "Write postgresql://USER:PASSWORD@HOST/NAME, or unset it for SQLite in the state folder.",
    )


def _engine(url: str) -> sa.Engine:
    if not url.startswith("sqlite"):
        engine = sa.create_engine(
            _driver(url),
            connect_args=timeouts(url),
            pool_size=10,
            max_overflow=10,
            pool_pre_ping=True,
        )
        sa.event.listen(engine, "handle_error", _away)
        return engine
    engine = sa.create_engine(
        url,
        connect_args={"timeout": LOCKED_SECONDS, "check_same_thread": False},
        pool_size=8,
        max_overflow=8,
    )
    sa.event.listen(engine, "connect", _sqlite_connect)
    sa.event.listen(engine, "begin", _sqlite_begin_soon)
    sa.event.listen(engine, "handle_error", _locked)
    return engine


def connect_to_glance(url: str) -> sa.Engine | None:
    """One connection of one thread, which fails at once where it would wait; SQLite only."""
    if not url.startswith("sqlite"):
        return None
    arguments = {"timeout": 0, "check_same_thread": False}
    engine = sa.create_engine(url, connect_args=arguments, poolclass=sa.StaticPool)
    sa.event.listen(engine, "begin", _sqlite_begin)
    return engine


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection for a statement that reads: no write lock, and on SQLite no transaction."""
    with engine.connect().execution_options(begin="") as connection:
        yield connection


@contextmanager
def snapshot(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection whose statements all see the database as it was at the first of them."""
    options: dict[str, Any] = {"begin": "BEGIN"}
    if engine.dialect.name == "postgresql":
        options["isolation_level"] = "REPEATABLE READ"
    with engine.connect().execution_options(**options) as connection:
        yield connection


def migrate(engine: sa.Engine) -> None:
    """Brings the schema to `HEAD`; a schema of a newer release is refused untouched.

    Raises:
        Unsupported: The database was written by a newer release.
    """
    revision = current_revision(engine)
    if revision == HEAD:
        return
    if revision is None:
        _create(engine)
        return
    if revision > HEAD:
        raise Unsupported(
            f"database schema {revision} is newer than this release knows ({HEAD}). Nothing was "
            "changed. Start the newer release, or restore a backup made by this one."
        )
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with exclusive(engine) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


@contextmanager
def exclusive(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that only one server at a time can hold, for what must be made once."""
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.text("select pg_advisory_xact_lock(70746)"))
        yield connection


def _create(engine: sa.Engine) -> None:
    """An empty database gets the newest schema at once; alembic is slow to import."""
    with exclusive(engine) as connection:
        metadata.create_all(connection)
        version = sa.Table(
            "alembic_version",
            sa.MetaData(),
            sa.Column("version_num", sa.String(32), primary_key=True),
        )
        version.create(connection, checkfirst=True)
        if connection.execute(sa.select(version)).first() is None:
            connection.execute(version.insert().values(version_num=HEAD))


def current_revision(engine: sa.Engine) -> str | None:
    """Schema revision in the database, None when it is empty."""
    with reading(engine) as connection:
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        row = connection.execute(sa.text("select version_num from alembic_version")).first()
        return None if row is None else str(row[0])


def _driver(url: str) -> str:
    """A bare postgresql:// URL means psycopg 3, the driver of the extra ``postgres``."""
    for prefix in ("postgresql://", "postgres://"):
        if url.startswith(prefix):
            try:
                import psycopg  # noqa: F401
            except ImportError:
                raise NotReady("PostgreSQL needs: pip install 'psycopg[binary]'") from None
            return "postgresql+psycopg://" + url.removeprefix(prefix)
    return url


def _away(context: sa.engine.ExceptionContext) -> BaseException | None:
    """One error for all the ways in which a driver says that its server is gone.

    And one for text that a caller sent and PostgreSQL cannot hold, which the driver refuses.
    """
    if context.is_pre_ping:
        return None  # the pool makes a new connection
    if isinstance(context.sqlalchemy_exception, sa.exc.DataError) and "NUL" in str(
        context.original_exception
    ):
        return InvalidInput("request", "holds a NUL character in a name", "Send it without.")
    # deadlock_detected and serialization_failure: ended so that another change could go on.
    if getattr(context.original_exception, "sqlstate", None) in {"40P01", "40001"}:
        return DatabaseBusy(waited=False)
    connecting = context.connection is None
    if connecting and isinstance(context.sqlalchemy_exception, sa.exc.OperationalError):
        # A wrong password looks the same: the operator needs the reason, a caller does not.
        log.error(
            "no connection to the database: %s", " ".join(str(context.original_exception).split())
        )
        return DatabaseAway()
    return DatabaseAway() if context.is_disconnect else None


def _locked(context: sa.engine.ExceptionContext) -> BaseException | None:
    """Another process held SQLite's file for longer than a change waits, or the file is none."""
    words = str(context.original_exception)
    if "database is locked" in words:
        return DatabaseBusy(waited=True)
    if "file is not a database" in words:
        return DataDamaged(
            "the file of the SQLite database is none, or its head is lost. Move it (ptalign.db in "
            "the state folder, or where PTALIGN_DATABASE says) away and restore it."
        )
    return None


def _sqlite_connect(connection: Any, _: Any) -> None:
    # The driver's own transaction handling begins late and breaks savepoints.
    connection.isolation_level = None
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "secure_delete=ON",
        "temp_store=MEMORY",
        "wal_autocheckpoint=1000",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _sqlite_begin(connection: sa.Connection) -> None:
    # A writer takes its lock at once: upgrading a read lock later can fail with SQLITE_BUSY. A
    # single statement that reads needs none: beginning and ending one costs more than reading.
    if statement := connection.get_execution_options().get("begin", IMMEDIATE):
        connection.exec_driver_sql(statement)


def _sqlite_begin_soon(connection: sa.Connection) -> None:
    """As `_sqlite_begin`, and begins a change within milliseconds of the end of another process's.

    SQLite waits in steps that grow to a tenth of a second, while a change takes four milliseconds:
    with a worker at work, one submit in a hundred waited 100 to 200 ms for nothing.
    """
    if connection.get_execution_options().get("begin", IMMEDIATE) != IMMEDIATE:
        _sqlite_begin(connection)
        return
    driver: Any = connection.connection.dbapi_connection
    deadline = time.monotonic() + LOCKED_SECONDS
    driver.execute("PRAGMA busy_timeout=0")
    try:
        while time.monotonic() < deadline:
            try:
                driver.execute(IMMEDIATE)
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    break
            time.sleep(LOOK_SECONDS)
        _sqlite_begin(connection)  # once more, for an error that says what is wrong
    finally:
        driver.execute(f"PRAGMA busy_timeout={LOCKED_SECONDS * 1000}")


def protect_file(url: str) -> None:
    """Creates a SQLite file that only this user can read.

    Raises:
        NotReady: It cannot be made there.
    """
    if url.startswith("sqlite:///"):
        path = url.removeprefix("sqlite:///")
        try:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            raise NotReady(
                f"the database {path} cannot be written: {error.strerror}. Correct "
                "PTALIGN_DATABASE or PTALIGN_STATE, or what this user may do there."
            ) from None


def kinds_of(row: type[Any]) -> Kinds:
    """What the columns of a row may give, by the fields of its dataclass."""
    return {field.name: _KINDS[str(field.type)] for field in fields(row)}


def of_their_kinds(values: Mapping[str, Any], kinds: Kinds) -> bool:
    """Whether a row's values have the types that `kinds_of` found.

    SQLite keeps a type with each value, and one flipped bit makes text of bytes or bytes of text:
    a MAC is the same over both.
    """
    return all(isinstance(values[name], kind) for name, kind in kinds.items())
