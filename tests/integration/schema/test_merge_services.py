"""Merging what guests say of their services: every change of state is history, once, whatever the batch."""

import threading
import uuid
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql
from psycopg.types.json import Jsonb

from gueststore.contract import INCOMING_SERVICE
from gueststore.database import Connection
from gueststore.queries import query
from support.schema import make_machine, rows

START = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)

COPY = sql.SQL("COPY incoming_service ({}) FROM STDIN").format(
    sql.SQL(", ").join(sql.Identifier(name) for name in INCOMING_SERVICE.types)
)
HISTORY = """
SELECT history."fromState", history."toState", history."reason", history."timestamp"
FROM "ServiceStateHistory" AS history
INNER JOIN "WindowsService" AS service ON history."serviceId" = service."id"
WHERE service."machineId" = %s AND service."serviceName" = %s
ORDER BY history."timestamp"
"""


@pytest.fixture
def machine(connection: Connection) -> uuid.UUID:
    return make_machine(connection)


def service(
    machine: uuid.UUID, second: float, state: str = "running", name: str = "sshd", **values: object
) -> dict[str, object]:
    """One service in the message that `machine` sent `second` seconds after START."""
    row = dict.fromkeys((name for name in INCOMING_SERVICE.types), None)
    row |= {"machineId": machine, "receivedAt": START + timedelta(seconds=second), "serviceName": name}
    return row | {
        "displayName": name,
        "startType": "automatic",
        "serviceType": "win32",
        "currentState": state,
        "isDefaultService": False,
        **values,
    }


def merge(connection: Connection, *batch: dict[str, object], history_per_day: int = 1000) -> int:
    """Store a batch as the daemon does: COPY, merge, commit. Returns the changes beyond those that become history."""
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute(query("ingest/create_incoming"))
        with cursor.copy(COPY) as copy:
            for row in batch:
                copy.write_row(tuple(row.values()))
        cursor.execute(query("ingest/lock_services"))
        cursor.execute(query("ingest/merge_services"), {"history_per_day": history_per_day})
        ((left_out,),) = cursor.fetchall()
    return int(left_out)


def changes(connection: Connection, machine: uuid.UUID, name: str = "sshd") -> list[tuple[str, str, float]]:
    """The history of a service: from, to, seconds after START."""
    return [
        (before, after, (at - START).total_seconds())
        for before, after, _reason, at in rows(connection, HISTORY, machine, name)
    ]


def stored(connection: Connection, column: str, name: str = "sshd") -> Any:
    ((value,),) = rows(connection, f'SELECT "{column}" FROM "WindowsService" WHERE "serviceName" = %s', name)
    return value


def everything(connection: Connection) -> list[tuple[Any, ...]]:
    """Every row with its physical version, so that a write that changes nothing shows too."""
    return [
        *rows(connection, 'SELECT xmin::text, * FROM "WindowsService" ORDER BY "id"'),
        *rows(connection, 'SELECT xmin::text, * FROM "ServiceStateHistory" ORDER BY "id"'),
    ]


def test_the_first_sight_of_a_service_is_no_change(connection: Connection, machine: uuid.UUID) -> None:
    merge(connection, service(machine, 0, processId=7, dependencies=Jsonb(["rpc"])))
    assert changes(connection, machine) == []
    assert (stored(connection, "processId"), stored(connection, "dependencies")) == (7, ["rpc"])
    assert (stored(connection, "stateChangeCount"), stored(connection, "lastStateChange")) == (0, None)
    assert stored(connection, "firstSeen") == stored(connection, "lastSeen") == START


def test_a_change_against_the_stored_state_is_history(connection: Connection, machine: uuid.UUID) -> None:
    merge(connection, service(machine, 0))
    merge(connection, service(machine, 30, "stopped"))
    assert rows(connection, HISTORY, machine, "sshd") == [
        ("running", "stopped", "automatic", START + timedelta(seconds=30))
    ]
    assert stored(connection, "stateChangeCount") == 1
    assert stored(connection, "lastStateChange") == START + timedelta(seconds=30)


