"""Connections for the store's tools, and errors that an operator can act on."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow

from gueststore.errors import ConfigurationError, StoreError

CONNECT_TIMEOUT_SECONDS = 10

# Messages of a server that refuses connections only for a while.
_TEMPORARY_REFUSALS = ("starting up", "shutting down", "in recovery", "too many", "remaining connection slots")

Connection = psycopg.Connection[TupleRow]


@contextmanager
def connect(dsn: str) -> Iterator[Connection]:
    """Open a connection in autocommit mode on the schema `public`, and close it at the end.

    ConfigurationError for a malformed DSN or a refused login; StoreError for a server that does not answer, for a
    lost connection and for an error that the caller did not handle. Each names the host and the database.
    """
    with _open(dsn) as connection:
        try:
            # A role's own search_path must not create or find the tables in another schema.
            connection.execute("SELECT set_config('search_path', 'public', FALSE)")
            yield connection
        except psycopg.Error as exc:
            raise StoreError(f"{describe(dsn)}: {format_error(exc)}") from exc


def _open(dsn: str) -> Connection:
    place = describe(dsn)
    try:
        return psycopg.connect(
            dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT_SECONDS, application_name="gueststore"
        )
    except psycopg.OperationalError as exc:
        reason = str(exc).strip().splitlines()[-1]
        if "FATAL:" in reason and not any(words in reason for words in _TEMPORARY_REFUSALS):
            raise ConfigurationError(f"{place} refused the login: {reason.partition('FATAL:')[2].strip()}") from exc
        raise StoreError(f"cannot reach {place}: {reason}") from exc


def describe(dsn: str) -> str:
    """Return the database and host of a DSN without its password. ConfigurationError when it is malformed."""
    try:
        parts = conninfo_to_dict(dsn)
    except (psycopg.ProgrammingError, UnicodeEncodeError) as exc:
        why = "it is not UTF-8" if isinstance(exc, UnicodeEncodeError) else str(exc).strip()
        raise ConfigurationError(f"the DSN is malformed: {why}") from exc
    database = parts.get("dbname") or parts.get("user") or "the default database"
    host = parts.get("host") or parts.get("hostaddr") or "the local socket"
    port = parts.get("port") or "5432"
    return f"database {database} on {host} port {port}"


def format_error(error: psycopg.Error) -> str:
    """Return a server's error as one sentence: its message, and its detail and hint where present."""
    diagnostic = error.diag
    parts = (diagnostic.message_primary, diagnostic.message_detail, diagnostic.message_hint)
    return "; ".join(part.rstrip(".") for part in parts if part) or str(error).strip()
