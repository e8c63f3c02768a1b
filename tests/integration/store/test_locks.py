"""Locks of other sessions: background work gives up, names them and tries again; nothing else waits for long."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from structlog.testing import capture_logs
from tools.harness.waiting import eventually

from guestd.core.config import Settings, StoreSettings
from guestd.core.errors import StoreUnavailable
from guestd.doctor.store import check_store
from guestd.store.connection import LockHeld, connection_to, set_timeouts, store_deadline
from guestd.store.locks import IndependentSteps
from guestd.store.maintenance import StoreMaintenance, maintain_store
from guestd.store.rollups import RollupRefresher
from guestd.telemetry.registry import MaintenanceMetrics, VmMetrics
from support.daemon import add_machine, execute, metrics_line, rows
from support.spooled import drain, spooled

pytestmark = pytest.mark.asyncio
# As pg_dump does it, for hours.
READS = 'SELECT count(*) FROM "PortUsage"'
OLD = """ "timestamp" < now() - interval '25 days'"""


@pytest.fixture
def old_dsn(dsn: str) -> str:
    """A store with rows past their retention in two series, rolled up."""
    execute(
        dsn,
        """INSERT INTO "PortUsage" ("machineId", "timestamp", "ordinal", "port", "protocol", "state")
        SELECT gen_random_uuid(), now() - make_interval(days => d), 0, 1, 'tcp', ''
        FROM generate_series(0, 30, 10) AS d""",
        """INSERT INTO "ProcessSnapshot"
        ("machineId", "timestamp", "processId", "name", "cpuUsagePercent", "memoryUsageKB", "status")
        SELECT gen_random_uuid(), now() - make_interval(days => 30), 1, '', 0, 0, ''""",
        'UPDATE "RollupState" SET "coveredUntil" = now()',
    )
    return dsn


@contextmanager
def session(dsn: str, statement: str) -> Iterator[psycopg.Connection]:
    """Another program's open transaction, which has run a statement."""
    with psycopg.connect(dsn, application_name="pg_dump") as connection:
        connection.execute(statement.encode())
        yield connection
        connection.rollback()


def old_rows(dsn: str, table: str) -> int:
    return int(rows(dsn, f'SELECT count(*) FROM "{table}" WHERE {OLD}')[0][0])


def old_chunks(dsn: str, table: str) -> int:
    """Without a lock on the chunks, for which one that is dropped could wait."""
    chunks = "SELECT count(*) FROM timescaledb_information.chunks WHERE hypertable_name = %s"
    return int(rows(dsn, f"{chunks} AND range_end < now() - interval '25 days'", table)[0][0])


def delayed(metrics: MaintenanceMetrics) -> set[str]:
    (family,) = metrics.delayed.collect()
    return {sample.labels["step"] for sample in family.samples if sample.value}


@asynccontextmanager
async def maintained(dsn: str, metrics: MaintenanceMetrics) -> AsyncIterator[None]:
    """Maintenance that tries again at once."""
    settings = Settings(store=StoreSettings(dsn=dsn))
    running = asyncio.create_task(StoreMaintenance(lambda: settings, metrics, min_interval_seconds=0.01).run())
    try:
        yield
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_a_reader_that_stays_delays_retention_and_nothing_else(old_dsn: str, tmp_path: Path) -> None:
    metrics, machine_id = MaintenanceMetrics(), add_machine(old_dsn)
    # A query that waits behind retention for longer than one attempt fails.
    reader_dsn = make_conninfo(old_dsn, options="-c statement_timeout=20s")
    with capture_logs() as logs:
        async with maintained(old_dsn, metrics):
            with session(old_dsn, READS) as reader:
                await asyncio.to_thread(eventually, lambda: delayed(metrics) == {"retention"}, "retention is delayed")
                for place in range(2):
                    async with spooled(tmp_path / str(place), machine_id, [metrics_line().strip()]) as spool:
                        assert (await drain(spool, old_dsn)).frames["stored"] == 1
                    assert rows(reader_dsn, READS) == [(4 + place + 1,)]
                refresher = RollupRefresher(
                    old_dsn, host_name="h", uri="", metrics=VmMetrics(), maintenance=MaintenanceMetrics()
                )
                await refresher.refresh()
                await asyncio.to_thread(eventually, lambda: old_chunks(old_dsn, "ProcessSnapshot") == 0, "the other")
                assert old_rows(old_dsn, "PortUsage") == 1
                pid = reader.info.backend_pid
            await asyncio.to_thread(eventually, lambda: old_chunks(old_dsn, "PortUsage") == 0, "retention")
            await asyncio.to_thread(eventually, lambda: delayed(metrics) == set(), "no delay")
    (begun,) = [each for each in logs if each["event"] == "store maintenance delayed by a lock, retrying"]
    assert begun["step"] == "retention"
    assert f"session {pid} of postgres (pg_dump), in a transaction since 20" in begun["error"]
    assert [each["step"] for each in logs if each["event"] == "store maintenance no longer delayed"] == ["retention"]


