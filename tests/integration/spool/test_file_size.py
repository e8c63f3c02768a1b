"""The spool's file keeps to `spool.max_bytes`, whatever sizes frames have, and uses what it may."""

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import count, cycle
from pathlib import Path
from uuid import UUID

import pytest

from guestd.spool.file import Entry, SenderState, read_sizes
from guestd.spool.pages import Pages
from guestd.spool.queue import Spool, open_spool
from guestd.telemetry.registry import Telemetry
from guestd.wire.line import Header, Line

pytestmark = pytest.mark.asyncio
MACHINE = UUID(int=1)
BOOT_ID = "01234567-0123-0123-0123-0123456789ab"
MARK = "0123456789abcdef"
MAX_BYTES = 4 * 2**20
# Pages of the tables beside the frames', and of their indexes.
OTHER_BYTES = 16 * 16 * 1024
chance = random.Random(1)
SIZES: dict[str, Callable[[], Iterator[int]]] = {
    "tiny": lambda: cycle([10]),
    "over a third of a page": lambda: cycle([5_500]),
    "over half a page": lambda: cycle([8_250]),
    "short and nearly a page": lambda: cycle([200, 16_150]),
    "over a page": lambda: cycle([16_400]),
    "over one and a half pages": lambda: cycle([24_700]),
    "of our agent": lambda: cycle([40_000, 900, 900, 900]),
    "any": lambda: (chance.randrange(1, 40_000) for _ in count()),
}


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[Spool]:
    spool = open_spool(directory, max_bytes=MAX_BYTES, share=1, metrics=Telemetry().spool)
    running = asyncio.create_task(spool.run())
    try:
        yield spool
    finally:
        spool.seal()
        await running
        spool.close()


def frame(number: int, size_bytes: int) -> Entry:
    line = Line("metrics", Header(BOOT_ID, number, 1, None, MARK), b"x" * size_bytes)
    return Entry(MACHINE, line, SenderState(1_800_000_000_000 + number, BOOT_ID, number, MARK))


async def fill(spool: Spool, sizes: Iterator[int]) -> None:
    while spool.has_room(MACHINE, 100_000):
        group: list[Entry] = []
        while sum(entry.size_bytes for entry in group) < 60_000:
            group.append(frame(spool.last_seq + 1 + len(group), next(sizes)))
        await spool.append(group)


def file_bytes(directory: Path) -> int:
    with sqlite3.connect(directory / "spool.db") as connection:
        ((pages,),) = connection.execute("PRAGMA page_count")
        ((page_bytes,),) = connection.execute("PRAGMA page_size")
    connection.close()
    return int(pages * page_bytes)


@pytest.mark.parametrize("kind", SIZES)
async def test_the_file_of_a_full_spool_is_as_large_as_its_limit_says(tmp_path: Path, kind: str) -> None:
    sizes = SIZES[kind]()
    async with opened(tmp_path) as spool:
        await fill(spool, sizes)
        assert 0.8 * MAX_BYTES <= file_bytes(tmp_path) <= MAX_BYTES + OTHER_BYTES
        # Pages of frames that are stored are used again.
        for _ in range(5):
            await spool.trim(spool.oldest_seq + spool.frames * chance.randrange(1, 10) // 10)
            await fill(spool, sizes)
            assert file_bytes(tmp_path) <= MAX_BYTES + OTHER_BYTES
        counted = spool.bytes
    async with opened(tmp_path) as spool:
        assert abs(spool.bytes - counted) <= 2 * 16 * 1024


async def test_rows_that_share_pages_are_counted_as_they_are() -> None:
    pages = Pages(16 * 1024)
    assert [pages.add(100) for _ in range(10)] == [100] * 10
    assert sum(pages.add(9_000) for _ in range(100)) == pytest.approx(100 * 16 * 1024, rel=0.02)


async def test_the_sizes_of_frames_are_found_without_reading_their_payloads(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        await fill(spool, cycle([40_000]))
        frames = spool.frames

    def count_read_bytes() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    with sqlite3.connect(tmp_path / "spool.db") as connection:
        before = count_read_bytes()
        assert len([*read_sizes(connection)]) == frames
        assert count_read_bytes() - before < file_bytes(tmp_path) / 4
    connection.close()
