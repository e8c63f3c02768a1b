"""From the spool to the store: write the prepared batches in order, trim what is committed.

A write has three outcomes. Accept: the rows are stored. Reject: the store will never take them; the batch is halved
until the frame is found and quarantined. Keep: the store cannot take them now; the same rows are written again on a new
connection. After a lost answer to COMMIT the ledger tells whether they are stored.

After an unexpected exception, a bug, the same: a new connection, the ledger, the same rows. Where it always fails, the
batch is written by halves until the frame is found, which is quarantined if another sample can be written.

A batch that the store does not finish within its deadline is written by halves as well, for a store that answered
before is only slow. A single frame that takes longer is written again without limit, and reported.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeVar
from uuid import UUID

import structlog

from guestd.core.bugs import BugLog, describe_error
from guestd.core.errors import BadFrame, ConfigError, RowsRejected, SpoolLost, StoreUnavailable
from guestd.core.ledger import Ledger
from guestd.core.tasks import Backoff, run_with_retry
from guestd.ingest.bisection import Bisection
from guestd.ingest.plain_sample import make_plain_sample
from guestd.ingest.prefetch import OnPrepared, Prefetch
from guestd.ingest.prepare import CommandLinesOf, Preparer, redact_all
from guestd.ingest.slow_writes import SlowWrites
from guestd.rows.batch import Limits, Prepared, split_batch
from guestd.spool import resume
from guestd.spool.queue import Spool
from guestd.store.batch_writer import LedgerMoved, Outcome, Store, open_store
from guestd.store.connection import WRITE_SECONDS, KeyConflict, NoReply
from guestd.telemetry.registry import WriterMetrics

log = structlog.get_logger()

# Another writer may occupy a key between our query and our COPY, but hardly again and again.
KEY_TRIES = 3
# A batch is stored within a second; a server that needs this long is worth reporting, though it may answer yet.
SILENT_SECONDS = 5.0
# Between two tries to write a batch that fails unexpectedly, until its frame is found.
BISECTION_SECONDS = 0.1
# Errors that are nobody's frame.
_OF_NO_FRAME = (StoreUnavailable, ConfigError, SpoolLost, MemoryError)

OnStored = Callable[[Outcome], None]
Asked = TypeVar("Asked")
Found = TypeVar("Found")


class _PartFailed(Exception):
    """Writing frames failed unexpectedly, and is tried again with all of them or with fewer."""


class Writer:
    """The one consumer of a spool.

    `on_prepared` is called with every batch that was made, `on_stored` with the outcome of every commit.
    """

    def __init__(
        self,
        spool: Spool,
        *,
        dsn: str,
        limits: Limits,
        metrics: WriterMetrics,
        command_lines_of: CommandLinesOf = redact_all,
        on_prepared: Sequence[OnPrepared] = (),
        on_stored: Sequence[OnStored] = (),
        write_seconds: float = WRITE_SECONDS,
    ) -> None:
        self._spool = spool
        self._dsn = dsn
        self._write_seconds = write_seconds
        self._metrics = metrics
        self._on_stored = on_stored
        self._preparer = Preparer(metrics.preparing, command_lines_of)
        self._prefetch = Prefetch(spool, self._preparer, limits, on_prepared)
        # Prepared and not known to be committed. It outlives a connection, for what was prepared is not prepared again.
        self._uncommitted: Sequence[Prepared] = ()
        # Up to this one they are at free timestamps.
        self._moved_seq = 0
        self._committed_seq = 0
        self._bisection = Bisection()
        self._slow_writes = SlowWrites()
        self._last_bug = ""
        self._bugs = BugLog()
        self._has_resumed = False
        self._is_in_doubt = False
        self.store_error: str | None = "not connected yet"
        self._waiting_since: float | None = None
        self.steps = 0
        """Grows with every commit, and with every attempt that failed."""

    async def run(self) -> None:
        """Write until the spool is sealed and empty. Raises SchemaMismatch; waits for an unreachable store.

        After any other exception it may run again: it continues where the ledger says. One that a single frame causes
        does not leave it.
        """

        def on_failure(exc: Exception, delay_seconds: float) -> None:
            self.store_error = str(exc)
            self.steps += 1
            self._metrics.store_lost.inc()
            if isinstance(exc, LedgerMoved):
                return
            retry_seconds = round(delay_seconds, 1)
            log.warning("store unavailable, spooling to disk, retrying", error=str(exc), retry_seconds=retry_seconds)

        backoff = Backoff(cap_seconds=5)
        try:
            while True:
                with suppress(_PartFailed):
                    await run_with_retry(
                        self._run_connection, expected=StoreUnavailable, backoff=backoff, on_failure=on_failure
                    )
                    return
                self.steps += 1
                await asyncio.sleep(BISECTION_SECONDS)
        except Exception:
            # A failed attempt is progress for the watchdog. What was prepared is kept for the next one.
            self.steps += 1
            raise
        except asyncio.CancelledError:
            await self._prefetch.discard()
            raise

    @property
    def problem(self) -> str | None:
        """Why nothing is being stored, None when all is well."""
        if self._waiting_since is None or (silent := time.monotonic() - self._waiting_since) < SILENT_SECONDS:
            return self.store_error
        return self.store_error or f"no answer for {silent:.0f} s"

    @property
    def is_idle(self) -> bool:
        """Whether all that was accepted is committed."""
        return self._spool.last_seq <= self._committed_seq

    def set_limits(self, limits: Limits) -> None:
        """Use other limits from the next batch on."""
        self._prefetch.limits = limits

    def forget(self, is_known: Callable[[UUID], bool]) -> None:
        """Forget what is remembered of machines that are gone."""
        self._preparer.forget(is_known)

    async def _run_connection(self) -> None:
        """One connection's life."""
        async with open_store(self._dsn, self._write_seconds) as store:
            await self._resume(store)
            self.store_error = None
            while frames := await self._next():
                self._prefetch.start(frames)
                await self._write_some(store, frames)
                self._uncommitted = [frame for frame in self._uncommitted if frame.seq > self._committed_seq]

    async def _write_some(self, store: Store, frames: Sequence[Prepared]) -> None:
        """Commit the first of these frames: all, unless that fails unexpectedly or takes too long."""
        part = self._slow_writes.choose(self._bisection.choose(frames))
        began = time.monotonic()
        try:
            if part[0].seq == self._bisection.found_seq:
                await self._quarantine_found(store, part[0])
                self._metrics.frame_timeouts.set(0)
                return
            if part[-1].seq > self._moved_seq:
                part = await self._move(store, part)
                self._uncommitted = [*part, *self._uncommitted[len(part) :]]
                self._moved_seq = part[-1].seq
            await self._write(store, part)
            self._slow_writes.note_written(len(part), time.monotonic() - began)
            self._metrics.frame_timeouts.set(0)
        except NoReply as exc:
            self._note_timeout(part)
            if len(part) > 1:
                raise
            raise NoReply(f"{exc}: frame {part[0].seq} of machine {part[0].machine_id}") from exc
        except _OF_NO_FRAME:
            raise
        except Exception as exc:
            if not self._bisection.note_failure(part):
                raise
            self._last_bug = describe_error(exc)
            self._bugs.error("batch could not be written, retrying; report the traceback", exc, frames=len(part))
            # On a new connection: what was committed of it, the ledger knows.
            raise _PartFailed from exc

    def _note_timeout(self, part: Sequence[Prepared]) -> None:
        """Write fewer frames on the next connection; a single one is reported."""
        self._slow_writes.note_timeout(part)
        timeouts = self._slow_writes.timeouts
        self._metrics.frame_timeouts.set(timeouts)
        if len(part) > 1:
            log.warning("store did not finish a batch within its deadline, writing half of it next", frames=len(part))
        else:
            log.error(
                "store did not finish a frame within its deadline, writing it again; the frames behind it wait: find "
                "out what makes its rows slow, such as a trigger of somebody's on the tables",
                machine=str(part[0].machine_id), seq=part[0].seq, timeouts=timeouts,
            )  # fmt: skip

    async def _quarantine_found(self, store: Store, frame: Prepared) -> None:
        """Quarantine a frame that fails alone. Raises if another sample fails as well: then it is not the frame."""
        position = Ledger(self._committed_seq, self._spool.owner)
        with suppress(RowsRejected):  # its place may be occupied: the store has judged it
            await store.try_write(self._spool.spool_id, position, make_plain_sample(frame))
        await self._commit(store, [replace(frame, content=BadFrame("bug", self._last_bug))])
        self._metrics.preparing.bugs.inc()
        self._bisection.note_quarantined()
        log.warning(
            "frame could not be written because of a bug in guestd and is quarantined; report the traceback above",
            machine=str(frame.machine_id),
            seq=frame.seq,
            error=self._last_bug,
        )

    async def _resume(self, store: Store) -> None:
        """Find where to continue; after this the ledger is at `_committed_seq`, and its owner is this opening."""
        spool = self._spool
        await spool.record_owner()
        ledger = await store.read_ledger(spool.spool_id)
        resumption = resume.plan_resume(
            ledger,
            owners=spool.owners,
            oldest_seq=spool.oldest_seq,
            own_seq=self._own_seq(),
            since_seq=spool.since_seq,
        )
        committed_seq = resumption.committed_seq
        if isinstance(resumption, resume.Rename | resume.Separate) and self._has_resumed:
            # Another daemon writes under our id (a cloned host): only what we know of is certainly stored of ours.
            committed_seq = self._committed_seq
        # First, so that a crash in here can only leave less to do.
        await spool.trim(committed_seq)
        if isinstance(resumption, resume.Rename | resume.Separate):
            old_id, ledger = spool.spool_id, None
            await spool.rename(committed_seq)
            _log_new_id(resumption, old_id, spool)
        elif isinstance(resumption, resume.Adopt):
            log.error(
                "store lacks frames that it had confirmed, at most these are lost; was it restored from a backup?",
                spool=str(spool.spool_id),
                missing_from=resumption.missing_from,
                missing_to=resumption.missing_to,
            )
        position = Ledger(committed_seq, spool.owner)
        if ledger != position:
            await store.set_ledger(spool.spool_id, ledger, position)
        await spool.settle()
        if committed_seq < self._committed_seq:
            # The store was restored and the spool still holds what it lost: continue there, and leave nothing out.
            self._uncommitted = ()
            await self._prefetch.discard()
        self._has_resumed, self._is_in_doubt = True, False
        self._committed_seq = committed_seq
        self._uncommitted = [frame for frame in self._uncommitted if frame.seq > committed_seq]

    def _own_seq(self) -> int:
        """The highest number to which we can have advanced the ledger."""
        if not self._has_resumed:
            return self._spool.unsettled_seq
        # An answer to COMMIT may have been lost; otherwise we know how far we came.
        return self._uncommitted[-1].seq if self._is_in_doubt and self._uncommitted else self._committed_seq

    async def _next(self) -> Sequence[Prepared]:
        """The frames to write: those that were not committed, or the next batch; empty when all is done."""
        if not self._uncommitted:
            self._uncommitted = await self._prefetch.get(self._committed_seq)
            self._moved_seq = self._committed_seq
        return self._uncommitted

    async def _move(self, store: Store, frames: Sequence[Prepared]) -> Sequence[Prepared]:
        """The frames at free timestamps; the store has all frames before them, and no transaction is open."""
        return await self._preparer.move_occupied(
            frames, self._watched(store.find_stored_timestamps), self._watched(store.find_sample_times)
        )

    def _watched(self, find: Callable[[Asked], Awaitable[Found]]) -> Callable[[Asked], Awaitable[Found]]:
        """The same query, with the time that it takes shown in `problem`."""

        async def find_watched(asked: Asked) -> Found:
            self._waiting_since = time.monotonic()
            try:
                return await find(asked)
            finally:
                self._waiting_since = None

        return find_watched

    async def _write(self, store: Store, frames: Sequence[Prepared]) -> None:
        """Commit frames, around occupied keys; what is rejected is found by halving and quarantined."""
        for _ in range(KEY_TRIES):
            try:
                await self._commit(store, frames)
            except KeyConflict as exc:
                log.warning("keys of rows are occupied in the store, moving or leaving out these rows", error=str(exc))
                self._metrics.key_conflicts.inc()
                frames = await store.without_stored(
                    await self._preparer.move_occupied(frames, store.find_stored_timestamps, store.find_sample_times)
                )
            except RowsRejected as exc:
                await self._write_parts(store, frames, exc)
                return
            else:
                return
        await self._write_parts(store, frames, RowsRejected("their keys are occupied wherever they are moved"))

    async def _commit(self, store: Store, frames: Sequence[Prepared]) -> None:
        started = self._waiting_since = time.monotonic()
        try:
            position = Ledger(self._committed_seq, self._spool.owner)
            outcome = await store.write(self._spool.spool_id, position, frames)
        except (LedgerMoved, RowsRejected):
            raise
        except Exception:
            # The store may have committed it; after an unexpected exception too.
            self._is_in_doubt = True
            raise
        finally:
            self._waiting_since = None
        self._committed_seq = frames[-1].seq
        self.steps += 1
        self._metrics.write_seconds.observe(time.monotonic() - started)
        self._metrics.receive_to_commit_seconds.observe((datetime.now(UTC) - frames[0].received_at).total_seconds())
        _count(outcome, self._metrics)
        for notify in self._on_stored:
            notify(outcome)
        await self._spool.trim(self._committed_seq)

    async def _write_parts(self, store: Store, frames: Sequence[Prepared], exc: RowsRejected) -> None:
        if len(frames) > 1:
            for part in split_batch(frames):
                await self._write(store, part)
            return
        (frame,) = frames
        if isinstance(frame.content, BadFrame):
            # Quarantining writes nothing of the guest's but bytes: if that is rejected, it is our bug.
            raise exc
        log.warning("store rejected a frame, quarantining it", machine=str(frame.machine_id), error=str(exc))
        await self._write(store, [replace(frame, content=BadFrame("rejected_by_store", str(exc)))])


