"""The durable queue between sources and the store: a SQLite file in WAL mode with synchronous=FULL.

A frame that `append` has returned for is on disk. Appends are committed in groups by one thread: while a commit is
on its way to the disk the next group gathers. Sequence numbers are never used again (AUTOINCREMENT), and `spool_id`
names this very file, so that the store's ledger can tell which frames of which spool it already has.

With each frame the place of its sender is kept (docs/wire.md), in the same transaction: a line that was fsynced but not
acknowledged before a crash is known as a duplicate when it is sent again.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import IO, TypeVar
from uuid import UUID, uuid4

import structlog

from guestd.errors import ConfigError
from guestd.normalise import Channel

log = structlog.get_logger()

T = TypeVar("T")

_FILE = "spool.db"
_BALLAST_FILE = "ballast"
# A frame fits on few pages then, at two thirds of the work; still larger ones would make each small commit dearer.
_PAGE_BYTES = 16 * 1024
# SQLite's log is moved into the file when it is so long.
_LOG_BYTES = 4 * 1024 * 1024
# Rows in one statement: other threads get the interpreter once for them all, and not once for each.
_ROWS_AT_ONCE = 50
# Enough to move the whole of SQLite's log (what is due, and the largest group commit) into the file.
_BALLAST_BYTES = 16 * 1024 * 1024
_SCHEMA = """
CREATE TABLE IF NOT EXISTS frame (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    machine_id BLOB NOT NULL,
    received_at_ms INTEGER NOT NULL,
    payload BLOB NOT NULL,
    channel TEXT NOT NULL DEFAULT 'virtio'
) STRICT;
CREATE TABLE IF NOT EXISTS sender (
    machine_id BLOB PRIMARY KEY,
    received_at_ms INTEGER NOT NULL,
    boot_id TEXT,
    seq INTEGER,
    mark TEXT,
    below BLOB
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS identity (spool_id TEXT NOT NULL, unsettled_seq INTEGER) STRICT;
"""
# What files of earlier versions lack. Their frames are from virtio channels, the only ones that there were.
_ADDED = (
    ("frame", "channel", "TEXT NOT NULL DEFAULT 'virtio'"),
    ("sender", "mark", "TEXT"),
    ("sender", "below", "BLOB"),
    ("identity", "unsettled_seq", "INTEGER"),
)
# A frame's share of the file beside its payload: keys, page headers, the sender row.
_OVERHEAD_BYTES = 64


@dataclass(frozen=True, slots=True)
class Sender:
    """How far one machine's stream is on disk: the last receive time, and the last line if its lines are numbered.

    `below` tells which lines before the last one are settled, as in `sequence`; -1: all of them.
    """

    received_at_ms: int
    boot_id: str | None
    seq: int | None
    mark: str | None = None
    below: int = -1


@dataclass(frozen=True, slots=True)
class Entry:
    """One frame to append; without a payload only its sender's place is kept (a numbered line that was refused)."""

    machine_id: UUID
    received_at_ms: int
    payload: bytes | None
    boot_id: str | None = None
    seq: int | None = None
    mark: str | None = None
    channel: Channel = Channel.VIRTIO
    below: int = -1

    @property
    def size_bytes(self) -> int:
        """What it will occupy."""
        return len(self.payload) + _OVERHEAD_BYTES if self.payload is not None else 0


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame as the spool gives it back."""

    seq: int
    machine_id: UUID
    received_at: datetime
    payload: bytes
    channel: Channel


class Spool:
    """One directory, one daemon. Create it with `open_spool`; `run` must run for `append` to return."""

    def __init__(
        self, directory: Path, lock: IO[bytes], writing: sqlite3.Connection, *, max_bytes: int, share_bytes: int
    ) -> None:
        self._lock = lock
        self._file = directory / _FILE
        self._inode = _inode(self._file)
        self._ballast = directory / _BALLAST_FILE
        self._writing = writing
        self._reading = _connect(directory / _FILE)
        self._write_thread = ThreadPoolExecutor(1, thread_name_prefix="spool-write")
        self._read_thread = ThreadPoolExecutor(1, thread_name_prefix="spool-read")
        self.max_bytes = max_bytes
        self._share_bytes = share_bytes
        self.spool_id = _identity(writing)
        self.last_seq = _last_issued(writing)
        self.unsettled_seq = _unsettled_seq(writing, self.last_seq)
        self.senders_at_open = _senders(writing)
        self._sizes: deque[tuple[int, UUID, int]] = deque(_sizes(writing))
        self._bytes_by_machine: Counter[UUID] = Counter()
        for _, machine_id, size_bytes in self._sizes:
            self._bytes_by_machine[machine_id] += size_bytes
        self.bytes = sum(self._bytes_by_machine.values())
        self._pending: list[tuple[Sequence[Entry], asyncio.Future[None]]] = []
        self._work = asyncio.Event()
        self._trimmed = asyncio.Event()
        self._sealed = False
        self._has_ended = False
        self.appended = asyncio.Event()
        self.error: str | None = None
        self.commit_seconds: Callable[[float], None] = lambda _: None
        # Last, for opening needs room as well.
        _put(self._ballast)

    @property
    def frames(self) -> int:
        """Frames that wait for the store."""
        return len(self._sizes)

    @property
    def oldest_seq(self) -> int:
        """The lowest sequence number still held; one past the last issued when the spool is empty."""
        return self._sizes[0][0] if self._sizes else self.last_seq + 1

    def has_room(self, machine_id: UUID, size_bytes: int) -> bool:
        """Whether frames fit, and their machine's share; into an empty spool, or share, any one call's frames do."""
        return self.fits(size_bytes) and self.has_share(machine_id, size_bytes)

    def fits(self, size_bytes: int, behind_bytes: int = 0) -> bool:
        """Whether a frame fits, behind others that are about to be appended; into an empty spool any one does."""
        taken_bytes = self.bytes + behind_bytes
        return not taken_bytes or taken_bytes + size_bytes <= self.max_bytes

    def has_share(self, machine_id: UUID, size_bytes: int, behind_bytes: int = 0) -> bool:
        """The same for its machine's share, behind others of that machine."""
        taken_bytes = self._bytes_by_machine.get(machine_id, 0) + behind_bytes
        return not taken_bytes or taken_bytes + size_bytes <= self._share_bytes

    async def room(self, machine_id: UUID, size_bytes: int) -> None:
        """Wait until `has_room`."""
        while not self.has_room(machine_id, size_bytes):
            self._trimmed.clear()
            await self._trimmed.wait()

    async def append(self, entries: Sequence[Entry]) -> None:
        """Put frames on disk; returns after the fsync of these and of all that was appended before them.

        Nothing of it is lost if the caller is cancelled meanwhile: the group goes to disk without it.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append((entries, done))
        self._work.set()
        await done

    async def run(self) -> None:
        """Commit what is pending, group after group, until `seal`. A failing disk is retried.

        OSError when the file was deleted, as soon as what it held is stored.
        """
        while self._pending or not self._sealed:
            await self._work.wait()
            self._work.clear()
            await self._flush()
        # Whoever waits for frames learns that there will be no more.
        self._has_ended = True
        self.appended.set()

    def seal(self) -> None:
        """Nothing more will be appended: `run` ends when what is pending is on disk."""
        self._sealed = True
        self._work.set()

    @property
    def is_sealed(self) -> bool:
        """Whether the last frame has been appended and is on disk."""
        return self._has_ended

    async def _flush(self) -> None:
        group, self._pending = self._pending, []
        if not group:
            return
        entries = [entry for some, _ in group for entry in some]
        await self._commit_until_done(entries)
        for _, done in group:
            if not done.done():
                done.set_result(None)
        self.appended.set()

    async def _commit_until_done(self, entries: list[Entry]) -> None:
        if not entries:
            return
        loop = asyncio.get_running_loop()
        while True:
            started = time.perf_counter()
            try:
                first_seq = await loop.run_in_executor(self._write_thread, self._commit_or_make_room, entries)
            except sqlite3.OperationalError as why:
                self.error = str(why)
                log.error("the spool cannot be written, nothing more is acknowledged", error=self.error)
                await asyncio.sleep(1)
                if self._inode != _inode(self._file) and not self._sizes:
                    raise OSError(f"{self._file}: {self.error}; what it held is stored, a new one is to begin") from why
                continue
            self.error = None
            self.commit_seconds(time.perf_counter() - started)
            self._account(entries, first_seq)
            return

    def _account(self, entries: list[Entry], first_seq: int) -> None:
        seq = first_seq
        for entry in entries:
            if entry.payload is None:
                continue
            self._sizes.append((seq, entry.machine_id, entry.size_bytes))
            self._bytes_by_machine[entry.machine_id] += entry.size_bytes
            self.bytes += entry.size_bytes
            self.last_seq = seq
            seq += 1

    def _commit_or_make_room(self, entries: list[Entry]) -> int:
        if self._inode != _inode(self._file):
            # SQLite would go on in a file without a name. What is in there can still be read, and stored.
            raise sqlite3.OperationalError("its file was deleted or replaced")
        if not self._ballast.exists():
            # What is left of the disk is for trimming. The ballast comes first, then new frames.
            self._restore_ballast()
            if not self._ballast.exists():
                raise sqlite3.OperationalError("the disk is full")
        try:
            return self._commit(entries)
        except sqlite3.OperationalError:
            # On a full disk the file may have free pages, and only its log no room to grow.
            self._writing.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return self._commit(entries)

    def _commit(self, entries: list[Entry]) -> int:
        """One transaction; returns the first sequence number it gave out (they follow each other)."""
        first_seq = self.last_seq + 1
        frames = [entry for entry in entries if entry.payload is not None]
        senders = {entry.machine_id: entry for entry in entries}
        with self._writing:
            self._writing.execute("BEGIN IMMEDIATE")
            _write_rows(
                self._writing,
                "INSERT INTO frame (seq, machine_id, received_at_ms, payload, channel)",
                [
                    (seq, entry.machine_id.bytes, entry.received_at_ms, entry.payload, entry.channel.value)
                    for seq, entry in enumerate(frames, first_seq)
                ],
            )
            _write_rows(
                self._writing,
                "REPLACE INTO sender (machine_id, received_at_ms, boot_id, seq, mark, below)",
                [
                    (key.bytes, entry.received_at_ms, entry.boot_id, entry.seq, entry.mark, _as_bytes(entry.below))
                    for key, entry in senders.items()
                ],
            )
        return first_seq

    async def read(self, after_seq: int, *, max_frames: int, max_bytes: int) -> list[Frame]:
        """The next frames behind `after_seq`, in order, at least one if there is any."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._read_thread, self._read, after_seq, max_frames, max_bytes)

    def _read(self, after_seq: int, max_frames: int, max_bytes: int) -> list[Frame]:
        rows = self._reading.execute(
            "SELECT seq, machine_id, received_at_ms, payload, channel FROM frame WHERE seq > ? ORDER BY seq LIMIT ?",
            (after_seq, max_frames),
        )
        frames: list[Frame] = []
        total_bytes = 0
        for seq, machine_id, received_at_ms, payload, channel in rows:
            total_bytes += len(payload)
            if frames and total_bytes > max_bytes:
                break
            received_at = from_milliseconds(received_at_ms)
            frames.append(Frame(seq, UUID(bytes=machine_id), received_at, payload, Channel(channel)))
        rows.close()
        return frames

    async def trim(self, up_to_seq: int) -> None:
        """Forget frames that the store has committed."""
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._write_thread, self._delete, up_to_seq)
        except sqlite3.OperationalError as why:
            # The ledger has moved on: what is still here is skipped, and the next trim takes it along.
            self.error = str(why)
            log.error("the spool cannot be trimmed", error=self.error)
            return
        while self._sizes and self._sizes[0][0] <= up_to_seq:
            _, machine_id, size_bytes = self._sizes.popleft()
            self._bytes_by_machine[machine_id] -= size_bytes
            if not self._bytes_by_machine[machine_id]:
                del self._bytes_by_machine[machine_id]
            self.bytes -= size_bytes
        self.error = None
        self._trimmed.set()

    def _delete(self, up_to_seq: int) -> None:
        self._with_ballast(lambda: self._writing.execute("DELETE FROM frame WHERE seq <= ?", (up_to_seq,)))
        self._restore_ballast()

    def _with_ballast(self, write: Callable[[], T]) -> T:
        """On a full disk even deleting needs room, for the log of what changes: that is what the ballast is for."""
        try:
            return write()
        except sqlite3.OperationalError as why:
            if "locked" in str(why) or not self._ballast.exists():
                raise
            self._ballast.unlink()
            written = write()
            self._writing.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            log.warning("the spool's disk is full: its ballast was given up to empty it")
            return written

    def _restore_ballast(self) -> None:
        """Set room aside again; where there is none, and nothing waits any more, the file gives back its own."""
        _put(self._ballast)
        if self._ballast.exists() or self._writing.execute("SELECT EXISTS (SELECT 1 FROM frame)").fetchone() != (0,):
            return
        self._writing.execute("VACUUM")
        self._writing.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        _put(self._ballast)

    async def settle(self) -> None:
        """The store's ledger and this file agree: nothing that was issued before is in doubt any more.

        Returns when the file says so. Until then nothing may be stored: after a crash the ledger would be ahead of what
        the file says of itself, as if an older copy of it had come back.
        """
        await self._until_written(lambda: self._writing.execute("UPDATE identity SET unsettled_seq = NULL"))

    async def rename(self, stored_seq: int) -> None:
        """Take a new identity: the store's ledger knows frames of the old one that this file never issued.

        What is stored goes in the same transaction, for under the new identity nobody would know.
        """
        self.spool_id = await self._until_written(lambda: _new_identity(self._writing, stored_seq))

    async def _until_written(self, write: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        while True:
            try:
                written = await loop.run_in_executor(self._write_thread, self._with_ballast, write)
            except sqlite3.OperationalError as why:
                self.error = str(why)
                log.error("the spool cannot be written, nothing is stored", error=self.error)
                await asyncio.sleep(1)
                continue
            self.error = None
            return written

    def close(self) -> None:
        """Give the directory free."""
        self._write_thread.shutdown()
        self._read_thread.shutdown()
        self._reading.close()
        self._writing.close()
        self._lock.close()


def open_spool(directory: Path, *, max_bytes: int, share: float) -> Spool:
    """Open the spool of a directory, or begin one; a damaged file is set aside. `share` is a machine's part, 0-1.

    Raises ConfigError when another daemon has it or it cannot be made, OSError when the disk does not let us for now.
    """
    lock, ballast = _lock(directory), directory / _BALLAST_FILE
    while True:
        try:
            writing = _opened_or_begun(directory)
            return Spool(directory, lock, writing, max_bytes=max_bytes, share_bytes=int(max_bytes * share))
        except sqlite3.OperationalError as why:
            # A full or failing disk, a file that another process holds: the frames are sound.
            if ballast.exists() and "full" in str(why):
                log.warning("the spool's disk is full: its ballast was given up to open it")
                ballast.unlink()
                continue
            lock.close()
            raise OSError(f"spool.directory {directory}: {why}") from why


def _opened_or_begun(directory: Path) -> sqlite3.Connection:
    try:
        return _opened(directory / _FILE)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as why:
        aside = directory / f"{_FILE}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S}"
        log.error("the spool file is damaged and was set aside", file=str(aside), error=str(why))
        for suffix in ("", "-wal", "-shm"):
            part = directory / (_FILE + suffix)
            if part.exists():
                part.rename(aside.with_name(aside.name + suffix))
        return _opened(directory / _FILE)


def from_milliseconds(milliseconds: int) -> datetime:
    """Unix milliseconds as a time, exactly."""
    return datetime.fromtimestamp(milliseconds // 1000, UTC).replace(microsecond=milliseconds % 1000 * 1000)


def _lock(directory: Path) -> IO[bytes]:
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o750)
        lock = (directory / "lock").open("ab")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ConfigError(f"spool.directory {directory}: another guestd is running on it") from None
    except OSError as why:
        raise ConfigError(f"spool.directory {directory}: {why.strerror}") from why
    return lock


def _inode(file: Path) -> int | None:
    try:
        return file.stat().st_ino
    except OSError:
        return None


def _put(ballast: Path) -> None:
    """Set room aside on the disk; where there is none now, the next trim tries again."""
    if ballast.exists():
        return
    try:
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, _BALLAST_BYTES)
    except OSError:
        ballast.unlink(missing_ok=True)