async def test_a_step_that_waits_for_a_lock_does_not_stop_the_others(old_dsn: str) -> None:
    metrics, settings = MaintenanceMetrics(), Settings(store=StoreSettings(dsn=old_dsn))
    steps = IndependentSteps(old_dsn, metrics)
    refresher = RollupRefresher(old_dsn, host_name="h", uri="", metrics=VmMetrics(), maintenance=metrics)
    add_sample(old_dsn)
    execute(
        old_dsn,
        """INSERT INTO "GuestEvent" ("id", "machineId", "receivedAt", "type", "severity", "message")
        SELECT gen_random_uuid(), "id", now() - interval '10 years', '', '', '' FROM "Machine" """,
        """INSERT INTO "VmPort"
        ("portStart", "portEnd", "protocol", "running", "enabled", "toEnable", "vmId", "lastSeen")
        SELECT 22, 22, 'tcp', TRUE, FALSE, FALSE, "id", now() - interval '1 day' FROM "Machine" """,
    )
    with session(old_dsn, 'SELECT FROM "GuestEvent", "VmPort" FOR UPDATE'):
        result = await maintain_store(settings, steps)
        assert (steps.problems, result.quarantined_remaining, result.retired) == ([], 0, 3)
        await refresher.refresh()
        assert delayed(metrics) == {"events", "ports"}
        assert rows(old_dsn, 'SELECT sum("samples") FROM "SystemMetricsMinute"') == [(1,)]
    result = await maintain_store(settings, steps)
    await refresher.refresh()
    assert (delayed(metrics), result.old_events) == (set(), 1)


def add_sample(dsn: str) -> None:
    machine_id = add_machine(dsn)
    execute(
        dsn,
        f"""INSERT INTO "SystemMetrics" ("machineId", "timestamp", "cpuUsagePercent", "cpuCoresUsage", "totalMemoryKB",
        "usedMemoryKB", "availableMemoryKB", "diskUsageStats", "diskIOStats", "networkStats", "uptime")
        VALUES ('{machine_id}', now() - interval '5 minutes', 0, '[]', 0, 0, 0, '[]', '{{}}', '[]', 0)""",
    )


async def test_a_lock_that_does_not_come_keeps_the_connection_and_the_rows(dsn: str) -> None:
    async with connection_to(dsn) as connection:
        with session(dsn, 'LOCK TABLE "IngestLedger" IN ACCESS EXCLUSIVE MODE'):
            await set_timeouts(connection, lock_seconds=0.1)
            with pytest.raises(LockHeld, match="another session holds a lock; `guestd doctor` names it"):
                async with store_deadline(30):
                    await connection.execute('SELECT 1 FROM "IngestLedger"')
        assert (await (await connection.execute('SELECT count(*) FROM "IngestLedger"')).fetchone()) == (0,)


async def test_a_step_that_fails_for_another_reason_is_no_longer_delayed_by_a_lock(dsn: str) -> None:
    metrics = MaintenanceMetrics()
    steps = IndependentSteps(dsn, metrics)
    async with connection_to(dsn) as connection:
        async with steps.step("retention", connection):
            raise LockHeld("another session holds a lock")
        assert (steps.is_retry_due, steps.problems, delayed(metrics)) == (True, [], {"retention"})
        async with steps.step("retention", connection):
            raise StoreUnavailable("a missing right")
        assert (steps.is_retry_due, delayed(metrics)) == (True, set())
        assert steps.problems == ["store maintenance: retention failed, retrying: a missing right"]
        async with steps.step("retention", connection):
            pass
        assert (steps.is_retry_due, steps.problems) == (False, [])


async def test_a_bug_in_a_step_costs_only_that_step_and_a_lost_connection_ends_them_all(dsn: str) -> None:
    steps = IndependentSteps(dsn, MaintenanceMetrics())
    with capture_logs() as logs:
        async with connection_to(dsn) as connection:
            async with steps.step("ports", connection):
                raise RecursionError
            assert steps.problems == ["store maintenance: ports failed, retrying: RecursionError"]
            with pytest.raises(StoreUnavailable):
                await lose_connection(steps, connection)
    assert [(entry["step"], entry["log_level"]) for entry in logs] == [("ports", "error")]
    assert len(steps.problems) == 1


async def lose_connection(steps: IndependentSteps, connection: psycopg.AsyncConnection[Any]) -> None:
    async with steps.step("rollups", connection):
        await connection.close()
        raise StoreUnavailable("the connection is lost")


@pytest.mark.parametrize("name", ["guestd", "guestd on node-3"])
async def test_the_doctor_names_the_session_that_guestd_waits_for(dsn: str, name: str) -> None:
    dsn = make_conninfo(dsn, application_name=name)
    with session(dsn, 'LOCK TABLE "IngestLedger" IN ACCESS EXCLUSIVE MODE') as holder:
        async with connection_to(dsn) as connection:
            waiting = asyncio.create_task(connection.execute('SELECT count(*) FROM "IngestLedger"'))
            waits = f"SELECT cardinality(pg_blocking_pids({connection.info.backend_pid}))"
            await asyncio.to_thread(eventually, lambda: rows(dsn, waits) == [(1,)], "it waits")
            # The checks after it wait for the same lock.
            finding = await anext(each async for each in check_store(dsn) if each.subject == "locks")
            pid = holder.info.backend_pid
            holder.rollback()
            await waiting
    assert finding.level == "warning"
    assert f"session {pid} of postgres (pg_dump)" in finding.text
    assert "pg_terminate_backend" in finding.fix


async def test_the_command_drops_what_it_can_and_names_the_locked_relations(old_dsn: str) -> None:
    command = [sys.executable, "-m", "gueststore", "retention", "--dsn", old_dsn]
    with session(old_dsn, READS):
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "another session holds a lock on PortUsage; 1 dropped of the other relations" in done.stderr
    assert (old_rows(old_dsn, "ProcessSnapshot"), old_rows(old_dsn, "PortUsage")) == (0, 1)
