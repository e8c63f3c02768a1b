"""Periodic maintenance of the store, by any of its hosts: create chunks, delete missed samples, enforce retention.

Every ten minutes: a chunk is created a whole interval (a day or a week) before it is needed. Sooner if guests have
added a tenth of the quarantine's limit, so that the quarantine does not exceed its limits for long, or if a step could
not get its locks. The steps are independent: one that fails does not stop the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import psycopg
import structlog

from guestd.core.config import Settings
from guestd.core.errors import RowsRejected, StoreUnavailable
from guestd.core.tasks import Backoff, run_with_retry, wait_for_event, warn_once
from guestd.store.batch_writer import Outcome
from guestd.store.connection import REPLY_SECONDS, choose_reported, store_deadline
from guestd.store.locks import IndependentSteps
from guestd.telemetry.registry import MaintenanceMetrics
from gueststore import catalogue
from gueststore.errors import ConfigurationError, StoreError
from gueststore.queries import query

log = structlog.get_logger()

INTERVAL_SECONDS = 600.0
# Between two runs, whatever guests send.
MIN_INTERVAL_SECONDS = 60.0
EARLY_RUN_SHARE = 0.1
# While retention waits for its lock on a chunk, every later query on that chunk waits behind it.
LOCK_SECONDS = 2.0
# Of a statement: deletions take seconds, and minutes on a store that was left alone for months. Beyond it the step
# fails, is reported, and starts again with the next run.
STATEMENT_SECONDS = 600.0
CHECK_SECONDS = 300.0


@dataclass(slots=True)
class MaintenanceResult:
    """What one run of maintenance has deleted, and what it has counted (None if that step failed)."""

    samples_of_deleted_machines: int = 0
    old_events: int = 0
    quarantined_dropped: int = 0
    quarantined_remaining: int | None = None
    retired: int = 0
    schema_differences: int | None = None

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
        self._steps = IndependentSteps(get_settings().store.dsn, metrics)

    @property
    def problems(self) -> list[str]:
        """The steps that failed in the last run, a sentence each."""
        return self._steps.problems

    def note_quarantined(self, outcome: Outcome) -> None:
        """Count the frames that a batch has added to the quarantine; many of them trigger an early run."""
        limits = self._get_settings().quarantine
        # Of a frame that is stored in part the quarantine has the whole.
        self._new_frames += outcome.quarantined.total() + outcome.stored_in_part
        self._new_bytes += outcome.quarantined_bytes
        is_frame_share_reached = self._new_frames > EARLY_RUN_SHARE * limits.max_frames
        if is_frame_share_reached or self._new_bytes > EARLY_RUN_SHARE * limits.max_bytes:
            self._is_early_run_due.set()

    async def run(self) -> None:
        """Run maintenance periodically; never returns."""

        async def run_periodically() -> None:
            while True:
                self._new_frames = self._new_bytes = 0
                self._is_early_run_due.clear()
                await self._run_once()
                await asyncio.sleep(self._min_interval_seconds)
                if not self._steps.is_retry_due:
                    await wait_for_event(self._is_early_run_due, INTERVAL_SECONDS - self._min_interval_seconds)

        await run_with_retry(
            run_periodically,
            expected=(StoreUnavailable, RowsRejected),
            backoff=Backoff(cap_seconds=60),
            on_failure=warn_once("store maintenance failed, retrying"),
        )

    async def _run_once(self) -> None:
        settings, metrics = self._get_settings(), self._metrics
        metrics.quarantine_limit.set(settings.quarantine.max_frames)
        result = await maintain_store(settings, self._steps)
        if result.quarantined_remaining is not None:
            metrics.quarantine_frames.set(result.quarantined_remaining)
        metrics.quarantine_dropped.inc(result.quarantined_dropped)
        if result.has_deleted:
            log.info("store maintenance done", **asdict(result))
        if result.schema_differences is not None:
            metrics.schema_differences.set(result.schema_differences)


async def maintain_store(
    settings: Settings, steps: IndependentSteps, *, statement_seconds: float = STATEMENT_SECONDS
) -> MaintenanceResult:
    """Run every step once, side by side; returns what they have deleted and counted.

    A step that fails, or has a statement that takes longer than `statement_seconds`, is noted in `steps`.
    StoreUnavailable at the end when a connection is lost.
    """
    result = MaintenanceResult()

    async def run_step(name: str) -> None:
        async with steps.connection_of(
            name, lock_seconds=LOCK_SECONDS, statement_seconds=statement_seconds
        ) as connection:
            await _STEPS[name](connection, settings, result)

    for lost in await asyncio.gather(*map(run_step, _STEPS), return_exceptions=True):
        if lost is not None:
            raise lost
    return result


Connection = psycopg.AsyncConnection[Any]


async def _create_chunks(connection: Connection, _: Settings, __: MaintenanceResult) -> None:
    await _run_statement(connection, "create_chunks")


async def _delete_missed_samples(connection: Connection, _: Settings, result: MaintenanceResult) -> None:
    (result.samples_of_deleted_machines,) = await _run_statement(connection, "delete_missed_samples")


async def _delete_old_events(connection: Connection, settings: Settings, result: MaintenanceResult) -> None:
    events = settings.events
    (result.old_events,) = await _run_statement(
        connection, "delete_old_guest_events", keep_days=events.keep_days, keep_per_machine=events.keep_per_machine
    )


async def _delete_excess_frames(connection: Connection, settings: Settings, result: MaintenanceResult) -> None:
    limits = settings.quarantine
    result.quarantined_dropped, result.quarantined_remaining = await _run_statement(
        connection,
        "delete_excess_frames",
        keep_days=limits.keep_days,
        max_frames=limits.max_frames,
        max_bytes=limits.max_bytes,
    )


async def _enforce_retention(connection: Connection, _: Settings, result: MaintenanceResult) -> None:
    """Drop chunks, and rows of plain tables, past their retention; each relation is a transaction of its own.

    Raises what the last relation raised that failed, when the others are done.
    """
    failure: Exception | None = None
    async with store_deadline(STATEMENT_SECONDS + REPLY_SECONDS):
        cursor = await connection.execute(query("maintenance/read_retention"))
        settings = await cursor.fetchall()
    for relation, *_rest in settings:
        try:
            (dropped,) = await _run_statement(connection, "enforce_retention", relation=relation)
            result.retired += dropped
        except (StoreUnavailable, RowsRejected) as exc:
            if connection.closed:
                raise
            failure = choose_reported(failure, exc)
    if failure is not None:
        raise failure


async def _run_statement(connection: Connection, name: str, **parameters: object) -> tuple[Any, ...]:
    """Run a query of sql/queries/maintenance that has rows; returns the first."""
    async with store_deadline(STATEMENT_SECONDS + REPLY_SECONDS):
        cursor = await connection.execute(query(f"maintenance/{name}"), parameters)
        first: tuple[Any, ...] = (await cursor.fetchall())[0]
    return first


async def _count_schema_differences(_: Connection, settings: Settings, result: MaintenanceResult) -> None:
    async with store_deadline(CHECK_SECONDS):
        result.schema_differences = await asyncio.to_thread(_find_drift, settings.store.dsn)


# The names are labels of guestd_maintenance_delayed and guestd_maintenance_failures_total.
_STEPS = {
    "chunks": _create_chunks,
    "deleted_machines": _delete_missed_samples,
    "events": _delete_old_events,
    "quarantine": _delete_excess_frames,
    "retention": _enforce_retention,
    "schema": _count_schema_differences,
}


def _find_drift(dsn: str) -> int:
    try:
        return len(catalogue.find_drift(dsn))
    except (StoreError, ConfigurationError) as exc:
        raise StoreUnavailable(str(exc)) from exc
