"""Batches: when one is due, what identifies a frame, free timestamps for samples, splitting a batch. Pure."""

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
    """A frame that is ready for the store: its rows, its event, or the reason why it has neither."""

    seq: int
    machine_id: UUID
    received_at: datetime
    payload: bytes
    content: Rows | Event | BadFrame
    digest: int | None
    command_lines: CommandLines = "redacted"
    transport: Transport = Transport.VIRTIO
    is_numbered: bool = False

    @property
    def times(self) -> tuple[datetime, ...]:
        """When it was received, and the timestamp of its sample."""
        if isinstance(self.content, Rows):
            return self.received_at, self.content.shared.timestamp
        return (self.received_at,)


_DIGEST_BITS = 63


def digest(payload: bytes, line_id: LineId | None, message: Decoded | BadFrame) -> int | None:
    """Identifies a frame that is sent again, in 63 bits; None: not identifiable.

    By the mark, because a machine that is reverted to a snapshot sends the line again under another number; else by
    boot_id and number; else by the bytes of a line that has a timestamp or cannot be decoded.
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
    """Whether to write the waiting frames now."""
    return waiting_bytes >= limits.max_bytes or waited_seconds >= limits.max_age_seconds


def split_batch(frames: Sequence[Prepared]) -> tuple[Sequence[Prepared], Sequence[Prepared]]:
    """The batch in two parts, in order; the first is never empty."""
    middle = (len(frames) + 1) // 2
    return frames[:middle], frames[middle:]


Moment = tuple[UUID, datetime]
_MILLISECOND = timedelta(milliseconds=1)


def find_free_moments(desired: Sequence[Moment], occupied: Set[Moment]) -> list[Moment]:
    """The (machine, time) of each frame's rows: as desired, or moved by whole ms to the next that is free."""
    used = set(occupied)
    # Where the search for a free moment continues, so that a guest that always sends the same time costs no more.
    resume_at: dict[Moment, datetime] = {}
    moments = []
    for machine_id, desired_at in desired:
        moment = resume_at.get((machine_id, desired_at), desired_at)
        while (machine_id, moment) in used:
            moment += _MILLISECOND
        used.add((machine_id, moment))
        resume_at[(machine_id, desired_at)] = moment + _MILLISECOND
        moments.append((machine_id, moment))
    return moments