def test_a_path_that_was_null_and_is_empty_now_is_no_change_of_state(
    connection: Connection, machine: uuid.UUID
) -> None:
    merge(connection, service(machine, 0))
    merge(connection, service(machine, 30, executablePath=""))
    assert (stored(connection, "executablePath"), stored(connection, "stateChangeCount")) == ("", 0)
    before = everything(connection)
    merge(connection, service(machine, 40, executablePath=""))
    assert everything(connection) == before
    assert changes(connection, machine) == []


def test_every_change_within_a_batch_is_history(connection: Connection, machine: uuid.UUID) -> None:
    merge(connection, service(machine, 0))
    states = ["running", "stopped", "stopped", "running"]
    batch = [service(machine, 10 * n, state) for n, state in enumerate(states, start=1)]
    merge(connection, *reversed(batch))
    assert changes(connection, machine) == [("running", "stopped", 20), ("stopped", "running", 40)]
    assert stored(connection, "stateChangeCount") == 2
    assert stored(connection, "lastSeen") == START + timedelta(seconds=40)


def test_changes_after_a_first_sight_in_the_same_batch_are_history(connection: Connection, machine: uuid.UUID) -> None:
    merge(connection, service(machine, 0), service(machine, 10, "stopped"))
    assert changes(connection, machine) == [("running", "stopped", 10)]
    assert stored(connection, "stateChangeCount") == 1


def test_a_message_older_than_the_row_is_ignored(connection: Connection, machine: uuid.UUID) -> None:
    merge(connection, service(machine, 100))
    before = everything(connection)
    merge(connection, service(machine, 50, "stopped"), service(machine, 100, "paused"))
    assert everything(connection) == before


def test_a_repeated_message_is_written_at_most_once_a_minute(connection: Connection, machine: uuid.UUID) -> None:
    merge(connection, service(machine, 0))
    before = everything(connection)
    merge(connection, service(machine, 60))
    assert everything(connection) == before
    merge(connection, service(machine, 61))
    assert stored(connection, "lastSeen") == START + timedelta(seconds=61)


def test_what_a_later_message_does_not_say_stays_known(connection: Connection, machine: uuid.UUID) -> None:
    known: dict[str, Any] = {"description": "a shell", "executablePath": "C:/sshd.exe", "dependencies": Jsonb(["rpc"])}
    merge(connection, service(machine, 0, processId=7, **known), service(machine, 10, processId=7))
    merge(connection, service(machine, 20, "stopped"))
    assert stored(connection, "description") == "a shell"
    assert stored(connection, "executablePath") == "C:/sshd.exe"
    assert stored(connection, "dependencies") == ["rpc"]
    assert stored(connection, "processId") is None


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    states=st.lists(st.sampled_from(["running", "stopped", "paused"]), min_size=1, max_size=12),
    cuts=st.lists(st.integers(1, 11), max_size=4),
)
def test_history_is_the_same_however_messages_are_batched_and_replayed(
    connection: Connection, states: list[str], cuts: list[int]
) -> None:
    machine = make_machine(connection)
    messages = [service(machine, 10 * n, state) for n, state in enumerate(states)]
    edges = [0, *sorted(set(cuts)), len(messages)]
    for start, end in pairwise(edges):
        merge(connection, *messages[start:end])
        merge(connection, *messages[start:end])
    expected = [
        (before, after, 10 * n) for n, (before, after) in enumerate(pairwise(states), start=1) if before != after
    ]
    assert changes(connection, machine) == expected
    ((count,),) = rows(connection, 'SELECT "stateChangeCount" FROM "WindowsService" WHERE "machineId" = %s', machine)
    assert count == len(expected)


