"""Frames become rows: decode, find a free timestamp, normalise.

This module has the only `except Exception` of the code base: guests are not trusted, and a bug that one of them can
trigger costs that frame and is counted; the other frames are not affected.
"""

from __future__ import annotations

import asyncio
import functools
import os
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TypeVar
from uuid import UUID

import structlog

from guestd.core.config import CommandLines
from guestd.core.errors import BadFrame
from guestd.core.transport import Transport
from guestd.rows.batch import Moment, Prepared, digest, find_free_moments
from guestd.rows.model import Rows
from guestd.rows.normalise import GuestHistory, normalise
from guestd.rows.times import guest_time, sample_time, uuid7
from guestd.spool.file import Frame
from guestd.telemetry.registry import PrepareMetrics
from guestd.wire import decode, events
from guestd.wire.events import Event

log = structlog.get_logger()

T = TypeVar("T")
_MILLISECOND = timedelta(milliseconds=1)

# Which of these (machine, timestamp) have a sample in the store.
FindOccupied = Callable[[Sequence[Moment]], Awaitable[set[Moment]]]
# How to store the command lines of a machine.
CommandLinesOf = Callable[[UUID], Awaitable[CommandLines]]

# The time for which frames are prepared, or one frame, before yielding to the event loop.
YIELD_AFTER_SECONDS = 0.002
# A bug's traceback is logged once in this time, however many frames trigger it.
BUG_LOG_SECONDS = 60.0


async def redact_all(_: UUID) -> CommandLines:
    """The safe choice, for every machine."""
    return "redacted"


