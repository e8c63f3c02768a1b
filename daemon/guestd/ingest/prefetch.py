"""The next batch, gathered and prepared while the store works on the one before."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from guestd.core.tasks import wait_for_event
from guestd.ingest.prepare import Preparer
from guestd.rows.batch import Limits, Prepared, is_due
from guestd.spool.queue import Spool

TRIM_RETRY_SECONDS = 1.0

OnPrepared = Callable[[Sequence[Prepared]], None]


class Prefetch:
    """One batch ahead of the writer. It outlives connections: what was prepared is not prepared again."""

    def __init__(
        self, spool: Spool, preparer: Preparer, limits: Limits, on_prepared: Sequence[OnPrepared] = ()
    ) -> None:
        self._spool = spool
        self._preparer = preparer
        self._on_prepared = on_prepared
        self.limits = limits
        self._task: asyncio.Task[Sequence[Prepared]] | None = None
        # Sequence number and size of the frames that are being written.
        self._in_flight: Sequence[tuple[int, int]] = ()

    def start(self, in_flight: Sequence[Prepared]) -> None:
        """Start on the batch after these frames, which are about to be written, unless it was started already."""
        self._in_flight = [(frame.seq, len(frame.payload)) for frame in in_flight]
        self._start_after(in_flight[-1].seq)

    async def get(self, after_seq: int) -> Sequence[Prepared]:
        """The next batch, at the times that its messages claim; empty when the spool is sealed and nothing is left."""
        self._in_flight = ()
        task = self._start_after(after_seq)
        try:
            return await task
        finally:
            if task.done():
                self._task = None  # after a failure the next call prepares it again

    async def discard(self) -> None:
        """Drop the batch ahead: the next one may start elsewhere."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    def _start_after(self, seq: int) -> asyncio.Task[Sequence[Prepared]]:
        if self._task is None:
            self._task = asyncio.create_task(self._prepare_after(seq), name="prepare")
        return self._task

    async def _prepare_after(self, seq: int) -> Sequence[Prepared]:
        if not await self._wait_until_due(seq):
            return ()
        frames = await self._spool.read(seq, max_frames=self.limits.max_frames, max_bytes=self.limits.max_bytes)
        batch = await self._preparer.make_rows(frames)
        for notify in self._on_prepared:
            notify(batch)
        return batch

    async def _wait_until_due(self, seq: int) -> bool:
        """Wait until a batch after this number is due; False when the spool is sealed and nothing is left."""
        spool = self._spool
        while spool.last_seq <= seq:
            if spool.has_ended:
                return False
            spool.appended.clear()
            await wait_for_event(spool.appended, TRIM_RETRY_SECONDS if spool.is_trim_due else None)
            if spool.is_trim_due:
                await spool.retry_trim()
        began = time.monotonic()
        while not spool.has_ended and not is_due(self._waiting_bytes(), time.monotonic() - began, self.limits):
            spool.appended.clear()
            await wait_for_event(spool.appended, began + self.limits.max_age_seconds - time.monotonic())
        return True

    def _waiting_bytes(self) -> int:
        """Of payloads in the spool that are in no batch yet, roughly: a spool counts more than the payload's bytes."""
        return self._spool.bytes - sum(size for seq, size in self._in_flight if seq >= self._spool.oldest_seq)
