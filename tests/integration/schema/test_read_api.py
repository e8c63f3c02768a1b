"""The read API: its results, their pages, and the indexes and roll-ups that its queries use."""

import itertools
import json
import random
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from gueststore import read_api
from gueststore.database import Connection
from support.models import REQUIRED
from support.rollups import roll_up, send
from support.schema import insert, make_machine, rows

NOW = datetime.now(UTC).replace(microsecond=0)
HOUR = timedelta(hours=1)


@pytest_asyncio.fixture
async def reader(dsn: str) -> AsyncIterator[read_api.AsyncConnection]:
    """A connection as Grafana has it."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute("SET ROLE guestd_reader")
        yield connection


@pytest.fixture
def fleet(connection: Connection) -> list[uuid.UUID]:
    """Three machines with two hours of samples a minute apart, rolled up; and one without any."""
    machines = [make_machine(connection, name=f"vm-{number}") for number in range(4)]
    chance = random.Random(7)
    for machine in machines[:3]:
        for minute in range(0, 120, 4):
            send(connection, machine, NOW - timedelta(minutes=minute), chance)
    roll_up(connection)
    return machines


@pytest.mark.asyncio
async def test_every_machine_is_given_with_its_latest_sample(
    reader: read_api.AsyncConnection, fleet: list[uuid.UUID]
) -> None:
    found = await read_api.read_machines(reader)
    assert [(machine.id, machine.at) for machine in found] == [*((m, NOW) for m in fleet[:3]), (fleet[3], None)]
    assert [m.id for m in await read_api.read_machines(reader, "vm-1")] == [fleet[1]]
    assert [m.id for m in await read_api.read_machines(reader, str(fleet[2]))] == [fleet[2]]


@pytest.mark.parametrize(
    ("span", "resolution"),
    [(HOUR, "raw"), (24 * HOUR, "minute"), (30 * 24 * HOUR, "hour"), (900 * 24 * HOUR, "hour")],
)
@pytest.mark.asyncio
async def test_a_series_comes_in_the_resolution_that_its_range_is_read_in(
    reader: read_api.AsyncConnection, fleet: list[uuid.UUID], span: timedelta, resolution: str
) -> None:
    found = await read_api.read_series(reader, fleet[0], NOW - span, NOW + HOUR)
    assert {point.resolution for point in found} == {resolution}
    assert sum(point.samples for point in found) == (16 if resolution == "raw" else 30)
    assert [point.at for point in found] == sorted(point.at for point in found)


@pytest.mark.asyncio
async def test_a_short_range_of_long_ago_comes_as_it_is_still_kept(
    reader: read_api.AsyncConnection, connection: Connection
) -> None:
    ago = {"days": 100, "years": 3}
    found = [
        rows(connection, "SELECT guestd_resolution(%s, %s, 400)", since, since + HOUR)
        for since in (NOW - timedelta(days=ago["days"]), NOW - timedelta(days=365 * ago["years"]))
    ]
    assert found == [[("minute",)], [("hour",)]]


@pytest.mark.parametrize("span", [HOUR, 3 * HOUR])
@pytest.mark.asyncio
async def test_top_processes_are_those_that_used_most(
    reader: read_api.AsyncConnection, connection: Connection, fleet: list[uuid.UUID], span: timedelta
) -> None:
    busy = {"machineId": fleet[1], "name": "busy", "status": "running", "cpuUsagePercent": 50.0, "memoryUsageKB": 7}
    for minute in range(0, 120, 4):
        insert(connection, "ProcessSnapshot", **busy, processId=99, timestamp=NOW - timedelta(minutes=minute))
    # Every hour of NOW - 2 hours to NOW: the last one may be over by now.
    for hours in range(3):
        connection.execute("SELECT guestd_note_pending_of(%s, %s)", (fleet[1], NOW - hours * HOUR))
    roll_up(connection)
    found = await read_api.read_top_processes(reader, NOW - span, NOW + timedelta(seconds=1), of=[fleet[1]], most=100)
    assert [used.cpu_percent for used in found] == sorted((used.cpu_percent for used in found), reverse=True)
    (of_busy,) = [used for used in found if used.name == "busy"]
    assert of_busy.machines == 1
    assert [of_busy.cpu_percent, of_busy.memory_kb] == pytest.approx([50, 7])
    everywhere = await read_api.read_top_processes(reader, NOW - span, NOW + timedelta(seconds=1), most=1)
    assert len(everywhere) == 1


@pytest.mark.asyncio
async def test_the_top_of_the_fleet_is_that_of_all_its_machines(
    reader: read_api.AsyncConnection, fleet: list[uuid.UUID]
) -> None:
    window = (NOW - 5 * HOUR, NOW + HOUR)
    everywhere = await read_api.read_top_processes(reader, *window)
    named = await read_api.read_top_processes(reader, *window, of=fleet)
    assert [(used.name, used.machines) for used in everywhere] == [(used.name, used.machines) for used in named] != []
    for one, other in zip(everywhere, named, strict=True):
        assert [one.cpu_percent, one.memory_kb] == pytest.approx([other.cpu_percent, other.memory_kb])


@pytest.mark.parametrize(("span", "step"), [(HOUR, timedelta(minutes=4)), (30 * 24 * HOUR, HOUR)])
@pytest.mark.asyncio
async def test_the_fleet_comes_by_the_minute_or_by_the_hour(
    reader: read_api.AsyncConnection, connection: Connection, fleet: list[uuid.UUID], span: timedelta, step: timedelta
) -> None:
    series = await read_api.read_fleet(reader, NOW - span, NOW + HOUR)
    assert {point.machines for point in series} == {3}
    assert [b.at - a.at for a, b in itertools.pairwise(series)] == [step] * (len(series) - 1)
    ((busiest, mean),) = rows(connection, 'SELECT max("cpuUsagePercent"), avg("cpuUsagePercent") FROM "SystemMetrics"')
    if span > 24 * HOUR:
        assert max(point.cpu_percent_max for point in series) == busiest
        assert min(p.cpu_percent for p in series) <= mean <= max(p.cpu_percent for p in series)


@pytest.mark.asyncio
async def test_a_departments_machines_are_those_of_its_top(
    reader: read_api.AsyncConnection, connection: Connection
) -> None:
    department = insert(connection, "Department", name="Sales")["id"]
    member = make_machine(connection, departmentId=department)
    make_machine(connection)
    assert await read_api.read_department_machines(reader, department) == [member]


@pytest.mark.asyncio
async def test_pages_of_processes_give_every_row_once(
    reader: read_api.AsyncConnection, connection: Connection, fleet: list[uuid.UUID]
) -> None:
    pages, last = list[read_api.Process](), None
    while page := await read_api.read_processes(reader, fleet[0], NOW - 3 * HOUR, NOW + HOUR, after=last, most=7):
        pages += page
        last = page[-1]
    expected = rows(
        connection,
        'SELECT "timestamp", "processId" FROM "ProcessSnapshot" WHERE "machineId" = %s ORDER BY 1, 2',
        fleet[0],
    )
    assert [(process.at, process.process_id) for process in pages] == expected


@pytest.mark.asyncio
async def test_pages_of_changes_give_every_change_once_the_newest_first(
    reader: read_api.AsyncConnection, connection: Connection
) -> None:
    machine = make_machine(connection)
    service = insert(connection, "WindowsService", **REQUIRED["WindowsService"](connection) | {"machineId": machine})
    for number in range(9):
        at = NOW - timedelta(minutes=number // 3)
        insert(connection, "ServiceStateHistory", serviceId=service["id"], toState="running", timestamp=at)
        event = {"name": "vm", "action": "start", "reason": "wanted", "outcome": "done", "occurredAt": at}
        insert(connection, "ReconcileEvent", machineId=machine, **event)
    found, last = list[read_api.Change](), None
    while page := await read_api.read_changes(reader, machine, before=last, most=4):
        found += page
        last = page[-1]
    assert len({change.id for change in found}) == len(found) == 18
    assert [change.at for change in found] == sorted((change.at for change in found), reverse=True)


@pytest.mark.asyncio
async def test_ports_applications_and_silent_machines_are_found(
    reader: read_api.AsyncConnection, connection: Connection
) -> None:
    machine = make_machine(connection, createdAt=NOW - 9 * HOUR)
    for ordinal, listening in enumerate((True, False)):
        port = {"machineId": machine, "timestamp": NOW - 2 * HOUR, "ordinal": ordinal, "port": 22, "protocol": "TCP"}
        insert(connection, "PortUsage", **port, state="LISTEN", processName="sshd", isListening=listening)
    for name, used_at in (("fresh", NOW), ("stale", NOW - timedelta(days=99)), ("never", None)):
        application = {"machineId": machine, "executablePath": name, "applicationName": name, "lastAccessTime": used_at}
        insert(connection, "ApplicationUsage", **application)
    assert [(port.port, port.process_name) for port in await read_api.read_ports(reader, machine)] == [(22, "sshd")]
    found = {each.name: each.is_used for each in await read_api.read_applications(reader, machine)}
    assert found == {"fresh": True, "stale": False, "never": False}
    assert [silent.id for silent in await read_api.read_machines_without_data(reader)] == [machine]


def scans(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every node of a plan that reads a relation, none that was left out at run time."""
    if "Relation Name" in plan and plan.get("Actual Loops", 1) > 0:
        yield plan
    for child in plan.get("Plans", ()):
        yield from scans(child)


