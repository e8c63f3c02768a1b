"""Frames become rows: decode, find a free time, normalise.

Here stands the only `except Exception` of the code base: guests are not trusted, and a bug that one of them can reach
costs that frame and is counted, and the others go on.
"""

from __future__ import annotations

import asyncio
import functools
import os
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeVar
from uuid import UUID

import structlog

from guestd.core.config import CommandLines
from guestd.core.errors import BadFrame
from guestd.core.transport import Transport
from guestd.rows.batch import Moment, Prepared, digest, placed
from guestd.rows.normalise import Rows, Stream, guest_time, moved, normalise, sample_time, uuid7
from guestd.spool.file import Frame
from guestd.wire import decode, events, schema
from guestd.wire.events import Event

log = structlog.get_logger()

T = TypeVar("T")
_MILLISECOND = timedelta(milliseconds=1)

# Which of these (machine, timestamp) have a sample already: the store's to say.
Taken = Callable[[Sequence[Moment]], Awaitable[set[Moment]]]


@dataclass(frozen=True, slots=True)
class Counters:
    """What preparing counts; telemetry gives the functions."""

    adjusted: Callable[[str, int], None]  # reason, times
    bug: Callable[[], None]
    skew_seconds: Callable[[float], None]
    rows: Callable[[UUID, int], None]  # machine, rows that were made of a frame of its
    # Rows of a metrics message, the channel's kind, whether its lines are numbered.
    sample: Callable[[Rows, str, bool], None] = lambda *_: None


# How the command lines of a machine are kept.
CommandLinesOf = Callable[[UUID], Awaitable[CommandLines]]

# Between two of its turns a batch is prepared for so long, or one frame.
BREATHE_SECONDS = 0.002
# A bug's traceback is logged so often, however many frames reach it.
BUG_SECONDS = 60.0


async def redacted(_: UUID) -> CommandLines:
    """For every machine what is safe."""
    return "redacted"


