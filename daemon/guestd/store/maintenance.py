"""What a store needs done now and then, whichever host does it: chunks ahead, tombstones, and what has its bounds.

Every ten minutes, for a chunk is made a whole interval (a day or a week) before it is needed. Sooner when guests have
brought in a tenth of what the quarantine may hold: what is beyond its bounds shall not be there for long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict

import structlog

from guestd.core.config import Settings
from guestd.core.errors import StoreUnavailable
from guestd.core.tasks import Backoff, run_with_retry
from guestd.store.batch_writer import Outcome, maintain
from guestd.telemetry.registry import MaintenanceMetrics
from gueststore import catalogue
from gueststore.errors import ConfigurationError, StoreError

log = structlog.get_logger()

ROUND_SECONDS = 600.0
# Between two rounds, whatever guests do.
AT_LEAST_SECONDS = 60.0
SHARE = 0.1


class StoreMaintenance:
    """Rounds of it; `settings` gives those in force."""

    def __init__(
        self,
        settings: Callable[[], Settings],
        metrics: MaintenanceMetrics,
        *,
        at_least_seconds: float = AT_LEAST_SECONDS,
    ) -> None:
        self._at_least_seconds = at_least_seconds
        self._settings = settings
        self._metrics = metrics
        self._frames = self._bytes = 0
        self._is_crowded = asyncio.Event()

    def note(self, became: Outcome) -> None:
        """Of what was set aside since the last round."""
        bounds = self._settings().quarantine
        self._frames += became.quarantined.total()
        self._bytes += became.quarantined_bytes
        if self._frames > SHARE * bounds.max_frames or self._bytes > SHARE * bounds.max_bytes:
            self._is_crowded.set()

    async def run(self, forget: Callable[[], Awaitable[None]]) -> None:
        """For ever; without a store it waits. `forget` is called when rows may be gone."""

        async def rounds() -> None:
            while True:
                self._frames = self._bytes = 0
                self._is_crowded.clear()
                await self._once()
                await forget()
                await asyncio.sleep(self._at_least_seconds)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._is_crowded.wait(), ROUND_SECONDS - self._at_least_seconds)

        def lost(exc: Exception, _: float) -> None:
            log.debug("maintenance of the store waits", error=str(exc))

        await run_with_retry(rounds, expected=StoreUnavailable, backoff=Backoff(cap_seconds=60), on_failure=lost)

    async def _once(self) -> None:
        settings, metrics = self._settings(), self._metrics
        metrics.quarantine_limit.set(settings.quarantine.max_frames)
        tidied = await maintain(
            settings.store.dsn,
            event_days=settings.events.keep_days,
            events_per_machine=settings.events.keep_per_machine,
            quarantine_days=settings.quarantine.keep_days,
            quarantine_frames=settings.quarantine.max_frames,
            quarantine_bytes=settings.quarantine.max_bytes,
        )
        metrics.schema_differences.set(await asyncio.to_thread(_schema_differences, settings.store.dsn))
        metrics.quarantine_frames.set(tidied.quarantined_held)
        metrics.quarantine_dropped.inc(tidied.quarantined_dropped)
        if any((tidied.samples_of_deleted_machines, tidied.old_events, tidied.quarantined_dropped, tidied.retired)):
            log.info("the store was tidied up", **asdict(tidied))


def _schema_differences(dsn: str) -> int:
    try:
        return len(catalogue.find_drift(dsn))
    except (StoreError, ConfigurationError) as exc:
        raise StoreUnavailable(str(exc)) from exc