# The query, and the series that it must not read whole.
BY_INDEX = {
    'SELECT * FROM "MachineLatest"': ("SystemMetrics",),
    'SELECT * FROM "ListeningPort"': ("PortUsage",),
    'SELECT * FROM "MachineWithoutData"': ("SystemMetrics",),
    """SELECT * FROM "SystemMetrics_1m" WHERE "machineId" = %(one)s AND "bucket" >= now() - INTERVAL '1 day'""": (
        "SystemMetrics", "SystemMetricsMinute",
    ),
    """SELECT * FROM "SystemMetrics_1h" WHERE "machineId" = %(one)s AND "bucket" >= now() - INTERVAL '1 day'""": (
        "SystemMetrics", "SystemMetricsMinute", "SystemMetricsHour",
    ),
    """SELECT * FROM "ProcessUsage_1h" WHERE "machineId" = %(one)s AND "bucket" >= now() - INTERVAL '1 day'""": (
        "ProcessSnapshot", "ProcessUsageHour",
    ),
    """SELECT "bucket", avg("cpuUsagePercentAvg") FROM "SystemMetrics_1m"
    WHERE "bucket" >= now() - INTERVAL '10 minutes' GROUP BY 1""": ("SystemMetrics", "SystemMetricsMinute"),
    """SELECT * FROM "ApplicationUsage_1d" WHERE "machineId" = %(one)s AND "bucket" >= now() - INTERVAL '9 days'""": (
        "ApplicationUsageHistory", "ApplicationUsageDay",
    ),
    """SELECT * FROM "ListeningPort_1d" WHERE "machineId" = %(one)s AND "bucket" >= now() - INTERVAL '9 days'""": (
        "PortUsage", "ListeningPortDay",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("question", "series"), BY_INDEX.items(), ids=[question[:60] for question in BY_INDEX])
def test_no_query_reads_a_whole_series(
    connection: Connection, fleet: list[uuid.UUID], question: str, series: tuple[str, ...]
) -> None:
    # So little data is quickest read whole: what is held is that there is a way through an index at all.
    connection.execute("SET enable_seqscan = off; SET enable_bitmapscan = off")
    plan = explained(connection, question, {"one": fleet[0]})
    chunks = dict(rows(
        connection,
        """SELECT chunk_name::text, hypertable_name::text FROM timescaledb_information.chunks
        WHERE %s""", True,
    ))  # fmt: skip
    read = [(chunks.get(node["Relation Name"]), node) for node in scans(plan)]
    of_series = [(name, node) for name, node in read if name in series]
    assert of_series, plan
    for name, node in of_series:
        assert node["Node Type"] in ("Index Scan", "Index Only Scan"), (name, node)
        assert "Index Cond" in node, (name, node)


def explained(connection: Connection, question: str, given: dict[str, object]) -> dict[str, Any]:
    cursor = psycopg.ClientCursor(connection)
    cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {question}".encode(), given)
    row = cursor.fetchone()
    assert row is not None
    answer = row[0] if isinstance(row[0], list) else json.loads(row[0])
    found: dict[str, Any] = answer[0]["Plan"]
    return found
