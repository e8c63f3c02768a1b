"""Rows of one machine that the store does not take cost that machine only: somebody holds a lock, or a constraint."""

import asyncio
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest
from tools.harness.waiting import eventually_async

from guestd.filters.snapshot import FilterHostState
from guestd.filters.store import open_filter_store
from guestd.hypervisor.domains import Graphics
from guestd.store.connection import set_timeouts
from guestd.vms.model import (
    Claim,
    DomainFacts,
    Hold,
    KeepFacts,
    KeepGraphics,
    SetStatus,
    Shutdown,
    TakeLease,
    Write,
)
from guestd.vms.store import open_vm_store
from support.daemon import execute, rows
from support.faults import sample_line
from support.spooled import drain, spooled
from support.vm_host import Host, add, hypervisor_with, reconciling, set_desired

pytestmark = pytest.mark.asyncio
NAMES = ("one", "two", "three")


async def stops_and_starts(host: Host, name: str) -> None:
    """The machine follows its desired state, and so does its row."""
    for desired in ("off", "running"):
        await asyncio.to_thread(set_desired, host.dsn, name, desired)
        await host.becomes(name, status=desired)


OF_ONE = """(SELECT "id" FROM "Machine" WHERE "internalName" = 'one')"""


@pytest.mark.parametrize(
    "change",
    [
        f"""UPDATE "Machine" SET "name" = 'x' WHERE "id" = {OF_ONE}""",
        f'SELECT 1 FROM "Machine" WHERE "id" = {OF_ONE} FOR UPDATE',
        f'DELETE FROM "Machine" WHERE "id" = {OF_ONE}',
        f'SELECT 1 FROM "MachineDomain" WHERE "machineId" = {OF_ONE} FOR UPDATE',
        f'DELETE FROM "MachineLease" WHERE "machineId" = {OF_ONE}',
    ],
)
async def test_rows_that_somebody_has_locked_do_not_stop_the_other_machines(
    dsn: str, tmp_path: Path, change: str
) -> None:
    for name in NAMES:
        add(dsn, name, desiredStatus="running")
    async with reconciling(Host(dsn, hypervisor_with(tmp_path, *NAMES))) as host:
        for name in NAMES:
            await host.becomes(name, status="running")
        with psycopg.connect(dsn) as connection:
            connection.execute(change.encode())
            host.domain("one").destroy()
            await stops_and_starts(host, "two")
            assert host.lost == 0
            connection.rollback()
        await host.becomes("one", status="running", domainState="running")
        assert host.lost == 0


async def test_a_row_that_breaks_a_constraint_is_reported_and_does_not_stop_the_other_machines(
    dsn: str, tmp_path: Path
) -> None:
    for name in NAMES:
        add(dsn, name, desiredStatus="running")
    constraint = """CHECK ("internalName" <> 'one' OR "status" <> 'off') NOT VALID"""
    async with reconciling(Host(dsn, hypervisor_with(tmp_path, *NAMES))) as host:
        for name in NAMES:
            await host.becomes(name, status="running")
        await asyncio.to_thread(execute, dsn, f'ALTER TABLE "Machine" ADD CONSTRAINT "of_the_platform" {constraint}')
        await asyncio.to_thread(set_desired, dsn, "one", "off")
        await host.eventually(lambda: any(text.startswith("unwritten: one: ") for text in host.reports), "a report")
        assert "of_the_platform" in "".join(host.reports)
        await stops_and_starts(host, "two")
        await asyncio.to_thread(execute, dsn, 'ALTER TABLE "Machine" DROP CONSTRAINT "of_the_platform"')
        await host.becomes("one", status="off")
        await host.eventually(lambda: not host.reports, "it is resolved")
        assert host.lost == 0


