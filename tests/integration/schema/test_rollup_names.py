"""A machine's texts make a bounded number of rows of a roll-up, whatever the order in which they are rolled up."""

import random
import uuid
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gueststore.database import Connection
from support.rollups import SAMPLE, roll_up, send
from support.schema import insert, make_machine, rows

# Closed: an hour of yesterday.
HOUR = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=26)
KEPT = 4
OTHER = "(other)"
USAGE = 'SELECT * FROM "ProcessUsageHour" ORDER BY "machineId", "bucket", "name"'
FLEET = 'SELECT "bucket", "name", "machines" FROM "ProcessFleetHour" ORDER BY "bucket", "name"'
DAYS = (
    'SELECT * FROM "ApplicationUsageDay" ORDER BY "machineId", "bucket", "executablePath"',
    'SELECT * FROM "ListeningPortDay" ORDER BY "machineId", "bucket", "port", "protocol", "processName"',
)
Message = tuple[uuid.UUID, datetime, list[tuple[str, float, int]]]


def keep(connection: Connection, names: int) -> None:
    for function in ("guestd_process_names_kept", "guestd_day_rows_kept"):
        connection.execute(
            f"CREATE OR REPLACE FUNCTION public.{function}() RETURNS integer LANGUAGE sql IMMUTABLE"
            f" AS 'SELECT {names}'".encode()
        )


def make_messages(machines: list[uuid.UUID], seed: int) -> list[Message]:
    """Messages with more names than are kept, in two hours; many of one sum, some named as the others are."""
    chance = random.Random(seed)
    names = [*"abcdefghij", OTHER, ""]
    return [
        (
            chance.choice(machines),
            HOUR + timedelta(minutes=chance.randrange(120), milliseconds=place),
            [
                (name, chance.choice((0.1, 0.2, 0.3, 50.0, 1e9)), chance.choice((1, 2**50)))
                for name in chance.sample(names, chance.randrange(1, len(names)))
            ],
        )
        for place in range(30)
    ]


def store(connection: Connection, message: Message) -> None:
    """One message of a machine, by the series that the daemon writes."""
    machine, at, processes = message
    common = {"machineId": machine, "timestamp": at}
    with connection.transaction():
        system = {"cpuUsagePercent": 1.0, "usedMemoryKB": 1, "availableMemoryKB": 1, "diskIOStats": "{}"}
        insert(connection, "SystemMetrics", **SAMPLE | system | {"networkStats": "[]"} | common)
        for number, (name, cpu, memory) in enumerate(processes):
            figures = {"cpuUsagePercent": cpu, "memoryUsageKB": memory, "status": "S"}
            insert(connection, "ProcessSnapshot", processId=number, name=name, **figures | common)
            used = {"accessCount": memory % 7, "totalUsageMinutes": int(cpu) % 90, "isActive": True}
            insert(connection, "ApplicationUsageHistory", executablePath=name, **used | common)
            port = {"ordinal": number, "port": len(name), "protocol": "TCP", "state": "LISTEN", "isListening": True}
            insert(connection, "PortUsage", processName=name, **port | common)


def expected_usage(messages: list[Message]) -> set[tuple[Any, ...]]:
    """ProcessUsageHour by machine, hour and name: samples, CPU (rounded), memory."""
    named: dict[tuple[Any, ...], list[float]] = defaultdict(lambda: [0, 0, 0])
    for machine, at, processes in messages:
        for name, cpu, memory in processes:
            sums = named[machine, at.replace(minute=0, second=0, microsecond=0), name]
            # Whole 2^-32 of a percent of at most a million, as the store adds them.
            sums[0] -= round(min(cpu, 1e6) * 2**32)
            sums[1] -= memory
            sums[2] -= 1
    kept: dict[tuple[Any, ...], list[float]] = defaultdict(lambda: [0, 0, 0])
    hours = {key[:2] for key in named}
    for hour in hours:
        ranked = sorted((*sums, key[2]) for key, sums in named.items() if key[:2] == hour)
        for place, (cpu, memory, samples, name) in enumerate(ranked):
            into = kept[*hour, name if place < KEPT else OTHER]
            into[0], into[1], into[2] = into[0] - cpu, into[1] - memory, into[2] - samples
    return {(*key, samples, round(cpu / 2**32, 6), memory) for key, (cpu, memory, samples) in kept.items()}


def usage(connection: Connection, relation: str) -> set[tuple[Any, ...]]:
    figures = '"samples", "cpuUsagePercentSum", "memoryUsageKBSum"'
    found = rows(connection, f'SELECT "machineId", "bucket", "name", {figures} FROM "{relation}"')
    return {(*key, samples, round(cpu, 6), memory) for *key, samples, cpu, memory in found}


