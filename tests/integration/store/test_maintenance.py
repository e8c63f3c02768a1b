"""Maintenance of a real store."""

import asyncio
from collections import Counter

import pytest
from tools.harness.waiting import eventually

from guestd.core.config import QuarantineSettings, Settings, StoreSettings
from guestd.store.batch_writer import Outcome
from guestd.store.maintenance import StoreMaintenance
from guestd.telemetry.registry import MaintenanceMetrics
from support.daemon import execute, rows

HELD = 'SELECT count(*) FROM "QuarantinedFrame"'


@pytest.mark.asyncio
async def test_a_flood_into_the_quarantine_triggers_an_early_run(dsn: str) -> None:
    settings = Settings(store=StoreSettings(dsn=dsn), quarantine=QuarantineSettings(max_frames=100))
    maintenance = StoreMaintenance(lambda: settings, MaintenanceMetrics(), min_interval_seconds=0.01)
    has_run = asyncio.Event()

    async def on_rows_deleted() -> None:
        has_run.set()

    running = asyncio.create_task(maintenance.run(on_rows_deleted))
    try:
        await asyncio.wait_for(has_run.wait(), 60)
        execute(
            dsn,
            """INSERT INTO "QuarantinedFrame"
            ("machineId", "receivedAt", "spoolId", "seq", "reason", "detail", "payload")
            SELECT gen_random_uuid(), now(), gen_random_uuid(), n, 'json', '', '' FROM generate_series(1, 300) AS n""",
        )
        maintenance.note_quarantined(Outcome(quarantined=Counter({"json": 300})))
        await asyncio.to_thread(eventually, lambda: rows(dsn, HELD) == [(100,)], "the quarantine is within its limits")
    finally:
        running.cancel()
        await asyncio.wait([running])
