"""What is derived from samples once a minute: ports that guests listen on, and who does not report."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from guestd.store.rollups import RollupRefresher
from support.daemon import add_machine, execute, rows

pytestmark = pytest.mark.asyncio
PORTS = 'SELECT "portStart", "portEnd", "protocol", "running", "enabled" FROM "VmPort" ORDER BY "portStart", "protocol"'


def upkeep(dsn: str, silent: list[int] | None = None) -> RollupRefresher:
    # With the rights that the daemon has, and no more.
    as_writer = make_conninfo(dsn, options="-c role=guestd_writer")
    return RollupRefresher(as_writer, host_name="host", uri="", silent=([] if silent is None else silent).append)


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


async def test_what_listens_in_a_guest_has_a_row_that_says_so(dsn: str) -> None:
    machine_id = add_machine(dsn)
    report(dsn, machine_id, (22, "TCP"), (22, "TCP6"), (53, "UDP"), age=timedelta(seconds=60))
    await upkeep(dsn).once()
    assert rows(dsn, PORTS) == [(22, 22, "tcp", True, False), (53, 53, "udp", True, False)]
    report(dsn, machine_id, (53, "UDP"))
    await upkeep(dsn).once()
    assert rows(dsn, PORTS) == [(22, 22, "tcp", False, False), (53, 53, "udp", True, False)]


async def test_a_range_that_somebody_enabled_covers_what_listens_within_it(dsn: str) -> None:
    machine_id = add_machine(dsn)
    execute(
        dsn,
        f"""INSERT INTO "VmPort" ("portStart", "portEnd", "protocol", "running", "enabled", "toEnable", "vmId")
        VALUES (8000, 9000, 'tcp', FALSE, TRUE, TRUE, '{machine_id}')""",
    )
    report(dsn, machine_id, (8080, "TCP"), (8080, "UDP"))
    await upkeep(dsn).once()
    assert rows(dsn, PORTS) == [(8000, 9000, "tcp", True, True), (8080, 8080, "udp", True, False)]


async def test_nothing_listens_in_a_machine_that_is_off(dsn: str) -> None:
    machine_id = add_machine(dsn)
    report(dsn, machine_id, (22, "TCP"))
    await upkeep(dsn).once()
    execute(dsn, """UPDATE "Machine" SET "status" = 'off'""")
    await upkeep(dsn).once()
    assert rows(dsn, PORTS) == [(22, 22, "tcp", False, False)]


async def test_ports_that_have_not_changed_are_not_written(dsn: str) -> None:
    machine_id = add_machine(dsn)
    seen = report(dsn, machine_id, (22, "TCP"), age=timedelta(minutes=6))
    await upkeep(dsn).once()
    before = rows(dsn, 'SELECT xmin::text, "lastSeen" FROM "VmPort"')
    report(dsn, machine_id, (22, "TCP"), age=timedelta(minutes=4))
    await upkeep(dsn).once()
    assert rows(dsn, 'SELECT xmin::text, "lastSeen" FROM "VmPort"') == before
    assert before[0][1] == seen
    newest = report(dsn, machine_id, (22, "TCP"))
    await upkeep(dsn).once()
    assert rows(dsn, 'SELECT "lastSeen" FROM "VmPort"') == [(newest,)]


async def test_a_machine_that_does_not_report_is_named_with_the_time_of_its_last_sample(dsn: str) -> None:
    talking, quiet = add_machine(dsn), add_machine(dsn)
    report(dsn, talking)
    last = report(dsn, quiet, age=timedelta(minutes=20))
    counts: list[int] = []
    keeper = upkeep(dsn, counts)
    await keeper.once()
    family, *_ = keeper.families()
    assert family.samples == [((str(quiet),), last.timestamp())]
    assert counts == [1]
    assert rows(dsn, 'SELECT "id", "lastSampleAt", "since" FROM "MachineWithoutData"') == [(quiet, last, last)]
    assert rows(dsn, 'SELECT "lastSampleAt" FROM "MachineState" WHERE "id" = %s', quiet) == [(last,)]


async def test_a_machine_that_never_reported_has_none_since_it_was_made(dsn: str) -> None:
    machine_id = add_machine(dsn)
    await upkeep(dsn).once()
    assert rows(dsn, 'SELECT count(*) FROM "MachineWithoutData"') == [(0,)]
    execute(dsn, """UPDATE "Machine" SET "createdAt" = now() - INTERVAL '1 hour'""")
    compared = 'SELECT "id", "lastSampleAt", "since" = "createdAt"'
    silent = rows(dsn, f'{compared} FROM "MachineWithoutData" INNER JOIN "Machine" USING ("id")')
    assert silent == [(machine_id, None, True)]
    execute(dsn, """UPDATE "Machine" SET "status" = 'off'""")
    assert rows(dsn, 'SELECT count(*) FROM "MachineWithoutData"') == [(0,)]


async def test_machines_are_counted_by_the_port_and_the_dialect_of_their_agents(dsn: str) -> None:
    speaking, _ = add_machine(dsn), add_machine(dsn)
    execute(
        dsn,
        f"""INSERT INTO "MachineAgent" ("machineId", "dialect") VALUES ('{speaking}', 'guestd')""",
        f"""INSERT INTO "MachineDomain" ("machineId", "state", "reason", "vcpus", "memoryKB", "channel")
        VALUES ('{speaking}', 'running', 'booted', 1, 1, 'connected')""",
    )
    keeper = upkeep(dsn)
    await keeper.once()
    _, family, _ = keeper.families()
    assert sorted(family.samples) == [(("connected", "guestd"), 1), (("unknown", "none"), 1)]


async def test_old_events_are_removed(dsn: str) -> None:
    for age in ("89 days", "91 days"):
        execute(
            dsn,
            f"""INSERT INTO "ReconcileEvent" ("occurredAt", "name", "action", "reason", "outcome")
            VALUES (now() - INTERVAL '{age}', '{age}', 'start', 'why', 'done')""",
        )
    await upkeep(dsn).once()
    assert rows(dsn, 'SELECT "name" FROM "ReconcileEvent"') == [("89 days",)]


@pytest.mark.asyncio
async def test_what_samples_there_are_is_rolled_up_and_what_is_wrong_with_age_is_counted(dsn: str) -> None:
    machine_id = add_machine(dsn)
    report(dsn, machine_id, age=timedelta(hours=3))
    execute(dsn, """DELETE FROM "RetentionSetting" WHERE "relation" = 'PortUsage'""")
    looked_after = upkeep(dsn)
    await looked_after.once()
    assert rows(dsn, 'SELECT "samples" FROM "SystemMetricsMinute" WHERE "machineId" = %s', machine_id) == [(1,)]
    (alarms,) = [family for family in looked_after.families() if family.name == "guestd_store_alarms"]
    assert alarms.samples == [(("retention",), 1)]


@pytest.mark.asyncio
async def test_all_that_check_would_say_is_counted_at_the_start(dsn: str) -> None:
    execute(dsn, 'DROP INDEX "Disk_nodeId_idx"', 'UPDATE "SchemaMigration" SET "checksum" = \'x\' WHERE "number" = 1')
    looked_after = upkeep(dsn)
    await looked_after.once()
    (alarms,) = [family for family in looked_after.families() if family.name == "guestd_store_alarms"]
    assert sorted(alarms.samples) == [(("drift",), 1), (("migration",), 1)]
