"""The durable queue between sources and the store: a SQLite file in WAL mode with synchronous=FULL.

When `append` returns its frames are on disk. Appends are committed in groups by one thread: while one group is being
written the next one gathers. Sequence numbers are never reused (AUTOINCREMENT), and `spool_id` names this very file, so
that the store's ledger can tell which frames of which spool it already has.

With each frame the state of its sender is stored (docs/wire.md), in the same transaction: a line that was fsynced but
not acknowledged before a crash is recognised as a duplicate when it is sent again.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import IO, TypeVar
from uuid import UUID, uuid4

import structlog

from guestd.core.errors import ConfigError, SpoolLost
from guestd.core.tasks import wait_for_event
from guestd.spool import file, identity
from guestd.spool.file import Entry, Frame, SenderState
from guestd.spool.pages import Pages
from guestd.telemetry.registry import SpoolMetrics

log = structlog.get_logger()

T = TypeVar("T")


def _measure_frames(writing: sqlite3.Connection, pages: Pages) -> Iterator[tuple[int, UUID, int]]:
    """(seq, machine, bytes of the file) of every frame in it, in order; `pages` counts them."""
    return ((seq, machine_id, pages.add(row_bytes)) for seq, machine_id, row_bytes in file.read_sizes(writing))


def _sum_by_machine(sizes: Iterable[tuple[int, UUID, int]]) -> Counter[UUID]:
    bytes_by_machine: Counter[UUID] = Counter()
    for _, machine_id, size_bytes in sizes:
        bytes_by_machine[machine_id] += size_bytes
    return bytes_by_machine


class Spool:
    """One directory, one daemon. Create it with `open_spool`; `run` must run for `append` to return."""

    def __init__(
        self,
        directory: Path,
        lock: IO[bytes],
        writing: sqlite3.Connection,
        *,
        max_bytes: int,
        share_bytes: int,
        metrics: SpoolMetrics,
    ) -> None:
        self.directory = directory
        self._lock = lock
        self._file = directory / file.FILE
        self._inode = file.get_inode(self._file)
        self._reserve_file = directory / file.RESERVE_FILE
        self._writing = writing
        self._reading = file.connect(directory / file.FILE)
        self._write_thread = ThreadPoolExecutor(1, thread_name_prefix="spool-write")
        self._read_thread = ThreadPoolExecutor(1, thread_name_prefix="spool-read")
        self.max_bytes = max_bytes
        self._share_bytes = share_bytes
        self._metrics = metrics
        self.spool_id = identity.read_identity(writing)
        self.since_seq = identity.read_since_seq(writing)
        self.owner = uuid4()
        """This opening of the file, to the store's ledger."""
        self.owners = identity.read_owners(writing)
        self.last_seq = identity.read_last_seq(writing)
        self.unsettled_seq = identity.mark_unsettled(writing, self.last_seq)
        self.senders_at_open: Mapping[UUID, SenderState] = file.read_senders(writing)
        self._page_bytes = file.read_page_bytes(writing)
        self._pages = Pages(self._page_bytes)
        # Number, machine and bytes of the file, of every frame in it.
        self._sizes = deque(_measure_frames(writing, self._pages))
        self._bytes_by_machine = _sum_by_machine(self._sizes)
        self.bytes = sum(self._bytes_by_machine.values())
        """Bytes of the file that frames take."""
        self.heavy_rows = 0
        """Work of the frames that took a turn and are not stored yet; of those before this start it is not known."""
        self._heavy: deque[tuple[int, int]] = deque()
        self._trimmed_at = 0.0
        self._pending_by_machine: Counter[UUID] = Counter()
        self._pending_bytes = 0
        self._pending: list[tuple[Sequence[Entry], asyncio.Future[None]]] = []
        self._oldest_pending_at = 0.0
        self._work = asyncio.Event()
        self._trimmed = asyncio.Event()
        self._trim_up_to_seq = 0
        self._sealed = False
        self.has_ended = False
        """Whether the spool is sealed and its last frame is on disk."""
        self.appended = asyncio.Event()
        self.error: str | None = None
        self.is_writing = False
        """Whether a caller waits for a group to be on disk."""
        self.attempts = 0
        """Grows with every attempt to write, whether it succeeds or not."""
        # Last, for opening needs disk space as well.
        file.create_reserve_file(self._reserve_file)
        self._show(metrics)

    def _show(self, metrics: SpoolMetrics) -> None:
        metrics.limit.set(self.max_bytes)
        metrics.bytes.set_function(lambda: self.bytes)
        metrics.frames.set_function(lambda: self.frames)
        metrics.damaged_files.set_function(lambda: len(file.list_damaged_files(self.directory)))

    @property
    def frames(self) -> int:
        """Frames waiting for the store."""
        return len(self._sizes)

    @property
    def oldest_seq(self) -> int:
        """The lowest sequence number in the spool; one past the last issued when the spool is empty."""
        return self._sizes[0][0] if self._sizes else self.last_seq + 1

    def has_room(self, machine_id: UUID, size_bytes: int) -> bool:
        """Whether frames fit in the spool and in their machine's share; into an empty one any call's frames fit."""
        return self.fits(size_bytes) and self.has_share(machine_id, size_bytes)

    def fits(self, size_bytes: int, ahead_bytes: int = 0) -> bool:
        """Whether a frame fits, after others that are about to be appended; into an empty spool any frame fits."""
        used_bytes = self.bytes + self._pending_bytes + ahead_bytes
        return not used_bytes or used_bytes + size_bytes <= self.max_bytes

    def has_share(self, machine_id: UUID, size_bytes: int, ahead_bytes: int = 0) -> bool:
        """The same for its machine's share, after others of that machine."""
        used_bytes = self._bytes_by_machine.get(machine_id, 0) + self._pending_by_machine[machine_id] + ahead_bytes
        return not used_bytes or used_bytes + size_bytes <= self._share_bytes

    @property
    def idle_seconds(self) -> float:
        """Time since frames were last stored, while some wait."""
        return time.monotonic() - self._trimmed_at if self._sizes else 0.0

    async def wait_for_room(self, machine_id: UUID, size_bytes: int) -> None:
        """Wait until `has_room`."""
        while not self.has_room(machine_id, size_bytes):
            self._trimmed.clear()
            await self._trimmed.wait()

    async def wait_for_trim(self, timeout_seconds: float) -> None:
        """Wait until frames have been stored, for so long at most."""
        self._trimmed.clear()
        await wait_for_event(self._trimmed, timeout_seconds)

    async def append(self, entries: Sequence[Entry]) -> None:
        """Write frames to disk; returns after the fsync of these and of all that was appended before them.

        If the caller is cancelled meanwhile nothing is lost: the group is still written.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self._pending:
            self._oldest_pending_at = time.perf_counter()
        self._count_pending(entries, 1)
        self.heavy_rows += sum(entry.heavy_rows for entry in entries if entry.line.payload is not None)
        self._pending.append((entries, done))
        self._work.set()
        await done

    async def run(self) -> None:
        """Commit what is pending, group after group, until `seal`. A failing disk is retried.

        Raises SpoolLost when the file was deleted, as soon as what it held is stored, and for a damaged file.
        """
        while self._pending or not self._sealed:
            await self._work.wait()
            self._work.clear()
            await self._flush()
        # Wakes the reader, which finds that nothing more will come.
        self.has_ended = True
        self.appended.set()

    def seal(self) -> None:
        """Nothing more will be appended: `run` ends when what is pending is on disk."""
        self._sealed = True
        self._work.set()

    async def _flush(self) -> None:
        group, self._pending, oldest_at = self._pending, [], self._oldest_pending_at
        if not group:
            return
        entries = [entry for some, _ in group for entry in some]
        self.is_writing = True
        await self._commit_until_done(entries)
        self.is_writing = False
        self._metrics.receive_to_spool_seconds.observe(time.perf_counter() - oldest_at)
        for _, done in group:
            if not done.done():
                done.set_result(None)
        self.appended.set()

    async def _commit_until_done(self, entries: list[Entry]) -> None:
        if not entries:
            return
        while True:
            started = time.perf_counter()
            self.attempts += 1
            try:
                first_seq = await self._call(self._write_thread, partial(self._commit_or_make_room, entries))
            except sqlite3.OperationalError as exc:
                self.error = str(exc)
                log.error("spool write failed, acknowledging nothing, retrying", error=self.error, retry_seconds=1)
                await asyncio.sleep(1)
                if self._inode != file.get_inode(self._file) and not self._sizes:
                    raise SpoolLost(
                        f"{self._file}: {self.error}; all its frames are stored, restarting with a new file"
                    ) from exc
                continue
            self.error = None
            self._metrics.commit_seconds.observe(time.perf_counter() - started)
            self._account(entries, first_seq)
            return

    def _account(self, entries: list[Entry], first_seq: int) -> None:
        seq = first_seq
        self._count_pending(entries, -1)
        if not self._sizes:
            self._trimmed_at = time.monotonic()
            self._pages = Pages(self._page_bytes)
        for entry in entries:
            if entry.line.payload is None:
                continue
            size_bytes = self._pages.add(entry.size_bytes)
            self._sizes.append((seq, entry.machine_id, size_bytes))
            self._bytes_by_machine[entry.machine_id] += size_bytes
            self.bytes += size_bytes
            if entry.heavy_rows:
                self._heavy.append((seq, entry.heavy_rows))
            self.last_seq = seq
            seq += 1

    def _count_pending(self, entries: Sequence[Entry], sign: int) -> None:
        """Count bytes that are being written, so that the same free space is not given to two callers."""
        for entry in entries:
            self._pending_bytes += sign * entry.size_bytes
            self._pending_by_machine[entry.machine_id] += sign * entry.size_bytes
            if not self._pending_by_machine[entry.machine_id]:
                del self._pending_by_machine[entry.machine_id]

    def _commit_or_make_room(self, entries: list[Entry]) -> int:
        if self._inode != file.get_inode(self._file):
            # SQLite would continue in a file without a name. Its frames can still be read, and stored.
            raise sqlite3.OperationalError("its file was deleted or replaced")
        if not self._reserve_file.exists():
            # What is left of the disk is for trimming. The reserve file comes first, then new frames.
            self._restore_reserve()
            if not self._reserve_file.exists():
                raise sqlite3.OperationalError("the disk is full")
        try:
            return self._commit(entries)
        except sqlite3.OperationalError:
            # On a full disk the file may have free pages, and only its log no room to grow.
            self._writing.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return self._commit(entries)

    def _commit(self, entries: list[Entry]) -> int:
        """Write entries in one transaction; returns the first sequence number issued (they are consecutive)."""
        first_seq = self.last_seq + 1
        with self._writing:
            self._writing.execute("BEGIN IMMEDIATE")
            frames = [entry for entry in entries if entry.line.payload is not None]
            file.insert_frames(self._writing, frames, first_seq)
            file.replace_senders(self._writing, {entry.machine_id: entry.sender for entry in entries})
        return first_seq

    async def read(self, after_seq: int, *, max_frames: int, max_bytes: int) -> list[Frame]:
        """The next frames after `after_seq`, in order, at least one if there is any. Raises SpoolLost."""
        read = partial(file.read_frames, self._reading, after_seq, max_frames=max_frames, max_bytes=max_bytes)
        return await self._call(self._read_thread, read)

    async def _call(self, thread: ThreadPoolExecutor, function: Callable[[], T]) -> T:
        """Call a function that uses the file, on its thread. sqlite3.OperationalError: it may succeed later."""
        try:
            return await asyncio.get_running_loop().run_in_executor(thread, function)
        except sqlite3.OperationalError:
            raise
        except (sqlite3.DatabaseError, ValueError) as exc:  # a ValueError for a value that guestd never writes
            raise SpoolLost(
                f"{self._file}: {exc}; opening it again at the next start, which sets a damaged file aside"
            ) from exc

    async def trim(self, up_to_seq: int) -> None:
        """Delete frames that the store has committed."""
        self._trim_up_to_seq = up_to_seq
        try:
            await self._call(self._write_thread, partial(self._delete, up_to_seq))
        except sqlite3.OperationalError as exc:
            # The ledger has advanced: what is still here is skipped, and the next trim deletes it too.
            self.error = str(exc)
            log.error("spool trim failed, storing continues; the next trim retries", error=self.error)
            return
        while self._sizes and self._sizes[0][0] <= up_to_seq:
            _, machine_id, size_bytes = self._sizes.popleft()
            self._bytes_by_machine[machine_id] -= size_bytes
            if not self._bytes_by_machine[machine_id]:
                del self._bytes_by_machine[machine_id]
            self.bytes -= size_bytes
        while self._heavy and self._heavy[0][0] <= up_to_seq:
            self.heavy_rows -= self._heavy.popleft()[1]
        self.error = None
        self._trimmed_at = time.monotonic()
        self._trimmed.set()

    @property
    def is_trim_due(self) -> bool:
        """Whether frames of the last trim are still here: the disk refused it, or it is running."""
        return self.oldest_seq <= self._trim_up_to_seq

    async def retry_trim(self) -> None:
        """Delete what the last trim could not."""
        await self.trim(self._trim_up_to_seq)

    def _delete(self, up_to_seq: int) -> None:
        self._with_reserve(lambda: file.delete_frames(self._writing, up_to_seq))
        self._restore_reserve()

    def _with_reserve(self, write: Callable[[], T]) -> T:
        """On a full disk even deleting needs space, for SQLite's log of changes: the reserve file gives it."""
        try:
            return write()
        except sqlite3.OperationalError as exc:
            if "locked" in str(exc) or not self._reserve_file.exists():
                raise
            self._reserve_file.unlink()
            written = write()
            self._writing.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            log.warning("spool disk full, freed the reserve file to delete stored frames; make room on the disk")
            return written

    def _restore_reserve(self) -> None:
        """Reserve disk space again; where there is none and the spool is empty, shrink the spool file."""
        file.create_reserve_file(self._reserve_file)
        if self._reserve_file.exists() or file.has_frames(self._writing):
            return
        self._writing.execute("VACUUM")
        self._writing.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        file.create_reserve_file(self._reserve_file)

    async def settle(self) -> None:
        """Record that the store's ledger and this file agree: no number issued before is in doubt.

        Returns when that is on disk. Until then nothing may be stored: after a crash the ledger would be ahead of what
        the file says of itself, as if an older copy of it had been put back.
        """
        await self._until_written(lambda: identity.clear_unsettled(self._writing))

    async def record_owner(self) -> None:
        """Record `owner` in the file; returns when that is on disk. Only then may it stand in the store's ledger."""
        if self.owner not in self.owners:
            await self._until_written(lambda: identity.add_owner(self._writing, self.owner))
            self.owners.add(self.owner)

    async def rename(self, stored_seq: int) -> None:
        """Take a new id: the store's ledger of the old one is another's, or knows frames that this file never issued.

        What is stored is deleted in the same transaction, for the new id's ledger does not know of it.
        """
        since_seq = max(stored_seq, self.oldest_seq - 1)
        replace = partial(
            identity.replace_identity,
            self._writing,
            stored_seq=stored_seq,
            since_seq=since_seq,
            owner=self.owner,
        )
        self.spool_id = await self._until_written(replace)
        self.since_seq, self.owners = since_seq, {self.owner}

    async def forget(self, machine_ids: Collection[UUID]) -> None:
        """Delete the stream states of machines that are gone."""
        await self._until_written(lambda: file.delete_senders(self._writing, machine_ids))

    async def _until_written(self, write: Callable[[], T]) -> T:
        while True:
            self.attempts += 1
            try:
                written = await self._call(self._write_thread, partial(self._with_reserve, write))
            except sqlite3.OperationalError as exc:
                self.error = str(exc)
                log.error("spool write failed, storing nothing, retrying", error=self.error, retry_seconds=1)
                await asyncio.sleep(1)
                continue
            self.error = None
            return written

    def close(self) -> None:
        """Close the file and unlock the directory."""
        self._write_thread.shutdown()
        self._read_thread.shutdown()
        self._reading.close()
        self._writing.close()
        self._lock.close()


def open_spool(directory: Path, *, max_bytes: int, share: float, metrics: SpoolMetrics) -> Spool:
    """Open the spool of a directory or create one; a damaged file is renamed. `share` is a machine's part, 0-1.

    Raises ConfigError when another daemon has it, a newer one wrote it or it cannot be created, OSError when the disk
    is full or fails.
    """
    lock, reserve_file = file.lock_directory(directory), directory / file.RESERVE_FILE
    while True:
        try:
            writing = file.open_or_create(directory)
            return Spool(
                directory, lock, writing, max_bytes=max_bytes, share_bytes=int(max_bytes * share), metrics=metrics
            )
        except ConfigError:
            lock.close()
            raise
        except sqlite3.OperationalError as exc:
            # A full or failing disk, a file that another process holds: the frames are sound.
            if reserve_file.exists() and "full" in str(exc):
                log.warning("spool disk full, freed the reserve file to open the spool; make room on the disk")
                reserve_file.unlink()
                continue
            lock.close()
            raise OSError(f"spool.directory {directory}: {exc}") from exc
