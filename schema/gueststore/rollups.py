"""How far the roll-ups are: what each holds, and how much waits to be rolled up."""

from dataclasses import dataclass
from datetime import UTC, datetime

from psycopg.rows import class_row

from gueststore.database import connect
from gueststore.queries import query


@dataclass(frozen=True, slots=True)
class Rollup:
    """A roll-up: what is before `covered_until` is in it, but for `waiting` minutes or hours, of which `oldest`."""

    relation: str
    covered_until: datetime
    waiting: int
    oldest: datetime | None

    def __str__(self) -> str:
        # The first day of all times stands for none.
        began = self.covered_until.timestamp() > 0
        held = f"holds what is before {_minute(self.covered_until)}" if began else "holds nothing yet"
        waiting = f"; {self.waiting} wait, from {_minute(self.oldest)} on" if self.oldest else ""
        return f"{self.relation}: {held}{waiting}"


def read_rollups(dsn: str) -> list[Rollup]:
    """Every roll-up, by name. StoreError when the database does not answer."""
    with connect(dsn) as connection, connection.cursor(row_factory=class_row(Rollup)) as cursor:
        return cursor.execute(query("rollups/read_rollups")).fetchall()


def _minute(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
