"""A store that answers, and takes longer for a batch than the batch's deadline: a trigger makes each row slow."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from tools.harness.waiting import eventually_async

from guestd.ingest.writer import Writer
from guestd.rows.batch import Limits
from guestd.spool.queue import Spool
from guestd.telemetry.registry import Telemetry
from support.daemon import add_machine, execute, rows
from support.spooled import line, spooled

pytestmark = pytest.mark.asyncio
# A whole batch of the frames below takes longer.
WRITE_SECONDS = 2.0
LIMITS = Limits(100, 1_000_000, 0.01)
FRAMES = 'SELECT "cpuUsagePercent" FROM "SystemMetrics" ORDER BY "receivedAt"'
TRIGGER = """CREATE TRIGGER slow BEFORE INSERT ON "SystemMetrics" FOR EACH ROW EXECUTE FUNCTION public.make_slow()"""


def make_slow(sleep: str) -> str:
    return f"""CREATE OR REPLACE FUNCTION public.make_slow() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN {sleep} RETURN NEW; END $$"""


@contextlib.asynccontextmanager
async def writing(spool: Spool, dsn: str) -> AsyncIterator[tuple[Writer, Telemetry]]:
    telemetry = Telemetry()
    writer = Writer(spool, dsn=dsn, limits=LIMITS, metrics=telemetry.writer, write_seconds=WRITE_SECONDS)
    spool.seal()
    running = asyncio.create_task(writer.run())
    try:
        yield writer, telemetry
    finally:
        running.cancel()
        await asyncio.wait([running])


def value(telemetry: Telemetry, name: str) -> float:
    return telemetry.registry.get_sample_value(name) or 0.0


def events(logged: Sequence[MutableMapping[str, Any]]) -> list[MutableMapping[str, Any]]:
    return [each for each in logged if str(each["event"]).startswith("store did not finish")]


async def test_a_batch_that_takes_longer_than_its_deadline_is_stored_in_parts(tmp_path: Path, dsn: str) -> None:
    machine_id = add_machine(dsn)
    execute(dsn, make_slow("PERFORM pg_sleep(0.1);"), TRIGGER)
    with capture_logs() as logged:
        async with (
            spooled(tmp_path, machine_id, [line(place / 2) for place in range(40)]) as spool,
            writing(spool, dsn) as (_, telemetry),
        ):
            await eventually_async(lambda: spool.frames == 0, "all frames are stored")
            assert value(telemetry, "guestd_store_lost_total") >= 1
    assert rows(dsn, FRAMES) == [(place / 2,) for place in range(40)]
    assert next(each["frames"] for each in events(logged)) == 40


async def test_a_frame_that_alone_takes_longer_is_named_and_stored_once_when_the_cause_is_gone(
    tmp_path: Path, dsn: str
) -> None:
    machine_id = add_machine(dsn)
    execute(dsn, make_slow("""IF NEW."cpuUsagePercent" = 99.5 THEN PERFORM pg_sleep(60); END IF;"""), TRIGGER)
    with capture_logs() as logged:
        async with (
            spooled(tmp_path, machine_id, [line(cpu) for cpu in (1, 2, 99.5, 3, 4)]) as spool,
            writing(spool, dsn) as (writer, telemetry),
        ):
            await eventually_async(lambda: value(telemetry, "guestd_frame_timeouts") >= 3, "three time-outs")
            assert f"frame 3 of machine {machine_id}" in (writer.problem or "")
            assert rows(dsn, FRAMES) == [(1,), (2,)]
            execute(dsn, make_slow(""))
            await eventually_async(lambda: spool.frames == 0, "all frames are stored")
            assert value(telemetry, "guestd_frame_timeouts") == 0
    assert rows(dsn, FRAMES) == [(1,), (2,), (99.5,), (3,), (4,)]
    assert rows(dsn, 'SELECT count(*) FROM "QuarantinedFrame"') == [(0,)]
    named = [(each["machine"], each["seq"], each["timeouts"]) for each in events(logged) if "seq" in each]
    assert named[:3] == [(str(machine_id), 3, timeouts) for timeouts in (1, 2, 3)]
