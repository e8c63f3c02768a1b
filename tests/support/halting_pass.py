"""python halting_pass.py DSN URI STEPS: one pass that waits after so many steps of its plan.

It goes on when somebody writes to it. Meanwhile it is killed, or libvirtd is: exactly between two steps.
"""

import asyncio
import sys
from collections.abc import Awaitable
from typing import TypeVar
from uuid import UUID

from guestd.filters.apply import Passes, nothing_flushed
from guestd.filters.driver import NWFilters
from guestd.filters.interface_plan import Attach, Bind
from guestd.filters.model import Filter
from guestd.filters.store import filter_store
from guestd.telemetry.registry import VmMetrics
from support.filters import ENFORCE, HOST

T = TypeVar("T")


class Halting(NWFilters):
    """The driver, with a halt."""

    def __init__(self, uri: str, steps: int) -> None:
        super().__init__(uri, VmMetrics())
        self._left = steps

    async def define(self, definition: Filter) -> Filter | str:
        """As its base's; so are the others."""
        return await self._step(super().define(definition))

    async def remove(self, name: str, uuid: UUID) -> str | None:
        return await self._step(super().remove(name, uuid))

    async def attach(self, action: Attach) -> str | None:
        return await self._step(super().attach(action))

    async def bind(self, action: Bind) -> str | None:
        return await self._step(super().bind(action))

    async def _step(self, call: Awaitable[T]) -> T:
        if self._left == 0:
            self._halt()
        result = await call
        self._left -= 1
        # After the last step there is no other to halt before.
        if self._left == 0:
            self._halt()
        return result

    def _halt(self) -> None:
        self._left = -1
        sys.stdout.write("halted\n")
        sys.stdout.flush()
        sys.stdin.readline()


async def _pass(dsn: str, uri: str, steps: int) -> None:
    driver = Halting(uri, steps)
    store = filter_store(dsn, name=HOST, uri=uri, version="9")
    async with driver.connected(), store as opened:
        await Passes(driver, opened, ENFORCE, nothing_flushed).full()


if __name__ == "__main__":
    asyncio.run(_pass(sys.argv[1], sys.argv[2], int(sys.argv[3])))
