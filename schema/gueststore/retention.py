"""Taking away what is older than RetentionSetting says, and saying what would go.

The functions of sql/repeatable/15_rollups.sql do it, each relation in a transaction and under a lock of its own, so
that any number of hosts may. What a roll-up does not hold yet stays.
"""

from dataclasses import dataclass
from datetime import datetime

from psycopg.rows import class_row

from gueststore.database import connect
from gueststore.queries import query


@dataclass(frozen=True, slots=True)
class RetentionDue:
    """What goes next of a relation: `due` chunks, or rows of a plain table, older than `cutoff`.

    `is_held_back` where more would go if the roll-ups held it.
    """

    relation: str
    keep_days: int
    cutoff: datetime
    is_held_back: bool
    due: int

    def __str__(self) -> str:
        held_back = "; more waits for its roll-up" if self.is_held_back else ""
        older = f"{self.due} older than {self.cutoff:%Y-%m-%d %H:%M}"
        return f"{self.relation}: kept {self.keep_days} days, {older}{held_back}"


def read_retention_due(dsn: str) -> list[RetentionDue]:
    """Say what `enforce` would take, and take nothing. StoreError when the database does not answer."""
    with connect(dsn) as connection, connection.cursor(row_factory=class_row(RetentionDue)) as cursor:
        return cursor.execute(query("maintenance/read_retention")).fetchall()


def enforce_retention(dsn: str) -> dict[str, int]:
    """Take it; returns chunks or rows that went, by relation, of those that lost any. Errors as for `due`."""
    gone = {}
    with connect(dsn) as connection:
        for relation, *_ in connection.execute(query("maintenance/read_retention")).fetchall():
            row = connection.execute(query("maintenance/enforce_retention"), {"relation": relation}).fetchone()
            if row is not None and row[0]:
                gone[relation] = int(row[0])
    return gone
