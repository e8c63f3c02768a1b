"""From the spool to the store: batch, prepare, write; trim when it is committed.

While the server works on one batch the next one gathers and is prepared, so that neither waits for the other.

Accept, Reject, Keep: rows are stored; or refused for good, and then the batch is halved until the frame is found and
set aside; or the store cannot take them now, and then the same rows are tried again on a new connection. After a lost
answer to COMMIT the ledger tells whether they are there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from uuid import UUID

import structlog

from guestd.core.errors import BadFrame, RowsRejected, StoreUnavailable
from guestd.core.tasks import Backoff, run_with_retry
from guestd.ingest import prepare
from guestd.ingest.prepare import CommandLinesOf, Preparer, redacted
from guestd.rows.batch import Limits, Moment, Prepared, halves, is_due
from guestd.spool import resume
from guestd.spool.queue import Spool
from guestd.store.batch_writer import LedgerMoved, Outcome, Store, connected
from guestd.store.connection import KeyTaken

log = structlog.get_logger()

TRIM_AGAIN_SECONDS = 1.0
# Another writer may take a key between our look and our COPY, but hardly again and again.
KEY_TRIES = 3
# A batch is stored within a second; a server that needs so long is worth telling, though it may answer yet.
SILENT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Counters:
    """What the writer counts; telemetry gives the functions."""

    outcome: Callable[[Outcome], None]
    committed: Callable[[float, float], None]  # seconds the write took, seconds since the oldest frame was received
    store_lost: Callable[[], None]
    key_taken: Callable[[], None]
    preparing: prepare.Counters


class Writer:
    """The one consumer of a spool."""

    def __init__(
        self,
        spool: Spool,
        *,
        dsn: str,
        limits: Limits,
        counters: Counters,
        command_lines_of: CommandLinesOf = redacted,
    ) -> None:
        self._spool = spool
        self._dsn = dsn
        self.limits = limits
        self._counters = counters
        self._prepared: Sequence[Prepared] = ()
        # The batch behind `_prepared`: it outlives a connection, for what was prepared once is not prepared again.
        self._ahead: asyncio.Task[Sequence[Prepared]] | None = None
        self._store: Store | None = None
        self._may_ask = asyncio.Event()
        self._committed_seq = 0
        self._has_opened_books = False
        self._is_in_doubt = False
        self._preparer = Preparer(counters.preparing, command_lines_of)
        self.store_error: str | None = "not connected yet"
        self._asked_at: float | None = None
        self.moves = 0
        """Grows with every commit, and with every attempt that failed."""

    async def run(self) -> None:
        """Write until the spool is sealed and empty. Raises SchemaMismatch; an unreachable store is waited for."""

        def lost(exc: Exception, delay_seconds: float) -> None:
            self.store_error = str(exc)
            self.moves += 1
            self._counters.store_lost()
            if isinstance(exc, LedgerMoved):
                return
            log.warning(
                "the store is not available, the spool keeps what comes", error=str(exc), retry=round(delay_seconds, 1)
            )

        try:
            await run_with_retry(
                self._connection, expected=StoreUnavailable, backoff=Backoff(cap_seconds=5), on_failure=lost
            )
        finally:
            await self._forget_ahead()

    @property
    def problem(self) -> str | None:
        """Why nothing is being stored, None when all is well."""
        if self._asked_at is None or (silent := time.monotonic() - self._asked_at) < SILENT_SECONDS:
            return self.store_error
        return self.store_error or f"no answer for {silent:.0f} s"

    @property
    def has_nothing_to_do(self) -> bool:
        """Whether all that was accepted is committed."""
        return self._spool.last_seq <= self._committed_seq

    def forget(self, knows: Callable[[UUID], bool]) -> None:
        """Forget what is remembered of machines that nobody knows any more."""
        self._preparer.forget(knows)

    async def _connection(self) -> None:
        """One connection's life."""
        async with connected(self._dsn) as store:
            await self._open_books(store)
            self.store_error = None
            while frames := await self._next(store):
                if self._ahead is None:
                    self._ahead = asyncio.create_task(self._behind(frames[-1].seq), name="prepare")
                await self._write(store, frames)
                self._prepared = ()

    async def _open_books(self, store: Store) -> None:
        """Find where to go on; after this the ledger stands at `_committed_seq`."""
        spool = self._spool
        ledger_seq = await store.ledger(spool.spool_id)
        resumption = resume.resumption(ledger_seq, oldest_seq=spool.oldest_seq, own_seq=self._own_seq())
        committed_seq = resumption.committed_seq
        if isinstance(resumption, resume.Rename) and self._has_opened_books:
            # Somebody writes under our id (a cloned host): what is stored of ours for certain is what we know of.
            committed_seq = self._committed_seq
        # First, so that a crash in here can only leave less to do.
        await spool.trim(committed_seq)
        match resumption:
            case resume.Resume() if ledger_seq is None:
                await store.set_ledger(spool.spool_id, None, committed_seq)
            case resume.Resume():
                pass
            case resume.Adopt(_, missing_from, missing_to):
                log.error(
                    "the store lacks frames that it had confirmed; was it restored from a backup?",
                    spool=str(spool.spool_id), missing_from=missing_from, missing_to=missing_to,
                )  # fmt: skip
                await store.set_ledger(spool.spool_id, ledger_seq, committed_seq)
            case resume.Rename():
                log.error(
                    "the ledger is ahead of this spool: an older copy of it came back, or another guestd has a copy;"
                    " it goes on under a new id",
                    old=str(spool.spool_id),
                )
                await spool.rename(committed_seq)
                await store.set_ledger(spool.spool_id, None, committed_seq)
        await spool.settle()
        if committed_seq < self._committed_seq:
            # The store was put back and the spool still holds what it lost: from there, and nothing left out.
            self._prepared = ()
            await self._forget_ahead()
        self._has_opened_books, self._is_in_doubt = True, False
        self._committed_seq = committed_seq
        self._prepared = [frame for frame in self._prepared if frame.seq > committed_seq]

    def _own_seq(self) -> int:
        """The highest number that the ledger may stand at by our own doing."""
        if not self._has_opened_books:
            return self._spool.unsettled_seq
        # An answer to COMMIT may have been lost; otherwise we know how far we came.
        return self._prepared[-1].seq if self._is_in_doubt and self._prepared else self._committed_seq

    async def _next(self, store: Store) -> Sequence[Prepared]:
        """The frames of the next batch: those that are still owed, or what has gathered; empty when all is done."""
        if self._prepared:
            return self._prepared
        ahead = self._ahead or asyncio.create_task(self._behind(self._committed_seq), name="prepare")
        self._ahead = ahead
        self._store = store
        self._may_ask.set()
        try:
            self._prepared = await ahead
        finally:
            self._may_ask.clear()
            self._ahead = None
        return self._prepared

    async def _behind(self, seq: int) -> Sequence[Prepared]:
        """The batch that follows this number, prepared."""
        if not await self._gathered(seq):
            return ()
        frames = await self._spool.read(seq, max_frames=self.limits.max_frames, max_bytes=self.limits.max_bytes)
        return await self._preparer.prepare(frames, self._taken)

    async def _taken(self, moments: Sequence[Moment]) -> set[Moment]:
        """What the store says of them when nothing is being written: only then are all earlier batches in it."""
        await self._may_ask.wait()
        assert self._store is not None
        self._asked_at = time.monotonic()
        try:
            return await self._store.taken(moments)
        finally:
            self._asked_at = None

    async def _forget_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.cancel()
            await asyncio.wait([self._ahead])
            self._ahead = None

    async def _gathered(self, seq: int) -> bool:
        """Wait until a batch behind this number is due; False when the spool is sealed and nothing is left."""
        spool = self._spool
        while spool.last_seq <= seq:
            if spool.is_sealed:
                return False
            spool.appended.clear()
            async with _at_most(TRIM_AGAIN_SECONDS if spool.oldest_seq <= self._committed_seq else None):
                await spool.appended.wait()
            if spool.oldest_seq <= self._committed_seq:
                # The disk refused the last trim.
                await spool.trim(self._committed_seq)
        began = time.monotonic()
        while not spool.is_sealed and not is_due(self._waiting_bytes(), time.monotonic() - began, self.limits):
            spool.appended.clear()
            async with _at_most(began + self.limits.max_age_seconds - time.monotonic()):
                await spool.appended.wait()
        return True

    def _waiting_bytes(self) -> int:
        """Of payloads in the spool that are in no batch yet, roughly: a spool counts more than the payload's bytes."""
        in_batch = sum(len(frame.payload) for frame in self._prepared if frame.seq >= self._spool.oldest_seq)
        return self._spool.bytes - in_batch

    async def _write(self, store: Store, frames: Sequence[Prepared]) -> None:
        """Commit frames, around keys that are taken; what is refused for good is found by halving and set aside."""
        for _ in range(KEY_TRIES):
            try:
                await self._commit(store, frames)
            except KeyTaken as exc:
                log.warning("rows have keys that are taken, they are moved or left out", error=str(exc))
                self._counters.key_taken()
                frames = await store.without_taken(await self._preparer.replaced(frames, store.taken))
            except RowsRejected as exc:
                await self._write_parts(store, frames, exc)
                return
            else:
                return
        await self._write_parts(store, frames, RowsRejected("their keys are taken whatever they are moved to"))

    async def _commit(self, store: Store, frames: Sequence[Prepared]) -> None:
        started = self._asked_at = time.monotonic()
        try:
            outcome = await store.write(self._spool.spool_id, self._committed_seq, frames)
        except LedgerMoved:
            raise
        except StoreUnavailable:
            self._is_in_doubt = True
            raise
        finally:
            self._asked_at = None
        self._committed_seq = frames[-1].seq
        self.moves += 1
        self._counters.outcome(outcome)
        oldest_age_seconds = (datetime.now(UTC) - frames[0].received_at).total_seconds()
        self._counters.committed(time.monotonic() - started, oldest_age_seconds)
        await self._spool.trim(self._committed_seq)

    async def _write_parts(self, store: Store, frames: Sequence[Prepared], exc: RowsRejected) -> None:
        if len(frames) > 1:
            for part in halves(frames):
                await self._write(store, part)
            return
        (frame,) = frames
        if isinstance(frame.content, BadFrame):
            # Setting it aside writes nothing of the guest's but bytes: refused, it is our bug and not the guest's.
            raise exc
        log.warning("a frame was refused by the store and is set aside", machine=str(frame.machine_id), error=str(exc))
        await self._write(store, [replace(frame, content=BadFrame("rejected_by_store", str(exc)))])


@asynccontextmanager
async def _at_most(seconds: float | None) -> AsyncIterator[None]:
    """Give up waiting in the block after so long, without an error."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        pass
