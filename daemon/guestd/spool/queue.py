"""The durable queue between sources and the store: a SQLite file in WAL mode with synchronous=FULL.

A frame that `append` has returned for is on disk. Appends are committed in groups by one thread: while a commit is
on its way to the disk the next group gathers. Sequence numbers are never used again (AUTOINCREMENT), and `spool_id`
names this very file, so that the store's ledger can tell which frames of which spool it already has.

With each frame the place of its sender is kept (docs/wire.md), in the same transaction: a line that was fsynced but not
acknowledged before a crash is known as a duplicate when it is sent again.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TypeVar
from uuid import UUID

import structlog

from guestd.core.transport import Transport
from guestd.spool import file
from guestd.spool.file import Entry, Frame, as_bytes, from_milliseconds

log = structlog.get_logger()

T = TypeVar("T")


class Spool:
    """One directory, one daemon. Create it with `open_spool`; `run` must run for `append` to return."""

    def __init__(
        self, directory: Path, lock: IO[bytes], writing: sqlite3.Connection, *, max_bytes: int, share_bytes: int
    ) -> None:
        self.directory = directory
        self._lock = lock
        self._file = directory / file.FILE
        self._inode = file.inode(self._file)
        self._ballast = directory / file.BALLAST_FILE
        self._writing = writing
        self._reading = file.connect(directory / file.FILE)
        self._write_thread = ThreadPoolExecutor(1, thread_name_prefix="spool-write")
        self._read_thread = ThreadPoolExecutor(1, thread_name_prefix="spool-read")
        self.max_bytes = max_bytes
        self._share_bytes = share_bytes
        self.spool_id = file.identity(writing)
        self.last_seq = file.last_issued(writing)
        self.unsettled_seq = file.unsettled_seq(writing, self.last_seq)
        self.senders_at_open = file.senders(writing)
        self._sizes: deque[tuple[int, UUID, int]] = deque(file.sizes(writing))
        self._bytes_by_machine: Counter[UUID] = Counter()
        for _, machine_id, size_bytes in self._sizes:
            self._bytes_by_machine[machine_id] += size_bytes
        self.bytes = sum(self._bytes_by_machine.values())
        self._coming: Counter[UUID] = Counter()
        self._coming_bytes = 0
        self._pending: list[tuple[Sequence[Entry], asyncio.Future[None]]] = []
        self._oldest_pending_at = 0.0
        self._work = asyncio.Event()
        self._trimmed = asyncio.Event()
        self._sealed = False
        self._has_ended = False
        self.appended = asyncio.Event()
        self.error: str | None = None
        self.is_writing = False
        """Whether somebody waits for a group to be on disk."""
        self.tries = 0
        """Grows with every attempt to write, whatever came of it."""
        self.commit_seconds: Callable[[float], None] = lambda _: None
        self.waited_seconds: Callable[[float], None] = lambda _: None
        """Told how long the oldest of a group has waited to be on disk."""
        # Last, for opening needs room as well.
        file.put_ballast(self._ballast)

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
        taken_bytes = self.bytes + self._coming_bytes + behind_bytes
        return not taken_bytes or taken_bytes + size_bytes <= self.max_bytes

    def has_share(self, machine_id: UUID, size_bytes: int, behind_bytes: int = 0) -> bool:
        """The same for its machine's share, behind others of that machine."""
        taken_bytes = self._bytes_by_machine.get(machine_id, 0) + self._coming[machine_id] + behind_bytes
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
        if not self._pending:
            self._oldest_pending_at = time.perf_counter()
        self._expect(entries, 1)
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
        group, self._pending, oldest_at = self._pending, [], self._oldest_pending_at
        if not group:
            return
        entries = [entry for some, _ in group for entry in some]
        self.is_writing = True
        await self._commit_until_done(entries)
        self.is_writing = False
        self.waited_seconds(time.perf_counter() - oldest_at)
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
            self.tries += 1
            try:
                first_seq = await loop.run_in_executor(self._write_thread, self._commit_or_make_room, entries)
            except sqlite3.OperationalError as exc:
                self.error = str(exc)
                log.error("the spool cannot be written, nothing more is acknowledged", error=self.error)
                await asyncio.sleep(1)
                if self._inode != file.inode(self._file) and not self._sizes:
                    raise OSError(f"{self._file}: {self.error}; what it held is stored, a new one is to begin") from exc
                continue
            self.error = None
            self.commit_seconds(time.perf_counter() - started)
            self._account(entries, first_seq)
            return

    def _account(self, entries: list[Entry], first_seq: int) -> None:
        seq = first_seq
        self._expect(entries, -1)
        for entry in entries:
            if entry.payload is None:
                continue
            self._sizes.append((seq, entry.machine_id, entry.size_bytes))
            self._bytes_by_machine[entry.machine_id] += entry.size_bytes
            self.bytes += entry.size_bytes
            self.last_seq = seq
            seq += 1

    def _expect(self, entries: Sequence[Entry], sign: int) -> None:
        """Count what is on its way to the disk: who waits for room must not be let in on the same room twice."""
        for entry in entries:
            self._coming_bytes += sign * entry.size_bytes
            self._coming[entry.machine_id] += sign * entry.size_bytes
            if not self._coming[entry.machine_id]:
                del self._coming[entry.machine_id]

    def _commit_or_make_room(self, entries: list[Entry]) -> int:
        if self._inode != file.inode(self._file):
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
            file.write_rows(
                self._writing,
                "INSERT INTO frame (seq, machine_id, received_at_ms, payload, channel)",
                [
                    (seq, entry.machine_id.bytes, entry.received_at_ms, entry.payload, entry.channel.value)
                    for seq, entry in enumerate(frames, first_seq)
                ],
            )
            file.write_rows(
                self._writing,
                "REPLACE INTO sender (machine_id, received_at_ms, boot_id, seq, mark, below)",
                [
                    (key.bytes, entry.received_at_ms, entry.boot_id, entry.seq, entry.mark, as_bytes(entry.below))
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
            frames.append(Frame(seq, UUID(bytes=machine_id), received_at, payload, Transport(channel)))
        rows.close()
        return frames

    async def trim(self, up_to_seq: int) -> None:
        """Forget frames that the store has committed."""
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._write_thread, self._delete, up_to_seq)
        except sqlite3.OperationalError as exc:
            # The ledger has moved on: what is still here is skipped, and the next trim takes it along.
            self.error = str(exc)
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
        except sqlite3.OperationalError as exc:
            if "locked" in str(exc) or not self._ballast.exists():
                raise
            self._ballast.unlink()
            written = write()
            self._writing.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            log.warning("the spool's disk is full: its ballast was given up to empty it")
            return written

    def _restore_ballast(self) -> None:
        """Set room aside again; where there is none, and nothing waits any more, the file gives back its own."""
        file.put_ballast(self._ballast)
        if self._ballast.exists() or self._writing.execute("SELECT EXISTS (SELECT 1 FROM frame)").fetchone() != (0,):
            return
        self._writing.execute("VACUUM")
        self._writing.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        file.put_ballast(self._ballast)

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
        self.spool_id = await self._until_written(lambda: file.new_identity(self._writing, stored_seq))

    async def forget(self, machine_ids: Collection[UUID]) -> None:
        """Forget where the streams of these machines stand, which are not heard any more."""
        await self._until_written(lambda: file.forget_senders(self._writing, machine_ids))

    async def _until_written(self, write: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        while True:
            self.tries += 1
            try:
                written = await loop.run_in_executor(self._write_thread, self._with_ballast, write)
            except sqlite3.OperationalError as exc:
                self.error = str(exc)
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
    lock, ballast = file.locked(directory), directory / file.BALLAST_FILE
    while True:
        try:
            writing = file.opened_or_begun(directory)
            return Spool(directory, lock, writing, max_bytes=max_bytes, share_bytes=int(max_bytes * share))
        except sqlite3.OperationalError as exc:
            # A full or failing disk, a file that another process holds: the frames are sound.
            if ballast.exists() and "full" in str(exc):
                log.warning("the spool's disk is full: its ballast was given up to open it")
                ballast.unlink()
                continue
            lock.close()
            raise OSError(f"spool.directory {directory}: {exc}") from exc
