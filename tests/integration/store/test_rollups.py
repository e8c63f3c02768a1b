"""Data derived from samples once a minute: listening ports, roll-ups, machines without data, store alarms."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from prometheus_client import CollectorRegistry
from psycopg.conninfo import make_conninfo

from guestd.store.rollups import RollupRefresher
from guestd.telemetry.registry import MaintenanceMetrics, VmMetrics
from support.daemon import add_machine, execute, rows

pytestmark = pytest.mark.asyncio
PORTS = 'SELECT "portStart", "portEnd", "protocol", "running", "enabled" FROM "VmPort" ORDER BY "portStart", "protocol"'


def refresher_of(dsn: str, registry: CollectorRegistry | None = None) -> RollupRefresher:
    # With exactly the rights of the daemon.
    as_writer = make_conninfo(dsn, options="-c role=guestd_writer")
    return RollupRefresher(
        as_writer, host_name="host", uri="", metrics=VmMetrics(registry), maintenance=MaintenanceMetrics()
    )


def report(dsn: str, machine_id: UUID, *listening: tuple[int, str], age: timedelta = timedelta()) -> datetime:
    """A sample with these listeners and one port that is merely connected."""
    moment = datetime.now(UTC).replace(microsecond=0) - age
    with psycopg.connect(dsn) as connection:
        connection.execute(
            """INSERT INTO "SystemMetrics" ("machineId", "timestamp", "cpuUsagePercent", "cpuCoresUsage",
            "totalMemoryKB", "usedMemoryKB", "availableMemoryKB", "diskUsageStats", "diskIOStats", "networkStats",
            "uptime")
            VALUES (%s, %s, 0, '[]', 0, 0, 0, '[]', '{}', '[]', 0)""",
            (machine_id, moment),
        )
        usage: list[tuple[Any, ...]] = [(port, protocol, "LISTEN", True) for port, protocol in listening]
        for ordinal, each in enumerate([*usage, (50000, "TCP", "ESTABLISHED", False)]):
            connection.execute(
                """INSERT INTO "PortUsage" ("machineId", "timestamp", "ordinal", "port", "protocol", "state",
                "isListening") VALUES (%s, %s, %s, %s, %s, %s, %s)""",
                (machine_id, moment, ordinal, *each),
            )
    return moment


async def test_a_listening_port_has_a_row(dsn: str) -> None:
    machine_id = add_machine(dsn)
    report(dsn, machine_id, (22, "TCP"), (22, "TCP6"), (53, "UDP"), age=timedelta(seconds=60))
    await refresher_of(dsn).refresh()
    assert rows(dsn, PORTS) == [(22, 22, "tcp", True, False), (53, 53, "udp", True, False)]
    report(dsn, machine_id, (53, "UDP"))
    await refresher_of(dsn).refresh()
    assert rows(dsn, PORTS) == [(22, 22, "tcp", False, False), (53, 53, "udp", True, False)]


async def test_an_enabled_range_covers_the_ports_within_it(dsn: str) -> None:
    machine_id = add_machine(dsn)
    execute(
        dsn,
        f"""INSERT INTO "VmPort" ("portStart", "portEnd", "protocol", "running", "enabled", "toEnable", "vmId")
        VALUES (8000, 9000, 'tcp', FALSE, TRUE, TRUE, '{machine_id}')""",
    )
    report(dsn, machine_id, (8080, "TCP"), (8080, "UDP"))
    await refresher_of(dsn).refresh()
    assert rows(dsn, PORTS) == [(8000, 9000, "tcp", True, True), (8080, 8080, "udp", True, False)]


async def test_nothing_listens_in_a_machine_that_is_off(dsn: str) -> None:
    machine_id = add_machine(dsn)
    report(dsn, machine_id, (22, "TCP"))
    await refresher_of(dsn).refresh()
    execute(dsn, """UPDATE "Machine" SET "status" = 'off'""")
    await refresher_of(dsn).refresh()
    assert rows(dsn, PORTS) == [(22, 22, "tcp", False, False)]


async def test_ports_that_have_not_changed_are_not_written(dsn: str) -> None:
    machine_id = add_machine(dsn)
    seen = report(dsn, machine_id, (22, "TCP"), age=timedelta(minutes=6))
    await refresher_of(dsn).refresh()
    before = rows(dsn, 'SELECT xmin::text, "lastSeen" FROM "VmPort"')
    report(dsn, machine_id, (22, "TCP"), age=timedelta(minutes=4))
    await refresher_of(dsn).refresh()
    assert rows(dsn, 'SELECT xmin::text, "lastSeen" FROM "VmPort"') == before
    assert before[0][1] == seen
    newest = report(dsn, machine_id, (22, "TCP"))
    await refresher_of(dsn).refresh()
    assert rows(dsn, 'SELECT "lastSeen" FROM "VmPort"') == [(newest,)]


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
