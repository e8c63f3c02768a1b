"""Steps of upkeep are independent: each has a connection and a limit, and a slow or failed one costs only itself."""

import asyncio

import psycopg
import pytest
from prometheus_client import CollectorRegistry
from psycopg.conninfo import make_conninfo
from structlog.testing import capture_logs
from tools.harness.waiting import eventually

from guestd.core.config import Settings, StoreSettings
from guestd.core.errors import RowsRejected, StoreUnavailable
from guestd.store import maintenance
from guestd.store.connection import connection_to
from guestd.store.locks import IndependentSteps
from guestd.store.rollups import ROLL_UPS, RollUps
from guestd.telemetry.registry import MaintenanceMetrics
from support.daemon import add_machine, execute, rows
from support.reports import refresher_of, report

pytestmark = pytest.mark.asyncio
# In the place of guestd's function, as a table of any size would make it.
SLOW = """CREATE OR REPLACE FUNCTION guestd_trim_events(keep_days integer, keep_per_machine integer) RETURNS bigint
LANGUAGE sql AS 'SELECT 0 FROM pg_sleep(1e6)'"""
BROKEN_PORTS = """CREATE OR REPLACE FUNCTION guestd_trim_ports(keep_per_machine integer) RETURNS bigint
LANGUAGE plpgsql AS 'BEGIN RETURN 1 / 0; END'"""
SLOW_FOR_MANY = """CREATE FUNCTION slow_for_many(most integer) RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
    IF most > 3 THEN PERFORM pg_sleep(1e6); END IF;
    RETURN 0;
END $$"""
FRAME = """INSERT INTO "QuarantinedFrame" ("receivedAt", "spoolId", "seq", "reason", "detail", "payload", "createdAt")
VALUES (now(), gen_random_uuid(), 1, 'json', '', '', now() - INTERVAL '91 days')"""


async def test_a_step_that_is_slow_does_not_delay_the_others(dsn: str) -> None:
    settings = Settings(store=StoreSettings(dsn=dsn))
    execute(dsn, SLOW, FRAME)
    running = asyncio.create_task(maintenance.maintain_store(settings, IndependentSteps(dsn, MaintenanceMetrics())))
    try:
        # The events come before it in the list of steps.
        left = 'SELECT count(*) FROM "QuarantinedFrame"'
        await asyncio.to_thread(eventually, lambda: rows(dsn, left) == [(0,)], "retention is enforced")
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_a_step_that_takes_too_long_is_ended_and_the_others_are_done(dsn: str) -> None:
    steps, settings = IndependentSteps(dsn, MaintenanceMetrics()), Settings(store=StoreSettings(dsn=dsn))
    execute(dsn, SLOW)
    result = await maintenance.maintain_store(settings, steps, statement_seconds=5)
    (problem,) = steps.problems
    assert problem.startswith("store maintenance: events failed, retrying: 57014: the statement took longer than its")
    assert result.quarantined_remaining == 0


async def test_a_step_of_the_refresh_that_fails_does_not_stop_the_others(dsn: str) -> None:
    machine_id, registry = add_machine(dsn), CollectorRegistry()
    report(dsn, machine_id, (22, "TCP"))
    execute(dsn, BROKEN_PORTS)
    refresher = refresher_of(dsn, registry)
    await refresher.refresh()
    (problem,) = refresher.problems
    assert "ports failed" in problem
    assert registry.get_sample_value("guestd_maintenance_failures_total", {"step": "ports"}) == 1
    assert rows(dsn, """SELECT "coveredUntil" > now() - INTERVAL '1 hour' FROM "RollupState" LIMIT 1""") == [(True,)]
    assert rows(dsn, 'SELECT count(*) FROM "VmPort"') == [(0,)]


async def test_a_lost_store_ends_a_run(dsn: str) -> None:
    unreachable = make_conninfo(dsn, dbname="no_such_database")
    settings = Settings(store=StoreSettings(dsn=unreachable))
    with pytest.raises(StoreUnavailable):
        await maintenance.maintain_store(settings, IndependentSteps(unreachable, MaintenanceMetrics()))


