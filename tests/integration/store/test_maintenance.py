"""Maintenance of a real store."""

import asyncio
from collections import Counter

import pytest
from structlog.testing import capture_logs
from tools.harness.waiting import eventually

from guestd.core.config import EventsSettings, QuarantineSettings, Settings, StoreSettings
from guestd.store.batch_writer import Outcome
from guestd.store.maintenance import StoreMaintenance
from guestd.telemetry.registry import MaintenanceMetrics
from support.daemon import execute, rows

HELD = 'SELECT count(*) FROM "QuarantinedFrame"'


def frames(number: int) -> str:
    return f"""INSERT INTO "QuarantinedFrame"
        ("machineId", "receivedAt", "spoolId", "seq", "reason", "detail", "payload")
        SELECT gen_random_uuid(), now(), gen_random_uuid(), n, 'json', '', '' FROM generate_series(1, {number}) AS n"""


@pytest.mark.asyncio
@pytest.mark.parametrize("flood", [Outcome(quarantined=Counter({"json": 300})), Outcome(stored_in_part=300)])
async def test_a_flood_into_the_quarantine_triggers_an_early_run(dsn: str, flood: Outcome) -> None:
    settings = Settings(store=StoreSettings(dsn=dsn), quarantine=QuarantineSettings(max_frames=100))
    maintenance = StoreMaintenance(lambda: settings, MaintenanceMetrics(), min_interval_seconds=0.01)
    has_run = asyncio.Event()

    async def on_run_done() -> None:
        has_run.set()

    running = asyncio.create_task(maintenance.run(on_run_done))
    try:
        await asyncio.wait_for(has_run.wait(), 60)
        execute(dsn, frames(300))
        maintenance.note_quarantined(flood)
        await asyncio.to_thread(eventually, lambda: rows(dsn, HELD) == [(100,)], "the quarantine is within its limits")
    finally:
        running.cancel()
        await asyncio.wait([running])


@pytest.mark.asyncio
async def test_a_statement_that_the_store_rejects_is_logged_once_and_does_not_end_maintenance(dsn: str) -> None:
    # No configuration file may name so many days: no date lies so far back.
    settings = Settings(store=StoreSettings(dsn=dsn), events=EventsSettings(keep_days=3_000_000))
    attempts = 0
    has_run = asyncio.Event()

    def get_settings() -> Settings:
        nonlocal attempts
        attempts += 1
        return settings

    async def on_run_done() -> None:
        has_run.set()

    maintenance = StoreMaintenance(get_settings, MaintenanceMetrics())
    with capture_logs() as logs:
        running = asyncio.create_task(maintenance.run(on_run_done))
        try:
            await asyncio.to_thread(eventually, lambda: attempts > 2 or running.done(), "two failures")
            assert not running.done()
            settings = Settings(store=StoreSettings(dsn=dsn))
            await asyncio.wait_for(has_run.wait(), 60)
        finally:
            running.cancel()
            await asyncio.wait([running])
    (entry,) = logs
    assert entry["event"] == "store maintenance failed, retrying"
    assert "22008" in entry["error"]
