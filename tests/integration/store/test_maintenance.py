"""What is done about a store now and then, on a real one."""

import asyncio
from collections import Counter

import pytest

from guestd.core.config import QuarantineSettings, Settings, StoreSettings
from guestd.store.batch_writer import Outcome
from guestd.store.maintenance import StoreMaintenance
from guestd.telemetry.registry import Telemetry
from support.daemon import eventually, execute, rows

HELD = 'SELECT count(*) FROM "QuarantinedFrame"'


@pytest.mark.asyncio
async def test_a_flood_into_the_quarantine_is_tidied_up_before_its_time(dsn: str) -> None:
    settings = Settings(store=StoreSettings(dsn=dsn), quarantine=QuarantineSettings(max_frames=100))
    tidying = StoreMaintenance(lambda: settings, Telemetry().maintenance, at_least_seconds=0.01)
    forgotten = asyncio.Event()

    async def forget() -> None:
        forgotten.set()

    running = asyncio.create_task(tidying.run(forget))
    try:
        await asyncio.wait_for(forgotten.wait(), 60)
        execute(
            dsn,
            """INSERT INTO "QuarantinedFrame"
            ("machineId", "receivedAt", "spoolId", "seq", "reason", "detail", "payload")
            SELECT gen_random_uuid(), now(), gen_random_uuid(), n, 'json', '', '' FROM generate_series(1, 300) AS n""",
        )
        tidying.note(Outcome(quarantined=Counter({"json": 300})))
        await asyncio.to_thread(eventually, lambda: rows(dsn, HELD) == [(100,)], "the quarantine is within its bounds")
    finally:
        running.cancel()
        await asyncio.wait([running])
