"""A store that went back to an older state: nothing that it desired then is done before a person confirms it."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from guestd.hypervisor.driver import Hypervisor, Target
from guestd.telemetry.registry import VmMetrics
from guestd.vms.guard import digest_changes
from guestd.vms.reconciler import preview_vm_plan
from guestd.vms.reported import FILE, Reported
from guestd.vms.store import confirm_changes
from gueststore.queries import query
from support.daemon import execute, rows
from support.libvirt import domain_xml, own_connection, running
from support.vm_host import Host, add, events, hypervisor_with, reconciling, reconciling_connected, set_desired

pytestmark = pytest.mark.asyncio
NAMES = ("one", "two", "three")
TABLES = ("Host", "Machine", "MachineDomain", "MachineLease", "ReconcileEvent")
HOST_ID = UUID(int=1)
THERE = """INSERT INTO "Host" ("name", "uri", "version") VALUES ('there', 'test:///there', '1')"""
ONE_IS_THERE = """UPDATE "Machine" SET "hostId" = (SELECT "id" FROM "Host" WHERE "name" = 'there')
WHERE "internalName" = 'one'"""


def take_backup(dsn: str) -> Callable[..., None]:
    """Remember the rows of these tables; what it returns puts them back, as pg_restore does: without triggers.

    It takes statements to change them in the same transaction.
    """
    kept = {}
    with psycopg.connect(dsn) as connection:
        for table in TABLES:
            with connection.cursor().copy(f'COPY "{table}" TO STDOUT'.encode()) as copy:
                kept[table] = b"".join(bytes(block) for block in copy)

    def restore(*changes: str) -> None:
        with psycopg.connect(dsn) as connection:
            connection.execute("SET session_replication_role = replica")
            for table in reversed(TABLES):
                connection.execute(f'DELETE FROM "{table}"'.encode())
            for table in TABLES:
                with connection.cursor().copy(f'COPY "{table}" FROM STDIN'.encode()) as copy:
                    copy.write(kept[table])
            for change in changes:
                connection.execute(change.encode())

    return restore


async def back_up(dsn: str) -> Callable[..., None]:
    return await asyncio.to_thread(take_backup, dsn)


async def confirm_all(host: Host) -> None:
    """As guestd apply --vms does."""
    policy = host.reconciler._policy
    held = (await preview_vm_plan(host.hypervisor, dsn=host.dsn, host_name="host", policy=policy)).held
    assert digest_changes(held)
    assert await confirm_changes(host.dsn, held) == {action.machine_id for action in held}


def list_held(host: Host) -> list[str]:
    return [text.partition(": running")[0].partition(": off")[0] for text in host.reports if text.startswith("held")]


async def prepare(host: Host) -> Callable[..., None]:
    """Machine `one` was off and `two` ran when the backup was taken, as was desired; since then it is the other way.

    All of that happened before the next heartbeat.
    """
    for name in NAMES:
        await host.becomes(name, domainState="running")
        set_desired(host.dsn, name, "running")
    set_desired(host.dsn, "one", "off")
    await host.becomes("one", status="off")
    await host.becomes("two", status="running")
    # Both desired states were confirmed, and are reached.
    execute(host.dsn, 'UPDATE "Machine" SET "confirmedSince" = "desiredSince"')
    await host.another_run()
    unreached = """SELECT 1 FROM "Machine" m JOIN "MachineDomain" d ON d."machineId" = m."id"
    WHERE "reachedSince" IS DISTINCT FROM "desiredSince" """
    await host.eventually(lambda: not rows(host.dsn, unreached), "all is reached")
    restore = await back_up(host.dsn)
    host.reconciler._heartbeat_at = float("inf")
    set_desired(host.dsn, "one", "running")
    set_desired(host.dsn, "two", "off")
    await host.becomes("one", status="running")
    await host.becomes("two", status="off")
    return restore


async def expect_held(host: Host) -> None:
    await host.eventually(lambda: host.runs > 1, "a run")
    await host.another_run(3)
    assert host.reconciler.error is None
    assert (host.domain("one").isActive(), host.domain("two").isActive()) == (True, False)
    assert list_held(host) == ["held: one: shutdown one", "held: two: start two"]
    assert all("the store was restored from a backup, or" in text for text in host.reports)


async def test_a_store_that_is_restored_while_guestd_runs_starts_and_stops_nothing_until_it_is_confirmed(
    dsn: str, tmp_path: Path
) -> None:
    for name in NAMES:
        add(dsn, name)
    async with reconciling(Host(dsn, hypervisor_with(tmp_path, *NAMES))) as host:
        restore = await prepare(host)
        started, stopped = host.count_actions("start"), host.count_actions("shutdown")
        await asyncio.to_thread(restore)
        await expect_held(host)
        assert (host.count_actions("start"), host.count_actions("shutdown")) == (started, stopped)
        # What is desired since is done, although the rest is held.
        set_desired(dsn, "three", "off")
        await host.becomes("three", status="off")
        await confirm_all(host)
        await host.becomes("one", domainState="shutoff")
        await host.becomes("two", domainState="running")
        assert not list_held(host)


async def test_a_store_that_is_restored_while_guestd_is_stopped_is_noticed_and_stays_held_over_restarts(
    dsn: str, tmp_path: Path
) -> None:
    for name in NAMES:
        add(dsn, name)
    hypervisor = hypervisor_with(tmp_path, *NAMES)
    async with running(hypervisor):
        async with reconciling_connected(Host(dsn, hypervisor, reports_file=tmp_path / FILE)) as host:
            restore = await prepare(host)
        await asyncio.to_thread(restore)
        for _ in range(2):
            async with reconciling_connected(Host(dsn, hypervisor, reports_file=tmp_path / FILE)) as host:
                await expect_held(host)
                assert not host.has_acted
        # Without the file, too: it is in the store by now.
        async with reconciling_connected(Host(dsn, hypervisor)) as host:
            await expect_held(host)
            await confirm_all(host)
            await host.becomes("one", domainState="shutoff")
            await host.becomes("two", domainState="running")


async def test_after_a_restore_a_guest_that_runs_as_desired_and_crashes_is_started_without_a_person(
    dsn: str, tmp_path: Path
) -> None:
    for name in NAMES:
        add(dsn, name)
    async with reconciling(Host(dsn, hypervisor_with(tmp_path, *NAMES))) as host:
        restore = await prepare(host)
        await asyncio.to_thread(restore)
        await expect_held(host)
        await host.eventually(lambda: ("hold", "reached") in outcomes(dsn, "three"), "its hold has ended")
        host.domain("three").destroy()
        await host.eventually(lambda: ("start", "done") in outcomes(dsn, "three"), "it is started again")
        # So is one that a person has brought to its desired state.
        host.domain("two").create()
        await host.eventually(lambda: ("hold", "reached") in outcomes(dsn, "two"), "its hold has ended")
        host.domain("two").destroy()
        await host.eventually(lambda: ("start", "done") in outcomes(dsn, "two"), "it is started again")
        assert list_held(host) == ["held: one: shutdown one"]


async def test_what_another_host_had_when_the_backup_was_taken_is_held_as_well(dsn: str, tmp_path: Path) -> None:
    for name in NAMES:
        add(dsn, name)
    execute(dsn, THERE)
    async with reconciling(Host(dsn, hypervisor_with(tmp_path, *NAMES))) as host:
        restore = await prepare(host)
        # It has been migrated here since the backup.
        await asyncio.to_thread(restore, ONE_IS_THERE)
        await host.becomes("one", hostName="host")
        await expect_held(host)


async def test_what_another_host_has_that_reports_is_not_held_by_a_host_that_notices_a_restore_later(
    dsn: str, tmp_path: Path
) -> None:
    for name in NAMES:
        add(dsn, name)
    execute(dsn, THERE)
    async with reconciling(Host(dsn, hypervisor_with(tmp_path, *NAMES))) as host:
        restore = await prepare(host)
        # The other host has noticed the restore, and what it held was confirmed.
        await asyncio.to_thread(restore, ONE_IS_THERE, 'UPDATE "Host" SET "reportedAt" = now()')
        await host.eventually(lambda: ("hold", "restored") in outcomes(dsn, "two"), "it is noticed")
        assert not [outcome for outcome in outcomes(dsn, "one") if outcome[0] == "hold"]


class WatchedHypervisor(Hypervisor):
    """Runs a function before it shuts a domain down."""

    before: Callable[[], None]

    async def shutdown(self, target: Target) -> str | None:
        """Ask the guest to shut down."""
        self.before()
        return await super().shutdown(target)


async def test_an_action_is_counted_as_a_report_before_libvirt_is_called(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one")
    hypervisor, seen = WatchedHypervisor(hypervisor_with(tmp_path, "one").uri, VmMetrics()), []
    path = tmp_path / FILE

    def read() -> tuple[int, int]:
        ((reports,),) = rows(dsn, 'SELECT "reports" FROM "Host"')
        return reports, Reported(path, host="host", uri=hypervisor.uri).reports

    hypervisor.before = lambda: seen.append(read())
    async with reconciling(Host(dsn, hypervisor, reports_file=path)) as host:
        await host.becomes("one", status="running")
        await host.another_run()
        before, known = await asyncio.to_thread(read)
        set_desired(dsn, "one", "off")
        await host.becomes("one", status="off")
        assert (before, seen) == (known, [(before + 1, known + 1)])


async def test_a_new_machine_after_a_restore_is_started(dsn: str, tmp_path: Path) -> None:
    for name in NAMES:
        add(dsn, name)
    async with reconciling(Host(dsn, hypervisor_with(tmp_path, *NAMES))) as host:
        restore = await prepare(host)
        await asyncio.to_thread(restore)
        await expect_held(host)
        own_connection(host.hypervisor).defineXML(domain_xml("four", 44))
        add(dsn, "four", desiredStatus="running")
        await host.becomes("four", domainState="running")


async def test_a_hold_that_waits_is_kept_however_old_it_is(dsn: str) -> None:
    for name in ("waits", "reached", "set again"):
        add(dsn, name, desiredStatus="off")
    execute(
        dsn,
        """UPDATE "Machine" SET "desiredStatus" = 'running' WHERE "internalName" = 'set again'""",
        """ALTER TABLE "Machine" DISABLE TRIGGER "Machine_desired_since" """,
        """UPDATE "Machine" SET "desiredSince" = now() - INTERVAL '200 days' WHERE "internalName" <> 'set again'""",
        """ALTER TABLE "Machine" ENABLE TRIGGER "Machine_desired_since" """,
        """INSERT INTO "ReconcileEvent" ("occurredAt", "machineId", "name", "action", "reason", "outcome")
        SELECT now() - INTERVAL '91 days', "id", "internalName", 'hold', '',
        CASE "internalName" WHEN 'reached' THEN 'reached' ELSE 'restored' END FROM "Machine" """,
        query("maintenance/delete_old_reconcile_events").decode(),
    )
    assert rows(dsn, 'SELECT "name" FROM "ReconcileEvent"') == [("waits",)]


async def test_a_file_of_the_reports_that_is_damaged_or_of_another_host_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / FILE
    first = Reported(path, host="host", uri="test:///a")
    await first.note(HOST_ID, 7)
    again = Reported(path, host="host", uri="test:///a")
    assert (again.host_id, again.reports) == (HOST_ID, 7)
    # Of several actions an earlier one may be noted last.
    await asyncio.gather(again.note(HOST_ID, 9), again.note(HOST_ID, 8))
    assert Reported(path, host="host", uri="test:///a").reports == 9
    for host, uri in (("other", "test:///a"), ("host", "test:///b")):
        assert Reported(path, host=host, uri=uri).reports == 0
    for content in (b"", b"{", b"\xff", b"[" * 100_000):
        path.write_bytes(content)
        assert Reported(path, host="host", uri="test:///a").reports == 0
    path.unlink()
    path.mkdir()
    await first.note(HOST_ID, 8)
    assert (first.reports, Reported(path, host="host", uri="test:///a").reports) == (8, 0)


def outcomes(dsn: str, name: str) -> list[tuple[str, str]]:
    return [(action, outcome) for action, _, outcome in events(dsn, name)]
