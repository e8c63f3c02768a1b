"""Opens a connection to the store, and translates the errors of driver and server.

They become StoreUnavailable (try again later), RowsRejected (never try these rows again) or SchemaMismatch.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import structlog
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from guestd.core.address import is_loopback
from guestd.core.errors import ConfigError, RowsRejected, SchemaMismatch, StoreUnavailable
from gueststore import contract
from gueststore.database import comes_from_driver, explain_setting
from gueststore.dsn import find_malformation
from gueststore.queries import query
from gueststore.tls import find_ignored_option

log = structlog.get_logger()

CONNECT_SECONDS = 5
# Deadlines: what takes longer is not expected to return, because the server is frozen or somebody holds a lock. The
# connection is given up and the caller tries again. Of a batch, and of what waits for another process's lock:
WRITE_SECONDS = 60
# of some rows that are read or written,
ROW_SECONDS = 30
# and of a statement that the server itself ends after a limit (`set_timeouts`): this much longer.
REPLY_SECONDS = 30
# Notifications only wake a reader; this bounds the delay if one is lost.
LISTEN_REFRESH_SECONDS = 30

# Data exceptions, integrity violations, program limits: the rows themselves are wrong. After any other error the rows
# are kept and tried again, for a fault of the store must not lose a guest's samples.
_REFUSED_CLASSES = ("22", "23", "54")
# What the driver raises beside its own errors when a value of ours does not fit the type of its parameter.
_UNSENDABLE = (UnicodeEncodeError, OverflowError, struct.error)
# The traceback of a driver's exception is logged again after this time, for each class: callers retry within seconds.
TRACEBACK_LOG_SECONDS = 300.0
_silent_until: dict[str, float] = {}


class KeyConflict(RowsRejected):
    """A row with the same key is already stored; the store can find which."""


class LockHeld(StoreUnavailable):
    """Another session held a lock for longer than `lock_timeout` of this session; nothing was changed."""


class NoReply(StoreUnavailable):
    """The store has not replied within a deadline; whether anything was changed is not known."""


def choose_reported(failure: Exception | None, exc: Exception) -> Exception:
    """Of several failures the one that is reported: a lock is waited for, anything else needs an operator."""
    return exc if failure is None or not isinstance(exc, LockHeld) else failure


class StatementTimeout(StoreUnavailable):
    """The server ended a statement that took longer than `statement_timeout` of this session; nothing was changed."""


def check_dsn(dsn: str) -> None:
    """Raise ConfigError for a connection string that cannot be valid for any server."""
    malformed = find_malformation(dsn)
    if malformed is not None:
        raise ConfigError(f"store.dsn: {malformed}")
    parts = conninfo_to_dict(dsn)
    for name in ("port", "connect_timeout"):
        numbers = str(parts.get(name) or "0").split(",")
        if not all(number.isascii() and number.isdigit() for number in numbers):
            raise ConfigError(f"store.dsn: {name} must be a number")
    root = str(parts.get("sslrootcert") or "system")
    if root != "system" and not Path(root).is_file():
        raise ConfigError(f"store.dsn: sslrootcert: there is no file {root}")
    problem = find_ignored_option(dsn)
    if problem is not None:
        raise ConfigError(f"store.dsn: {problem}")


def list_remote_hosts(options: Mapping[str, str]) -> list[str]:
    """The hosts that are reached over a network, by libpq's options."""
    hosts = (options.get("host") or options.get("hostaddr") or "").split(",")
    return [host for host in hosts if host and not host.startswith(("/", "@")) and not is_loopback(host)]


def with_password(dsn: str, password: str) -> str:
    """The connection string with a password from elsewhere."""
    check_dsn(dsn)
    return make_conninfo(dsn, password=password)


def server_name(dsn: str) -> str:
    """Host, port and database of a DSN, without its password, for messages."""
    parts = conninfo_to_dict(dsn)
    parts = {key: parts[key] for key in ("host", "port", "dbname") if parts.get(key)}
    return " ".join(f"{key}={value}" for key, value in parts.items()) or "the default server"