def _log_new_id(resumption: resume.Rename | resume.Separate, old_id: UUID, spool: Spool) -> None:
    event = (
        "ledger ahead of this spool, continuing under a new spool id; was an older copy of the spool put back, or does "
        "another guestd run on a copy?"
    )
    if isinstance(resumption, resume.Separate):
        event = (
            "another guestd stores under this spool's id, continuing under a new one; frames of the file are written "
            "again, and those that are stored are left out; was this host cloned, or the spool copied?"
        )
    log.error(event, old=str(old_id), new=str(spool.spool_id), frames=spool.frames)


def _count(outcome: Outcome, metrics: WriterMetrics) -> None:
    metrics.frames_done.labels("stored").inc(outcome.stored)
    metrics.frames_done.labels("stored_in_part").inc(outcome.stored_in_part)
    metrics.frames_done.labels("duplicate").inc(outcome.duplicate)
    metrics.frames_done.labels("quarantined").inc(outcome.quarantined.total())
    for reason, frames in outcome.quarantined.items():
        metrics.quarantined.labels(reason).inc(frames)
    metrics.copy_seconds.observe(outcome.copy_seconds)
    if outcome.left_out:
        metrics.preparing.adjusted.labels("inventory_full").inc(outcome.left_out)
    if outcome.changes_left_out:
        metrics.preparing.adjusted.labels("history_full").inc(outcome.changes_left_out)
    for table, rows in outcome.rows.items():
        metrics.rows_written.labels(table).inc(rows)
