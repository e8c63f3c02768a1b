"""Edits during a snapshot of libvirt, and edits that another run applied already."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import pytest
from psycopg.conninfo import make_conninfo
from tools.harness.waiting import eventually

from guestd.filters.apply import FilterRuns, RecentChanges, RunResult, assume_kernel_unchanged
from guestd.filters.cache import FilterCache
from guestd.filters.driver import FilterDriver
from guestd.filters.machine_filter import machine_filter_name
from guestd.filters.plan import Define, FilterPlan
from guestd.filters.snapshot import HostSnapshot
from guestd.filters.store import open_filter_store
from guestd.telemetry.registry import VmMetrics
from support.filters import ENFORCE, HOST, REPORT, WRITER, FilterHost

pytestmark = pytest.mark.timeout(600)
SSH = "Use SSH service"
SECONDS = 60


class SlowDriver(FilterDriver):
    """The driver; a snapshot takes as long as the test decides."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri, VmMetrics())
        self.may_return = asyncio.Event()
        self.may_return.set()

    async def observe(self, cache: FilterCache) -> HostSnapshot:
        """The state at the begin of the snapshot, returned late."""
        found = await super().observe(cache)
        await self.may_return.wait()
        return found


class RacingDriver(FilterDriver):
    """The driver; somebody defines a filter manually between its snapshot and its steps."""

    def __init__(self, host: FilterHost, name: str) -> None:
        super().__init__(host.lab.uri, VmMetrics())
        self._host = host
        self._name = name

    async def observe(self, cache: FilterCache) -> HostSnapshot:
        """The state before that definition."""
        found = await super().observe(cache)
        if self._name not in found.observed.filters:
            self._host.define(self._name, "")
        return found


Driver = TypeVar("Driver", bound=FilterDriver)


@asynccontextmanager
async def open_runs(
    host: FilterHost, driver: Driver, recent: RecentChanges | None = None
) -> AsyncIterator[tuple[Driver, FilterRuns]]:
    store = open_filter_store(make_conninfo(host.dsn, options=WRITER), name=HOST, uri=driver.uri, version="9")
    async with driver.connect(), store as found:
        yield driver, FilterRuns(driver, found, REPORT, assume_kernel_unchanged, recent)


def is_defined(host: FilterHost, port: str) -> bool:
    """Whether libvirt has a rule of this port."""
    return f"dstportstart='{port}'" in host.libvirt.nwfilterLookupByName(host.internal_name(SSH)).XMLDesc()


def test_an_edit_does_not_wait_for_the_snapshot_and_is_applied_once(filter_host: FilterHost) -> None:
    async def edit_during_a_snapshot() -> None:
        async with open_runs(filter_host, SlowDriver(filter_host.lab.uri)) as (driver, runs):
            await runs.run_full()
            driver.may_return.clear()
            edited = asyncio.Event()
            running = asyncio.create_task(runs.run_full(edited))
            for port in ("2", "3"):
                filter_host.edit(SSH, "dstPortStart", int(port))
                edited.set()
                await asyncio.to_thread(
                    eventually, partial(is_defined, filter_host, port), "libvirt has the edit", SECONDS
                )
            assert not running.done()
            driver.may_return.set()
            result = await running
            names = [action.definition.name for action, _ in result.steps if isinstance(action, Define)]
            assert (names, result.drifted) == ([filter_host.internal_name(SSH)] * 2, 0)
            assert (await runs.run_full()).steps == ()

    asyncio.run(edit_during_a_snapshot())
    assert filter_host.is_settled()


def test_a_filter_defined_by_a_concurrent_apply_is_removed_with_its_row(filter_host: FilterHost) -> None:
    made = "ibay-00000000000000aa"

    async def apply_and_delete() -> None:
        async with open_runs(filter_host, SlowDriver(filter_host.lab.uri)) as (_, runs):
            await runs.run_full()
            filter_host.run(
                """INSERT INTO "NWFilter" ("id", "name", "internalName", "uuid")
                VALUES (gen_random_uuid(), 'made', %s, gen_random_uuid())""",
                made,
            )
            assert (await asyncio.to_thread(filter_host.guestd, "apply"))[0] == 0
            assert made in filter_host.own()
            filter_host.run('DELETE FROM "NWFilter" WHERE "internalName" = %s', made)
            await runs.run_quick()
            await runs.run_full()

    asyncio.run(apply_and_delete())
    assert made not in filter_host.own()


def test_a_filter_that_libvirt_refuses_blocks_only_those_that_include_it(filter_host: FilterHost) -> None:
    name = filter_host.internal_name("No MAC Spoofing")

    async def run_once() -> RunResult:
        async with open_runs(filter_host, RacingDriver(filter_host, name)) as (_, runs):
            return await runs.run_full()

    result = asyncio.run(run_once())
    failed = {
        action.definition.name: text for action, text in result.steps if isinstance(action, Define) and text != "done"
    }
    assert "already exists with uuid" in failed.pop(name)
    assert failed
    assert all("it includes ibay-" in text for text in failed.values())
    assert result.in_force == len(result.steps) - len(failed) - 1 > 50
    assert "already exists with uuid" in filter_host.read_row("No MAC Spoofing")[1]
    filter_host.undefine(name)
    assert filter_host.reconcile().in_force == result.desired
    assert filter_host.is_settled()


def test_an_opening_is_remembered_and_held_after_others(filter_host: FilterHost) -> None:
    machines = [filter_host.add_machine()[0] for _ in range(3)]
    for each in machines:
        filter_host.assign(each, "Drop All")
    filter_host.reconcile(ENFORCE)
    filter_host.reconcile(ENFORCE)
    before, after = RecentChanges(), RecentChanges()
    # Later than now: recent, however long the test takes.
    after.note(FilterPlan((), (), opened={"ibay-another": ""}), time.monotonic() + 3600)

    async def open_machine(number: int, recent: RecentChanges) -> str | None:
        filter_host.run('DELETE FROM "VMNWFilter" WHERE "vmId" = %s', machines[number])
        async with open_runs(filter_host, FilterDriver(filter_host.lab.uri, VmMetrics()), recent) as (_, runs):
            return (await runs.run_full()).held

    assert asyncio.run(open_machine(0, before)) is None
    assert [*before.get_past(0.0).opened_seconds_ago] == [machine_filter_name(machines[0])]
    assert "it would open 1 of 3 machines, after 1 shortly before" in str(asyncio.run(open_machine(1, after)))
