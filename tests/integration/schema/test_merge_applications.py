"""Merging what guests say of their applications: newest wins, knowledge stays, absence is noticed, replay is silent."""

import threading
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql
from tools.harness.waiting import eventually

from gueststore.contract import INCOMING_APPLICATION
from gueststore.database import Connection
from gueststore.queries import query
from support.schema import make_machine, rows

START = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
FIREFOX, VIM = "/usr/bin/firefox", "/usr/bin/vim"

COPY = sql.SQL("COPY incoming_application ({}) FROM STDIN").format(
    sql.SQL(", ").join(sql.Identifier(name) for name in INCOMING_APPLICATION.types)
)


@pytest.fixture
def machine(connection: Connection) -> uuid.UUID:
    return make_machine(connection)


def app(machine: uuid.UUID, second: float, path: str = FIREFOX, **values: object) -> dict[str, object]:
    """One application in the message that `machine` sent `second` seconds after START."""
    row = dict.fromkeys((name for name in INCOMING_APPLICATION.types), None)
    row |= {"machineId": machine, "receivedAt": START + timedelta(seconds=second), "executablePath": path}
    return row | {
        "applicationName": "app",
        "accessCount": 1,
        "totalUsageMinutes": 5,
        "isActive": True,
        **values,
    }


def merge(connection: Connection, *batch: dict[str, object]) -> None:
    """Store a batch as the daemon does: COPY, merge, commit."""
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute(query("ingest/create_incoming"))
        with cursor.copy(COPY) as copy:
            for row in batch:
                copy.write_row(tuple(row.values()))
        cursor.execute(query("ingest/merge_applications"))


def stored(connection: Connection, column: str, path: str = FIREFOX) -> Any:
    select = f'SELECT "{column}" FROM "ApplicationUsage" WHERE "executablePath" = %s'
    ((value,),) = rows(connection, select, path)
    return value


def everything(connection: Connection) -> list[tuple[Any, ...]]:
    """Every row with its physical version, so that a write that changes nothing shows too."""
    return rows(connection, 'SELECT xmin::text, * FROM "ApplicationUsage" ORDER BY "machineId", "executablePath"')


def bounded(connection: Connection, most: int, *batch: dict[str, object]) -> int:
    """How many are left out of a batch of which a machine may have so many, and the rest merged."""
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute(query("ingest/create_incoming"))
        with cursor.copy(COPY) as copy:
            for row in batch:
                copy.write_row(tuple(row.values()))
        cursor.execute(query("ingest/limit_applications"), {"most": most})
        left_out = cursor.rowcount
        cursor.execute(query("ingest/merge_applications"))
    return left_out


def test_a_machine_has_no_more_programs_than_it_may_and_those_that_it_has_are_kept_true(
    connection: Connection, machine: uuid.UUID
) -> None:
    other = make_machine(connection)
    first = [app(machine, 0, f"/bin/{number}") for number in range(3)]
    assert bounded(connection, 4, *first) == 0
    more = [app(machine, 60, f"/bin/{number}", accessCount=7) for number in range(6)]
    assert bounded(connection, 4, *more, app(other, 60, "/bin/0")) == 2
    paths = rows(
        connection,
        'SELECT "executablePath", "accessCount" FROM "ApplicationUsage" WHERE "machineId" = %s ORDER BY 1',
        machine,
    )
    assert paths == [(f"/bin/{number}", 7) for number in range(4)]
    assert rows(connection, 'SELECT count(*) FROM "ApplicationUsage" WHERE "machineId" = %s', other) == [(1,)]


def test_a_new_application_is_stored_as_sent(connection: Connection, machine: uuid.UUID) -> None:
    merge(connection, app(machine, 0, version="1.0", iconData=b"png", iconFormat="png", fileSize=7))
    assert stored(connection, "version") == "1.0"
    assert bytes(stored(connection, "iconData")) == b"png"
    assert stored(connection, "firstSeen") == stored(connection, "lastSeen") == START
    assert stored(connection, "isActive") is True


def test_the_newest_of_several_messages_in_a_batch_wins(connection: Connection, machine: uuid.UUID) -> None:
    batch = [app(machine, second, accessCount=count) for second, count in ((20, 3), (0, 1), (10, 2))]
    merge(connection, *batch)
    assert stored(connection, "accessCount") == 3
    assert stored(connection, "firstSeen") == START
    assert stored(connection, "lastSeen") == START + timedelta(seconds=20)


def test_an_older_message_changes_nothing(connection: Connection, machine: uuid.UUID) -> None:
    merge(connection, app(machine, 100, accessCount=9))
    before = everything(connection)
    merge(connection, app(machine, 50, accessCount=1, isActive=False))
    assert everything(connection) == before


def test_what_a_later_message_does_not_say_stays_known(connection: Connection, machine: uuid.UUID) -> None:
    known: dict[str, Any] = {
        "version": "1.0",
        "description": "a browser",
        "publisher": "Mozilla",
        "iconData": b"png",
        "iconFormat": "png",
        "fileSize": 7,
    }
    merge(connection, app(machine, 0, **known), app(machine, 10))
    merge(connection, app(machine, 20, accessCount=2))
    for column, value in known.items():
        assert stored(connection, column) == value