@pytest.mark.parametrize("seed", range(8))
def test_an_hour_keeps_the_names_that_used_most_and_the_sum_of_the_others_in_any_order(
    connection: Connection, seed: int
) -> None:
    keep(connection, KEPT)
    machines = [make_machine(connection) for _ in range(2)]
    messages = make_messages(machines, seed)
    chance = random.Random(seed)
    chance.shuffle(messages)
    for place, message in enumerate(messages, 1):
        store(connection, message)
        # From the series, before anything is rolled up.
        assert place > 1 or usage(connection, "ProcessUsage_1h") == expected_usage(messages[:place])
        if chance.random() < 0.3:
            roll_up(connection, most=chance.randrange(1, 6))
            assert usage(connection, "ProcessUsageHour") == expected_usage(messages[:place])
    roll_up(connection)
    assert usage(connection, "ProcessUsage_1h") == usage(connection, "ProcessUsageHour") == expected_usage(messages)
    before = [rows(connection, select) for select in (USAGE, FLEET, *DAYS)]
    for machine, at, _ in messages:
        connection.execute("SELECT guestd_note_pending_of(%s, %s)", (machine, at))
        if chance.random() < 0.3:
            roll_up(connection, most=chance.randrange(1, 6))
    roll_up(connection)
    assert [rows(connection, select) for select in (USAGE, FLEET, *DAYS)] == before


@pytest.mark.parametrize("seed", range(4))
def test_a_day_keeps_the_same_programs_and_ports_in_any_order(connection: Connection, seed: int) -> None:
    keep(connection, KEPT)
    machine = make_machine(connection)
    messages = make_messages([machine], seed)
    random.Random(seed).shuffle(messages)
    for message in messages:
        store(connection, message)
        roll_up(connection)
    names = {name for _, at, processes in messages if at.date() == HOUR.date() for name, *_ in processes}
    select = 'SELECT "executablePath" FROM "ApplicationUsageDay" WHERE "bucket" = %s'
    day = HOUR.replace(hour=0)
    assert {path for (path,) in rows(connection, select, day)} == set(sorted(names)[:KEPT])
    select = 'SELECT "port", "processName" FROM "ListeningPortDay" WHERE "bucket" = %s'
    assert set(rows(connection, select, day)) == set(sorted((len(name), name) for name in names)[:KEPT])


def test_names_of_one_machine_do_not_displace_those_of_another_from_the_fleet(connection: Connection) -> None:
    keep(connection, KEPT)
    hostile, other = make_machine(connection), make_machine(connection)
    for second in range(20):
        flood = [(f"new-{second}-{number}", 409_600.0, 2**50) for number in range(10)]
        store(connection, (hostile, HOUR + timedelta(seconds=second), flood))
    store(connection, (other, HOUR, [("sshd", 0.1, 1), ("cron", 0.0, 1)]))
    roll_up(connection)
    names = {name for (name,) in rows(connection, 'SELECT "name" FROM "ProcessFleetHour"')}
    assert {"sshd", "cron", OTHER} < names
    assert len(names) == KEPT + 3


def test_the_names_of_a_machine_in_use_are_all_kept(connection: Connection) -> None:
    machine = make_machine(connection)
    # As on a guest with 96 cores, with several threads of the kernel for each.
    names = [(f"kworker/{number}", 0.0, 0) for number in range(900)]
    store(connection, (machine, HOUR, names))
    roll_up(connection)
    assert rows(
        connection, """SELECT count(*), count(*) FILTER (WHERE "name" = '(other)') FROM "ProcessUsageHour" """
    ) == [(900, 0)]


def test_a_late_sample_of_an_hour_whose_samples_are_dropped_does_not_replace_the_hour(connection: Connection) -> None:
    machine = make_machine(connection)
    store(connection, (machine, HOUR, [("sshd", 5.0, 1), ("cron", 1.0, 1)]))
    roll_up(connection)
    before = rows(connection, USAGE)
    connection.execute('DELETE FROM "ProcessSnapshot"')
    store(connection, (machine, HOUR + timedelta(minutes=1), [("sshd", 1.0, 1)]))
    roll_up(connection)
    assert rows(connection, USAGE) == before


def test_a_real_limit_bounds_a_flood(connection: Connection) -> None:
    machine = make_machine(connection)
    for second in range(3):
        store(connection, (machine, HOUR + timedelta(seconds=second), [(f"{second}-{n}", 1.0, 1) for n in range(800)]))
    send(connection, make_machine(connection), HOUR, random.Random(1))
    roll_up(connection)
    select = 'SELECT count(*), sum("samples") FROM "ProcessUsageHour" WHERE "machineId" = %s'
    assert rows(connection, select, machine) == [(1001, 2400)]
    ((fleet,),) = rows(connection, 'SELECT count(*) FROM "ProcessFleetHour"')
    assert fleet <= 1001 + 3
