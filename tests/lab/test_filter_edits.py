"""Edits that come while libvirt is being looked at, or that somebody else has followed already."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
from psycopg.conninfo import make_conninfo

from fix_daemon import eventually
from fix_filters import HOST, REPORT, WRITER, FilterHost
from guestd.filterpass import Passes, nothing_flushed
from guestd.filters.memory import Memory
from guestd.filterstore import filter_store
from guestd.nwfilters import Look, NWFilters
from guestd.plans.filters import Define

pytestmark = pytest.mark.timeout(600)
SSH = "Use SSH service"
SECONDS = 60


class Slow(NWFilters):
    """The driver; a look takes as long as the test wants."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri, lambda: None)
        self.may_look = asyncio.Event()
        self.may_look.set()

    async def look(self, memory: Memory) -> Look:
        """What was there at first; given out late."""
        found = await super().look(memory)
        await self.may_look.wait()
        return found


@asynccontextmanager
async def opened(host: FilterHost) -> AsyncIterator[tuple[Slow, Passes]]:
    driver = Slow(host.lab.uri)
    store = filter_store(make_conninfo(host.dsn, options=WRITER), name=HOST, uri=driver.uri, version="9")
    async with driver.connected(), store as found:
        yield driver, Passes(driver, found, REPORT, nothing_flushed)


def is_defined(host: FilterHost, port: str) -> bool:
    """Whether libvirt has a rule of this port."""
    return f"dstportstart='{port}'" in host.libvirt.nwfilterLookupByName(host.internal(SSH)).XMLDesc()


def test_an_edit_does_not_wait_for_the_look_at_everything_and_is_made_once(filter_host: FilterHost) -> None:
    async def edited_during_a_look() -> None:
        async with opened(filter_host) as (driver, passes):
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
        async with opened(filter_host) as (_, passes):
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