@asynccontextmanager
async def connection_to(dsn: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A connection in autocommit mode to the writable server of the DSN.

    Its settings are those of queries/session/set_settings.sql, whatever server, database, role and DSN say. Raises
    StoreUnavailable when there is none, and ConfigError for a DSN that cannot be valid.
    """
    check_dsn(dsn)
    conninfo = make_conninfo(dsn, **_defaults(dsn))
    try:
        connection = await psycopg.AsyncConnection.connect(conninfo, autocommit=True)
    except psycopg.Error as exc:
        hint = (
            "; store.dsn: sslrootcert is the certificate authority that must have signed it"
            if "certificate" in str(exc)
            else ""
        )
        raise StoreUnavailable(f"{server_name(dsn)}: {str(exc).strip()}{hint}") from exc
    except Exception as exc:
        if not comes_from_driver(exc):
            raise
        raise StoreUnavailable(f"{server_name(dsn)}: {type(exc).__name__}: {exc}") from exc
    try:
        await _set_settings(connection, dsn)
        yield connection
    finally:
        await connection.close()


async def _set_settings(connection: psycopg.AsyncConnection[Any], dsn: str) -> None:
    # In a statement, not in the start packet: a pooler refuses parameters there that it does not know.
    async with store_deadline(ROW_SECONDS):
        try:
            await connection.execute(query("session/set_settings"))
        except psycopg.errors.InsufficientPrivilege as exc:
            raise StoreUnavailable(explain_setting(server_name(dsn), exc)) from exc


async def set_timeouts(
    connection: psycopg.AsyncConnection[Any], *, lock_seconds: float, statement_seconds: float = 0
) -> None:
    """Wait no longer for a lock and for a statement from now on; LockHeld or StatementTimeout then ends the statement.

    0 seconds: no limit.
    """
    async with store_deadline(ROW_SECONDS):
        await connection.execute(
            "SELECT set_config('lock_timeout', %s, FALSE), set_config('statement_timeout', %s, FALSE)",
            (f"{lock_seconds * 1000:.0f}ms", f"{statement_seconds * 1000:.0f}ms"),
        )


def _defaults(dsn: str) -> dict[str, Any]:
    given = conninfo_to_dict(dsn)
    defaults = {
        "application_name": "guestd",
        "connect_timeout": CONNECT_SECONDS,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "target_session_attrs": "read-write",
    }
    return {key: value for key, value in defaults.items() if key not in given}


async def check_schema(connection: psycopg.AsyncConnection[Any]) -> None:
    """Raise SchemaMismatch when this program cannot work with the store's schema."""
    async with store_deadline(ROW_SECONDS):
        try:
            cursor = await connection.execute(query("schema/read_version"))
        except psycopg.errors.UndefinedTable:
            version, compat = 0, 0
        else:
            version, compat = await cursor.fetchone() or (0, 0)
    mismatch = contract.mismatch(version, compat)
    if mismatch is not None:
        raise SchemaMismatch(mismatch)


@asynccontextmanager
async def translate_errors() -> AsyncIterator[None]:
    """Translate every error of driver or server to what the caller must do about it."""
    try:
        yield
    except psycopg.Error as exc:
        raise _translate(exc) from exc
    except Exception as exc:
        if not comes_from_driver(exc):
            raise
        raise _translate_unexpected(exc) from exc


@asynccontextmanager
async def store_deadline(seconds: float) -> AsyncIterator[None]:
    """Translate errors, and raise NoReply when the store has not replied within so many seconds."""
    async with translate_errors():
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError as exc:
            raise NoReply(f"no reply within {seconds:g} s") from exc


async def listen(
    dsn: str,
    channel: str,
    on_change: Callable[[psycopg.AsyncConnection[Any]], Awaitable[None]],
    *,
    refresh_seconds: float | None = LISTEN_REFRESH_SECONDS,
) -> None:
    """Call `on_change` at the start, on every notification, and after `refresh_seconds` without one.

    Ends with StoreUnavailable when the connection is lost.
    """
    async with connection_to(dsn) as connection, translate_errors():
        async with store_deadline(ROW_SECONDS):
            await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
        while True:
            await on_change(connection)
            async for _ in connection.notifies(timeout=refresh_seconds, stop_after=1):
                pass


def _translate_unexpected(exc: Exception) -> Exception:
    """A value of ours that cannot be sent will never be stored; one of the store's that cannot be read may change."""
    message = f"{type(exc).__name__}: {exc}"
    if isinstance(exc, _UNSENDABLE):
        return RowsRejected(message)
    now = time.monotonic()
    if now >= _silent_until.get(type(exc).__name__, 0):
        _silent_until[type(exc).__name__] = now + TRACEBACK_LOG_SECONDS
        log.error("driver of the store failed unexpectedly, retrying; report the traceback", exc_info=exc)
    return StoreUnavailable(message)


def _translate(exc: psycopg.Error) -> Exception:
    state = exc.sqlstate
    message = f"{state or type(exc).__name__}: {str(exc).strip()}"
    if state is None:
        return RowsRejected(message) if isinstance(exc, psycopg.DataError) else StoreUnavailable(message)
    if state == "23505":
        return KeyConflict(message)
    if state == "55P03":
        return LockHeld(f"{state}: another session holds a lock; `guestd doctor` names it")
    if state == "57014":
        return StatementTimeout(f"{state}: the statement took longer than its limit, or an operator cancelled it")
    if state.startswith(_REFUSED_CLASSES):
        return RowsRejected(message)
    if state.startswith("42"):
        message += "; `gueststore check` shows the differences from the expected schema, and missing privileges"
    return StoreUnavailable(message)
