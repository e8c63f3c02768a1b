"""Checks of the store: connection, schema, rights, clock, quarantine, roll-ups and age."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta

import psycopg

from guestd.core.errors import RowsRejected, SchemaMismatch, StoreUnavailable
from guestd.doctor.finding import Finding, fault, ok, warning
from guestd.store.connection import check_schema, connection_to, server_name, translate_errors
from guestd.store.locks import read_blockers
from gueststore import catalogue
from gueststore.alarms import read_alarms
from gueststore.errors import ConfigurationError, StoreError
from gueststore.queries import query
from gueststore.rollups import Rollup, read_rollups

# Smaller differences may come from the query itself; larger ones shift samples without a timestamp of their own.
MAX_CLOCK_SECONDS = 2.0
SHOWN_DIFFERENCES = 3
# An hour is rolled up when it is over, and after an outage the store has hours of samples to catch up with.
MAX_BEHIND = timedelta(hours=3)
RUNBOOK = "docs/runbook.md#storewantsaperson"

_FIXES = {
    "password": "put the password in the first line of store.password_file (a credential of the unit)",
    "certificate": "set sslrootcert in store.dsn to the CA of the server's certificate",
    "read-only": "make one of the servers in store.dsn writable, or add the writable one there; if none is a standby, "
    "default_transaction_read_only is on: SELECT * FROM pg_db_role_setting shows for whom",
    "slots": "raise max_connections in postgresql.conf, or find its clients: SELECT * FROM pg_stat_activity",
    "too many clients": "raise max_connections in postgresql.conf, or find the clients that use them",
    "as a superuser, reset it": "the message names the setting; whose it is: SELECT * FROM pg_db_role_setting",
    "role": "CREATE ROLE USER LOGIN IN ROLE guestd_writer, or correct user in store.dsn",
    "does not exist": "create it (createdb, then gueststore migrate), or correct dbname in store.dsn",
    "could not translate": "correct host in store.dsn",
}


async def check_store(dsn: str) -> AsyncIterator[Finding]:
    """Run all checks of the store on one connection."""
    try:
        async with connection_to(dsn) as connection, translate_errors():
            yield ok("store", f"{server_name(dsn)} answers and is writable")
            async for finding in _check_database(connection, dsn):
                yield finding
    except (StoreUnavailable, RowsRejected) as exc:
        yield explain_unavailable(str(exc))


def explain_unavailable(error: str) -> Finding:
    """Find the fix for a store that cannot be reached."""
    default = "start PostgreSQL (systemctl start postgresql), or correct host and port in store.dsn"
    fix = next((fix for words, fix in _FIXES.items() if words in error), default)
    return fault("store", error, fix)


async def _check_database(connection: psycopg.AsyncConnection[object], dsn: str) -> AsyncIterator[Finding]:
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        fix = "CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0, and move the rows by pg_dump"
        yield fault("encoding", f"the database has {encoding}, which cannot hold every text of a guest", fix)
    cursor = await connection.execute("SELECT count(*) FROM pg_extension WHERE extname = 'timescaledb'")
    if await cursor.fetchone() == (0,):
        fix = "as a superuser of the database: CREATE EXTENSION timescaledb; then gueststore migrate"
        yield fault("extension", "the database has no TimescaleDB", fix)
        return
    try:
        await check_schema(connection)
    except SchemaMismatch as exc:
        fix = (
            "install the newer guestd" if "newer guestd" in str(exc) else "run gueststore migrate with the owner's DSN"
        )
        yield fault("schema", str(exc), fix)
        return
    except StoreUnavailable as exc:
        if not str(exc).startswith("42501"):  # the server's code for a missing right
            raise
        yield _report_missing_right(str(exc))
        return
    try:
        row = await (await connection.execute(query("doctor/read_store"))).fetchone()
    except psycopg.errors.InsufficientPrivilege as exc:
        yield _report_missing_right(str(exc).strip())
        return
    except psycopg.errors.UndefinedTable as exc:
        row = None
        yield fault("schema", str(exc).splitlines()[0], "gueststore check names what is missing; restore it")
    if isinstance(row, tuple):
        for finding in _report_facts(*row):
            yield finding
    if blockers := await read_blockers(connection, None):
        fix = "wait until it ends, or end it: SELECT pg_terminate_backend(PID)"
        yield warning("locks", f"guestd waits for a lock of {', '.join(blockers)}", fix)
    for finding in await asyncio.to_thread(lambda: list(_list_health_findings(dsn))):
        yield finding


def _report_facts(
    license_name: str | None, user: str, store_seconds: float, missing: str | None, quarantined: int, without_data: int
) -> Iterator[Finding]:
    edition = "Apache edition: no compression" if license_name == "apache" else "Community edition"
    yield ok("edition", edition)
    yield check_clock(store_seconds - time.time())
    if missing is not None:
        yield _report_missing_right(f"{user} has no {missing}")
    else:
        yield ok("rights", f"{user} has all rights that guestd needs")
    if quarantined:
        fix = "guestd quarantine list prints the reasons; retry stores those that can be stored now"
        yield warning("quarantine", f"{quarantined} frames are quarantined", fix)
    if without_data:
        fix = 'SELECT * FROM "MachineWithoutData" lists them; start the agent in the guest'
        yield warning("guests", f"{without_data} running machines send no data", fix)


def check_clock(ahead_seconds: float) -> Finding:
    """Compare the store's clock with this host's."""
    if abs(ahead_seconds) <= MAX_CLOCK_SECONDS:
        return ok("clock", "the clocks of store and host agree")
    way = "ahead of" if ahead_seconds > 0 else "behind"
    fix = "synchronise both by NTP: timedatectl set-ntp true, chronyc tracking"
    return fault("clock", f"the store's clock is {abs(ahead_seconds):.0f} s {way} this host's", fix)


def _report_missing_right(error: str) -> Finding:
    return fault("rights", error, "as the owner of the database: GRANT guestd_writer TO USER")


def _list_health_findings(dsn: str) -> Iterator[Finding]:
    """Run the checks of `gueststore check`, and check the roll-ups."""
    try:
        found = read_alarms(dsn)
        rolled_up = read_rollups(dsn)
    except (StoreError, ConfigurationError) as exc:
        yield fault("schema", str(exc), "run gueststore check")
        return
    except psycopg.errors.UndefinedTable:
        yield _report_drift(catalogue.find_drift(dsn))
        return
    yield _report_drift([alarm.sentence for alarm in found if alarm.kind == "drift"])
    for alarm in found:
        if alarm.kind not in ("drift", "encoding"):
            yield warning("store", alarm.sentence, f"see {RUNBOOK}, {alarm.kind}")
    yield check_rollups(rolled_up, datetime.now(UTC))


def _report_drift(differences: list[str]) -> Finding:
    if not differences:
        return ok("schema", "as the migrations create it")
    shown = "; ".join(differences[:SHOWN_DIFFERENCES])
    more = f" and {len(differences) - SHOWN_DIFFERENCES} more" if len(differences) > SHOWN_DIFFERENCES else ""
    return warning(
        "schema", f"differs from the migrations: {shown}{more}", "gueststore check lists all; revert the changes"
    )


def check_rollups(rollups: list[Rollup], now: datetime) -> Finding:
    """Check that the roll-ups are up to date: a guestd refreshes them once a minute."""
    behind = [each for each in rollups if each.oldest and each.oldest < now - MAX_BEHIND]
    if behind:
        fix = "start a guestd; if one runs, its log has the reason: journalctl -u guestd"
        return warning("roll-ups", "behind: " + ", ".join(map(str, behind)), fix)
    return ok("roll-ups", "; ".join(map(str, rollups)))
