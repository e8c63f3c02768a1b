"""Roll-ups equal a GROUP BY of the series, with late samples and deletions; nothing is dropped before that."""

import random
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from gueststore.column_lists import COLUMNS
from gueststore.database import Connection
from gueststore.queries import query
from support.models import REQUIRED
from support.rollups import SAMPLE, roll_up, run_step, send
from support.schema import insert, make_machine, rows

NOW = datetime.now(UTC).replace(microsecond=0)

# View: the query of the series with the same result.
PLAIN = {
    "SystemMetrics_1m": """
        SELECT "machineId", date_trunc('minute', "timestamp", 'UTC') AS "bucket", count(*) AS "samples",
            avg("cpuUsagePercent") AS "cpuUsagePercentAvg", max("cpuUsagePercent") AS "cpuUsagePercentMax",
            avg("usedMemoryKB") AS "usedMemoryKBAvg", min("availableMemoryKB") AS "availableMemoryKBMin",
            avg(("diskIOStats" ->> 'readBytesPerSec')::float8) AS "diskReadBytesPerSecAvg",
            avg(("networkStats" -> 0 ->> 'bytesSent')::float8 + ("networkStats" -> 1 ->> 'bytesSent')::float8)
                AS "networkSentBytesPerSecAvg",
            avg(("loadAverage" ->> 'load1min')::float8) AS "load1minAvg"
        FROM "SystemMetrics" GROUP BY 1, 2""",
    "ProcessUsage_1h": """
        SELECT "machineId", date_trunc('hour', "timestamp", 'UTC') AS "bucket", "name", count(*) AS "samples",
            sum("cpuUsagePercent") AS "cpuUsagePercentSum", avg("cpuUsagePercent") AS "cpuUsagePercentAvg",
            sum("memoryUsageKB") AS "memoryUsageKBSum", max("memoryUsageKB") AS "memoryUsageKBMax"
        FROM "ProcessSnapshot" GROUP BY 1, 2, 3""",
    "ApplicationUsage_1d": """
        SELECT "machineId", date_trunc('day', "timestamp", 'UTC') AS "bucket", "executablePath",
            least(max("totalUsageMinutes") - min("totalUsageMinutes"), 1440) AS "usageMinutes",
            max("accessCount") - min("accessCount") AS "starts"
        FROM "ApplicationUsageHistory" GROUP BY 1, 2, 3""",
    "ListeningPort_1d": """
        SELECT "machineId", date_trunc('day', "timestamp", 'UTC') AS "bucket", "port", "protocol",
            coalesce("processName", '') AS "processName", max("executablePath") AS "executablePath",
            min("timestamp") AS "firstSeen", max("timestamp") AS "lastSeen",
            max("connectionCount") AS "connectionCountMax"
        FROM "PortUsage" WHERE "isListening" GROUP BY 1, 2, 3, 4, 5""",
}
PLAIN["SystemFleet_1m"] = f"""
    SELECT "bucket", count(*) AS "machines", avg("cpuUsagePercentAvg") AS "cpuUsagePercentAvg",
        max("cpuUsagePercentMax") AS "cpuUsagePercentMax", avg("usedMemoryKBAvg") AS "usedMemoryKBAvg"
    FROM ({PLAIN["SystemMetrics_1m"]}) AS minutes GROUP BY 1"""
# A table, of hours that are closed: no view adds the open one, for tops of a long window are of whole hours.
PLAIN["ProcessFleetHour"] = """
    SELECT "bucket", "name", count(*) AS "machines", sum(cpu / samples) AS "cpuUsagePercent",
        sum(memory / samples) AS "memoryUsageKB"
    FROM (
        SELECT "machineId", date_trunc('hour', "timestamp", 'UTC') AS "bucket", "name", sum("cpuUsagePercent") AS cpu,
            sum("memoryUsageKB") AS memory
        FROM "ProcessSnapshot" GROUP BY 1, 2, 3
    ) AS used
    INNER JOIN (
        SELECT "machineId", date_trunc('hour', "timestamp", 'UTC') AS "bucket", count(*)::float8 AS samples
        FROM "SystemMetrics" GROUP BY 1, 2
    ) AS messages USING ("machineId", "bucket")
    WHERE "bucket" < date_trunc('hour', now() - INTERVAL '90 seconds', 'UTC') GROUP BY 1, 2"""
PLAIN["SystemMetrics_1h"] = PLAIN["SystemMetrics_1m"].replace("'minute'", "'hour'")


