"""The spool on a real disk."""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from guestd.core.errors import ConfigError
from guestd.core.transport import Transport
from guestd.spool.file import Entry, SenderState
from guestd.spool.queue import Spool, open_spool
from guestd.telemetry.registry import Telemetry
from guestd.wire.line import METRICS, Line, read_line
from support.disk import small_disk_at

MACHINE = UUID("5b0f4c32-98a5-4d1e-9a0c-0d2a5c1f7e11")
EMPTY, NOTHING = read_line(b"{}"), Line(METRICS, None, None)


@asynccontextmanager
async def opened(directory: Path, max_bytes: int = 10_000_000, share: float = 1.0) -> AsyncIterator[Spool]:
    spool = open_spool(directory, max_bytes=max_bytes, share=share, metrics=Telemetry().spool)
    running = asyncio.create_task(spool.run())
    try:
        yield spool
    finally:
        spool.seal()
        await running
        spool.close()


def entry(payload: bytes = b"{}", *, machine_id: UUID = MACHINE, seq: int | None = None) -> Entry:
    return Entry(machine_id, read_line(payload), SenderState(1_760_000_000_123, None if seq is None else "boot", seq))


@pytest.mark.asyncio
async def test_an_appended_frame_is_in_the_file_when_append_returns(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        await spool.append([entry(b"one"), entry(b"two")])
        with sqlite3.connect(tmp_path / "spool.db") as other:
            assert other.execute("SELECT seq, payload FROM frame").fetchall() == [(1, b"one"), (2, b"two")]
        other.close()


@pytest.mark.asyncio
async def test_frames_come_back_in_order_and_with_the_time_of_receipt(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        await asyncio.gather(*(spool.append([entry(b"%d" % number)]) for number in range(100)))
        frames = await spool.read(10, max_frames=1000, max_bytes=1_000_000)
    assert [frame.seq for frame in frames] == list(range(11, 101))
    assert sorted(int(frame.payload) for frame in frames) == list(range(10, 100))
    assert frames[0].received_at.isoformat() == "2025-10-09T08:53:20.123000+00:00"


@pytest.mark.asyncio
async def test_a_read_is_bounded_in_frames_and_bytes_and_gives_one_at_least(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        await spool.append([entry(b"x" * 1000) for _ in range(10)])
        assert len(await spool.read(0, max_frames=3, max_bytes=1_000_000)) == 3
        assert len(await spool.read(0, max_frames=10, max_bytes=2500)) == 2
        assert len(await spool.read(0, max_frames=10, max_bytes=1)) == 1
        assert await spool.read(10, max_frames=10, max_bytes=1000) == []


@pytest.mark.asyncio
async def test_sequence_numbers_are_not_used_again_after_the_spool_was_emptied(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        spool_id = spool.spool_id
        await spool.append([entry() for _ in range(5)])
        await spool.trim(5)
        assert (spool.frames, spool.bytes, spool.oldest_seq) == (0, 0, 6)
    async with opened(tmp_path) as spool:
        assert spool.spool_id == spool_id
        assert spool.oldest_seq == 6
        await spool.append([entry()])
        assert [frame.seq for frame in await spool.read(0, max_frames=9, max_bytes=999)] == [6]


@pytest.mark.asyncio
async def test_what_waits_is_counted_again_after_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        await spool.append([entry(b"x" * 100) for _ in range(7)])
        await spool.trim(2)
        before = (spool.frames, spool.bytes, spool.oldest_seq, spool.last_seq)
    async with opened(tmp_path) as spool:
        assert (spool.frames, spool.bytes, spool.oldest_seq, spool.last_seq) == before == (5, 5 * 164, 3, 7)


@pytest.mark.asyncio
async def test_the_place_of_a_sender_is_kept_with_its_frames(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        await spool.append([entry(seq=7)])
        await spool.append([Entry(MACHINE, NOTHING, SenderState(1_760_000_000_200, "boot", 8, "0123456789abcdef"))])
        assert spool.frames == 1
    async with opened(tmp_path) as spool:
        assert spool.senders_at_open == {MACHINE: SenderState(1_760_000_000_200, "boot", 8, "0123456789abcdef")}


@pytest.mark.asyncio
async def test_the_spool_of_an_earlier_version_goes_on_with_what_it_holds(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        await spool.append([entry(b"kept", seq=7)])
    older = sqlite3.connect(tmp_path / "spool.db")
    older.execute("ALTER TABLE sender DROP COLUMN mark")
    older.close()
    async with opened(tmp_path) as spool:
        assert spool.senders_at_open == {MACHINE: SenderState(1_760_000_000_123, "boot", 7)}
        await spool.append([entry(b"new", seq=8)])
        assert [frame.payload for frame in await spool.read(0, max_frames=9, max_bytes=999)] == [b"kept", b"new"]


@pytest.mark.asyncio
async def test_a_senders_settled_lines_below_its_last_are_kept(tmp_path: Path) -> None:
    for below in (-1, 0, -2, 0b1011, ~((1 << 4096) - 1), (1 << 4096) - 1):
        async with opened(tmp_path) as spool:
            await spool.append([Entry(MACHINE, EMPTY, SenderState(1_760_000_000_200, "boot", 8, below=below))])
        async with opened(tmp_path) as spool:
            assert spool.senders_at_open == {MACHINE: SenderState(1_760_000_000_200, "boot", 8, below=below)}


@pytest.mark.asyncio
async def test_how_a_frame_came_is_kept_with_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        await spool.append([entry(), Entry(MACHINE, EMPTY, SenderState(1_760_000_000_200, None, None), Transport.MQTT)])
    async with opened(tmp_path) as spool:
        frames = await spool.read(0, max_frames=9, max_bytes=999)
    assert [frame.transport for frame in frames] == [Transport.VIRTIO, Transport.MQTT]


@pytest.mark.asyncio
async def test_a_file_of_an_earlier_version_is_gone_on_with(tmp_path: Path) -> None:
    old = sqlite3.connect(tmp_path / "spool.db")
    old.executescript(
        """
        CREATE TABLE frame (
            seq INTEGER PRIMARY KEY AUTOINCREMENT, machine_id BLOB NOT NULL, received_at_ms INTEGER NOT NULL,
            payload BLOB NOT NULL
        ) STRICT;
        CREATE TABLE sender (
            machine_id BLOB PRIMARY KEY, received_at_ms INTEGER NOT NULL, boot_id TEXT, seq INTEGER
        ) STRICT, WITHOUT ROWID;
        CREATE TABLE identity (spool_id TEXT NOT NULL) STRICT;
        """
    )
    with old:
        old.execute("INSERT INTO identity VALUES ('00000000-0000-4000-8000-000000000009')")
        old.execute("INSERT INTO frame VALUES (41, ?, 1, x'7b7d')", (MACHINE.bytes,))
        old.execute("INSERT INTO sender VALUES (?, 1, 'boot', 7)", (MACHINE.bytes,))
    old.close()
    async with opened(tmp_path) as spool:
        assert spool.spool_id == UUID("00000000-0000-4000-8000-000000000009")
        assert spool.senders_at_open == {MACHINE: SenderState(1, "boot", 7)}
        await spool.append([Entry(MACHINE, EMPTY, SenderState(2, None, None), Transport.MQTT)])
        frames = await spool.read(0, max_frames=9, max_bytes=999)
    assert [(frame.seq, frame.transport) for frame in frames] == [(41, Transport.VIRTIO), (42, Transport.MQTT)]


@pytest.mark.asyncio
async def test_a_full_spool_makes_its_callers_wait_until_there_is_room(tmp_path: Path) -> None:
    async with opened(tmp_path, max_bytes=1000) as spool:
        await spool.append([entry(b"x" * 800)])
        other = uuid4()
        assert not spool.has_room(other, 200)
        waiting = asyncio.create_task(spool.wait_for_room(other, 200))
        await asyncio.sleep(0)
        assert not waiting.done()
        await spool.trim(1)
        await asyncio.wait_for(waiting, 5)


@pytest.mark.asyncio
async def test_room_is_given_once_though_many_wait_for_it(tmp_path: Path) -> None:
    async def waiter() -> None:
        machine_id = uuid4()
        await spool.wait_for_room(machine_id, 600)
        await spool.append([entry(b"x" * 500, machine_id=machine_id)])

    async with opened(tmp_path, max_bytes=2000) as spool:
        await spool.append([entry(b"x" * 1800)])
        waiting = [asyncio.create_task(waiter()) for _ in range(50)]
        for up_to in range(1, 52):
            await spool.trim(up_to)
            await asyncio.wait_for(spool.append([]), 5)
            assert spool.bytes <= 2000
            if all(task.done() for task in waiting):
                break
        await asyncio.wait_for(asyncio.gather(*waiting), 5)


@pytest.mark.asyncio
async def test_one_machine_may_fill_only_its_share(tmp_path: Path) -> None:
    async with opened(tmp_path, max_bytes=10_000, share=0.1) as spool:
        assert spool.has_room(MACHINE, 5_000), "a first frame is never refused for its machine's share"
        await spool.append([entry(b"x" * 900)])
        assert not spool.has_room(MACHINE, 100)
        assert spool.has_room(uuid4(), 100)


@pytest.fixture
def taken(tmp_path: Path) -> Iterator[Path]:
    spool = open_spool(tmp_path, max_bytes=1000, share=1, metrics=Telemetry().spool)
    yield tmp_path
    spool.close()


def test_a_second_daemon_on_the_same_directory_is_refused(taken: Path) -> None:
    with pytest.raises(ConfigError, match="another guestd is running on it"):
        open_spool(taken, max_bytes=1000, share=1, metrics=Telemetry().spool)


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/spool: Not a directory"):
        open_spool(tmp_path / "file" / "spool", max_bytes=1000, share=1, metrics=Telemetry().spool)


@pytest.mark.parametrize("damage", ["overwritten", "truncated", "not a database"])
@pytest.mark.asyncio
async def test_a_damaged_file_is_set_aside_and_a_new_spool_begins(tmp_path: Path, damage: str) -> None:
    async with opened(tmp_path) as spool:
        old_id = spool.spool_id
        await spool.append([entry(b"x" * 3000) for _ in range(50)])
    _damage(tmp_path / "spool.db", damage)
    async with opened(tmp_path) as spool:
        assert spool.spool_id != old_id
        assert spool.frames == 0
        await spool.append([entry()])
    assert len(_set_aside(tmp_path)) == 1


def _damage(file: Path, damage: str) -> None:
    content = file.read_bytes()
    if damage == "overwritten":
        file.write_bytes(content[:8192] + b"\xff" * 8192 + content[16384:])
    elif damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    else:
        file.write_bytes(b"\xff" * 5000)


def _set_aside(directory: Path) -> list[Path]:
    return list(directory.glob("spool.db.damaged-*"))


@pytest.mark.asyncio
async def test_a_file_that_another_process_holds_is_left_as_it_is(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        await spool.append([entry()])
    other = sqlite3.connect(tmp_path / "spool.db", isolation_level=None)
    other.execute("PRAGMA locking_mode=EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(OSError, match="database is locked"):
        open_spool(tmp_path, max_bytes=1000, share=1, metrics=Telemetry().spool)
    other.close()
    assert _set_aside(tmp_path) == []
    async with opened(tmp_path) as spool:
        assert spool.frames == 1


@pytest.mark.asyncio
async def test_a_trim_that_the_disk_refuses_is_made_up_for_by_the_next(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        await spool.append([entry() for _ in range(3)])
        other = sqlite3.connect(tmp_path / "spool.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        await spool.trim(1)
        assert (spool.frames, spool.error) == (3, "database is locked")
        other.close()
        await spool.trim(2)
        assert (spool.frames, spool.oldest_seq) == (1, 3)


@pytest.mark.asyncio
async def test_an_empty_append_waits_for_what_was_appended_before(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        other = sqlite3.connect(tmp_path / "spool.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        first, second = (asyncio.create_task(spool.append(each)) for each in ([entry()], []))
        done, _ = await asyncio.wait([first, second], timeout=0.1)
        assert not done
        other.close()
        await asyncio.wait_for(second, 30)
        assert first.done()


@pytest.mark.asyncio
async def test_a_frame_that_is_larger_than_the_spool_is_taken_while_it_is_empty(tmp_path: Path) -> None:
    async with opened(tmp_path, max_bytes=100) as spool:
        assert spool.has_room(MACHINE, 1000)
        await spool.append([entry(b"x" * 1000)])
        assert not spool.has_room(uuid4(), 1)


@pytest.mark.asyncio
async def test_a_spool_is_sealed_only_when_its_last_frame_is_on_disk(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        other = sqlite3.connect(tmp_path / "spool.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        appending = asyncio.create_task(spool.append([entry()]))
        await asyncio.sleep(0)
        spool.seal()
        await asyncio.wait([appending], timeout=0.05)
        assert not spool.has_ended
        other.close()
        await asyncio.wait_for(appending, 30)
        assert spool.last_seq == 1


@pytest.mark.asyncio
async def test_an_emptied_file_gives_its_room_back_when_the_reserve_file_finds_none(small_disk: Path) -> None:
    async with opened(small_disk, max_bytes=2**30) as spool:
        reserve_file = small_disk / "ballast"
        for _ in range(20):
            await spool.append([entry(b"x" * 1_000_000, machine_id=uuid4())])
        reserve_file.unlink()
        # 4 MB less than the reserve file needs are left beside the file, whose pages will all be free.
        (small_disk / "other").write_bytes(b"x" * (_free_bytes(small_disk) - 12_000_000))
        await spool.trim(spool.last_seq)
        assert reserve_file.exists()
        await asyncio.wait_for(spool.append([entry()]), 10)


def _free_bytes(directory: Path) -> int:
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """64 MiB."""
    with small_disk_at(tmp_path, mebibytes=64):
        yield tmp_path
