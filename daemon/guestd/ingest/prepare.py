"""Frames become rows: decode, find a free timestamp, normalise.

`Preparer.guard` catches every exception: guests are not trusted, and a bug that one of them can trigger costs that
frame and is counted; the other frames are not affected.
"""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TypeVar
from uuid import UUID

from guestd.core.bugs import BugLog
from guestd.core.config import CommandLines
from guestd.core.errors import BadFrame
from guestd.core.transport import Transport
from guestd.ingest.sample_times import (
    ClaimedTimes,
    FindOccupied,
    FindSamples,
    FreeTimes,
    find_batch_ceilings,
    find_none,
)
from guestd.rows.batch import Prepared, digest, place_digest
from guestd.rows.model import Rows
from guestd.rows.normalise import GuestHistory, normalise
from guestd.rows.times import guest_time, uuid7
from guestd.spool.file import Frame
from guestd.telemetry.registry import PrepareMetrics
from guestd.wire import decode, events
from guestd.wire.events import Event

T = TypeVar("T")
# How to store the command lines of a machine.
CommandLinesOf = Callable[[UUID], Awaitable[CommandLines]]

# The time for which frames are prepared, or one frame, before yielding to the event loop.
YIELD_AFTER_SECONDS = 0.002


async def redact_all(_: UUID) -> CommandLines:
    """The safe choice, for every machine."""
    return "redacted"


