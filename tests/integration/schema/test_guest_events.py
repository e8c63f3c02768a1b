"""Events of guests in the store: they are trimmed by age and by number, as the daemon's role."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from gueststore.database import Connection
from gueststore.queries import query
from support.schema import insert, make_machine, rows

NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def writer(dsn: str) -> Iterator[Connection]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SET ROLE guestd_writer")
        yield connection


def trimmed(writer: Connection, keep_days: int | None, keep_per_machine: int | None) -> int:
    limits = {"keep_days": keep_days, "keep_per_machine": keep_per_machine}
    row = writer.execute(query("maintenance/delete_old_guest_events"), limits).fetchone()
    assert row is not None
    return int(row[0])


def test_events_beyond_an_age_or_a_number_of_their_machine_are_deleted(
    connection: Connection, writer: Connection
) -> None:
    loud, quiet = make_machine(connection), make_machine(connection)
    for age_hours in range(30):
        insert(connection, "GuestEvent", machineId=loud, type="t", receivedAt=NOW - timedelta(hours=age_hours))
    for age_days in (0, 1, 9):
        insert(connection, "GuestEvent", machineId=quiet, type="t", receivedAt=NOW - timedelta(days=age_days, hours=1))
    assert trimmed(writer, 7, 10) == 21
    kept = 'SELECT "receivedAt" FROM "GuestEvent" WHERE "machineId" = \'{}\' ORDER BY 1 DESC'
    assert rows(connection, kept.format(loud)) == [(NOW - timedelta(hours=age),) for age in range(10)]
    assert rows(connection, kept.format(quiet)) == [(NOW - timedelta(days=age, hours=1),) for age in (0, 1)]
    assert trimmed(writer, 7, 10) == 0


@pytest.mark.parametrize(("keep_days", "keep_per_machine"), [(0, 10), (-1, 10), (7, 0), (None, 10), (7, None)])
def test_a_wrong_argument_does_not_empty_the_table(
    connection: Connection, writer: Connection, keep_days: int | None, keep_per_machine: int | None
) -> None:
    insert(connection, "GuestEvent", machineId=make_machine(connection), type="t")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="at least"):
        trimmed(writer, keep_days, keep_per_machine)
    assert rows(connection, 'SELECT count(*) FROM "GuestEvent"') == [(1,)]