def _connect(file: Path) -> sqlite3.Connection:
    # Used by one thread at a time; transactions are begun by hand. Statements are not kept, for SQLite would keep with
    # each a copy of the frames that it wrote last.
    return sqlite3.connect(file, check_same_thread=False, isolation_level=None, cached_statements=0)


def _opened(file: Path) -> sqlite3.Connection:
    connection = _connect(file)
    try:
        connection.execute(f"PRAGMA page_size={_PAGE_BYTES}")  # of a new file; others stay as they are
        connection.execute("PRAGMA journal_mode=WAL")
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
        connection.execute(f"PRAGMA wal_autocheckpoint={_LOG_BYTES // page_bytes}")
        connection.execute("PRAGMA synchronous=FULL")
        # Debian's SQLite overwrites what it deletes unless told not to: trimming would write as much as it frees,
        # and on a full disk need room for it.
        connection.execute("PRAGMA secure_delete=OFF")
        connection.executescript(_SCHEMA)
        for table, column, definition in _ADDED:
            _add_column(connection, table, column, definition)
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)  # noqa: TRY301 -- one way out for every kind of damage
        if connection.execute("SELECT count(*) FROM identity").fetchone() == (0,):
            _new_identity(connection, 0)
    except BaseException:
        connection.close()
        raise
    return connection