def test_two_daemons_with_the_same_services_neither_deadlock_nor_count_twice(dsn: str, connection: Connection) -> None:
    machines = [make_machine(connection) for _ in range(5)]
    names = [f"service-{n}" for n in range(20)]
    merge(connection, *(service(m, 0, "running", name) for m in machines for name in names))
    failures: list[Exception] = []

    def daemon(order: int) -> None:
        try:
            with psycopg.connect(dsn, autocommit=True) as own:
                for second in range(1, 21):
                    state = "stopped" if second % 2 else "running"
                    batch = [service(m, second, state, name) for m in machines for name in names]
                    merge(own, *batch[::order])
        except psycopg.Error as exc:
            failures.append(exc)

    threads = [threading.Thread(target=daemon, args=(order,)) for order in (1, -1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert failures == []
    # Both send the same twenty changes; whoever is second finds them stored. A message that comes after a newer
    # one of the other daemon is ignored, so there may be fewer, never more.
    counts = rows(connection, 'SELECT DISTINCT "stateChangeCount" <= 20 FROM "WindowsService"')
    assert counts == [(True,)]
    history = rows(connection, 'SELECT "serviceId", "timestamp" FROM "ServiceStateHistory"')
    assert len(history) == len(set(history)) > 0


def test_changes_beyond_those_of_a_day_are_counted_and_the_state_is_right(
    connection: Connection, machine: uuid.UUID
) -> None:
    other = make_machine(connection)
    merge(connection, service(machine, 0), service(machine, 0, name="cron"), service(other, 0))
    states = ["running", "stopped"]
    left_out = merge(
        connection,
        *(service(machine, second, states[second % 2]) for second in range(1, 7)),
        service(machine, 3, "stopped", name="cron"),
        service(other, 1, "stopped"),
        history_per_day=4,
    )
    assert left_out == 3
    # The earliest ones are history.
    assert [at for _, _, at in changes(connection, machine)] == [1, 2, 3]
    assert len(changes(connection, machine, "cron")) == len(changes(connection, other)) == 1
    state = (
        'SELECT "currentState", "stateChangeCount", "lastStateChange" FROM "WindowsService" WHERE "serviceName" = %s'
    )
    assert rows(connection, state + ' AND "machineId" = %s', "sshd", machine) == [
        ("running", 6, START + timedelta(seconds=6))
    ]
    assert merge(connection, service(machine, 60, "stopped"), history_per_day=4) == 1
    assert len(changes(connection, machine)) == 3
    # A day later there is room again.
    day = timedelta(days=1).total_seconds()
    assert merge(connection, service(machine, day + 4), history_per_day=4) == 0
    assert changes(connection, machine)[-1] == ("stopped", "running", day + 4)


def test_services_that_a_machine_no_longer_lists_are_removed_after_their_retention(
    connection: Connection, machine: uuid.UUID
) -> None:
    off, year = make_machine(connection), timedelta(days=366)
    for each, name, age in ((machine, "old", year), (machine, "new", timedelta()), (off, "last", year)):
        merge(connection, service(each, 0, name=name) | {"receivedAt": datetime.now(UTC) - age})
    assert rows(connection, """SELECT "due" FROM "RetentionDue" WHERE "relation" = 'WindowsService'""") == [(1,)]
    assert rows(connection, "SELECT guestd_enforce_retention('WindowsService')") == [(1,)]
    assert rows(connection, 'SELECT "serviceName" FROM "WindowsService" ORDER BY 1') == [("last",), ("new",)]


def test_history_is_removed_after_its_retention(connection: Connection, machine: uuid.UUID) -> None:
    merge(connection, service(machine, 0))
    merge(connection, service(machine, 1, "stopped"), service(machine, 2))
    connection.execute(
        """UPDATE "ServiceStateHistory" SET "timestamp" = now() - INTERVAL '366 days' WHERE "toState" = 'stopped'"""
    )
    assert rows(connection, "SELECT guestd_enforce_retention('ServiceStateHistory')") == [(1,)]
    assert rows(connection, 'SELECT "toState" FROM "ServiceStateHistory"') == [("running",)]
