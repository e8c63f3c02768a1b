"""Drops data past its retention (RetentionSetting) and lists what is due.

The functions of sql/repeatable/15_rollups.sql do the work: a transaction and a lock for each relation, so that any
number of hosts may run it. Data that is not rolled up yet is kept.
"""

from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg.rows import class_row

from gueststore.database import connect
from gueststore.errors import StoreError
from gueststore.queries import query

LOCK_TIMEOUT = "2s"


@dataclass(frozen=True, slots=True)
class RetentionDue:
    """What the next run drops from a relation: `due` chunks, or rows of a plain table, older than `cutoff`.

    `is_held_back` when older data is kept because it is not rolled up yet.
    """

    relation: str
    keep_days: int
    cutoff: datetime
    is_held_back: bool
    due: int

    def __str__(self) -> str:
        held_back = "; more is kept until it is rolled up" if self.is_held_back else ""
        older = f"{self.due} older than {self.cutoff:%Y-%m-%d %H:%M}"
        return f"{self.relation}: kept {self.keep_days} days, {older}{held_back}"


def read_retention_due(dsn: str) -> list[RetentionDue]:
    """Return what `enforce_retention` would drop. StoreError when the database does not answer."""
    with connect(dsn) as connection, connection.cursor(row_factory=class_row(RetentionDue)) as cursor:
        return cursor.execute(query("maintenance/read_retention")).fetchall()


def enforce_retention(dsn: str) -> dict[str, int]:
    """Drop what is due and return the number of chunks or rows by relation. Errors as for `read_retention_due`.

    StoreError at the end when another session held a lock on a relation; the others are done.
    """
    dropped, locked = {}, []
    with connect(dsn) as connection:
        # While it waits for its lock on a chunk, later queries on that chunk wait as well.
        connection.execute("SELECT set_config('lock_timeout', %s, FALSE)", (LOCK_TIMEOUT,))
        for relation, *_ in connection.execute(query("maintenance/read_retention")).fetchall():
            try:
                row = connection.execute(query("maintenance/enforce_retention"), {"relation": relation}).fetchone()
            except psycopg.errors.LockNotAvailable:
                locked.append(relation)
                continue
            if row is not None and row[0]:
                dropped[relation] = int(row[0])
    if locked:
        raise StoreError(
            f"another session holds a lock on {', '.join(locked)}; {sum(dropped.values())} dropped of the other "
            "relations: find it in pg_stat_activity, the oldest xact_start, and run again when it has ended"
        )
    return dropped
