"""The progress of the roll-ups: how far each is complete and how much is pending."""

from dataclasses import dataclass
from datetime import UTC, datetime

from psycopg.rows import class_row

from gueststore.database import connect
from gueststore.queries import query


@dataclass(frozen=True, slots=True)
class Rollup:
    """A roll-up: complete before `covered_until`; `waiting` minutes or hours are pending, the oldest at `oldest`."""

    relation: str
    covered_until: datetime
    waiting: int
    oldest: datetime | None

    def __str__(self) -> str:
        # 1970-01-01 means that nothing was rolled up yet.
        has_started = self.covered_until.timestamp() > 0
        progress = f"complete before {_minute(self.covered_until)}" if has_started else "empty so far"
        pending = f"; {self.waiting} pending, from {_minute(self.oldest)} on" if self.oldest else ""
        return f"{self.relation}: {progress}{pending}"


def read_rollups(dsn: str) -> list[Rollup]:
    """Return every roll-up, by name. StoreError when the database does not answer."""
    with connect(dsn) as connection, connection.cursor(row_factory=class_row(Rollup)) as cursor:
        return cursor.execute(query("rollups/read_rollups")).fetchall()


def _minute(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
