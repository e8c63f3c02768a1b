"""python -m support.halting_run DSN URI STEPS: one reconcile run that halts after so many steps of its plan.

It continues when a line arrives on stdin. Meanwhile a test kills it or libvirtd: exactly between two steps.
"""

import asyncio
import sys
from collections.abc import Awaitable
from typing import TypeVar
from uuid import UUID

from guestd.filters.apply import FilterRuns, assume_kernel_unchanged
from guestd.filters.driver import FilterDriver
from guestd.filters.interface_plan import Attach, Bind
from guestd.filters.model import Filter
from guestd.filters.store import open_filter_store
from guestd.telemetry.registry import VmMetrics
from support.filters import ENFORCE, HOST

T = TypeVar("T")


class HaltingDriver(FilterDriver):
    """The driver, halting after a number of changes."""

    def __init__(self, uri: str, steps: int) -> None:
        super().__init__(uri, VmMetrics())
        self._left = steps

    async def define(self, definition: Filter) -> Filter | str:
        """As in the base class, like the other changes."""
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
        # Also after the last step, which no other follows.
        if self._left == 0:
            self._halt()
        return result

    def _halt(self) -> None:
        self._left = -1
        sys.stdout.write("halted\n")
        sys.stdout.flush()
        sys.stdin.readline()


async def _run(dsn: str, uri: str, steps: int) -> None:
    driver = HaltingDriver(uri, steps)
    store = open_filter_store(dsn, name=HOST, uri=uri, version="9")
    async with driver.connect(), store as opened:
        await FilterRuns(driver, opened, ENFORCE, assume_kernel_unchanged).run_full()


if __name__ == "__main__":
    asyncio.run(_run(sys.argv[1], sys.argv[2], int(sys.argv[3])))