class Preparer:
    """Prepares batches; remembers of each machine what one message tells about the next."""

    def __init__(self, metrics: PrepareMetrics, command_lines_of: CommandLinesOf = redact_all) -> None:
        self._metrics = metrics
        self._command_lines_of = command_lines_of
        self._histories: dict[UUID, GuestHistory] = {}
        self._latest: dict[UUID, datetime] = {}
        self._yielded_at = 0.0
        self._silent_until: dict[tuple[str, int], float] = {}

    async def prepare(self, frames: Sequence[Frame], find_occupied: FindOccupied) -> list[Prepared]:
        """Rows of these frames at free timestamps, or why a frame has none. Raises what `find_occupied` raises."""
        return await self.move_occupied(await self.make_rows(frames), find_occupied)

    async def make_rows(self, frames: Sequence[Frame]) -> list[Prepared]:
        """Rows of these frames at the timestamps that their messages claim, or why a frame has none."""
        batch = []
        for frame in frames:
            await self._yield_to_loop()
            # One by one: all that a batch decodes would not fit into a processor's cache.
            batch.append(await self._prepare(frame))
        return batch

    async def _prepare(self, frame: Frame) -> Prepared:
        message = self.guard(frame, _decode)
        if isinstance(message, Event):
            # An event is recognised by its own id.
            return _prepared(frame, message, digest=None)
        known_by = digest(frame.payload, frame.line_id, message)
        command_lines = await self._command_lines_of(frame.machine_id)
        content: Rows | BadFrame
        if isinstance(message, BadFrame):
            content = message
        else:
            step = functools.partial(
                self._normalise,
                message=message,
                timestamp=self._timestamp(frame, message),
                digest=known_by,
                command_lines=command_lines,
            )
            content = self.guard(frame, step)
        return _prepared(frame, content, digest=known_by, command_lines=command_lines)

    def forget(self, is_known: Callable[[UUID], bool]) -> None:
        """Forget what is remembered of machines that are gone."""
        for machine_id in [each for each in self._latest if not is_known(each)]:
            del self._latest[machine_id]
            self._histories.pop(machine_id, None)

    async def _yield_to_loop(self) -> None:
        """Let the event loop read channels and acknowledge while a long batch is prepared.

        By time and not by frame: while ten thousand channels are written to, each iteration of the loop takes long, and
        with one frame an iteration the store would fall behind.
        """
        if time.monotonic() - self._yielded_at >= YIELD_AFTER_SECONDS:
            await asyncio.sleep(0)
            self._yielded_at = time.monotonic()

    async def move_occupied(self, frames: Sequence[Prepared], find_occupied: FindOccupied) -> list[Prepared]:
        """The same frames, with those moved whose timestamp is occupied by another sample."""
        with_rows = [(frame, frame.content) for frame in frames if isinstance(frame.content, Rows)]
        desired = [(frame.machine_id, rows.shared.timestamp) for frame, rows in with_rows]
        moments = await self.find_free(desired, find_occupied)
        contents = {
            frame.seq: rows.with_shared(timestamp=at)
            for (frame, rows), (_, at), (_, desired_at) in zip(with_rows, moments, desired, strict=True)
            if at != desired_at
        }
        return [replace(frame, content=contents[frame.seq]) if frame.seq in contents else frame for frame in frames]

    def guard(self, frame: Frame, step: Callable[[Frame], T]) -> T | BadFrame:
        """The result of a step; BadFrame for whatever it raises."""
        try:
            return step(frame)
        except BadFrame as exc:
            return exc
        except Exception as exc:
            self._metrics.bugs.inc()
            self._log_bug(frame, exc)
            return BadFrame("bug", f"{type(exc).__name__}: {exc}")

    def _log_bug(self, frame: Frame, exc: Exception) -> None:
        """Log the traceback, of each line of code once a minute: guests may send such frames without end."""
        *_, (step, line_number) = traceback.walk_tb(exc.__traceback__)
        place = step.f_code.co_filename, line_number
        if time.monotonic() >= self._silent_until.get(place, 0.0):
            self._silent_until[place] = time.monotonic() + BUG_LOG_SECONDS
            log.exception(
                "frame triggered a bug in guestd and is quarantined; report the traceback",
                machine=str(frame.machine_id),
                seq=frame.seq,
            )

    def _timestamp(self, frame: Frame, message: decode.Decoded) -> datetime:
        claimed = guest_time(message.metrics.timestamp)
        if claimed is not None:
            self._metrics.skew_seconds.observe(abs((claimed - frame.received_at).total_seconds()))
        moment = sample_time(claimed, frame.received_at, frame.transport)
        if claimed is None or abs(claimed - moment) >= _MILLISECOND:
            self._metrics.adjusted.labels("guest_time").inc()
        return moment

    async def find_free(self, desired: Sequence[Moment], find_occupied: FindOccupied) -> list[Moment]:
        """Free timestamps for the frames of a batch.

        The store is asked only where a machine's time does not advance.
        """
        checked: set[Moment] = set()
        occupied: set[Moment] = set()
        # Doubled in every round: a guest whose clock stood still for days has a long run of occupied times behind it.
        step = _MILLISECOND
        while True:
            moments = find_free_moments(desired, occupied)
            doubtful = {
                (machine_id, moment)
                for machine_id, moment in moments
                if moment <= self._latest.get(machine_id, moment)
            } - checked  # fmt: skip
            found = await find_occupied(sorted(doubtful)) if doubtful else set()
            if not found:
                break
            checked |= doubtful
            occupied |= found
            desired = [
                (machine_id, moment + step if (machine_id, moment) in found else desired_at)
                for (machine_id, desired_at), (_, moment) in zip(desired, moments, strict=True)
            ]
            step *= 2
        for machine_id, moment in moments:
            self._latest[machine_id] = max(moment, self._latest.get(machine_id, moment))
        return moments

    def _normalise(
        self,
        frame: Frame,
        *,
        message: decode.Decoded,
        timestamp: datetime,
        digest: int | None,
        command_lines: CommandLines,
    ) -> Rows:
        rows = normalise(
            message.metrics,
            row_id=uuid7(frame.received_at, os.urandom(10)),
            machine_id=frame.machine_id,
            timestamp=timestamp,
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
    frame: Frame, content: Rows | Event | BadFrame, *, digest: int | None, command_lines: CommandLines = "redacted"
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
        is_numbered=frame.line_id is not None,
    )


def _decode(frame: Frame) -> decode.Decoded | Event:
    if frame.kind in events.TYPES:
        event = events.read_event(frame.payload, machine_id=frame.machine_id, received_at=frame.received_at)
        return events.with_repeatable_id(event, frame.payload) if frame.transport is Transport.MQTT else event
    message = decode.decode(frame.payload)
    claims = message.metrics.claims()
    if claims is not None and claims.lower() != str(frame.machine_id):
        raise BadFrame("identity", f"the channel belongs to {frame.machine_id}, the payload claims {claims[:40]!r}")
    return message
