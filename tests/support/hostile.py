"""A database whose owner has turned every setting that a client may rely on."""

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from support.store import Server

# Each is valid, and changes what a statement means, what the driver reads, or how long a session lives.
HOSTILE = {
    "client_encoding": "LATIN1",
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "sql_standard",
    "TimeZone": "Asia/Kathmandu",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "array_nulls": "off",
    "search_path": "elsewhere",
    "standard_conforming_strings": "off",
    "transform_null_equals": "on",
    "quote_all_identifiers": "on",
    "default_transaction_isolation": "serializable",
    "synchronous_commit": "off",
    "statement_timeout": "900ms",
    "lock_timeout": "1ms",
    "idle_session_timeout": "900ms",
    "idle_in_transaction_session_timeout": "1ms",
    # What we do not set, because it must not matter.
    "xmloption": "document",
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "check_function_bodies": "off",
    "client_min_messages": "debug1",
    "work_mem": "64kB",
    "plpgsql.extra_errors": "all",
    "timescaledb.enable_optimizations": "off",
}


@contextmanager
def turned_role(server: Server, database: str, settings: Mapping[str, str] = HOSTILE) -> Iterator[str]:
    """The DSN of a new role with the rights of guestd and of readers, on a database; all have these settings."""
    name = f"hostile_{uuid.uuid4().hex}"
    role, place = sql.Identifier(name), sql.Identifier(database)
    with psycopg.connect(server.dsn("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN IN ROLE guestd_writer, guestd_reader").format(role))
        turn_database(server, database, settings)
        for setting, value in settings.items():
            for scope in (sql.SQL(""), sql.SQL("IN DATABASE {} ").format(place)):
                # Two ways to name a role's settings: the second wins, where it differs.
                statement = sql.SQL("ALTER ROLE {} {}SET {} TO {}").format(role, scope, sql.Identifier(setting), value)
                connection.execute(statement)
        try:
            yield make_conninfo(server.dsn(database), user=name)
        finally:
            connection.execute(sql.SQL("ALTER ROLE {} IN DATABASE {} RESET ALL").format(role, place))
            connection.execute(sql.SQL("DROP ROLE {}").format(role))


def turn_database(server: Server, database: str, settings: Mapping[str, str] = HOSTILE) -> None:
    """Give a database these settings, for every later session of any role."""
    with psycopg.connect(server.dsn("postgres"), autocommit=True) as connection:
        for setting, value in settings.items():
            statement = sql.SQL("ALTER DATABASE {} SET {} TO {}")
            connection.execute(statement.format(sql.Identifier(database), sql.Identifier(setting), value))
