"""Migrates a database to the schema of this package.

    lock -> refuse foreign databases -> bootstrap -> new migrations -> changed repeatables -> unlock

A session advisory lock serialises concurrent runs. A migration runs in one transaction that begins with the insert of
its own row into SchemaMigration: when it fails, it leaves nothing behind, its row included.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg.rows import class_row

from gueststore.database import Connection, connect, describe, format_error
from gueststore.errors import ConfigurationError, StoreError
from gueststore.queries import query
from gueststore.scripts import Migration, Repeatable, Scripts, load_scripts

# "guestd" in ASCII: a fixed number that no other program uses.
ADVISORY_LOCK_KEY = 0x677565737464

# A statement that waits for a lock blocks all later ones: a migration gives up after this time and can run again.
LOCK_TIMEOUT = "10s"

# Longer than the slowest migration that another run may be executing.
WAIT_FOR_OTHER_RUN_SECONDS = 600.0

_WAIT_STEP_SECONDS = 0.2

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Applied:
    """One script that a run applied, and how long it took."""

    script: Migration | Repeatable
    seconds: float

    def __str__(self) -> str:
        return f"applied {self.script} in {self.seconds:.2f} s"


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of SchemaMigration."""

    number: int
    name: str
    checksum: str
    compat: int


@dataclass(frozen=True, slots=True)
class Status:
    """Which of the given scripts a database has run. `version` is 0 before the first migration.

    `licence` is TimescaleDB's: apache, timescale (the Community edition), or empty while the extension is missing.
    """

    version: int
    compat: int
    applied: tuple[Migration, ...]
    pending: tuple[Migration | Repeatable, ...]
    problems: tuple[str, ...]
    licence: str


def ignore_report(_line: str) -> None:
    """Discard a line of progress."""


def migrate(dsn: str, *, scripts: Scripts | None = None, report: Report = ignore_report) -> list[Applied]:
    """Apply the missing scripts and return them, in order; an empty list when the schema is current.

    StoreError when a migration fails (it is rolled back), was edited after it ran, or is unknown to this program;
    ConfigurationError when another tool migrates the database, it is not UTF8, or the server has no TimescaleDB.
    """
    scripts = scripts or load_scripts()
    with connect(dsn) as connection, hold_migration_lock(connection, report):
        refuse_foreign(connection, dsn)
        _require_utf8(connection, dsn)
        _require_timescaledb(connection, dsn)
        _run(connection, scripts.bootstrap, "bootstrap")
        state = _compare(connection, scripts)
        if state.problems:
            raise StoreError("; ".join(state.problems))
        applied = []
        for script in state.pending:
            report(f"applying {script} ...")
            applied.append(_apply(connection, script))
            report(str(applied[-1]))
        return applied


def read_status(dsn: str, *, scripts: Scripts | None = None) -> Status:
    """Compare a database with the scripts and change nothing. ConfigurationError for a foreign database."""
    with connect(dsn) as connection:
        refuse_foreign(connection, dsn)
        return _compare(connection, scripts or load_scripts())


@contextmanager
def hold_migration_lock(connection: Connection, report: Report) -> Iterator[None]:
    """Hold the advisory lock of this database's schema; StoreError when another run holds it too long.

    Polls instead of waiting in the server: a waiting statement holds a snapshot, and a CREATE INDEX CONCURRENTLY of the
    run that holds the lock would wait for that snapshot: a deadlock.
    """
    give_up_at = time.monotonic() + WAIT_FOR_OTHER_RUN_SECONDS
    waited = False
    while not _scalar(connection, "SELECT pg_try_advisory_lock(%s)", ADVISORY_LOCK_KEY):
        if not waited:
            report("another run is migrating this database; waiting for it ...")
            waited = True
        if time.monotonic() > give_up_at:
            raise StoreError(
                f"another run has held the migration lock for over {WAIT_FOR_OTHER_RUN_SECONDS:.0f} s: "
                "wait until it ends, or stop it, and run again"
            )
        time.sleep(_WAIT_STEP_SECONDS)
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute("SELECT pg_advisory_unlock(%s)", (ADVISORY_LOCK_KEY,))


def refuse_foreign(connection: Connection, dsn: str) -> None:
    """Raise ConfigurationError for a database that another tool migrates."""
    if _scalar(connection, "SELECT to_regclass('public._prisma_migrations') IS NOT NULL"):
        raise ConfigurationError(
            f"{describe(dsn)} is managed by Prisma (it holds _prisma_migrations), and two tools must not "
            "migrate one database: give gueststore a database of its own"
        )


