"""A spool file that an earlier version wrote is opened, migrated, read and stored.

`spool_before_line_columns.sql` is such a file as SQL: written by the gates of guestd before the table `frame` had the
columns kind, boot_id, line_seq and mark. It holds numbered lines with marks and without, a plain line, events, a line
that is no JSON, and frames of a broker; its first frame was trimmed, and a line over the size limit was settled.
"""

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from uuid import UUID

import pytest

from guestd.core.transport import Transport
from guestd.rows.batch import Limits
from guestd.spool.file import Entry, Frame, SenderState
from guestd.spool.queue import Spool, open_spool
from guestd.telemetry.registry import Telemetry
from guestd.wire.line import METRICS, LineId, read_line
from support.daemon import add_machine, rows
from support.spooled import Tally

OLD_FILE = Path(__file__).with_name("spool_before_line_columns.sql")
MACHINES = [UUID(f"5b0f4c32-98a5-4d1e-9a0c-0d2a5c1f7e0{number}") for number in range(1, 5)]
NUMBERED, MARKED, PLAIN, OF_BROKER = MACHINES
BOOT_ID = "0d3f3a5e-8d0b-4a55-9c0b-5d5e4a2f7c11"
SPOOL_ID = UUID("d63c5512-8742-4095-b216-bb47b3814ff0")
# What that version would have stored: each sample's CPU figure, and the digest by which it is known.
SAMPLES = [
    (2.0, 2542317182243138328),
    (3.0, 2460772168837875247),
    (4.0, 7584569355942749279),
    (6.0, 4095199175591903389),
    (7.0, 334526838491306300),
    (8.0, 3599673290086305552),
]
NEW_LINE = b'{"type":"metrics","boot_id":"%s","seq":3,"oldest":3,"data":{}}' % BOOT_ID.encode()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A spool directory with the old file."""
    with closing(sqlite3.connect(tmp_path / "spool.db")) as connection:
        connection.executescript(OLD_FILE.read_text())
    return tmp_path


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[Spool]:
    spool = open_spool(directory, max_bytes=10_000_000, share=1.0, metrics=Telemetry().spool)
    running = asyncio.create_task(spool.run())
    try:
        yield spool
    finally:
        spool.seal()
        await running
        spool.close()


async def read_all(spool: Spool) -> list[Frame]:
    return await spool.read(0, max_frames=100, max_bytes=1_000_000)


@pytest.mark.asyncio
async def test_frames_of_an_old_file_are_read_with_what_their_lines_say(directory: Path) -> None:
    async with opened(directory) as spool:
        frames = await read_all(spool)
        assert (spool.spool_id, spool.oldest_seq, spool.last_seq) == (SPOOL_ID, 2, 10)
    assert [(frame.seq, frame.machine_id, frame.kind, frame.line_id) for frame in frames] == [
        (2, NUMBERED, METRICS, LineId(BOOT_ID, 2)),
        (3, MARKED, METRICS, LineId(BOOT_ID, 1, "a" * 16)),
        (4, MARKED, METRICS, LineId(BOOT_ID, 2, "b" * 16)),
        (5, PLAIN, METRICS, None),
        (6, PLAIN, "error_report", None),
        (7, PLAIN, METRICS, None),
        (8, OF_BROKER, METRICS, LineId(BOOT_ID, 1, "d" * 16)),
        (9, OF_BROKER, METRICS, LineId(BOOT_ID, 3, "f" * 16)),
        (10, OF_BROKER, "agent_event", None),
    ]
    assert [frame.transport for frame in frames] == [Transport.VIRTIO] * 6 + [Transport.MQTT] * 3


@pytest.mark.asyncio
async def test_senders_of_an_old_file_continue_where_they_were(directory: Path) -> None:
    async with opened(directory) as spool:
        assert spool.senders_at_open == {
            NUMBERED: SenderState(1764547300020, BOOT_ID, 2),
            MARKED: SenderState(1764547300070, BOOT_ID, 3, "c" * 16),
            PLAIN: SenderState(1764547300120, None, None),
            OF_BROKER: SenderState(1764547300150, BOOT_ID, 3, "f" * 16, -2),
        }


@pytest.mark.asyncio
async def test_an_old_file_takes_new_frames_and_keeps_what_was_read_of_them(directory: Path) -> None:
    for _ in range(2):  # the second time it is migrated already
        async with opened(directory) as spool:
            before = len(await read_all(spool))
            line = read_line(NEW_LINE)
            await spool.append([Entry(NUMBERED, line, SenderState(1764547300200, BOOT_ID, 3))])
            new = (await read_all(spool))[before]
            assert (new.payload, new.kind, new.line_id) == (NEW_LINE, METRICS, LineId(BOOT_ID, 3))
    with closing(sqlite3.connect(directory / "spool.db")) as connection:
        stored = connection.execute("SELECT kind, boot_id, line_seq, mark FROM frame WHERE seq > 10").fetchall()
    assert stored == [("metrics", BOOT_ID, 3, None)] * 2


@pytest.mark.asyncio
async def test_frames_of_an_old_file_are_stored_as_that_version_would_have(directory: Path, dsn: str) -> None:
    for machine_id in MACHINES:
        add_machine(dsn, machine_id)
    shutil.copytree(directory, directory / "copy")
    assert (await store_all(directory, dsn)).frames == {"stored": 8, "stored_in_part": 0, "duplicate": 0}
    assert rows(dsn, 'SELECT "cpuUsagePercent", "frameDigest" FROM "SystemMetrics" ORDER BY 1') == SAMPLES
    assert rows(dsn, 'SELECT "type" FROM "GuestEvent" ORDER BY 1') == [("agent_event",), ("error_report",)]
    assert rows(dsn, 'SELECT "reason", "payload" FROM "QuarantinedFrame"') == [("json", b"rubbish")]
    # A copy under another id brings every frame again: each is recognised.
    again = await store_all(directory / "copy", dsn, new_id=True)
    assert (again.frames["stored"], again.frames["duplicate"]) == (0, 9)


async def store_all(directory: Path, dsn: str, *, new_id: bool = False) -> Tally:
    tally = Tally()
    async with opened(directory) as spool:
        if new_id:
            await spool.rename(0)
        spool.seal()
        await asyncio.wait_for(tally.writer(spool, dsn, Limits(100, 1_000_000, 0.01)).run(), 60)
        assert spool.frames == 0
    return tally
