"""The filter reconciler: a run whenever rows or domains change, and at an interval.

Notifications only wake it. Changed rows cause a quick run, which takes libvirt to be as last observed. Every other run
observes all of libvirt, so that manual changes are found within an interval. While libvirt or the store is unavailable
nothing is done, and the kernel keeps the rules that it has.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections import Counter
from contextlib import AsyncExitStack

import structlog

from guestd.core.errors import RowsRejected, SourceLost, StoreUnavailable
from guestd.core.tasks import Backoff, run_with_retry, wait_for_event, warn_once
from guestd.filters.apply import FilterRuns, FindFlushed, RecentChanges, RunResult
from guestd.filters.diff import Permissions
from guestd.filters.driver import FilterDriver
from guestd.filters.plan import RUN_REPORT_KINDS, FilterReport
from guestd.filters.store import open_filter_store, watch_filters
from guestd.hypervisor.driver import Hypervisor
from guestd.telemetry.registry import FilterMetrics

log = structlog.get_logger()

# Transactions of one person often come in groups; those that commit during a run are combined anyway.
DEBOUNCE_SECONDS = 0.02


class FilterReconciler:
    """Keeps the filters of one host in their desired state."""

    def __init__(
        self, driver: FilterDriver, *, dsn: str, host_name: str, permissions: Permissions, interval_seconds: float,
        find_flushed: FindFlushed, metrics: FilterMetrics,
    ) -> None:  # fmt: skip
        self._driver = driver
        self._dsn = dsn
        self._host_name = host_name
        self._permissions = permissions
        self._interval_seconds = interval_seconds
        self._find_flushed = find_flushed
        self._metrics = metrics
        self._wake = asyncio.Event()
        self._is_full_due = True
        self._recent = RecentChanges()
        self._reported: frozenset[FilterReport] = frozenset()
        self._is_unsupported = False
        self.error: str | None = "no run yet"

    async def run(self) -> None:
        """Reconcile until cancelled."""

        def lost(exc: Exception, seconds: float) -> None:
            if str(exc) != self.error:
                log.warning(
                    "filter reconciler stopped, the kernel keeps its rules, retrying",
                    error=str(exc),
                    retry_seconds=round(seconds, 1),
                )
            self.error = str(exc)
            self._metrics.lost.inc()

        await run_with_retry(
            self._run_connected,
            expected=(SourceLost, StoreUnavailable, RowsRejected),
            backoff=Backoff(cap_seconds=5),
            on_failure=lost,
        )

    async def watch_edits(self) -> None:
        """Wake the reconciler when rows change, until cancelled."""
        await run_with_retry(
            lambda: watch_filters(self._dsn, self._wake),
            expected=(StoreUnavailable, RowsRejected),
            backoff=Backoff(cap_seconds=5),
            on_failure=warn_once("LISTEN lost, edits of filters wait for the next full run"),
        )

    async def watch_domains(self, hypervisor: Hypervisor, observed: asyncio.Event) -> None:
        """Request a full run when domains are defined, undefined, started or stopped, until cancelled.

        `observed` is set at every snapshot of the hypervisor.
        """
        before = None
        while True:
            await observed.wait()
            observed.clear()
            now = frozenset((each.uuid, each.name, each.is_active) for each in hypervisor.domains)
            if now != before:
                before = now
                self.request_full_run()

    def request_full_run(self) -> None:
        """Begin a full run as soon as the current one ends."""
        self._is_full_due = True
        self._wake.set()

    async def _run_connected(self) -> None:
        """Runs until libvirt or the store is lost."""
        async with AsyncExitStack() as resources:
            await resources.enter_async_context(self._driver.connect())
            await self._wait_until_supported()
            version = await self._driver.version()
            store = await resources.enter_async_context(
                open_filter_store(self._dsn, name=self._host_name, uri=self._driver.uri, version=version)
            )
            log.info(
                "filter reconciler started", host=self._host_name, uri=self._driver.uri, attach=self._permissions.attach
            )
            runs = FilterRuns(self._driver, store, self._permissions, self._find_flushed, self._recent)
            self._is_full_due, is_first = True, True
            last_full = 0.0
            while True:
                began = time.monotonic()
                if self._is_full_due or began - last_full >= self._interval_seconds:
                    self._is_full_due, last_full = False, began
                    result = await runs.run_full(self._wake)  # applies an edit that wakes it without finishing first
                else:
                    self._wake.clear()
                    result = await runs.run_quick()
                self._record(result, time.monotonic() - began)
                if is_first:
                    is_first = False
                    _exempt_from_collection()
                if not self._is_full_due:
                    await wait_for_event(self._wake, max(0.0, last_full + self._interval_seconds - time.monotonic()))
                await asyncio.sleep(DEBOUNCE_SECONDS)

    async def _wait_until_supported(self) -> None:
        """Wait while libvirt has no network filters, as its test driver: that is no error, and is logged once."""
        while not await self._driver.has_filters():
            if not self._is_unsupported:
                self._is_unsupported = True
                log.warning("libvirt has no network filters, those of the store are not applied", uri=self._driver.uri)
            self.error = None
            await asyncio.sleep(self._interval_seconds)
        self._is_unsupported = False

    def _record(self, result: RunResult, seconds: float) -> None:
        """Log every step, and each issue when it is raised and when it is resolved; update the metrics."""
        for action, outcome in result.steps:
            if outcome == "done":
                log.info("filter step done", step=str(action))
        reports = frozenset(result.reports)
        for report in reports - self._reported:
            log.warning("filter issue raised; see guestd filters plan", issue=str(report))
        for report in self._reported - reports:
            log.info("filter issue resolved", issue=str(report))
        self._reported = reports
        self.error = None
        _update_metrics(self._metrics, result, seconds)


def _update_metrics(metrics: FilterMetrics, result: RunResult, seconds: float) -> None:
    metrics.desired.set(result.desired)
    metrics.in_force.set(result.in_force)
    metrics.pending.set(result.desired - result.in_force)
    metrics.held.set(result.held is not None)
    metrics.drift.inc(result.drifted)
    for action, outcome in result.steps:
        metrics.actions.labels(type(action).__name__.lower(), "done" if outcome == "done" else "failed").inc()
    kinds = Counter(report.kind for report in result.reports)
    for kind in RUN_REPORT_KINDS:
        metrics.reports.labels(kind).set(kinds[kind])
    metrics.run_seconds.observe(seconds)


def _exempt_from_collection() -> None:
    """Freeze the heap: its thousands of filters mostly stay, and collecting them blocks the event loop for 0.15 s."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
