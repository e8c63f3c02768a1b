"""The batch ahead of the writer: prepared while the one before is written."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from guestd.ingest.prefetch import Prefetch
from guestd.ingest.prepare import Preparer
from guestd.rows.batch import Limits
from guestd.telemetry.registry import Telemetry
from support.spooled import entry, line, spooled

DEADLINE_SECONDS = 10
MACHINE = UUID(int=1)
LIMITS = Limits(100, 1_000_000, 0.01)


@pytest.mark.asyncio
async def test_the_next_batch_is_prepared_while_the_one_before_is_written(tmp_path: Path) -> None:
    prepared = asyncio.Event()
    async with spooled(tmp_path, MACHINE, [line(1)]) as spool, asyncio.timeout(DEADLINE_SECONDS):
        prefetch = Prefetch(spool, Preparer(Telemetry().writer.preparing), LIMITS, [lambda _: prepared.set()])
        first = await prefetch.get(0)
        prepared.clear()
        prefetch.start(first)
        await spool.append([entry(MACHINE, int(datetime.now(UTC).timestamp() * 1000) + 10_000, line(2))])
        await prepared.wait()
        # Nobody has asked for it yet: the writer waits for the server.
        assert [frame.seq for frame in await prefetch.get(1)] == [2]
        await prefetch.discard()