def _write_rows(connection: sqlite3.Connection, into: str, rows: Sequence[tuple[object, ...]]) -> None:
    for place in range(0, len(rows), _ROWS_AT_ONCE):
        some = rows[place : place + _ROWS_AT_ONCE]
        row = f"({', '.join('?' * len(some[0]))})"
        connection.execute(f"{into} VALUES {', '.join([row] * len(some))}", list(chain.from_iterable(some)))


def _add_column(connection: sqlite3.Connection, table: str, name: str, definition: str) -> None:
    """A column that files of earlier versions do not have."""
    if name not in {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}:
        connection.execute(f"ALTER TABLE {table} ADD COLUMN {name} {definition}")


def _new_identity(connection: sqlite3.Connection, stored_seq: int) -> UUID:
    spool_id = uuid4()
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DELETE FROM frame WHERE seq <= ?", (stored_seq,))
        connection.execute("DELETE FROM identity")
        connection.execute("INSERT INTO identity (spool_id) VALUES (?)", (str(spool_id),))
    return spool_id


def _identity(connection: sqlite3.Connection) -> UUID:
    (spool_id,) = connection.execute("SELECT spool_id FROM identity").fetchone()
    return UUID(spool_id)


def _last_issued(connection: sqlite3.Connection) -> int:
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'frame'").fetchone()
    return row[0] if row else 0


