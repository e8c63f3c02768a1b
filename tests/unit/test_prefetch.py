"""The batch ahead of the writer: prepared once, whatever becomes of the query about its timestamps."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from guestd.core.errors import StoreUnavailable
from guestd.ingest.prefetch import Prefetch
from guestd.ingest.prepare import Preparer
from guestd.rows.batch import Limits, Moment, Prepared
from guestd.rows.model import Rows
from guestd.telemetry.registry import Telemetry
from support.spooled import entry, line, spooled

DEADLINE_SECONDS = 10
MACHINE = UUID(int=1)
LIMITS = Limits(100, 1_000_000, 0.01)


async def all_free(_: Sequence[Moment]) -> set[Moment]:
    return set()


@pytest.mark.asyncio
async def test_a_batch_whose_query_fails_is_not_prepared_again(tmp_path: Path) -> None:
    told: list[Sequence[Prepared]] = []

    async def lost(_: Sequence[Moment]) -> set[Moment]:
        raise StoreUnavailable("the connection is lost")

    async with spooled(tmp_path, MACHINE, [line(1), line(2)]) as spool, asyncio.timeout(DEADLINE_SECONDS):
        prefetch = Prefetch(spool, Preparer(Telemetry().writer.preparing), LIMITS, [told.append])
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await prefetch.get(0, lost)
        batch = await prefetch.get(0, all_free)
        await prefetch.discard()
    (prepared,) = told
    assert [frame.seq for frame in prepared] == [1, 2]
    # The rows have ids of their own: another preparation would have made others.
    assert [frame.content.shared for frame in batch if isinstance(frame.content, Rows)] == [
        frame.content.shared for frame in prepared if isinstance(frame.content, Rows)
    ]


@pytest.mark.asyncio
async def test_the_next_batch_is_prepared_while_the_one_before_is_written(tmp_path: Path) -> None:
    prepared = asyncio.Event()
    async with spooled(tmp_path, MACHINE, [line(1)]) as spool, asyncio.timeout(DEADLINE_SECONDS):
        prefetch = Prefetch(spool, Preparer(Telemetry().writer.preparing), LIMITS, [lambda _: prepared.set()])
        first = await prefetch.get(0, all_free)
        prepared.clear()
        prefetch.start(first)
        await spool.append([entry(MACHINE, int(datetime.now(UTC).timestamp() * 1000) + 10_000, line(2))])
        await prepared.wait()
        # Nobody has asked for it yet: the writer waits for the server.
        assert [frame.seq for frame in await prefetch.get(1, all_free)] == [2]
        await prefetch.discard()