def test_a_new_icon_brings_its_own_format(connection: Connection, machine: uuid.UUID) -> None:
    merge(connection, app(machine, 0, iconData=b"png", iconFormat="png"))
    merge(connection, app(machine, 10, iconData=b"svg", iconFormat=None))
    assert (bytes(stored(connection, "iconData")), stored(connection, "iconFormat")) == (b"svg", None)


def test_a_repeated_message_is_written_at_most_once_a_minute(connection: Connection, machine: uuid.UUID) -> None:
    merge(connection, app(machine, 0))
    before = everything(connection)
    merge(connection, app(machine, 60))
    assert everything(connection) == before
    merge(connection, app(machine, 61))
    assert stored(connection, "lastSeen") == START + timedelta(seconds=61)


def test_an_application_the_newest_message_leaves_out_becomes_inactive(
    connection: Connection, machine: uuid.UUID
) -> None:
    merge(connection, app(machine, 0), app(machine, 0, VIM))
    merge(connection, app(machine, 30, accessCount=2))
    assert stored(connection, "isActive") is True
    assert stored(connection, "isActive", VIM) is False
    assert stored(connection, "lastSeen", VIM) == START


def test_an_application_left_out_later_in_the_same_batch_becomes_inactive(
    connection: Connection, machine: uuid.UUID
) -> None:
    merge(connection, app(machine, 0), app(machine, 0, VIM), app(machine, 30))
    assert stored(connection, "isActive", VIM) is False
    merge(connection, app(machine, 40), app(machine, 40, VIM))
    assert stored(connection, "isActive", VIM) is True


def test_a_machine_that_says_nothing_keeps_its_applications_active(connection: Connection, machine: uuid.UUID) -> None:
    other = make_machine(connection)
    merge(connection, app(machine, 0, VIM), app(other, 0))
    merge(connection, app(other, 30))
    assert stored(connection, "isActive", VIM) is True


@pytest.mark.parametrize("unchanged_before", [0, 5], ids=["from nothing", "on an unmoved row"])
def test_a_replayed_batch_changes_nothing(connection: Connection, machine: uuid.UUID, unchanged_before: int) -> None:
    merge(connection, *(app(machine, second, VIM) for second in range(unchanged_before)))
    batch = [
        app(machine, 10, VIM),
        app(machine, 10),
        app(machine, 20, accessCount=4),
        app(machine, 30, lastAccessTime=START),
    ]
    merge(connection, *batch)
    before = everything(connection)
    merge(connection, *batch)
    assert everything(connection) == before


def test_an_incoming_row_without_a_required_value_is_refused_before_the_merge(
    connection: Connection, machine: uuid.UUID
) -> None:
    with pytest.raises(Exception, match='null value in column "applicationName"'):
        merge(connection, app(machine, 0, applicationName=None))
    assert everything(connection) == []


def test_the_incoming_rows_are_gone_after_the_commit(connection: Connection, machine: uuid.UUID) -> None:
    merge(connection, app(machine, 0))
    assert rows(connection, "SELECT count(*) FROM incoming_application") == [(0,)]


def test_what_became_active_between_the_lock_and_the_merge_is_no_deadlock(
    dsn: str, connection: Connection, machine: uuid.UUID
) -> None:
    merge(connection, app(machine, 0, isActive=False), app(machine, 0, VIM, isActive=False))
    lock_rows, merge_rows = query("ingest/merge_applications").split(b";\n\n", 1)
    failures: list[Exception] = []

    def other_daemon() -> None:
        try:
            with psycopg.connect(dsn, autocommit=True) as own:
                merge(own, app(machine, 2))
                merge(own, app(machine, 5), app(machine, 5, VIM))
        except psycopg.Error as exc:
            failures.append(exc)

    thread = threading.Thread(target=other_daemon)
    with connection.transaction(), connection.cursor() as cursor, psycopg.connect(dsn, autocommit=True) as watcher:
        with cursor.copy(COPY) as copy:
            copy.write_row(tuple(app(machine, 4, VIM).values()))
        cursor.execute(lock_rows)
        thread.start()
        blocked = "SELECT pid FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))"
        eventually(lambda: rows(watcher, blocked, connection.info.backend_pid), "the other daemon waits")
        cursor.execute(merge_rows)
    thread.join(timeout=60)
    assert failures == []
    assert (stored(connection, "isActive"), stored(connection, "isActive", VIM)) == (True, True)


def test_two_daemons_with_the_same_applications_do_not_deadlock(dsn: str, connection: Connection) -> None:
    machines = [make_machine(connection) for _ in range(5)]
    paths = [f"/usr/bin/{n}" for n in range(20)]
    merge(connection, *(app(machine, 0, path) for machine in machines for path in paths[:10]))
    failures: list[Exception] = []

    def daemon(order: int) -> None:
        try:
            with psycopg.connect(dsn, autocommit=True) as own:
                for second in range(1, 21):
                    listed = paths[second % 3 :: 2]  # some come, some go
                    batch = [app(machine, second, path, accessCount=second) for machine in machines for path in listed]
                    merge(own, *batch[::order])
        except psycopg.Error as exc:
            failures.append(exc)

    threads = [threading.Thread(target=daemon, args=(order,)) for order in (1, -1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert failures == []
    listed_last = set(paths[20 % 3 :: 2])
    active = {path for (path,) in rows(connection, 'SELECT "executablePath" FROM "ApplicationUsage" WHERE "isActive"')}
    assert active == listed_last
