"""The health check of a store: schema drift, edited or missing migrations, and problems that grow with age.

`gueststore check` prints the alarms. guestd reads them at start and every hour, counts them by kind and logs them.
"""

from dataclasses import dataclass

from psycopg.rows import class_row

from gueststore import catalogue
from gueststore.database import connect
from gueststore.migrations import read_status
from gueststore.queries import query

# A query with a longer mean time has lost its index, or its caller reads too many rows.
SLOW_QUERY_MS = 1000.0


@dataclass(frozen=True, slots=True)
class Alarm:
    """A problem that needs manual action: `kind` is the label of a metric, `sentence` describes the problem."""

    kind: str
    sentence: str


def read_alarms(dsn: str, *, slow_query_ms: float = SLOW_QUERY_MS) -> list[Alarm]:
    """Return every alarm, an empty list for a healthy store; errors as for `find_drift` and `read_status`."""
    found = [Alarm("drift", difference) for difference in catalogue.find_drift(dsn)]
    state = read_status(dsn)
    found += [Alarm("migration", problem) for problem in state.problems]
    found += [Alarm("migration", f"{script} has not run: run `gueststore migrate`") for script in state.pending]
    with connect(dsn) as connection, connection.cursor(row_factory=class_row(Alarm)) as cursor:
        found += cursor.execute(query("schema/read_alarms")).fetchall()
        if connection.execute(query("schema/has_statements")).fetchone() == (True,):
            found += cursor.execute(query("schema/read_slow_queries"), {"mean_ms": slow_query_ms}).fetchall()
    return found
