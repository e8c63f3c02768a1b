"""From the spool to the store: decode, normalise, batch, write; trim when it is committed.

Accept, Reject, Keep: rows are stored; or refused for good, and then the batch is halved until the frame is found and
set aside; or the store cannot take them now, and then the same rows are tried again on a new connection. After a lost
answer to COMMIT the ledger tells whether they are there.

Here stands the only `except Exception` of the code base: guests are not trusted, and a bug that one of them can reach
costs that frame and is counted, and the others go on.
"""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from uuid import UUID

import structlog

from guestd import books, decoding, messages
from guestd.batch import Limits, Moment, Prepared, digest, halves, is_due, placed
from guestd.errors import BadFrame, RowsRejected, StoreUnavailable
from guestd.lifecycle import Backoff, retrying
from guestd.normalise import Rows, Stream, guest_time, normalise, sample_time, uuid7
from guestd.spool import Frame, Spool
from guestd.store import LedgerMoved, Outcome, Store, connected

log = structlog.get_logger()

T = TypeVar("T")
_MILLISECOND = timedelta(milliseconds=1)
TRIM_AGAIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Counters:
    """What the writer counts; telemetry gives the functions."""

    outcome: Callable[[Outcome], None]
    committed: Callable[[float, float], None]  # seconds the write took, seconds since the oldest frame was received
    adjusted: Callable[[str], None]  # reason
    bug: Callable[[], None]
    store_lost: Callable[[], None]
    skew_seconds: Callable[[float], None]
    rows: Callable[[UUID, int], None]  # machine, rows that were made of a frame of its


