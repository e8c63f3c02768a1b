"""Maintenance of a real store."""

import asyncio
from collections import Counter
from typing import get_args, get_type_hints

import pytest
from msgspec import Meta, convert
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs
from tools.harness.waiting import eventually

from guestd.core.config import EventsSettings, QuarantineSettings, Settings, StoreSettings
from guestd.store.batch_writer import Outcome
from guestd.store.locks import IndependentSteps
from guestd.store.maintenance import StoreMaintenance, maintain_store
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
    execute(dsn, frames(101))
    running = asyncio.create_task(maintenance.run())
    try:
        await asyncio.to_thread(eventually, lambda: rows(dsn, HELD) == [(100,)], "the first run")
        execute(dsn, frames(300))
        maintenance.note_quarantined(flood)
        await asyncio.to_thread(eventually, lambda: rows(dsn, HELD) == [(100,)], "the quarantine is within its limits")
    finally:
        running.cancel()
        await asyncio.wait([running])


@pytest.mark.asyncio
async def test_a_step_that_fails_is_logged_once_counted_and_listed_and_the_others_are_done(dsn: str) -> None:
    # No configuration file may name so many days: no date lies so far back.
    settings = Settings(
        store=StoreSettings(dsn=dsn),
        events=EventsSettings(keep_days=3_000_000),
        quarantine=QuarantineSettings(max_frames=100),
    )
    registry = CollectorRegistry()
    maintenance = StoreMaintenance(lambda: settings, MaintenanceMetrics(registry), min_interval_seconds=0.01)

    def failures(step: str) -> float:
        return registry.get_sample_value("guestd_maintenance_failures_total", {"step": step}) or 0

    execute(dsn, frames(101))
    with capture_logs() as logs:
        running = asyncio.create_task(maintenance.run())
        try:
            await asyncio.to_thread(eventually, lambda: failures("events") > 1 or running.done(), "two failures")
            assert not running.done()
            assert rows(dsn, HELD) == [(100,)]
            (problem,) = maintenance.problems
            assert problem.startswith("store maintenance: events failed, retrying: 22008")
            settings = Settings(store=StoreSettings(dsn=dsn))
            await asyncio.to_thread(eventually, lambda: not maintenance.problems, "it is done")
        finally:
            running.cancel()
            await asyncio.wait([running])
    assert [entry["event"] for entry in logs if entry.get("step") == "events"] == [
        "store maintenance failed, retrying; the other steps are done",
        "store maintenance no longer fails",
    ]
    assert failures("quarantine") == 0


def bounds_of(kind: object) -> tuple[int, int]:
    """The smallest and the largest value of an integer that a setting accepts."""
    (meta,) = [each for each in get_args(kind) if isinstance(each, Meta)]
    assert isinstance(meta.gt, int)
    assert isinstance(meta.le, int)
    return meta.gt + 1, meta.le


@pytest.mark.asyncio
@pytest.mark.parametrize("place", [0, 1], ids=["smallest", "largest"])
async def test_no_value_that_a_setting_accepts_makes_a_step_fail(dsn: str, place: int) -> None:
    tables = {
        name: {key: bounds_of(each)[place] for key, each in get_type_hints(kind, include_extras=True).items()}
        for name, kind in (("events", EventsSettings), ("quarantine", QuarantineSettings))
    }
    settings = convert({"store": {"dsn": dsn}} | tables, Settings)
    steps = IndependentSteps(dsn, MaintenanceMetrics())
    execute(dsn, frames(10), f'UPDATE "RetentionSetting" SET "keepDays" = {(1, 36500)[place]}')
    await maintain_store(settings, steps)
    assert steps.problems == []


@pytest.mark.asyncio
async def test_a_relation_whose_retention_cannot_be_enforced_does_not_stop_the_other_relations(dsn: str) -> None:
    steps = IndependentSteps(dsn, MaintenanceMetrics())
    execute(
        dsn,
        frames(1),
        """UPDATE "QuarantinedFrame" SET "createdAt" = now() - INTERVAL '10 days' """,
        """INSERT INTO "RetentionSetting" ("relation", "keepDays") VALUES ('QuarantinedFrame', 1)
        ON CONFLICT ("relation") DO UPDATE SET "keepDays" = 1""",
        # The first of the relations, by name, which is then not found under its name.
        'ALTER TABLE "ApplicationUsageHistory" RENAME TO "Elsewhere"',
    )
    await maintain_store(Settings(store=StoreSettings(dsn=dsn)), steps)
    assert rows(dsn, HELD) == [(0,)]
    (problem,) = [each for each in steps.problems if "retention" in each]
    assert "ApplicationUsageHistory" in problem
