"""Periodic maintenance of the store, by any of its hosts: create chunks, delete missed samples, enforce retention.

Every ten minutes: a chunk is created a whole interval (a day or a week) before it is needed. Sooner if guests have
added a tenth of the quarantine's limit, so that the quarantine does not exceed its limits for long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

import psycopg
import structlog

from guestd.core.config import Settings
from guestd.core.errors import RowsRejected, StoreUnavailable
from guestd.core.tasks import Backoff, run_with_retry, wait_for_event, warn_once
from guestd.store.batch_writer import Outcome
from guestd.store.connection import BULK_SECONDS, connection_to, store_deadline
from guestd.telemetry.registry import MaintenanceMetrics
from gueststore import catalogue
from gueststore.errors import ConfigurationError, StoreError
from gueststore.queries import query

log = structlog.get_logger()

INTERVAL_SECONDS = 600.0
# Between two runs, whatever guests send.
MIN_INTERVAL_SECONDS = 60.0
EARLY_RUN_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class MaintenanceResult:
    """What one run of maintenance has deleted, and the frames left in the quarantine."""

    samples_of_deleted_machines: int
    old_events: int
    quarantined_dropped: int
    quarantined_remaining: int
    retired: int

    @property
    def has_deleted(self) -> bool:
        """Whether anything was deleted."""
        return any((self.samples_of_deleted_machines, self.old_events, self.quarantined_dropped, self.retired))


class StoreMaintenance:
    """Runs maintenance periodically; `get_settings` returns the settings in force."""

    def __init__(
        self,
        get_settings: Callable[[], Settings],
        metrics: MaintenanceMetrics,
        *,
        min_interval_seconds: float = MIN_INTERVAL_SECONDS,
    ) -> None:
        self._min_interval_seconds = min_interval_seconds
        self._get_settings = get_settings
        self._metrics = metrics
        self._new_frames = self._new_bytes = 0
        self._is_early_run_due = asyncio.Event()

    def note_quarantined(self, outcome: Outcome) -> None:
        """Count the frames that a batch has added to the quarantine; many of them trigger an early run."""
        limits = self._get_settings().quarantine
        # Of a frame that is stored in part the quarantine has the whole.
        self._new_frames += outcome.quarantined.total() + outcome.stored_in_part
        self._new_bytes += outcome.quarantined_bytes
        is_frame_share_reached = self._new_frames > EARLY_RUN_SHARE * limits.max_frames
        if is_frame_share_reached or self._new_bytes > EARLY_RUN_SHARE * limits.max_bytes:
            self._is_early_run_due.set()

    async def run(self, on_run_done: Callable[[], Awaitable[None]]) -> None:
        """Run maintenance periodically; never returns. Calls `on_run_done` after each run."""

        async def run_periodically() -> None:
            while True:
                self._new_frames = self._new_bytes = 0
                self._is_early_run_due.clear()
                await self._run_once()
                await on_run_done()
                await asyncio.sleep(self._min_interval_seconds)
                await wait_for_event(self._is_early_run_due, INTERVAL_SECONDS - self._min_interval_seconds)

        await run_with_retry(
            run_periodically,
            # A statement that is rejected stays so until an operator acts; the samples do not wait for that.
            expected=(StoreUnavailable, RowsRejected),
            backoff=Backoff(cap_seconds=60),
            on_failure=warn_once("store maintenance failed, retrying"),
        )

    async def _run_once(self) -> None:
        settings, metrics = self._get_settings(), self._metrics
        metrics.quarantine_limit.set(settings.quarantine.max_frames)
        result = await maintain_store(settings)
        async with store_deadline(BULK_SECONDS):
            differences = await asyncio.to_thread(_count_schema_differences, settings.store.dsn)
        metrics.schema_differences.set(differences)
        metrics.quarantine_frames.set(result.quarantined_remaining)
        metrics.quarantine_dropped.inc(result.quarantined_dropped)
        if result.has_deleted:
            log.info("store maintenance done", **asdict(result))


async def maintain_store(settings: Settings) -> MaintenanceResult:
    """Run maintenance once."""
    events, quarantine = settings.events, settings.quarantine
    async with connection_to(settings.store.dsn) as connection, store_deadline(BULK_SECONDS):
        await connection.execute(query("maintenance/create_chunks"))
        cursor = await connection.execute(query("maintenance/delete_missed_samples"))
        (samples,) = await cursor.fetchone() or (0,)
        cursor = await connection.execute(
            query("maintenance/delete_old_guest_events"),
            {"keep_days": events.keep_days, "keep_per_machine": events.keep_per_machine},
        )
        (old_events,) = await cursor.fetchone() or (0,)
        cursor = await connection.execute(
            query("maintenance/delete_excess_frames"),
            {
                "keep_days": quarantine.keep_days,
                "max_frames": quarantine.max_frames,
                "max_bytes": quarantine.max_bytes,
            },
        )
        dropped, quarantined_remaining = await cursor.fetchone() or (0, 0)
        retired = await _enforce_retention(connection)
    return MaintenanceResult(
        samples_of_deleted_machines=samples,
        old_events=old_events,
        quarantined_dropped=dropped,
        quarantined_remaining=quarantined_remaining,
        retired=retired,
    )


async def _enforce_retention(connection: psycopg.AsyncConnection[Any]) -> int:
    """Drop chunks, and rows of plain tables, past their retention; each relation is a transaction of its own."""
    retired = 0
    cursor = await connection.execute(query("maintenance/read_retention"))
    for relation, *_ in await cursor.fetchall():
        cursor = await connection.execute(query("maintenance/enforce_retention"), {"relation": relation})
        (dropped,) = await cursor.fetchone() or (0,)
        retired += dropped
    return retired


def _count_schema_differences(dsn: str) -> int:
    try:
        return len(catalogue.find_drift(dsn))
    except (StoreError, ConfigurationError) as exc:
        raise StoreUnavailable(str(exc)) from exc
