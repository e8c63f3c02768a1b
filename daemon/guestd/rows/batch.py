"""What is written in one transaction: when it is due, by what a frame is known again, how a batch is halved. Pure."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import blake2b
from uuid import UUID

from guestd.core.config import CommandLines
from guestd.core.errors import BadFrame
from guestd.core.transport import Transport
from guestd.rows.model import Rows
from guestd.wire.decode import Decoded
from guestd.wire.events import Event
from guestd.wire.line import LineId


@dataclass(frozen=True, slots=True)
class Prepared:
    """One frame, ready for the store: its rows, its event, or why it has none."""

    seq: int
    machine_id: UUID
    received_at: datetime
    payload: bytes
    content: Rows | Event | BadFrame
    digest: int | None
    command_lines: CommandLines = "redacted"
    channel: Transport = Transport.VIRTIO
    is_numbered: bool = False

    @property
    def times(self) -> tuple[datetime, ...]:
        """When it was received, and the time of its sample."""
        if isinstance(self.content, Rows):
            return self.received_at, self.content.shared.timestamp
        return (self.received_at,)


_DIGEST_BITS = 63


def digest(payload: bytes, line_id: LineId | None, message: Decoded | BadFrame) -> int | None:
    """By what a frame is known when it comes again, 63 bits; None when an equal frame may well be another one.

    A line that bears a mark is its mark, for a machine that was put back in time sends it again under another number;
    one that is only numbered is its number. A line with a time of its own is its bytes, and so is one that cannot be
    read: kept once, it tells all that it ever will.
    """
    if line_id is not None and line_id.mark is not None:
        named = blake2b(line_id.mark.encode(), digest_size=8, person=b"mark")
    elif line_id is not None:
        named = blake2b(b"%s %d" % (line_id.boot_id.encode(), line_id.seq), digest_size=8, person=b"boot_id seq")
    elif isinstance(message, BadFrame) or message.metrics.timestamp is not None:
        named = blake2b(payload, digest_size=8, person=b"payload")
    else:
        return None
    return int.from_bytes(named.digest()) >> (64 - _DIGEST_BITS)


@dataclass(frozen=True, slots=True)
class Limits:
    """When a batch is due: whichever comes first."""

    max_frames: int
    max_bytes: int
    max_age_seconds: float


def is_due(waiting_bytes: int, waited_seconds: float, limits: Limits) -> bool:
    """Whether to write now what waits, or to let it grow."""
    return waiting_bytes >= limits.max_bytes or waited_seconds >= limits.max_age_seconds


def halves(frames: Sequence[Prepared]) -> tuple[Sequence[Prepared], Sequence[Prepared]]:
    """Two parts in order, the first never empty; together they are the batch."""
    middle = (len(frames) + 1) // 2
    return frames[:middle], frames[middle:]


Moment = tuple[UUID, datetime]
_MILLISECOND = timedelta(milliseconds=1)


def placed(wanted: Sequence[Moment], taken: Set[Moment]) -> list[Moment]:
    """The (machine, time) that each frame's rows get: as wanted, or moved by whole ms past others."""
    used = set(taken)
    # Where the search for a free moment goes on, so that a guest that repeats one time for ever costs no more.
    resume_at: dict[Moment, datetime] = {}
    moments = []
    for machine_id, wish in wanted:
        moment = resume_at.get((machine_id, wish), wish)
        while (machine_id, moment) in used:
            moment += _MILLISECOND
        used.add((machine_id, moment))
        resume_at[(machine_id, wish)] = moment + _MILLISECOND
        moments.append((machine_id, moment))
    return moments