class Preparer:
    """What is remembered of each machine from one message to the next."""

    def __init__(self, counters: Counters, command_lines_of: CommandLinesOf = redacted) -> None:
        self._counters = counters
        self._command_lines_of = command_lines_of
        self._streams: dict[UUID, Stream] = {}
        self._latest: dict[UUID, datetime] = {}
        self._breathed_at = 0.0
        self._silent_until: dict[tuple[str, int], float] = {}

    async def prepare(self, frames: Sequence[Frame], taken: Taken) -> list[Prepared]:
        """Rows of these frames, or why a frame has none. Raises what `taken` raises."""
        prepared = []
        for frame in frames:
            await self._breathe()
            # One by one: all that a batch decodes would not fit into a processor's cache.
            prepared.append(await self._prepared(frame))
        return await self.replaced(prepared, taken)

    async def _prepared(self, frame: Frame) -> Prepared:
        """A frame's rows under the time that it wishes for."""
        message = self.guarded(frame, _decoded)
        if isinstance(message, Event):
            return self._reported(frame, message)
        header = schema.header(frame.payload)
        known_by = digest(frame.payload, header, message)
        command_lines = await self._command_lines_of(frame.machine_id)
        content: Rows | BadFrame
        if isinstance(message, BadFrame):
            content = message
        else:
            step = functools.partial(
                self._normalised,
                message=message,
                timestamp=self._moment(frame, message),
                digest=known_by,
                command_lines=command_lines,
            )
            content = self.guarded(frame, step)
        if isinstance(content, Rows):
            self._counters.sample(content, frame.channel.value, header is not None)
        return Prepared(frame.seq, frame.machine_id, frame.received_at, frame.payload, content, known_by, command_lines)

    def forget(self, knows: Callable[[UUID], bool]) -> None:
        """Forget what is remembered of machines that nobody knows any more."""
        for machine_id in [each for each in self._latest if not knows(each)]:
            del self._latest[machine_id]
            self._streams.pop(machine_id, None)

    async def _breathe(self) -> None:
        """Let the loop read channels and answer when a batch takes long to prepare.

        By time and not by frame: where ten thousand channels have something to say, each turn of the loop is long, and
        with one frame a turn the store would fall behind for as long as they go on.
        """
        if time.monotonic() - self._breathed_at >= BREATHE_SECONDS:
            await asyncio.sleep(0)
            self._breathed_at = time.monotonic()

    async def replaced(self, frames: Sequence[Prepared], taken: Taken) -> list[Prepared]:
        """The same frames, those moved whose time somebody else's sample has taken."""
        with_rows = [(frame, frame.content) for frame in frames if isinstance(frame.content, Rows)]
        wanted = [(frame.machine_id, rows.system_metrics[2]) for frame, rows in with_rows]
        moments = await self.placed(wanted, taken)
        contents = {
            frame.seq: moved(rows, at)
            for (frame, rows), (_, at), (_, wish) in zip(with_rows, moments, wanted, strict=True)
            if at != wish
        }
        return [replace(frame, content=contents[frame.seq]) if frame.seq in contents else frame for frame in frames]

    def _reported(self, frame: Frame, event: Event) -> Prepared:
        """An event is known again by its own id."""
        self._counters.rows(frame.machine_id, 1)
        return Prepared(frame.seq, frame.machine_id, frame.received_at, frame.payload, event, digest=None)

    def guarded(self, frame: Frame, step: Callable[[Frame], T]) -> T | BadFrame:
        """What a step makes of a frame; BadFrame for whatever it raises."""
        try:
            return step(frame)
        except BadFrame as exc:
            return exc
        except Exception as exc:
            self._counters.bug()
            self._tell(frame, exc)
            return BadFrame("bug", f"{type(exc).__name__}: {exc}")

    def _tell(self, frame: Frame, exc: Exception) -> None:
        """Log the traceback, of each place in the code once a minute: guests can send such frames without end."""
        *_, (step, line_number) = traceback.walk_tb(exc.__traceback__)
        place = step.f_code.co_filename, line_number
        if time.monotonic() >= self._silent_until.get(place, 0.0):
            self._silent_until[place] = time.monotonic() + BUG_SECONDS
            log.exception("a guest's frame has reached a bug", machine=str(frame.machine_id), seq=frame.seq)

    def _moment(self, frame: Frame, message: decode.Decoded) -> datetime:
        claimed = guest_time(message.metrics.timestamp)
        if claimed is not None:
            self._counters.skew_seconds((claimed - frame.received_at).total_seconds())
        moment = sample_time(claimed, frame.received_at, frame.channel)
        if claimed is None or abs(claimed - moment) >= _MILLISECOND:
            self._counters.adjusted("guest_time", 1)
        return moment

    async def placed(self, wanted: Sequence[Moment], taken: Taken) -> list[Moment]:
        """Free times for the frames of a batch. The store is asked only where a machine's time does not go forward."""
        asked: set[Moment] = set()
        occupied: set[Moment] = set()
        # Doubled with every round: a guest whose clock stands still for days has a long run of taken times behind it.
        step = _MILLISECOND
        while True:
            moments = placed(wanted, occupied)
            doubtful = {
                (machine_id, moment)
                for machine_id, moment in moments
                if moment <= self._latest.get(machine_id, moment)
            } - asked  # fmt: skip
            found = await taken(sorted(doubtful)) if doubtful else set()
            if not found:
                break
            asked |= doubtful
            occupied |= found
            wanted = [
                (machine_id, moment + step if (machine_id, moment) in found else wish)
                for (machine_id, wish), (_, moment) in zip(wanted, moments, strict=True)
            ]
            step *= 2
        for machine_id, moment in moments:
            self._latest[machine_id] = max(moment, self._latest.get(machine_id, moment))
        return moments

    def _normalised(
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
            stream=self._streams.setdefault(frame.machine_id, Stream()),
            command_lines=command_lines,
        )
        rows.refusals += message.refusals
        rows.dialect = message.dialect if schema.header(frame.payload) is None else "guestd"
        self._counters.rows(frame.machine_id, rows.count)
        for reason, times in Counter((*message.repairs, *rows.adjustments)).items():
            self._counters.adjusted(reason, times)
        return rows


def _decoded(frame: Frame) -> decode.Decoded | Event:
    if schema.other_type(frame.payload) in events.TYPES:
        event = events.event_of(frame.payload, machine_id=frame.machine_id, received_at=frame.received_at)
        return events.delivered(event, frame.payload) if frame.channel is Transport.MQTT else event
    message = decode.decode(frame.payload)
    claims = message.metrics.claims()
    if claims is not None and claims.lower() != str(frame.machine_id):
        raise BadFrame("identity", f"the channel belongs to {frame.machine_id}, the payload claims {claims[:40]!r}")
    return message
