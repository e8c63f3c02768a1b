"""The store as guestd would find it: reachable, writable, of our schema, with our rights and about our time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta

import psycopg

from guestd.core.errors import SchemaMismatch, StoreUnavailable
from guestd.doctor.finding import Finding, fault, ok, warning
from guestd.store.connection import check_schema, connection_to, server_name
from gueststore import catalogue
from gueststore.alarms import read_alarms
from gueststore.errors import ConfigurationError, StoreError
from gueststore.queries import query
from gueststore.rollups import Rollup, read_rollups

# Less is lost in the time of asking; more moves samples that carry no time of their own.
MOST_CLOCK_SECONDS = 2.0
SHOWN_DIFFERENCES = 3
# An hour waits until it is over, and a store that comes back has hours of samples to take and roll up.
MOST_BEHIND = timedelta(hours=3)
RUNBOOK = "docs/runbook.md#storewantsaperson"

_FIXES = {
    "password": "put the password in the first line of store.password_file (a credential of the unit)",
    "certificate": "name the authority that signed the server's certificate: sslrootcert in store.dsn",
    "read-only": "make one of the servers of store.dsn writable, or name the writable one there",
    "slots": "raise max_connections in postgresql.conf, or find who holds them: SELECT * FROM pg_stat_activity",
    "too many clients": "raise max_connections in postgresql.conf, or find who holds them",
    "role": "CREATE ROLE that user LOGIN IN ROLE guestd_writer, or correct user in store.dsn",
    "does not exist": "createdb that database, then gueststore migrate; or correct dbname in store.dsn",
    "could not translate": "correct host in store.dsn",
}


async def examined(dsn: str) -> AsyncIterator[Finding]:
    """All that can be seen through one connection."""
    try:
        async with connection_to(dsn) as connection:
            yield ok("store", f"{server_name(dsn)} answers and takes writes")
            async for finding in _looked_into(connection, dsn):
                yield finding
    except StoreUnavailable as exc:
        yield unreachable(str(exc))


def unreachable(exc: str) -> Finding:
    """The fault of a store that does not let us in, with the fix for what it says."""
    default = "start PostgreSQL there (systemctl start postgresql), or correct host and port in store.dsn"
    fix = next((fix for words, fix in _FIXES.items() if words in exc), default)
    return fault("store", exc, fix)


async def _looked_into(connection: psycopg.AsyncConnection[object], dsn: str) -> AsyncIterator[Finding]:
    cursor = await connection.execute("SELECT count(*) FROM pg_extension WHERE extname = 'timescaledb'")
    if await cursor.fetchone() == (0,):
        fix = "as a superuser there: CREATE EXTENSION timescaledb; then gueststore migrate"
        yield fault("extension", "the database has no TimescaleDB", fix)
        return
    try:
        await check_schema(connection)
    except SchemaMismatch as exc:
        fix = "install that guestd" if "newer guestd" in str(exc) else "gueststore migrate, with the owner's DSN"
        yield fault("schema", str(exc), fix)
        return
    except StoreUnavailable as exc:
        yield _without_rights(str(exc))
        return
    try:
        row = await (await connection.execute(query("doctor/read_store"))).fetchone()
    except psycopg.errors.InsufficientPrivilege as exc:
        yield _without_rights(str(exc).strip())
        return
    except psycopg.errors.UndefinedTable as exc:
        row = None
        yield fault("schema", str(exc).splitlines()[0], "gueststore check names what is missing; put it back")
    if isinstance(row, tuple):
        for finding in _told(*row):
            yield finding
    for finding in await asyncio.to_thread(_aged, dsn):
        yield finding


def _told(
    license_name: str | None, user: str, store_seconds: float, missing: str | None, quarantined: int, silent: int
) -> Iterator[Finding]:
    edition = "Apache edition: no compression" if license_name == "apache" else "Community edition"
    yield ok("edition", edition)
    yield clock(store_seconds - time.time())
    if missing is not None:
        yield _without_rights(f"{user} has no {missing}")
    else:
        yield ok("rights", f"{user} may write what guestd writes")
    if quarantined:
        fix = "guestd quarantine list says which and why; retry stores what can be stored now"
        yield warning("quarantine", f"{quarantined} frames are set aside", fix)
    if silent:
        fix = 'SELECT * FROM "MachineWithoutData" names them; start the agent in the guest'
        yield warning("guests", f"{silent} machines run and do not report", fix)


def clock(ahead_seconds: float) -> Finding:
    """How the store's clock stands to ours."""
    if abs(ahead_seconds) <= MOST_CLOCK_SECONDS:
        return ok("clock", "store and host agree on the time")
    way = "ahead of" if ahead_seconds > 0 else "behind"
    fix = "keep both by NTP: timedatectl set-ntp true, chronyc tracking"
    return fault("clock", f"the store's clock is {abs(ahead_seconds):.0f} s {way} this host's", fix)


def _without_rights(exc: str) -> Finding:
    return fault("rights", exc, "as the owner: GRANT guestd_writer TO that user")


def _aged(dsn: str) -> Iterator[Finding]:
    """What `gueststore check` says, and how far the roll-ups are."""
    try:
        found = read_alarms(dsn)
        rolled_up = read_rollups(dsn)
    except (StoreError, ConfigurationError) as exc:
        yield fault("schema", str(exc), "gueststore check")
        return
    except psycopg.errors.UndefinedTable:
        yield _drifted(catalogue.find_drift(dsn))
        return
    yield _drifted([alarm.sentence for alarm in found if alarm.kind == "drift"])
    for alarm in found:
        if alarm.kind != "drift":
            yield warning("store", alarm.sentence, f"{RUNBOOK} says what to do about {alarm.kind}")
    yield rolled(rolled_up, datetime.now(UTC))


def _drifted(differences: list[str]) -> Finding:
    if not differences:
        return ok("schema", "it is as the migrations make it")
    shown = "; ".join(differences[:SHOWN_DIFFERENCES])
    more = f" and {len(differences) - SHOWN_DIFFERENCES} more" if len(differences) > SHOWN_DIFFERENCES else ""
    return warning("schema", f"it has drifted: {shown}{more}", "gueststore check names all; put back what is not yours")


def rolled(found: list[Rollup], now: datetime) -> Finding:
    """How the roll-ups stand: some guestd does what waits once a minute."""
    behind = [each for each in found if each.oldest and each.oldest < now - MOST_BEHIND]
    if behind:
        fix = "start a guestd; where one runs, its log says why it does not roll up"
        return warning("roll-ups", "behind: " + ", ".join(map(str, behind)), fix)
    return ok("roll-ups", "; ".join(map(str, found)))