async def test_a_host_whose_row_was_deleted_registers_again(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one", desiredStatus="running")
    add(dsn, "two")
    # It waits for a host.
    add(dsn, "elsewhere", desiredStatus="running")
    async with reconciling(Host(dsn, hypervisor_with(tmp_path, "one", "two"))) as host:
        await host.becomes("one", status="running")
        await host.becomes("two", status="running")
        gone = ('DELETE FROM "MachineLease"', 'UPDATE "Machine" SET "hostId" = NULL', 'DELETE FROM "Host"')
        # In the same transaction, so that guestd cannot act before.
        unreached = """UPDATE "Machine" SET "desiredStatus" = 'off' WHERE "internalName" = 'two'"""
        await asyncio.to_thread(execute_together, dsn, *gone, unreached)
        await host.becomes("one", hostName="host", state="running")
        await host.eventually(lambda: len(rows(dsn, 'SELECT 1 FROM "MachineLease"')) == 2, "it has the leases again")
        # The store may also be another one, or older than the host: what is not reached is held, of its own domains.
        await host.eventually(lambda: host.reports, "a report")
        await host.another_run(3)
        assert [text.partition(", or")[0] for text in host.reports] == [
            "held: two: shutdown two: running, desired state is off: held: the store was restored from a backup"
        ]
        assert rows(dsn, """SELECT "name" FROM "ReconcileEvent" WHERE "outcome" = 'restored'""") == [("two",)]
        assert not rows(dsn, """SELECT 1 FROM "ReconcileEvent" WHERE "action" = 'hold' AND "name" = 'elsewhere'""")
        await asyncio.to_thread(set_desired, dsn, "two", "running")
        await asyncio.to_thread(set_desired, dsn, "two", "off")
        await host.becomes("two", status="off")


def execute_together(dsn: str, *statements: str) -> None:
    with psycopg.connect(dsn) as connection:
        for statement in statements:
            connection.execute(statement.encode())


async def test_a_long_write_of_the_filters_does_not_keep_the_row_of_the_host(dsn: str) -> None:
    """The VM reconciler of the host lost the store: it waits for no lock longer than a second."""
    state = FilterHostState("f", UUID(int=1), is_known=True, digest=None, is_bound=False, problem=None)
    async with open_filter_store(dsn, name="host", uri="test", version="1") as store:
        with psycopg.connect(dsn) as blocking:
            blocking.execute('LOCK TABLE "FilterHostState" IN EXCLUSIVE MODE')
            writing = asyncio.create_task(store.write_states([state], []))
            await eventually_async(lambda: writing.done() or rows(dsn, WAITS), "it waits")
            execute(dsn, """SET lock_timeout = '1ms'; UPDATE "Host" SET "reports" = 1""")
            assert not writing.done()
        await writing


WAITS = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"


async def test_an_action_waits_for_somebody_who_changes_its_row(dsn: str) -> None:
    """It was left out, and planned again a second later."""
    machine_id = add(dsn, "one", status="running", desiredStatus="off")
    async with open_vm_store(dsn, name="host", uri="test", version="1") as store:
        await set_timeouts(store._connection, lock_seconds=60)
        execute(dsn, f"""UPDATE "Machine" SET "hostId" = '{store.host_id}'""")
        ((since,),) = rows(dsn, 'SELECT "desiredSince" FROM "Machine"')
        action = Shutdown(machine_id, "one", UUID(int=1), "off", "desired state is off", desired_since=since)
        with psycopg.connect(dsn) as changing:
            changing.execute('UPDATE "Machine" SET "name" = \'x\'')
            beginning = asyncio.create_task(store.begin_action(action, 1, "", known=0))
            await eventually_async(lambda: beginning.done() or rows(dsn, WAITS), "it waits")
        assert await beginning is not None


async def test_a_batch_of_a_machines_samples_delays_nothing_that_is_written_of_its_vm(dsn: str, tmp_path: Path) -> None:
    """While a guest without a clock reported all the time, its claim, lease and status were skipped again and again."""
    machine_id = add(dsn, "one", status="running", desiredStatus="off")
    ((since,),) = rows(dsn, 'SELECT "desiredSince" FROM "Machine"')
    facts = DomainFacts(UUID(int=1), "running", "booted", 1, 1, "absent", None)
    action = Shutdown(machine_id, "one", UUID(int=1), "off", "desired state is off", desired_since=since)
    async with (
        open_vm_store(dsn, name="host", uri="test", version="1") as store,
        spooled(tmp_path, machine_id, [sample_line(1, uuid4()).strip()]) as spool,
    ):
        writes: list[Write] = [
            Claim(machine_id, "one", None, "active here"),
            TakeLease(machine_id, "one", None, "boot 1", UUID(int=1)),
            SetStatus(machine_id, "one", "running", "off", "it ended"),
            KeepGraphics(machine_id, "one", Graphics("spice", 5900, None)),
            KeepFacts(machine_id, "one", facts),
            Hold(machine_id, "one", since, "one of many"),
        ]
        with psycopg.connect(dsn) as blocking:
            blocking.execute('LOCK TABLE "SystemMetrics" IN EXCLUSIVE MODE')
            storing = asyncio.create_task(drain(spool, dsn))
            await eventually_async(lambda: storing.done() or rows(dsn, WAITS), "the batch waits, and has its locks")
            assert await store.write(writes) == (writes, [])
            await set_timeouts(store._connection, lock_seconds=0.001)
            assert await store.begin_action(action, 1, "boot 1", known=0) is not None
            # The store went back since the machine was read.
            assert await store.begin_action(action, 1, "boot 1", known=2) is None
            assert not storing.done()
        assert (await storing).frames["stored"] == 1
