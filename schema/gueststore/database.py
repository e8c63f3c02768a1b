"""Connections for the store's tools, and errors that an operator can act on."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from gueststore.dsn import find_malformation
from gueststore.errors import ConfigurationError, StoreError
from gueststore.queries import query
from gueststore.tls import find_ignored_option

CONNECT_TIMEOUT_SECONDS = 10
# Unless the DSN has its own: a server that is gone is noticed within 25 s, also by a thread that waits for its answer.
_KEEPALIVES = {"keepalives_idle": "10", "keepalives_interval": "5", "keepalives_count": "3"}

# Messages of a server that refuses connections only for a while.
_TEMPORARY_REFUSALS = ("starting up", "shutting down", "in recovery", "too many", "remaining connection slots")

Connection = psycopg.Connection[TupleRow]

# Packages between a statement of ours and the place that raised an exception.
_PACKAGES = ("guestd", "gueststore", "psycopg", "psycopg_binary", "psycopg_c")


@contextmanager
def connect(dsn: str) -> Iterator[Connection]:
    """Open a connection in autocommit mode with the settings of queries/session, and close it at the end.

    ConfigurationError for a DSN that is malformed or whose TLS options would be ignored, for a refused login and for a
    setting that only a superuser may correct; StoreError for a server that does not answer, for a lost connection and
    for an error that the caller did not handle. Each names the host and the database.
    """
    with _open(dsn) as connection:
        try:
            connection.execute(query("session/set_settings"))
        except psycopg.errors.InsufficientPrivilege as exc:
            raise ConfigurationError(explain_setting(describe(dsn), exc)) from exc
        except psycopg.Error as exc:
            raise StoreError(f"{describe(dsn)}: {format_error(exc)}") from exc
        try:
            yield connection
        except psycopg.Error as exc:
            raise StoreError(f"{describe(dsn)}: {format_error(exc)}") from exc
        except Exception as exc:
            if not comes_from_driver(exc):
                raise
            raise StoreError(f"{describe(dsn)}: {type(exc).__name__}: {exc}") from exc


def explain_setting(place: str, error: psycopg.Error) -> str:
    """Return what to do when queries/session/set_settings.sql may not correct a setting."""
    return (
        f"{place} has a setting with which samples would be lost ({format_error(error)}): as a superuser, reset it "
        "with ALTER DATABASE ... RESET or ALTER ROLE ... RESET"
    )


def comes_from_driver(exc: Exception) -> bool:
    """Whether psycopg raised an exception that is not its `Error`, such as for a value that it cannot read.

    An exception of a row class, a dumper or a callback of ours is not the driver's.
    """
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(exc.__traceback__)]
    packages = [module.partition(".")[0] for module in modules]
    last = next((package for package in reversed(packages) if package in _PACKAGES), "")
    return last.startswith("psycopg")


def _open(dsn: str) -> Connection:
    place = describe(dsn)
    problem = find_ignored_option(dsn)
    if problem is not None:
        raise ConfigurationError(f"the DSN: {problem}")
    try:
        given = conninfo_to_dict(dsn)
        keepalives = {key: value for key, value in _KEEPALIVES.items() if key not in given}
        return psycopg.connect(
            make_conninfo(dsn, **keepalives),
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            application_name="gueststore",
        )
    except psycopg.OperationalError as exc:
        reason = " ".join(str(exc).split())
        if "FATAL:" in reason and not any(words in reason for words in _TEMPORARY_REFUSALS):
            raise ConfigurationError(f"{place} refused the login: {reason.rpartition('FATAL:')[2].strip()}") from exc
        raise StoreError(f"cannot reach {place}: {reason}") from exc
    except Exception as exc:
        if not comes_from_driver(exc):
            raise
        raise StoreError(f"cannot reach {place}: {type(exc).__name__}: {exc}") from exc


def describe(dsn: str) -> str:
    """Return the database and host of a DSN without its password. ConfigurationError when it is malformed."""
    malformed = find_malformation(dsn)
    if malformed is not None:
        raise ConfigurationError(f"the DSN is malformed: {malformed}")
    parts = conninfo_to_dict(dsn)
    database = parts.get("dbname") or parts.get("user") or "the default database"
    host = parts.get("host") or parts.get("hostaddr") or "the local socket"
    port = parts.get("port") or "5432"
    return f"database {database} on {host} port {port}"


def format_error(error: psycopg.Error) -> str:
    """Return a server's error as one sentence: its message, and its detail and hint where present."""
    diagnostic = error.diag
    parts = (diagnostic.message_primary, diagnostic.message_detail, diagnostic.message_hint)
    return "; ".join(part.rstrip(".") for part in parts if part) or str(error).strip()