def test_figures_that_no_sum_holds_do_not_end_the_roll_ups(connection: Connection) -> None:
    hostile, other = make_machine(connection), make_machine(connection)
    at = NOW - timedelta(hours=3)
    huge = Jsonb([{"bytesReceived": 1e308, "bytesSent": 1e308}] * 2)
    for second in range(3):
        common = {"machineId": hostile, "timestamp": at + timedelta(seconds=second)}
        system = {"networkStats": huge, "diskIOStats": Jsonb({"readBytesPerSec": 1e308}), "usedMemoryKB": 2**63 - 1}
        insert(
            connection,
            "SystemMetrics",
            **SAMPLE | {"availableMemoryKB": 2**63 - 1, "cpuUsagePercent": 1} | system | common,
        )
        for number in range(2):
            process = {"processId": number, "name": "a", "status": "running"}
            load = {"cpuUsagePercent": 1e308, "memoryUsageKB": 2**63 - 1}
            insert(connection, "ProcessSnapshot", **process | load | common)
    send(connection, other, at, random.Random(1))
    roll_up(connection)
    for relation in ("SystemMetrics_1m", "SystemMetrics_1h", "ProcessUsage_1h"):
        seen = rows(connection, f'SELECT DISTINCT "machineId" FROM "{relation}"')
        assert (hostile,) in seen, relation
    assert (other,) in rows(connection, 'SELECT DISTINCT "machineId" FROM "SystemMetrics_1h"')


def test_an_application_whose_minutes_begin_again_was_in_use_for_a_day_at_most(connection: Connection) -> None:
    machine = make_machine(connection)
    at = NOW - timedelta(minutes=5)
    for second, minutes in enumerate((300_000, 0, 1)):
        insert(
            connection, "ApplicationUsageHistory", machineId=machine, timestamp=at + timedelta(seconds=second),
            executablePath="/a", accessCount=1, totalUsageMinutes=minutes, isActive=True,
        )  # fmt: skip
    usage = f"""SELECT "usageMinutes" FROM "ApplicationUsage_1d" WHERE "machineId" = '{machine}'"""
    assert rows(connection, usage) == [(1440,)]