class Preparer:
    """Prepares batches; remembers of each machine what one message tells about the next."""

    def __init__(self, metrics: PrepareMetrics, command_lines_of: CommandLinesOf = redact_all) -> None:
        self._metrics = metrics
        self._command_lines_of = command_lines_of
        self._histories: dict[UUID, GuestHistory] = {}
        self._claimed_times = ClaimedTimes(metrics)
        self._free_times = FreeTimes()
        self._yielded_at = 0.0
        self._bugs = BugLog()

    async def prepare(
        self, frames: Sequence[Frame], find_occupied: FindOccupied, find_samples: FindSamples = find_none
    ) -> list[Prepared]:
        """Rows of these frames at free timestamps, or why a frame has none. Raises what the two queries raise."""
        return await self.move_occupied(await self.make_rows(frames), find_occupied, find_samples)

    async def make_rows(self, frames: Sequence[Frame]) -> list[Prepared]:
        """Rows of these frames at the timestamps that their messages claim, or why a frame has none."""
        batch = []
        ceilings = await find_batch_ceilings(frames, self._yield_to_loop)
        for frame in frames:
            await self._yield_to_loop()
            # One by one: all that a batch decodes would not fit into a processor's cache.
            batch.append(await self._prepare(frame, ceilings.get(frame.seq)))
        return batch

    async def _prepare(self, frame: Frame, ceiling: datetime | None) -> Prepared:
        message = self.guard(frame, _decode)
        if isinstance(message, Event):
            # An event is recognised by its own id.
            return _prepared(frame, message, digest=None)
        known_by = digest(frame.payload, frame.line_id, message)
        if known_by is None:
            known_by = place_digest(frame.payload, frame.seq, frame.received_at)
        command_lines = await self._command_lines_of(frame.machine_id)
        content: Rows | BadFrame
        claimed_at = None
        if isinstance(message, BadFrame):
            content = message
        else:
            claimed_at = guest_time(message.metrics.timestamp)
            step = functools.partial(
                self._normalise,
                message=message,
                ceiling=ceiling,
                digest=known_by,
                command_lines=command_lines,
            )
            content = self.guard(frame, step)
        return _prepared(frame, content, digest=known_by, command_lines=command_lines, claimed_at=claimed_at)

    def forget(self, is_known: Callable[[UUID], bool]) -> None:
        """Forget what is remembered of machines that are gone."""
        for machine_id in [each for each in self._histories if not is_known(each)]:
            del self._histories[machine_id]
        self._claimed_times.forget(is_known)
        self._free_times.forget(is_known)

    async def _yield_to_loop(self) -> None:
        """Let the event loop read channels and acknowledge while a long batch is prepared.

        By time and not by frame: while ten thousand channels are written to, each iteration of the loop takes long, and
        with one frame an iteration the store would fall behind.
        """
        if time.monotonic() - self._yielded_at >= YIELD_AFTER_SECONDS:
            await asyncio.sleep(0)
            self._yielded_at = time.monotonic()

    async def move_occupied(
        self, frames: Sequence[Prepared], find_occupied: FindOccupied, find_samples: FindSamples = find_none
    ) -> list[Prepared]:
        """The same frames, with those moved whose timestamp is occupied by another sample, or before an earlier one.

        Frames whose samples are stored are not moved: writing them finds that they are duplicates.
        """
        with_rows = [(frame, frame.content) for frame in frames if isinstance(frame.content, Rows)]
        desired = [(frame.machine_id, rows.shared.timestamp) for frame, rows in with_rows]
        stored = await self._free_times.follow_stored(desired, [frame for frame, _ in with_rows], find_samples)
        with_rows = [(frame, rows) for frame, rows in with_rows if frame.seq not in stored]
        desired = [(frame.machine_id, rows.shared.timestamp) for frame, rows in with_rows]
        frames_with_rows = [frame for frame, _ in with_rows]
        await self._free_times.find_lines_before(frames_with_rows, find_samples)
        moments = await self._free_times.find(desired, find_occupied, frames_with_rows)
        contents = {
            frame.seq: rows.with_shared(timestamp=at)
            for (frame, rows), (_, at), (_, desired_at) in zip(with_rows, moments, desired, strict=True)
            if at != desired_at
        }
        return [replace(frame, content=contents[frame.seq]) if frame.seq in contents else frame for frame in frames]

    def guard(self, frame: Frame, step: Callable[[Frame], T]) -> T | BadFrame:
        """The result of a step; BadFrame for whatever it raises, but MemoryError, which is no frame's fault."""
        try:
            return step(frame)
        except BadFrame as exc:
            return exc
        except MemoryError:
            raise
        except Exception as exc:
            self._metrics.bugs.inc()
            # Not without end: guests may send such frames forever.
            self._bugs.error(
                "frame triggered a bug in guestd and is quarantined; report the traceback",
                exc,
                machine=str(frame.machine_id),
                seq=frame.seq,
            )
            return BadFrame("bug", f"{type(exc).__name__}: {exc}")

    def _normalise(
        self,
        frame: Frame,
        *,
        message: decode.Decoded,
        ceiling: datetime | None,
        digest: int | None,
        command_lines: CommandLines,
    ) -> Rows:
        rows = normalise(
            message.metrics,
            row_id=uuid7(frame.received_at, os.urandom(10)),
            machine_id=frame.machine_id,
            timestamp=self._claimed_times.get(frame, message.metrics, ceiling),
            received_at=frame.received_at,
            digest=digest,
            history=self._histories.setdefault(frame.machine_id, GuestHistory()),
            command_lines=command_lines,
        )
        rows.refusals += message.refusals
        rows.dialect = message.dialect if frame.line_id is None else "guestd"
        for reason, times in Counter((*message.repairs, *rows.adjustments)).items():
            self._metrics.adjusted.labels(reason).inc(times)
        return rows


def _prepared(
    frame: Frame,
    content: Rows | Event | BadFrame,
    *,
    digest: int | None,
    command_lines: CommandLines = "redacted",
    claimed_at: datetime | None = None,
) -> Prepared:
    return Prepared(
        seq=frame.seq,
        machine_id=frame.machine_id,
        received_at=frame.received_at,
        payload=frame.payload,
        content=content,
        digest=digest,
        command_lines=command_lines,
        transport=frame.transport,
        line_id=frame.line_id,
        claimed_at=claimed_at,
    )


def _decode(frame: Frame) -> decode.Decoded | Event:
    if frame.problem is not None:
        raise BadFrame("spool", frame.problem)
    if frame.kind in events.TYPES:
        event = events.read_event(frame.payload, machine_id=frame.machine_id, received_at=frame.received_at)
        return events.with_repeatable_id(event, frame.payload) if frame.transport is Transport.MQTT else event
    message = decode.decode(frame.payload)
    claims = message.metrics.claims()
    if claims is not None and claims.lower() != str(frame.machine_id):
        raise BadFrame("identity", f"the channel belongs to {frame.machine_id}, the payload claims {claims[:40]!r}")
    return message