async def test_a_roll_up_that_takes_too_long_is_retried_with_fewer_periods(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as owner, capture_logs() as logs:
        owner.execute(SLOW_FOR_MANY.encode())
        owner.execute(
            b"CREATE OR REPLACE FUNCTION guestd_roll_up_minutes(most integer) RETURNS integer AS "
            b"'SELECT slow_for_many(most)' LANGUAGE sql"
        )
        kinds = (("rollups/roll_up_minutes", 5_000, 1.0), ("rollups/roll_up_hours", 500, 1.0))
        async with connection_to(dsn) as connection:
            await RollUps(kinds, statement_seconds=0.2).run(connection)
    assert [each["event"] for each in logs] == ["roll-up took longer than its limit, retrying with fewer periods"] * 4


async def test_a_kind_of_roll_up_that_fails_does_not_stop_the_others(dsn: str) -> None:
    execute(
        dsn,
        """CREATE OR REPLACE FUNCTION guestd_roll_up_minutes(most integer) RETURNS integer
        LANGUAGE plpgsql AS 'BEGIN RETURN 1 / 0; END'""",
        "CREATE SEQUENCE runs_of_hours",
        """CREATE OR REPLACE FUNCTION guestd_roll_up_hours(most integer) RETURNS integer
        LANGUAGE sql AS $$ SELECT (nextval('runs_of_hours') - 1)::integer $$""",
    )
    kinds = (("rollups/roll_up_minutes", 5_000, 1.0), ("rollups/roll_up_hours", 500, 1.0))
    async with connection_to(dsn) as connection:
        with pytest.raises(RowsRejected, match="division by zero"):
            await RollUps(kinds).run(connection)
    assert rows(dsn, "SELECT is_called FROM runs_of_hours") == [(True,)]


async def test_old_periods_of_one_machine_do_not_hold_up_the_newest_of_the_others(dsn: str) -> None:
    """A guest chooses the times of numbered lines within seven days."""
    hostile, other = add_machine(dsn), add_machine(dsn)
    execute(
        dsn,
        f"""INSERT INTO "RollupPending" ("unit", "bucket", "machineId")
        SELECT 'minute', date_trunc('minute', now(), 'UTC') - number * INTERVAL '1 minute', '{hostile}'
        FROM generate_series(60, 8000) AS number""",
        """UPDATE "RollupState" SET "coveredUntil" = date_trunc('minute', now(), 'UTC') - INTERVAL '30 minutes'""",
        f"""INSERT INTO "SystemMetrics" ("machineId", "timestamp", "cpuUsagePercent", "cpuCoresUsage", "totalMemoryKB",
        "usedMemoryKB", "availableMemoryKB", "diskUsageStats", "diskIOStats", "networkStats", "uptime")
        VALUES ('{other}', now() - INTERVAL '3 minutes', 0, '[]', 0, 0, 0, '[]', '{{}}', '[]', 0)""",
        "SELECT guestd_roll_up_minutes(10)",
    )
    assert rows(dsn, 'SELECT "machineId" FROM "SystemMetricsMinute"') == [(other,)]
    # The views read the roll-up up to now: late periods do not hold them back.
    covered = """SELECT "coveredUntil" > now() - INTERVAL '3 minutes' FROM "RollupState"
    WHERE "relation" = 'SystemMetricsMinute'"""
    assert rows(dsn, covered) == [(True,)]


MINUTES = 'SELECT "machineId" FROM "SystemMetricsMinute" ORDER BY 1'
SAMPLE = """INSERT INTO "SystemMetrics" ("machineId", "timestamp", "cpuUsagePercent", "cpuCoresUsage", "totalMemoryKB",
"usedMemoryKB", "availableMemoryKB", "diskUsageStats", "diskIOStats", "networkStats", "uptime")
VALUES ('{}', now() - INTERVAL '{} minutes', 0, '[]', 0, 0, 0, '[]', '{{}}', '[]', 0)"""


@pytest.mark.parametrize("table", ["SystemMetricsMinute", "SystemMetricsHour"])
async def test_a_period_that_the_store_rejects_is_reported_and_passed_over(dsn: str, table: str) -> None:
    machines = sorted(add_machine(dsn) for _ in range(3))
    execute(
        dsn,
        *[SAMPLE.format(machine, age) for machine in machines for age in (180, 240)],
        f"""ALTER TABLE "{table}" ADD CONSTRAINT refuse CHECK ("machineId" <> '{machines[1]}')""",
    )
    rolled = f'SELECT DISTINCT "machineId" FROM "{table}" ORDER BY 1'
    async with connection_to(dsn) as connection:
        roll_ups = RollUps(ROLL_UPS)
        for _ in range(2):
            with pytest.raises(RowsRejected, match=f"^2 periods could not be .* of machine {machines[1]}: 23514: "):
                await roll_ups.run(connection)
            assert rows(dsn, rolled) == [(machines[0],), (machines[2],)]
        execute(dsn, f'ALTER TABLE "{table}" DROP CONSTRAINT refuse', 'UPDATE "RollupPending" SET "retryAt" = now()')
        await roll_ups.run(connection)
    assert rows(dsn, rolled) == [(machine,) for machine in machines]
    assert rows(dsn, 'SELECT count(*) FROM "RollupPending" WHERE "retryAt" IS NOT NULL') == [(0,)]


async def test_a_period_that_failed_waits_no_longer_when_a_later_sample_had_it_computed(dsn: str) -> None:
    machine_id = add_machine(dsn)
    execute(
        dsn,
        SAMPLE.format(machine_id, 180),
        """ALTER TABLE "SystemMetricsMinute" ADD CONSTRAINT refuse CHECK (FALSE)""",
        "SELECT guestd_roll_up_minutes(8)",
        """ALTER TABLE "SystemMetricsMinute" DROP CONSTRAINT refuse""",
    )
    waits = """SELECT "unit", "retryAt" IS NOT NULL FROM "RollupPending" WHERE "unit" = 'minute'"""
    assert rows(dsn, waits) == [("minute", True)]
    execute(
        dsn,
        """INSERT INTO "RollupPending" ("unit", "bucket", "machineId")
        SELECT "unit", "bucket", "machineId" FROM "RollupPending" WHERE "unit" = 'minute'""",
        "SELECT guestd_roll_up_minutes(8)",
    )
    assert rows(dsn, MINUTES) == [(machine_id,)]
    assert rows(dsn, waits) == []


async def test_late_periods_of_one_machine_do_not_hold_up_older_ones_of_others(dsn: str) -> None:
    hostile, other = add_machine(dsn), add_machine(dsn)
    late = f"""INSERT INTO "RollupPending" ("unit", "bucket", "machineId")
    SELECT 'minute', date_trunc('minute', now(), 'UTC') - number * INTERVAL '1 minute', '{hostile}'
    FROM generate_series(60, 100) AS number"""
    execute(dsn, SAMPLE.format(other, 200))
    with psycopg.connect(dsn, autocommit=True) as owner:
        owner.execute("SELECT setseed(0.5)")
        for _ in range(100):
            owner.execute(late.encode())
            owner.execute("SELECT guestd_roll_up_minutes(8)")
    assert rows(dsn, MINUTES) == [(other,)]
