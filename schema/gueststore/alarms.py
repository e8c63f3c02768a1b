"""What goes wrong with a store: drift, migrations that were edited or did not run, and what comes with age.

`gueststore check` prints them; guestd looks at its start and every hour, counts them by kind and logs them.
"""

from dataclasses import dataclass

from psycopg.rows import class_row

from gueststore import catalogue
from gueststore.database import connect
from gueststore.migrations import read_status
from gueststore.queries import query

# A query of ours that takes so long in the mean has lost its index, or its reader asks for too much.
SLOW_QUERY_MS = 1000.0


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that wants a person: `kind` is a word for a metric's label, `sentence` says what."""

    kind: str
    sentence: str


def read_alarms(dsn: str, *, slow_query_ms: float = SLOW_QUERY_MS) -> list[Alarm]:
    """Return all of them, an empty list when all is well; errors as for `catalogue.check` and `migrations.status`."""
    found = [Alarm("drift", difference) for difference in catalogue.find_drift(dsn)]
    state = read_status(dsn)
    found += [Alarm("migration", problem) for problem in state.problems]
    found += [Alarm("migration", f"{script} has not run: run `gueststore migrate`") for script in state.pending]
    with connect(dsn) as connection, connection.cursor(row_factory=class_row(Alarm)) as cursor:
        found += cursor.execute(query("schema/read_alarms")).fetchall()
        if connection.execute(query("schema/has_statements")).fetchone() == (True,):
            found += cursor.execute(query("schema/read_slow_queries"), {"mean_ms": slow_query_ms}).fetchall()
    return found
