"""Drops the schema with all its data and creates it again. For development."""

from psycopg import sql

from gueststore import catalogue
from gueststore.database import connect
from gueststore.migrations import Applied, Report, hold_migration_lock, ignore_report, migrate, refuse_foreign


def reset(dsn: str, *, report: Report = ignore_report) -> list[Applied]:
    """Drop every table, view and function of this schema, rows included, and migrate. Errors as for `migrate`.

    Other programs' tables in the same database stay, except objects that depend on ours. An interrupted run can be
    repeated.
    """
    expected = catalogue.load_catalogue()
    hypertables = [name for kind, name in expected if kind == "hypertable"]
    tables = [name for kind, name in expected if kind == "table" and name not in hypertables]
    functions = [name for kind, name in expected if kind == "function"]
    with connect(dsn) as connection, hold_migration_lock(connection, report):
        refuse_foreign(connection, dsn)
        # One hypertable a statement: TimescaleDB requires it, and each takes a lock per chunk.
        for group in [*([name] for name in hypertables), tables]:
            names = sql.SQL(", ").join(map(sql.Identifier, group))
            connection.execute(sql.SQL("DROP TABLE IF EXISTS {} CASCADE").format(names))
            report(f"dropped {', '.join(group)}")
        for function in functions:
            connection.execute(f"DROP FUNCTION IF EXISTS public.{function} CASCADE".encode())
    return migrate(dsn, report=report)