class Writer:
    """The one consumer of a spool."""

    def __init__(self, spool: Spool, *, dsn: str, limits: Limits, counters: Counters) -> None:
        self._spool = spool
        self._dsn = dsn
        self._limits = limits
        self._counters = counters
        self._prepared: Sequence[Prepared] = ()
        self._committed_seq = 0
        self._has_opened_books = False
        self._is_in_doubt = False
        self._streams: dict[UUID, Stream] = {}
        self._latest: dict[UUID, datetime] = {}
        self.store_error: str | None = "not connected yet"

    async def run(self) -> None:
        """Write until the spool is sealed and empty. Raises SchemaMismatch; an unreachable store is waited for."""

        def lost(why: Exception, delay_seconds: float) -> None:
            self.store_error = str(why)
            self._counters.store_lost()
            if isinstance(why, LedgerMoved):
                return
            log.warning(
                "the store is not available, the spool keeps what comes", error=str(why), retry=round(delay_seconds, 1)
            )

        await retrying(self._connection, expected=StoreUnavailable, backoff=Backoff(cap_seconds=5), lost=lost)

    @property
    def has_nothing_to_do(self) -> bool:
        """Whether all that was accepted is committed."""
        return self._spool.last_seq <= self._committed_seq

    async def _connection(self) -> None:
        """One connection's life."""
        async with connected(self._dsn) as store:
            await self._open_books(store)
            self.store_error = None
            while frames := await self._next(store):
                await self._write(store, frames)
                self._prepared = ()

    async def _open_books(self, store: Store) -> None:
        """Find where to go on; after this the ledger stands at `_committed_seq`."""
        spool = self._spool
        ledger_seq = await store.ledger(spool.spool_id)
        resumption = books.resumption(ledger_seq, oldest_seq=spool.oldest_seq, own_seq=self._own_seq())
        committed_seq = resumption.committed_seq
        if isinstance(resumption, books.Rename) and self._has_opened_books:
            # Somebody writes under our id (a cloned host): what is stored of ours for certain is what we know of.
            committed_seq = self._committed_seq
        # First, so that a crash in here can only leave less to do.
        await spool.trim(committed_seq)
        match resumption:
            case books.Resume() if ledger_seq is None:
                await store.set_ledger(spool.spool_id, None, committed_seq)
            case books.Resume():
                pass
            case books.Adopt(_, missing_from, missing_to):
                log.error(
                    "the store lacks frames that it had confirmed; was it restored from a backup?",
                    spool=str(spool.spool_id), missing_from=missing_from, missing_to=missing_to,
                )  # fmt: skip
                await store.set_ledger(spool.spool_id, ledger_seq, committed_seq)
            case books.Rename():
                log.error(
                    "the ledger is ahead of this spool: an older copy of it came back, or another guestd has a copy;"
                    " it goes on under a new id",
                    old=str(spool.spool_id),
                )
                await spool.rename(committed_seq)
                await store.set_ledger(spool.spool_id, None, committed_seq)
        await spool.settle()
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
        if not await self._gathered():
            return ()
        frames = await self._spool.read(
            self._committed_seq, max_frames=self._limits.max_frames, max_bytes=self._limits.max_bytes
        )
        self._prepared = await self._prepare(store, frames)
        return self._prepared

    async def _gathered(self) -> bool:
        """Wait until a batch is due; False when the spool is sealed and nothing is left."""
        spool = self._spool
        while self.has_nothing_to_do:
            if spool.is_sealed:
                return False
            spool.appended.clear()
            async with _at_most(TRIM_AGAIN_SECONDS if spool.oldest_seq <= self._committed_seq else None):
                await spool.appended.wait()
            if spool.oldest_seq <= self._committed_seq:
                # The disk refused the last trim.
                await spool.trim(self._committed_seq)
        began = time.monotonic()
        while not spool.is_sealed and not is_due(spool.bytes, time.monotonic() - began, self._limits):
            spool.appended.clear()
            async with _at_most(began + self._limits.max_age_seconds - time.monotonic()):
                await spool.appended.wait()
        return True

    async def _prepare(self, store: Store, frames: Sequence[Frame]) -> list[Prepared]:
        read = [
            (frame, self._guarded(frame, lambda frame: _decoded(frame.machine_id, frame.payload))) for frame in frames
        ]
        good = [(frame, message) for frame, message in read if not isinstance(message, BadFrame)]
        moments = await self._placed(
            store, [(frame.machine_id, self._moment(frame, message)) for frame, message in good]
        )
        timestamps = {frame.seq: timestamp for (frame, _), (_, timestamp) in zip(good, moments, strict=True)}
        prepared = []
        for frame, message in read:
            # Between two frames the loop reads channels and answers: a batch may take long to prepare.
            await asyncio.sleep(0)
            known_by = digest(frame.payload, messages.header(frame.payload), message)
            content: Rows | BadFrame
            if isinstance(message, BadFrame):
                content = message
            else:
                step = functools.partial(
                    self._normalised, message=message, timestamp=timestamps[frame.seq], digest=known_by
                )
                content = self._guarded(frame, step)
            prepared.append(Prepared(frame.seq, frame.machine_id, frame.received_at, frame.payload, content, known_by))
        return prepared

    def _guarded(self, frame: Frame, step: Callable[[Frame], T]) -> T | BadFrame:
        try:
            return step(frame)
        except BadFrame as why:
            return why
        except Exception as why:
            self._counters.bug()
            log.exception("a guest's frame has reached a bug", machine=str(frame.machine_id), seq=frame.seq)
            return BadFrame("bug", f"{type(why).__name__}: {why}")

    def _moment(self, frame: Frame, message: decoding.Decoded) -> datetime:
        claimed = guest_time(message.metrics.timestamp)
        if claimed is not None:
            self._counters.skew_seconds((claimed - frame.received_at).total_seconds())
        moment = sample_time(claimed, frame.received_at, frame.channel)
        if claimed is None or abs(claimed - moment) >= _MILLISECOND:
            self._counters.adjusted("guest_time")
        return moment

    async def _placed(self, store: Store, wanted: Sequence[Moment]) -> list[Moment]:
        """Free times for the frames of a batch. The store is asked only where a machine's time does not go forward."""
        asked: set[Moment] = set()
        taken: set[Moment] = set()
        # Doubled with every round: a guest whose clock stands still for days has a long run of taken times behind it.
        step = _MILLISECOND
        while True:
            moments = placed(wanted, taken)
            doubtful = {
                (machine_id, moment)
                for machine_id, moment in moments
                if moment <= self._latest.get(machine_id, moment)
            } - asked  # fmt: skip
            found = await store.taken(sorted(doubtful)) if doubtful else set()
            if not found:
                break
            asked |= doubtful
            taken |= found
            wanted = [
                (machine_id, moment + step if (machine_id, moment) in found else wish)
                for (machine_id, wish), (_, moment) in zip(wanted, moments, strict=True)
            ]
            step *= 2
        for machine_id, moment in moments:
            self._latest[machine_id] = max(moment, self._latest.get(machine_id, moment))
        return moments

    def _normalised(self, frame: Frame, *, message: decoding.Decoded, timestamp: datetime, digest: int | None) -> Rows:
        rows = normalise(
            message.metrics,
            row_id=uuid7(frame.received_at, os.urandom(10)),
            machine_id=frame.machine_id,
            timestamp=timestamp,
            received_at=frame.received_at,
            digest=digest,
            stream=self._streams.setdefault(frame.machine_id, Stream()),
        )
        rows.refusals += message.refusals
        self._counters.rows(frame.machine_id, rows.count)
        for reason in (*message.repairs, *rows.adjustments):
            self._counters.adjusted(reason)
        return rows

    async def _write(self, store: Store, frames: Sequence[Prepared]) -> None:
        """Commit frames; what the store refuses for good is found by halving and set aside."""
        started = time.monotonic()
        try:
            outcome = await store.write(self._spool.spool_id, self._committed_seq, frames)
        except RowsRejected as why:
            await self._write_parts(store, frames, why)
            return
        except LedgerMoved:
            raise
        except StoreUnavailable:
            self._is_in_doubt = True
            raise
        self._committed_seq = frames[-1].seq
        self._counters.outcome(outcome)
        oldest_age_seconds = (datetime.now(UTC) - frames[0].received_at).total_seconds()
        self._counters.committed(time.monotonic() - started, oldest_age_seconds)
        await self._spool.trim(self._committed_seq)

    async def _write_parts(self, store: Store, frames: Sequence[Prepared], why: RowsRejected) -> None:
        if len(frames) > 1:
            for part in halves(frames):
                await self._write(store, part)
            return
        (frame,) = frames
        if isinstance(frame.content, BadFrame):
            # Setting it aside writes nothing of the guest's but bytes: refused, it is our bug and not the guest's.
            raise why
        log.warning("a frame was refused by the store and is set aside", machine=str(frame.machine_id), error=str(why))
        await self._write(store, [replace(frame, content=BadFrame("rejected_by_store", str(why)))])


def _decoded(machine_id: UUID, payload: bytes) -> decoding.Decoded:
    message = decoding.decode(payload)
    claims = message.metrics.claims()
    if claims is not None and claims.lower() != str(machine_id):
        raise BadFrame("identity", f"the channel belongs to {machine_id}, the payload claims {claims[:40]!r}")
    return message


@asynccontextmanager
async def _at_most(seconds: float | None) -> AsyncIterator[None]:
    """Give up waiting in the block after so long, without an error."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        pass
