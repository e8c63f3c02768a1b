"""Edits that come while libvirt is being looked at, or that somebody else has followed already."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import pytest
from psycopg.conninfo import make_conninfo

from guestd.filters.apply import Outcome, Passes, nothing_flushed
from guestd.filters.cache import Memory
from guestd.filters.driver import Look, NWFilters
from guestd.filters.plan import Define
from guestd.filters.store import filter_store
from guestd.telemetry.registry import VmMetrics
from support.daemon import eventually
from support.filters import HOST, REPORT, WRITER, FilterHost

pytestmark = pytest.mark.timeout(600)
SSH = "Use SSH service"
SECONDS = 60


class Slow(NWFilters):
    """The driver; a look takes as long as the test wants."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri, VmMetrics())
        self.may_look = asyncio.Event()
        self.may_look.set()

    async def look(self, memory: Memory) -> Look:
        """What was there at first; given out late."""
        found = await super().look(memory)
        await self.may_look.wait()
        return found


class Late(NWFilters):
    """The driver; between its look and its steps somebody defines a filter by hand."""

    def __init__(self, host: FilterHost, name: str) -> None:
        super().__init__(host.lab.uri, VmMetrics())
        self._host = host
        self._name = name

    async def look(self, memory: Memory) -> Look:
        """What was there before."""
        found = await super().look(memory)
        if self._name not in found.seen.filters:
            self._host.define(self._name, "")
        return found


Driver = TypeVar("Driver", bound=NWFilters)


@asynccontextmanager
async def opened(host: FilterHost, driver: Driver) -> AsyncIterator[tuple[Driver, Passes]]:
    store = filter_store(make_conninfo(host.dsn, options=WRITER), name=HOST, uri=driver.uri, version="9")
    async with driver.connected(), store as found:
        yield driver, Passes(driver, found, REPORT, nothing_flushed)


def is_defined(host: FilterHost, port: str) -> bool:
    """Whether libvirt has a rule of this port."""
    return f"dstportstart='{port}'" in host.libvirt.nwfilterLookupByName(host.internal(SSH)).XMLDesc()


def test_an_edit_does_not_wait_for_the_look_at_everything_and_is_made_once(filter_host: FilterHost) -> None:
    async def edited_during_a_look() -> None:
        async with opened(filter_host, Slow(filter_host.lab.uri)) as (driver, passes):
            await passes.full()
            driver.may_look.clear()
            edited = asyncio.Event()
            looking = asyncio.create_task(passes.full(edited))
            for port in ("2", "3"):
                filter_host.edit(SSH, "dstPortStart", int(port))
                edited.set()
                await asyncio.to_thread(
                    eventually, partial(is_defined, filter_host, port), "libvirt has the edit", SECONDS
                )
            assert not looking.done()
            driver.may_look.set()
            outcome = await looking
            names = [action.definition.name for action, _ in outcome.done if isinstance(action, Define)]
            assert (names, outcome.drifted) == ([filter_host.internal(SSH)] * 2, 0)
            assert (await passes.full()).done == ()

    asyncio.run(edited_during_a_look())
    assert filter_host.is_settled()


def test_what_an_apply_beside_the_loop_has_defined_stays_known_when_its_row_goes(filter_host: FilterHost) -> None:
    made = "ibay-00000000000000aa"

    async def follows() -> None:
        async with opened(filter_host, Slow(filter_host.lab.uri)) as (_, passes):
            await passes.full()
            filter_host.run(
                """INSERT INTO "NWFilter" ("id", "name", "internalName", "uuid")
                VALUES (gen_random_uuid(), 'made', %s, gen_random_uuid())""",
                made,
            )
            assert (await asyncio.to_thread(filter_host.guestd, "apply"))[0] == 0
            assert made in filter_host.own()
            filter_host.run('DELETE FROM "NWFilter" WHERE "internalName" = %s', made)
            await passes.quick()
            await passes.full()

    asyncio.run(follows())
    assert made not in filter_host.own()


def test_what_libvirt_refuses_when_it_is_told_holds_up_only_what_includes_it(filter_host: FilterHost) -> None:
    name = filter_host.internal("No MAC Spoofing")

    async def once() -> Outcome:
        async with opened(filter_host, Late(filter_host, name)) as (_, passes):
            return await passes.full()

    outcome = asyncio.run(once())
    failed = {
        action.definition.name: exc for action, exc in outcome.done if isinstance(action, Define) and exc != "done"
    }
    assert "already exists with uuid" in failed.pop(name)
    assert failed
    assert all("it includes ibay-" in exc for exc in failed.values())
    assert outcome.in_force == len(outcome.done) - len(failed) - 1 > 50
    assert "already exists with uuid" in filter_host.row("No MAC Spoofing")[1]
    filter_host.undefine(name)
    assert filter_host.passed().in_force == outcome.wanted
    assert filter_host.is_settled()