def _require_utf8(connection: Connection, dsn: str) -> None:
    encoding = _scalar(connection, "SELECT current_setting('server_encoding')")
    if encoding != "UTF8":
        raise ConfigurationError(
            f"{describe(dsn)} has the encoding {encoding} and cannot hold every text of a guest: create one with "
            "CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0, and move the rows of an old one by pg_dump"
        )


def _require_timescaledb(connection: Connection, dsn: str) -> None:
    if _scalar(connection, "SELECT count(*) FROM pg_extension WHERE extname = 'timescaledb'"):
        return
    if not _scalar(connection, "SELECT count(*) FROM pg_available_extensions WHERE name = 'timescaledb'"):
        raise ConfigurationError(
            f"the server of {describe(dsn)} has no TimescaleDB: install the package "
            "postgresql-17-timescaledb (or timescaledb-2-postgresql-17), set "
            "shared_preload_libraries = 'timescaledb' and restart the server"
        )
    try:
        connection.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
    except psycopg.Error as exc:
        raise ConfigurationError(
            f"TimescaleDB cannot be enabled in {describe(dsn)} ({exc.diag.message_primary}): add timescaledb to the "
            "server's shared_preload_libraries and restart it, or have a superuser run CREATE EXTENSION timescaledb"
        ) from exc


def _compare(connection: Connection, scripts: Scripts) -> Status:
    ran, repeated = _read_applied(connection)
    licence = str(_scalar(connection, "SELECT coalesce(current_setting('timescaledb.license', TRUE), '')"))
    known = {migration.number for migration in scripts.migrations}
    problems = [
        f"migration {migration} was edited after it ran here: restore its text and put the change into a new migration"
        for migration in scripts.migrations
        if migration.number in ran and ran[migration.number].checksum != migration.checksum
    ]
    problems += [
        f"the database has run migration {row.number:04} {row.name}, which this program does not know: "
        "install a newer one"
        for row in ran.values()
        if row.number not in known
    ]
    return Status(
        version=max(ran, default=0),
        compat=max((row.compat for row in ran.values()), default=0),
        applied=tuple(migration for migration in scripts.migrations if migration.number in ran),
        pending=(
            *(migration for migration in scripts.migrations if migration.number not in ran),
            *(script for script in scripts.repeatables_for(licence) if repeated.get(script.name) != script.checksum),
        ),
        problems=tuple(problems),
        licence=licence,
    )


def _read_applied(connection: Connection) -> tuple[dict[int, _Row], dict[str, str]]:
    """Return the migrations that ran, by number, and the checksums of the repeatables, by name."""
    if _scalar(connection, "SELECT to_regclass('public.\"SchemaMigration\"') IS NULL"):
        return {}, {}
    with connection.cursor(row_factory=class_row(_Row)) as cursor:
        ran = {row.number: row for row in cursor.execute(query("schema/read_migrations"))}
    repeated: dict[str, str] = dict(connection.execute(b'SELECT "name", "checksum" FROM "SchemaRepeatable"').fetchall())
    return ran, repeated


def _apply(connection: Connection, script: Migration | Repeatable) -> Applied:
    started = time.monotonic()
    if isinstance(script, Migration) and not script.transactional:
        # One idempotent statement, recorded afterwards: a run that dies in between repeats it.
        _run(connection, script.body, str(script))
        _record(connection, script)
    else:
        with connection.transaction():
            _record(connection, script)
            _run(connection, script.body, str(script))
    return Applied(script, time.monotonic() - started)


def _record(connection: Connection, script: Migration | Repeatable) -> None:
    row: dict[str, object] = {"name": script.name, "checksum": script.checksum}
    if isinstance(script, Migration):
        row |= {"number": script.number, "body": script.body, "compat": script.compat}
        connection.execute(query("schema/insert_migration"), row)
    else:
        connection.execute(query("schema/upsert_repeatable"), row)


def _run(connection: Connection, body: str, what: str) -> None:
    """Run a script of many statements; StoreError names the script and the server's error."""
    connection.execute("SELECT set_config('lock_timeout', %s, FALSE)", (LOCK_TIMEOUT,))
    connection.execute("SELECT set_config('statement_timeout', '0', FALSE)")
    connection.execute("SELECT set_config('client_min_messages', 'warning', FALSE)")
    try:
        connection.execute(body.encode())
    except psycopg.errors.LockNotAvailable as exc:
        raise StoreError(
            f"{what} could not get its locks within {LOCK_TIMEOUT}; nothing was changed: run again"
        ) from exc
    except psycopg.Error as exc:
        raise StoreError(f"{what} failed and was rolled back: {format_error(exc)}") from exc


def _scalar(connection: Connection, select: str, *parameters: object) -> object:
    row = connection.execute(select.encode(), parameters or None).fetchone()
    return row[0] if row else None
