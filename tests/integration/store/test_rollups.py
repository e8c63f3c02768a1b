"""Data derived from samples once a minute: roll-ups, machines without data, store alarms."""

from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry

from support.daemon import add_machine, execute, rows
from support.reports import refresher_of, report

pytestmark = pytest.mark.asyncio


async def test_a_machine_without_data_is_listed_with_the_time_of_its_last_sample(dsn: str) -> None:
    talking, quiet = add_machine(dsn), add_machine(dsn)
    report(dsn, talking)
    last = report(dsn, quiet, age=timedelta(minutes=20))
    registry = CollectorRegistry()
    refresher = refresher_of(dsn, registry)
    await refresher.refresh()
    family, *_ = refresher.build_families()
    assert family.samples == [((str(quiet),), last.timestamp())]
    assert registry.get_sample_value("guestd_machines_without_data") == 1
    assert rows(dsn, 'SELECT "id", "lastSampleAt", "since" FROM "MachineWithoutData"') == [(quiet, last, last)]
    assert rows(dsn, 'SELECT "lastSampleAt" FROM "MachineState" WHERE "id" = %s', quiet) == [(last,)]


async def test_a_machine_that_never_reported_has_no_data_since_its_creation(dsn: str) -> None:
    machine_id = add_machine(dsn)
    await refresher_of(dsn).refresh()
    assert rows(dsn, 'SELECT count(*) FROM "MachineWithoutData"') == [(0,)]
    execute(dsn, """UPDATE "Machine" SET "createdAt" = now() - INTERVAL '1 hour'""")
    compared = 'SELECT "id", "lastSampleAt", "since" = "createdAt"'
    found = rows(dsn, f'{compared} FROM "MachineWithoutData" INNER JOIN "Machine" USING ("id")')
    assert found == [(machine_id, None, True)]
    execute(dsn, """UPDATE "Machine" SET "status" = 'off'""")
    assert rows(dsn, 'SELECT count(*) FROM "MachineWithoutData"') == [(0,)]


async def test_machines_are_counted_by_channel_state_and_dialect(dsn: str) -> None:
    speaking, _ = add_machine(dsn), add_machine(dsn)
    execute(
        dsn,
        f"""INSERT INTO "MachineAgent" ("machineId", "dialect") VALUES ('{speaking}', 'guestd')""",
        f"""INSERT INTO "MachineDomain" ("machineId", "state", "reason", "vcpus", "memoryKB", "channel")
        VALUES ('{speaking}', 'running', 'booted', 1, 1, 'connected')""",
    )
    refresher = refresher_of(dsn)
    await refresher.refresh()
    _, family, _ = refresher.build_families()
    assert sorted(family.samples) == [(("connected", "guestd"), 1), (("unknown", "none"), 1)]


async def test_old_events_are_removed(dsn: str) -> None:
    for age in ("89 days", "91 days"):
        execute(
            dsn,
            f"""INSERT INTO "ReconcileEvent" ("occurredAt", "name", "action", "reason", "outcome")
            VALUES (now() - INTERVAL '{age}', '{age}', 'start', 'why', 'done')""",
        )
    await refresher_of(dsn).refresh()
    assert rows(dsn, 'SELECT "name" FROM "ReconcileEvent"') == [("89 days",)]


@pytest.mark.asyncio
async def test_samples_are_rolled_up_and_failed_health_checks_are_counted(dsn: str) -> None:
    machine_id = add_machine(dsn)
    report(dsn, machine_id, age=timedelta(hours=3))
    execute(dsn, """DELETE FROM "RetentionSetting" WHERE "relation" = 'PortUsage'""")
    refresher = refresher_of(dsn)
    await refresher.refresh()
    assert rows(dsn, 'SELECT "samples" FROM "SystemMetricsMinute" WHERE "machineId" = %s', machine_id) == [(1,)]
    (alarms,) = [family for family in refresher.build_families() if family.name == "guestd_store_alarms"]
    assert alarms.samples == [(("retention",), 1)]


@pytest.mark.asyncio
async def test_all_health_checks_run_at_the_start(dsn: str) -> None:
    execute(dsn, 'DROP INDEX "Disk_nodeId_idx"', 'UPDATE "SchemaMigration" SET "checksum" = \'x\' WHERE "number" = 1')
    refresher = refresher_of(dsn)
    await refresher.refresh()
    (alarms,) = [family for family in refresher.build_families() if family.name == "guestd_store_alarms"]
    assert sorted(alarms.samples) == [(("drift",), 1), (("migration",), 1)]