def _unsettled_seq(connection: sqlite3.Connection, last_seq: int) -> int:
    """The last number issued when the store's ledger was last awaited; remembered until `settle`.

    Frames that are appended meanwhile say nothing of how old this file is: it may be a copy that was put back.
    """
    with connection:
        connection.execute("UPDATE identity SET unsettled_seq = ? WHERE unsettled_seq IS NULL", (last_seq,))
    (seq,) = connection.execute("SELECT unsettled_seq FROM identity").fetchone()
    return int(seq)


def _senders(connection: sqlite3.Connection) -> dict[UUID, Sender]:
    rows = connection.execute("SELECT machine_id, received_at_ms, boot_id, seq, mark, below FROM sender")
    return {
        UUID(bytes=machine_id): Sender(received_at_ms, boot_id, seq, mark, _from_bytes(below))
        for machine_id, received_at_ms, boot_id, seq, mark, below in rows
    }


def _as_bytes(below: int) -> bytes | None:
    return None if below == -1 else below.to_bytes(below.bit_length() // 8 + 1, signed=True)


def _from_bytes(below: bytes | None) -> int:
    return -1 if below is None else int.from_bytes(below, signed=True)


def _sizes(connection: sqlite3.Connection) -> Iterable[tuple[int, UUID, int]]:
    rows = connection.execute("SELECT seq, machine_id, length(payload) FROM frame ORDER BY seq")
    # One object a machine: there may be millions of frames.
    machines: dict[bytes, UUID] = {}
    for seq, key, length in rows:
        yield seq, machines.setdefault(key, UUID(bytes=key)), length + _OVERHEAD_BYTES
