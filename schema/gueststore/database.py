"""One connection for the store's tools, and errors that an operator can act on."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow

from gueststore.errors import ConfigurationError, StoreError

CONNECT_TIMEOUT_SECONDS = 10

# What a server says that will take us later.
_PASSING = ("starting up", "shutting down", "in recovery", "too many", "remaining connection slots")

Connection = psycopg.Connection[TupleRow]


@contextmanager
def connect(dsn: str) -> Iterator[Connection]:
    """Open a connection in autocommit mode on the schema `public`, and close it at the end.

    ConfigurationError for a DSN that cannot be read or a refused login, StoreError for a server that does not
    answer, goes away, or refuses a statement for a reason that nobody inside handled; all name host and database.
    """
    with _open(dsn) as connection:
        # Ours are the only names that matter; a role's own search_path must not put the tables elsewhere.
        connection.execute("SELECT set_config('search_path', 'public', FALSE)")
        try:
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
        if "FATAL:" in reason and not any(words in reason for words in _PASSING):
            raise ConfigurationError(f"{place} refused the login: {reason.partition('FATAL:')[2].strip()}") from exc
        raise StoreError(f"cannot reach {place}: {reason}") from exc


def describe(dsn: str) -> str:
    """Name the database and host of a DSN, never its password. ConfigurationError when it is malformed."""
    try:
        parts = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError as exc:
        raise ConfigurationError(f"the DSN cannot be read: {str(exc).strip()}") from exc
    database = parts.get("dbname") or parts.get("user") or "the default database"
    host = parts.get("host") or parts.get("hostaddr") or "the local socket"
    port = parts.get("port") or "5432"
    return f"database {database} on {host} port {port}"


def format_error(error: psycopg.Error) -> str:
    """One sentence out of a server's error: its primary message, and detail and hint where there are any."""
    diagnostic = error.diag
    parts = (diagnostic.message_primary, diagnostic.message_detail, diagnostic.message_hint)
    return "; ".join(part.rstrip(".") for part in parts if part) or str(error).strip()
