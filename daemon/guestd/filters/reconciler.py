"""The loop that keeps a host's filters as the rows say: a pass whenever rows or domains change, and at an interval.

Notices only wake it. A notice of changed rows begins a pass that takes libvirt to be as it was; all others look at all
of it, so that what somebody changed by hand is found within an interval. While libvirt or the store is away nothing
is done, and the kernel goes on with the rules that it has.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from guestd.core.errors import RowsRejected, SourceLost, StoreUnavailable
from guestd.core.tasks import Backoff, run_with_retry, wait_for_event
from guestd.filters.apply import Flushed, Outcome, Passes
from guestd.filters.diff import Allowed
from guestd.filters.driver import NWFilters
from guestd.filters.plan import Report
from guestd.filters.store import filter_store, watch_filters
from guestd.hypervisor.connection import Hypervisor

log = structlog.get_logger()

# A transaction of a person's is often one of several; those that come while a pass runs wait for each other anyway.
DEBOUNCE_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Counters:
    """What the loop counts; telemetry gives the functions."""

    passed: Callable[[Outcome, float], None]  # seconds
    lost: Callable[[], None]


class FilterLoop:
    """Keeps the filters of one host."""

    def __init__(
        self, driver: NWFilters, *, dsn: str, host_name: str, allowed: Allowed, interval_seconds: float,
        flushed: Flushed, counters: Counters,
    ) -> None:  # fmt: skip
        self._driver = driver
        self._dsn = dsn
        self._host_name = host_name
        self._allowed = allowed
        self._interval_seconds = interval_seconds
        self._flushed = flushed
        self._counters = counters
        self._wake = asyncio.Event()
        self._is_full_due = True
        self._reported: frozenset[Report] = frozenset()
        self.error: str | None = "not begun yet"

    async def run(self) -> None:
        """Keep them, for ever."""

        def lost(exc: Exception, seconds: float) -> None:
            if str(exc) != self.error:
                log.warning("filters are not being kept", error=str(exc), retry=round(seconds, 1))
            self.error = str(exc)
            self._counters.lost()

        await run_with_retry(
            self._life,
            expected=(SourceLost, StoreUnavailable, RowsRejected),
            backoff=Backoff(cap_seconds=5),
            on_failure=lost,
        )

    async def watch_edits(self) -> None:
        """Wake the loop when rows change, for ever."""
        await run_with_retry(
            lambda: watch_filters(self._dsn, self._wake),
            expected=StoreUnavailable,
            backoff=Backoff(cap_seconds=5),
            on_failure=lambda exc, _: log.debug("edits of filters are not heard of", error=str(exc)),
        )

    async def watch_domains(self, hypervisor: Hypervisor) -> None:
        """Wake the loop when domains come, go, start or end, for ever."""
        looked, before = hypervisor.subscribe(), None
        while True:
            await looked.wait()
            looked.clear()
            now = frozenset((each.uuid, each.name, each.is_active) for each in hypervisor.domains)
            if now != before:
                before = now
                self.look_again()

    def look_again(self) -> None:
        """Begin a full pass as soon as the one that runs has ended."""
        self._is_full_due = True
        self._wake.set()

    async def _life(self) -> None:
        """From one failure to the next."""
        async with (
            self._driver.connected(),
            filter_store(
                self._dsn, name=self._host_name, uri=self._driver.uri, version=await self._driver.version()
            ) as store,
        ):
            log.info("filters are kept", host=self._host_name, uri=self._driver.uri, attach=self._allowed.attach)
            passes = Passes(self._driver, store, self._allowed, self._flushed)
            self._is_full_due, is_first = True, True
            looked_at = 0.0
            while True:
                began = time.monotonic()
                if self._is_full_due or began - looked_at >= self._interval_seconds:
                    self._is_full_due, looked_at = False, began
                    outcome = await passes.full(self._wake)  # an edit that has woken this is not made to wait for it
                else:
                    self._wake.clear()
                    outcome = await passes.quick()
                self._tell(outcome, time.monotonic() - began)
                if is_first:
                    is_first = False
                    _leave_out_of_collections()
                if not self._is_full_due:
                    await wait_for_event(self._wake, max(0.0, looked_at + self._interval_seconds - time.monotonic()))
                await asyncio.sleep(DEBOUNCE_SECONDS)

    def _tell(self, outcome: Outcome, seconds: float) -> None:
        """Each report once, when it comes and when it goes; every step."""
        for action, result in outcome.done:
            if result == "done":
                log.info("filters: done", what=str(action))
        found = frozenset(outcome.reports)
        for report in found - self._reported:
            log.warning("filters need a look", what=str(report))
        for report in self._reported - found:
            log.info("filters need no look any more", what=str(report))
        self._reported = found
        self.error = None
        self._counters.passed(outcome, seconds)


def _leave_out_of_collections() -> None:
    """What there is now, thousands of filters, is mostly there to stay: a collection that went through all of it would
    hold everybody up for 0.15 s, again and again.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