def named(connection: Connection, select: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Rows of a query by their keys: the columns up to the first that is a number of ours."""
    with connection.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        found = cursor.execute(select.encode()).fetchall()
    keys: tuple[str, ...] = ("machineId", "bucket", "name", "executablePath", "port", "protocol", "processName")
    if found and "port" in found[0]:
        keys = tuple(key for key in keys if key != "executablePath")
    by_key = {tuple(row[key] for key in keys if key in row): row for row in found}
    assert len(by_key) == len(found)
    return by_key


def assert_exact(connection: Connection, *but: str) -> None:
    """Every view, and the table that has none, gives what its series gives."""
    for view, plain in PLAIN.items():
        if view in but:
            continue
        expected = named(connection, plain)
        live = named(connection, f'SELECT * FROM "{view}"')
        assert live.keys() == expected.keys(), view
        for key, row in expected.items():
            for column, value in row.items():
                if isinstance(value, datetime | str | uuid.UUID | None):
                    assert live[key][column] == value, (view, column)
                else:
                    assert float(live[key][column]) == pytest.approx(float(value), rel=1e-9), (view, column)


@pytest.fixture
def machines(connection: Connection) -> list[uuid.UUID]:
    """Two machines of this test."""
    return [make_machine(connection) for _ in range(2)]


@pytest.mark.parametrize("seed", range(6))
def test_any_order_of_samples_roll_ups_and_deletions_leaves_what_group_by_gives(
    connection: Connection, machines: list[uuid.UUID], seed: int
) -> None:
    chance = random.Random(seed)
    occupied = set()
    for _ in range(60):
        act = chance.random()
        if act < 0.8:
            # Most now, some of the last hours, a few of days ago, a few ahead.
            span = chance.choice((90, 90, 7_200, 260_000))
            machine, at = chance.choice(machines), NOW - timedelta(seconds=chance.randrange(-30, span))
            if (machine, at) not in occupied:
                occupied.add((machine, at))
                send(connection, machine, at, chance)
        elif act < 0.97:
            roll_up(connection, most=chance.choice((1, 3, 1000)))
        elif act < 0.98:
            run_step(connection, "rollups/roll_up_minutes", 1)
            assert_views_hold_what_is_closed(connection)
        else:
            connection.execute('DELETE FROM "Machine" WHERE "id" = %s', (machines.pop(),))
            machines.append(make_machine(connection))
    assert_views_hold_what_is_closed(connection)
    for _ in range(2):  # again: nothing comes of it but what was closed since
        roll_up(connection)
        assert_exact(connection)


def assert_views_hold_what_is_closed(connection: Connection) -> None:
    """Before the last roll-up the views may lack what came late, and never have what is not there, or have it twice."""
    for view, plain in PLAIN.items():
        if "Fleet" in view:  # a machine that was deleted is taken out with the next roll-up
            continue
        assert named(connection, f'SELECT * FROM "{view}"').keys() <= named(connection, plain).keys(), view


def test_before_the_first_roll_up_views_compute_all_from_the_series(
    connection: Connection, machines: list[uuid.UUID]
) -> None:
    chance = random.Random(1)
    for minute in range(100):
        send(connection, machines[0], NOW - timedelta(minutes=minute), chance)
    assert_exact(connection, "ProcessFleetHour")


def test_a_minute_that_is_rolled_up_for_some_machines_is_in_the_view_once_for_each(
    connection: Connection, machines: list[uuid.UUID]
) -> None:
    chance = random.Random(8)
    for machine in machines:
        send(connection, machine, NOW - timedelta(minutes=5), chance)
    assert run_step(connection, "rollups/roll_up_minutes", 1) == 1
    for view in ("SystemMetrics_1m", "SystemMetrics_1h", "SystemFleet_1m"):
        assert len(named(connection, f'SELECT * FROM "{view}"')) == (1 if "Fleet" in view else 2), view
    roll_up(connection)
    assert_exact(connection)


def test_a_sample_that_is_committed_after_its_bucket_was_rolled_up_is_added(
    dsn: str, connection: Connection, machines: list[uuid.UUID]
) -> None:
    chance = random.Random(2)
    with psycopg.connect(dsn) as slow:
        slow.autocommit = False
        send(slow, machines[0], NOW - timedelta(hours=3), chance)
        send(connection, machines[1], NOW - timedelta(hours=3), chance)
        assert roll_up(connection) > 0
    roll_up(connection)
    assert_exact(connection)


def test_rows_that_are_added_to_a_message_later_are_rolled_up_when_the_minute_is_marked(
    connection: Connection, machines: list[uuid.UUID]
) -> None:
    at = NOW - timedelta(hours=3)
    send(connection, machines[0], at, random.Random(3))
    roll_up(connection)
    added = {"machineId": machines[0], "timestamp": at, "processId": 99, "name": "late", "status": "running"}
    insert(connection, "ProcessSnapshot", **added, cpuUsagePercent=1.0, memoryUsageKB=1)
    connection.execute(query("ingest/insert_pending_rollup"), {"machine_id": machines[0], "at": at})
    roll_up(connection)
    assert_exact(connection)


def test_only_one_session_rolls_up_at_a_time(dsn: str, connection: Connection, machines: list[uuid.UUID]) -> None:
    send(connection, machines[0], NOW - timedelta(hours=3), random.Random(4))
    with psycopg.connect(dsn) as other:
        assert run_step(other, "rollups/roll_up_minutes", 10) == 1
        assert roll_up(connection) == 0
    roll_up(connection)
    assert_exact(connection)


CHUNKS = "SELECT count(*) FROM show_chunks(quote_ident(%s)::regclass)"


def test_raw_data_is_dropped_when_it_is_old_and_rolled_up_and_not_before(
    connection: Connection, machines: list[uuid.UUID]
) -> None:
    chance = random.Random(5)
    for day in (0, 100, 120):
        send(connection, machines[0], NOW - timedelta(days=day), chance)
        insert(connection, "ProcessSnapshot", **REQUIRED["ProcessSnapshot"](connection) | {
            "machineId": machines[0], "timestamp": NOW - timedelta(days=day), "processId": 77
        })  # fmt: skip
    enforce = "SELECT guestd_enforce_retention(%s)"
    assert rows(connection, enforce, "ProcessSnapshot") == [(0,)]
    held = rows(connection, 'SELECT "isHeldBack", "due" FROM "RetentionDue" WHERE "relation" = %s', "ProcessSnapshot")
    assert held == [(True, 0)]
    roll_up(connection)
    before = rows(connection, 'SELECT * FROM "ProcessUsage_1h" ORDER BY 1, 2, 3')
    due = rows(connection, 'SELECT "isHeldBack", "due" FROM "RetentionDue" WHERE "relation" = %s', "ProcessSnapshot")
    assert due == [(False, 2)]
    assert rows(connection, enforce, "ProcessSnapshot") == [(2,)]
    assert rows(connection, CHUNKS, "ProcessSnapshot") == [(1,)]
    assert rows(connection, 'SELECT * FROM "ProcessUsage_1h" ORDER BY 1, 2, 3') == before


def test_a_setting_that_is_changed_or_deleted_is_honoured(connection: Connection, machines: list[uuid.UUID]) -> None:
    old = REQUIRED["PortUsage"](connection) | {"machineId": machines[0], "timestamp": NOW - timedelta(days=10)}
    insert(connection, "PortUsage", **old)
    roll_up(connection)
    enforce = "SELECT guestd_enforce_retention('PortUsage')"
    assert rows(connection, enforce) == [(0,)]
    connection.execute("""UPDATE "RetentionSetting" SET "keepDays" = 5 WHERE "relation" = 'PortUsage'""")
    assert rows(connection, enforce) == [(1,)]
    connection.execute("""DELETE FROM "RetentionSetting" WHERE "relation" = 'PortUsage'""")
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        connection.execute(enforce.encode())


def test_inactive_applications_and_old_quarantined_frames_are_deleted(connection: Connection) -> None:
    long_ago = NOW - timedelta(days=400)
    for active in (True, False):
        insert(connection, "ApplicationUsage", **REQUIRED["ApplicationUsage"](connection) | {
            "lastSeen": long_ago, "isActive": active
        })  # fmt: skip
    for created in (NOW, long_ago):
        insert(connection, "QuarantinedFrame", **REQUIRED["QuarantinedFrame"](connection) | {"createdAt": created})
    for relation in ("ApplicationUsage", "QuarantinedFrame"):
        assert rows(connection, "SELECT guestd_enforce_retention(%s)", relation) == [(1,)]
    assert rows(connection, 'SELECT "isActive" FROM "ApplicationUsage"') == [(True,)]


def test_retention_of_one_relation_is_done_by_one_session_at_a_time(dsn: str, connection: Connection) -> None:
    insert(connection, "QuarantinedFrame", **REQUIRED["QuarantinedFrame"](connection) | {
        "createdAt": NOW - timedelta(days=400)
    })  # fmt: skip
    with psycopg.connect(dsn) as other:
        assert rows(other, "SELECT guestd_enforce_retention('QuarantinedFrame')") == [(1,)]
        assert rows(connection, "SELECT guestd_enforce_retention('QuarantinedFrame')") == [(0,)]


def test_every_hypertable_has_a_retention(connection: Connection) -> None:
    missing = rows(
        connection,
        """SELECT hypertable_name FROM timescaledb_information.hypertables WHERE hypertable_schema = 'public'
        EXCEPT SELECT "relation" FROM "RetentionSetting" WHERE %s""",
        True,
    )
    assert missing == []


def test_roll_ups_of_a_deleted_machine_go_with_it_and_the_fleets_follow(
    connection: Connection, machines: list[uuid.UUID]
) -> None:
    for machine in machines:
        send(connection, machine, NOW - timedelta(hours=3), random.Random(7))
    roll_up(connection)
    send(connection, machines[0], NOW - timedelta(hours=3, seconds=1), random.Random(6))
    connection.execute('DELETE FROM "Machine" WHERE "id" = %s', (machines[0],))
    for table in ("SystemMetricsMinute", "SystemMetricsHour", "ProcessUsageHour", "RollupPending"):
        left = sql.SQL('SELECT count(*) FROM {} WHERE "machineId" = %s').format(sql.Identifier(table))
        assert connection.execute(left, (machines[0],)).fetchone() == (0,)
    assert rows(connection, 'SELECT max("machines") FROM "SystemFleetMinute"') == [(2,)]
    roll_up(connection)
    assert rows(connection, 'SELECT max("machines") FROM "SystemFleetMinute"') == [(1,)]
    assert_exact(connection)


def test_the_fleets_hours_are_added_up_the_newest_first(connection: Connection, machines: list[uuid.UUID]) -> None:
    hours = [NOW - timedelta(hours=ago) for ago in (30, 20, 10)]
    for at in hours:
        send(connection, machines[0], at, random.Random(7))
    for step in ("rollups/roll_up_minutes", "rollups/roll_up_hours"):
        while run_step(connection, step, 1000):
            pass
    connection.execute('TRUNCATE "SystemFleetMinute"')
    assert run_step(connection, "rollups/roll_up_fleet", 1) == 1
    newest = hours[-1].replace(second=0, microsecond=0)
    assert rows(connection, 'SELECT "bucket" FROM "SystemFleetMinute"') == [(newest,)]
    roll_up(connection)
    assert_exact(connection)


@pytest.mark.parametrize("table", ["SystemMetricsMinute", "SystemMetricsHour"])
def test_the_declared_columns_are_those_of_the_table(connection: Connection, table: str) -> None:
    live = rows(
        connection,
        "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = %s ORDER BY ordinal_position",
        table,
    )
    assert live[3:] == [(column.name, column.type) for column in COLUMNS]
    assert [name for name, _ in live[:3]] == ["machineId", "bucket", "samples"]
